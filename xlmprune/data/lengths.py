"""Estimate how many tokens XLM-R's tokenizer makes of a text, without the tokenizer."""

from __future__ import annotations

import re

CHARACTERS_PER_TOKEN = 3.5
"""Of XLM-R's tokenizer, in the mean of 20 languages of SIB-200; it is 2.9 to 4.1 there."""

LEAST_CHARACTERS_PER_TOKEN = 2.9

WIDE_PER_TOKEN = 1.4
"""The same for Chinese, Japanese and Korean characters, in Chinese."""

LEAST_WIDE_PER_TOKEN = 1.3

WIDE = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
"""Characters of these scripts."""


def estimate_tokens(text: str) -> float:
    """Estimate the tokens of a text in the mean over languages."""
    return _tokens(text, CHARACTERS_PER_TOKEN, WIDE_PER_TOKEN)


def most_tokens(text: str) -> float:
    """Estimate the tokens of a text on the safe side, as of the language that needs most."""
    return _tokens(text, LEAST_CHARACTERS_PER_TOKEN, LEAST_WIDE_PER_TOKEN)


def _tokens(text: str, characters: float, wide_characters: float) -> float:
    wide = 0 if text.isascii() else len(WIDE.findall(text))
    return wide / wide_characters + (len(text) - wide) / characters

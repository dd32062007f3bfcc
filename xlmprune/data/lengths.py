"""Estimate how many tokens XLM-R's tokenizer makes of a text, without the tokenizer; and say which texts are cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from xlmprune.core.languages import language_name
from xlmprune.data.examples import Examples

CHARACTERS_PER_TOKEN = 3.5
"""Of XLM-R's tokenizer, in the mean of 20 languages of SIB-200; it is 2.9 to 4.1 there."""

LEAST_CHARACTERS_PER_TOKEN = 2.9

WIDE_PER_TOKEN = 1.4
"""The same for Chinese, Japanese and Korean characters, in Chinese."""

LEAST_WIDE_PER_TOKEN = 1.3

WIDE = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
"""Characters of these scripts."""

SPECIAL = {"text": 2, "tokens": 2, "pair": 4}
"""Special tokens of an example, by kind."""

CUT_SHARE = 0.02
"""Of a language's test texts that are longer than `training.max_length`, from which on a run warns."""


def estimate_tokens(text: str) -> float:
    """Estimate the tokens of a text in the mean over languages."""
    return _tokens(text, CHARACTERS_PER_TOKEN, WIDE_PER_TOKEN)


def most_tokens(text: str) -> float:
    """Estimate the tokens of a text on the safe side, as of the language that needs most."""
    return _tokens(text, LEAST_CHARACTERS_PER_TOKEN, LEAST_WIDE_PER_TOKEN)


def _tokens(text: str, characters: float, wide_characters: float) -> float:
    wide = 0 if text.isascii() else len(WIDE.findall(text))
    return wide / wide_characters + (len(text) - wide) / characters


def whole_texts(examples: Examples) -> Iterator[str]:
    """Yield the text of every example, of a pair both with a space between."""
    for row, first in enumerate(examples.first):
        text = first if isinstance(first, str) else " ".join(first)
        yield text if examples.second is None else f"{text} {examples.second[row]}"


def share_cut(examples: Examples, max_length: int) -> float:
    """Estimate which share of the examples has more than ``max_length`` tokens."""
    room = max_length - SPECIAL[examples.kind]
    longer = sum(estimate_tokens(text) > room for text in whole_texts(examples))
    return longer / max(1, len(examples))


def describe_cut(shares: Mapping[str, float], max_length: int, estimated: bool = False) -> list[str]:
    """Warn of languages of which many test texts are cut; an empty list if few are.

    Args:
        shares: of each language's test texts.
        estimated: whether the texts were not tokenized.
    """
    cut = {language: share for language, share in shares.items() if share > CUT_SHARE}
    if not cut:
        return []
    about = "about " if estimated else ""
    listed = ", ".join(f"{language_name(language)} {about}{share:.0%}" for language, share in cut.items())
    return [
        f"training.max_length {max_length} cuts test texts: {listed}. The model does not read the rest of these texts. "
        "Raise it if that matters"
    ]

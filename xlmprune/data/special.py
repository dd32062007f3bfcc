"""Special tokens of a tokenizer: ids and names, read from the tokenizer itself; constants of no model family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tokenizers import Tokenizer

from xlmprune.core.errors import ModelError

NAMES = {"pad": ("<pad>", "[PAD]"), "unk": ("<unk>", "[UNK]"), "mask": ("<mask>", "[MASK]")}
"""What tokenizers call the tokens that no template shows."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that a tokenizer adds to a text; None where it has no such token."""

    names: dict[str, str]
    """``pad``, ``unk``, ``mask``, ``cls``, ``sep`` to the token's text; those that exist."""
    pad: int
    unknown: int | None
    separator: int | None
    """The token after a text."""
    single: int
    """Number of tokens added to one text."""
    pair: int
    """Number of tokens added to two texts."""
    segments: bool
    """Whether the second text of a pair has segment ids (`token_type_ids`) of 1."""
    word_start: int | None
    """The piece that stands for the bare start of a word, such as SentencePiece's ``▁``."""


@contextmanager
def explain_panics() -> Iterator[None]:
    """Turn a panic of the package tokenizers into a sentence. A panic of Rust is a BaseException, and no Exception.

    Raises:
        ModelError: the tokenizer names a token that it does not have, or is damaged otherwise.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the tokenizer is damaged: the package tokenizers failed with {str(error)!r}"
        ) from None


@explain_panics()
def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Read the special tokens of ``tokenizer``.

    Raises:
        ModelError: there is no padding token, or segment ids follow a rule that is not BERT's.
    """
    names = {role: token for role, known in NAMES.items() if (token := _first(tokenizer, known)) is not None}
    if "pad" not in names:
        raise ModelError(f"the tokenizer has no padding token; expected {' or '.join(NAMES['pad'])}")
    template = tokenizer.encode("")
    added = sum(template.attention_mask)  # the tokenizer may be set to pad
    separator = None
    if added >= 2:
        names |= {"cls": template.tokens[0], "sep": template.tokens[added - 1]}
        separator = template.ids[added - 1]
    return SpecialTokens(
        names=names,
        pad=_id(tokenizer, names["pad"]),
        unknown=tokenizer.token_to_id(names["unk"]) if "unk" in names else None,
        separator=separator,
        single=tokenizer.num_special_tokens_to_add(False),
        pair=tokenizer.num_special_tokens_to_add(True),
        segments=_has_segments(tokenizer, separator),
        word_start=_word_start(tokenizer),
    )


def _first(tokenizer: Tokenizer, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if tokenizer.token_to_id(name) is not None), None)


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def _has_segments(tokenizer: Tokenizer, separator: int | None) -> bool:
    """Return whether a pair has segment ids: 1 behind the first separator, as in BERT."""
    pair = tokenizer.encode("", "")
    found = pair.type_ids[: sum(pair.attention_mask)]
    if not any(found):
        return False
    first = pair.ids.index(separator) if separator in pair.ids else len(found)
    if found != [int(position > first) for position in range(len(found))]:
        raise ModelError(
            f"the tokenizer gives a pair the segment ids {found}; expected 0 up to the first separator and 1 "
            "after it, as BERT's does"
        )
    return True


def _word_start(tokenizer: Tokenizer) -> int | None:
    """Return the id of what stands before every word, where that is a piece of its own."""
    if tokenizer.pre_tokenizer is None:
        return None
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("a")
    marker = pieces[0][0].removesuffix("a") if pieces else ""
    return tokenizer.token_to_id(marker) if marker else None

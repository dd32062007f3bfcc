"""Trim the vocabulary to the served languages: of XLM-R base, 69 % of the parameters are the embedding table.

Special tokens stay, and the pieces that text of those languages uses, and every single character of their scripts.
Any text in these scripts can then still be spelled: what was known before does not become unknown. Text that uses only
kept pieces gets the same pieces as before. What stays is read from unlabelled text, never from test sets.

Tokenizers of the types Unigram (XLM-R) and WordPiece (BERT) can be trimmed. Both choose the same pieces again when
others are gone: Unigram the likeliest cut, WordPiece the longest match. BPE cannot: its merges build on one another.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from xlmprune.core.errors import DataError, ModelError
from xlmprune.data.special import special_tokens

if TYPE_CHECKING:
    from torch import nn

MARKERS = {"Unigram": "▁", "WordPiece": "##"}
"""What a piece may begin with beside its text, by type of tokenizer: a word begins here, or a word goes on."""

NO_SCRIPT = ""
"""Digits, punctuation, symbols, emoji, combining marks: written in any language, and kept for all. 1,700 of XLM-R."""

LEAST_SHARE = 0.01
"""A script is served when it makes this share of some language's letters. One Chinese name in a German text would
otherwise bring 7,690 rows; the characters met are kept also without their script."""

HELD_OUT = 10
"""One text in so many is held out: what a language loses is measured on it, with the pieces that the others would keep."""

TOO_LONG = 1.2
"""A language whose held-out text needs so many times the tokens of before has too little text to count pieces in."""

TOO_UNKNOWN = 0.01
"""As a language with so many more unknown tokens, as a share."""

TEXTS_AT_ONCE = 4096
TEXTS_MEASURED = 1000
TEXTS_FOR_SCRIPTS = 20_000


def trim(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts_by_language: Mapping[str, Sequence[str]],
    min_count: int = 2,
    max_size: int | None = None,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Trim a model, in place, and its tokenizer to the languages of the given texts.

    Args:
        model: with a task head; its word embeddings are row by row the tokenizer's pieces.
        tokenizer: of type Unigram or WordPiece.
        texts_by_language: what the languages served look like; not the test texts.
        min_count: a piece met less often over all texts goes, unless it is a single character.
        max_size: at most this many pieces, the most frequent first.

    Returns:
        The new tokenizer, and facts for the report: ``pieces_before``, ``pieces``, of these ``special``,
        ``single_characters`` and ``counted``, ``scripts``, ``parameters_removed`` and ``languages``, see `coverage`.
        Languages are measured on text held out, with a vocabulary that was counted in the rest.

    Raises:
        DataError: a language without text, or `max_size` smaller than the special tokens and single characters.
        ModelError: another kind of tokenizer.
    """
    require_texts(texts_by_language)
    original = json.loads(tokenizer.to_str())
    held_out = {language: texts[::HELD_OUT] for language, texts in texts_by_language.items()}
    # Each text once, though several languages have it: a file may be given for all of them.
    apart = dict.fromkeys(text for texts in held_out.values() for text in texts)
    rest = {
        language: [text for text in texts if text not in apart]
        for language, texts in texts_by_language.items()
    }
    counts_of_rest = count_pieces(tokenizer, dict.fromkeys(text for texts in rest.values() for text in texts))
    counts = counts_of_rest + count_pieces(tokenizer, apart)

    def trimmed_to(kept: Sequence[int]) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(trim_tokenizer(original, kept)))

    kept = choose_pieces(original, counts, texts_by_language, min_count, max_size)
    trimmed = trimmed_to(kept)
    without = trimmed_to(choose_pieces(original, counts_of_rest, rest, min_count, max_size))
    before = sum(parameter.numel() for parameter in model.parameters())
    trim_embeddings(model, kept)
    pieces = Pieces.read(original)
    single = {piece for piece in kept if pieces.character(piece)} - pieces.special
    return trimmed, {
        "pieces_before": len(counts),
        "pieces": len(kept),
        "special": len(pieces.special),
        "single_characters": len(single),
        "counted": len(kept) - len(single) - len(pieces.special),
        "scripts": sorted(served_scripts(texts_by_language)),
        "parameters_removed": before - sum(parameter.numel() for parameter in model.parameters()),
        "languages": coverage(tokenizer, without, held_out),
    }


def thin_languages(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the languages that lose much in text held out, and what they lose; ``facts`` as `trim` returns them."""
    for language, entry in facts["languages"].items():
        times = entry["tokens"] / max(entry["tokens_before"], 1e-9)
        if times > TOO_LONG:
            yield language, f"needs {times:.1f} times as many tokens as before"
        elif entry["unknown"] > entry["unknown_before"] + TOO_UNKNOWN:
            yield language, f"has {entry['unknown']:.0%} unknown tokens"


@dataclass(frozen=True)
class Pieces:
    """The pieces of a `tokenizer.json`, in the order of their ids."""

    texts: list[str]
    """Added tokens included, which may have ids beyond the model's own pieces."""
    marker: str
    special: frozenset[int]
    """Ids of the unknown token and of all added tokens."""

    @classmethod
    def read(cls, tokenizer_json: dict[str, Any]) -> Pieces:
        """Read the pieces.

        Raises:
            ModelError: a type of tokenizer that cannot be trimmed.
        """
        model = tokenizer_json["model"]
        if model.get("type") not in MARKERS:
            raise ModelError(
                f"model.vocabulary: a tokenizer of type {model.get('type')!r} cannot be trimmed; expected "
                f"{' or '.join(map(repr, MARKERS))}. Set model.vocabulary: keep"
            )
        if model["type"] == "Unigram":
            ids = {piece: id_ for id_, (piece, _) in enumerate(model["vocab"])}
            unknown = model["unk_id"]
        else:
            ids, unknown = dict(model["vocab"]), model["vocab"].get(model["unk_token"])
        added = {token["content"]: token["id"] for token in tokenizer_json["added_tokens"]}
        by_id = {id_: piece for piece, id_ in (ids | added).items()}
        texts = [by_id.get(id_, "") for id_ in range(max(by_id) + 1)]
        special = {*added.values()} | ({unknown} if unknown is not None else set())
        return cls(texts, MARKERS[model["type"]], frozenset(special))

    def character(self, piece: int) -> str:
        """Return the character that a piece of one character stands for, without its marker; else nothing."""
        text = self.texts[piece]
        character = text.removeprefix(self.marker) or text
        return character if len(character) == 1 else ""

    def spelling(self, piece: int) -> list[str]:
        """Return the pieces of single characters that spell a piece."""
        text = self.texts[piece]
        if self.marker != MARKERS["WordPiece"]:
            return list(text)
        inside = text.startswith(self.marker)
        return [
            self.marker + character if inside or index else character
            for index, character in enumerate(text.removeprefix(self.marker))
        ]


def require_texts(texts_by_language: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError, naming them, where languages have no text to count pieces in."""
    if empty := [language for language, texts in texts_by_language.items() if not any(texts)]:
        raise DataError(
            f"the vocabulary cannot be trimmed to {', '.join(empty)}: there is no text to count pieces in. "
            "Name text files in model.vocabulary.files, or leave these languages out of task.languages"
        )


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """How often each piece occurs in the texts, int64 [pieces]; special tokens are not added."""
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for encodings in _encode(tokenizer, texts):
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        counts += np.bincount(np.concatenate(ids), minlength=len(counts))
    return counts


def choose_pieces(
    tokenizer_json: dict[str, Any],
    counts: np.ndarray,
    texts_by_language: Mapping[str, Sequence[str]],
    min_count: int = 2,
    max_size: int | None = None,
) -> list[int]:
    """Return the ids to keep, ascending, so that XLM-R's `<mask>` stays the last and `<pad>` stays 1.

    They are special tokens; single characters of the scripts met, with and without a marker; pieces met that these
    cannot spell; and pieces counted at least `min_count` times, the most frequent first where `max_size` limits them.

    Raises:
        DataError: `max_size` leaves no room for special tokens and single characters.
        ModelError: a type of tokenizer that cannot be trimmed.
    """
    pieces = Pieces.read(tokenizer_json)
    kept = {*pieces.special, *_single_characters(pieces, counts, texts_by_language)}
    kept |= set(_not_spelled(pieces, counts, kept))
    if max_size is not None and len(kept) > max_size:
        raise DataError(
            f"model.vocabulary.max_size is {max_size}, but the special tokens and the single characters of "
            f"{', '.join(sorted(served_scripts(texts_by_language)))} alone are {len(kept)} pieces; "
            "without them text would turn into <unk>. Raise max_size, or serve fewer languages"
        )
    # Most frequent first; of equals, the lower id, which SentencePiece gave to the likelier piece.
    for piece in np.lexsort((np.arange(len(counts)), -counts)).tolist():
        if counts[piece] < min_count or (max_size is not None and len(kept) >= max_size):
            break
        kept.add(piece)
    return sorted(kept)


def trim_tokenizer(tokenizer_json: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return a `tokenizer.json` that holds only the kept ids, numbered 0, 1, … in their order.

    Scores, normalizer and pre-tokenizer stay, and with them the way text is cut: where the best cut uses kept pieces
    only, it is still the best.

    Raises:
        ModelError: a type of tokenizer that cannot be trimmed.
        ValueError: a special token is not among the kept.
    """
    special = Pieces.read(tokenizer_json).special
    if missing := sorted(special - set(kept)):
        raise ValueError(f"special tokens {missing} are not among the kept pieces")
    new = {old: index for index, old in enumerate(sorted(set(kept)))}
    trimmed = copy.deepcopy({key: part for key, part in tokenizer_json.items() if key != "model"})
    trimmed["model"] = _trim_model(tokenizer_json["model"], new)
    for token in trimmed["added_tokens"]:
        token["id"] = new[token["id"]]
    if trimmed.get("padding"):
        trimmed["padding"]["pad_id"] = new[trimmed["padding"]["pad_id"]]
    _renumber(trimmed.get("post_processor") or {}, new)
    return trimmed


def _trim_model(model: dict[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Return the tokenizer's model with the kept pieces only, under their new ids."""
    if model["type"] == "Unigram":
        vocab = model["vocab"]
        return {
            **model,
            "unk_id": new[model["unk_id"]],
            "vocab": [vocab[old] for old in new if old < len(vocab)],
        }
    return {**model, "vocab": {piece: new[old] for piece, old in model["vocab"].items() if old in new}}


def trim_embeddings(model: nn.Module, kept: Sequence[int]) -> None:
    """Keep these rows of the word embeddings, ascending; `model.config.vocab_size` and the padding row follow.

    Raises:
        ValueError: the model has a language-model head, whose rows are tied to the embeddings; or the padding row goes.
    """
    import torch
    from torch import nn

    if model.get_output_embeddings() is not None:  # type: ignore[operator]
        raise ValueError("only models with a task head can be trimmed, not language models")
    old: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator, assignment]
    padding = None if old.padding_idx is None else list(kept).index(old.padding_idx)
    rows = torch.as_tensor(kept, dtype=torch.int64, device=old.weight.device)
    new = nn.Embedding.from_pretrained(
        old.weight.detach()[rows].clone(), freeze=not old.weight.requires_grad, padding_idx=padding
    )
    model.set_input_embeddings(new)  # type: ignore[operator]
    model.config.vocab_size = len(kept)  # type: ignore[union-attr]


def coverage(
    original: Tokenizer, trimmed: Tokenizer, texts_by_language: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Return what trimming does to each language, on at most 1,000 of its texts.

    Returns:
        Per language ``texts``; ``tokens_before`` and ``tokens``, the mean number for a text; ``identical``, the share
        of texts cut into the same pieces; ``characters_before`` and ``characters``, the share of tokens that are a single
        letter; ``unknown_before`` and ``unknown``, the share of tokens that are `<unk>`.
    """
    report = {}
    for language, texts in texts_by_language.items():
        chosen = texts[:TEXTS_MEASURED]
        before, unknown_before = _cut(original, chosen)
        after, unknown = _cut(trimmed, chosen)
        report[language] = {
            "texts": len(chosen),
            "tokens_before": float(np.mean([len(tokens) for tokens in before])),
            "tokens": float(np.mean([len(tokens) for tokens in after])),
            "identical": float(np.mean([a == b for a, b in zip(before, after, strict=True)])),
            "characters_before": _single_letters(before),
            "characters": _single_letters(after),
            "unknown_before": unknown_before,
            "unknown": unknown,
        }
    return report


def _single_letters(texts: Sequence[Sequence[str]]) -> float:
    """Return the share of tokens that are one letter, beside a marker."""
    found = total = 0
    for tokens in texts:
        total += len(tokens)
        for token in tokens:
            text = token.removeprefix(MARKERS["Unigram"]).removeprefix(MARKERS["WordPiece"])
            found += len(text) == 1 and text.isalpha()
    return found / max(total, 1)


ALIASES = {"KATAKANA-HIRAGANA": "KATAKANA", "IDEOGRAPHIC": "CJK"}
"""Marks of a script's words whose names begin otherwise: the long vowel of Katakana, the repetition of Han."""


@lru_cache(maxsize=1 << 16)
def script(character: str) -> str:
    """Return the first word of the Unicode name of a letter or mark, such as LATIN, CJK; else `NO_SCRIPT`.

    Unicode's own table of scripts is not in Python's library. For the letters of XLM-R's pieces the names agree.
    """
    if unicodedata.category(character)[0] not in "LM":
        return NO_SCRIPT
    first = unicodedata.name(character, "?").split()[0]
    return NO_SCRIPT if first in ("COMBINING", "MODIFIER", "VARIATION") else ALIASES.get(first, first)


def served_scripts(texts_by_language: Mapping[str, Sequence[str]]) -> set[str]:
    """Scripts that make at least 1 % of the letters of some language, in its first 20,000 texts."""
    scripts = set()
    for texts in texts_by_language.values():
        characters: Counter[str] = Counter()
        for text in texts[:TEXTS_FOR_SCRIPTS]:
            characters.update(unicodedata.normalize("NFKC", text))
        letters: Counter[str] = Counter()
        for character, count in characters.items():
            letters[script(character)] += count
        del letters[NO_SCRIPT]
        scripts |= {name for name, count in letters.items() if count >= LEAST_SHARE * letters.total()}
    return scripts


def _single_characters(
    pieces: Pieces, counts: np.ndarray, texts_by_language: Mapping[str, Sequence[str]]
) -> Iterator[int]:
    """Yield pieces of one character, with or without a marker: of served scripts, of no script, or met."""
    scripts = served_scripts(texts_by_language) | {NO_SCRIPT}
    met = set(pieces.marker).union(*(pieces.texts[piece] for piece in np.flatnonzero(counts)))
    for piece in range(len(pieces.texts)):
        character = pieces.character(piece)
        if character and (character in met or script(character) in scripts):
            yield piece


def _not_spelled(pieces: Pieces, counts: np.ndarray, kept: set[int]) -> Iterator[int]:
    """Yield pieces met in the texts that kept pieces of single characters cannot spell."""
    characters = {pieces.texts[piece] for piece in kept}
    for piece in np.flatnonzero(counts).tolist():
        if not characters.issuperset(pieces.spelling(piece)):
            yield piece


def _renumber(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    """Replace the ids of special tokens inside a post-processor, in place."""
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new[old] for old in token["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            text, old = processor[name]
            processor[name] = [text, new[old]]
    for inner in processor.get("processors", ()):
        _renumber(inner, new)


def _encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[Encoding]]:
    """Yield encodings without special tokens, truncation or padding, some thousand at a time."""
    plain = tokenizer
    if tokenizer.truncation or tokenizer.padding:
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
    remaining = iter(texts)
    while batch := list(islice(remaining, TEXTS_AT_ONCE)):
        yield plain.encode_batch_fast(batch, add_special_tokens=False)


def _cut(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[str]], float]:
    """Return the pieces of every text, and the share of all that are `<unk>`."""
    encodings = [encoding for batch in _encode(tokenizer, texts) for encoding in batch]
    unknown_id = special_tokens(tokenizer).unknown
    unknown = sum(id_ == unknown_id for encoding in encodings for id_ in encoding.ids)
    # `encode_batch_fast` gives ids and no pieces.
    pieces = [[tokenizer.id_to_token(id_) or "" for id_ in encoding.ids] for encoding in encodings]
    return pieces, unknown / max(sum(map(len, encodings)), 1)

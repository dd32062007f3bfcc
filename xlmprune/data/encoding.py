"""Token ids made from examples, and the padded batches of them.

Needs `numpy` and `tokenizers` only, so that a bundle can be served and measured without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from xlmprune.data.examples import Examples
from xlmprune.data.special import SpecialTokens, explain_panics, special_tokens

IGNORE = -100
"""The label of a position that has none: special tokens, padding, every sub-word of a word but its first."""

# Encoding objects are some fifty times the size of their ids; 392,702 pairs at once would need gigabytes.
ROWS_AT_ONCE = 4096

# Shuffled rows are sorted by length within pools of this many batches: little padding, still random.
BATCHES_PER_POOL = 50


@dataclass(frozen=True)
class Encoded:
    """Examples as token ids, not yet padded."""

    input_ids: list[np.ndarray]
    """int64 each, special tokens included, at most ``max_length`` long."""
    labels: np.ndarray | list[np.ndarray] | None
    """int64 [n]; for token tasks one array per sentence, aligned to its ids, IGNORE for an id without a label."""
    words: list[np.ndarray] | None
    """Token tasks: the position at which every word that survived truncation is read, in order; see `encode`."""
    truncated: np.ndarray
    """bool [n]: the text was longer than ``max_length`` tokens."""
    lengths: np.ndarray | None = None
    """int64 [n]: tokens before truncation, special tokens included."""
    unknown: np.ndarray | None = None
    """int64 [n]: how many of the ids are the tokenizer's unknown token."""
    special: SpecialTokens = field(kw_only=True)
    """The tokenizer's."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: Sequence[int]) -> Encoded:
        """Take the given examples."""

        return self._map(
            lambda column: (
                column[np.asarray(rows, dtype=np.int64)]
                if isinstance(column, np.ndarray)
                else [column[row] for row in rows]
            )
        )

    def rows(self, count: int, start: int = 0) -> Encoded:
        """Take at most ``count`` examples from ``start`` on."""

        return self._map(lambda column: column[start : start + count])

    def _map(self, change: Callable[[Any], Any]) -> Encoded:
        columns = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "special"}
        return replace(
            self, **{name: change(column) for name, column in columns.items() if column is not None}
        )


def join_encoded(parts: Sequence[Encoded]) -> Encoded:
    """Join several sets of one tokenizer, without their labels; of tagged words all, or none."""
    if len({part.words is None for part in parts}) > 1:
        raise ValueError("sets with and without words cannot be joined")
    words = [array for part in parts for array in part.words or []]
    ids = [array for part in parts for array in part.input_ids]
    return Encoded(
        ids, None, words or None, np.concatenate([part.truncated for part in parts]), special=parts[0].special
    )


@explain_panics()
def encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> Encoded:
    """Turn examples into token ids of at most ``max_length``.

    A pair becomes what the tokenizer's template says, such as ``<s> a </s></s> b </s>``, and loses its longer text's
    end first.

    Words of a sentence are tokenized one by one. A word is labelled and read at its first sub-word. If that is only
    the marker of a word's start, it is read at the second. A word of which the tokenizer's normalizer leaves nothing
    (for instance a lone variation selector) becomes the unknown token, so that every word that fits has a position.

    The tokenizer's own settings of truncation and padding are restored afterwards.
    """
    ids: list[np.ndarray] = []
    words: list[np.ndarray] = []
    lengths: list[int] = []
    tokens = examples.kind == "tokens"
    special = special_tokens(tokenizer)
    for start in range(0, len(examples), ROWS_AT_ONCE):
        inputs = _inputs(examples, slice(start, start + ROWS_AT_ONCE))
        encodings, full = _encode_batch(
            tokenizer, inputs, max_length, special.names.get("unk", "") if tokens else None
        )
        ids += [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        lengths += full
        if tokens:
            words += [_first_pieces(encoding, special.word_start) for encoding in encodings]
    return Encoded(
        input_ids=ids,
        labels=_labels(examples, ids, words),
        words=words if tokens else None,
        truncated=np.array([length > max_length for length in lengths], dtype=bool),
        lengths=np.array(lengths, dtype=np.int64),
        unknown=np.array([np.count_nonzero(row == special.unknown) for row in ids], dtype=np.int64),
        special=special,
    )


def _inputs(examples: Examples, rows: slice) -> list[Any]:
    if examples.second is not None:
        return list(zip(examples.first[rows], examples.second[rows], strict=True))
    return list(examples.first[rows])


def _encode_batch(
    tokenizer: Tokenizer, inputs: list[Any], max_length: int, unknown: str | None
) -> tuple[list[Encoding], list[int]]:
    """Encode within ``max_length``; the second list has the lengths before truncation.

    Args:
        unknown: for lists of words, replaces a word of which nothing is left; None for texts.
    """
    tokens = unknown is not None
    with _settings(tokenizer, None):
        encodings = tokenizer.encode_batch(inputs, is_pretokenized=tokens)
        if tokens:
            for row, words in enumerate(inputs):
                present = set(encodings[row].word_ids)
                missing = [word for word in range(len(words)) if word not in present]
                if missing:
                    inputs[row] = [(unknown if word in missing else text) for word, text in enumerate(words)]
                    encodings[row] = tokenizer.encode(inputs[row], is_pretokenized=True)
    lengths = [len(encoding) for encoding in encodings]
    # Only rows that are too long are truncated, by the tokenizer's own rule, which also serves users.
    long = [row for row, length in enumerate(lengths) if length > max_length]
    if long:
        with _settings(tokenizer, max_length):
            cut = tokenizer.encode_batch([inputs[row] for row in long], is_pretokenized=tokens)
        for row, encoding in zip(long, cut, strict=True):
            encodings[row] = encoding
    return encodings, lengths


@contextmanager
def _settings(tokenizer: Tokenizer, max_length: int | None) -> Iterator[None]:
    truncation, padding = tokenizer.truncation, tokenizer.padding
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length=max_length, strategy="longest_first")
    try:
        yield
    finally:
        tokenizer.no_truncation() if truncation is None else tokenizer.enable_truncation(**truncation)
        tokenizer.no_padding() if padding is None else tokenizer.enable_padding(**padding)


def _first_pieces(encoding: Encoding, start_id: int | None) -> np.ndarray:
    positions, previous = [], None
    words, ids = encoding.word_ids, encoding.ids
    for position, word in enumerate(words):
        if word is not None and word != previous:
            # Read at the marker alone, Chinese words are all alike and like English punctuation. The rule was found on
            # 100 test sentences a language of part-of-speech tags, so it was measured again on 150 others, with the
            # quickstart model after 3,000 English sentences: at the marker zh 21.0 %, th 35.4 %, ar 70.9 %; at the
            # letters behind it zh 66.1 %, th 69.0 %, ar 73.1 %; en, de and vi move by 0.3 or less.
            bare = ids[position] == start_id and words[position + 1] == word
            positions.append(position + bare)
            previous = word
    return np.array(positions, dtype=np.int64)


def _labels(
    examples: Examples, ids: list[np.ndarray], words: list[np.ndarray]
) -> np.ndarray | list[np.ndarray] | None:
    if examples.labels is None:
        return None
    if examples.kind != "tokens":
        return np.array(examples.labels, dtype=np.int64)
    aligned = []
    for row, positions in enumerate(words):
        labels = np.full(len(ids[row]), IGNORE, dtype=np.int64)
        tags: Any = examples.labels[row]
        labels[positions] = tags[: len(positions)]
        aligned.append(labels)
    return aligned


def pad(encoded: Encoded, rows: Sequence[int] | np.ndarray, multiple: int = 1) -> dict[str, np.ndarray]:
    """Pad the given rows into one batch.

    Args:
        multiple: the number of tokens is a multiple of this.

    Returns:
        int64 arrays ``input_ids`` and ``attention_mask``, [batch, tokens of the longest row], and, where the
        examples have labels, ``labels``: [batch], or for token tasks [batch, tokens] padded with IGNORE.
    """
    longest = max((len(encoded.input_ids[row]) for row in rows), default=0)
    longest += -longest % multiple
    batch = {
        "input_ids": np.full((len(rows), longest), encoded.special.pad, dtype=np.int64),
        "attention_mask": np.zeros((len(rows), longest), dtype=np.int64),
    }
    for index, row in enumerate(rows):
        ids = encoded.input_ids[row]
        batch["input_ids"][index, : len(ids)] = ids
        batch["attention_mask"][index, : len(ids)] = 1
    if isinstance(encoded.labels, np.ndarray):
        batch["labels"] = encoded.labels[np.asarray(rows, dtype=np.int64)]
    elif encoded.labels is not None:
        batch["labels"] = np.full((len(rows), longest), IGNORE, dtype=np.int64)
        for index, row in enumerate(rows):
            labels = encoded.labels[row]
            batch["labels"][index, : len(labels)] = labels
    return batch


def batches_by_length(encoded: Encoded, batch_size: int) -> list[np.ndarray]:
    """Batch rows of similar length, shortest first, every row once: for evaluation."""
    lengths = np.array([len(ids) for ids in encoded.input_ids], dtype=np.int64)
    return _chunks(np.argsort(lengths, kind="stable"), batch_size)


def training_order(encoded: Encoded, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Give the batches of one epoch: every row once, shuffled, rows of similar length together.

    They depend on nothing but the lengths and (``batch_size``, ``seed``, ``epoch``), so a resumed run has the same
    batches. One batch may be smaller; it can come anywhere.
    """
    random = np.random.default_rng([seed, epoch])
    lengths = np.array([len(ids) for ids in encoded.input_ids], dtype=np.int64)
    batches: list[np.ndarray] = []
    for pool in _chunks(random.permutation(len(lengths)), batch_size * BATCHES_PER_POOL):
        batches += _chunks(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
    return [batches[index] for index in random.permutation(len(batches))]


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    if size < 1:
        raise ValueError(f"a batch holds at least 1 row, not {size}")
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def length_statistics(encoded: Encoded, examples: Examples) -> dict[str, float | int | None]:
    """Measure how the tokenizer treats a language; some languages lose much by it.

    Returns:
        ``n``; ``tokens_mean`` and ``tokens_p95``, special tokens included, before truncation;
        ``tokens_per_word`` (words of the file for token tasks, otherwise what spaces separate, which says nothing
        about Thai or Chinese) and ``tokens_per_character`` (spaces not counted), without special tokens; ``truncated``,
        the share of texts cut; ``unknown``, the share of unknown tokens; ``words_lost``, for token
        tasks the share of words cut off and so counted wrong, else None. Ratios of nothing are None.
    """
    if encoded.lengths is None or encoded.unknown is None:
        raise ValueError("these were not made by encode(): lengths before truncation are missing")
    count = len(examples)
    texts = _words_and_characters(examples)
    kept = sum(len(ids) for ids in encoded.input_ids)
    specials = encoded.special.pair if examples.kind == "pair" else encoded.special.single
    pieces = int(encoded.lengths.sum()) - specials * count
    lost = None
    if encoded.words is not None:
        lost = _ratio(texts[0] - sum(len(positions) for positions in encoded.words), texts[0])
    return {
        "n": count,
        "tokens_mean": _ratio(int(encoded.lengths.sum()), count),
        "tokens_p95": float(np.percentile(encoded.lengths, 95)) if count else None,
        "tokens_per_word": _ratio(pieces, texts[0]),
        "tokens_per_character": _ratio(pieces, texts[1]),
        "truncated": _ratio(int(encoded.truncated.sum()), count),
        "unknown": _ratio(int(encoded.unknown.sum()), kept - specials * count),
        "words_lost": lost,
    }


def _words_and_characters(examples: Examples) -> tuple[int, int]:
    if examples.kind == "tokens":
        words = [word for sentence in examples.first for word in sentence]
    else:
        words = [word for text in [*examples.first, *(examples.second or [])] for word in str(text).split()]
    return len(words), sum(len(word) for word in words)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None

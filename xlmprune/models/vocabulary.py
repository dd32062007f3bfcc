"""Trim the vocabulary to the served languages: of XLM-R base, 69 % of the parameters are the embedding table.

Kept are the special tokens, the pieces that text of those languages uses, and every single character of their scripts,
so that any text in these scripts can still be spelled: what was not `<unk>` before does not become `<unk>`. Text that
uses only kept pieces gets the same pieces as before. What is kept is read from unlabelled text, never from test sets.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from xlmprune.core.errors import DataError, ModelError
from xlmprune.data.readers.lines import expand

if TYPE_CHECKING:
    from torch import nn

    from xlmprune.tasks import Task

SPACE = "▁"
"""How SentencePiece writes a space; a piece that begins with it begins a word."""

NO_SCRIPT = ""
"""Digits, punctuation, symbols, emoji, combining marks: written in any language, and kept for all. 1,700 of XLM-R."""

LEAST_SHARE = 0.01
"""A script is served when it makes this share of some language's letters. One Chinese name in a German text would
otherwise bring 7,690 rows; the characters met are kept also without their script."""

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
        model: an XLM-R, whose word embeddings are row by row the tokenizer's pieces.
        tokenizer: SentencePiece Unigram, as XLM-R's.
        texts_by_language: what the languages served look like; not the test texts.
        min_count: a piece met less often over all texts goes, unless it is a single character.
        max_size: at most this many pieces, the most frequent first.

    Returns:
        The new tokenizer, and facts for the report: ``pieces_before``, ``pieces``, of these ``special``,
        ``single_characters`` and ``counted``, ``scripts``, ``parameters_removed`` and ``languages``, see `coverage`.

    Raises:
        DataError: a language without text, or `max_size` smaller than the special tokens and single characters.
        ModelError: another kind of tokenizer.
    """
    require_texts(texts_by_language)
    original = json.loads(tokenizer.to_str())
    # Each text once, though several languages have it: a file may be given for all of them.
    distinct = dict.fromkeys(text for texts in texts_by_language.values() for text in texts)
    counts = count_pieces(tokenizer, distinct)
    kept = choose_pieces(original, counts, texts_by_language, min_count, max_size)
    trimmed = Tokenizer.from_str(json.dumps(trim_tokenizer(original, kept)))
    before = sum(parameter.numel() for parameter in model.parameters())
    trim_embeddings(model, kept)
    special = set(_special_ids(original))
    single = {place for place in kept if _character(_pieces(original)[place][0])} - special
    return trimmed, {
        "pieces_before": len(counts),
        "pieces": len(kept),
        "special": len(special),
        "single_characters": len(single),
        "counted": len(kept) - len(single) - len(special),
        "scripts": sorted(served_scripts(texts_by_language)),
        "parameters_removed": before - sum(parameter.numel() for parameter in model.parameters()),
        "languages": coverage(tokenizer, trimmed, texts_by_language),
    }


def require_texts(texts_by_language: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError, naming them, where languages have no text to count pieces in."""
    if empty := [language for language, texts in texts_by_language.items() if not any(texts)]:
        raise DataError(
            f"the vocabulary cannot be trimmed to {', '.join(empty)}: there is no text to count pieces in. "
            "Name text files in model.vocabulary.files, or leave these languages out of task.languages"
        )


def texts_for(task: Task, files: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Text of every language of a task: its own, without the test sets, and the files'.

    Args:
        task: gives unlabelled text, and train and dev text of the train language.
        files: UTF-8, one text a line; ``{language}`` in a name is filled in with each language, a file without it
            counts for all.

    Raises:
        DataError: a file is missing or not UTF-8; names file and line.
    """
    train_language, *others = task.languages()
    texts = {language: list(task.unlabelled(language)) for language in (train_language, *others)}
    texts[train_language] += _train_texts(task, train_language)
    for pattern in files or ():
        for language in texts:
            path = Path(expand(pattern.replace("{language}", language)))
            # The train language has text of its own, by the recipe; the others may have nothing else.
            if language != train_language or path.is_file():
                texts[language] += _read_lines(path)
    # The two texts of a pair stand apart elsewhere, and a text must not count twice.
    return {
        language: list(dict.fromkeys(part for text in mine for part in text.split("\t")))
        for language, mine in texts.items()
    }


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
    """The ids to keep, ascending, so that `<mask>` stays the last and `<pad>` stays 1.

    Special tokens; single characters of the scripts met, with and without a space before; and pieces counted at least
    `min_count` times, the most frequent first where `max_size` limits them.

    Raises:
        DataError: `max_size` leaves no room for special tokens and single characters.
        ModelError: not a Unigram tokenizer.
    """
    kept = {*_special_ids(tokenizer_json), *_single_characters(tokenizer_json, counts, texts_by_language)}
    if max_size is not None and len(kept) > max_size:
        raise DataError(
            f"model.vocabulary.max_size is {max_size}, but the special tokens and the single characters of "
            f"{', '.join(sorted(served_scripts(texts_by_language)))} alone are {len(kept)} pieces; "
            "without them text would turn into <unk>. Allow more, or serve fewer languages"
        )
    # Most frequent first; of equals, the lower id, which SentencePiece gave to the likelier piece.
    for piece in np.lexsort((np.arange(len(counts)), -counts)).tolist():
        if counts[piece] < min_count or (max_size is not None and len(kept) >= max_size):
            break
        kept.add(piece)
    return sorted(kept)


def trim_tokenizer(tokenizer_json: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A `tokenizer.json` that holds only the kept ids, numbered 0, 1, … in their order.

    Scores, normalizer and pre-tokenizer stay, and with them the way text is cut: where the best cut uses kept pieces
    only, it is still the best.

    Raises:
        ModelError: not a Unigram tokenizer.
        ValueError: a special token is not among the kept.
    """
    pieces = _pieces(tokenizer_json)
    if missing := sorted(set(_special_ids(tokenizer_json)) - set(kept)):
        raise ValueError(f"special tokens {missing} are not among the kept pieces")
    new = {old: place for place, old in enumerate(sorted(set(kept)))}
    trimmed = copy.deepcopy({key: part for key, part in tokenizer_json.items() if key != "model"})
    trimmed["model"] = {
        **tokenizer_json["model"],
        "unk_id": new[tokenizer_json["model"]["unk_id"]],
        "vocab": [pieces[old] for old in new if old < len(pieces)],
    }
    for token in trimmed["added_tokens"]:
        token["id"] = new[token["id"]]
    if trimmed.get("padding"):
        trimmed["padding"]["pad_id"] = new[trimmed["padding"]["pad_id"]]
    _renumber(trimmed.get("post_processor") or {}, new)
    return trimmed


def trim_embeddings(model: nn.Module, kept: Sequence[int]) -> None:
    """Keep these rows of the word embeddings, in order; `model.config.vocab_size` follows, `<pad>` stays 1.

    Raises:
        ValueError: the model has a language-model head, whose rows are tied to the embeddings.
    """
    import torch
    from torch import nn

    if model.get_output_embeddings() is not None:  # type: ignore[operator]
        raise ValueError("only models with a task head can be trimmed, not language models")
    old: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator, assignment]
    rows = torch.as_tensor(kept, dtype=torch.int64, device=old.weight.device)
    new = nn.Embedding.from_pretrained(
        old.weight.detach()[rows].clone(), freeze=not old.weight.requires_grad, padding_idx=old.padding_idx
    )
    model.set_input_embeddings(new)  # type: ignore[operator]
    model.config.vocab_size = len(kept)  # type: ignore[union-attr]


def coverage(
    original: Tokenizer, trimmed: Tokenizer, texts_by_language: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """What trimming does to each language, on at most 1,000 of its texts.

    Returns:
        Per language ``texts``; ``tokens_before`` and ``tokens``, the mean number for a text; ``identical``, the share
        of texts cut into the same pieces; ``unknown_before`` and ``unknown``, the share of tokens that are `<unk>`.
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
            "unknown_before": unknown_before,
            "unknown": unknown,
        }
    return report


ALIASES = {"KATAKANA-HIRAGANA": "KATAKANA", "IDEOGRAPHIC": "CJK"}
"""Marks of a script's words whose names begin otherwise: the long vowel of Katakana, the repetition of Han."""


@lru_cache(maxsize=1 << 16)
def script(character: str) -> str:
    """The first word of the Unicode name of a letter or mark, such as LATIN, CJK; else `NO_SCRIPT`.

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
    tokenizer_json: dict[str, Any], counts: np.ndarray, texts_by_language: Mapping[str, Sequence[str]]
) -> Iterator[int]:
    """Pieces of one character, with or without a space before: of served scripts, of no script, or met."""
    pieces = [piece for piece, _ in _pieces(tokenizer_json)]
    scripts = served_scripts(texts_by_language) | {NO_SCRIPT}
    met = {
        SPACE,
        *(character for place in np.flatnonzero(counts[: len(pieces)]) for character in pieces[place]),
    }
    for place, piece in enumerate(pieces):
        if (character := _character(piece)) and (character in met or script(character) in scripts):
            yield place


def _character(piece: str) -> str:
    """The character that a piece of one character stands for, with or without a space before; else nothing."""
    character = piece.removeprefix(SPACE) or piece
    return character if len(character) == 1 else ""


def _pieces(tokenizer_json: dict[str, Any]) -> list[tuple[str, float]]:
    model = tokenizer_json["model"]
    if model.get("type") != "Unigram":
        raise ModelError(f"the tokenizer is of type {model.get('type')!r}; expected 'Unigram', as XLM-R's")
    return model["vocab"]


def _special_ids(tokenizer_json: dict[str, Any]) -> list[int]:
    return [tokenizer_json["model"]["unk_id"], *(token["id"] for token in tokenizer_json["added_tokens"])]


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
    """Encodings without special tokens, truncation or padding, some thousand at a time."""
    plain = tokenizer
    if tokenizer.truncation or tokenizer.padding:
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
    remaining = iter(texts)
    while batch := list(islice(remaining, TEXTS_AT_ONCE)):
        yield plain.encode_batch_fast(batch, add_special_tokens=False)


def _cut(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[str]], float]:
    """The pieces of every text, and the share of all that are `<unk>`."""
    encodings = [encoding for batch in _encode(tokenizer, texts) for encoding in batch]
    unknown_id = tokenizer.token_to_id("<unk>")
    unknown = sum(place == unknown_id for encoding in encodings for place in encoding.ids)
    return [encoding.tokens for encoding in encodings], unknown / max(sum(map(len, encodings)), 1)


def _train_texts(task: Task, language: str) -> list[str]:
    """Train and dev texts that are not in the test set as well."""
    test = set(_texts(task, language, "test"))
    mine = _texts(task, language, "train")
    with suppress(DataError):  # not every source has a dev set
        mine += _texts(task, language, "dev")
    return [text for text in mine if text not in test]


def _texts(task: Task, language: str, split: Any) -> list[str]:
    examples = task.examples(language, split)
    first = [text if isinstance(text, str) else " ".join(text) for text in examples.first]
    return first + (examples.second or [])


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; model.vocabulary.files names it") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 text (byte {error.start} of the line)") from error
    return [text for text in texts if text]

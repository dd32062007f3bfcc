"""What runs a bundle on a server: ONNX Runtime, `tokenizers` and numpy. Neither PyTorch nor transformers is imported.

bundle = Bundle("bundle")
for answer in predict(bundle, ["Der Mann schläft.", "ผู้ชายกำลังนอนหลับ"]):
    print(answer["label"], answer["probabilities"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from xlmprune.core.errors import BundleError, DataError
from xlmprune.data.encoding import encode
from xlmprune.data.examples import Examples, Kind
from xlmprune.data.readers.lines import refuse_halves
from xlmprune.data.special import explain_panics
from xlmprune.evaluation.scores import collect
from xlmprune.export import manifest
from xlmprune.export.form import all_forms, expected_files, form_named, form_to_serve, forms_in
from xlmprune.export.runtime import Forward, check_signature, forward_of, onnx_files
from xlmprune.export.sparse import read_config

SHORTEST, LONGEST = 2, 1_000_000
"""Tokens that a model may say it reads at most."""


class Bundle:
    """A bundle folder, opened: its tokenizer, its labels, and a session for each ONNX form.

    Args:
        path: the folder.
        threads: of ONNX Runtime, per session; 0 lets it choose.
        verify: compare each file with the manifest before it is used; False opens the folder as it is.

    Raises:
        BundleError: a file is missing, damaged, or does not belong to the others. Sessions are opened when first
            used, and raise it then.
    """

    def __init__(self, path: str | Path, threads: int = 0, verify: bool = True) -> None:
        self.path = Path(path)
        self.threads = threads
        self.verify = verify
        self._require("config.json")
        self.config = read_config(self.path)
        """`config.json`, whole."""
        facts = self.config.get("xlmprune")
        if not isinstance(facts, dict):
            raise BundleError(
                f"{self.path / 'config.json'} has no section xlmprune; expected a bundle written by xlmprune"
            )
        try:
            self.kind: Kind = facts["kind"]
            self.labels: tuple[str, ...] = tuple(facts["labels"])
            self.max_length = int(facts["max_length"])
            if not SHORTEST <= self.max_length <= LONGEST:
                raise ValueError(f"max_length {self.max_length}")
            named = {int(index): label for index, label in self.config["id2label"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(
                f"{self.path / 'config.json'}: {error} is missing or has changed since it was written"
            ) from error
        if self.kind not in get_args(Kind):
            raise BundleError(
                f"{self.path / 'config.json'}: kind {self.kind!r} found, expected {' or '.join(get_args(Kind))}"
            )
        if named != dict(enumerate(self.labels)):
            raise BundleError(
                f"{self.path / 'config.json'}: id2label and xlmprune.labels name different labels"
            )
        self.forms = tuple(forms_in(self.path))
        """Names of the forms that are there."""
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def _require(self, *names: str) -> None:
        if self.verify and self.path.is_dir():
            manifest.require(self.path, *names)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, which neither pads nor truncates by itself."""
        path = self.path / "tokenizer.json"
        if not path.is_file():
            raise BundleError(f"{path} is missing")
        self._require(path.name)
        try:
            with explain_panics():
                tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"{path} is damaged: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def file(self, form: str = "") -> Path:
        """Return the ONNX file of ``form``, or of the first form there is."""
        return self.path / form_named(self.named(form)).file

    def named(self, form: str = "") -> str:
        """Return ``form``, or the name of the first form there is.

        Raises:
            BundleError: the bundle does not have it.
        """
        if not self.forms:
            raise BundleError(
                f"{self.path} has no ONNX file; expected {expected_files()}. Make one from its run: xlmprune export RUN "
                f"--set 'export.onnx=[{form_to_serve(all_forms())}]'"
            )
        if form and form not in self.forms:
            raise BundleError(f"{self.path} has no {form!r} form; it has {', '.join(self.forms)}")
        return form or self.forms[0]

    @property
    def served(self) -> str:
        """The form to serve by default; see `form_to_serve`."""
        return form_to_serve(self.forms)

    def session(self, form: str = "") -> onnxruntime.InferenceSession:
        """Return the session of one form, opened once. Raises BundleError where the file is not this bundle's model."""
        form = self.named(form)
        if form not in self._sessions:
            self._require(*(file.name for file in onnx_files(self.file(form))))
            session = form_named(form).open(self.file(form), self.threads)
            check_signature(session, self.file(form), len(self.labels), self.kind)
            self._sessions[form] = session
        return self._sessions[form]

    def forward(self, form: str = "") -> Forward:
        """One form as a function of a padded batch: `input_ids` and `attention_mask`, int64 [batch, tokens] each.

        It returns logits, float32: [batch, labels], or for token tasks [batch, tokens, labels].
        """
        return forward_of(self.session(form))


# --- predict ---------------------------------------------------------------------------------------------------------


LOOK_AHEAD = 4096
"""Texts that `predict` reads before it answers the first of them, to batch those of like length."""


def predict(
    bundle: Bundle,
    texts: Iterable[Any],
    form: str = "",
    batch_size: int = 32,
    look_ahead: int = LOOK_AHEAD,
    ready: Callable[[], bool] = lambda: True,
) -> Iterator[dict[str, Any]]:
    """Label texts, in their order.

    Args:
        texts: for the kind `text` strings; for `pair` two strings; for `tokens` a list of words, or a string, whose
            words are what spaces separate.
        batch_size: texts in a call.
        look_ahead: texts are taken from the iterable so many at a time, and texts of like length share a call, which
            saves padding.
        ready: tells whether a further text can be had without waiting. If not, those that are there are answered first.

    Yields:
        ``text`` (and ``text_pair``), ``label``, ``probabilities`` {label: p} and ``truncated``, true where the text was
        longer than `max_length` tokens and its end was not read. For `tokens` instead ``words``, ``tags``,
        ``probabilities`` (one p for each tag) and ``truncated``; words that were cut off have the tag None.

    Raises:
        DataError: a text is not of the bundle's kind; says which.
    """
    forward = bundle.forward(form)
    done = 0
    for part in _parts(texts, look_ahead, ready):
        examples = as_examples(bundle.kind, part, done)
        yield from _answer(bundle, forward, examples, batch_size)
        done += len(part)


def _parts(texts: Iterable[Any], size: int, ready: Callable[[], bool]) -> Iterator[list[Any]]:
    part: list[Any] = []
    for text in texts:
        part.append(text)
        if len(part) == size or not ready():
            yield part
            part = []
    if part:
        yield part


def _answer(
    bundle: Bundle, forward: Forward, examples: Examples, batch_size: int
) -> Iterator[dict[str, Any]]:
    encoded = encode(bundle.tokenizer, examples, bundle.max_length)
    for row, logits in enumerate(collect(forward, encoded, batch_size)):
        truncated = bool(encoded.truncated[row])
        if encoded.words is None:
            answer = _label(bundle.labels, softmax(logits))
            yield {**_inputs(examples, row), **answer, "truncated": truncated}
        else:
            tagged = _tags(bundle.labels, softmax(logits), len(examples.first[row]))
            yield {"words": examples.first[row], **tagged, "truncated": truncated}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def as_examples(kind: str, batch: Sequence[Any], done: int) -> Examples:
    """Turn texts of ``kind`` into examples. ``done`` texts came before, for the number in a message.

    Raises:
        DataError: a text is not of this kind.
    """
    for number, entry in enumerate(batch, done + 1):
        if not _is_of_kind(kind, entry):
            raise DataError(f"text {number}: {_EXPECTED[kind]}, found {_found(entry)}")
        refuse_halves(entry, f"text {number}")
    if kind == "pair":
        return Examples("", "", [first for first, _ in batch], [second for _, second in batch])
    if kind == "tokens":
        return Examples("", "", [entry.split() if isinstance(entry, str) else list(entry) for entry in batch])
    return Examples("", "", list(batch))


_EXPECTED = {
    "text": "this bundle takes one text",
    "pair": "this bundle takes a pair of texts",
    "tokens": "this bundle takes a list of words, or a text whose words are separated by spaces",
}


def _is_of_kind(kind: str, entry: Any) -> bool:
    if isinstance(entry, str):
        return kind != "pair"
    if not isinstance(entry, list | tuple) or not all(isinstance(part, str) for part in entry):
        return False
    return kind == "tokens" or (kind == "pair" and len(entry) == 2)


def _found(entry: Any) -> str:
    if isinstance(entry, str):
        return "one text"
    if isinstance(entry, tuple):
        return f"{len(entry)} texts (a tab separates two texts)"
    return f"{len(entry)} texts" if isinstance(entry, list) else type(entry).__name__


def _inputs(examples: Examples, row: int) -> dict[str, Any]:
    if examples.second is None:
        return {"text": examples.first[row]}
    return {"text": examples.first[row], "text_pair": examples.second[row]}


def _label(labels: tuple[str, ...], scores: np.ndarray) -> dict[str, Any]:
    return {
        "label": labels[int(scores.argmax())],
        "probabilities": {label: float(score) for label, score in zip(labels, scores, strict=True)},
    }


def _tags(labels: tuple[str, ...], scores: np.ndarray, words: int) -> dict[str, Any]:
    lost = [None] * (words - len(scores))
    return {
        "tags": [labels[int(row.argmax())] for row in scores] + lost,
        "probabilities": [float(row.max()) for row in scores] + lost,
    }

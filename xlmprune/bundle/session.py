"""What runs a bundle on a server: ONNX Runtime, `tokenizers` and numpy. Neither PyTorch nor transformers is imported.

bundle = Bundle("bundle")
for answer in predict(bundle, ["Der Mann schläft.", "ผู้ชายกำลังนอนหลับ"]):
    print(answer["label"], answer["probabilities"])
"""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from xlmprune.core.errors import BundleError, DataError
from xlmprune.data.encoding import encode, pad
from xlmprune.data.examples import Examples, Kind

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
"""The ONNX file of each form."""

PACKED = b"xlmprune.packed/"
"""Stands in an ONNX file whose matrices the runtime has to rebuild when it opens it (see `export/packing.py`)."""

INPUTS = ("input_ids", "attention_mask")

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Bundle:
    """A bundle folder, opened: its tokenizer, its labels, and a session for each ONNX form.

    Args:
        path: the folder.
        threads: of ONNX Runtime, per session; 0 lets it choose.

    Raises:
        BundleError: a file is missing, damaged, or does not belong to the others. Sessions are opened when first
            used, and raise it then.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path = Path(path)
        self.threads = threads
        self.config = _read_config(self.path)
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
            named = {int(index): label for index, label in self.config["id2label"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"{self.path / 'config.json'}: {error} is missing or not what was written"
            ) from error
        if self.kind not in get_args(Kind):
            raise BundleError(
                f"{self.path / 'config.json'}: kind {self.kind!r} found, expected {' or '.join(get_args(Kind))}"
            )
        if named != dict(enumerate(self.labels)):
            raise BundleError(
                f"{self.path / 'config.json'}: id2label and xlmprune.labels name different labels"
            )
        self.forms = tuple(form for form, file in FILES.items() if (self.path / file).is_file())
        """Which ONNX files are there: `fp32`, `int8`."""
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, which neither pads nor truncates by itself."""
        path = self.path / "tokenizer.json"
        if not path.is_file():
            raise BundleError(f"{path} is missing")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"{path} is damaged: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def file(self, form: str = "") -> Path:
        """The ONNX file of ``form``, or of the first form there is.

        Raises:
            BundleError: the bundle does not have it.
        """
        if not self.forms:
            raise BundleError(
                f"{self.path} has neither {' nor '.join(FILES.values())}; expected at least one"
            )
        form = form or self.forms[0]
        if form not in self.forms:
            raise BundleError(f"{self.path} has no {form!r} form; it has {', '.join(self.forms)}")
        return self.path / FILES[form]

    def session(self, form: str = "") -> onnxruntime.InferenceSession:
        """The session of one form, opened once. Raises BundleError where the file is not this bundle's model."""
        form = form or next(iter(self.forms), "")
        if form not in self._sessions:
            session = open_session(self.file(form), self.threads)
            check_signature(session, self.file(form), len(self.labels), self.kind)
            self._sessions[form] = session
        return self._sessions[form]

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray, form: str = "") -> np.ndarray:
        """Logits of one padded batch, float32.

        Args:
            input_ids: int64 [batch, tokens], at most `max_length` tokens.
            attention_mask: int64 [batch, tokens], 1 where there is a token.

        Returns:
            [batch, labels], or for token tasks [batch, tokens, labels].
        """
        return self.forward(form)(input_ids, attention_mask)

    def forward(self, form: str = "") -> Forward:
        """`logits` of one form as a function of (`input_ids`, `attention_mask`)."""
        return forward_of(self.session(form))


def forward_of(session: onnxruntime.InferenceSession) -> Forward:
    """A function from numpy `input_ids`, `attention_mask` to numpy fp32 logits."""

    def forward(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})[0]

    return forward


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; expected a bundle written by xlmprune")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; expected a bundle written by xlmprune") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path} is damaged: expected a JSON object")
    return config


def open_session(path: Path, threads: int = 0, optimize: bool = True) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Args:
        threads: within an operator; 0 lets the runtime choose.
        optimize: False opens the graph as it is written. A packed file then rebuilds its matrices at every call,
            some 200 times slower, and a warning says so.

    Raises:
        BundleError: the file is missing, or ONNX Runtime cannot open it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        first = str(error).strip().split("\n")[0]
        raise BundleError(
            f"{path} cannot be opened by ONNX Runtime {onnxruntime.__version__}: {first}"
        ) from error
    if not optimize and _contains(path, PACKED):
        warnings.warn(
            f"{path} is packed and was opened without graph optimization: its matrices are rebuilt at every call. Use at "
            "least ORT_ENABLE_BASIC, or the dense file that `xlmprune unpack` writes.",
            stacklevel=2,
        )
    return session


def _contains(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def check_signature(session: onnxruntime.InferenceSession, path: Path, labels: int, kind: str) -> None:
    """Raise BundleError unless inputs and output are those of a bundle with so many labels."""
    inputs = {value.name: value.type for value in session.get_inputs()}
    if inputs != dict.fromkeys(INPUTS, "tensor(int64)"):
        raise BundleError(
            f"{path}: inputs {inputs} found, expected input_ids and attention_mask, tensor(int64)"
        )
    outputs = {value.name: value.shape for value in session.get_outputs()}
    shape = outputs.get("logits", [])
    if len(shape) != (3 if kind == "tokens" else 2) or shape[-1] != labels:
        raise BundleError(
            f"{path}: output {outputs} found, expected logits for {labels} labels; is it another task's model?"
        )


# --- predict ---------------------------------------------------------------------------------------------------------


def predict(
    bundle: Bundle, texts: Iterable[Any], form: str = "", batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """Label texts, in their order.

    Args:
        texts: for the kind `text` strings; for `pair` two strings; for `tokens` a list of words, or a string, whose
            words are what spaces separate.
        batch_size: texts are taken from the iterable so many at a time.

    Yields:
        ``text`` (and ``text_pair``), ``label``, ``probabilities`` {label: p} and ``truncated``, true where the text was
        longer than `max_length` tokens and its end was not read. For `tokens` instead ``words``, ``tags``,
        ``probabilities`` (one p for each tag) and ``truncated``; words that were cut off have the tag None.

    Raises:
        DataError: a text is not of the bundle's kind; says which.
    """
    waiting = iter(texts)
    forward = bundle.forward(form)
    done = 0
    while batch := list(islice(waiting, batch_size)):
        examples = _examples(bundle.kind, batch, done)
        encoded = encode(bundle.tokenizer, examples, bundle.max_length)
        feed = pad(encoded, range(len(batch)))
        scores = softmax(forward(feed["input_ids"], feed["attention_mask"]))
        for row in range(len(batch)):
            truncated = bool(encoded.truncated[row])
            if encoded.words is None:
                yield {**_inputs(examples, row), **_label(bundle.labels, scores[row]), "truncated": truncated}
            else:
                tagged = _tags(bundle.labels, scores[row][encoded.words[row]], len(examples.first[row]))
                yield {"words": examples.first[row], **tagged, "truncated": truncated}
        done += len(batch)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _examples(kind: str, batch: Sequence[Any], done: int) -> Examples:
    for number, entry in enumerate(batch, done + 1):
        if not _is_of_kind(kind, entry):
            raise DataError(f"text {number}: {_EXPECTED[kind]}, found {_found(entry)}")
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
        return f"{len(entry)} texts (a tab stands between two)"
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

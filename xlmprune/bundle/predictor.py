"""Label texts with a bundle from Python, without PyTorch.

predictor = xlmprune.Predictor("runs/quickstart/bundle")
for answer in predictor(["schalte das Licht ein", "allume la lumière"]):
    print(answer.label, answer.probability)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlmprune.bundle.session import Bundle, predict

WINDOW = 32
"""Batches that are read ahead and sorted by length, so that texts of equal length share a batch."""


@dataclass(frozen=True)
class Prediction:
    """The label of one text or of one pair of texts."""

    label: str
    probability: float
    """Probability of this label."""
    probabilities: dict[str, float]
    """Probability of every label."""
    truncated: bool
    """Whether the text was too long and its end was not read."""


@dataclass(frozen=True)
class Tagged:
    """The tags of one sentence."""

    words: list[str]
    tags: list[str | None]
    """One tag for each word; None for words beyond the maximum length."""
    probabilities: list[float | None]
    """Probability of each tag."""
    truncated: bool
    """Whether the sentence was too long and its end was not read."""


class Predictor:
    """A bundle that is ready to label texts.

    A predictor may be used by several threads at a time.

    Args:
        bundle: the folder of a bundle.
        form: the ONNX file to use, for example ``int8``; by default ``int8`` if the bundle has it, else the first
            of fp32 and fp16 that it has.
        threads: threads of ONNX Runtime; 0: as many as OMP_NUM_THREADS says, or one for each processor.
        batch_size: texts in one call of the model.
        verify: compare each file with the bundle's manifest before it is used.

    Raises:
        BundleError: the bundle is damaged, or does not have this form.
    """

    def __init__(
        self,
        bundle: str | Path,
        form: str = "",
        threads: int = 0,
        batch_size: int = 32,
        verify: bool = True,
    ) -> None:
        self._bundle = Bundle(bundle, threads, verify)
        self.form = form or self._bundle.served
        """The ONNX file that is used."""
        self._bundle.session(self.form)  # opened now, before threads share it
        self._batch_size = batch_size

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the model's outputs."""
        return self._bundle.labels

    @property
    def kind(self) -> str:
        """What one text is: ``text``, ``pair`` or ``tokens``."""
        return self._bundle.kind

    def __call__(self, texts: Iterable[Any]) -> list[Prediction] | list[Tagged]:
        """Label texts and return one answer for each, in their order."""
        return list(self.stream(texts))

    def stream(self, texts: Iterable[Any]) -> Iterator[Any]:
        """Label texts one after the other; for more texts than fit into memory.

        Args:
            texts: strings; for a bundle of the kind `pair` two strings each; for `tokens` a list of words, or a string
                whose words are separated by spaces.

        Yields:
            A `Prediction` for each text, or a `Tagged` for the kind `tokens`.

        Raises:
            DataError: a text is not of the bundle's kind. The message has its number.
        """
        answers = predict(self._bundle, texts, self.form, self._batch_size, WINDOW * self._batch_size)
        return (_answer(found) for found in answers)


def _answer(found: dict[str, Any]) -> Prediction | Tagged:
    if "tags" in found:
        return Tagged(**found)
    probability = found["probabilities"][found["label"]]
    return Prediction(found["label"], probability, found["probabilities"], found["truncated"])

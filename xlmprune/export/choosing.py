"""Which way to quantize a run's model: calibrated on unlabelled text, chosen on it and on English dev.

Test text is never read here. A candidate is good enough where it costs English dev next to nothing and gives nearly all
unlabelled texts the label that the fp32 form gives them, on the mean over languages; the first one that does is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from xlmprune.core.errors import DataError
from xlmprune.core.files import temporary_folder
from xlmprune.data.encoding import Encoded, encode, join_encoded, pad
from xlmprune.data.unlabelled import unlabelled_examples
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.agreement import same_labels
from xlmprune.export.calibration import Calibration, calibrate
from xlmprune.export.form import Material
from xlmprune.export.graph import save_onnx
from xlmprune.export.quantization import Embeddings, quantize
from xlmprune.export.runtime import forward_of, open_session
from xlmprune.recipe.schema import VOCABULARY_FILES
from xlmprune.tasks.metrics import Logits

CALIBRATION_TEXTS = 12
"""Of each language, to see which channels of the matrices' inputs lie far outside."""

AGREEMENT_TEXTS = 36
"""Of each language, other ones, to see how many keep their label."""

DEV_EXAMPLES = 300

DEV_MARGIN = 0.5
DEV_EXAMPLES_LOST = 1.5
AGREEMENT_MARGIN = 5.0
"""Points that a form may be behind fp32: its score on English dev (or what one example counts for, where there are few),
and the share of unlabelled texts whose label stays, which are often close calls."""


def quantized(graph: onnx.ModelProto, material: Material) -> Choice:
    """Quantize the graph to INT8 in the way that measurement chooses."""
    read = unlabelled_texts(material)
    texts = list(read.values())
    calibration = calibrate(
        graph, [_feed(part.rows(CALIBRATION_TEXTS)) for part in texts], folder=material.folder
    )
    asked = _questions(material, texts)
    exact = asked.answers(graph)
    choice = choose(
        graph,
        lambda form: asked.figures(exact, asked.answers(form)),
        candidates_for(calibration, material.embeddings),
        reference=asked.figures(exact, exact),
        margins=asked.margins(),
    )
    return replace(choice, texts={name: len(part) for name, part in read.items()})


def unlabelled_texts(material: Material) -> dict[str, Encoded]:
    """Read a few texts of the training set, as `train`, and of every language that has unlabelled ones.

    Raises:
        DataError: the text that the recipe names for this, or for the teacher, cannot be read or is not there.
    """
    data, count = material.data, CALIBRATION_TEXTS + AGREEMENT_TEXTS
    parts = {"train": data.train.rows(count)}
    if material.source.pattern is None:
        return parts
    try:
        found = unlabelled_examples(
            data.task,
            material.source.pattern,
            {language: test.examples for language, test in data.tests.items()},
            None if data.dev is None else data.dev.examples,
            material.source.languages,
            count,
            key=material.source.key,
        )
    except DataError:
        # The vocabulary's text was named for another purpose, and all of it may be test text. A task may have none.
        if material.source.key != VOCABULARY_FILES and material.source.pattern != "task":
            raise
        return parts
    return parts | {code: encode(material.tokenizer, part, data.max_length) for code, part in found.items()}


def _feed(texts: Encoded) -> dict[str, np.ndarray]:
    batch = pad(texts, range(len(texts)))
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class Questions:
    """Texts on which forms are compared: English dev first, where there is one, then each language's unlabelled ones."""

    task: Any
    dev: evaluation.TestSet | None
    texts: Sequence[Encoded]
    batch_size: int
    folder: Path
    """Where temporary files go."""

    def answers(self, proto: onnx.ModelProto) -> list[Logits]:
        """Return a graph's logits on all of them."""
        sets = [*([self.dev.encoded] if self.dev else []), *self.texts]
        with temporary_folder(self.folder) as folder:
            save_onnx(proto, folder / "candidate.onnx")
            forward = forward_of(open_session(folder / "candidate.onnx"))
            # Languages share batches of texts of similar length, so that little is padding.
            logits = iter(evaluation.collect(forward, join_encoded(sets), self.batch_size))
            return [list(islice(logits, len(part))) for part in sets]

    def figures(self, exact: Sequence[Logits], found: Sequence[Logits]) -> dict[str, float]:
        """Percent: the score on dev, and the mean over languages of the labels that stayed."""
        measured: dict[str, float] = {}
        if self.dev is not None:
            score = evaluation.score(found[0], self.dev.examples, self.task.metrics, self.task.labels)
            measured["dev"] = score.value
        pairs = list(zip(exact, found, strict=True))[1 if self.dev else 0 :]
        shares = [100 * same_labels(before, after) for before, after in pairs]
        measured["agreement"] = float(np.mean(shares))
        return measured

    def margins(self) -> dict[str, float]:
        """Points that each figure may fall."""
        if self.dev is None:
            return {"agreement": AGREEMENT_MARGIN}
        one = 100 * DEV_EXAMPLES_LOST / max(1, len(self.dev.examples))
        return {"dev": max(DEV_MARGIN, one), "agreement": AGREEMENT_MARGIN}


def _questions(material: Material, texts: Sequence[Encoded]) -> Questions:
    data = material.data
    dev = None if data.dev is None else data.dev.sample(DEV_EXAMPLES)
    rest = [part.rows(AGREEMENT_TEXTS, CALIBRATION_TEXTS) for part in texts]
    held_out = [part for part in rest if len(part)] or list(texts)
    return Questions(data.task, dev, held_out, material.batch_size, material.folder)


# --- the choice ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One way to quantise a graph."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `quantize`."""


def candidates_for(calibration: Calibration, embeddings: Embeddings = "int8") -> list[Candidate]:
    """Return the ways worth trying, the smallest and fastest first; later ones leave the worst matrices in fp32."""
    options = {"embeddings": embeddings, "smoothing": calibration.smoothing}
    found = [Candidate("smoothed" if calibration.smoothing else "plain", options)]
    if embeddings == "int4":
        found.append(Candidate("embeddings in eight bits", options | {"embeddings": "int8"}))
    for share in (0.05, 0.15):
        count = round(share * len(calibration.error))
        if count:
            kept = {"embeddings": "int8", "keep_fp32": calibration.worst(count)}
            found.append(Candidate(f"{count} matrices in fp32", options | kept))
    return found


@dataclass(frozen=True)
class Choice:
    """The form that was chosen, and what was measured."""

    proto: onnx.ModelProto
    name: str
    reference: dict[str, float]
    margins: dict[str, float]
    tried: list[dict[str, Any]]
    """`name`, `bytes` of the weights, and what the score said, for every candidate tried."""
    texts: Mapping[str, int] = field(default_factory=dict)
    """Number of texts that were read, by language; `train` is the training set."""

    def facts(self) -> dict[str, Any]:
        """For the report: what was chosen, and what was measured of each candidate tried."""
        return {
            "chosen": self.name,
            "reference": self.reference,
            "tried": self.tried,
            "margins": self.margins,
            "texts": dict(self.texts),
        }


def choose(
    proto: onnx.ModelProto,
    score: Callable[[onnx.ModelProto], Mapping[str, float]],
    candidates: Sequence[Candidate],
    reference: Mapping[str, float],
    margins: Mapping[str, float],
) -> Choice:
    """Choose the first candidate that is within its margin of the reference in everything that is measured.

    Later candidates are not even tried then. Where none is, the one that is least beyond its margins is taken.

    Args:
        proto: dense fp32.
        score: figures of a form, more being better, in percent: such as the score on English dev, and how many labels
            of unlabelled text agree with the fp32 form's. Test data has no place here.
        candidates: of `candidates_for`, the one that is liked best first.
        reference: the same figures of the fp32 form.
        margins: by figure, points that a candidate may be behind.

    Raises:
        ValueError: there are no candidates, or a score lacks a figure of the reference or is no number.
    """
    if not candidates:
        raise ValueError("there is no candidate to choose from")
    tried: list[dict[str, Any]] = []
    beyond: list[float] = []
    for candidate in candidates:
        form = quantize(proto, **candidate.options)
        figures = score(form)
        if set(figures) != set(reference) or not all(math.isfinite(value) for value in figures.values()):
            raise ValueError(
                f"the score of {candidate.name!r} is {dict(figures)}; expected numbers for {', '.join(reference)}"
            )
        size = sum(len(tensor.raw_data) for tensor in form.graph.initializer)
        tried.append({"name": candidate.name, "bytes": size, **figures})
        beyond.append(max(reference[key] - figures[key] - margins[key] for key in reference))
        if beyond[-1] <= 0:
            return Choice(form, candidate.name, dict(reference), dict(margins), tried)
        del form
    chosen = candidates[int(np.argmin(beyond))]
    # Made again: keeping every form would take the memory of all of them.
    return Choice(quantize(proto, **chosen.options), chosen.name, dict(reference), dict(margins), tried)

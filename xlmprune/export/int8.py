"""The INT8 form of a run: calibrated on unlabelled text, and the way to quantise chosen on it and on English dev.

Test text is never read here. A candidate is good enough where it costs English dev next to nothing and gives nearly all
unlabelled texts the label that the fp32 form gives them, on the mean over languages; the first one that does is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from xlmprune.bundle import session as serving
from xlmprune.core.errors import DataError
from xlmprune.core.files import temporary_folder
from xlmprune.data.encoding import Encoded, encode, pad
from xlmprune.data.unlabelled import unlabelled_examples
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.agreement import Agreement
from xlmprune.export import quantization
from xlmprune.export.graph import save_onnx
from xlmprune.tasks.metrics import Logits

if TYPE_CHECKING:
    from xlmprune.pipeline import Job

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


def quantized(job: Job, graph: onnx.ModelProto) -> quantization.Choice:
    """The graph in INT8, the way chosen by measurement."""
    texts = unlabelled_texts(job)
    calibration = quantization.calibrate(
        graph, [_feed(part.rows(CALIBRATION_TEXTS)) for part in texts], folder=job.folder.path
    )
    asked = _questions(job, texts)
    exact = asked.answers(graph)
    return quantization.choose(
        graph,
        lambda form: asked.figures(exact, asked.answers(form)),
        quantization.candidates_for(calibration, job.recipe.export.embeddings),
        reference=asked.figures(exact, exact),
        margins=asked.margins(),
    )


def unlabelled_texts(job: Job) -> list[Encoded]:
    """A few texts of every language that has unlabelled ones, by the recipe or the task, and English training text."""
    recipe = job.recipe
    distillation = recipe.distillation or {}
    patterns = [
        distillation.get("unlabelled"),
        *(getattr(recipe.model.vocabulary, "files", None) or []),
        "task",
    ]
    pattern = next(pattern for pattern in patterns if pattern)
    count = CALIBRATION_TEXTS + AGREEMENT_TEXTS
    parts = [job.train.rows(count)]
    try:
        found = unlabelled_examples(
            job.task,
            pattern,
            {language: test.examples for language, test in job.tests.items()},
            None if job.dev is None else job.dev.examples,
            distillation.get("languages"),
            count,
        )
    except DataError:  # no language has any: English alone must do, and the report's scores say how it did
        return parts
    length = recipe.training.max_length
    return [*parts, *(encode(job.pretrained.tokenizer, part, length) for part in found.values())]


def _feed(texts: Encoded) -> dict[str, np.ndarray]:
    batch = pad(texts, range(len(texts)))
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class _Questions:
    """Texts on which forms are compared: English dev first, where there is one, then each language's unlabelled ones."""

    job: Job
    dev: evaluation.TestSet | None
    texts: Sequence[Encoded]

    def answers(self, proto: onnx.ModelProto) -> list[Logits]:
        """A graph's logits on all of them."""
        batch_size = self.job.recipe.evaluation.batch_size
        sets = [*([self.dev.encoded] if self.dev else []), *self.texts]
        with temporary_folder(self.job.folder.path) as folder:
            save_onnx(proto, folder / "candidate.onnx")
            forward = serving.forward_of(serving.open_session(folder / "candidate.onnx"))
            return [evaluation.collect(forward, part, batch_size) for part in sets]

    def figures(self, exact: Sequence[Logits], found: Sequence[Logits]) -> dict[str, float]:
        """Percent: the score on dev, and the mean over languages of the labels that stayed."""
        facts: dict[str, float] = {}
        if self.dev is not None:
            task = self.job.task
            facts["dev"] = evaluation.score(found[0], self.dev.examples, task.metrics, task.labels).value
        shares = []
        for before, after in list(zip(exact, found, strict=True))[1 if self.dev else 0 :]:
            agreement = Agreement()
            agreement.add(before, after)
            shares.append(100 * agreement.agreement)
        facts["agreement"] = float(np.mean(shares))
        return facts

    def margins(self) -> dict[str, float]:
        """Points that each figure may fall."""
        if self.dev is None:
            return {"agreement": AGREEMENT_MARGIN}
        one = 100 * DEV_EXAMPLES_LOST / max(1, len(self.dev.examples))
        return {"dev": max(DEV_MARGIN, one), "agreement": AGREEMENT_MARGIN}


def _questions(job: Job, texts: Sequence[Encoded]) -> _Questions:
    dev = None if job.dev is None else job.dev.head(DEV_EXAMPLES)
    rest = [part.rows(AGREEMENT_TEXTS, CALIBRATION_TEXTS) for part in texts]
    return _Questions(job, dev, [part for part in rest if len(part)] or list(texts))


def facts_of(choice: quantization.Choice) -> dict[str, Any]:
    """For the report: what was chosen, and what was measured of each candidate tried."""
    return {
        "chosen": choice.name,
        "reference": choice.reference,
        "tried": choice.tried,
        "margins": choice.margins,
    }


__all__ = ["facts_of", "quantized", "unlabelled_texts"]

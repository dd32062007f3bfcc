"""What `export.floor` is decided on: the test sets, English dev, or unlabelled text of every language.

On test sets a form's loss is that of its score, and what ships was chosen on the scores that the report shows. On dev it is
the loss on the train language alone. On unlabelled text it is the share of texts (words, for token tasks) that get
another label than from PyTorch: no labels are needed, no test text is read, and an accuracy cannot fall by more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from xlmprune.core.errors import DataError
from xlmprune.data.encoding import Encoded, encode
from xlmprune.data.unlabelled import unlabelled_examples
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.agreement import same_labels
from xlmprune.evaluation.scores import Forward
from xlmprune.tasks.metrics import Logits

if TYPE_CHECKING:
    from xlmprune.export.form import Material
    from xlmprune.recipe.schema import FloorRecipe

TEXTS = 200
"""Unlabelled texts of each language."""

DECIDED_ON = {
    "test": "Scores on the test sets decide",
    "dev": "The score on dev of the train language decides",
    "unlabelled": "The decision uses the share of unlabelled texts whose label changes",
}
"""What decides for each value of `on`, in words."""

Drops = Mapping[str, float]
"""Points that a form loses, by language."""


class Yardstick:
    """The PyTorch model's answers on what the floor is decided on, where that is not the test sets.

    Raises:
        DataError: there is no dev set, or no unlabelled text.
    """

    def __init__(self, on: str, material: Material, pytorch: Forward) -> None:
        self.on, self.material = on, material
        self.sets = self._dev() if on == "dev" else self._unlabelled()
        self.answers = self._ask(pytorch)

    def drops(self, form: Forward) -> Drops:
        """Return how many points a form loses."""
        found = self._ask(form)
        if self.on == "dev":
            return {
                code: self._dev_score(self.answers[code]) - self._dev_score(found[code]) for code in found
            }
        return {code: 100 * (1 - same_labels(self.answers[code], found[code])) for code in found}

    def _ask(self, forward: Forward) -> dict[str, Logits]:
        size = self.material.batch_size
        return {code: evaluation.collect(forward, part, size) for code, part in self.sets.items()}

    def _dev(self) -> dict[str, Encoded]:
        dev = self.material.data.dev
        if dev is None:
            raise DataError("export.floor.on: dev needs a dev set, but training.keep: last does not read one")
        return {self.material.data.train_language: dev.encoded}

    def _dev_score(self, logits: Logits) -> float:
        dev, task = self.material.data.dev, self.material.data.task
        assert dev is not None
        return evaluation.score(logits, dev.examples, task.metrics, task.labels).value

    def _unlabelled(self) -> dict[str, Encoded]:
        data, source = self.material.data, self.material.source
        if source.pattern is None:
            raise DataError("export.floor.on: unlabelled needs unlabelled text; give export.calibration")
        found = unlabelled_examples(
            data.task,
            source.pattern,
            {language: test.examples for language, test in data.tests.items()},
            None if data.dev is None else data.dev.examples,
            source.languages,
            TEXTS,
            key=source.key,
        )
        return {code: encode(self.material.tokenizer, part, data.max_length) for code, part in found.items()}


def faults(drops: Drops, floor: FloorRecipe, train_language: str) -> Iterator[str]:
    """Say where a form loses more than ``floor`` allows; nothing where it does not."""
    if not drops:
        return
    worst = max(drops, key=lambda language: drops[language])
    zero_shot = {language: drop for language, drop in drops.items() if language != train_language}
    mean = float(np.mean(list((zero_shot or drops).values())))
    if floor.zero_shot_drop is not None and mean > floor.zero_shot_drop:
        name = "zero-shot mean" if zero_shot else train_language
        yield f"its {name} is {mean:.2f} points lower (at most {floor.zero_shot_drop:g} is allowed)"
    if floor.worst_language_drop is not None and drops[worst] > floor.worst_language_drop:
        yield f"{worst} fell by {drops[worst]:.2f} points (at most {floor.worst_language_drop:g} is allowed)"

"""What a bundle ships of a model: its weights, and each ONNX form, measured on every language."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xlmprune._version import __version__
from xlmprune.core.errors import ShortfallError
from xlmprune.core.files import SAFETENSORS_FILE
from xlmprune.core.progress import Reporter
from xlmprune.data.encoding import Encoded, pad
from xlmprune.data.examples import Examples
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.agreement import Agreement
from xlmprune.evaluation.scores import Scores, TestSet
from xlmprune.export import sparse
from xlmprune.export.floor import DECIDED_ON, Drops, Yardstick, faults
from xlmprune.export.form import Form, Material, TextSource, Written, form_named, form_to_serve, reference
from xlmprune.export.graph import export_onnx, opset_of
from xlmprune.export.opsets import TOKENS, graph_of_opset
from xlmprune.export.runtime import INPUTS, forward_of, onnx_files
from xlmprune.models import loading
from xlmprune.recipe.schema import TASK_TEXT, ExportRecipe, FloorRecipe, Recipe
from xlmprune.tasks.metrics import Logits

if TYPE_CHECKING:
    from xlmprune.training.outcome import Datasets, Outcome


@dataclass(frozen=True)
class MeasuredForm:
    """A form's file and what it scored."""

    form: Form
    written: Written
    scores: Scores
    """By language."""
    agreement: Agreement
    """With the PyTorch model, over all languages."""
    drops: Drops | None = None
    """Points it loses on what `export.floor` is decided on, by language; None where that is the test sets, or nothing."""
    alone: Agreement | None = None
    """Of answers to one text at a time with those in batches, on a sample; None where the form gives the same for both."""
    opset: int = 0
    """Version of the ONNX operators."""


def write_files(
    recipe: Recipe,
    outcome: Outcome,
    data: Datasets,
    logits: Mapping[str, Logits],
    bundle: Path,
    temporary: Path,
    reporter: Reporter,
) -> list[MeasuredForm]:
    """Write the model's files into an unfinished bundle, measure each ONNX form and compare it with PyTorch.

    Args:
        logits: the pruned PyTorch model's, by language, for every test example.
        bundle: an empty folder.
        temporary: a folder for temporary files, as large as the model.
        reporter: shows what is done.

    Raises:
        ShortfallError: a form that must reproduce PyTorch does not.
    """
    settings = recipe.export
    write_model(outcome, data, settings.safetensors, recipe.sha256(), bundle)
    if not settings.onnx:
        return []
    material = Material(
        data,
        outcome.tokenizer,
        calibration_text(recipe),
        settings.embeddings,
        recipe.evaluation.batch_size,
        temporary,
    )
    return list(write_forms(outcome, material, settings, logits, recipe.sha256(), bundle, reporter))


def calibration_text(recipe: Recipe) -> TextSource:
    """Name the unlabelled text for INT8 calibration; without any, English training text must do.

    It is what the recipe asks for, else the teacher's text, else the vocabulary's first file of each language. The task's
    own text of other languages is read only if the recipe names it somewhere.
    """
    distillation, named = recipe.distillation, recipe.unlabelled_text
    if named is None:
        return TextSource(None, None)
    # Forty-eight texts of each language are enough: no reason to read translations of a whole training set.
    pattern = "task" if named.pattern in TASK_TEXT else named.pattern
    languages = distillation.languages if distillation and not recipe.export.calibration else None
    return TextSource(pattern, languages, named.key)


# --- weights ---------------------------------------------------------------------------------------------------------


def write_model(
    outcome: Outcome, data: Datasets, layout: Literal["sparse", "dense"], recipe_sha256: str, folder: Path
) -> None:
    """Write weights, config and tokenizer: what needs no ONNX."""
    model, task = outcome.model, data.task
    path = folder / SAFETENSORS_FILE
    if layout == "sparse":
        sparse.save_sparse(model, outcome.masks, path, {"recipe_sha256": recipe_sha256})
    else:
        sparse.save_dense(model, path)
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    config["architectures"] = [type(model).__name__]
    config["xlmprune"] = {
        "version": __version__,
        "task": task.name,
        "kind": task.kind,
        "labels": list(task.labels),
        "metric": task.metrics[0].name,
        "max_length": data.max_length,
        "train_language": data.train_language,
        "languages": list(data.tests),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    loading.save_tokenizer(outcome.tokenizer, folder, data.max_length)


# --- forms -----------------------------------------------------------------------------------------------------------


def write_forms(
    outcome: Outcome,
    material: Material,
    settings: ExportRecipe,
    logits: Mapping[str, Logits],
    recipe_sha256: str,
    folder: Path,
    reporter: Reporter,
) -> Iterator[MeasuredForm]:
    """Write each form that the recipe asks for, score it with ONNX Runtime and compare it with PyTorch's logits.

    Args:
        logits: the pruned PyTorch model's, by language, for every test example.
        folder: where the files go.
        reporter: shows what is done.

    Raises:
        ShortfallError: a form that must reproduce PyTorch does not.
    """
    yardstick = _yardstick(settings.floor, outcome, material)
    reporter.say("exporting to ONNX")
    with reporter.busy("exporting to ONNX"):
        graph = graph_of_opset(
            settings.opset,
            lambda opset: export_onnx(outcome.model, opset=opset),
            form_named(form_to_serve(settings.onnx)),
            settings.embeddings,
            min(TOKENS, material.data.max_length),
            reporter.say,
        )
    properties = _properties(outcome, material.data, recipe_sha256)
    for name in settings.onnx:
        form = form_named(name)
        reporter.say(f"writing and measuring {name}")
        with reporter.busy(f"choosing and writing {name}" if form.calibrated else f"writing {name}"):
            written = form.write(
                graph,
                folder / form.file,
                material,
                outcome.model,
                settings.onnx_layout == "packed",
                properties,
            )
        measured = _measure(form, written, material, logits, folder, reporter, opset_of(graph))
        _check_parity(measured)
        if yardstick is not None:
            forward = forward_of(form.open(folder / form.file))
            with reporter.busy(f"comparing {name} with the floor"):
                measured = replace(measured, drops=yardstick.drops(forward))
        yield measured


def _yardstick(floor: FloorRecipe, outcome: Outcome, material: Material) -> Yardstick | None:
    """Return what the floor is decided on; None where that is the test sets, which are measured anyway, or nothing."""
    if floor.on == "test" or not floor.limits:
        return None
    return Yardstick(floor.on, material, loading.forward_of(outcome.model, outcome.device))


def _properties(outcome: Outcome, data: Datasets, recipe_sha256: str) -> dict[str, str]:
    """Facts for the file itself, for whoever meets it without its bundle."""
    return {
        "task": data.task.name,
        "kind": data.task.kind,
        "labels": json.dumps(list(data.task.labels), ensure_ascii=False),
        "max_length": str(data.max_length),
        "encoder_sparsity": f"{1 - outcome.encoder_density:.6f}",
        "recipe_sha256": recipe_sha256,
    }


def _measure(
    form: Form,
    written: Written,
    material: Material,
    logits: Mapping[str, Logits],
    folder: Path,
    reporter: Reporter,
    opset: int,
) -> MeasuredForm:
    scores: Scores = {}
    agreement = Agreement()
    forward = forward_of(form.open(folder / form.file))
    data = material.data
    with reporter.counting(f"measuring {form.name}", evaluation.texts_in(data.tests)) as advance:
        counted = evaluation.counted(forward, advance)
        apart = form.parity is None
        for language, score, found in evaluation.evaluate(
            counted, data.tests, data.task, material.batch_size, apart
        ):
            scores[language] = score
            agreement.add(logits[language], found)
    alone = None if form.parity is not None else _compare_batches(forward, data.tests, material.batch_size)
    return MeasuredForm(form, written, scores, agreement, alone=alone, opset=opset)


TEXTS_ALONE = 200
"""Test texts, of all languages together, whose answers are computed alone and in batches. Their labels are not read."""


def _compare_batches(forward: evaluation.Forward, tests: Mapping[str, TestSet], batch_size: int) -> Agreement:
    """Compare answers to one text at a time with answers in batches: dynamic scales of a form depend on the whole batch."""
    agreement = Agreement()
    for test in tests.values():
        sample = test.sample(-(-TEXTS_ALONE // len(tests))).encoded
        agreement.add(evaluation.collect(forward, sample, batch_size), evaluation.collect(forward, sample, 1))
    return agreement


def _check_parity(measured: MeasuredForm) -> None:
    agreement, allowed = measured.agreement, measured.form.parity
    if allowed is None:
        return
    if agreement.relative <= allowed.difference and agreement.agreement >= allowed.agreement:
        return
    raise ShortfallError(
        f"{measured.form.file} does not reproduce the PyTorch model: its logits differ by up to {agreement.largest:.2g} "
        f"({agreement.relative:.2%} of their range; at most {allowed.difference:.1%} is allowed) and "
        f"{agreement.agreement:.2%} of {agreement.n} labels agree. Nothing was shipped; the checkpoint is kept. Try "
        "another export.opset, or another version of onnxruntime"
    )


def dense_bytes(outcome: Outcome, forms: Sequence[MeasuredForm]) -> dict[str, int]:
    """Count the bytes of the weights of each form as they would be without masks and packing, by report key."""
    tensors = list(outcome.model.state_dict().values())
    removed = outcome.whole.parameters - loading.count_parameters(
        outcome.model
    )  # with heads, neurons and layers

    def of(form: Form, held: int) -> int:
        return held + form.bytes_of(removed, matrix=True)

    found = {reference().key: of(reference(), entry.written.reference_bytes) for entry in forms}
    found |= {entry.form.key: of(entry.form, entry.written.dense_bytes) for entry in forms}
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return found | {"safetensors": stored + 4 * removed}


def drops_of(entry: MeasuredForm, pruned: Scores) -> Drops:
    """Return the points that a form loses on what the floor is decided on, by language."""
    if entry.drops is not None:
        return entry.drops
    return {language: pruned[language].value - score.value for language, score in entry.scores.items()}


def refuse(
    forms: Sequence[MeasuredForm], pruned: Scores, floor: FloorRecipe, train_language: str, folder: Path
) -> dict[str, str]:
    """Remove the files of forms that lose more than ``floor`` allows from ``folder``.

    Returns:
        form name to the sentence that says which languages fell.
    """
    refused = {}
    for entry in forms:
        said = list(faults(drops_of(entry, pruned), floor, train_language))
        if said:
            refused[entry.form.name] = (
                f"{entry.form.file} is not shipped: against the pruned model {' and '.join(said)}. "
                f"{DECIDED_ON[floor.on]}"
            )
            for file in onnx_files(folder / entry.form.file):
                file.unlink()
    return refused


# --- golden arrays ---------------------------------------------------------------------------------------------------


def golden_arrays(
    outcome: Outcome, tests: Mapping[str, TestSet], forms: Sequence[Form], folder: Path
) -> tuple[dict[str, np.ndarray], Examples]:
    """Run one batch of texts through PyTorch and every form in ``folder``.

    Returns:
        ``input_ids``, ``attention_mask``, ``logits.pytorch`` and ``logits.<form>``; and the texts of the batch.
    """
    batch, texts = _golden_batch(tests)
    feed = [batch[name] for name in INPUTS]
    arrays = {name: batch[name] for name in INPUTS}
    for form in forms:
        arrays[f"logits.{form.name}"] = forward_of(form.open(folder / form.file))(*feed)
    arrays["logits.pytorch"] = loading.forward_of(outcome.model, outcome.device)(*feed)
    return arrays, texts


def _golden_batch(tests: Mapping[str, TestSet]) -> tuple[dict[str, np.ndarray], Examples]:
    """Take two short examples of every language: as one padded batch, and as texts."""
    rows: list[np.ndarray] = []
    first: list[Any] = []
    second: list[str] = []
    for test in tests.values():
        shortest = np.argsort([len(ids) for ids in test.encoded.input_ids], kind="stable")
        for row in shortest[[0, len(shortest) // 2]]:
            rows.append(test.encoded.input_ids[row])
            first.append(test.examples.first[row])
            if test.examples.second is not None:
                second.append(test.examples.second[row])
    special = next(iter(tests.values())).encoded.special
    plain = Encoded(rows, None, None, np.zeros(len(rows), dtype=bool), special=special)
    return pad(plain, range(len(rows))), Examples("", "", first, second or None)

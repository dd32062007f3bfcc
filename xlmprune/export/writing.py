"""What a bundle ships of a model: its weights, and each ONNX form, measured on every language."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xlmprune._version import __version__
from xlmprune.core.errors import ShortfallError
from xlmprune.data.encoding import Encoded, pad
from xlmprune.data.examples import Examples
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.agreement import Agreement
from xlmprune.evaluation.scores import Scores, TestSet
from xlmprune.export import sparse
from xlmprune.export.form import Form, Material, Written, form_named, reference
from xlmprune.export.graph import export_onnx
from xlmprune.export.runtime import INPUTS, forward_of, onnx_files
from xlmprune.models import loading
from xlmprune.pruning.masks import density
from xlmprune.tasks.metrics import Logits

if TYPE_CHECKING:
    from xlmprune.recipe import ExportRecipe, FloorRecipe
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


# --- weights ---------------------------------------------------------------------------------------------------------


def write_model(
    outcome: Outcome, data: Datasets, layout: Literal["sparse", "dense"], recipe_sha256: str, folder: Path
) -> None:
    """Write weights, config and tokenizer: what needs no ONNX."""
    model, task = outcome.model, data.task
    path = folder / "model.safetensors"
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
    say: Callable[[str], None],
) -> Iterator[MeasuredForm]:
    """Write each form that the recipe asks for, score it with ONNX Runtime and compare it with PyTorch's logits.

    Args:
        logits: the pruned PyTorch model's, by language, for every test example.
        folder: where the files go.
        say: is told what is done next.

    Raises:
        ShortfallError: a form that must reproduce PyTorch does not.
    """
    say("exporting")
    graph = export_onnx(outcome.model, opset=settings.opset)
    properties = _properties(outcome, material.data, recipe_sha256)
    for name in settings.onnx:
        say(f"writing and measuring {name}")
        form = form_named(name)
        written = form.write(
            graph,
            folder / form.file,
            material,
            outcome.model,
            settings.onnx_layout == "packed",
            properties,
        )
        measured = _measure(form, written, material, logits, folder)
        _check_parity(measured)
        yield measured


def _properties(outcome: Outcome, data: Datasets, recipe_sha256: str) -> dict[str, str]:
    """Facts for the file itself, for whoever meets it without its bundle."""
    return {
        "task": data.task.name,
        "kind": data.task.kind,
        "labels": json.dumps(list(data.task.labels), ensure_ascii=False),
        "max_length": str(data.max_length),
        "encoder_sparsity": f"{1 - density(outcome.masks):.6f}",
        "recipe_sha256": recipe_sha256,
    }


def _measure(
    form: Form, written: Written, material: Material, logits: Mapping[str, Logits], folder: Path
) -> MeasuredForm:
    scores: Scores = {}
    agreement = Agreement()
    forward = forward_of(form.open(folder / form.file))
    data = material.data
    for language, score, found in evaluation.evaluate(forward, data.tests, data.task, material.batch_size):
        scores[language] = score
        agreement.add(logits[language], found)
    return MeasuredForm(form, written, scores, agreement)


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
    found = {reference().key: entry.written.reference_bytes for entry in forms}
    found |= {entry.form.key: entry.written.dense_bytes for entry in forms}
    return found | {"safetensors": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}


def refuse(
    forms: Sequence[MeasuredForm], pruned: Scores, floor: FloorRecipe, train_language: str, folder: Path
) -> dict[str, str]:
    """Remove the files of forms that lose more than ``floor`` allows from ``folder``.

    Returns:
        form name to the sentence that says which languages fell.
    """
    refused = {}
    for entry in forms:
        drops = {language: pruned[language].value - score.value for language, score in entry.scores.items()}
        faults = list(_below_floor(drops, floor, train_language)) if drops else []
        if faults:
            refused[entry.form.name] = (
                f"{entry.form.file} is not shipped: against the pruned model {' and '.join(faults)}"
            )
            for file in onnx_files(folder / entry.form.file):
                file.unlink()
    return refused


def _below_floor(drops: Mapping[str, float], floor: FloorRecipe, train_language: str) -> Iterator[str]:
    worst = max(drops, key=lambda language: drops[language])
    zero_shot = {language: drop for language, drop in drops.items() if language != train_language}
    mean = float(np.mean(list((zero_shot or drops).values())))
    if floor.zero_shot_drop is not None and mean > floor.zero_shot_drop:
        name = "zero-shot mean" if zero_shot else train_language
        yield f"its {name} is {mean:.2f} points lower, allowed are {floor.zero_shot_drop:g}"
    if floor.worst_language_drop is not None and drops[worst] > floor.worst_language_drop:
        yield f"{worst} fell by {drops[worst]:.2f} points, allowed are {floor.worst_language_drop:g}"


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

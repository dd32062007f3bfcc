"""The files of a bundle: written, each ONNX form measured on every language, sealed with a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from xlmprune._version import __version__
from xlmprune.bundle import bench, golden, manifest
from xlmprune.bundle import session as serving
from xlmprune.bundle.inspect import parameter_of
from xlmprune.core.device import environment
from xlmprune.core.errors import BundleError, ShortfallError
from xlmprune.data.encoding import Encoded, pad
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.agreement import Agreement
from xlmprune.evaluation.scores import Scores, TestSet
from xlmprune.export import graph as onnx_export
from xlmprune.export import int8 as int8_form
from xlmprune.export import packing
from xlmprune.export import sparse as safetensors_export
from xlmprune.export.triton import write_triton
from xlmprune.models.loading import forward_of, save_tokenizer
from xlmprune.pruning.masks import density
from xlmprune.tasks.metrics import Logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from xlmprune.recipe import ExportRecipe, FloorRecipe
    from xlmprune.training.outcome import Datasets, Outcome

FILES = serving.FILES
"""Form to file name, `fp32` to `model.onnx`."""

LARGEST_RELATIVE_DIFFERENCE = 1e-3
LEAST_AGREEMENT = 0.999
"""An fp32 form that is further from PyTorch than this is broken, and the command fails."""


@dataclass
class Form:
    """One ONNX file and what it scored."""

    name: str
    file: str
    scores: Scores
    agreement: Agreement
    dense_bytes: dict[str, int] = field(default_factory=dict)
    """Of the graph's weights without packing, in this form and in fp32."""
    speed: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    """For an INT8 form: what was chosen, and by which figures."""


def write_model(
    outcome: Outcome, data: Datasets, layout: Literal["sparse", "dense"], recipe_sha256: str, folder: Path
) -> None:
    """Write weights, config and tokenizer: what needs no ONNX."""
    model, task = outcome.model, data.task
    path = folder / "model.safetensors"
    if layout == "sparse":
        safetensors_export.save_sparse(model, outcome.masks, path, {"recipe_sha256": recipe_sha256})
    else:
        safetensors_export.save_dense(model, path)
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
    save_tokenizer(outcome.tokenizer, folder, data.max_length)


def trace(model: nn.Module, opset: int) -> onnx.ModelProto:
    """Export the pruned model as a dense fp32 graph, from which every form is made."""
    return onnx_export.export_onnx(model, opset=opset)


def write_form(
    name: str,
    graph: onnx.ModelProto,
    outcome: Outcome,
    data: Datasets,
    settings: ExportRecipe,
    source: int8_form.TextSource,
    batch_size: int,
    recipe_sha256: str,
    folder: Path,
    logits: Mapping[str, Logits],
) -> Form:
    """Write one ONNX form, score it on every language with ONNX Runtime, and compare it with PyTorch's logits.

    Args:
        graph: what `trace` gave; it is left as it is.
        source: unlabelled text that an INT8 form is calibrated on.
        batch_size: texts in a call when a form is measured.
        logits: the pruned PyTorch model's, by language, for every test example.

    Raises:
        ShortfallError: an fp32 form does not reproduce PyTorch.
    """
    path = folder / FILES[name]
    proto, facts = graph, {}
    if name == "int8":
        choice = int8_form.quantized(
            graph, data, outcome.tokenizer, source, settings.embeddings, batch_size, folder.parent
        )
        proto, facts = choice.proto, int8_form.facts_of(choice)
    merged = _merged(outcome.model, graph)
    dense_bytes = {"onnx_fp32": _bytes_of(graph) + sum(4 * weight.numel() for weight in merged)}
    if name == "int8":
        dense_bytes["onnx_int8"] = _bytes_of(proto) + sum(
            weight.numel() * (4 if weight.ndim == 1 else 1) for weight in merged
        )
    if settings.onnx_layout == "packed":
        proto = packing.pack(proto)
    _describe(proto, outcome, data, name, recipe_sha256)
    onnx_export.save_onnx(proto, path)
    del proto
    form = Form(name, path.name, {}, Agreement(), dense_bytes, quantization=facts)
    forward = _onnx_forward(path)
    for language, score, found in evaluation.evaluate(forward, data.tests, data.task, batch_size):
        form.scores[language] = score
        form.agreement.add(logits[language], found)
    if name == "fp32":
        _check_parity(form)
    return form


def _bytes_of(proto: onnx.ModelProto) -> int:
    return sum(onnx_export.tensor_bytes(tensor) for tensor in proto.graph.initializer)


def _merged(model: nn.Module, graph: onnx.ModelProto) -> list[Tensor]:
    """Parameters that the graph does not hold: the exporter keeps one of several that are equal, such as all zero."""
    held = {parameter_of(tensor.name) for tensor in graph.graph.initializer}
    return [parameter for name, parameter in model.named_parameters() if name not in held]


def time_forms(forms: Sequence[Form], folder: Path, say: Callable[[str], None]) -> None:
    """Measure how fast the forms answer and open, side by side; where that fails it is said, and they ship untimed."""
    if not forms:
        return
    try:
        speed = bench.quick({form.file: folder / form.file for form in forms})
    except (BundleError, OSError) as error:
        say(f"the forms were not timed: {error}")
        return
    for form in forms:
        form.speed = speed[form.file]


def _onnx_forward(path: Path) -> evaluation.Forward:
    return serving.forward_of(serving.open_session(path))


def _describe(
    proto: onnx.ModelProto, outcome: Outcome, data: Datasets, form: str, recipe_sha256: str
) -> None:
    """Put facts into the file itself, for whoever meets it without its bundle."""
    known = {entry.key: entry.value for entry in proto.metadata_props}
    facts = {
        "xlmprune_version": __version__,
        "form": form,
        "task": data.task.name,
        "kind": data.task.kind,
        "labels": json.dumps(list(data.task.labels), ensure_ascii=False),
        "max_length": str(data.max_length),
        "encoder_sparsity": f"{1 - density(outcome.masks):.6f}",
        "recipe_sha256": recipe_sha256,
    }
    onnx.helper.set_model_props(proto, known | facts)


def _check_parity(form: Form) -> None:
    agreement = form.agreement
    if agreement.relative <= LARGEST_RELATIVE_DIFFERENCE and agreement.agreement >= LEAST_AGREEMENT:
        return
    raise ShortfallError(
        f"{form.file} does not reproduce the PyTorch model: its logits differ by up to {agreement.largest:.2g} "
        f"({agreement.relative:.2%} of their range; at most {LARGEST_RELATIVE_DIFFERENCE:.1%} is allowed) and "
        f"{agreement.agreement:.2%} of {agreement.n} labels agree. Nothing was shipped; the checkpoint is kept. Try "
        "another export.opset, or another version of onnxruntime"
    )


def refuse(
    forms: list[Form], pruned: Scores, floor: FloorRecipe, train_language: str, folder: Path
) -> dict[str, str]:
    """Remove the files of forms that lose more than ``floor`` allows from ``folder``.

    Returns:
        form name to the sentence that says which languages fell.
    """
    refused = {}
    for form in forms:
        drops = {language: pruned[language].value - score.value for language, score in form.scores.items()}
        if not drops:
            continue
        worst = max(drops, key=lambda language: drops[language])
        zero_shot = {language: drop for language, drop in drops.items() if language != train_language}
        mean = float(np.mean(list((zero_shot or drops).values())))
        faults = []
        if floor.zero_shot_drop is not None and mean > floor.zero_shot_drop:
            faults.append(
                f"its {'zero-shot mean' if zero_shot else train_language} is {mean:.2f} points lower, allowed are "
                f"{floor.zero_shot_drop:g}"
            )
        if floor.worst_language_drop is not None and drops[worst] > floor.worst_language_drop:
            faults.append(
                f"{worst} fell by {drops[worst]:.2f} points, allowed are {floor.worst_language_drop:g}"
            )
        if faults:
            refused[form.name] = (
                f"{form.file} is not shipped: against the pruned model {' and '.join(faults)}"
            )
            for file in onnx_export.files_of(folder / form.file):
                file.unlink()
    return refused


def write_companions(
    outcome: Outcome, data: Datasets, forms: list[Form], name: str, triton: bool, folder: Path
) -> None:
    """Write golden inputs with their logits, and the Triton repository: what depends on the forms that ship."""
    batch = _golden_batch(data.tests)
    arrays = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    for form in forms:
        arrays[f"logits.{form.name}"] = _onnx_forward(folder / form.file)(
            arrays["input_ids"], arrays["attention_mask"]
        )
    arrays["logits.pytorch"] = forward_of(outcome.model, outcome.device)(
        arrays["input_ids"], arrays["attention_mask"]
    )
    golden.write(folder, arrays)
    if triton and forms:
        write_triton(folder / "triton", name, folder / forms[0].file, data.task.labels, data.task.kind)


def _golden_batch(tests: Mapping[str, TestSet]) -> dict[str, np.ndarray]:
    """One padded batch with the first short examples of every language."""
    rows = []
    for test in tests.values():
        shortest = np.argsort([len(ids) for ids in test.encoded.input_ids], kind="stable")
        rows += [test.encoded.input_ids[row] for row in shortest[[0, len(shortest) // 2]]]
    special = next(iter(tests.values())).encoded.special
    plain = Encoded(rows, None, None, np.zeros(len(rows), dtype=bool), special=special)
    return pad(plain, range(len(rows)))


def seal(folder: Path, device: torch.device, recipe_sha256: str) -> None:
    """Write the manifest over every file in ``folder``."""
    manifest.write(folder, {name: str(fact) for name, fact in environment(device).items()}, recipe_sha256)

"""Measure what sizes of a model cost, and turn `pruning.structure.budget` into layers, heads and neurons.

A table takes three exports: one layer, half the layers and all layers, the first two with a quarter of the heads. Narrower
feed-forward parts and fewer embedding rows are cut out of these graphs, which saves minutes. Weights are random, since
time does not depend on them.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xlmprune.core import machine
from xlmprune.core.errors import BundleError, RecipeError
from xlmprune.core.files import REPORT_FILE, temporary_folder, write_atomically
from xlmprune.data.examples import Kind
from xlmprune.export.form import expected_files, form_named, forms_in, reference
from xlmprune.export.graph import (
    TRANSPOSED,
    export_onnx,
    load_onnx,
    opset_of,
    parameter_of,
    save_onnx,
    with_graph,
)
from xlmprune.export.opsets import TOKENS, graph_of_opset
from xlmprune.export.quantization import INT4
from xlmprune.export.sparse import read_config
from xlmprune.export.timing import SECONDS, time_in_turns
from xlmprune.export.whole import config_of, model_without_meaning, write_whole
from xlmprune.models import architecture
from xlmprune.models.loading import load_config
from xlmprune.pruning.budget import Limits, Settled, Size, SizedFile, SizeTable, Timing, search
from xlmprune.pruning.structures import CONFIG_KEY, LayerLayout, Layout, resize
from xlmprune.recipe import registry
from xlmprune.recipe.loading import load_recipe
from xlmprune.training import planning
from xlmprune.training.revisions import pin
from xlmprune.training.start import load_start

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from xlmprune.core.progress import Reporter
    from xlmprune.recipe.schema import BudgetRecipe, Embeddings, Recipe, StructureRecipe

Say = Callable[[str], None]

ROWS = 1024
"""Word embeddings of the models that are timed: looking up a row takes the same time in a table of any size."""

NEURONS = (1, 4, 8, 16)
"""Parts of the neurons that are timed: all, a quarter, an eighth, a sixteenth."""


@dataclass(frozen=True)
class Source:
    """The model that a table is about."""

    name: str
    config: Any
    """Of the whole model."""
    kind: Kind

    def facts(self) -> dict[str, Any]:
        """Return what a table holds of it, and what makes it the same model."""
        size = self.size
        return {
            "name": self.name,
            "type": self.config.model_type,
            "hidden": self.config.hidden_size,
            **asdict(size),
        }

    @property
    def size(self) -> Size:
        """Size of the whole model."""
        config = self.config
        return Size(config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)


@dataclass(frozen=True)
class Exporting:
    """How files are written; all of it changes what a size costs."""

    form: str
    opset: int | Literal["auto"]
    embeddings: Embeddings


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    source: Source,
    exporting: Exporting,
    conditions: Sequence[tuple[int, int, int]],
    say: Say = lambda text: None,
    seconds: float = SECONDS,
) -> SizeTable:
    """Write files of a few sizes and time them.

    Args:
        conditions: batch, tokens and threads; several are timed with the same files. None are needed to count bytes.
        say: told what is done next.
        seconds: for timing under each of the conditions.

    Raises:
        BundleError: the model does not take so many tokens.
    """
    opset = _opset(source, exporting, say, seconds)
    with temporary_folder() as folder:
        files, paths = [], {}
        for number, (size, rows, graph) in enumerate(_graphs(source, opset, say)):
            path = folder / f"{number}.onnx"
            save_onnx(form_named(exporting.form).sample(graph, exporting.embeddings), path)
            files.append(SizedFile(size, rows, path.stat().st_size))
            paths[f"{size}, {rows} embeddings,"] = path
            if size == source.size and rows == max(file.rows for file in files):
                paths["dense"] = folder / "dense.onnx"
                save_onnx(reference().sample(graph, exporting.embeddings), paths["dense"])
        timings = []
        for batch, tokens, threads in conditions:
            say(f"timing {len(paths)} files: batch {batch}, {tokens} tokens, threads: {threads}")
            taken = time_in_turns(paths, batch, tokens, threads, seconds)
            ms = tuple(taken[name] for name in paths if name != "dense")
            timings.append(Timing(batch, tokens, threads, ms, taken["dense"]))
    return SizeTable(
        source.facts(),
        exporting.form,
        opset,
        exporting.embeddings,
        {**machine.describe(), "onnxruntime": machine.version_of("onnxruntime")},
        tuple(files),
        tuple(timings),
    )


def _opset(source: Source, exporting: Exporting, say: Say, seconds: float) -> int:
    """Return the version of the operators; measure it with the whole model where the recipe leaves it open."""
    if exporting.opset != "auto":
        return exporting.opset
    model = random_model(source, source.size, ROWS)
    tokens = min(TOKENS, source.config.max_position_embeddings // 2)
    graph = graph_of_opset(
        "auto",
        lambda opset: export_onnx(model, opset=opset),
        form_named(exporting.form),
        exporting.embeddings,
        tokens,
        say,
        seconds,
    )
    return opset_of(graph)


def _graphs(source: Source, opset: int, say: Say) -> Iterator[tuple[Size, int, onnx.ModelProto]]:
    """Yield the size, the embedding rows and the fp32 graph of every file."""
    whole = source.size
    few = max(1, whole.heads // 4)
    depths = sorted({1, min(whole.layers, max(2, whole.layers // 2))})
    rows = min(ROWS, source.config.vocab_size)
    widths = _widths(whole.neurons)
    for size in dict.fromkeys([*(Size(layers, few, whole.neurons) for layers in depths), whole]):
        say(f"exporting {size}")
        graph = export_onnx(random_model(source, size, rows), opset=opset)
        for neurons in widths:
            yield Size(size.layers, size.heads, neurons), rows, narrowed(graph, neurons, rows)
        if size.layers == 1:
            yield size, rows // 2, narrowed(graph, size.neurons, rows // 2)


def _widths(neurons: int) -> list[int]:
    """Return the widths to time, in multiples of 32 where those divide the whole width: kernels are slow at others."""
    unit = math.gcd(neurons, 32)
    return sorted({max(unit, neurons // part // unit * unit) for part in NEURONS})


def random_model(source: Source, size: Size, rows: int) -> nn.Module:
    """Return a model of this size with weights of no meaning, in eval mode."""
    config = copy.deepcopy(source.config)
    config.vocab_size = rows
    architecture.of(config).describe_layers(config, range(size.layers))
    model = model_without_meaning(config, source.kind)
    head_size = architecture.of(model).layers(model)[0].head_size
    layer = LayerLayout(0, size.heads, size.neurons)
    resize(model, Layout(head_size, (layer,) * size.layers))
    return model


def narrowed(graph: onnx.ModelProto, neurons: int, rows: int) -> onnx.ModelProto:
    """Return a graph with only the first neurons of each layer, and the first rows of the word embeddings."""
    return with_graph(
        graph, initializer=[_narrow(tensor, neurons, rows) for tensor in graph.graph.initializer]
    )


def _narrow(tensor: onnx.TensorProto, neurons: int, rows: int) -> onnx.TensorProto:
    from onnx import numpy_helper

    module = (parameter_of(tensor.name) or "").rpartition(".")[0]
    found = architecture.find_matrix(module) if module else None
    roles = found.roles if found else {}
    if "ffn_in" in roles:
        axis, kept = len(tensor.dims) - 1 if tensor.name.endswith(TRANSPOSED) else 0, neurons
    elif "ffn_out" in roles and len(tensor.dims) == 2:
        axis, kept = 0 if tensor.name.endswith(TRANSPOSED) else 1, neurons
    elif architecture.is_word_embedding(tensor.name):
        axis, kept = 0, rows
    else:
        return tensor
    values = numpy_helper.to_array(tensor)
    # A matrix that plays several roles keeps the first entries of each.
    equal = np.split(np.arange(values.shape[axis]), max(1, len(roles)))
    chosen = np.concatenate([part[:kept] for part in equal])
    if len(chosen) == values.shape[axis]:
        return tensor
    return numpy_helper.from_array(np.ascontiguousarray(values.take(chosen, axis)), tensor.name)


# --- tables as files --------------------------------------------------------------------------------------------------


def write_table(table: SizeTable, path: Path) -> None:
    """Write a table as JSON."""
    write_atomically(path, json.dumps(table.record(), indent=1) + "\n")


def read_table(path: Path, source: Source, exporting: Exporting) -> SizeTable:
    """Read a table of this model in this form.

    Raises:
        RecipeError: the file is missing or damaged, or is the table of something else.
    """
    key = "pruning.structure.budget.table"
    try:
        table = SizeTable.from_record(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RecipeError(
            f"{key}: {path} is not there; xlmprune bench --latency-table writes such a file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{key}: {path} cannot be read: {error}") from error
    facts = source.facts()
    differing = [what for what in facts if what != "name" and table.model.get(what) != facts[what]]
    if differing:
        raise RecipeError(
            f"{key}: {path} is the table of another model, {_model_in_words(table.model)}; this recipe's is "
            f"{_model_in_words(facts)}"
        )
    for what, wanted in asdict(exporting).items():
        if wanted not in ("auto", getattr(table, what)):
            raise RecipeError(
                f"{key}: {path} was measured with {what} {getattr(table, what)}; this recipe has {wanted}. Measure again "
                "with xlmprune bench RECIPE --latency-table"
            )
    return table


def _model_in_words(facts: Mapping[str, Any]) -> str:
    size = Size(*(int(facts[key]) for key in ("layers", "heads", "neurons")))
    return f"{facts.get('name')} ({facts.get('type')} of width {facts.get('hidden')}, {size})"


# --- resolving --------------------------------------------------------------------------------------------------------


def settle(
    structure: StructureRecipe,
    budget: BudgetRecipe,
    source: Source,
    exporting: Exporting,
    say: Say = lambda text: None,
) -> Settled:
    """Choose the sizes that meet the budget.

    Args:
        source: the model as training begins, its vocabulary trimmed.

    Raises:
        RecipeError: the budget cannot be met, or its table is of something else.
        BundleError: the model does not take texts of so many tokens.
    """
    timed = budget.latency_ms is not None or budget.speedup is not None
    conditions = (budget.batch, budget.tokens, budget.threads)
    if budget.table is not None:
        table = read_table(Path(budget.table).expanduser(), source, exporting)
    else:
        say("measuring the speed and bytes of model sizes on this machine")
        table = measure(source, exporting, [conditions] if timed else [], say)
    timing = table.timing(*conditions) if timed else None
    limits = Limits(budget.latency_ms, budget.speedup, budget.bytes)
    choice = search(limits, table, timing, source.config.vocab_size, structure.multiple)
    return Settled(
        {**budget.model_dump(exclude={"table"}), "multiple": structure.multiple},
        table.whole,
        choice,
        None if timing is None else timing.dense_ms,
        table.record(),
    )


def settle_recipe(recipe: Recipe, config: Any, kind: Kind, say: Say = lambda text: None) -> Settled | None:
    """Choose the sizes that meet a recipe's budget; None where it has none.

    Args:
        config: of the model as training begins, its vocabulary trimmed.
    """
    structure = recipe.pruning.structure
    if structure is None or structure.budget is None:
        return None
    source = Source(recipe.model.name, config, kind)
    exporting = Exporting(structure.budget.form, recipe.export.opset, recipe.export.embeddings)
    return settle(structure, structure.budget, source, exporting, say)


def plan(recipe: Recipe, device: str, reporter: Reporter, start_from: Path | None = None) -> dict[str, Any]:
    """Plan a run, as `training.planning.plan` does, with what a budget resolves to."""
    structure = recipe.pruning.structure
    if structure is None or structure.budget is None:
        return planning.plan(recipe, device, reporter, start_from)
    planning.require_startable(pin(recipe), device, start_from)  # before minutes of measuring
    task = registry.load("task", recipe.task.name)(recipe.task)
    trimmed = structure.budget.bytes is not None and recipe.model.trimmed is not None
    config = load_start(recipe, task)[0].model.config if trimmed else load_config(recipe.model, task.labels)
    settled = settle_recipe(recipe, config, task.kind, reporter.say)
    assert settled is not None
    pruning = recipe.pruning.model_copy(update={"structure": settled.applied(structure)})
    found = planning.plan(recipe.model_copy(update={"pruning": pruning}), device, reporter, start_from)
    return {**found, "budget": {**settled.facts(), "sentence": settled.sentence()}}


# --- whose sizes are measured -----------------------------------------------------------------------------------------


def model_to_size(name: str, form: str, overrides: Sequence[str] = ()) -> tuple[Source, Exporting]:
    """Return the model of a bundle or recipe, and how its files are written.

    Args:
        name: folder of a bundle, or a recipe as `xlmprune compress` takes it.
        overrides: of a recipe, ``a.b=value`` each.
    """
    form_named(form)
    if Path(name).is_dir():
        return source_of_bundle(Path(name)), exporting_of_bundle(Path(name), form)
    recipe = load_recipe(name, overrides)
    task = registry.load("task", recipe.task.name)(recipe.task)
    source = Source(recipe.model.name, load_config(recipe.model, task.labels), task.kind)
    return source, Exporting(form, recipe.export.opset, recipe.export.embeddings)


def source_of_bundle(bundle: Path) -> Source:
    """Return the whole model that a bundle was made from, as it was before structures were removed.

    Raises:
        BundleError: the folder is no bundle, or does not say what the whole model was.
    """
    values = read_config(bundle)
    try:
        report = json.loads((bundle / REPORT_FILE).read_text(encoding="utf-8"))
        facts, kind = report["model"], values["xlmprune"]["kind"]
        whole = facts.get("structure", {}).get("whole")
        config = config_of(values)
        if whole is not None:
            setattr(config, CONFIG_KEY, None)
            architecture.of(config).describe_layers(config, range(whole["layers"]))
            config.intermediate_size = whole["neurons"]
        return Source(facts["name"], config, kind)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{bundle}: its {REPORT_FILE} and config.json do not describe a model ({error}); expected a bundle written by "
            "xlmprune"
        ) from error


def write_whole_of_bundle(bundle: Path, folder: Path) -> Path:
    """Write the fp32 graph of the whole model that a bundle was made from, with weights of no meaning, to time it.

    Raises:
        BundleError: the bundle does not say what the whole model was, or it has no ONNX file.
    """
    source = source_of_bundle(bundle)
    opset = exporting_of_bundle(bundle, reference().name).opset
    assert opset != "auto"
    return write_whole(source.config, source.kind, opset, folder / "dense.onnx")


def exporting_of_bundle(bundle: Path, form: str) -> Exporting:
    """Return how a bundle's files were written.

    Raises:
        BundleError: it has no ONNX file.
    """
    files = forms_in(bundle)
    if not files:
        raise BundleError(f"{bundle} has no ONNX file; expected a bundle with {expected_files()}")
    graph = load_onnx(files.get(form, next(iter(files.values()))))
    is_int4 = any(tensor.name.endswith(INT4) for tensor in graph.graph.initializer)
    return Exporting(form, opset_of(graph), "int4" if is_int4 else "int8")

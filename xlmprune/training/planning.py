"""Plan a run: stages, densities, updates, languages, time, memory. Reads data and configuration, and keeps nothing."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from xlmprune.core import hub, processes
from xlmprune.core.device import (
    deterministic,
    explain_full_memory,
    fallback,
    resolve_device,
    resolve_precision,
    without_cudnn_attention,
)
from xlmprune.core.formatting import amount, clock, number, percent
from xlmprune.core.machine import processors
from xlmprune.core.progress import Reporter, silent_reporter
from xlmprune.core.tables import rich_table, tabulate
from xlmprune.data.examples import Examples
from xlmprune.data.lengths import describe_cut, share_cut
from xlmprune.data.unlabelled import vocabulary_texts
from xlmprune.models import vocabulary
from xlmprune.models.loading import (
    count_parameters,
    count_prunable,
    head_class,
    load_config,
    parameters_by_part,
)
from xlmprune.recipe import registry
from xlmprune.recipe.schema import Recipe, TrainingRecipe
from xlmprune.training.conditions import require_possible
from xlmprune.training.datasets import check_length, read_texts_of
from xlmprune.training.dense import read_dense
from xlmprune.training.memory import estimate_disk, estimate_memory
from xlmprune.training.method import Method, build_method
from xlmprune.training.moments import choose_moment_text, describe
from xlmprune.training.optimizer import learning_rate, updates_in_stage
from xlmprune.training.revisions import pin
from xlmprune.training.shortening import LEAST_LEARNING, Shorter, learned_at_most, shortened
from xlmprune.training.shrinking import planned_densities, planned_sizes, require_pattern, require_refittable
from xlmprune.training.timing import Duration, estimate_duration

PUNCTUATION = string.punctuation + "«»“”„‘’…–—¿¡。、，！？"

CPU_SPEED = 5e10
"""Floating-point operations per second of one processor core in fp32 products, to an order of magnitude."""

USUAL_TOKENS = 32
"""Tokens of a text, for an estimate before any text is encoded."""

PATIENCE_DAYS = 1.0
"""Days of training on a CPU from which on a run warns."""


def require_startable(recipe: Recipe, device: str, start_from: Path | None) -> None:
    """Refuse what a run would refuse before it reads any data.

    Args:
        recipe: with what it takes from the hub pinned.

    Raises:
        MachineError: this machine lacks something that the recipe asks for.
        RecipeError: the stage 0 of ``start_from`` is not that of the recipe.
        ModelError: ``start_from`` holds no finished dense run.
    """
    require_possible(resolve_device(device), recipe.training)
    if start_from is not None:
        read_dense(start_from, recipe)


def plan(
    recipe: Recipe, device: str = "auto", reporter: Reporter | None = None, start_from: Path | None = None
) -> dict[str, Any]:
    """Return the resolved plan of a run.

    Args:
        reporter: shows what is being done; None: nothing does.
        start_from: folder of the run whose stage 0 is taken, so that it is not trained; None: it is trained.

    Raises:
        XlmpruneError: the run would be refused too.

    Returns:
        ``stages`` [{stage, encoder_density, updates}], ``languages``, ``train_examples``, ``parameters``,
        ``prunable``, ``memory`` (bytes by what they hold in a process, an estimate), ``host`` {processes, memory} where
        several processes of the run share this host, ``disk`` (the same for a checkpoint and the run folder), ``seconds``
        {update, training, measuring} where a few updates could be timed, with ``shorter`` {options, seconds} if the run is
        long, ``device``, ``precision``, ``warnings``.
    """
    reporter = reporter or silent_reporter()
    where = resolve_device(device)
    recipe = pin(recipe)
    require_startable(recipe, device, start_from)
    task = registry.load("task", recipe.task.name)(recipe.task)
    reporter.say(f"reading {recipe.task.name} in {', '.join(task.languages())}")
    texts = read_texts_of(recipe, task)
    if wanted := recipe.model.trimmed:
        vocabulary.require_texts(vocabulary_texts(task, wanted.files, wanted.keep_languages_of))
    config = load_config(recipe.model, task.labels)
    check_length(recipe.model.name, config, recipe.training.max_length)
    with torch.device("meta"):
        model = head_class(config, task.kind)(deepcopy(config))  # planning cuts this model, and its config
    method = build_method(recipe.pruning, recipe.regularizer)
    require_refittable(model, method.reconstruct)
    require_pattern(model, method.selection.pattern, method.structure)
    measured_on = choose_moment_text(recipe, texts, method)
    sizes = _sizes(model)
    batches = -(-len(texts.train) // recipe.training.batch_size)
    stages = _stages(recipe, method, model, batches)
    counts = [stage["updates"] for stage in stages]
    if start_from is not None:
        stages[0] |= {"updates": 0, "peak_learning_rate": 0.0}
    updates = sum(stage["updates"] for stage in stages)
    rows = distinct_words([texts.train, *texts.unlabelled.values()])
    chooses = texts.dev is not None and any(stage["updates"] > batches for stage in stages)
    precision = resolve_precision(recipe.training.precision, where)
    memory = estimate_memory(
        recipe,
        method,
        model,
        rows,
        chooses,
        precision is torch.bfloat16,
        where.type == "cpu",
        processes.launched(),
    )
    here = processes.local()[1]
    cut = {code: share_cut(test, recipe.training.max_length) for code, test in texts.tests.items()}
    slow = slow_on_cpu(recipe, model, updates, where, shorten=start_from is None)
    duration = None
    if not slow and processes.count() == 1:
        with (
            explain_full_memory(where),
            deterministic(where, recipe.training.deterministic),
            without_cudnn_attention(where),
        ):
            duration = estimate_duration(
                recipe,
                method,
                config,
                texts,
                counts,
                rows,
                where,
                memory["total"],
                reporter,
                trains_dense=start_from is None,
            )
    # With another run's stage 0, options that shorten a run would ask for another one than is there.
    shorter = None
    if duration is not None and start_from is None:
        shorter = shortened(recipe, duration, counts, batches, [len(test) for test in texts.tests.values()])
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "task": recipe.task.name,
        **sizes,
        "languages": list(texts.tests),
        "train_language": recipe.task.train_language,
        "train_examples": len(texts.train),
        "labels": list(task.labels),
        "warnings": [
            *fallback(device, where),
            *([f"{said}. Files come from the cache"] if (said := hub.unreached()) else []),
            *slow,
            *describe_cut(cut, recipe.training.max_length, estimated=True),
            *dict.fromkeys(note for part in (texts.train, *texts.tests.values()) for note in part.notes),
            *texts.warnings,
            *([] if start_from is not None else too_little_learning(recipe, stages[0]["updates"])),
        ],
        "unlabelled": {language: len(part) for language, part in texts.unlabelled.items()},
        **({} if measured_on is None else {"moments": measured_on.record()}),
        **({} if start_from is None else {"start_from": str(start_from)}),
        "stages": stages,
        **_exported_sizes(recipe, method, model, sizes["prunable"]),
        "updates": updates,
        "criterion": recipe.pruning.criterion.name,
        "regularizer": recipe.regularizer.name,
        "device": str(where),
        "precision": str(precision).removeprefix("torch."),
        **_seconds(duration, shorter),
        "memory": memory,
        **({} if here == 1 else {"host": {"processes": here, "memory": here * memory["total"]}}),
        "disk": estimate_disk(recipe, method, model, rows, chooses),
    }


def _stages(recipe: Recipe, method: Method, model: torch.nn.Module, batches: int) -> list[dict[str, Any]]:
    """Plan every stage of a run that trains its own stage 0; ``batches`` are those of an epoch."""
    shares = [1.0] if method.structure is None else [1.0, *planned_densities(model, method.structure)]
    last = len(method.densities) - 1
    return [
        _stage_plan(recipe.training, batches, stage, last, density * shares[min(stage, len(shares) - 1)])
        for stage, density in enumerate(method.densities)
    ]


def _exported_sizes(recipe: Recipe, method: Method, model: torch.nn.Module, whole: int) -> dict[str, Any]:
    if not recipe.sizes or method.structure is None:
        return {}
    return {"sizes": planned_sizes(model, method.structure.multiple, recipe.sizes, whole)}


def _seconds(duration: Duration | None, shorter: Shorter | None) -> dict[str, Any]:
    if duration is None:
        return {}
    return {"seconds": {**duration.facts(), **({} if shorter is None else {"shorter": shorter.facts()})}}


def _sizes(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "parameters": count_parameters(model),
        "parameters_by_part": parameters_by_part(model),
        "prunable": count_prunable(model),
    }


def _stage_plan(
    settings: TrainingRecipe, batches_per_epoch: int, stage: int, last: int, density: float
) -> dict[str, Any]:
    updates = updates_in_stage(settings, batches_per_epoch, stage, last)
    rates = (learning_rate(settings, stage, update, updates) for update in range(updates))
    return {
        "stage": stage,
        "encoder_density": density,
        "updates": updates,
        "peak_learning_rate": max(rates, default=0.0),
    }


def too_little_learning(recipe: Recipe, updates: int) -> list[str]:
    """Warn if stage 0 has too few updates for its learning rate; an empty list if it has enough."""
    training = recipe.training
    rate = training.dense_learning_rate or training.learning_rate
    if learned_at_most(training, updates) >= LEAST_LEARNING:
        return []
    key = "learning_rate" if training.dense_learning_rate is None else "dense_learning_rate"
    return [
        f"stage 0 has {updates:,} updates with a learning rate of {rate:g}. That is too little to learn a task. Raise "
        f"training.{key} (5e-5 to 2e-4 suits small data) or the number of epochs"
    ]


def slow_on_cpu(
    recipe: Recipe, model: torch.nn.Module, updates: int, device: torch.device, shorten: bool = True
) -> list[str]:
    """Warn if training takes days because there is no GPU; an empty list otherwise.

    Args:
        shorten: name an option with which the run takes about a day.
    """
    encoder = count_parameters(model) - parameters_by_part(model)["embeddings"]
    # Forward and backward pass: six operations for each parameter and token.
    operations = 6.0 * encoder * recipe.training.batch_size * USUAL_TOKENS * updates
    days = operations / (CPU_SPEED * processors()) / 86_400
    if device.type != "cpu" or days < PATIENCE_DAYS:
        return []
    stages = len(build_method(recipe.pruning, recipe.regularizer).densities)
    few = float(f"{max(1.0, updates * PATIENCE_DAYS / days / stages):.1g}")
    advice = f". --set training.max_updates_per_stage={few:.0f} takes about a day" if shorten else ""
    return [
        f"training takes about {days:,.0f} days on this CPU: {updates:,} updates of a model with {amount(encoder)} "
        f"parameters without the embeddings. Use a machine with a GPU, or train less{advice}"
    ]


def distinct_words(texts: Iterable[Examples]) -> int:
    """Count distinct words, without case and punctuation: about as many pieces of the vocabulary occur, or fewer."""
    found: set[str] = set()
    for examples in texts:
        for part in (examples.first, examples.second or ()):
            for text in part:
                found.update(word.strip(PUNCTUATION) for word in _words(text))
    return len(found)


def _words(text: str | Sequence[str]) -> Iterable[str]:
    return text.lower().split() if isinstance(text, str) else (word.lower() for word in text)


def render(plan: dict[str, Any], source: str) -> Any:
    """Render the plan as a table for the terminal.

    Args:
        source: the file or the name of the recipe, as the user gave it.
    """
    from rich.console import Group
    from rich.text import Text

    columns: dict[str, Callable[[Any], str]] = {
        "stage": lambda stage: number(stage["stage"]),
        "encoder density": lambda stage: percent(stage["encoder_density"], 2),
        "updates": lambda stage: number(stage["updates"]),
        "peak learning rate": lambda stage: f"{stage['peak_learning_rate']:g}",
    }
    aligned = "" if plan["regularizer"] == "none" else f", {plan['regularizer']} regularizer"
    title = f"Plan of {source}: model {plan['model']}, task {plan['task']}{aligned}"
    table = rich_table(tabulate(title, columns, plan["stages"]))
    memory = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in plan["memory"].items() if what != "total")
    others = [language for language in plan["languages"] if language != plan["train_language"]]
    return Group(
        table,
        f"{plan['train_examples']:,} {plan['train_language']} training examples, labels: {', '.join(plan['labels'])}",
        f"{len(others)} zero-shot languages: {', '.join(others)}",
        *([f"stage 0 comes from {plan['start_from']} and is not trained"] if "start_from" in plan else []),
        *(Text(f"warning: {warning}", style="yellow") for warning in plan["warnings"]),
        *([_texts_line(plan["unlabelled"])] if plan["unlabelled"] else []),
        *(describe(plan["moments"]) if "moments" in plan else []),
        *([plan["budget"]["sentence"]] if "budget" in plan else []),
        *([_sizes_line(plan["sizes"])] if "sizes" in plan else []),
        f"{plan['parameters']:,} parameters, {plan['prunable']:,} of them prunable "
        f"({plan['prunable'] / plan['parameters']:.1%}; embeddings hold "
        f"{plan['parameters_by_part']['embeddings'] / plan['parameters']:.1%} and are not pruned)",
        f"{plan['updates']:,} updates in all, {plan['precision']} on {plan['device']}",
        *(_time_lines(plan["seconds"], "start_from" not in plan) if "seconds" in plan else []),
        f"memory, estimated, before any vocabulary trimming: {plan['memory']['total'] / 1e9:.1f} GB"
        f"{_sharing(plan)} ({memory})",
        f"disk, estimated: {plan['disk']['checkpoint'] / 1e9:.1f} GB for a checkpoint, "
        f"{plan['disk']['run folder'] / 1e9:.1f} GB for the run folder without its bundle",
    )


def _sharing(plan: dict[str, Any]) -> str:
    """Say that several processes share this host: its memory holds all of them, unless each has a GPU of its own."""
    if "host" not in plan:
        return ""
    count, total = plan["host"]["processes"], plan["host"]["memory"]
    if plan["device"] != "cpu":
        return f" in each of {count} processes on this host, each on a GPU of its own"
    return f" in each of {count} processes, {total / 1e9:.1f} GB on this host"


def _time_lines(seconds: dict[str, Any], trains_dense: bool) -> list[str]:
    first, last = seconds["update"][0], seconds["update"][-1]
    before = f"{first:.2g} s an update before pruning, {last:.2g} s after it"
    each = before if trains_dense else f"{last:.2g} s an update"
    lines = [
        f"time, at the speed measured now: about {clock(seconds['training'] + seconds['measuring'])}. Training takes "
        f"{clock(seconds['training'])} ({each}), scores take "
        f"{clock(seconds['measuring'])}. Reading, refitting and export take some minutes more. If other programs use the "
        "processor now, an idle machine needs less time"
    ]
    if shorter := seconds.get("shorter"):
        options = " ".join(f"--set {option}" for option in shorter["options"])
        lines.append(
            f"to shorten this to about {clock(shorter['seconds'])}, add: {options}\n"
            "The scores are then less certain, or lower"
        )
    return lines


def _sizes_line(sizes: list[dict[str, Any]]) -> str:
    listed = ", ".join(
        f"{row['size']:g} ({number(row['heads'])} heads and {number(row['neurons'])} FFN neurons a layer, "
        f"encoder density {percent(row['encoder_density'], 2)})"
        for row in sizes
    )
    return f"sizes to export: {listed}"


def _texts_line(unlabelled: dict[str, int]) -> str:
    listed = ", ".join(f"{language} {count:,}" for language, count in unlabelled.items())
    return f"unlabelled texts to learn a teacher's answers on: {listed}"

"""What `evaluate` and `predict` do with a bundle. ONNX Runtime and tokenizers only; PyTorch is not imported."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlmprune import recipe
from xlmprune.bundle.session import Bundle, predict
from xlmprune.bundle.texts import read_texts
from xlmprune.core.errors import BundleError, RecipeError, ShortfallError
from xlmprune.evaluation import intervals
from xlmprune.evaluation import scores as evaluation
from xlmprune.recipe import TaskRecipe, registry
from xlmprune.tasks.metrics import Logits

__all__ = ["evaluate_bundle", "open_bundle", "predict", "read_texts", "render", "require"]


def open_bundle(path: Path, form: str = "", threads: int = 0) -> Bundle:
    """The bundle at ``path``, checked to hold ``form``."""
    bundle = Bundle(path, threads=threads)
    if form and form not in bundle.forms:
        raise BundleError(f"{path}: has no {form!r} form; it has {', '.join(bundle.forms)}")
    return bundle


def task_of(path: Path, overrides: Sequence[str]) -> TaskRecipe:
    """The task a bundle was measured on, as its report says, with ``overrides`` such as ``task.path=…``."""
    file = path / "report.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"{file}: cannot be read ({error}); it says what task the bundle was measured on"
        ) from None
    for override in overrides:
        key = override.partition("=")[0]
        name = key.removeprefix("task.")
        if name == key or name.partition(".")[0] not in TaskRecipe.model_fields:
            known = [f"task.{field}" for field in TaskRecipe.model_fields]
            raise RecipeError(f"--set {override}: unknown key {key!r} here; {registry.nearest(key, known)}")
    given = recipe.apply_overrides(values, overrides)
    return recipe.validate_task(values["task"], str(file), given)


def evaluate_bundle(
    path: Path,
    form: str = "",
    overrides: Sequence[str] = (),
    languages: Sequence[str] = (),
    batch_size: int = 64,
    threads: int = 0,
    predictions: Path | None = None,
) -> dict[str, Any]:
    """Score one form of a bundle on every language.

    Returns:
        ``form``, ``metric``, ``languages`` {code: {n, score, ci95, others…}}, ``zero_shot_mean``, ``all_mean``,
        ``max_test_examples`` (the cap a language, None for all).
    """
    bundle = open_bundle(path, form, threads)
    form = form or bundle.forms[0]
    settings = task_of(path, overrides)
    if languages:
        settings = settings.model_copy(update={"languages": list(languages)})
    if settings.labels is None and settings.name != "quickstart":
        # The model answers with these whatever a source calls usual; and own data have theirs in the training file, which
        # whoever measures a bundle need not have.
        settings = settings.model_copy(update={"labels": list(bundle.labels)})
    task = registry.load("task", settings.name)(settings)
    if tuple(task.labels) != tuple(bundle.labels):
        raise BundleError(
            f"{path}: its labels are {list(bundle.labels)}, those of the data {list(task.labels)}"
        )
    # An official prediction file has a line for every line of the test file.
    cap = None if predictions is not None else settings.max_test_examples
    sets = evaluation.load_test_sets(task, bundle.tokenizer, bundle.max_length, cap, list(languages) or None)
    rows: dict[str, dict[str, Any]] = {}
    for language, test in sets.items():
        logits = evaluation.collect(bundle.forward(form), test.encoded, batch_size)
        if predictions is not None:
            from xlmprune.evaluation.predictions import write_predictions

            write_predictions(predictions, task, language, logits, test.examples)
        rows[language] = _row(task, logits, test)
    values = {language: row["score"] for language, row in rows.items() if row["score"] is not None}
    return {
        "form": form,
        "task": task.name,
        "metric": task.metrics[0].name,
        "train_language": settings.train_language,
        "languages": rows,
        "zero_shot_mean": evaluation.zero_shot_mean(values, settings.train_language),
        "all_mean": evaluation.mean(values.values()),
        "max_test_examples": cap,
    }


def _row(task: Any, logits: Logits, test: evaluation.TestSet) -> dict[str, Any]:
    """One language's scores; None where its test file has no labels, and only predictions can be had."""
    if test.examples.labels is None:
        return {"n": len(test.examples), "score": None}
    score = evaluation.score(logits, test.examples, task.metrics, task.labels)
    low, high = intervals.interval(score.statistics, task.metrics[0])
    return {"n": score.n, "score": score.value, "ci95": [low, high], **score.others}


def require(facts: dict[str, Any], minimums: Sequence[str]) -> None:
    """Compare scores with what was promised.

    Raises:
        RecipeError: not of the form WHAT=SCORE, or nothing was measured under that name.
        ShortfallError: a score is below its minimum.
    """
    known = {
        **{
            language: row["score"] for language, row in facts["languages"].items() if row["score"] is not None
        },
        **{key: facts[key] for key in ("zero_shot_mean", "all_mean") if facts[key] is not None},
    }
    short = []
    for minimum in minimums:
        name, _, text = minimum.partition("=")
        try:
            wanted = float(text)
        except ValueError:
            wanted = float("nan")
        if not math.isfinite(wanted):
            raise RecipeError(f"--min {minimum}: expected WHAT=SCORE, such as zero_shot_mean=55")
        if name not in known:
            raise RecipeError(
                f"--min {minimum}: nothing was measured as {name!r}; {registry.nearest(name, list(known))}"
            )
        if known[name] < wanted:
            short.append(f"{name} is {known[name]:.2f}, promised {wanted:g}")
    if short:
        raise ShortfallError("; ".join(short))


def _range(interval: list[float | None]) -> str:
    low, high = interval
    return "–" if low is None or high is None else f"{low:.1f} – {high:.1f}"


def render(facts: dict[str, Any]) -> Any:
    """The scores as a table for the terminal."""
    from rich.table import Table

    cap = facts["max_test_examples"]
    title = f"{facts['task']}, {facts['form']}" + (f", a sample of {cap:,} of each" if cap else "")
    table = Table("language", "n", facts["metric"], "95 % interval", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for language, row in facts["languages"].items():
        shown = ("–", "no labels") if row["score"] is None else (f"{row['score']:.2f}", _range(row["ci95"]))
        table.add_row(language, f"{row['n']:,}", *shown)
    table.add_section()
    for name in ("zero_shot_mean", "all_mean"):
        if facts[name] is not None:
            table.add_row(name.replace("_", "-").replace("-mean", " mean"), "", f"{facts[name]:.2f}", "")
    return table

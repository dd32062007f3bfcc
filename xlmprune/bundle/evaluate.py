"""What `evaluate` and `predict` do with a bundle. ONNX Runtime and tokenizers only; PyTorch is not imported."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlmprune.bundle.session import Bundle
from xlmprune.core.errors import BundleError, RecipeError, ShortfallError
from xlmprune.core.files import REPORT_FILE
from xlmprune.core.formatting import DASH, decimals, number
from xlmprune.core.tables import rich_table, tabulate
from xlmprune.evaluation import intervals
from xlmprune.evaluation import scores as evaluation
from xlmprune.export import manifest
from xlmprune.recipe import registry
from xlmprune.recipe.loading import apply_overrides, read_recipe
from xlmprune.recipe.schema import TaskRecipe, sha256_of
from xlmprune.recipe.validation import validate_task, without_unread
from xlmprune.tasks.metrics import Logits


def evaluate(
    bundle: str | Path,
    languages: Sequence[str] = (),
    form: str = "",
    task: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    threads: int = 0,
    verify: bool = True,
) -> dict[str, Any]:
    """Measure a bundle with ONNX Runtime in every language.

    Args:
        bundle: the folder of a bundle.
        languages: measure only these.
        form: the ONNX file to measure, for example ``int8``; by default the first of fp32, fp16 and int8 that the
            bundle has. `predict` and `Predictor` use int8 by default.
        task: keys of the recipe's section ``task`` that differ from those of the run, for example
            ``{"path": "data/{language}.tsv"}``.
        verify: compare the files with the bundle's manifest first.

    Returns:
        ``form``, ``metric``, ``languages`` {code: {n, score, ci95}}, ``zero_shot_mean`` and ``all_mean``.
    """
    overrides = [f"task.{key}={json.dumps(value)}" for key, value in (task or {}).items()]
    return evaluate_bundle(Path(bundle), form, overrides, languages, batch_size, threads, verify=verify)


def open_bundle(path: Path, form: str = "", threads: int = 0, verify: bool = True) -> Bundle:
    """Open the bundle at ``path`` and check that it holds ``form``."""
    bundle = Bundle(path, threads, verify)
    bundle.named(form)
    return bundle


def task_of(path: Path, overrides: Sequence[str]) -> TaskRecipe:
    """Return the task a bundle was measured on, as its report says, with ``overrides`` such as ``task.path=…``."""
    file = path / REPORT_FILE
    try:
        report = manifest.read_json(file)
        values = _own_recipe(path, report.get("recipe_sha256")) or report["recipe"]
        if not (isinstance(values, dict) and isinstance(values.get("task"), dict)):
            raise BundleError("`recipe` has no `task`")
    except (FileNotFoundError, BundleError, KeyError) as error:
        raise BundleError(
            f"{file}: cannot be read ({error}); it says what task the bundle was measured on"
        ) from None
    for override in overrides:
        key = override.partition("=")[0]
        name = key.removeprefix("task.")
        if name == key or name.partition(".")[0] not in TaskRecipe.model_fields:
            known = [f"task.{field}" for field in TaskRecipe.model_fields]
            raise RecipeError(f"--set {override}: unknown key {key!r} here; {registry.nearest(key, known)}")
    given = apply_overrides(values, overrides)
    # An option may name another source than the run's, and older versions accepted more keys.
    task = without_unread(values["task"], kept=[str(path[1]) for path in given])
    return validate_task(task, str(file), given)


def _own_recipe(bundle: Path, sha256: str | None) -> dict[str, Any] | None:
    """Return the recipe beside a bundle that still lies in its run folder: unlike the report's, it has whole paths."""
    file = bundle.absolute().parent / "recipe.yaml"
    if file.is_file():
        with contextlib.suppress(RecipeError):
            found, _ = read_recipe(file)
            return found if sha256_of(found) == sha256 else None
    return None


def evaluate_bundle(
    path: Path,
    form: str = "",
    overrides: Sequence[str] = (),
    languages: Sequence[str] = (),
    batch_size: int = 64,
    threads: int = 0,
    predictions: Path | None = None,
    verify: bool = True,
) -> dict[str, Any]:
    """Score one form of a bundle on every language.

    Returns:
        ``form``, ``metric``, ``languages`` {code: {n, score, ci95, others…}}, ``zero_shot_mean``, ``all_mean``,
        ``max_test_examples`` (the cap a language, None for all).
    """
    bundle = open_bundle(path, form, threads, verify)
    if verify:
        manifest.require(path, REPORT_FILE)
    form = bundle.named(form)
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
            f"{path}: the bundle's labels are {list(bundle.labels)}; the labels of the data are {list(task.labels)}"
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
            short.append(f"{name} is {known[name]:.2f}, below the minimum {wanted:g}")
    if short:
        raise ShortfallError("; ".join(short))


def render(facts: dict[str, Any]) -> Any:
    """Return the scores as a table for the terminal."""
    cap = facts["max_test_examples"]
    columns: dict[str, Callable[[Any], str]] = {
        "language": lambda row: row["name"],
        "n": lambda row: "" if row["n"] is None else number(row["n"]),
        facts["metric"]: lambda row: decimals(row["score"]),
        "95 % interval": lambda row: _interval(row),
    }
    rows = [{"name": language, "style": "", **row} for language, row in facts["languages"].items()]
    rows += [
        {"name": name, "style": "mean", "n": None, "score": facts[key]}
        for key, name in (("zero_shot_mean", "zero-shot mean"), ("all_mean", "all-language mean"))
        if facts[key] is not None
    ]
    title = f"{facts['task']}, {facts['form']}" + (f", a sample of {cap:,} of each" if cap else "")
    return rich_table(tabulate(title, columns, rows, style=lambda row: row["style"]))


def _interval(row: dict[str, Any]) -> str:
    if "ci95" not in row:
        return "no labels" if row["score"] is None else ""
    low, high = row["ci95"]
    return DASH if low is None or high is None else f"{low:.1f} – {high:.1f}"

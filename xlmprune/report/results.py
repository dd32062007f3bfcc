"""What a run found, as the keys of report.json. Counting and averaging only; `report` makes pages of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.bundle.inspect import inspect
from xlmprune.core.files import SAFETENSORS_FILE, sha256_of
from xlmprune.core.formatting import timestamp
from xlmprune.core.languages import language_name
from xlmprune.core.machine import environment
from xlmprune.data.encoding import length_statistics
from xlmprune.evaluation import baselines, intervals
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.scores import Scores
from xlmprune.export.form import all_forms, form_named, form_to_serve
from xlmprune.export.writing import MeasuredForm, dense_bytes, drops_of
from xlmprune.models.loading import count_parameters, parameters_by_part
from xlmprune.pruning.masks import remaining
from xlmprune.pruning.structures import is_cut, layout_of
from xlmprune.recipe.loading import change_paths
from xlmprune.recipe.schema import TASK_TEXT
from xlmprune.report import findings, observations
from xlmprune.training import moments
from xlmprune.training.method import build_method

if TYPE_CHECKING:
    from xlmprune.recipe.schema import Recipe
    from xlmprune.training.outcome import Datasets, Outcome, Scored

SCHEMA_VERSION = 1

PAPERS_TASKS = ("xnli", "nc", "ner", "pos", "pawsx", "qam", "qadsm", "wpr")
PAPERS_EPOCHS = 15
"""What O'Neill et al. 2022 train in every stage."""


def assemble(
    recipe: Recipe,
    scored: Scored,
    data: Datasets,
    forms: Sequence[MeasuredForm],
    refused: Mapping[str, str],
    speed: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Build the report of a run. Every key of it was measured in this run, or is absent.

    Args:
        recipe: is part of the report, as a whole.
        forms: all that were measured, those in ``refused`` too.
        speed: by file, of the forms that ship.
        folder: the bundle, whose files are counted.
    """
    outcome, pruned, metric = scored.outcome, scored.scores, data.task.metrics[0]
    measured = {entry.form.key: entry for entry in forms}
    taught = recipe.distillation is not None and recipe.distillation.teaches_on_unlabelled
    languages = _languages(outcome, data, pruned, measured, data.unlabelled if taught else {})
    summed = summary(languages, data.train_language)
    served = _served(outcome, data, [entry for entry in forms if entry.form.name not in refused])
    worst = served.get("worst") or summed.get("worst")
    drawn = [data.train_language, *([worst["language"]] if worst else [])]
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "created": timestamp(),
        "recipe": without_machine_paths(recipe),
        "recipe_sha256": recipe.sha256(),
        "environment": environment(outcome.device),
        "scaled_down": scaled_down(recipe),
        "task": {**_task(data), **described(recipe)},
        "model": _model(outcome, data.max_length),
        "warnings": warnings(outcome, data),
        "languages": languages,
        "summary": summed,
        "stages": list(outcome.stages),
        "layers": list(outcome.layers),
        "files": _files(folder),
        "bytes_by_part": _bytes_by_part(folder),
        "dense_bytes": dense_bytes(outcome, forms),
        "speed": dict(speed),
        "parity": {key: _parity(entry) for key, entry in measured.items()},
        "paired": {
            language: intervals.paired(outcome.dense[language], score.statistics, metric)
            for language, score in pruned.items()
        },
        "text": {
            language: length_statistics(test.encoded, test.examples) for language, test in data.tests.items()
        },
        **observations.assemble(outcome, data, recipe.evaluation.sample_errors, drawn),
    }
    report["packed"] = [
        entry.form.file for entry in forms if entry.written.packed and entry.form.name not in refused
    ]
    for entry in forms:
        report["opset"] = entry.opset
        if entry.written.choice:
            report["quantization"] = entry.written.choice
    if served:
        report["shipped"] = served
    if outcome.size is not None:
        report["size"] = outcome.size
    if refused:
        report["refused"] = dict(refused)
    if forms and recipe.export.floor.limits:
        lost = {entry.form.key: dict(drops_of(entry, pruned)) for entry in forms}
        report["floor"] = {**recipe.export.floor.model_dump(), "lost": lost}
    if outcome.changes:
        report["changed_conditions"] = list(outcome.changes)
    if data.unlabelled:
        report["unlabelled"] = dict(data.unlabelled)
    used = [*target_text(recipe), *([] if data.moments is None else moments.describe(data.moments))]
    if used:
        report["target_text"] = used
    if data.moments is not None:
        report["moments"] = dict(data.moments)
    if outcome.vocabulary is not None:
        report["vocabulary"] = outcome.vocabulary
    if len(data.task.metrics) > 1:
        report["other_metrics"] = _other_metrics(outcome, data, pruned, measured)
    return report


def _parity(entry: MeasuredForm) -> dict[str, Any]:
    found: dict[str, Any] = entry.agreement.as_dict()
    return found if entry.alone is None else {**found, "alone": entry.alone.as_dict()}


def add_sizes(reports: Sequence[dict[str, Any]], folders: Sequence[str]) -> None:
    """Add `sizes` to the first of the reports of one run, a row for each; and what the floor refused in the others.

    Args:
        folders: of their bundles, in the run folder.
    """
    first, others = reports[0], list(zip(reports, folders, strict=True))[1:]
    first["sizes"] = [_size(report, folder) for report, folder in zip(reports, folders, strict=True)]
    refused = {
        f"{form} in {folder}": f"{folder}/{sentence}"
        for report, folder in others
        for form, sentence in report.get("refused", {}).items()
    }
    if refused:
        first["refused"] = first.get("refused", {}) | refused


def _size(report: Mapping[str, Any], folder: str) -> dict[str, Any]:
    summary = report["summary"]
    files = {form.name: form.file for form in all_forms().values() if form.file in report["files"]}
    row = {
        "size": report["size"],
        "bundle": folder,
        "parameters": report["model"]["structure"]["parameters"],
        "encoder_density": report["model"]["encoder_density"],
        "bytes": {form: report["files"][file]["bytes"] for form, file in files.items()},
        "median_ms": {
            form: report["speed"][file]["median_ms"]
            for form, file in files.items()
            if file in report["speed"]
        },
        "english": summary["english"]["pruned"],
        "zero_shot_mean": summary["zero_shot_mean"]["pruned"],
    }
    if "worst" in summary:
        score = report["languages"][summary["worst"]["language"]]["pruned"]
        row["worst"] = {**summary["worst"], "score": score}
        zero_shot = {
            code: entry for code, entry in report["languages"].items() if code != summary["train_language"]
        }
        row["lowest"] = min(entry["pruned"] for entry in zero_shot.values())
    return row


def _languages(
    outcome: Outcome,
    data: Datasets,
    pruned: Scores,
    measured: Mapping[str, MeasuredForm],
    unlabelled: Collection[str],
) -> dict[str, dict[str, Any]]:
    """Return the row of each language.

    Args:
        unlabelled: languages whose text taught the student without labels; none if it is empty.
    """
    metric = data.task.metrics[0]
    rows: dict[str, dict[str, Any]] = {}
    for language, score in pruned.items():
        dense = float(metric.value(outcome.dense[language].sum(axis=0)))
        row: dict[str, Any] = {
            "n": score.n,
            "metric": metric.name,
            "dense": dense,
            "pruned": score.value,
            "delta": score.value - dense,
            "ci95": list(intervals.interval(score.statistics, metric)),
        }
        row |= {key: entry.scores[language].value for key, entry in measured.items()}
        if found := baselines.baselines(data.tests[language].examples, metric, data.task.labels):
            row |= {"majority": found.majority, "chance": found.chance}
        if unlabelled:
            row["seen_unlabelled"] = language in unlabelled
        rows[language] = row
    return rows


def _served(outcome: Outcome, data: Datasets, shipped: Sequence[MeasuredForm]) -> dict[str, Any]:
    """Return how the form that serves first differs from the dense model on every language; empty where none ships.

    Returns:
        ``key``, ``file``; ``languages`` {code: {``delta``, ``ci95``}}; ``paired`` as in the report; ``worst``.
    """
    metric, name = data.task.metrics[0], form_to_serve(entry.form.name for entry in shipped)
    served = next((entry for entry in shipped if entry.form.name == name), None)
    if served is None:
        return {}
    languages, paired = {}, {}
    for language, score in served.scores.items():
        dense = outcome.dense[language]
        languages[language] = {
            "delta": score.value - float(metric.value(dense.sum(axis=0))),
            "ci95": list(intervals.interval(score.statistics, metric)),
        }
        paired[language] = intervals.paired(dense, score.statistics, metric)
    found = {"key": served.form.key, "file": served.form.file, "languages": languages, "paired": paired}
    return found | _worst(languages, data.train_language)


def _worst(languages: Mapping[str, Mapping[str, Any]], train_language: str) -> dict[str, Any]:
    """Return the zero-shot language of the smallest ``delta``, as ``worst``; nothing without one."""
    deltas = {code: row["delta"] for code, row in languages.items() if code != train_language}
    if not deltas:
        return {}
    worst = min(deltas, key=lambda code: deltas[code])
    return {"worst": {"language": worst, "delta": deltas[worst]}}


def warnings(outcome: Outcome, data: Datasets) -> list[str]:
    """Say what makes the report's figures meaningless: a dense model that is not above its baselines."""
    task, language = data.task, data.train_language
    found = baselines.baselines(data.tests[language].examples, task.metrics[0], task.labels)
    dense = outcome.dense[language]
    if found is None or not baselines.learned_nothing(dense, task.metrics[0], found):
        return []
    value = float(task.metrics[0].value(dense.sum(axis=0)))
    return [baselines.describe(value, found, f"{language_name(language)} test") + "."]


def _other_metrics(
    outcome: Outcome, data: Datasets, pruned: Scores, measured: Mapping[str, MeasuredForm]
) -> dict[str, dict[str, Any]]:
    """{metric: {language: {dense, pruned, onnx_…}}} of the task's further metrics."""
    names = [metric.name for metric in data.task.metrics[1:]]
    return {
        name: {
            language: {
                "dense": outcome.dense_others[language][name],
                "pruned": score.others[name],
                **{key: entry.scores[language].others[name] for key, entry in measured.items()},
            }
            for language, score in pruned.items()
        }
        for name in names
    }


def summary(languages: Mapping[str, Mapping[str, Any]], train_language: str) -> dict[str, Any]:
    """English, the zero-shot mean, the mean of all, and the language that lost most. The train language is never
    in the zero-shot mean."""
    columns = [key for key in (*findings.scored(), *findings.BASELINES) if key in languages[train_language]]

    def means(of: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
        return {column: evaluation.mean(row[column] for row in of.values()) for column in columns}

    zero_shot = {language: row for language, row in languages.items() if language != train_language}
    summary: dict[str, Any] = {
        "train_language": train_language,
        "english": {column: languages[train_language][column] for column in columns},
        "zero_shot_mean": means(zero_shot),
        "all_mean": means(languages),
        "zero_shot_languages": len(zero_shot),
    }
    return summary | _worst(languages, train_language)


def described(recipe: Recipe) -> dict[str, Any]:
    """Return what the recipe says about the data: their revision, title and licence, those that it gives."""
    task = recipe.task
    given = {"title": task.title, "licence": task.licence}
    return {"revision": task.revision, **{key: text for key, text in given.items() if text is not None}}


def _travelling(notes: tuple[str, ...], origin: str) -> list[str]:
    """Return notes without the path of this machine."""
    return [note.replace(origin, _shortened(origin)) if origin else note for note in notes]


def _task(data: Datasets) -> dict[str, Any]:
    task = data.task
    notes = {
        language: _travelling(test.examples.notes, test.examples.origin)
        for language, test in data.tests.items()
        if test.examples.notes
    }
    return {
        "name": task.name,
        "kind": task.kind,
        "labels": list(task.labels),
        "licence": task.licence,
        "train_examples": len(data.train),
        "train_origin": _shortened(data.train_origin),
        "train_notes": _travelling(data.train_notes, data.train_origin),
        "notes": notes,
    }


def _model(outcome: Outcome, max_length: int) -> dict[str, Any]:
    parameters, by_part = count_parameters(outcome.model), parameters_by_part(outcome.model)
    remain, prunable = remaining(outcome.masks.values())
    left, whole = parameters - (prunable - remain), outcome.whole
    return {
        "name": outcome.origin["name"],
        "revision": outcome.origin["revision"],
        "licence": outcome.origin["licence"],
        "type": outcome.model.config.model_type,
        "parameters": whole.parameters,
        "prunable": whole.prunable,
        "remaining": left,
        "encoder_density": outcome.encoder_density,
        "model_density": left / whole.parameters,
        "parameters_by_part": by_part,
        "max_length": max_length,
        **({"structure": _structure(outcome)} if is_cut(outcome.model) else {}),
    }


def _structure(outcome: Outcome) -> dict[str, Any]:
    """Return the sizes that the layers have, and those that they had."""
    layout, model = layout_of(outcome.model), outcome.model
    whole = outcome.whole.layout
    return {
        **layout.record(),
        "parameters": count_parameters(model),
        "stock": layout.is_stock(model.config),
        "whole": {
            "layers": len(whole.layers),
            "heads": whole.layers[0].heads,
            "neurons": whole.layers[0].neurons,
        },
        **({} if outcome.budget is None else {"budget": dict(outcome.budget)}),
    }


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of what ships, the report itself and the manifest aside."""
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _bytes_by_part(folder: Path) -> dict[str, int]:
    """Bytes of the shipped weights by part of the model, as `model.safetensors` holds them."""
    return inspect(folder / SAFETENSORS_FILE)["bytes_by_part"]


def target_text(recipe: Recipe) -> list[str]:
    """Say, in sentences, for what the task's own text of zero-shot languages was read, without its labels."""
    vocabulary = recipe.model.trimmed
    asked = {
        "count the vocabulary": vocabulary and vocabulary.keep_languages_of,
        "learn the teacher's answers": recipe.distillation
        and recipe.distillation.teaches_on_unlabelled
        and recipe.distillation.unlabelled,
        "calibrate quantization": recipe.export.calibration
        if any(form_named(name).calibrated for name in recipe.export.onnx)
        else None,
    }
    return [
        f"the task's own text of the zero-shot languages was used to {use}, without labels and without test text"
        + (", with machine translations of the training set" if pattern != "task" else "")
        for use, pattern in asked.items()
        if pattern in TASK_TEXT
    ]


def scaled_down(recipe: Recipe) -> list[str]:
    """Say what was capped, in sentences."""
    capped = []
    if recipe.task.max_train_examples is not None:
        capped.append(f"a sample of at most {recipe.task.max_train_examples} training examples")
    if recipe.task.max_test_examples is not None:
        capped.append(
            f"a sample of at most {recipe.task.max_test_examples} test examples per language, and of at most as many dev "
            "examples"
        )
    if recipe.training.max_updates_per_stage is not None:
        capped.append(f"at most {recipe.training.max_updates_per_stage} updates per stage")
    capped += _few_epochs(recipe)
    if recipe.evaluation.max_stage_examples is not None:
        capped.append(
            f"the curve over stages takes at most {recipe.evaluation.max_stage_examples} test examples a language; "
            "dense, pruned and ONNX scores use all"
        )
    return capped


def _few_epochs(recipe: Recipe) -> Iterator[str]:
    """Say how long every stage trains, if one trains for less than an epoch, or for less than the paper on a task of it."""
    training, papers = recipe.training, recipe.task.name in PAPERS_TASKS
    every = training.epochs_per_stage
    dense = every if training.dense_epochs is None else training.dense_epochs
    last = every if training.last_epochs is None else training.last_epochs
    later = len(build_method(recipe.pruning, recipe.regularizer).densities) - 1
    stages = {"in the dense stage": dense}
    if later == 1:
        stages["in the pruned stage"] = last
    elif later and training.last_epochs is None:
        stages["in each later stage"] = every
    elif later:
        stages |= {"in each later stage but the last": every, "in the last stage": last}
    if not any(0 < epochs < 1 or (papers and epochs < PAPERS_EPOCHS) for epochs in stages.values()):
        return
    if later and len(set(stages.values())) == 1:
        stages = {"in every stage": every}
    said = ", ".join(f"{_epochs(epochs)} {which}" for which, epochs in stages.items())
    usual = "the paper trains" if papers else "the default, as in the paper, is"
    yield f"{said} ({usual} {PAPERS_EPOCHS} in every stage)"


def _epochs(count: float) -> str:
    return f"{count:g} of an epoch" if 0 < count < 1 else f"{count:g} {'epoch' if count == 1 else 'epochs'}"


def without_machine_paths(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe; absolute paths are shortened, since a bundle is used on other machines."""
    values = recipe.resolved()
    change_paths(values, lambda _, path: path and _shortened(path))
    return values


def _shortened(path: str) -> str:
    """Shorten an absolute path: relative to the working directory where it lies below it, else its last two parts."""
    if not Path(path).is_absolute():
        return path
    if Path(path).is_relative_to(Path.cwd()):
        return Path(path).relative_to(Path.cwd()).as_posix()
    return "/".join(Path(path).parts[-2:])

"""The headline of a report: what the form that serves first has in bytes, speed and scores, and what a budget foresaw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from xlmprune.core.formatting import count_of, difference, is_known, number, percent, points, score, size
from xlmprune.core.languages import language_name
from xlmprune.export.form import DENSE_MODEL, Form, all_forms, reference
from xlmprune.report import findings
from xlmprune.report.findings import Report, listed_form
from xlmprune.report.method import lost_structures, lost_weights, packed_files

CONDITIONS = ("batch", "tokens", "threads")


@dataclass(frozen=True)
class Change:
    """A score of the dense model, and what it has become."""

    name: str
    dense: float
    now: float
    style: str
    """``mean``, ``train`` or ``worst``, as in `findings.Row`."""

    @property
    def delta(self) -> float:
        """Points gained, of the scores as shown."""
        shown = difference(self.dense, self.now)
        assert shown is not None
        return shown

    def __str__(self) -> str:
        return f"{score(self.dense)} → {score(self.now)} ({points(self.delta)} points)"


@dataclass(frozen=True)
class Tile:
    """One figure at the head of the page."""

    figure: str
    caption: str
    style: str = ""
    """``lost`` or ``gained`` for a difference of scores."""


def columns_of(count: int) -> int:
    """Return in how many columns so many tiles stand, at most five, so that none is alone in the last row."""
    rows = max(1, math.ceil(count / 5))
    return max(1, math.ceil(count / rows))


def describe_model(report: Report) -> str:
    """Name the model and its task, for a heading; the run's name where the report has neither."""
    recipe, task = report.get("recipe") or {}, report.get("task") or {}
    base = (report.get("model") or {}).get("name") or (recipe.get("model") or {}).get("name")
    if not base:
        return str(report.get("name", "xlmprune run"))
    name = PurePath(findings.HUB_IDS.get(base, base)).name
    of_task = task.get("title") or task.get("name") or (recipe.get("task") or {}).get("name")
    return f"{name} for {of_task}" if of_task else name


def describe_shipped(report: Report) -> str:
    """Size, speed, zero-shot mean, worst and train language of the form that serves first; empty where no form ships."""
    form = listed_form(report)
    if form is None:
        return ""
    said = [f"Shipped: {form.file} has {size(report['files'][form.file]['bytes'])}{_share(report, form)}."]
    if speed := _describe_speed(report, form):
        said.append(speed)
    found = {change.style: change for change in changes(report, form.key)}
    if mean := found.get("mean"):
        said.append(
            f"Its zero-shot mean over {count_of(findings.zero_shot_count(report), 'language')} is {score(mean.now)}; the "
            f"dense model has {score(mean.dense)} ({points(mean.delta)} points)."
        )
    worst, train = found.get("worst"), found.get("train")
    if worst:
        said.append(f"Its worst zero-shot language is {worst.name}: {worst}.")
    if missing := findings.describe_unscored(report, form.key):
        said.append(missing)
    elif mean and not worst:
        said.append("No zero-shot language lost accuracy.")
    if mean and train:
        lost_more = train.delta < min(0.0, worst.delta if worst else 0.0)
        said.append(f"{train.name}, the train language{', lost more' if lost_more else ''}: {train}.")
    return " ".join(said)


def changes(report: Report, key: str) -> list[Change]:
    """Return the zero-shot mean, the language that lost most and the train language, in the scores of ``key``.

    Args:
        key: as in `findings.scored`, ``onnx_int8`` for example.
    """
    train, found = findings.train_language(report), []
    mean = report.get("summary", {}).get("zero_shot_mean") or {}
    if is_known(mean.get("dense")) and is_known(mean.get(key)):
        found.append(Change(findings.ZERO_SHOT_MEAN, mean["dense"], mean[key], "mean"))
    scores = {
        code: Change(language_name(code), entry["dense"], entry[key], "worst")
        for code, entry in report.get("languages", {}).items()
        if is_known(entry.get("dense")) and is_known(entry.get(key))
    }
    of_train = scores.pop(train, None) if train else None
    worst = min(scores.values(), key=lambda change: change.delta, default=None)
    if train and worst and worst.delta <= findings.NO_LOSS:
        found.append(worst)
    if of_train:
        found.append(Change(of_train.name, of_train.dense, of_train.now, "train"))
    return found


def tiles(report: Report) -> list[Tile]:
    """Return the figures of the headline: of the form that serves first, then what remains, then the other files."""
    form, shown = listed_form(report), []
    if form is not None:
        shown.append(Tile(size(report["files"][form.file]["bytes"]), f"{form.file}{_share(report, form)}"))
        ratio = _speedup(report, form)
        if ratio is not None:
            shown.append(Tile(f"{ratio:.3g}×", f"{form.title}: the speed of {_baseline(report)}"))
    title = f"{form.title}: " if form is not None else ""
    for change in changes(report, "pruned" if form is None else form.key):
        worst = "worst zero-shot language, " if change.style == "worst" else ""
        caption = f"{title}{worst}{change.name}, {score(change.dense)} → {score(change.now)}"
        style = "lost" if change.delta < 0 else "gained" if change.delta > 0 else ""
        shown.append(Tile(points(change.delta), caption, style))
    model = report.get("model", {})
    for key, caption in (
        ("encoder_density", "of the encoder's weights remain"),
        ("model_density", "of the whole model remains"),
    ):
        if model.get(key) is not None:
            shown.append(Tile(percent(model[key]), caption))
    for other in all_forms().values():
        if other != form and other.file in report.get("files", {}):
            bytes_ = report["files"][other.file]["bytes"]
            shown.append(Tile(size(bytes_), f"{other.file}{_share(report, other)}"))
    return shown


def describe_budget(report: Report) -> str:
    """Say what a budget asked for and predicted, and beside it what was measured; empty without a budget."""
    budget = (report.get("model", {}).get("structure") or {}).get("budget")
    if not budget:
        return ""
    asked, predicted, form = budget["asked"], budget["predicted"], all_forms().get(budget["asked"]["form"])
    name = "" if form is None else form.file
    limits = [
        *([f"at most {asked['latency_ms']:g} ms"] if asked["latency_ms"] is not None else []),
        *(
            [f"at least {asked['speedup']:g} times the speed of {DENSE_MODEL}"]
            if asked["speedup"] is not None
            else []
        ),
        *([f"at most {size(asked['bytes'])}"] if asked["bytes"] is not None else []),
    ]
    said = (
        f"Before training, the layer sizes were chosen so that the {asked['form']} file meets this budget: "
        f"{', '.join(limits)}"
    )
    held = report.get("files", {}).get(name, {}).get("bytes")
    foreseen = [f"{size(predicted['bytes'])} without packing{_measured(size(held) if held else '')}"]
    if held and name not in packed_files(report):
        foreseen = [f"{size(predicted['bytes'])}{_measured(size(held))}"]
    if predicted["latency_ms"] is None:
        return f"{said}. The prediction was {foreseen[0]}."
    timed = report.get("speed", {}) if DENSE_MODEL in report.get("speed", {}) else {}
    own = timed.get(name, {})
    milliseconds, ratio = own.get("median_ms"), own.get("speedup")
    foreseen = [
        f"{predicted['latency_ms']:.3g} ms{_measured(f'{milliseconds:.3g} ms' if milliseconds else '')}",
        f"{predicted['speedup']:.3g} times the speed of {DENSE_MODEL}{_measured(f'{ratio:.3g} times' if ratio else '')}",
        *foreseen,
    ]
    return (
        f"{said} ({_describe_conditions(asked)}). The prediction was {', '.join(foreseen[:-1])}, and {foreseen[-1]}."
        f"{_describe_other_conditions(asked, own)}"
    )


def _measured(figure: str) -> str:
    return f" (measured: {figure})" if figure else ""


def _describe_other_conditions(asked: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Say under which conditions the file was timed, where they are not those of the budget."""
    if all(own.get(key, asked[key]) == asked[key] for key in CONDITIONS):
        return ""
    return f" The file was timed with {_describe_conditions(own)}."


def _describe_conditions(of: Mapping[str, Any]) -> str:
    said = {"batch": "batch {}", "tokens": "{} tokens", "threads": "threads: {}"}
    return ", ".join(text.format(of[key]) for key, text in said.items() if of.get(key) is not None)


def _share(report: Report, form: Form) -> str:
    dense = findings.dense_file_bytes(report)
    return f", {percent(report['files'][form.file]['bytes'] / dense)} of {DENSE_MODEL}" if dense else ""


def _speedup(report: Report, form: Form) -> float | None:
    """Return the speedup of a form, if it was compared with something else."""
    timed = report.get("speed", {})
    return timed.get(form.file, {}).get("speedup") if form.file != next(iter(timed), None) else None


def _baseline(report: Report) -> str:
    """Name what the files were compared with in speed: the dense fp32 model, or a file."""
    first = next(iter(report.get("speed", {})))
    is_whole = first == reference().file and not lost_structures(report) and not lost_weights(report)
    return DENSE_MODEL if is_whole else first


def _describe_speed(report: Report, form: Form) -> str:
    own, ratio = report.get("speed", {}).get(form.file), _speedup(report, form)
    if not own or own.get("median_ms") is None:
        return ""
    texts = "a call" if own.get("batch") is None else count_of(own["batch"], "text")
    if own.get("tokens") is not None:
        texts += f" of {own['tokens']} tokens"
    threads = f" with {count_of(own['threads'], 'thread')}" if own.get("threads") is not None else ""
    said = f"It takes {number(own['median_ms'])} ms (median) for {texts}{threads}"
    if ratio is None:
        return f"{said}."
    baseline = _baseline(report)
    why = ""
    if baseline == reference().file and not lost_structures(report):
        why = f" {baseline} is as fast as {DENSE_MODEL}, because zeros take the same time."
    return f"{said} and is {ratio:.3g} times as fast as {baseline} (median ratio of calls in turns).{why}"

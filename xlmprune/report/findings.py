"""A report's figures and sentences, made once so that every form of it says the same.

Everything here reads the plain values of `plain`: a number that is not finite is None, and None shows as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from xlmprune.core.files import SAFETENSORS_FILE
from xlmprune.core.formatting import amount, count_of, difference, number, percent, points, score, size
from xlmprune.core.languages import language_name
from xlmprune.evaluation.collapse import COLLAPSE, collapsed
from xlmprune.export.floor import DECIDED_ON
from xlmprune.export.form import DENSE_MODEL, Form, all_forms, form_to_serve, reference
from xlmprune.models import architecture
from xlmprune.recipe.schema import DistillationRecipe

Report = Mapping[str, Any]

SHOWN = 6
"""Names in a sentence; the others are counted."""

MODELS = {"dense": "dense", "pruned": "pruned"}
"""The PyTorch models that are scored, in their order."""

BASELINES = ("majority", "chance")
"""Scores that need no model: always the most frequent label, and guessing."""

NO_LOSS = -0.05
"""A smaller loss in points shows as 0.0."""

HUB_IDS = {"quickstart": "intfloat/multilingual-e5-small"}
"""Where a model that goes by another name here comes from."""

ZERO_SHOT_MEAN = "Zero-shot mean"

TRIMMED = "Trimmed vocabulary"
"""Title of the table of tokens before and after trimming."""

# --- what the report says -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table of languages."""

    code: str
    name: str
    n: int | None
    scores: dict[str, float | None]
    """Percent, by what was scored (see `scored`)."""
    delta: float | None
    """Points gained by what `shown_key` names, of the scores as shown."""
    interval: tuple[float, float] | None
    """95 % of the score of what `tested_key` names."""
    paired: Mapping[str, Any] | None
    seen_unlabelled: bool | None
    """Whether unlabelled text of the language was learnt from; None in a run that used none."""
    style: str
    """``train``, ``worst``, ``mean`` or ``other``."""
    baseline: float | None = None
    """The higher score of always giving the most frequent label and of guessing."""


@cache
def scored() -> dict[str, str]:
    """Whatever a report has scores of, with its title: the models, then each ONNX form."""
    return MODELS | {form.key: f"ONNX {form.title}" for form in all_forms().values()}


def title_of(key: str) -> str:
    """Return the heading over the scores of ``key``; a form of a newer version goes by its name."""
    return scored().get(key, key.replace("onnx_", "ONNX "))


@cache
def model_files() -> frozenset[str]:
    """Return the files that hold the model."""
    return frozenset({form.file for form in all_forms().values()} | {SAFETENSORS_FILE})


def columns(report: Report) -> dict[str, str]:
    """Return what any language was scored in, with titles; unknown ONNX forms follow the known ones."""
    entries = report.get("languages", {}).values()
    found = dict.fromkeys(
        key for entry in entries for key in entry if key in MODELS or key.startswith("onnx_")
    )
    known = [key for key in scored() if key in found]
    return {key: title_of(key) for key in dict.fromkeys([*known, *found])}


def served_form(report: Report) -> Form | None:
    """Return the form to serve first, of those that ship; None where none does. Any may ship where no files are listed."""
    forms = all_forms()
    shipped = [name for name, form in forms.items() if "files" not in report or form.file in report["files"]]
    return forms.get(form_to_serve(shipped))


def listed_form(report: Report) -> Form | None:
    """Return the form that serves first, if the report lists its file."""
    form = served_form(report)
    return form if form is not None and form.file in report.get("files", {}) else None


def shown_key(report: Report) -> str:
    """Return whose scores losses are measured by: of the form that serves first, or of the pruned model where none ships."""
    form = listed_form(report)
    scored_in = report.get("languages", {}).values()
    return form.key if form is not None and any(form.key in entry for entry in scored_in) else "pruned"


def tested_key(report: Report) -> str:
    """Return whose intervals and paired tests are shown. Reports of older versions have those of the pruned model alone."""
    key = (report.get("shipped") or {}).get("key")
    return key if key == shown_key(report) else "pruned"


def paired_tests(report: Report) -> Mapping[str, Any]:
    """Return the paired test of every language, of what `tested_key` names."""
    holder = report if tested_key(report) == "pruned" else report["shipped"]
    return holder.get("paired") or {}


def shown_title(key: str) -> str:
    """Return the heading of the scores that losses are measured by."""
    return "pruned" if key == "pruned" else f"{title_of(key).removeprefix('ONNX ')} shipped"


def name_tested(report: Report) -> str:
    """Name what `tested_key` returns, in a sentence."""
    key = tested_key(report)
    if key != "pruned":
        return f'"{shown_title(key)}"'
    return "the pruned model" if shown_key(report) == "pruned" else "the pruned model before export"


def rows(report: Report) -> list[Row]:
    """Return the train language, then the others from the largest loss to the largest gain."""
    train, worst, key = train_language(report), worst_language(report), shown_key(report)
    tests, shipped = paired_tests(report), (report.get("shipped") or {}).get("languages", {})
    listed = []
    for code, entry in report.get("languages", {}).items():
        interval = (entry if tested_key(report) == "pruned" else shipped.get(code, {})).get("ci95")
        listed.append(
            Row(
                code=code,
                name=language_name(code),
                n=entry.get("n"),
                scores={key: entry.get(key) for key in columns(report)},
                delta=shown_delta(entry, key),
                interval=None if not interval or None in interval else (interval[0], interval[1]),
                paired=tests.get(code),
                seen_unlabelled=entry.get("seen_unlabelled"),
                style="train" if code == train else "worst" if code == worst else "other",
                baseline=baseline_of(entry),
            )
        )
    return sorted(
        listed, key=lambda row: (row.style != "train", math.inf if row.delta is None else row.delta)
    )


def mean_rows(report: Report) -> list[Row]:
    """Return the zero-shot mean and the mean of all languages, as far as the summary has them."""
    summary = report.get("summary", {})
    listed = []
    for key, name in (("zero_shot_mean", ZERO_SHOT_MEAN), ("all_mean", "All-language mean")):
        means = summary.get(key) or {}
        if means.get("dense") is not None:
            delta = difference(means["dense"], means.get(shown_key(report)))
            listed.append(Row("", name, None, means, delta, None, None, None, "mean", baseline_of(means)))
    return listed


def shown_delta(entry: Mapping[str, Any], key: str) -> float | None:
    """Return what a language gained in points: the difference of its scores as shown, where they are known."""
    shown = difference(entry.get("dense"), entry.get(key))
    return entry.get("delta") if shown is None and key == "pruned" else shown


def baseline_of(entry: Mapping[str, Any]) -> float | None:
    """Return the higher of the two scores that need no model."""
    known = [entry[key] for key in BASELINES if entry.get(key) is not None]
    return max(known, default=None)


def describe_baselines(report: Report) -> str:
    """Say what the scores have to beat; empty without baselines."""
    found = [row.baseline for row in rows(report) if row.baseline is not None]
    if not found:
        return ""
    low, high = score(min(found)), score(max(found))
    return "Baseline (the higher score of guessing and of always giving the most frequent label): " + (
        f"{low} to {high}." if low != high else f"{low}."
    )


def describe_curve(report: Report) -> str:
    """Say that the curves use fewer test examples than the table, if they do."""
    cap = report.get("recipe", {}).get("evaluation", {}).get("max_stage_examples")
    most = max((entry.get("n") or 0 for entry in report.get("languages", {}).values()), default=0)
    if cap is None or cap >= most:
        return ""
    return f"The curves use a sample of {cap} test examples of each language, and the table uses all, so the two can differ."


def describe_density(report: Report) -> str:
    """How much is left of the encoder and of the whole model, and why the two differ; empty without the counts."""
    model = report.get("model", {})
    density = model.get("encoder_density")
    if density is None:
        return ""
    if not (model.get("prunable") and model.get("parameters")):
        return f"{percent(density)} of the encoder's weights remain ({percent(1 - density)} sparsity)."
    return (
        f"The encoder's matrices had {amount(model['prunable'])} of the model's {amount(model['parameters'])} parameters; "
        f"{percent(density)} of them remain ({percent(1 - density)} sparsity). Embeddings and head are not pruned, so "
        f"{percent(model.get('model_density'))} of the whole model remains."
    )


def describe_sizes(report: Report) -> str:
    """Say that the model is one of several sizes that were trained as one; empty where one size was trained."""
    size = report.get("size")
    if size is None:
        return ""
    smallest = report.get("recipe", {}).get("pruning", {}).get("structure", {}).get("smallest")
    return (
        f"One run trained every size from 1 to {number(smallest)}, and each smaller model is a part of the larger ones. "
        f"This bundle has size {number(size)}, the share of the trained heads and neurons."
    )


def describe_vocabulary(report: Report) -> str:
    """Say what trimming the vocabulary took away; empty where it was kept."""
    trim = report.get("vocabulary") or {}
    if not trim.get("pieces"):
        return ""
    return (
        f"Before training, the vocabulary was trimmed to the served languages, from {number(trim.get('pieces_before'))}"
        f" pieces to {number(trim['pieces'])}. This removed {amount(trim.get('parameters_removed'))} parameters. The figures"
        ' above do not count them. "Dense" is the model that was fine-tuned after this, so differences from dense leave out '
        f"what the trimming cost.{_where_tokens_are(trim)}"
    )


def _where_tokens_are(trim: Mapping[str, Any]) -> str:
    if not trim.get("languages"):
        return ""
    return f' The table "{TRIMMED}" of the report has the tokens of every language before and after.'


def describe_scores(report: Report) -> str:
    """Say what pruning cost: the zero-shot mean, the train language, the worst zero-shot language; empty without them.

    Where a form ships, `shipped.describe_shipped` says this of the form. Then only the scores before export are left to say.
    """
    if shown_key(report) != "pruned":
        return _describe_scores_before_export(report)
    listed = rows(report)
    said = [
        (f"{row.name} over {count_of(zero_shot_count(report), 'language')}", row)
        for row in mean_rows(report)
        if row.name == ZERO_SHOT_MEAN
    ]
    said += [(row.name, row) for row in listed if row.style == "train"]
    said += [(f"The worst zero-shot language, {row.name}", row) for row in listed if row.style == "worst"]
    told = [
        f"{name}: {score(row.scores.get('dense'))} → {score(row.scores.get('pruned'))} ({points(row.delta)} points)."
        for name, row in said
        if row.delta is not None
    ]
    missing = describe_unscored(report, "pruned")
    if missing:
        told.append(missing)
    elif zero_shot_count(report) and "worst" in report.get("summary", {}) and worst_language(report) is None:
        told.append("No zero-shot language lost accuracy.")
    if not told:
        return ""
    return " ".join(["These scores are of the pruned PyTorch model, dense → pruned.", *told])


def describe_unscored(report: Report, key: str) -> str:
    """Say how many zero-shot languages have no score in ``key`` or none of the dense model; empty where all have both."""
    entries = [entry for code, entry in report.get("languages", {}).items() if code != train_language(report)]
    count = sum(difference(entry.get("dense"), entry.get(key)) is None for entry in entries)
    if not count:
        return ""
    have = "has" if count == 1 else "have"
    return (
        f"{count} of {count_of(len(entries), 'zero-shot language')} {have} no score, and may have lost more."
    )


def _describe_scores_before_export(report: Report) -> str:
    summary = report.get("summary", {})
    train = train_language(report)
    found = {
        f"the zero-shot mean over {count_of(zero_shot_count(report), 'language')}": summary.get(
            "zero_shot_mean"
        ),
        language_name(train or ""): report.get("languages", {}).get(train),
    }
    told = [
        f"{name} {score(entry['dense'])} → {score(entry['pruned'])} ({points(shown_delta(entry, 'pruned'))} points)"
        for name, entry in found.items()
        if entry and entry.get("dense") is not None and entry.get("pruned") is not None
    ]
    return f"Before export, the pruned PyTorch model had, dense → pruned: {', '.join(told)}." if told else ""


def describe_gains(report: Report) -> str:
    """Say that a gain over dense may come from the training after it; empty where no language gained, or none followed."""
    stages = _trained_later(report)
    gained = any((row.delta or 0.0) > 0 for row in rows(report))
    if not stages or not gained:
        return ""
    taught = " and with a teacher" if _has_teacher(report) else ""
    pruning = (report.get("recipe") or {}).get("pruning") or {}
    if (pruning.get("schedule") or {}).get("restart") and pruning.get("pattern") != "structured":
        return (
            "A gain over dense may come from the training: the pruned model was trained anew from the pretrained weights"
            f"{taught}."
        )
    return (
        "A gain over dense may come from further training: the dense model was measured after stage 0, and the pruned model "
        f"was trained for {count_of(stages, 'more stage')}{taught}."
    )


def _has_teacher(report: Report) -> bool:
    """Return whether a part of the loss came from a teacher."""
    found = (report.get("recipe") or {}).get("distillation")
    return isinstance(found, Mapping) and DistillationRecipe.model_construct(**found).teaches


def describe_unlabelled(report: Report) -> str:
    """Which languages gave text without labels to learn from, and how both groups fared; empty where none did."""
    train = train_language(report)
    zero_shot = {code: entry for code, entry in report.get("languages", {}).items() if code != train}
    seen = [entry for entry in zero_shot.values() if entry.get("seen_unlabelled")]
    if not seen:
        return ""
    said = (
        f"The model also learned from unlabelled text in {len(seen)} of the {len(zero_shot)} zero-shot languages, so "
        "zero-shot here means without labels"
    )
    unseen = [entry for entry in zero_shot.values() if not entry.get("seen_unlabelled")]
    if not unseen:
        return f"{said}."
    key = shown_key(report)
    seen, unseen = (
        [entry for entry in group if difference(entry.get("dense"), entry.get(key)) is not None]
        for group in (seen, unseen)
    )
    groups = [
        f"{name} {score(_mean(group, 'dense'))} → {score(_mean(group, key))}"
        for name, group in (("languages with text", seen), ("languages without text", unseen))
    ]
    return f"{said}. Means: {', '.join(groups)}."


def describe_read_text(report: Report) -> str:
    """Say what was read in the languages that were not trained on: no text, or text without labels, and what for."""
    train, languages = train_language(report), report.get("languages", {})
    name = language_name(train) if train else "the train language"
    taught = any(entry.get("seen_unlabelled") for code, entry in languages.items() if code != train)
    uses = _uses_of_text(report)
    if not taught and not uses:
        return f"Every language but {name} was only evaluated."
    said = f"No labels but those in {name} were used; unlabelled text was"
    if taught:
        said += ", in the languages marked below, to learn a teacher's answers"
    else:
        said += " in other languages"
    if uses:
        *first, last = uses
        listed = f"{', '.join(first)} and {last}" if first else last
        said += f"; such text was also read {listed}" if taught else f", {listed}"
    trained = taught or "moments" in report
    return f"{said}." if trained else f"{said}; no model was trained on it."


def _uses_of_text(report: Report) -> list[str]:
    """Return what text of other languages was read for, beside a teacher's answers."""
    recipe = report.get("recipe") or {}
    vocabulary = recipe.get("model", {}).get("vocabulary")
    vocabulary = vocabulary if isinstance(vocabulary, Mapping) else {}
    floor = (recipe.get("export") or {}).get("floor") or {}
    limited = any(floor.get(key) is not None for key in ("zero_shot_drop", "worst_language_drop"))
    measured = set((report.get("moments") or {}).get("texts", ())) - {train_language(report)}
    uses = {
        "to rank or refit weights": measured,
        "to choose the vocabulary": vocabulary.get("keep_languages_of") or vocabulary.get("files"),
        "to calibrate INT8": _calibrated_on_others(report),
        "to decide which files ship": floor.get("on") == "unlabelled" and limited,
    }
    return [use for use, is_read in uses.items() if is_read]


def _calibrated_on_others(report: Report) -> bool:
    choice = report.get("quantization") or {}
    if "texts" in choice:
        return bool(set(choice["texts"]) - {"train", train_language(report)})
    # Bundles of older versions do not say what was read.
    recipe = report.get("recipe") or {}
    vocabulary = recipe.get("model", {}).get("vocabulary")
    files = vocabulary.get("files") or () if isinstance(vocabulary, Mapping) else ()
    export, distillation = recipe.get("export") or {}, recipe.get("distillation") or {}
    named = export.get("calibration") or distillation.get("unlabelled")
    forms = all_forms()
    calibrated = any(form in forms and forms[form].calibrated for form in export.get("onnx") or ())
    return calibrated and bool(named or any("{language}" in file for file in files))


def _mean(entries: list[Mapping[str, Any]], key: str) -> float | None:
    values = [entry[key] for entry in entries if entry.get(key) is not None]
    return sum(values) / len(values) if values else None


def describe_files(report: Report) -> str:
    """Return the sizes of the ONNX files against the dense fp32 file; empty without files."""
    dense = dense_file_bytes(report)
    said = []
    files = report.get("files", {})
    for name in (form.file for form in all_forms().values()):
        if name in files:
            share = f" ({percent(files[name]['bytes'] / dense)})" if dense else ""
            said.append(f"{name} {size(files[name]['bytes'])}{share}")
    if not said:
        return ""
    against = f". The percentages are of the {DENSE_MODEL} file, {size(dense)}" if dense else ""
    return f"On disk: {', '.join(said)}{against}."


def dense_file_bytes(report: Report) -> int | None:
    """Return the bytes of the dense fp32 ONNX file, which all sizes are compared with; without one, of the weights."""
    dense = report.get("dense_bytes", {})
    found: int | None = dense.get(reference().key, dense.get("safetensors"))
    return found


def describe_floor(report: Report) -> str:
    """Say what `export.floor` was decided on; empty without a floor."""
    floor = report.get("floor")
    if not floor:
        return ""
    limits = {"zero_shot_drop": "of the zero-shot mean", "worst_language_drop": "in any language"}
    allowed = [
        f"{floor[key]:g} points {words}" for key, words in limits.items() if floor.get(key) is not None
    ]
    said = (
        f"A form may lose at most {' and '.join(allowed)} against the pruned model. {DECIDED_ON[floor['on']]}"
    )
    return said + ("; the report shows them." if floor["on"] == "test" else "; no test score decides.")


def describe_regularizer(report: Report) -> str:
    """Say which regularizer acted, and whether in stage 0; empty without one."""
    recipe = report.get("recipe") or {}
    regularizer, training = acting_regularizer(report), recipe.get("training", {})
    if not regularizer or "regularize_dense" not in training:
        return ""
    # In stage 0 there are no fine-tuned weights to compare with yet.
    dense = training["regularize_dense"] and regularizer.get("reference") != "finetuned"
    if not trains_after_pruning(report):
        where = "in the dense stage alone" if dense else "nowhere"
        return f"The regularizer {regularizer['name']} acts {where}, since nothing is trained after pruning."
    return f"The regularizer {regularizer['name']} acts " + (
        "in every stage, including the dense stage."
        if dense
        else "after the first pruning, not in the dense stage."
    )


def acting_regularizer(report: Report) -> Mapping[str, Any]:
    """Return the recipe's regularizer; empty where it is none or its strength is 0."""
    regularizer: Mapping[str, Any] = (report.get("recipe") or {}).get("regularizer") or {}
    is_off = regularizer.get("name", "none") == "none" or regularizer.get("strength") == 0
    return {} if is_off else regularizer


def trains_after_pruning(report: Report) -> bool:
    """Return whether any stage after stage 0 has updates."""
    every, last = _later_epochs(report)
    return bool(last or (every and len(report.get("stages", ())) != 2))


def _trained_later(report: Report) -> int:
    """Count the stages after stage 0 that have updates."""
    every, last = _later_epochs(report)
    later = len(report.get("stages", ())) - 1
    return (later - 1) * bool(every) + bool(last) if later > 0 else 0


def _later_epochs(report: Report) -> tuple[float, float]:
    """Return the epochs of a stage between the dense and the last one, and of the last one."""
    training = (report.get("recipe") or {}).get("training", {})
    every, last = training.get("epochs_per_stage", 1), training.get("last_epochs")
    return every, every if last is None else last


def size_rows(report: Report) -> list[dict[str, Any]]:
    """Every exported size, with bytes and milliseconds of the form to serve first."""
    listed = report.get("sizes", [])
    rows_ = []
    for row in listed:
        form = form_to_serve(name for name in row.get("bytes", {}) if name in all_forms()) or None
        figures = {key: row.get(key, {}).get(form) for key in ("bytes", "median_ms")}
        rows_.append({**row, **figures, "form": form})
    return rows_


def speed_rows(report: Report) -> list[dict[str, Any]]:
    """Every file timed, with the width of its bar: its median latency as a share of the slowest."""
    speed = report.get("speed", {})
    slowest = max((entry.get("median_ms") or 0 for entry in speed.values()), default=0) or 1
    return [
        {"name": name, **entry, "width": (entry.get("median_ms") or 0) / slowest}
        for name, entry in speed.items()
    ]


def describe_collapse(report: Report) -> str:
    """Which matrices a ranking over all of them has emptied; empty where it has none."""
    layers, density_ = report.get("layers", []), report.get("model", {}).get("encoder_density")
    found = set(collapsed(layers, density_)) if density_ is not None else set()
    if not found:
        return ""
    named = [
        f"{architecture.short_name(layer['name'])} ({percent(layer['density'], 2)})"
        for layer in sorted(layers, key=lambda layer: layer["density"])
        if layer["name"] in found
    ]
    listed = ", ".join(named[:SHOWN]) + (f" and {len(named) - SHOWN} more" if len(named) > SHOWN else "")
    return (
        f"{len(found)} of {len(layers)} matrices keep less than {percent(COLLAPSE, 0)} of their weights: {listed}. The "
        "cause is a ranking over all matrices at once. pruning.scope: layer keeps the same share of each matrix."
    )


def describe_chance(report: Report) -> str:
    """How to read many p-values at once."""
    tested = len(paired_tests(report))
    if not tested:
        return ""
    expected = f"{tested / 20:.0f}" if tested >= 20 else f"{tested / 20:.1g}"
    return (
        f"p: exact paired test of {name_tested(report)} against the dense model on the same examples (McNemar's test if "
        "each example is right or wrong, else the sign test). The p-values are not corrected for the number of languages: "
        f"of {tested}, about {expected} would be below 0.05 by chance alone."
    )


def describe_data(report: Report) -> list[str]:
    """Repairs and warnings about the data, each with its language, and conditions that changed during the run."""
    task = report.get("task", {})
    train = language_name(train_language(report) or "train")
    noted = [(f"{train}, training", note) for note in task.get("train_notes", [])]
    noted += [
        (f"{language_name(code)}, test", note)
        for code, notes in task.get("notes", {}).items()
        for note in notes
    ]
    changed = [_describe_change(change) for change in report.get("changed_conditions", [])]
    return [*report.get("target_text", []), *_once_each(noted), *changed]


def _once_each(noted: Iterable[tuple[str, str]]) -> list[str]:
    """Say what is noted of several files, as ``file: note`` each, once and with all of the files."""
    files: dict[str, list[tuple[str, str]]] = {}
    for which, note in noted:
        file, colon, rest = note.partition(": ")
        files.setdefault(rest if colon else note, []).append((which, file if colon else ""))
    said = []
    for note, found in files.items():
        if len(found) > 1 and all(file for _, file in found):
            said.append(f"{note} (in {', '.join(dict.fromkeys(file for _, file in found))})")
        else:
            said += [f"{which}: {file}: {note}" if file else f"{which}: {note}" for which, file in found]
    return said


def describe_batches(report: Report) -> list[str]:
    """Say which forms answer a text alone otherwise than in a batch, and how often."""
    said = []
    for key, entry in report.get("parity", {}).items():
        alone = entry.get("alone")
        if alone and alone["agreement"] < 1:
            batch = ((report.get("recipe") or {}).get("evaluation") or {}).get("batch_size", "many")
            said.append(
                f"The answers of {title_of(key)} depend on the batch, because its scales are computed from the whole batch: "
                f"of {alone['n']:,} answers, {1 - alone['agreement']:.1%} had another label alone than in batches of "
                f"{batch}. The scores were measured in batches."
            )
    return said


def _describe_change(change: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key} {before} -> {now}" for key, (before, now) in change["changed"].items())
    return (
        f"The run resumed at stage {change['stage']}, update {change['update']} under other conditions ({listed}), so its "
        "result may differ from that of an uninterrupted run."
    )


def train_language(report: Report) -> str | None:
    """Code of the language trained on, where the summary says it."""
    return report.get("summary", {}).get("train_language")


def worst_language(report: Report) -> str | None:
    """Return the code of the zero-shot language that lost most in what ships (`shown_key`).

    None if no language lost anything, or the summary does not name the train language.
    """
    train, key = train_language(report), shown_key(report)
    lost = {
        code: delta
        for code, entry in report.get("languages", {}).items()
        if code != train and (delta := shown_delta(entry, key)) is not None
    }
    worst = min(lost, key=lambda code: lost[code], default=None)
    return worst if train and worst is not None and lost[worst] <= NO_LOSS else None


def zero_shot_count(report: Report) -> int:
    """How many languages were only evaluated."""
    return sum(code != train_language(report) for code in report.get("languages", {}))


def metric_name(report: Report) -> str:
    """Return the metric all languages share, or all of them."""
    names = dict.fromkeys(entry.get("metric") for entry in report.get("languages", {}).values())
    return ", ".join(name for name in names if name) or "score"


def file_rows(report: Report) -> list[dict[str, Any]]:
    """Files from the largest to the smallest; those of the model with the bytes of the dense fp32 file."""
    dense = dense_file_bytes(report)
    largest = max([entry["bytes"] for entry in report.get("files", {}).values()] + [dense or 1])
    listed = []
    for name, entry in report.get("files", {}).items():
        before = dense if name in model_files() else None
        listed.append(
            {
                "name": name,
                "bytes": entry["bytes"],
                "sha256": entry.get("sha256"),
                "dense": before,
                "share": entry["bytes"] / before if before else None,
                "width": entry["bytes"] / (largest or 1),
                "dense_width": before / (largest or 1) if before else None,
            }
        )
    return sorted(listed, key=lambda row: -row["bytes"])


def part_rows(report: Report) -> list[dict[str, Any]]:
    """Bytes by part with their shares, in the report's order; parts without bytes are left out."""
    parts = {name: count for name, count in report.get("bytes_by_part", {}).items() if count}
    total = sum(parts.values())
    return [{"name": name, "bytes": count, "share": count / total} for name, count in parts.items()]


def layer_grid(report: Report, fact: str) -> dict[str, Any] | None:
    """Return a fact of every matrix as a table of layers by kinds of matrix; None unless there are two different values.

    Returns:
        ``columns`` (titles), ``rows`` of (layer, [value or None]), ``low`` and ``high``.
    """
    values: dict[int, dict[str, float]] = {}
    for entry in report.get("layers", []):
        found = architecture.find_matrix(entry["name"])
        if found and entry.get(fact) is not None:
            values.setdefault(found.layer, {})[found.title] = entry[fact]
    flat = [value for layer in values.values() for value in layer.values()]
    if not flat or max(flat) - min(flat) < 5e-4:
        return None
    titles = list(dict.fromkeys(title for layer in values.values() for title in layer))
    return {
        "columns": titles,
        "rows": [(layer, [values[layer].get(title) for title in titles]) for layer in sorted(values)],
        "low": min(flat),
        "high": max(flat),
    }


def norm_grid(report: Report) -> dict[str, Any] | None:
    """Weight norms as a table of layers by kinds of matrix; None in reports of older versions, which have no norm before.

    Returns:
        ``columns`` (titles) and ``rows`` of (layer, [(norm before, norm after)]); None for a matrix that is not there.
    """
    before, after = layer_grid(report, "pretrained_norm"), layer_grid(report, "weight_norm")
    if before is None or after is None or before["columns"] != after["columns"]:
        return None
    pairs = zip(before["rows"], after["rows"], strict=True)
    return {
        "columns": after["columns"],
        "rows": [(layer, list(zip(old, new, strict=True))) for (layer, old), (_, new) in pairs],
    }

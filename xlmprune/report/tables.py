"""A report's tables as cells of text; Markdown, the page, the model card and the terminal lay them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from xlmprune.core.formatting import DASH, amount, difference, number, p_value, percent, points, score, size
from xlmprune.core.languages import language_name
from xlmprune.core.tables import Table, tabulate
from xlmprune.evaluation.separability import SAMPLE
from xlmprune.export.form import DENSE_MODEL, reference
from xlmprune.report.findings import (
    MODELS,
    TRIMMED,
    Report,
    Row,
    columns,
    dense_file_bytes,
    describe_baselines,
    describe_chance,
    file_rows,
    layer_grid,
    listed_form,
    mean_rows,
    metric_name,
    name_tested,
    norm_grid,
    part_rows,
    rows,
    scored,
    shown_key,
    shown_title,
    size_rows,
    speed_rows,
    tested_key,
    title_of,
    train_language,
)
from xlmprune.report.labels import error_table
from xlmprune.report.method import packed_files

BEFORE_EXPORT = "before export"
"""Heading of the pruned PyTorch model's scores beside those of what ships."""


def language_table(report: Report) -> Table | None:
    """Return the train language, the means, then every other language from the largest loss to the largest gain."""
    listed = rows(report)
    if not listed:
        return None
    first = [row for row in listed if row.style == "train"]
    listed = [*first, *mean_rows(report), *(row for row in listed if row.style != "train")]
    note = [f"{metric_name(report)}, percent.", describe_columns(report)]
    if any(row.interval for row in listed):
        note += [
            f"The interval is for the score of {name_tested(report)}, over other test sets of the same size."
        ]
    return tabulate(
        "Languages",
        _language_columns(report, listed),
        listed,
        " ".join(filter(None, [*note, describe_baselines(report), describe_chance(report)])),
        texts=2,
        style=lambda row: row.style,
    )


def _language_columns(report: Report, listed: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    titles, key = columns(report), shown_key(report)
    shown: dict[str, Callable[[Row], str]] = {"language": lambda row: row.name, "code": lambda row: row.code}
    if "dense" in titles:
        shown["dense"] = _score_of("dense")
    if key in titles:
        shown[shown_title(key)] = _score_of(key)
    shown["Δ"] = lambda row: points(row.delta)
    before = {} if key == "pruned" else {"pruned": BEFORE_EXPORT}
    shown |= {
        title: _score_of(other)
        for other, title in (titles | before).items()
        if other in titles.keys() - {"dense", key}
    }
    if any(row.baseline is not None for row in listed):
        shown["baseline"] = lambda row: score(row.baseline)
    of = "" if tested_key(report) == key else f" {BEFORE_EXPORT}"
    if any(row.interval for row in listed):
        shown[f"95% interval{of}"] = _interval
    if any(row.paired for row in listed):
        shown |= {
            f"p{of}": lambda row: p_value(row.paired.get("p_value")) if row.paired else "",
            f"gained{of}": lambda row: number(row.paired.get("gained")) if row.paired else "",
            f"lost{of}": lambda row: number(row.paired.get("lost")) if row.paired else "",
        }
    if any(row.seen_unlabelled is not None for row in listed):
        shown["unlabelled text"] = lambda row: {True: "yes", False: "no", None: ""}[row.seen_unlabelled]
    shown["n"] = lambda row: "" if row.n is None else number(row.n)
    return shown


def describe_columns(report: Report) -> str:
    """Say whose scores and differences the table of languages shows."""
    key = shown_key(report)
    order = "in points, as the scores are shown"
    form = listed_form(report)
    if key == "pruned" or form is None:
        return f"Δ: pruned minus dense, {order}."
    said = (
        f'"{shown_title(key)}" is {form.file}, the file to serve first. Δ: {shown_title(key)} minus dense, {order}; the '
        "order and the colours of the rows follow it."
    )
    return f'{said} "{BEFORE_EXPORT}" is the pruned PyTorch model.' if "pruned" in columns(report) else said


def _score_of(key: str) -> Callable[[Row], str]:
    return lambda row: score(row.scores.get(key))


def _interval(row: Row) -> str:
    return f"{row.interval[0]:.1f}–{row.interval[1]:.1f}" if row.interval else ""


def stage_table(report: Report) -> Table | None:
    """Return what every stage came to."""
    train = train_language(report)
    return _table(
        "Stages",
        {
            "stage": lambda stage: number(stage["stage"]),
            "encoder weights remaining": lambda stage: percent(stage.get("encoder_density")),
            "loss": lambda stage: number(stage.get("loss")),
            "alignment": lambda stage: number(stage.get("alignment")),
            language_name(train or "train"): lambda stage: score(stage.get("languages", {}).get(train)),
            "zero-shot mean": lambda stage: score(stage.get("zero_shot_mean")),
            "seconds": lambda stage: number(stage.get("seconds")),
        },
        report.get("stages", []),
    )


def size_table(report: Report) -> Table | None:
    """Return what every exported size is, costs and scores."""
    return _table(
        "Sizes",
        {
            "size": lambda row: number(row["size"]),
            "bundle": lambda row: row["bundle"],
            "parameters": lambda row: amount(row["parameters"]),
            "form": lambda row: row["form"] or DASH,
            "bytes": lambda row: size(row["bytes"]),
            "median ms": lambda row: number(row["median_ms"]),
            language_name(train_language(report) or "train"): lambda row: score(row["english"]),
            "zero-shot mean": lambda row: score(row["zero_shot_mean"]),
            "worst language": lambda row: _worst(row.get("worst")),
        },
        size_rows(report),
        "Scores are those of the PyTorch models before export; each bundle's report has every language. The worst language "
        "is the zero-shot language that lost most before export against the dense model, in points.",
        texts=2,
    )


def _worst(found: Any) -> str:
    return f"{language_name(found['language'])} {points(found['delta'])}" if found else DASH


def file_table(report: Report) -> Table | None:
    """Bytes of every file, and its share of the dense fp32 file."""
    dense = dense_file_bytes(report)
    return _table(
        "Files",
        {
            "file": lambda file: file["name"],
            "bytes": lambda file: size(file["bytes"]),
            f"of {DENSE_MODEL}": lambda file: percent(file["share"]),
            "SHA-256 begins": lambda file: (file["sha256"] or DASH)[:12],
        },
        file_rows(report),
        f"The {DENSE_MODEL} ONNX file, without pruning and quantization, has {size(dense)}." if dense else "",
    )


def part_table(report: Report) -> Table | None:
    """Where the bytes are."""
    return _table(
        "Bytes by part of model.safetensors",
        {
            "part": lambda part: part["name"],
            "bytes": lambda part: size(part["bytes"]),
            "share": lambda part: percent(part["share"]),
        },
        part_rows(report),
    )


def speed_table(report: Report) -> Table | None:
    """Latency and throughput of every file measured."""
    said = [
        "The files were measured in turns. A speedup is the median of the ratios within each turn, so it can differ from "
        "the ratio of the medians shown. With some dozens of turns it is reliable on a busy machine too."
    ]
    if packed_files(report):
        said.append(
            "Dense kernels do not skip zeros. Unstructured pruning makes a file smaller. Integer arithmetic makes it faster."
        )
    return _table(
        "Speed",
        {
            "file": lambda row: row["name"],
            "batch × tokens": lambda row: f"{number(row.get('batch'))} × {number(row.get('tokens'))}",
            "turns": lambda row: number(row.get("rounds")),
            "median ms": lambda row: number(row.get("median_ms")),
            "95th percentile ms": lambda row: number(row.get("p95_ms")),
            "texts per second": lambda row: number(row.get("texts_per_second")),
            "speedup": lambda row: number(row.get("speedup")),
            "load time (s)": lambda row: number(row.get("load_seconds")),
            "peak memory": lambda row: size(row.get("peak_bytes")),
            "memory once loaded": lambda row: size(row.get("loaded_bytes")),
        },
        speed_rows(report),
        " ".join(said),
    )


def quantization_table(report: Report) -> Table | None:
    """Return the ways to quantise that were tried, and what each scored on English dev and unlabelled text."""
    choice = report.get("quantization", {})
    if not choice:
        return None
    exact = reference().title
    entries = [{"name": exact, **choice.get("reference", {})}, *choice.get("tried", [])]
    train = language_name(train_language(report) or "train")
    said = ["Label agreement is measured on unlabelled text."]
    if margins := choice.get("margins"):
        named = {
            "dev": f"of the {train} dev score{_dev_examples(margins)}",
            "agreement": "of label agreement",
        }
        losses = " and ".join(
            f"{margins[key]:.3g} points {words}" for key, words in named.items() if key in margins
        )
        said.append(
            f"The variants were tried from the smallest to the largest. The first one that loses at most {losses} against "
            f"{exact} was chosen, and the rest were not tried."
        )
    said.append("No test text was read for this choice.")
    return _table(
        f"How {choice.get('form', 'the quantized form')} was chosen",
        {
            "variant": lambda row: row["name"] + (", chosen" if row["name"] == choice.get("chosen") else ""),
            "weights": lambda row: size(row.get("bytes")),
            f"{train} dev": lambda row: score(row.get("dev")),
            f"label agreement with {exact}": lambda row: percent(row["agreement"] / 100),
        },
        entries,
        " ".join(said),
    )


def _dev_examples(margins: Mapping[str, float]) -> str:
    """Explain a margin that was raised above the usual one because there are few dev examples."""
    from xlmprune.export.choosing import DEV_EXAMPLES_LOST, DEV_MARGIN

    margin = margins.get("dev", 0.0)
    if margin <= DEV_MARGIN:
        return ""
    return (
        f" (what {DEV_EXAMPLES_LOST:g} of its {round(100 * DEV_EXAMPLES_LOST / margin)} examples count for)"
    )


def parity_table(report: Report) -> Table | None:
    """How far the exported forms are from the model in memory."""
    return _table(
        "Agreement with the pruned PyTorch model",
        {
            "form": lambda row: title_of(row["form"]),
            "largest difference of logits": lambda row: number(row.get("max_abs_diff")),
            "relative to their range": lambda row: number(row.get("relative_diff")),
            "same answer": lambda row: percent(row.get("agreement"), 2),
            "n": lambda row: number(row.get("n")),
        },
        [{"form": form, **entry} for form, entry in report.get("parity", {}).items()],
    )


def metric_tables(report: Report) -> Iterator[Table]:
    """One table for each of the task's further metrics."""
    for metric, languages in report.get("other_metrics", {}).items():
        titles = {
            key: title for key, title in scored().items() if any(key in row for row in languages.values())
        }
        entries = [{"language": language_name(code), **row} for code, row in languages.items()]
        shown: dict[str, Callable[[Any], str]] = {"language": lambda row: row["language"]}
        shown |= {title: _entry_of(key) for key, title in titles.items()}
        made = _table(f"The same languages by {metric}", shown, entries)
        if made is not None:
            yield made


def _entry_of(key: str) -> Callable[[Any], str]:
    return lambda row: score(row.get(key))


def text_table(report: Report) -> Table | None:
    """Return what the tokenizer makes of every language: where one may lose before the model has seen it."""
    return _table(
        "Text and tokens",
        {
            "language": lambda row: row["language"],
            "tokens, mean": lambda row: number(row.get("tokens_mean")),
            "tokens, 95th percentile": lambda row: number(row.get("tokens_p95")),
            "tokens per word": lambda row: number(row.get("tokens_per_word")),
            "texts truncated": lambda row: percent(row.get("truncated")),
            "unknown tokens": lambda row: percent(row.get("unknown"), 2),
        },
        [{"language": language_name(code), **entry} for code, entry in report.get("text", {}).items()],
        "Measured on the test sets. Words are separated by spaces, so tokens per word says little for Thai, Chinese or "
        "Japanese.",
    )


def vocabulary_table(report: Report) -> Table | None:
    """Return what trimming the vocabulary does to every language."""
    languages = (report.get("vocabulary") or {}).get("languages", {})
    return _table(
        TRIMMED,
        {
            "language": lambda row: row["language"],
            "texts": lambda row: number(row.get("texts")),
            "tokens before": lambda row: number(row.get("tokens_before")),
            "tokens": lambda row: number(row.get("tokens")),
            "split as before": lambda row: percent(row.get("identical")),
            "single letters before": lambda row: percent(row.get("characters_before")),
            "single letters": lambda row: percent(row.get("characters")),
            "unknown before": lambda row: percent(row.get("unknown_before"), 2),
            "unknown": lambda row: percent(row.get("unknown"), 2),
        },
        [{"language": language_name(code), **entry} for code, entry in languages.items()],
        "Measured on a held-out tenth of the text, with the pieces counted in the rest: mean tokens per text, the share of "
        "texts that are split into the same pieces as before, and the shares of tokens that are a single letter or unknown.",
    )


def alignment_table(report: Report) -> Table | None:
    """Alignment of every matrix, layers down and kinds across."""
    grid = layer_grid(report, "alignment")
    if grid is None:
        return None
    return Table(
        title="Alignment with the pretrained weights",
        headings=["layer", *grid["columns"]],
        rows=[[str(layer), *map(number, values)] for layer, values in grid["rows"]],
        note="Mean |cosine| between the rows of a pruned matrix and of the pretrained one, whatever the regularizer "
        "compares with. 1 means the same direction.",
    )


def norm_table(report: Report) -> Table | None:
    """Weight norms of every matrix before and after pruning, layers down and kinds across."""
    grid = norm_grid(report)
    if grid is None:
        return None
    return Table(
        title="Weight norms",
        headings=["layer", *grid["columns"]],
        rows=[
            [str(layer), *(f"{number(before)} → {number(after)}" for before, after in cells)]
            for layer, cells in grid["rows"]
        ],
        note="Frobenius norm of each matrix: pretrained → after fine-tuning and pruning. If a matrix lost heads or "
        "neurons, both figures count only what remains.",
    )


def class_table(report: Report) -> Table | None:
    """How well the first token's vector separates the classes in every language."""
    shares = report.get("classes", {}).get("shares", {})
    return _table(
        "Class separability",
        {
            "language": lambda row: row.name,
            "dense": lambda row: percent(shares[row.code]["dense"]),
            "pruned": lambda row: percent(shares[row.code]["pruned"]),
            "Δ": lambda row: points(difference(*(100 * shares[row.code][model] for model in MODELS))),
        },
        [row for row in rows(report) if row.code in shares],
        "The classifier reads the vector of the first token. The table shows the share of this vector's variance that lies "
        f"between the classes: 100% if all texts of a class have the same vector. Measured on up to {SAMPLE} test texts of "
        "each language.",
    )


def environment_table(report: Report) -> Table | None:
    """Versions and hardware."""
    environment = report.get("environment", {})
    return _table(
        "Made with",
        {"what": lambda pair: pair[0], "version": lambda pair: str(pair[1])},
        [*environment.items()],
        texts=2,
    )


def _table(
    title: str,
    shown: Mapping[str, Callable[[Any], str]],
    entries: Sequence[Any],
    note: str = "",
    texts: int = 1,
) -> Table | None:
    return tabulate(title, shown, entries, note, texts) if entries else None


def all_tables(report: Report) -> dict[str, Table]:
    """Every table that the report has data for, by name, in reading order."""
    makers = {
        "languages": language_table,
        "sizes": size_table,
        "stages": stage_table,
        "files": file_table,
        "parts": part_table,
        "speed": speed_table,
        "parity": parity_table,
        "quantization": quantization_table,
        "text": text_table,
        "vocabulary": vocabulary_table,
        "errors": error_table,
        "norms": norm_table,
        "alignment": alignment_table,
        "classes": class_table,
        "environment": environment_table,
    }
    made = {name: make(report) for name, make in makers.items()}
    further = {table.title: table for table in metric_tables(report)}
    order = {"languages": made.pop("languages"), **further, **made}
    return {name: table for name, table in order.items() if table is not None}

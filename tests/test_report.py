from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from rich.console import Console
from sample_report import LABELS, sample_report
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from xlmprune.core import formatting
from xlmprune.core.errors import RecipeError
from xlmprune.core.languages import language_name
from xlmprune.export.runtime import OLDEST_RUNTIME
from xlmprune.recipe.loading import PATHS, load_recipe, recipe_of
from xlmprune.report import charts, findings, labels, results, shipped
from xlmprune.report.method import describe_method
from xlmprune.report.model_card import render as model_card
from xlmprune.report.pages import render_html, render_markdown, results_table, write
from xlmprune.report.results import without_machine_paths
from xlmprune.report.tables import all_tables, language_table

VOID = {"meta", "br", "img", "hr", "link", "input"}
HOSTILE = '<script>alert("x")</script>|`**[a](b)'


class Page(HTMLParser):
    """Text by tag, attributes met, and whether every tag that opens also closes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def printed(report: dict, width: int = 80) -> str:
    console = Console(width=width, file=open("/dev/null", "w"), record=True)  # noqa: PTH123, SIM115
    console.print(results_table(report))
    console.file.close()
    return console.export_text()


# --- what is said ---


def test_both_densities_and_the_truth_about_embeddings_are_said_everywhere():
    report = sample_report()
    for text in (
        render_markdown(report),
        " ".join(Page(render_html(report)).text),
        model_card(report),
        printed(report, 400),
    ):
        assert "The encoder's matrices had 21.2 M of the model's 25.3 M parameters" in text
        assert "31.4% of them remain (68.6% sparsity)" in text
        assert "Embeddings and head are not pruned, so 42.4% of the whole model remains" in text


def test_figures_of_xlm_r_base_are_those_worked_out_by_hand():
    """278,045,955 parameters, 84,934,656 prunable, 26,653,392 of them left after eleven stages."""
    kept = 278_045_955 - 84_934_656 + 26_653_392
    model = {
        "parameters": 278_045_955,
        "prunable": 84_934_656,
        "encoder_density": 26_653_392 / 84_934_656,
        "model_density": kept / 278_045_955,
    }
    said = findings.describe_density({"model": model})
    for figure in ("31.4%", "68.6%", "84.9 M", "278.0 M", "79.0%"):
        assert figure in said


def test_a_trimmed_vocabulary_is_said_beside_the_densities():
    said = findings.describe_vocabulary(sample_report())
    for figure in ("250,002", "10,123", "92.1 M"):
        assert figure in said
    assert said in render_markdown(sample_report())
    assert findings.describe_vocabulary({"vocabulary": None}) == ""


def test_languages_that_gave_unlabelled_text_are_told_apart():
    report = sample_report(3)
    for code, text in {"en": False, "de": True, "fr": True, "es": False}.items():
        report["languages"][code]["seen_unlabelled"] = text
    said = "The model also learned from unlabelled text in 2 of the 3 zero-shot languages"
    for text in (render_markdown(report), model_card(report), printed(report, 400)):
        assert said in text
        assert "languages with text 76.2 → 74.9, languages without text 72.9 → 70.7" in text
    assert "only evaluated" not in model_card(report)
    plain = sample_report(3)
    plain["recipe"]["model"]["vocabulary"] = "keep"
    assert "Every language but English was only evaluated." in model_card(plain)
    headings = language_table(report).headings
    answers = {row[1]: row[headings.index("unlabelled text")] for row in language_table(report).rows}
    assert answers == {"en": "no", "": "", "de": "yes", "fr": "yes", "es": "no"}


def test_matrices_that_a_global_ranking_emptied_are_named_in_every_form():
    report = sample_report(3)
    assert findings.describe_collapse(report) == ""
    assert "Layer collapse" not in render_html(report) + render_markdown(report)
    report["layers"][5]["density"] = 0.0001
    report["layers"][7]["density"] = 0.0099
    said = findings.describe_collapse(report)
    assert said.startswith("2 of 72 matrices keep less than 1% of their weights: layer.0.output.dense")
    assert "(0.01%), layer.1." in said
    assert "pruning.scope: layer" in said
    for form in (render_html(report), render_markdown(report)):
        assert "Layer collapse" in form
        assert "2 of 72 matrices" in form
    for layer in report["layers"]:
        layer["density"] = 0.005
    assert "and 66 more" in findings.describe_collapse(report)
    assert findings.collapsed(report["layers"], 0.005) == [], "asked for, not collapsed"


def test_the_worst_language_is_named_and_marked_in_every_form():
    report = sample_report()
    for text in pages(report):
        assert len(re.findall("worst zero-shot language is", text)) == 1
        assert "Its worst zero-shot language is Thai: 46.2 → 36.6 (−9.6 points)." in text
    assert "| **Thai** | th | 46.2 | 36.6 | −9.6 | 36.8 | 36.8 |" in render_markdown(report)
    assert re.search(r'<tr class="worst">\s*<td class="text">Thai</td>', render_html(report))
    assert "Thai" in printed(report)


def test_languages_stand_from_the_largest_loss_to_the_largest_gain_below_english_and_the_means():
    table = language_table(sample_report())
    names = [row[0] for row in table.rows]
    assert names[:4] == ["English", "Zero-shot mean", "All-language mean", "Thai"]
    assert names[-1] == "Swahili"
    assert sorted(names[3:]) == sorted(
        language_name(code) for code in sample_report()["languages"] if code != "en"
    )


def test_the_terminal_table_fits_eighty_columns_whole():
    text = printed(sample_report(), 80)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert re.search(r"Thai +46\.2 +36\.6 +−9\.6 +36\.8 +< 0\.001 +640", text)


def test_differences_intervals_and_tests_are_of_the_file_that_ships_and_say_so():
    """Order, colour, difference, interval and p follow the shipped file, also where the model before export differs."""
    report = sample_report(3)
    report["languages"]["fr"] |= {"onnx_int8": 60.0}  # the worst of INT8, not of the model before export
    report["shipped"]["languages"]["fr"]["ci95"] = [56.1, 63.8]
    table = language_table(report)
    assert table.headings[2:6] == ["dense", "INT8 shipped", "Δ", "before export"]
    row = dict(zip(table.headings, table.rows[3], strict=True))
    assert (row["language"], row["INT8 shipped"], row["Δ"]) == ("French", "60.0", "−14.1")
    assert (row["before export"], row["95% interval"]) == ("73.0", "56.1–63.8")
    assert row["lost"] == str(report["shipped"]["paired"]["fr"]["lost"])
    assert 'exact paired test of "INT8 shipped" against the dense model' in table.note
    assert 'The interval is for the score of "INT8 shipped"' in table.note
    assert findings.worst_language(report) == "fr"
    for text in pages(report):
        assert (
            "Before export, the pruned PyTorch model had, dense → pruned: the zero-shot mean over 3" in text
        )
        assert '"INT8 shipped" is model.int8.onnx, the file to serve first.' in text


def test_where_only_the_model_before_export_was_tested_the_headings_say_so():
    """Reports of older versions hold no paired test and no interval of the shipped file."""
    report = sample_report(3)
    del report["shipped"]
    table = language_table(report)
    for heading in ("95% interval", "p", "gained", "lost"):
        assert f"{heading} before export" in table.headings
        assert heading not in table.headings
    assert "exact paired test of the pruned model before export against the dense model" in table.note
    assert "95% interval" not in printed(report, 400)
    del report["files"]
    assert "95% interval" in language_table(report).headings, (
        "no form ships: all columns are of the pruned model"
    )
    assert language_table(report).headings[2:5] == ["dense", "pruned", "Δ"]


def test_it_is_said_what_differences_from_dense_leave_out():
    report = sample_report(3)
    trimmed = (
        '"Dense" is the model that was fine-tuned after this, so differences from dense leave out what the trimming '
        "cost."
    )
    further = "A gain over dense may come from further training"
    report["languages"]["de"]["onnx_int8"] = 90.0
    report["recipe"]["distillation"] = {"teacher": "finetuned"}
    for text in pages(report):
        assert f'{trimmed} The table "Trimmed vocabulary" of the report' in text
        assert f"{further}: the dense model was measured after stage 0" in text
        assert "trained for 11 more stages and with a teacher." in text
    for entry in report["languages"].values():
        entry["onnx_int8"] = entry["dense"] - 1
    assert findings.describe_gains(report) == "", "no language gained"
    report["languages"]["de"]["onnx_int8"] = 90.0
    report["recipe"]["training"]["epochs_per_stage"] = 0
    assert findings.describe_gains(report) == "", "nothing was trained after pruning"
    report["recipe"]["training"]["last_epochs"] = 5
    assert "trained for 1 more stage and with a teacher." in findings.describe_gains(report)
    report["recipe"]["pruning"] = {"schedule": {"name": "continuous", "restart": True}}
    said = "the pruned model was trained anew from the pretrained weights and with a teacher."
    assert findings.describe_gains(report) == f"A gain over dense may come from the training: {said}"


def test_all_sizes_have_one_baseline():
    report = sample_report(3)
    table = all_tables(report)["files"]
    shares = {row[0]: row[table.headings.index("of dense fp32")] for row in table.rows}
    assert shares["model.int8.onnx"] == "13.9%"
    assert shares["model.onnx"] == "45.9%"
    assert shares["tokenizer.json"] == "–"
    assert table.note == "The dense fp32 ONNX file, without pruning and quantization, has 102 MB."
    assert all("model.int8.onnx 14.1 MB (13.9%)" in text for text in pages(report))


def test_a_note_of_many_files_is_given_once_with_the_files():
    report = sample_report(3)
    report["task"]["train_notes"] = ["data/en.train.tsv: columns not used: ticket"]
    report["task"]["notes"] = {
        "de": ["data/de.test.tsv: columns not used: ticket", "data/de.test.tsv: 2 empty lines skipped"],
        "fr": ["3 sentences were empty and left out"],
    }
    assert findings.describe_data(report) == [
        "columns not used: ticket (in data/en.train.tsv, data/de.test.tsv)",
        "German, test: data/de.test.tsv: 2 empty lines skipped",
        "French, test: 3 sentences were empty and left out",
    ]


@pytest.mark.parametrize(
    ("figure", "value", "expected"),
    [
        (formatting.percent, 0.313811, "31.4%"),
        (formatting.percent, None, "–"),
        (formatting.points, -3.44, "−3.4"),
        (formatting.points, -0.04, "0.0"),
        (formatting.points, 0.26, "+0.3"),
        (formatting.p_value, 0.0004, "< 0.001"),
        (formatting.p_value, 0.049, "0.049"),
        (formatting.p_value, 1.0, "1.00"),
        (formatting.size, 999, "999 B"),
        (formatting.size, 1_482, "1.5 kB"),
        (formatting.size, 470_812_345, "471 MB"),
        (formatting.size, 2_240_000_000, "2.2 GB"),
        (formatting.size, 999_960, "1000 kB"),
        (formatting.amount, 278_045_955, "278.0 M"),
        (formatting.amount, 21_504, "21,504"),
    ],
)
def test_figures(figure, value, expected):
    assert figure(value) == expected


def test_language_names():
    assert language_name("sw") == "Swahili"
    assert language_name("pt-BR") == "Portuguese (Brazil)"
    assert language_name("zh_Hant") == "Chinese (Traditional)"
    assert language_name("x-private") == "x-private"


# --- what is shipped, and how it was made ---


def structured_report(pattern: str = "structured") -> dict:
    """A report of a model that lost layers, heads and neurons for a budget, and no single weights."""
    report = sample_report(3)
    layer = {"source": 0, "heads": 5, "neurons": 384}
    report["model"]["structure"] = {
        "layers": [layer] * 10,
        "whole": {"layers": 12, "heads": 12, "neurons": 1536},
        "parameters": 17_307_463,
        "stock": False,
        "budget": {
            "asked": {
                **{"latency_ms": None, "speedup": 4.0, "bytes": 20_000_000, "form": "int8"},
                **{"batch": 1, "tokens": 32, "threads": 1},
            },
            "predicted": {"latency_ms": 12.39, "speedup": 4.0755, "bytes": 18_150_539, "dense_ms": 50.5},
        },
    }
    report["recipe"]["pruning"] |= {
        "pattern": pattern,
        "structure": {"importance": "fisher"},
        "reconstruct": {"texts": 3000},
    }
    report["recipe"]["regularizer"] = {"name": "none"}
    report["packed"] = []
    for matrix in report["layers"]:
        matrix["density"] = 1.0 if pattern == "structured" else 0.7
    speed = report["speed"]
    speed["model.onnx"]["speedup"], speed["model.int8.onnx"]["speedup"] = 3.48, 4.879
    for entry in speed.values():
        entry["threads"] = 1
    report["speed"] = {"dense fp32": {**speed["model.onnx"], "median_ms": 12.7, "speedup": 1.0}, **speed}
    return report


def pages(report: dict) -> list[str]:
    """The text of report.md, report.html, the card and the terminal, each on one line."""
    shown = render_markdown(report), " ".join(Page(render_html(report)).text), model_card(report)
    return [" ".join(text.replace("\\", "").split()) for text in (*shown, printed(report, 1000))]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"model": {"vocabulary": {"files": ["all.txt"]}}},
            "to choose the vocabulary; no model was trained on it.",
        ),
        (
            {"export": {"calibration": "task", "onnx": ["int8"]}},
            "to calibrate INT8; no model was trained on it.",
        ),
        ({"export": {"calibration": "task", "onnx": ["fp32"]}}, ""),
        (
            {"model": {"vocabulary": {"files": ["{language}.txt"]}}, "export": {"onnx": ["int8"]}},
            "to choose the vocabulary and to calibrate INT8; no model was trained on it.",
        ),
        (
            {"export": {"calibration": "task", "floor": {"on": "unlabelled", "zero_shot_drop": 1.0}}},
            "to decide which files ship; no model was trained on it.",
        ),
    ],
)
def test_a_card_says_for_what_text_of_other_languages_was_read(sections, said):
    report = sample_report(3)
    report["recipe"] |= {"model": {"vocabulary": "keep"}, "export": {}, **sections}
    told = f"No labels but those in English were used; unlabelled text was in other languages, {said}"
    assert findings.describe_read_text(report) == (
        (said and told) or "Every language but English was only evaluated."
    )
    report["quantization"]["texts"] = {"train": 48, "en": 48}
    assert "calibrate" not in findings.describe_read_text(report), "text of English alone was there"
    report["quantization"]["texts"]["de"] = 48
    assert "to calibrate INT8" in findings.describe_read_text(report)
    del report["quantization"]["texts"]
    report["moments"] = {"source": "x", "uses": ["pruning.reconstruct"], "texts": {"en": 1}, "without": []}
    assert ("to rank or refit" in model_card(report)) is False
    report["moments"]["texts"]["de"] = 1
    told = findings.describe_read_text(report)
    assert "in other languages, to rank or refit weights" in told
    assert "no model was trained" not in told
    assert told in model_card(report)


@pytest.mark.parametrize(
    ("training", "regularizer", "method", "acts"),
    [
        ({}, {"name": "cosine"}, "while it was fine-tuned", "after the first pruning, not in the dense"),
        ({"regularize_dense": True}, {"name": "cosine"}, ", cosine alignment with", "in every stage"),
        (
            {"regularize_dense": True},
            {"name": "l2"},
            ", L2 decay of the weights toward zero)",
            "in every stage",
        ),
        (
            {"regularize_dense": True},
            {"name": "cosine", "reference": "finetuned"},
            "cosine alignment with the finetuned weights",
            "after the first pruning",
        ),
        ({}, {"name": "cosine", "strength": 0.0}, "(criterion magnitude)", ""),
        ({"epochs_per_stage": 0}, {"name": "cosine"}, "after it was fine-tuned: single", "acts nowhere"),
        ({"epochs_per_stage": 0}, {"name": "none"}, "after it was fine-tuned: single", ""),
        (
            {"epochs_per_stage": 0, "last_epochs": 2},
            {"name": "l2"},
            "while it was",
            "after the first pruning",
        ),
        (
            {"epochs_per_stage": 0, "regularize_dense": True},
            {"name": "cosine"},
            "(criterion magnitude)",
            "in the dense stage alone",
        ),
    ],
)
def test_sentences_on_the_method_are_of_what_had_an_effect(training, regularizer, method, acts):
    report = sample_report()
    report["recipe"]["training"] |= {"regularize_dense": False, **training}
    report["recipe"]["regularizer"] = regularizer
    assert method in describe_method(report)
    said = findings.describe_regularizer(report)
    assert acts in said
    assert bool(acts) == bool(said)


def test_a_card_has_the_title_and_licence_of_own_data():
    report = sample_report()
    assert "- Training and test data: Apache-2.0" in model_card(report)
    own = load_recipe("topics_small", ["task.title=News | topics", "task.licence=CC BY 4.0, ours"])
    assert results.described(own) == {
        "revision": None,
        "title": "News | topics",
        "licence": "CC BY 4.0, ours",
    }
    assert results.described(load_recipe("topics_small")) == {"revision": None}
    report["task"] |= results.described(own)
    card = model_card(report)
    assert "for the task **quickstart**, News \\| topics (1,600 examples)." in card
    assert "- Training and test data: CC BY 4.0, ours" in card
    assert "dataset" in card.split("---")[1]
    assert "name: News | topics" in card.split("---")[1]
    with pytest.raises(RecipeError, match=r"task\.title"):
        load_recipe("topics_small", ["task.title=''"])


def test_a_card_says_how_the_model_was_pruned():
    structures = (
        "It was pruned while it was fine-tuned: layers, attention heads and FFN neurons were removed (importance fisher; "
        "10 of 12 layers remain, with 5 of 12 attention heads and 384 of 1,536 FFN neurons each)"
    )
    refitted = "and then the remaining weights were refitted by least squares on text without labels."
    card = pages(structured_report())[2]
    assert f"{structures} {refitted}" in card
    assert "criterion" not in card
    both = structured_report("2:4")
    weights = "single weights were set to zero (criterion magnitude, pattern 2:4)"
    assert f"{structures}, {weights} {refitted}" in pages(both)[2]
    single = "It was pruned while it was fine-tuned: single weights were set to zero (criterion magnitude, cosine alignment"
    assert single in pages(sample_report())[2]
    untouched = sample_report()
    for matrix in untouched["layers"]:
        matrix["density"] = 1.0
    assert "pruned while" not in model_card(untouched)
    layers = structured_report()
    layers["model"]["structure"]["layers"] = [{"source": 0, "heads": 12, "neurons": 1536}] * 6
    assert "fine-tuned: layers were removed (6 of 12 layers remain" in pages(layers)[2]


def test_what_is_true_of_zeros_and_packed_files_is_said_of_those_alone():
    zeros, packed, kernels = (
        "Pruned weights are zeros",
        "matrices of packed files",
        "Dense kernels do not skip",
    )
    said = " ".join(pages(structured_report()))
    assert not any(text in said for text in (zeros, packed, kernels))
    for report in (sample_report(), sample_report() | {"packed": ["model.onnx"]}):
        assert all(text in " ".join(pages(report)) for text in (zeros, packed, kernels))
    plain = " ".join(pages(sample_report() | {"packed": []}))
    assert zeros in plain
    assert packed not in plain
    assert kernels not in plain


def test_the_headline_is_about_the_form_that_is_shipped():
    report = structured_report()
    report["languages"]["fr"]["onnx_int8"] = 60.0  # the worst of INT8, not of the model before export
    said = (
        "Shipped: model.int8.onnx has 14.1 MB, 13.9% of dense fp32. It takes 2.61 ms (median) for 1 text of 32 tokens with "
        "1 thread and is 4.88 times as fast as dense fp32 (median ratio of calls in turns). Its zero-shot mean over "
        "3 languages is"
    )
    worst = "Its worst zero-shot language is French: 74.1 → 60.0 (−14.1 points)."
    markdown, html, card, terminal = pages(report)
    for text in (markdown, html, card, terminal):
        assert said in text
        assert worst in text
    mean = report["summary"]["zero_shot_mean"]
    assert f"is {mean['onnx_int8']:.1f}; the dense model has {mean['dense']:.1f}" in markdown
    assert markdown.split(" - ")[1].startswith("Shipped: ")
    assert card.split(" - Shipped: ")[0].endswith("no model was trained on it.")
    assert (
        terminal.index("Shipped: ")
        < terminal.index("Before export, the pruned")
        < terminal.index("parameters")
    )
    tiles = re.findall(r'class="tile (\w*)"><b>(.*?)</b><span>(.*?)</span>', render_html(report))
    assert tiles[:2] == [
        ("", "14.1 MB", "model.int8.onnx, 13.9% of dense fp32"),
        ("", "4.88×", "INT8: the speed of dense fp32"),
    ]
    assert ("lost", "−14.1", "INT8: worst zero-shot language, French, 74.1 → 60.0") in tiles


@pytest.mark.parametrize("worst", [-2.0, 0.0])
def test_the_train_language_is_named_where_it_lost_more_than_the_worst(worst):
    report = sample_report(1)
    report["languages"]["de"] |= {
        "dense": 70.0,
        "pruned": 70 + worst,
        "onnx_int8": 70 + worst,
        "delta": worst,
    }
    report["languages"]["en"] |= {"dense": 89.3, "pruned": 86.4, "onnx_int8": 86.4, "delta": -2.9}
    report["summary"]["worst"] = {"language": "de", "delta": worst}
    said = "English, the train language, lost more: 89.3 → 86.4 (−2.9 points)."
    before = (
        "Its worst zero-shot language is German: 70.0 → 68.0 (−2.0 points)."
        if worst
        else "No zero-shot language lost accuracy."
    )
    assert all(f"{before} {said}" in text for text in pages(report))
    assert '<div class="tile lost"><b>−2.9</b>' in render_html(report)
    report["languages"]["en"]["onnx_int8"] = 89.4
    assert "lost more" not in shipped.describe_shipped(report)
    assert '<div class="tile gained"><b>+0.1</b>' in render_html(report)


def test_a_difference_is_that_of_the_scores_as_shown():
    report = sample_report(1)
    report["languages"]["de"] |= {"dense": 80.46, "pruned": 79.84, "onnx_int8": 79.84, "delta": -0.62}
    report["summary"]["worst"] = {"language": "de", "delta": -0.62}
    report["summary"]["zero_shot_mean"] |= {"dense": 80.46, "pruned": 79.84, "onnx_int8": 79.84}
    for text in pages(report):
        assert "German: 80.5 → 79.8 (−0.7 points)" in text
        assert "−0.6" not in text
    row = next(row for row in findings.rows(report) if row.code == "de")
    assert (row.delta, findings.mean_rows(report)[0].delta) == (-0.7, -0.7)
    report["languages"]["de"] |= {"dense": 80.04, "onnx_int8": 79.96}
    assert findings.worst_language(report) is None, "80.0 → 80.0 is no loss that a reader can see"


def test_the_heading_names_the_model_and_the_task():
    report = sample_report()
    assert "<h1>multilingual-e5-small for quickstart</h1>" in render_html(report)
    report["model"]["name"] = "FacebookAI/xlm-roberta-base"
    report["task"]["title"] = "our tickets"
    for text in (render_markdown(report), model_card(report)):
        assert "# xlm-roberta-base for our tickets\n" in text
    assert "run quickstart" in render_html(report)
    assert shipped.describe_model({"name": "x"}) == "x"


def test_no_tile_is_alone_in_a_row():
    for count in range(2, 20):
        columns = shipped.columns_of(count)
        assert columns <= 5
        assert count % columns != 1


def test_without_int8_the_headline_is_about_fp32_and_claims_no_speed():
    report = sample_report()
    for part in ("files", "speed"):
        del report[part]["model.int8.onnx"]
    said = shipped.describe_shipped(report)
    assert "Shipped: model.onnx has 46.7 MB" in said
    assert "for 1 text of 32 tokens. Its zero-shot mean" in said
    assert "times as fast" not in said
    report["files"] = {}
    assert shipped.describe_shipped(report) == ""
    assert shipped.tiles(report)[0].figure == "−3.4", "the model before export"


def test_zeros_do_not_make_a_dense_file_slower_to_compare_with():
    said = shipped.describe_shipped(sample_report())
    assert (
        "3.76 times as fast as model.onnx (median ratio of calls in turns). model.onnx is as fast as dense fp32"
        in said
    )


def test_what_a_budget_predicted_stands_beside_what_was_measured():
    report = structured_report()
    said = (
        "The prediction was 12.4 ms (measured: 2.61 ms), 4.08 times the speed of dense fp32 (measured: 4.88 times), and "
        "18.2 MB (measured: 14.1 MB)."
    )
    assert all(said in text for text in pages(report))
    assert "The file was timed with" not in pages(report)[0]
    report["speed"]["model.int8.onnx"]["threads"] = 2
    assert f"{said} The file was timed with batch 1, 32 tokens, threads: 2." in pages(report)[0]
    report["packed"] = ["model.int8.onnx"]
    assert "18.2 MB without packing (measured: 14.1 MB)" in pages(report)[0]
    del report["files"]["model.int8.onnx"], report["speed"]["model.int8.onnx"]
    assert (
        "The prediction was 12.4 ms, 4.08 times the speed of dense fp32, and 18.2 MB without"
        in pages(report)[0]
    )


def test_margins_are_named_and_bullets_end_with_a_full_stop():
    report = structured_report()
    report["target_text"] = ["text was read"]
    report["task"]["train_notes"] = ["two rows were empty"]
    report["refused"] = {"fp16": "model.fp16.onnx is not shipped: it lost much"}
    markdown = render_markdown(report)
    assert "loses at most 0.5 points of the English dev score and 3 points of label agreement" in markdown
    report["quantization"]["margins"]["dev"] = 150 / 99
    few = "at most 1.52 points of the English dev score (what 1.5 of its 99 examples count for) and 3 points"
    assert few in render_markdown(report)
    bullets = re.findall(r"^- .*", markdown.split("## Recipe")[0], re.MULTILINE)
    assert len(bullets) > 8
    assert all(bullet.endswith(".") for bullet in bullets)
    del report["quantization"]["margins"]
    assert "margins" not in render_markdown(report)


# --- robustness ---


def test_alignment_is_named_by_what_it_is_measured_against():
    """The pretrained weights, though the regularizer may compare with the fine-tuned ones."""
    assert all_tables(sample_report())["alignment"].title == "Alignment with the pretrained weights"


def test_a_section_without_data_is_left_out():
    full = sample_report()
    titles = {name: table.title for name, table in all_tables(full).items()}
    other_keys = {"parts": "bytes_by_part", "alignment": "layers", "norms": "layers"}
    needs = {name: {other_keys.get(name, name)} for name in titles}
    for name in ("errors", "classes"):  # in the order of the languages
        needs[name].add("languages")
    for key in set().union(*needs.values()):
        report = {k: v for k, v in full.items() if k != key}
        text = render_markdown(report)
        shown = {name for name, title in titles.items() if f"## {title}\n" in text}
        assert shown == {name for name in titles if key not in needs[name]}
        Page(render_html(report))
        model_card(report)
        printed(report)


def test_an_empty_report_is_still_a_page():
    for text in (render_markdown({}), render_html({}), model_card({}), printed({})):
        assert "None" not in text
    assert "## " not in render_markdown({})


def forms_of(report):
    """The report as people read it, without line breaks; and its sentences, made of values that are not plain."""
    said = (findings.describe_scores(report), shipped.describe_shipped(report))
    shown = (render_markdown(report), " ".join(Page(render_html(report)).text), printed(report, 400), *said)
    return [" ".join(text.split()) for text in shown]


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("which", [["de"], ["de", "fr", "es", "it"], ["en", "de", "fr", "es", "it"]])
@pytest.mark.parametrize("mean", [True, False])
def test_scores_that_are_missing_are_not_claimed(missing, which, mean):
    report = sample_report(4)
    for code in report["languages"]:
        report["languages"][code]["onnx_int8"] = missing if code in which else 99.0
    report["summary"]["zero_shot_mean"]["onnx_int8"] = 71.9 if mean else missing
    absent = len(set(which) - {"en"})
    verb = "has" if absent == 1 else "have"
    for text in forms_of(report):
        assert not re.search(r"\bnan\b|\bNone\b", text)
        assert "No zero-shot language lost accuracy" not in text
    assert (
        f"{absent} of 4 zero-shot languages {verb} no score, and may have lost more." in forms_of(report)[0]
    )


def test_missing_scores_of_the_pruned_model_are_not_claimed():
    report = sample_report(4)
    for form in ("model.onnx", "model.int8.onnx"):
        del report["files"][form]
    for code, row in report["languages"].items():
        row["pruned"] = row["delta"] = None if code == "de" else 99.0
    text = forms_of(report)[0]
    assert "No zero-shot language lost accuracy" not in text
    assert "1 of 4 zero-shot languages has no score, and may have lost more." in text


@pytest.mark.parametrize("key", ["batch", "tokens", "threads"])
@pytest.mark.parametrize("absent", [True, False])
def test_conditions_of_a_speed_that_are_not_known_are_left_out(key, absent):
    report = sample_report(4)
    for entry in report["speed"].values():
        entry[key] = None
        if absent:
            del entry[key]
    for text in forms_of(report):
        assert "None" not in text


@pytest.mark.parametrize("name", ["percent", "score", "points", "p_value", "size", "number", "decimals"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_a_dash(name, value):
    assert getattr(formatting, name)(value) == formatting.DASH


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_subset_of_keys_renders(data):
    full = sample_report(4)
    keys = data.draw(st.sets(st.sampled_from(sorted(full))))
    report = {key: full[key] for key in keys}
    page = Page(render_html(report))
    assert not page.open
    assert "None" not in render_markdown(report).replace("NoneType", "")
    model_card(report)
    printed(report)


@pytest.mark.parametrize("zero_shot", [1, 2, 17, 59])
def test_two_to_sixty_languages(zero_shot):
    report = sample_report(zero_shot)
    page = Page(render_html(report))
    assert not page.open
    text = " ".join(page.text)
    for code in report["languages"]:
        assert language_name(code) in text
    assert len(render_html(report)) < 400_000
    assert f"over {zero_shot} language" in text
    assert "1 languages" not in text


def test_the_page_needs_nothing_from_outside():
    html = render_html(sample_report())
    page = Page(html)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [
        name for name, _ in page.attributes if name in ("src", "href", "action") or name.startswith("on")
    ]
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html


def test_what_users_write_cannot_break_out():
    report = sample_report(3)
    report["name"] = HOSTILE
    report["scaled_down"] = [HOSTILE]
    report["recipe"]["name"] = "```\n# broken"
    report["task"]["labels"] = ["`", HOSTILE]
    report["files"] = {HOSTILE: {"bytes": 10, "sha256": None}} | report["files"]
    for code in list(report["languages"])[1:2]:
        report["languages"][HOSTILE] = report["languages"].pop(code)
        for stage in report["stages"]:
            stage["languages"][HOSTILE] = stage["languages"].pop(code)
    page = Page(render_html(report))
    assert "script" not in page.tags
    assert any(HOSTILE in text for text in page.text)
    markdown = render_markdown(report)
    assert not re.search(r"(?<!\\)<script", markdown)
    table = markdown.split("## Languages")[1].split("\n\n")[2].splitlines()
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(bars) == 1, "a language's name ended a cell"
    assert "\n# broken" not in markdown.replace("````yaml", "").split("````")[0]
    card = model_card(report)
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == HOSTILE


def test_numbers_that_are_not_finite_become_null_and_a_dash(tmp_path):
    report = sample_report(2)
    report["languages"]["de"]["ci95"] = [math.nan, np.float64("nan")]
    report["languages"]["de"]["delta"] = np.float32(-1.5)
    report["layers"][0]["alignment"] = math.nan
    report["stages"][0]["loss"] = math.inf
    write(report, tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert stored["languages"]["de"]["ci95"] == [None, None]
    assert stored["languages"]["de"]["delta"] == -1.5
    assert "| 0 | 100.0% | – |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_write_leaves_whole_files_and_nothing_else(tmp_path):
    report = sample_report()
    write(report, tmp_path / "bundle")
    names = sorted(file.name for file in (tmp_path / "bundle").iterdir())
    assert names == ["README.md", "report.html", "report.json", "report.md"]
    assert json.loads((tmp_path / "bundle" / "report.json").read_text(encoding="utf-8")) == report


def test_a_failed_write_keeps_the_old_report(tmp_path):
    write(sample_report(2), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    broken = sample_report(3)
    broken["stages"] = [{"no": "density"}]
    with pytest.raises(KeyError):
        write(broken, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# --- drawings ---


def test_curves_end_where_the_numbers_say():
    stages = [
        {"encoder_density": 1.0, "languages": {"en": 90.0, "de": 50.0, "fr": 60.0}, "zero_shot_mean": 55.0},
        {"encoder_density": 0.5, "languages": {"en": 90.0, "de": 40.0, "fr": 60.0}, "zero_shot_mean": 50.0},
        {"encoder_density": 0.25, "languages": {"en": 90.0, "de": 30.0, "fr": 60.0}, "zero_shot_mean": 45.0},
    ]
    lines = charts.score_lines(stages, "en", "de")
    assert [(line.label, line.style) for line in lines] == [
        ("fr", "other"),
        ("de", "worst"),
        ("en", "train"),
        ("mean", "mean"),
    ]
    svg = charts.draw_scores(lines, 1000, 540, "accuracy")
    paths = re.findall(r'<polyline points="([^"]+)"', svg)
    points = [[tuple(map(float, pair.split(","))) for pair in path.split()] for path in paths]
    (x0, _), (x1, _), (x2, _) = points[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11), "halvings of the density are equally wide"
    de, en = points[1], points[2]
    assert de[0][1] < de[1][1] < de[2][1], "falling scores go down the page"
    assert de[2][1] - de[1][1] == pytest.approx(de[1][1] - de[0][1], abs=0.11)
    assert len({y for _, y in en}) == 1


def test_a_density_of_zero_and_a_language_measured_late_can_be_drawn():
    stages = [
        {"encoder_density": 1.0, "languages": {"en": 50.0}},
        {"encoder_density": 0.5, "languages": {"en": 50.0, "de": 50.0}},
        {"encoder_density": 0.0, "languages": {"en": 50.0, "de": None}},
    ]
    lines = charts.score_lines(stages, "en", None)
    assert [line.label for line in lines] == ["en"], "one point is no curve"
    assert "nan" not in charts.draw_scores(lines, 380, 420, "accuracy")


@given(st.lists(st.floats(0, 500), max_size=60))
def test_labels_never_overlap_and_stay_inside(places):
    places = sorted(places)
    moved = charts.space_apart(places, 13.0, 0.0, 500.0)
    gap = min(13.0, 500.0 / max(1, len(places) - 1))
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(moved))
    assert all(-1e-6 <= place <= 500 + 1e-6 for place in moved)
    far = [0.0, 100.0, 300.0]
    assert charts.space_apart(far, 13.0, 0.0, 500.0) == far


# --- labels, errors, norms, classes ---


def test_labels_and_errors_of_every_language_are_on_the_page():
    report = sample_report(3)
    page = " ".join(" ".join(Page(render_html(report)).text).split())
    for code, row in report["languages"].items():
        assert f"{language_name(code)}: {row['dense']:.1f} → {row['pruned']:.1f}" in page
    introduced = sum(entry["introduced"] for entry in report["errors"].values())
    said = f"is wrong on {introduced} of {640 * 4:,} texts in 4 languages"
    assert said in page
    assert said in render_markdown(report)
    line = "| German | Schalte das Licht in der Küche ein | HassTurnOn | HassTurnOn | HassTurnOff |"
    assert line in render_markdown(report)
    shown = {row.name: row for row in labels.languages_answered(report)}
    counts = report["answers"]["de"]["pruned"]
    assert [[count for count, _, _ in cells] for _, cells in shown["German"].grid["rows"]] == [
        [counts[gold][answer] for answer in LABELS] for gold in LABELS
    ]


def test_a_matrix_too_large_to_read_is_left_out_and_the_scores_stay():
    report = sample_report(1)
    names = [f"label {number}" for number in range(labels.MOST_LABELS + 1)]
    report["task"]["labels"] = names
    for entry in report["answers"].values():
        for model in entry:
            entry[model] = {name: {name: 3} for name in names}
    found = labels.languages_answered(report)
    assert [language.grid for language in found] == [None, None]
    assert len(found[0].table.rows) == len(names)
    assert 'class="confusion"' not in render_html(report)


def test_errors_of_tagging_name_the_word_and_pairs_have_both_texts():
    report = sample_report(1)
    shown = report["errors"]["de"]["shown"]
    for number, error in enumerate(shown):
        error["word"] = f"word{number}"
    report["errors"] = {"de": {**report["errors"]["de"], "shown": shown}}
    assert "| German | Schalte das Licht in der Küche ein | word0 | HassTurnOn |" in render_markdown(report)
    assert "word0" in render_html(report)
    for error in shown:
        del error["word"]
        error["second"] = "Es wird hell"
    assert "Küche ein / Es wird hell" in render_markdown(report)
    assert "Küche ein<br>Es wird hell" in render_html(report)


def test_every_point_and_norm_is_drawn():
    report = sample_report(2)
    html = render_html(report)
    points = sum(2 * len(entry["labels"]) for entry in report["classes"]["points"].values())
    assert len(re.findall(r'<circle class="c\d" ', html)) == points
    assert len(re.findall(r'<svg class="panel"', html)) == 6
    assert re.search(r"\| 0 \| 1\d\.\d → \d", render_markdown(report))
    for layer in report["layers"]:
        del layer["pretrained_norm"]
    assert "Weight norms" not in render_html(report), "a report of an older version"


def test_classes_beyond_sixteen_are_grey():
    styles = charts.class_styles([str(number) for number in range(20)])
    assert len(set(styles.values())) == 17
    assert styles["7"] == "c7"
    assert styles["8"] == "c0 dashed"
    assert styles["19"] == charts.REST
    extent = charts.extent_of([[1.0, 1.0]])
    assert extent[0] < 1 < extent[1]
    assert "nan" not in charts.draw_classes([[1.0, 1.0]], ["0"], styles, extent, ("a", "b"), "one point")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OUTSIDE = """<script>
const out = [...document.querySelectorAll("section *, .tile *")].filter((element) => {
  const card = element.closest("section, .tile").getBoundingClientRect();
  const box = element.getBoundingClientRect();
  return !element.closest(".scroll, pre, svg") && box.width && (box.right > card.right + 1 || box.left < card.left - 1);
});
const wide = document.body.scrollWidth - document.body.clientWidth;
document.title = `out of their cards: ${out.length}, too wide: ${wide}`;
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_stands_out_of_its_card(tmp_path, width):
    page = tmp_path / "report.html"
    html = render_html(sample_report(3)).replace("<details", "<details open")
    # A window of headless Chromium has at least 500 pixels.
    html = html.replace("</head>", f"<style>html {{ width: {width}px }}</style></head>")
    page.write_text(html.replace("</body>", OUTSIDE + "</body>"), encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += [f"--window-size={width},900", "--dump-dom", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False).stdout
    assert "<title>out of their cards: 0, too wide: 0</title>" in found, found[:400]


# --- the model card ---


def test_the_card_opens_with_what_hubs_read():
    card = model_card(sample_report())
    facts = yaml.safe_load(card.split("---\n")[1])
    assert facts["license"] == "mit"
    assert facts["base_model"] == "intfloat/multilingual-e5-small"
    assert "zh" in facts["language"]
    results = facts["model-index"][0]["results"]
    assert {result["dataset"]["config"] for result in results} == set(sample_report()["languages"])


def test_the_card_names_the_oldest_runtime_that_opens_the_files():
    report = sample_report()
    report["opset"] = 18
    assert "opset 18; ONNX Runtime 1.15 and newer open them" in model_card(report)
    table = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    oldest = " | ".join(OLDEST_RUNTIME[opset] for opset in (18, 19, 20, 21, 22, 23, 24))
    assert OLDEST_RUNTIME[24] == OLDEST_RUNTIME[25]
    assert f"| oldest ONNX Runtime | {oldest} |" in table


def test_an_unknown_licence_is_said_to_be_unknown():
    report = sample_report(2)
    report["model"]["licence"] = report["task"]["licence"] = None
    card = model_card(report)
    assert card.count("unknown; ask the publisher") == 2
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"


def small_bundle(folder: Path, kind: str) -> None:
    """An ONNX file with the bundle's inputs and outputs: each token votes for the label its id leaves modulo 3."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?.,ü",
    ]
    vocabulary = [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    votes = np.eye(3, dtype=np.float32)[np.arange(len(pieces)) % 3]
    nodes = [helper.make_node("Gather", ["votes", "input_ids"], ["each"])]
    if kind == "tokens":
        nodes += [helper.make_node("Identity", ["each"], ["logits"])]
        shape = ["batch", "sequence", 3]
    else:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
            helper.make_node("Mul", ["each", "wide"], ["seen"]),
            helper.make_node("ReduceSum", ["seen", "axes"], ["logits"], keepdims=0),
        ]
        shape = ["batch", 3]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    weights = [
        onnx.numpy_helper.from_array(votes, "votes"),
        onnx.numpy_helper.from_array(np.array([-1]), "last"),
        onnx.numpy_helper.from_array(np.array([1]), "axes"),
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "small", inputs, [output], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        folder / "model.onnx",
    )
    config = {"id2label": {"0": "nought", "1": "one", "2": "two"}, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text", r"schalte das Licht in der Küche ein\t(nought|one|two)\t[01]\.\d+"),
        ("pair", r"Ein Mann spielt Gitarre\.\tNiemand macht Musik\.\t(nought|one|two)\t[01]\.\d+"),
        ("tokens", r"Angela/\w+ Merkel/\w+ wohnt/\w+ in/\w+ Berlin/\w+"),
    ],
)
def test_the_code_in_the_card_runs_as_it_stands(tmp_path, kind, expected):
    report = sample_report(2)
    report["task"]["kind"] = kind
    del report["files"]["model.int8.onnx"]
    small_bundle(tmp_path, kind)
    code = model_card(report).split("```python\n")[1].split("```")[0]
    code += "\nimport sys\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(expected, result.stdout)


def test_reading_a_report_needs_no_torch():
    code = (
        "import sys, xlmprune.report.pages; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("tested", "said"), [(4, "0.2"), (14, "0.7"), (50, "2"), (200, "10"), (430, "22")])
def test_how_many_p_values_fall_by_chance_is_a_plain_number(tested, said):
    report = {"paired": {str(number): {} for number in range(tested)}}
    assert f"of {tested}, about {said} would" in findings.describe_chance(report)


def test_a_form_whose_answers_depend_on_the_batch_is_said_so():
    report = sample_report()
    said = findings.describe_batches(report)
    assert len(said) == 1
    assert "of 200 answers, 1.5% had another label alone than in batches of" in said[0]
    assert said[0] in model_card(report)
    report["parity"]["onnx_int8"]["alone"]["agreement"] = 1.0
    assert findings.describe_batches(report) == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "training.last_epochs=0.1",
            "15 epochs in the dense stage, 15 epochs in each later stage but the last, 0.1 of an epoch in the last stage",
        ),
        (
            "training.last_epochs=0",
            "15 epochs in the dense stage, 15 epochs in each later stage but the last, 0 epochs in the last stage",
        ),
        ("training.dense_epochs=3", "3 epochs in the dense stage, 15 epochs in each later stage"),
        ("training.epochs_per_stage=0.5", "0.5 of an epoch in every stage"),
    ],
)
def test_every_stage_that_trains_less_than_the_papers_is_scaled_down(option, said):
    assert results.scaled_down(load_recipe("xnli_cosine")) == []
    found = results.scaled_down(load_recipe("xnli_cosine", [option]))
    assert found == [f"{said} (the paper trains 15 in every stage)"]


def test_a_scaled_down_dense_stage_is_named_beside_the_others():
    recipe = load_recipe("topics_small", ["training.dense_epochs=1.4", "training.epochs_per_stage=0.91"])
    assert results.scaled_down(recipe)[-1] == (
        "1.4 epochs in the dense stage, 0.91 of an epoch in the pruned stage (the default, as in the paper, is 15 in "
        "every stage)"
    )


@pytest.mark.parametrize(
    ("stages", "last", "said"),
    [
        (0, "null", ["6 epochs in the dense stage"]),
        (1, "null", ["6 epochs in the dense stage, 0.5 of an epoch in the pruned stage"]),
        (1, "20", ["6 epochs in the dense stage, 20 epochs in the pruned stage"]),
        (
            2,
            "20",
            [
                "6 epochs in the dense stage, 0.5 of an epoch in each later stage but the last, 20 epochs in the last "
                "stage"
            ],
        ),
    ],
)
def test_only_stages_that_exist_are_scaled_down(stages, last, said):
    options = [
        *("training.dense_epochs=6", "training.epochs_per_stage=0.5", f"training.last_epochs={last}"),
        f"pruning.schedule={{name: geometric, stages: {stages}}}",
    ]
    found = results.scaled_down(load_recipe("xnli_cosine", options))
    assert found == [f"{sentence} (the paper trains 15 in every stage)" for sentence in said]


def test_no_key_of_the_recipe_keeps_a_path_of_this_machine():
    values = {
        "model": {"vocabulary": {"files": ["x"]}},
        "pruning": {"structure": {"budget": {"latency_ms": 5}}},
        "distillation": {"teacher": "finetuned"},
    }
    for *sections, key in PATHS:
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = "/a/machine/folder/{language}" if key != "files" else ["/a/machine/folder/{language}"]
    recipe = recipe_of(values, {"task.name": "classification", "task.source": "files"})
    assert json.dumps(recipe.resolved()).count("/a/machine/folder/{language}") == len(PATHS)
    kept = json.dumps(without_machine_paths(recipe))
    assert "machine" not in kept
    assert kept.count('"folder/{language}"') == len(PATHS)

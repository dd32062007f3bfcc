"""The benchmark that asks whether pruning for one language helps."""

import runpy
from pathlib import Path

import pytest

smallest = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "per_language.py"))["smallest"]


def test_every_model_reads_as_many_texts_as_the_smallest_language_has():
    report = {"languages": {"en": {}, "de": {}, "th": {}}, "unlabelled": {"en": 1958, "de": 560, "th": 524}}
    assert smallest(report) == 524
    del report["unlabelled"]["th"]
    with pytest.raises(
        SystemExit, match="no unlabelled text is counted in th; say how many to read: --texts"
    ):
        smallest(report)

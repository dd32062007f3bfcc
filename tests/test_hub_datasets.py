"""Data sets of the hub, downloaded from a hub on this machine; each process has HF_ENDPOINT set, as for a mirror."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import hub_server
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value
from golden import write_inputs
from hub_server import READER
from tiny import SENTENCES

READ = """
import json, sys
from xlmprune.core.errors import XlmpruneError
from xlmprune.recipe import registry
from xlmprune.recipe.loading import recipe_of
from xlmprune.training.revisions import pin

for name, language, split in json.loads(sys.argv[1]):
    try:
        recipe = pin(recipe_of({"name": "x", "task": {"name": name, "source": "hub"}}, {}))
        task = registry.load("task", name)(recipe.task)
        found = task.examples(language, split)
        labels = [[task.labels[tag] for tag in row] if isinstance(row, list) else task.labels[row] for row in found.labels]
        said = {"revision": recipe.task.revision, "first": found.first, "second": found.second, "labels": labels}
    except XlmpruneError as error:
        said = {"error": str(error), "code": error.exit_code}
    print(json.dumps(said), flush=True)
"""

VERDICTS = ("entailment", "neutral", "contradiction")
XNLI = Features(
    {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=list(VERDICTS))}
)
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
WIKIANN = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=list(TAGS)))})


def repository(splits: dict[tuple[str, str], Dataset]) -> dict[str, bytes]:
    """Lay data out as the hub's sets are: a Parquet file a split, and a card that names the configs."""
    files: dict[str, bytes] = {}
    configs: dict[str, list[dict[str, str]]] = {}
    for (config, split), rows in splits.items():
        file = io.BytesIO()
        rows.to_parquet(file)
        files[f"{config}/{split}-00000-of-00001.parquet"] = file.getvalue()
        configs.setdefault(config, []).append({"split": split, "path": f"{config}/{split}-*"})
    card = {"configs": [{"config_name": name, "data_files": paths} for name, paths in configs.items()]}
    return {**files, "README.md": f"---\n{yaml.safe_dump(card)}---\n# A data set\n".encode()}


def pairs(language: str, count: int) -> Dataset:
    """Pairs whose label the first word tells, in another script for other languages."""
    words = SENTENCES[language]
    rows = [(f"{words[row % 3]} {language}", f"{row} {words[row % 3]}", row % 3) for row in range(count)]
    return Dataset.from_list([dict(zip(XNLI, row)) for row in rows], features=XNLI)


def xnli(languages: tuple[str, ...] = ("en", "de"), count: int = 24) -> dict[str, bytes]:
    splits = {("en", split): pairs("en", count) for split in ("train", "validation")}
    return repository(splits | {(language, "test"): pairs(language, count) for language in languages})


@pytest.fixture
def hub():
    with hub_server.running() as hub:
        yield hub


def environment(hub, home: Path, **settings: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **settings}


def read(hub, home: Path, *wanted: tuple[str, str, str], **settings: str) -> list[dict]:
    """Read splits in a fresh process whose cache is ``home``."""
    result = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(wanted)],
        env=environment(hub, home, **settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_data_sets_are_pinned_cached_and_found_offline(hub, tmp_path):
    first = hub.add("facebook/xnli", xnli(), kind="datasets")
    train, german = read(hub, tmp_path, ("xnli", "en", "train"), ("xnli", "de", "test"))
    assert (train["revision"], german["revision"]) == (first, first)
    assert train["first"][:2] == [f"{sentence} en" for sentence in SENTENCES["en"][:2]]
    assert train["second"][:2] == [f"{row} {sentence}" for row, sentence in enumerate(SENTENCES["en"][:2])]
    assert train["labels"] == [VERDICTS[row % 3] for row in range(24)]
    assert german["first"][0].endswith(" de")

    del hub.asked[:]
    again = read(hub, tmp_path, ("xnli", "de", "test"), ("xnli", "fr", "test"), HF_HUB_OFFLINE="1")
    assert again[0] == german
    assert again[1]["code"] == 2
    assert "Unset HF_HUB_OFFLINE" in again[1]["error"]
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_is_named_at_once(tmp_path):
    with hub_server.running() as closed:
        pass
    begun = time.monotonic()
    train, test = read(closed, tmp_path, ("xnli", "en", "train"), ("xnli", "de", "test"))
    for found in (train, test):
        assert found["code"] == 2
        assert f"facebook/xnli (config {'en' if found is train else 'de'}" in found["error"]
        assert f"{closed.endpoint} cannot be reached" in found["error"]
        assert "HF_HUB_OFFLINE" not in found["error"]
    assert time.monotonic() - begun < 60, "Python's start and imports included"


@pytest.mark.slow
def test_a_newer_commit_is_read_and_an_older_one_can_be_pinned(hub, tmp_path):
    old = hub.add("facebook/xnli", xnli(count=6), kind="datasets")
    assert read(hub, tmp_path, ("xnli", "en", "train"))[0]["revision"] == old
    new = hub.repositories["datasets/facebook/xnli"].commit("main", xnli(count=9))
    found = read(hub, tmp_path, ("xnli", "en", "train"))[0]
    assert (found["revision"], len(found["first"])) == (new, 9)


@pytest.mark.slow
def test_labels_of_words_are_read_by_name(hub, tmp_path):
    rows = [{"tokens": ["Anna", "wohnt", "in", "Köln"], "ner_tags": [1, 0, 0, 5]}]
    hub.add(
        "unimelb-nlp/wikiann",
        repository({("de", "test"): Dataset.from_list(rows, features=WIKIANN)}),
        "datasets",
    )
    (found,) = read(hub, tmp_path, ("ner", "de", "test"))
    assert found["first"] == [["Anna", "wohnt", "in", "Köln"]]
    assert found["labels"] == [["B-PER", "O", "O", "B-LOC"]]


@pytest.mark.slow
def test_what_the_hub_refuses_is_a_sentence(hub, tmp_path):
    (nothing,) = read(hub, tmp_path, ("xnli", "en", "train"))
    hub.add("facebook/xnli", xnli(), kind="datasets", gated=True)
    gated, language = read(hub, tmp_path, ("xnli", "en", "train"), ("xnli", "fr", "test"), HF_TOKEN=READER)
    (token,) = read(hub, tmp_path / "other", ("xnli", "en", "train"), HF_TOKEN="hf_wrong")
    assert "doesn't exist on the Hub or cannot be accessed" in nothing["error"]
    assert "to ask for access" in gated["error"]
    assert "does not accept the token" in token["error"]
    for found in (nothing, gated, language, token):
        assert "Check the network" not in found["error"]
        assert found.get("code") == 2, found
        assert "facebook/xnli" in found["error"]
        assert READER not in found["error"]


@pytest.mark.slow
def test_a_run_takes_model_and_data_from_the_hub_and_pins_both(hub, tmp_path):
    write_inputs(tmp_path)
    model = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    commits = hub.add("some/model", model), hub.add("facebook/xnli", xnli(), kind="datasets")
    recipe = {
        "name": "fromhub",
        "model": {"name": "some/model"},
        "task": {"name": "xnli", "languages": ["de"]},
        "training": {"epochs_per_stage": 1, "batch_size": 8, "max_length": 32, "precision": "fp32"},
        "pruning": {"schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1}},
        "export": {"onnx": ["fp32"]},
    }
    (tmp_path / "fromhub.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "xlmprune", "compress", "fromhub.yaml"]

    def compress(**settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--device", "cpu", *(("--fresh",) if settings else ())],
            cwd=tmp_path,
            env=environment(hub, tmp_path / "home", **settings),
            capture_output=True,
            text=True,
            check=False,
        )

    done = compress()
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "fromhub"
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (resolved["model"]["revision"], resolved["task"]["revision"]) == commits
    card = (run / "bundle" / "README.md").read_text()
    assert all(commit in card for commit in commits)
    offline = compress(HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr

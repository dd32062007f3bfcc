"""Models of the hub, downloaded from a hub on this machine; each process starts as a user's does, with HF_ENDPOINT set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import transformers
from golden import write_inputs
from hub_server import READER, WRITER
from huggingface_hub.errors import HTTPError

from xlmprune.core.errors import MachineError
from xlmprune.models.loading import load_config
from xlmprune.recipe.schema import ModelRecipe

TRY = """
import json, sys, time
from xlmprune.core.errors import XlmpruneError
from xlmprune.core.hub import commit_of
from xlmprune.models.loading import load_pretrained
from xlmprune.recipe.schema import ModelRecipe

for name, revision in json.loads(sys.argv[1]):
    begun = time.monotonic()
    try:
        commit = commit_of(name, "model", revision)
        found = load_pretrained(ModelRecipe(name=name, revision=commit or revision), "text", ("no", "yes"), seed=1)
        weights = sum(float(weight.sum()) for name, weight in found.model.named_parameters() if ".encoder." in name)
        said = {"commit": commit, "revision": found.origin["revision"], "weights": weights}
    except XlmpruneError as error:
        said = {"error": str(error), "code": error.exit_code}
    said["seconds"] = time.monotonic() - begun
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    write_inputs(folder)
    return {file.name: file.read_bytes() for file in (folder / "model").iterdir()}


@pytest.fixture
def hub(model):
    with hub_server.running() as hub:
        yield hub


def load(hub, home: Path, *wanted, token: str | None = None, **settings: str) -> list[dict]:
    """Load models in a fresh process whose cache is ``home``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {
        **kept,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        **({} if token is None else {"HF_TOKEN": token}),
        **settings,
    }
    command = [sys.executable, "-c", TRY, json.dumps(wanted)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_models_are_resolved_cached_and_found_offline(hub, model, tmp_path):
    first = hub.add("some/model", model)
    repository = hub.repositories["models/some/model"]
    other = json.loads(model["config.json"])
    other["hidden_dropout_prob"] = 0.3
    second = repository.commit("main", {**model, "config.json": json.dumps(other).encode()})
    repository.branches["old"] = first
    newest, old, pinned = load(
        hub, tmp_path, ("some/model", None), ("some/model", "old"), ("some/model", first)
    )
    assert (newest["commit"], newest["revision"]) == (second, second)
    assert (old["commit"], old["revision"]) == (first, first)
    assert (pinned["commit"], pinned["revision"]) == (first, first)
    assert newest["weights"] == old["weights"] == pinned["weights"]
    fetched = [line for line in hub.asked if line.startswith("GET") and "model.safetensors" in line]
    assert len(fetched) == 1, "one file of two commits is downloaded once"

    del hub.asked[:]
    again = load(hub, tmp_path, ("some/model", None), ("other/model", None), HF_HUB_OFFLINE="1")
    assert {**again[0], "seconds": 0} == {**newest, "seconds": 0}
    assert again[1]["code"] == 2
    assert "other/model could not be loaded from the Hugging Face hub" in again[1]["error"]
    assert "HF_HUB_OFFLINE is set" in again[1]["error"]
    assert hub.asked == []


@pytest.mark.slow
def test_what_the_hub_refuses_is_a_sentence_that_helps(hub, model, tmp_path):
    hub.add("some/gated", model, gated=True)
    hub.add("some/private", model, private=True)
    hub.add("some/model", model)
    wanted = (
        ("some/nothing", None),
        ("some/gated", None),
        ("some/private", None),
        ("some/model", "no-such-branch"),
    )
    nothing, gated, private, branch = load(hub, tmp_path, *wanted, token=READER)
    assert all(entry.get("code") == 2 for entry in (nothing, gated, branch)), (nothing, gated, branch)
    assert "the hub does not know it, or your token may not see it" in nothing["error"]
    assert "ask for access on its page" in gated["error"]
    assert private["revision"], "a token that may see it"
    assert "no-such-branch" in branch["error"]
    unknown, *_ = load(hub, tmp_path / "other", ("some/private", None), token="hf_wrong")
    assert "the hub does not accept the token" in unknown["error"]
    assert WRITER not in json.dumps([nothing, gated, branch, unknown])


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(hub, model, tmp_path):
    """Its clients try each file six times, for half a minute, and say so each time."""
    commit = hub.add("some/model", model)
    (known,) = load(hub, tmp_path, ("some/model", None))
    with hub_server.running() as closed:
        pass
    cached, missing = load(closed, tmp_path, ("some/model", None), ("other/model", None))
    assert (cached["commit"], cached["weights"]) == (commit, known["weights"])
    assert missing["code"] == 2
    assert f"{closed.endpoint} cannot be reached" in missing["error"]
    assert "Check the network and HF_ENDPOINT" in missing["error"]
    assert "HF_HUB_OFFLINE" not in missing["error"]
    assert missing["seconds"] < 12


def test_a_cache_that_cannot_be_written_is_named_with_its_owner(hub, model, tmp_path):
    """Not a fault of the network, as it was called."""
    hub.add("some/model", model)
    (tmp_path / "file").write_text("", encoding="utf-8")
    (refused,) = load(hub, tmp_path / "file" / "home", ("some/model", None))
    assert refused["code"] == 2
    assert "could not be put into the cache" in refused["error"]
    assert (
        f"{tmp_path / 'file'} cannot be written to (not a directory); it belongs to the user"
        in refused["error"]
    )
    assert "Set HF_HOME" in refused["error"]
    assert "offline" not in refused["error"]


@pytest.mark.parametrize(
    "gone", ["Server disconnected without sending a response", "Connection reset by peer"]
)
def test_a_connection_that_breaks_is_a_sentence(monkeypatch, gone):
    def broken(*_, **__):
        raise HTTPError(gone)

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", broken)
    with pytest.raises(MachineError, match=re.escape(f"cannot be reached ({gone}). Check the network")):
        load_config(ModelRecipe(name="some/model"), ("no", "yes"))

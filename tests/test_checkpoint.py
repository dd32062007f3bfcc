"""The run folder: whole or absent, whatever happens in between."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from xlmprune import recipe as recipes
from xlmprune.core.errors import MachineError, ModelError, RecipeError
from xlmprune.core.files import explain_disk
from xlmprune.training.checkpoint import open_run


def make_recipe(**changes):
    return recipes.Recipe.model_validate({"name": "tiny", "task": {"name": "quickstart"}, **changes})


def tensors(value):
    return {
        "model": {"a": torch.full((2, 3), float(value)), "b": torch.arange(3)},
        "masks": {"m": torch.ones(4, dtype=torch.bool)},
    }


def test_saved_is_read_back_and_older_ones_go(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert folder.latest() is None
        folder.save(tensors(1), {"stage": 1})
        folder.save(tensors(2), {"stage": 2})
        found, state = folder.latest()
        assert state["stage"] == 2
        assert torch.equal(found["model"]["a"], torch.full((2, 3), 2.0))
        assert found["masks"]["m"].dtype is torch.bool
        assert [path.name for path in folder.checkpoints.glob("saved-*")] == ["saved-000002"]


def test_nothing_is_pickled(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save(tensors(1), {"stage": 1})
        names = {path.suffix for path in folder.checkpoints.rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}


def test_a_half_written_checkpoint_is_swept_away(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save(tensors(1), {"stage": 1})
        partial = folder.checkpoints / ".partial-000002"
        partial.mkdir()
        (partial / "model.safetensors").write_bytes(b"half")
    temporary = tmp_path / "run" / ".temporary-abc"
    temporary.mkdir()
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert not partial.exists()
        assert not temporary.exists()
        assert folder.latest()[1]["stage"] == 1


def test_events_after_the_checkpoint_are_written_again(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.events.write("stage", stage=0)
        folder.save(tensors(1), {})
        folder.events.write("update", number=7)
        with folder.events.path.open("a") as file:
            file.write('{"event": "cut sho')
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.latest()
        assert [event["event"] for event in folder.events.read()] == ["stage"]


def test_another_recipe_is_refused_and_fresh_starts_over(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save(tensors(1), {})
    with pytest.raises(RecipeError, match=r"seed is 42 there and 7 here.*--fresh"):
        open_run(tmp_path / "run", make_recipe(seed=7))
    with open_run(tmp_path / "run", make_recipe(seed=7), fresh=True) as folder:
        assert folder.latest() is None


def test_fresh_loses_nothing_where_the_bundle_cannot_be_removed(tmp_path, monkeypatch):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.events.write("stage", stage=0)
        folder.save(tensors(1), {})
        folder.bundle.mkdir()
        (folder.bundle / "report.json").write_text("{}")
    rmtree = shutil.rmtree

    def refuse(path, ignore_errors=False):
        if path.name != "bundle":
            rmtree(path, ignore_errors)
        elif not ignore_errors:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(MachineError, match=r"cannot be written to .*Permission denied.*bundle.*--out"):
        open_run(tmp_path / "run", make_recipe(), fresh=True)
    monkeypatch.undo()
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert folder.latest() is not None
        assert len(folder.events.read()) == 1
    with open_run(tmp_path / "run", make_recipe(), fresh=True) as folder:
        assert folder.latest() is None
        assert not folder.bundle.exists()


def test_a_folder_of_a_version_that_had_fewer_keys_goes_on(tmp_path):
    """Where the new key has its default; another value is another recipe."""
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save(tensors(1), {})
    file = tmp_path / "run" / "recipe.yaml"
    values, _ = recipes.parse_yaml(file.read_text(encoding="utf-8"), str(file))
    del values["evaluation"]["stage_interval"]
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert folder.latest() is not None
    with pytest.raises(RecipeError, match=r"evaluation.stage_interval is 1 there and 3 here"):
        open_run(tmp_path / "run", make_recipe(evaluation={"stage_interval": 3}))
    values["evaluation"]["no_such_key"] = 1
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"evaluation.stage_interval is null there and 1 here"):
        open_run(tmp_path / "run", make_recipe())


def test_a_damaged_checkpoint_is_said_to_be_so(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save(tensors(1), {})
        file = next(folder.checkpoints.glob("saved-*/model.safetensors"))
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(ModelError, match="damaged"):
            folder.latest()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null"])
def test_an_empty_state_is_a_damaged_checkpoint(tmp_path, content):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save(tensors(1), {})
        next(folder.checkpoints.glob("saved-*/state.json")).write_text(content)
        with pytest.raises(ModelError, match=r"damaged.*--fresh"):
            folder.latest()


def test_a_file_that_is_gone_is_named(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save(tensors(1), {})
        next(folder.checkpoints.glob("saved-*/masks.safetensors")).unlink()
        with pytest.raises(ModelError, match=r"masks\.safetensors missing.*--fresh"):
            folder.latest()


def test_one_process_at_a_time(tmp_path):
    with (
        open_run(tmp_path / "run", make_recipe()),
        pytest.raises(MachineError, match="in use by another process"),
    ):
        open_run(tmp_path / "run", make_recipe())
    with open_run(tmp_path / "run", make_recipe()):
        pass


def test_places_that_cannot_hold_a_run(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="not a folder"):
        open_run(tmp_path / "file" / "run", make_recipe())
    with pytest.raises(MachineError, match="cannot be written to"), explain_disk(tmp_path):
        raise PermissionError(13, "Permission denied")


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from xlmprune import recipe as recipes
from xlmprune.core.errors import MachineError
from xlmprune.training.checkpoint import open_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
recipe = recipes.Recipe.model_validate({"name": "tiny", "task": {"name": "quickstart"}})
with open_run(Path(sys.argv[1]), recipe) as folder:
    folder.save({"model": {"a": torch.ones(10)}}, {"stage": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        folder.save({"model": {"a": torch.ones(1_000_000)}}, {"stage": 2})
    except MachineError as error:
        print(error)
"""


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert "disk is full" in done.stdout
    with open_run(tmp_path / "run", make_recipe()) as folder:
        found, state = folder.latest()
        assert state["stage"] == 1
        assert torch.equal(found["model"]["a"], torch.ones(10))


def test_recipe_file_alone_repeats_the_run(tmp_path):
    with open_run(tmp_path / "run", make_recipe(seed=3)) as folder:
        again = recipes.load(str(folder.path / "recipe.yaml"))
    assert again == make_recipe(seed=3)


def test_finished_run_is_known_by_its_report(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert folder.finished() is None
        folder.bundle.mkdir()
        (folder.bundle / "report.json").write_text(json.dumps({"name": "tiny"}))
        assert folder.finished() == {"name": "tiny"}

"""The run folder: whole or absent, whatever happens in between."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from xlmprune.core.errors import MachineError, ModelError, RecipeError
from xlmprune.core.files import explain_disk
from xlmprune.core.run_folder import start_damage
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.schema import Recipe
from xlmprune.recipe.yaml_text import parse_yaml
from xlmprune.training.checkpoint import open_run


def make_recipe(**changes):
    return Recipe.model_validate({"name": "tiny", "task": {"name": "quickstart"}, **changes})


def tensors(value):
    return {
        "model": {"a": torch.full((2, 3), float(value)), "b": torch.arange(3)},
        "masks": {"m": torch.ones(4, dtype=torch.bool)},
    }


def open_started(path, **changes):
    """A run folder whose starting model is there, as it is before the first checkpoint."""
    folder = open_run(path, make_recipe(**changes))
    if not folder.start.is_dir():
        folder.save_start(lambda target: (target / "config.json").write_text("{}"))
    return folder


def test_saved_is_read_back_and_the_one_before_is_kept(tmp_path):
    with open_started(tmp_path / "run") as folder:
        assert folder.latest(print) is None
        for stage in (1, 2, 3):
            folder.save(tensors(stage), {"stage": stage})
        found, state = folder.latest(print)
        assert state["stage"] == 3
        assert torch.equal(found["model"]["a"], torch.full((2, 3), 3.0))
        assert found["masks"]["m"].dtype is torch.bool
        kept = sorted(path.name for path in folder.checkpoints.glob("saved-*"))
        assert kept == ["saved-000002", "saved-000003"]


def test_a_checkpoint_that_a_kill_left_behind_its_two_successors_is_deleted(tmp_path):
    with open_started(tmp_path / "run") as folder:
        for stage in (1, 2, 3):
            folder.save(tensors(stage), {"stage": stage})
        # Killed after the third was in place, and before the first was deleted.
        shutil.copytree(folder.checkpoints / "saved-000002", folder.checkpoints / "saved-000001")
    with open_started(tmp_path / "run") as folder:
        kept = sorted(path.name for path in folder.checkpoints.glob("saved-*"))
        assert kept == ["saved-000002", "saved-000003"]


def test_nothing_is_pickled(tmp_path):
    with open_started(tmp_path / "run") as folder:
        folder.save(tensors(1), {"stage": 1})
        names = {path.suffix for path in folder.checkpoints.rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json", ".sha256"}


def test_what_a_crash_left_is_deleted(tmp_path):
    with open_started(tmp_path / "run") as folder:
        folder.save(tensors(1), {"stage": 1})
        unfinished = [
            folder.checkpoints / ".partial-000002",
            folder.own / "bundle",
            folder.own / "discarded-x",
        ]
        for path in unfinished:
            path.mkdir()
            (path / "model.safetensors").write_bytes(b"half")
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert not any(path.exists() for path in unfinished)
        assert folder.latest(print)[1]["stage"] == 1


def test_events_after_the_checkpoint_are_written_again(tmp_path):
    with open_started(tmp_path / "run") as folder:
        folder.events.write("stage", stage=0)
        folder.save(tensors(1), {})
        folder.events.write("update", number=7)
        with folder.events.path.open("a") as file:
            file.write('{"event": "cut sho')
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.go_back_to(folder.latest(print)[1])
        assert [event["event"] for event in folder.events.read()] == ["stage"]


def test_another_recipe_is_refused_and_fresh_starts_over(tmp_path):
    with open_started(tmp_path / "run") as folder:
        folder.save(tensors(1), {})
    with pytest.raises(RecipeError, match=r"seed is 42 there and 7 here.*--fresh"):
        open_run(tmp_path / "run", make_recipe(seed=7))
    with open_run(tmp_path / "run", make_recipe(seed=7), fresh=True) as folder:
        assert folder.latest(print) is None


def test_fresh_loses_nothing_where_the_bundle_cannot_be_removed(tmp_path, monkeypatch):
    with open_started(tmp_path / "run") as folder:
        folder.events.write("stage", stage=0)
        folder.save(tensors(1), {})
        seal(folder.bundle, "report.json")
    rename = Path.replace

    def refuse(path, target):
        if path.name == "bundle":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(MachineError, match=r"cannot be written to .*Permission denied.*bundle.*--out"):
        open_run(tmp_path / "run", make_recipe(), fresh=True)
    monkeypatch.undo()
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert folder.latest(print) is not None
        assert len(folder.events.read()) == 1
    with open_run(tmp_path / "run", make_recipe(), fresh=True) as folder:
        assert folder.latest(print) is None
        assert not folder.bundle.exists()


# --- what is not ours ------------------------------------------------------------------------------------------------


def seal(bundle, *names):
    """A bundle with these files and the manifest that lists them."""
    bundle.mkdir()
    for name in names:
        (bundle / name).write_text("{}")
    (bundle / "manifest.json").write_text(json.dumps({"files": {name: {} for name in names}}))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "events.jsonl",
        "scores.safetensors",
        "checkpoint/mine.bin",
        "bundle/app.js",
        "bundle/report.json",
    ],
)
def test_a_folder_that_we_did_not_make_is_refused_and_stays_as_it_is(tmp_path, name, fresh):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(RecipeError, match=rf"holds {name.split('/')[0]}, which .* did not write.*--out"):
        open_run(tmp_path, make_recipe(), fresh)
    assert contents(tmp_path) == {file: b"mine"}


def test_other_files_of_the_user_stay_beside_a_run(tmp_path):
    """A project folder is a fine place for a run, with whatever else begins with a dot there."""
    mine = [
        tmp_path / name
        for name in ("notes.md", ".bundle-old/x", ".temporary-ideas/y", ".lock", "src/main.py")
    ]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    for fresh in (False, True, False):
        with open_run(tmp_path, make_recipe(), fresh) as folder:
            folder.save_start(lambda target: (target / "config.json").write_text("{}"))
            folder.save(tensors(1), {})
    assert all(file.read_text() == "mine" for file in mine)


@pytest.mark.parametrize(
    "name", ["bundle/notes.md", "bundle/sub/app.js", "checkpoint/mine.bin", "checkpoint/best/x"]
)
def test_fresh_deletes_no_file_that_a_user_put_into_a_run(tmp_path, name):
    with open_started(tmp_path / "run") as folder:
        folder.save(tensors(1), {})
        seal(folder.bundle, "report.json")
        file = folder.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = contents(tmp_path / "run")
    with pytest.raises(
        RecipeError, match=r"--fresh would delete files that xlmprune did not write \((bundle|checkpoint)/"
    ):
        open_run(tmp_path / "run", make_recipe(), fresh=True)
    after = contents(tmp_path / "run")
    assert {path: after[path] for path in before if ".xlmprune" not in path.parts} == {
        path: content for path, content in before.items() if ".xlmprune" not in path.parts
    }


def test_a_bundle_in_place_of_ours_is_not_deleted(tmp_path):
    """Without its manifest nothing shows that a bundle is ours."""
    with open_started(tmp_path / "run") as folder:
        folder.bundle.mkdir()
        (folder.bundle / "report.json").write_text("mine")
    with pytest.raises(RecipeError, match=r"did not write \(bundle/report.json\)"):
        open_run(tmp_path / "run", make_recipe(), fresh=True)


def test_fresh_removes_links_and_not_what_they_point_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "mine").write_text("mine")
    open_started(tmp_path / "run").close()
    shutil.move(tmp_path / "run" / "checkpoint", tmp_path / "moved")
    (tmp_path / "run" / "checkpoint").symlink_to(tmp_path / "disk")
    with open_run(tmp_path / "run", make_recipe(), fresh=True) as folder:
        assert folder.checkpoints.is_dir()
        assert not folder.checkpoints.is_symlink()
    assert (tmp_path / "disk" / "mine").read_text() == "mine"


def test_a_folder_of_a_version_that_had_fewer_keys_goes_on(tmp_path):
    """Where the new key has its default; another value is another recipe."""
    with open_started(tmp_path / "run") as folder:
        folder.save(tensors(1), {})
    file = tmp_path / "run" / "recipe.yaml"
    values, _ = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    del values["evaluation"]["stage_interval"]
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert folder.latest(print) is not None
    with pytest.raises(RecipeError, match=r"evaluation.stage_interval is 1 there and 3 here"):
        open_run(tmp_path / "run", make_recipe(evaluation={"stage_interval": 3}))
    values["evaluation"]["no_such_key"] = 1
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"evaluation.stage_interval is null there and 1 here"):
        open_run(tmp_path / "run", make_recipe())


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FILES = ["model.safetensors", "masks.safetensors", "state.json", "state.sha256"]
DAMAGES = {
    "flip": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "delete": Path.unlink,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path, name, damage):
    with open_started(tmp_path / "run") as folder:
        for stage in (1, 2):
            folder.events.write("stage", stage=stage)
            folder.save(tensors(stage), {"stage": stage})
        DAMAGES[damage](folder.checkpoints / "saved-000002" / name)
    said = []
    with open_run(tmp_path / "run", make_recipe()) as folder:
        found, state = folder.latest(said.append)
        assert [event["stage"] for event in folder.events.read()] == [1, 2], "nothing is changed yet"
        folder.go_back_to(state)
        assert state["stage"] == 1
        assert torch.equal(found["model"]["a"], torch.full((2, 3), 1.0))
        assert re.search(r"saved-000002: the checkpoint is damaged.*using the previous checkpoint", said[0])
        assert [repair["what"] for repair in folder.repairs] == ["saved-000002"]
        assert [event["stage"] for event in folder.events.read()] == [1]
        folder.save(tensors(3), {"stage": 3})
        assert sorted(path.name for path in folder.checkpoints.glob("saved-*")) == [
            "saved-000001",
            "saved-000002",
        ]
        assert folder.latest(print)[1]["stage"] == 3


@pytest.mark.parametrize("name", FILES)
def test_with_every_checkpoint_damaged_the_way_out_is_named(tmp_path, name):
    with open_started(tmp_path / "run") as folder:
        for stage in (1, 2):
            folder.save(tensors(stage), {"stage": stage})
        for file in folder.checkpoints.glob(f"saved-*/{name}"):
            flip(file)
        with pytest.raises(ModelError, match=r"saved-000002: the checkpoint is damaged.*--fresh"):
            folder.latest(print)
        assert len(list(folder.checkpoints.glob("saved-*"))) == 2, "nothing is deleted"


@pytest.mark.parametrize("known", [True, False], ids=["checkpoint", "no checkpoint"])
@pytest.mark.parametrize("name", ["config.json", "files.json"])
def test_a_damaged_start_is_found_and_made_again(tmp_path, name, known):
    with open_started(tmp_path / "run") as folder:
        if known:
            folder.save(tensors(1), {})
        flip(folder.start / name)
    with open_run(tmp_path / "run", make_recipe()) as folder:
        expected = folder.expected_start()
        assert (expected is not None) == known
        assert (start_damage(folder.path, expected) is None) == (known and name == "files.json")
        if known:
            with pytest.raises(ModelError, match=r"damaged, and loading the model again gives another one"):
                folder.save_start(lambda target: (target / "config.json").write_text("[]"), expected)
    with open_run(tmp_path / "run", make_recipe()) as folder:
        folder.save_start(lambda target: (target / "config.json").write_text("{}"), folder.expected_start())
        assert start_damage(folder.path) is None


def test_one_process_at_a_time(tmp_path):
    with (
        open_run(tmp_path / "run", make_recipe()),
        pytest.raises(MachineError, match="in use by another process"),
    ):
        open_run(tmp_path / "run", make_recipe())
    with open_run(tmp_path / "run", make_recipe()):
        pass


def test_an_explained_disk_is_not_explained_again(tmp_path):
    """A full folder for temporary files is another disk than the run's."""
    explained = MachineError("/tmp is full (No space left on device): free some space")
    with pytest.raises(MachineError) as caught, explain_disk(tmp_path):
        raise explained
    assert caught.value is explained


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, r"the disk is full \([0-9.]+ GB free\)"),
        (errno.EFBIG, "a file is larger than `ulimit -f`"),
    ],
)
def test_a_full_disk_and_a_limit_are_different_things(tmp_path, code, said):
    with pytest.raises(MachineError, match=said), explain_disk(tmp_path):
        raise OSError(code, os.strerror(code))


def test_places_that_cannot_hold_a_run(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="not a folder"):
        open_run(tmp_path / "file" / "run", make_recipe())
    with pytest.raises(MachineError, match="cannot be written to"), explain_disk(tmp_path):
        raise PermissionError(13, "Permission denied")


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from xlmprune.recipe.schema import Recipe
from xlmprune.core.errors import MachineError
from xlmprune.training.checkpoint import open_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
recipe = Recipe.model_validate({"name": "tiny", "task": {"name": "quickstart"}})
with open_run(Path(sys.argv[1]), recipe) as folder:
    folder.save_start(lambda target: (target / "config.json").write_text("{}"))
    folder.save({"model": {"a": torch.ones(10)}}, {"stage": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        folder.save({"model": {"a": torch.ones(1_000_000)}}, {"stage": 2})
    except MachineError as error:
        print(error)
"""


def test_a_limit_of_file_sizes_is_a_sentence_and_loses_nothing(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert "a file is larger than `ulimit -f` or the file system allows" in done.stdout
    with open_run(tmp_path / "run", make_recipe()) as folder:
        found, state = folder.latest(print)
        assert state["stage"] == 1
        assert torch.equal(found["model"]["a"], torch.ones(10))


def test_recipe_file_alone_repeats_the_run(tmp_path):
    with open_run(tmp_path / "run", make_recipe(seed=3)) as folder:
        again = load_recipe(str(folder.path / "recipe.yaml"))
    assert again == make_recipe(seed=3)


def test_finished_run_is_known_by_its_report(tmp_path):
    with open_run(tmp_path / "run", make_recipe()) as folder:
        assert folder.finished() is None
        folder.bundle.mkdir()
        (folder.bundle / "report.json").write_text(json.dumps({"summary": {}}))
        assert folder.finished() == {"summary": {}}


# --- bundles of several sizes ------------------------------------------------------------------------------------------


def finish_bundle(folder, size=None, reported=1.0):
    """A bundle that waits to be put in place."""
    bundle = folder.begin_bundle(size)
    bundle.rmdir()
    seal(bundle, "report.json")
    (bundle / "report.json").write_text(json.dumps({"size": reported if size is None else size}))


@pytest.mark.parametrize("text", ["{", "[]", "{}", "[" * 100_000])
def test_a_damaged_report_is_named(tmp_path, text):
    with open_started(tmp_path / "run") as folder:
        finish_bundle(folder)
        folder.ship()
        (folder.bundle / "report.json").write_text(text)
        with pytest.raises(ModelError, match=r"report\.json: is damaged .*--fresh"):
            folder.finished()


def bundles_of(folder):
    return sorted(path.name for path in folder.path.glob("bundle*"))


def test_bundles_that_a_run_wrote_are_replaced_and_others_stay(tmp_path):
    with open_started(tmp_path / "run") as folder:
        finish_bundle(folder)
        finish_bundle(folder, 0.5)
        folder.ship()
        shutil.copytree(folder.bundle, folder.path / "bundle-1")
        shutil.copytree(folder.path / "bundle-0.5", folder.path / "bundle-0.5-2")
        (folder.path / "bundle-2024").mkdir()
        (folder.path / "bundle-3").write_text("mine")
        kept = {"bundle", "bundle-1", "bundle-0.5-2", "bundle-2024", "bundle-3"}
        finish_bundle(folder)
        finish_bundle(folder, 1e-05)
        folder.ship()
        assert set(bundles_of(folder)) == kept | {"bundle-1e-05"}
    with open_run(tmp_path / "run", make_recipe(), fresh=True) as folder:
        assert set(bundles_of(folder)) == kept - {"bundle"}


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (lambda run: (run / "bundle" / "notes.md").write_text("mine"), "bundle/notes.md"),
        (lambda run: (run / "bundle-0.5" / "notes.md").write_text("mine"), "bundle-0.5/notes.md"),
        (lambda run: (run / "bundle-0.25").mkdir(), "bundle-0.25"),
        (lambda run: (run / "bundle-0.25").write_text("mine"), "bundle-0.25"),
        (lambda run: (run / "bundle-0.25").symlink_to("nowhere"), "bundle-0.25"),
    ],
)
def test_a_new_bundle_replaces_nothing_that_no_run_wrote(tmp_path, put, said):
    with open_started(tmp_path / "run") as folder:
        for sizes in ([None, 0.5], [None, 0.25]):
            for size in sizes:
                finish_bundle(folder, size)
            if 0.25 in sizes:
                put(folder.path)
                before = contents(folder.path)
                with pytest.raises(RecipeError, match=rf"would delete files .* did not write \({said}\)"):
                    folder.ship()
                assert contents(folder.path) == before
            else:
                folder.ship()


def test_a_bundle_may_be_a_link_and_only_the_link_is_replaced(tmp_path):
    with open_started(tmp_path / "run") as folder:
        for size in (None, 0.5):
            finish_bundle(folder, size)
        folder.ship()
        for name in ("bundle", "bundle-0.5"):
            shutil.move(folder.path / name, tmp_path / name)
            (folder.path / name).symlink_to(tmp_path / name)
        # Left by a version that moved links among its leftovers and then could not delete them.
        (folder.own / "discarded-bundle").symlink_to(tmp_path / "bundle")
    before = contents(tmp_path / "bundle")
    with open_run(tmp_path / "run", make_recipe()) as folder:
        finish_bundle(folder)
        folder.ship()
        assert bundles_of(folder) == ["bundle"]
        assert not folder.bundle.is_symlink()
        assert sorted(entry.name for entry in folder.own.iterdir()) == ["lock", "run.json"]
    assert contents(tmp_path / "bundle") == before
    assert (tmp_path / "bundle-0.5" / "report.json").is_file()

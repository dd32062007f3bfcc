"""A tiny run on the command line: its model, data and recipe, how to stop it on the way, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file
from tiny import SENTENCES, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core.run_folder import report_file
from xlmprune.models.loading import save_tokenizer
from xlmprune.training.loop import FinePruning


def write_workplace(folder: Path, repeat: int = 8) -> Path:
    """Write `model/`, `data/` and `text/` into ``folder``: what `write_recipe` and the tests name."""
    write_model(folder / "model")
    write_data(folder / "data", repeat)
    write_text(folder / "text")
    return folder


def write_model(folder: Path) -> Path:
    tiny_model(labels=("a", "b")).roberta.save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder, 64)
    return folder


def write_data(folder: Path, repeat: int = 8) -> None:
    """Four commands in eight languages; the label is which command it is."""
    folder.mkdir(exist_ok=True)
    names = ["light", "temperature", "sleep", "door"]
    for language, sentences in SENTENCES.items():
        rows = [f"{text}\t{name}" for text, name in zip(sentences, names, strict=True)] * repeat
        for split in ("train", "dev", "test") if language == "en" else ("test",):
            text = "text\tlabel\n" + "\n".join(rows) + "\n"
            (folder / f"{language}.{split}.tsv").write_text(text, encoding="utf-8")


def write_text(folder: Path) -> None:
    """Unlabelled text of every language but Thai."""
    folder.mkdir()
    for language, sentences in SENTENCES.items():
        if language != "th":
            lines = [f"{a} {b}" for a in sentences for b in sentences if a != b]
            (folder / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Write a recipe for the model and data in ``folder``, with other values in some sections."""
    values = {
        "name": "tiny",
        "model": {"name": str(folder / "model")},
        "task": {
            "name": "classification",
            "source": "files",
            "path": str(folder / "data" / "{language}.{split}.tsv"),
        },
        "training": {
            "epochs_per_stage": 2,
            "dense_epochs": 4,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "max_length": 32,
        },
        "pruning": {"schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 3}},
        "export": {"onnx": ["fp32"]},
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(merged(values, sections)), encoding="utf-8")
    return file


def merged(values: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Values of a recipe with those of ``sections`` over them; a section given as a dictionary changes its keys only."""
    changed = {
        name: {**values.get(name, {}), **entries} if isinstance(entries, dict) else entries
        for name, entries in sections.items()
    }
    return {**values, **changed}


def compress(folder: Path, run: Path, **sections: Any):
    """Run a recipe of two stages, refitted after each, on the model and data of a workplace."""
    pruning = {
        "reconstruct": {"texts": 40},
        "schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 2},
    }
    training = {"epochs_per_stage": 1, "dense_epochs": 2}
    given = {"training": training, **sections, "pruning": {**pruning, **sections.get("pruning", {})}}
    recipe = write_recipe(run.parent, model={"name": str(folder / "model")}, **given)
    task = f"task.path={folder / 'data' / '{language}.{split}.tsv'}"
    return CliRunner().invoke(app, ["compress", str(recipe), "--out", str(run), "--set", task])


def _press_ctrl_c() -> None:
    raise KeyboardInterrupt


@contextmanager
def stopped_at(stage: int, update: int, stop: Callable[[], object] = _press_ctrl_c) -> Iterator[None]:
    """Stop a run when it has made so many updates of a stage; a run that comes there again goes on."""
    original, stopped = FinePruning._update, []

    def ask(self, total):
        if (self.state.at.stage, self.state.at.update) == (stage, update) and not stopped:
            stopped.append(True)
            stop()
        return original(self, total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinePruning, "_update", ask)
        yield
    assert stopped


def report_of(run: Path) -> dict[str, Any]:
    return json.loads(report_file(run).read_text(encoding="utf-8"))


def assert_same_weights(run: Path, other: Path, bundle: str = "bundle") -> None:
    ours, theirs = (load_file(path / bundle / "model.safetensors") for path in (run, other))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)

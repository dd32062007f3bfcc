"""Small runs whose results must not change when only the code's shape changes.

    python tests/golden.py > before.json        run four recipes and print digests of what they produced
    python tests/golden.py --against before.json    run them again and name every difference

The digests cover the model files, the golden arrays and the scores of each bundle byte for byte. They hold for one
machine and one set of library versions. `test_golden_run.py` pins one of the runs across machines.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file
from tiny import SENTENCES, tiny_model, tiny_tokenizer

LABELS = ("light", "temperature", "sleep", "door")
TAGS = ("NOUN", "VERB")

BASE: dict[str, Any] = {
    "seed": 7,
    "training": {
        "dense_epochs": 3,
        "epochs_per_stage": 1,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "regularize_dense": True,
        "max_length": 32,
        "precision": "fp32",
    },
    "pruning": {"schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 3}},
    "export": {"onnx": ["fp32", "int8"]},
}

TEXT = {"name": "classification", "source": "files", "path": "text/{language}.{split}.tsv"}
PAIR = {"name": "pair_classification", "source": "files", "path": "pair/{language}.{split}.tsv"}
TOKENS = {"name": "tagging", "source": "files", "path": "tokens/{language}.{split}.txt"}

RUNS: dict[str, dict[str, Any]] = {
    "cosine": {"task": TEXT},
    "pins": {
        "task": PAIR,
        "pruning": {**BASE["pruning"], "criterion": "pins", "scope": "global"},
        "regularizer": {"name": "frobenius", "reference": "finetuned"},
        "distillation": {"teacher": "best_so_far", "hidden": 1.0, "unlabelled": "unlabelled/{language}.txt"},
    },
    "tokens": {
        "task": TOKENS,
        "pruning": {**BASE["pruning"], "criterion": "platon", "pattern": "2:4"},
        "model": {"vocabulary": {"files": ["unlabelled/{language}.txt"], "min_count": 1}},
    },
    "obert": {
        "task": TEXT,
        "pruning": {**BASE["pruning"], "criterion": "obert", "scope": "global"},
        "regularizer": "both",
        "training": {
            **BASE["training"],
            "gradient_accumulation": 2,
            "warmup_updates": 2,
            "weight_decay": 0.01,
        },
        "export": {"onnx": ["int8"], "onnx_layout": "dense", "embeddings": "int4", "safetensors": "dense"},
    },
}
"""What each run has of its own beside `BASE`."""


def write_inputs(folder: Path) -> None:
    """Write a tiny pretrained model and the data of every kind of task into ``folder``."""
    from transformers import PreTrainedTokenizerFast

    tiny_model(labels=LABELS).roberta.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), pad_token="<pad>").save_pretrained(
        folder / "model"
    )
    for kind in ("text", "pair", "tokens", "unlabelled"):
        (folder / kind).mkdir()
    for language, sentences in SENTENCES.items():
        for split in ("train", "dev", "test") if language == "en" else ("test",):
            for kind, ending in (("text", "tsv"), ("pair", "tsv"), ("tokens", "txt")):
                text = "".join(_rows(kind, sentences)) * 6
                (folder / kind / f"{language}.{split}.{ending}").write_text(text, encoding="utf-8")
        free = [f"{first} {second}" for first in sentences for second in sentences if first != second]
        (folder / "unlabelled" / f"{language}.txt").write_text("\n".join(free), encoding="utf-8")


def _rows(kind: str, sentences: list[str]) -> list[str]:
    if kind == "text":
        return [f"{text}\t{label}\n" for text, label in zip(sentences, LABELS, strict=True)]
    if kind == "pair":
        turned = sentences[1:] + sentences[:1]
        same = [f"{text}\t{text}\tyes\n" for text in sentences]
        return same + [f"{a}\t{b}\tno\n" for a, b in zip(sentences, turned, strict=True)]
    lines = ["".join(f"{word} {TAGS[n % 2]}\n" for n, word in enumerate(text.split())) for text in sentences]
    return [line + "\n" for line in lines]


def write_recipe(folder: Path, name: str) -> Path:
    """Write the recipe of the run ``name``; its paths are relative to ``folder``."""
    values = {"name": name, **BASE, **RUNS[name]}
    values["model"] = {"name": "./model", **values.get("model", {})}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def run(folder: Path, name: str) -> Path:
    """Run ``name`` in ``folder`` as a user would, and return its run folder."""
    write_recipe(folder, name)
    command = [sys.executable, "-m", "xlmprune", "compress", f"{name}.yaml", "--out", f"runs/{name}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return folder / "runs" / name


def run_here(folder: Path, name: str) -> Path:
    """Do what `run` does in this process, where PyTorch is imported already."""
    from typer.testing import CliRunner

    from xlmprune.cli import app

    write_recipe(folder, name)
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, ["compress", f"{name}.yaml", "--out", f"runs/{name}"])
    assert done.exit_code == 0, done.output
    return folder / "runs" / name


def digests(run_folder: Path) -> dict[str, Any]:
    """Return SHA-256 of the model files and golden arrays, and the scores, of a finished run."""
    bundle = run_folder / "bundle"
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        file.name: hashlib.sha256(_without_identity(file)).hexdigest()
        for file in sorted([*bundle.glob("*.onnx"), bundle / "tokenizer.json"])
    }
    for file in (
        bundle / "model.safetensors",
        bundle / "golden.safetensors",
        run_folder / "scores.safetensors",
    ):
        for key, array in sorted(load_file(file).items()):
            found[f"{file.name} {key}"] = hashlib.sha256(array.tobytes()).hexdigest()
    found["languages"] = report["languages"]
    found["densities"] = {layer["name"]: layer["density"] for layer in report["layers"]}
    found["losses"] = [stage["loss"] for stage in report["stages"]]
    return found


def _without_identity(file: Path) -> bytes:
    """Return the file's bytes; of a graph without its properties, which name the recipe's hash."""
    if file.suffix != ".onnx":
        return file.read_bytes()
    import onnx

    graph = onnx.load(file)
    del graph.metadata_props[:]
    return graph.SerializeToString(deterministic=True)


def main() -> None:
    """Run every recipe; print digests, or the differences from an earlier print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="digests that an earlier call printed")
    parser.add_argument("--runs", nargs="*", default=list(RUNS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder)
        found = {name: digests(run(folder, name)) for name in arguments.runs}
    if arguments.against is None:
        print(json.dumps(found, indent=1, sort_keys=True))
        return
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    changed = [
        f"{name}: {key}"
        for name in found
        for key in sorted(before[name].keys() | found[name].keys())
        if before[name].get(key) != found[name].get(key)
    ]
    print("\n".join(changed) or f"{len(found)} runs: every file, array and score is the same")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()

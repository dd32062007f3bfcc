"""Run the real command on XLM-R at its real size: prune, one update, export, verify.

    python benchmarks/real_size.py [--size base] [--out DIR] [--opset auto] [--forms fp32,int8] [--layout packed]
                                   [--pieces 60000] [--structure YAML]

The weights are random with the configuration of XLM-R base (278 M parameters), so no hub is needed. `--size large` is XLM-R
large (560 M): its fp32 ONNX file is above the 2 GB of protobuf, and with `--layout dense` it has external data. Large needs
12 GB of memory and 18 GB of disk. The tokenizer is that of the quickstart, which has XLM-R's 250,002 pieces. `--pieces`
trims the vocabulary to this size, counted on a text made of the pieces themselves. By default 31 % of single weights remain.
`--structure '{heads: 0.5, neurons: 0.5}'` removes whole heads and neurons, and `bench` then compares with the dense model.
Prints the seconds and the peak memory of each step, and the result of `bench`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ENGLISH = ["I like this a lot.", "This is bad.", "What a wonderful day!", "I would not buy it again."]
GERMAN = [
    "Das gefällt mir sehr.",
    "Das ist schlecht.",
    "Was für ein schöner Tag!",
    "Ich würde es nicht wieder kaufen.",
]


SIZES: dict[str, dict[str, Any]] = {
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


def write_model(folder: Path, size: str) -> None:
    """Write XLM-R of a size of `SIZES` with random weights and the real tokenizer."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel
    from transformers.utils import logging

    from xlmprune.quickstart.model import ensure_model

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=250_002,
        **SIZES[size],
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    source = ensure_model()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())


def write_data(folder: Path) -> None:
    """Write a few labelled sentences in two languages."""
    for language, sentences in (("en", ENGLISH), ("de", GERMAN)):
        rows = "".join(f"{text}\t{('good', 'bad')[i % 2]}\n" for i, text in enumerate(sentences))
        for split in ("train", "dev", "test") if language == "en" else ("test",):
            (folder / f"{language}.{split}.tsv").write_text("text\tlabel\n" + rows, encoding="utf-8")


def write_pieces(folder: Path, tokenizer: Path) -> None:
    """Write a text for each language with every other piece of the vocabulary, so that there is enough to trim."""
    pieces = [piece for piece, _ in json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"][4:]]
    for language in ("en", "de"):
        lines = (piece.replace("▁", " ").strip() for piece in pieces[::2])
        (folder / f"{language}.txt").write_text("\n".join(line for line in lines if line), encoding="utf-8")


def timed(title: str, command: list[str]) -> None:
    """Run a command and print its time and peak memory."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(
        f"{title:<12} {seconds:7.1f} s   peak of any step so far {peak:5.2f} GB   exit {done.returncode}",
        flush=True,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def main() -> None:
    """Run the steps one after the other, each in its own process."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--size", choices=SIZES, default="base")
    options.add_argument("--out", type=Path, help="keep everything here; otherwise a temporary folder")
    options.add_argument("--opset", default="auto", type=yaml.safe_load)
    options.add_argument("--forms", default="fp32,int8")
    options.add_argument("--layout", choices=("packed", "dense"), default="packed", help="of the ONNX files")
    options.add_argument("--pieces", type=int, help="trim the vocabulary to so many; otherwise it is kept")
    options.add_argument(
        "--structure", type=yaml.safe_load, help="remove structures, as pruning.structure says"
    )
    options.add_argument("--threads", default="1,2", help="of bench")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = chosen.out or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        write_model(place / "base", chosen.size)
        write_data(place)
        print(f"{'make model':<12} {time.perf_counter() - started:7.1f} s", flush=True)
        vocabulary: str | dict[str, object] = "keep"
        if chosen.pieces:
            write_pieces(place, place / "base" / "tokenizer.json")
            vocabulary = {
                "files": [str(place / "{language}.txt")], "min_count": 1, "max_size": chosen.pieces,
            }  # fmt: skip
        pruning: dict[str, object] = {"schedule": {"name": "linear", "stages": 1, "final_density": 0.3138}}
        if chosen.structure:
            pruning = {"pattern": "structured", "structure": chosen.structure}
        recipe = {
            "name": "real_size",
            "model": {"name": str(place / "base"), "vocabulary": vocabulary},
            "task": {
                "name": "classification",
                "source": "files",
                "path": str(place / "{language}.{split}.tsv"),
                "languages": ["de"],
            },
            "training": {
                "max_updates_per_stage": 1,
                "epochs_per_stage": 1,
                "batch_size": 4,
                "max_length": 64,
            },
            "pruning": pruning,
            "export": {
                "onnx": chosen.forms.split(","),
                "opset": chosen.opset,
                "onnx_layout": chosen.layout,
            },
        }
        (place / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        xlmprune = [sys.executable, "-m", "xlmprune"]
        run = place / "run"
        options_of_run = ["--out", str(run), "--device", "cpu", "--fresh"]
        timed("compress", [*xlmprune, "compress", str(place / "recipe.yaml"), *options_of_run])
        timed("verify", [*xlmprune, "verify", str(run / "bundle")])
        timed("inspect", [*xlmprune, "inspect", str(run / "bundle")])
        files = sorted((run / "bundle").iterdir())
        for file in files:
            if file.suffix in (".onnx", ".safetensors", ".data"):
                print(f"{file.name:<24} {file.stat().st_size / 1e6:9.1f} MB", flush=True)
        shape = ["--batches", "1", "--lengths", "64", "--threads", chosen.threads]
        subprocess.run([*xlmprune, "bench", str(run / "bundle"), *shape], check=True)


if __name__ == "__main__":
    main()

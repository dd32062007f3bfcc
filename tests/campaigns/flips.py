"""Flip one bit of a bundle: `verify` must find it, and every command that reads the file must refuse.

    python tests/campaigns/flips.py --count 3000 --seed 0

The bundle has all that a run ships. The manifest is damaged as often as every other file.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaign import Runs, campaign
from golden import LABELS, TEXT
from tiny import tiny_bundle

from xlmprune.bundle.evaluate import evaluate
from xlmprune.bundle.inspect import inspect
from xlmprune.bundle.session import Bundle, predict
from xlmprune.bundle.unpack import unpack_bundle
from xlmprune.bundle.verify import verify
from xlmprune.core.errors import BundleError
from xlmprune.export import manifest
from xlmprune.export.sparse import load

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
READ = {
    "load": {CONFIG, WEIGHTS},
    "predict": {CONFIG, TOKENIZER, "model.int8.onnx"},
    "evaluate": {CONFIG, TOKENIZER, "model.int8.onnx", "report.json"},
    "inspect": {CONFIG, WEIGHTS, "model.onnx", "model.int8.onnx"},
    "unpack": {CONFIG, WEIGHTS, TOKENIZER, "tokenizer_config.json", "model.onnx", "model.int8.onnx"},
}
"""Files that a command reads beside the manifest. A bit of the manifest may leave all that it says of them."""


@cache
def bundle_in(folder: Path) -> Path:
    """Make the bundle that is damaged, once."""
    bundle = tiny_bundle(folder / "bundle", labels=LABELS, forms=("fp32", "int8"), packed=True)
    task = {**TEXT, "path": str(folder / TEXT["path"]), "languages": ["de"]}
    versions, recipe = {"xlmprune": "0.1.0", "python": "3.11"}, "ab" * 32
    report = {"recipe_sha256": recipe, "environment": versions, "recipe": {"task": task}}
    (bundle / "report.json").write_text(json.dumps(report))
    manifest.write(bundle, versions, recipe)
    return bundle


def commands(bundle: Path) -> dict[str, Callable[[], Any]]:
    """What a user may do with a bundle."""
    return {
        "load": lambda: load(bundle),
        "predict": lambda: list(predict(Bundle(bundle, threads=1), ["Licht an"], "int8")),
        "evaluate": lambda: evaluate(bundle, form="int8", threads=1),
        "inspect": lambda: inspect(bundle),
        "unpack": lambda: unpack_bundle(bundle, bundle.parent / "unpacked"),
    }


def refuses(command: Callable[[], Any]) -> bool:
    try:
        command()
    except BundleError:
        return True
    return False


def case(random: random.Random, runs: Runs) -> str | None:
    bundle = bundle_in(runs.folder)
    path = random.choice(sorted(path for path in bundle.rglob("*") if path.is_file()))
    content = path.read_bytes()
    place, bit = random.randrange(len(content)), random.randrange(8)
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    path.write_bytes(damaged)
    name = path.relative_to(bundle).as_posix()
    runs.count(path.name)
    try:
        accepted = [
            command for command, run in commands(bundle).items() if name in READ[command] and not refuses(run)
        ]
        if all(check.passed for check in verify(bundle, threads=1)):
            accepted.append("verify")
    finally:
        path.write_bytes(content)
    return f"bit {bit} of byte {place} of {name}: accepted by {', '.join(accepted)}" if accepted else None


if __name__ == "__main__":
    campaign(__doc__, 3000, case)

"""Make hostile bundles, and renew their manifests: every command must give the right answer or a sentence, at little cost.

    python tests/campaigns/hostile_bundles.py --count 500 --seed 0

The manifest agrees with the files again, so that the checks behind it have to find what is wrong. A case fails if a
command ends with anything but an `XlmpruneError`, takes more than SECONDS or MEMORY, or if `verify` passes and the
answers are not those of the whole bundle. Labels that are nearer than the difference that `verify` allows are both right.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
from campaign import Runs, campaign
from golden import LABELS, TEXT
from tiny import tiny_bundle

from xlmprune.bundle import golden
from xlmprune.bundle.evaluate import evaluate
from xlmprune.bundle.inspect import inspect
from xlmprune.bundle.session import Bundle, predict
from xlmprune.bundle.unpack import unpack_bundle
from xlmprune.bundle.verify import verify
from xlmprune.core.errors import XlmpruneError
from xlmprune.export import manifest
from xlmprune.export.form import form_named
from xlmprune.export.sparse import load

SECONDS = 60
"""Of the processor, for all commands on one bundle. Whatever waits for longer than ten times that waits for ever."""
MEMORY = 1_000_000_000
"""Bytes that the commands may take beyond what the process has when they start."""
RUNS_OUT = ("Unable to allocate", "bad_alloc", "bad allocation", "not enough memory", "can't allocate")

TEXTS = ["schalte das Licht in der Küche ein", "какая температура"]
VERSIONS = {"xlmprune": "0.1.0", "python": "3.11"}
RECIPE = "ab" * 32

Json = Any
VALUES: tuple[Json, ...] = (
    *(None, -1, 0, 1, 100_000, 2**31, 10**9, 10**12, 1e9, 1e308, float("nan"), True),
    *("", "x", "é\ud800", [], {}, [[[]]], int("9" * 4000)),
)
"""Put in the place of a value of a JSON file."""


# --- what is done to a bundle ----------------------------------------------------------------------------------------


def hostile_json(folder: Path, draw: random.Random) -> str:
    """Replace a JSON file by text that JSON readers stumble over."""
    path = folder / draw.choice(JSON_FILES)
    text = path.read_bytes()
    body = text.rstrip()[1:]
    kinds = {
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "deep inside": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"," + body,
        "long number": b'{"a": ' + b"9" * 5_000 + b"," + body,
        "key given twice": b'{"model_type": 1, "model_type": 2, "files": {},' + body,
        "list": b"[]",
        "empty": b"",
        "cut": text[: draw.randrange(len(text))],
        "not UTF-8": b"\xff" + text,
    }
    kind = draw.choice(sorted(kinds))
    path.write_bytes(kinds[kind])
    return f"{path.name}: {kind}"


def change_json(folder: Path, draw: random.Random) -> str:
    """Replace one value of a JSON file by one of another type or size."""
    path = folder / draw.choice(JSON_FILES)
    values = json.loads(path.read_text(encoding="utf-8"))
    named = _change_inside(values, draw)
    path.write_text(json.dumps(values))
    return f"{path.name}: {named}"


def _change_inside(values: Json, draw: random.Random) -> str:
    named = []
    while True:
        key = draw.choice(list(values) if isinstance(values, dict) else range(len(values)))
        named.append(str(key))
        if not isinstance(values[key], dict | list) or not values[key] or draw.random() < 0.2:
            break
        values = values[key]
    values[key] = draw.choice(VALUES)
    return f"{'.'.join(named)} = {str(values[key])[:20] if not isinstance(values[key], int) else values[key] % 10**15}"


def change_config(folder: Path, draw: random.Random) -> str:
    """Give one number of the model's configuration another value."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    key = draw.choice(
        [key for key, value in config.items() if type(value) in (int, float)] + ["num_labels", "pad_token_id"]
    )
    config[key] = draw.choice(VALUES)
    path.write_text(json.dumps(config))
    return f"config.json: {key} = {str(config[key] if config[key] != VALUES[-1] else '999…')[:20]}"


def change_weights(folder: Path, draw: random.Random) -> str:
    """Change a number in the header of the sparse weights, or in their description."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["xlmprune"])
    matrix = facts["matrices"][draw.choice(sorted(facts["matrices"]))]
    tensor = header[draw.choice(sorted(name for name in header if name != "__metadata__"))]
    value = draw.choice((-1, 0, 7, 100_000, 2**31, 2**62, int("9" * 4000), 0.5, None, "x", [], {}))
    what = draw.choice(
        ("shape", "kept", "code", "whole code", "matrix", "tensor shape", "offsets", "dtype", "length")
    )
    if what == "shape":
        matrix["shape"] = [value, value]
    elif what == "kept":
        matrix["kept"] = value
    elif what == "code":
        matrix["code"][draw.choice(sorted(matrix["code"]))] = value
    elif what == "whole code":
        matrix["code"] = value
    elif what == "matrix":
        facts["matrices"][draw.choice(sorted(facts["matrices"]))] = value
    elif what == "tensor shape":
        tensor["shape"] = draw.choice(([value], value))
    elif what == "offsets":
        tensor["data_offsets"][draw.randrange(2)] = value
    elif what == "dtype":
        tensor["dtype"] = draw.choice(("F64", "F16", "BF16", "BOOL", "I32", "X8", value))
    header["__metadata__"]["xlmprune"] = json.dumps(facts)
    text = json.dumps(header).encode()
    size = draw.choice((0, 2**40, 2**63)) if what == "length" else len(text)
    path.write_bytes(size.to_bytes(8, "little") + text + content[8 + length :])
    return f"model.safetensors: {what} = {str(value)[:20] if value != int('9' * 4000) else '999…'}"


def change_graph(folder: Path, draw: random.Random) -> str:
    """Change a tensor, a node or where weights are read in an ONNX file."""
    path = folder / draw.choice(("model.onnx", "model.int8.onnx"))
    proto = onnx.load(path)
    tensor, node = draw.choice(proto.graph.initializer), draw.choice(proto.graph.node)
    what = draw.choice(
        ("values", "dims", "type", "name", "node", "input", "node removed", "outside", "opset")
    )
    if what == "values" and tensor.raw_data:
        values = bytearray(tensor.raw_data)
        values[draw.randrange(len(values))] ^= 1 << draw.randrange(8)
        tensor.raw_data = bytes(values)
    elif what == "dims" and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice((-1, 0, 7, 100_000, 2**40, 2**62))
    elif what == "type":
        tensor.data_type = draw.randrange(24)
    elif what == "name":
        tensor.name = draw.choice(("", "x", "../x", "xlmprune.packed/x"))
    elif what == "node":
        node.op_type = draw.choice(("Identity", "MatMul", "Loop", "Unknown", "ConstantOfShape"))
    elif what == "input" and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice((node.output[0], "", "nothing"))
    elif what == "node removed":
        proto.graph.node.remove(node)
    elif what == "outside":
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        place = draw.choice(("../config.json", "/etc/hostname", "config.json", "nowhere", "triton"))
        for key, value in (
            ("location", place),
            ("offset", "0"),
            ("length", draw.choice(("8", "-1", str(2**62)))),
        ):
            tensor.external_data.add(key=key, value=value)
    else:
        proto.opset_import[0].version = draw.choice((0, 1, 99, 2**40))
    path.write_bytes(proto.SerializeToString())
    return f"{path.name}: {what} of {tensor.name} or {node.name}"


def flip_bytes(folder: Path, draw: random.Random) -> str:
    """Change some bytes of any file."""
    path = draw.choice(files_of(folder))
    content = bytearray(path.read_bytes())
    places = [draw.randrange(len(content)) for _ in range(draw.choice((1, 1, 4, 64)))]
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"{path.name}: {len(places)} bits flipped, first in byte {places[0]}"


def cut_or_swap(folder: Path, draw: random.Random) -> str:
    """Cut a file short, remove it, or put another in its place."""
    path, other = draw.sample(files_of(folder), 2)
    kind = draw.choice(("cut", "removed", "swapped"))
    content = path.read_bytes()
    path.unlink()
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "swapped":
        shutil.copyfile(other, path)
    return f"{path.name}: {kind} {other.name if kind == 'swapped' else ''}"


def no_file(folder: Path, draw: random.Random) -> str:
    """Put something else in the place of a file, or beside the files."""
    path = draw.choice([*files_of(folder), folder / "extra", folder / "triton" / "extra"])
    kind = draw.choice(("pipe", "folder", "link to nothing", "link to itself", "link to a device"))
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link to nothing": "nowhere", "link to itself": path.name}.get(kind, "/dev/zero"))
    return f"{path.relative_to(folder)}: a {kind}"


JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "report.json", "manifest.json")
HOSTILE: tuple[Callable[[Path, random.Random], str], ...] = (
    *(hostile_json, change_json, change_config, change_weights, change_graph),
    *(flip_bytes, cut_or_swap, no_file),
)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- what a user does with it ----------------------------------------------------------------------------------------


@cache
def whole_bundle(folder: Path) -> tuple[Path, list[set[str]]]:
    """Make the bundle that others are made of, once; return it with the labels that are right for each answer."""
    whole = tiny_bundle(folder / "whole", labels=LABELS, forms=("fp32", "int8"), packed=True)
    task = {**TEXT, "path": str(folder / TEXT["path"]), "languages": ["de"]}
    report = {"recipe_sha256": RECIPE, "environment": VERSIONS, "recipe": {"task": task}}
    (whole / "report.json").write_text(json.dumps(report))
    manifest.write(whole, VERSIONS, RECIPE)
    return whole, right_labels(whole)


def right_labels(bundle: Path) -> list[set[str]]:
    """Return the labels of the highest logits, and those that are nearer to it than `verify` allows to differ."""
    opened, stored, right = Bundle(bundle, threads=1), golden.read(bundle).logits, []
    for form in opened.forms:
        allowed = form_named(form).tolerance.difference * float(np.ptp(stored[form]))
        for answer in predict(opened, TEXTS, form):
            chances = answer["probabilities"]
            least = max(chances.values()) * math.exp(-allowed)
            right.append({label for label, chance in chances.items() if chance >= least})
    return right


def labels(bundle: Path) -> list[str]:
    """Label some texts with every form."""
    opened = Bundle(bundle, threads=1)
    return [answer["label"] for form in opened.forms for answer in predict(opened, TEXTS, form)]


def commands(bundle: Path) -> dict[str, Callable[[], Any]]:
    return {
        "inspect": lambda: inspect(bundle),
        "load": lambda: load(bundle),
        "predict": lambda: labels(bundle),
        "evaluate": lambda: evaluate(bundle, form="int8", threads=1),
        "unpack": lambda: unpack_bundle(bundle, bundle.parent / "unpacked"),
        "verify": lambda: verify(bundle, threads=1),
    }


def faults(bundle: Path, right: list[set[str]]) -> Iterator[str]:
    """Run every command, and say what was wrong with how it ended."""
    results = {}
    for name, command in commands(bundle).items():
        try:
            results[name] = command()
        except XlmpruneError as error:
            if not str(error) or any(sign in str(error) for sign in RUNS_OUT):
                yield f"{name}: {str(error)[:300] or 'an error without a sentence'}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            yield f"{name}: {type(error).__name__}: {str(error)[:300]} ({where.name}:{where.lineno})"
    passed = "verify" in results and all(check.passed for check in results["verify"])
    if passed and any(answer not in labels for answer, labels in zip(results.get("predict", ()), right)):
        yield f"verify passes, and the answers are {results['predict']}"


def in_a_child(work: Callable[[], Iterator[str]], log: Path) -> str | None:
    """Do ``work`` in a process of its own; return what it yields, or how the process ended."""
    process = os.fork()
    if not process:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(10 * SECONDS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            log.write_text("\n".join(work()), encoding="utf-8", errors="replace")
        except BaseException as error:
            log.write_text(f"{type(error).__name__}: {error}")
        os._exit(0)
    code = Runs.wait(process)
    if code:
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return log.read_text(encoding="utf-8") or None


def case(random: random.Random, runs: Runs) -> str | None:
    whole, right = whole_bundle(runs.folder)
    folder = runs.folder / "hostile"
    shutil.rmtree(folder, ignore_errors=True)
    bundle = shutil.copytree(whole, folder / "bundle")
    change = random.choice(HOSTILE)
    done = change(bundle, random)
    runs.count(change.__name__)
    if "manifest.json" not in done:
        manifest.write(bundle, VERSIONS, RECIPE)
    wrong = in_a_child(lambda: faults(bundle, right), runs.folder / "faults")
    return wrong and f"{done}: {wrong}"


if __name__ == "__main__":
    campaign(__doc__, 500, case)

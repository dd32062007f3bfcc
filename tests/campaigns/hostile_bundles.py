"""Damaged and hostile bundles, made from a seed: whatever is done to a bundle, the answer is a sentence or the right one.

    python tests/campaigns/hostile_bundles.py --count 500 --seed 1 --seconds 600

Each bundle is resealed with a manifest of its own, so that the checks behind the manifest have to find the damage. For
each the program opens it as a user would (inspect, load, predict, unpack, verify) with memory limited. What counts as a
failure: an exception that is no `XlmpruneError`, or a command that takes longer than `SECONDS_EACH`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import tiny_bundle

from xlmprune.bundle.inspect import inspect
from xlmprune.bundle.session import Bundle, predict
from xlmprune.bundle.unpack import unpack_bundle
from xlmprune.bundle.verify import verify
from xlmprune.core.errors import XlmpruneError
from xlmprune.export import manifest
from xlmprune.export.sparse import load

SECONDS_EACH = 60.0
MEMORY = 8_000_000_000
"""Bytes of address space for the whole campaign; a bundle of some kB has no business asking for them."""

DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "9" * 5_000

VALUES: tuple[Any, ...] = (None, -1, 0, 1, 2**31, 10**12, 1e308, "", "x", [], {}, True, [[[]]], "é\ud800")
"""Put in the place of a value of a JSON file."""


def damage_text(folder: Path, draw: random.Random) -> str:
    """Replace a JSON file by text that JSON readers stumble over."""
    name = draw.choice(JSON_FILES)
    kind = draw.choice(("deep", "huge", "twice", "list", "empty", "cut", "not UTF-8"))
    text = (folder / name).read_bytes()
    changed = {
        "deep": DEEP.encode(),
        "huge": b'{"a": ' + HUGE.encode() + b"}",
        "twice": text.rstrip()[:-1] + b', "model_type": 1, "model_type": 2}',
        "list": b"[]",
        "empty": b"",
        "cut": text[: draw.randrange(len(text))],
        "not UTF-8": b"\xff" + text,
    }
    (folder / name).write_bytes(changed[kind])
    return f"{name}: {kind}"


def change_a_value(folder: Path, draw: random.Random) -> str:
    """Replace one value of a JSON file by one of another type or size."""
    name = draw.choice(JSON_FILES)
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    inside, path = values, []
    while True:
        key = draw.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        path.append(str(key))
        if not isinstance(inside[key], dict | list) or not inside[key] or draw.random() < 0.3:
            break
        inside = inside[key]
    value = draw.choice(VALUES)
    inside[key] = value
    (folder / name).write_text(json.dumps(values))
    return f"{name}: {'.'.join(path)} = {value!r}"


def change_the_header(folder: Path, draw: random.Random) -> str:
    """Change a number in the header of the sparse weights, or in their description."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["xlmprune"])
    matrix = facts["matrices"][draw.choice(list(facts["matrices"]))]
    tensor = header[draw.choice([name for name in header if name != "__metadata__"])]
    value = draw.choice((-1, 0, 7, 100_000, 2**31, 2**62, None, "x"))
    what = draw.choice(("shape", "kept", "code", "tensor shape", "offsets", "dtype"))
    if what == "shape":
        matrix["shape"] = [value, value]
    elif what == "kept":
        matrix["kept"] = value
    elif what == "code":
        matrix["code"][draw.choice(list(matrix["code"]))] = value
    elif what == "tensor shape":
        tensor["shape"] = [value]
    elif what == "offsets":
        tensor["data_offsets"][draw.randrange(2)] = value
    else:
        tensor["dtype"] = draw.choice(("F64", "F16", "BOOL", "X8", value))
    header["__metadata__"]["xlmprune"] = json.dumps(facts)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return f"model.safetensors: {what} = {value!r}"


def flip_bytes(folder: Path, draw: random.Random) -> str:
    """Change some bytes of any file."""
    path = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    content = bytearray(path.read_bytes())
    places = [draw.randrange(len(content)) for _ in range(draw.choice((1, 1, 4, 64)))]
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    path.unlink()
    path.write_bytes(content)
    return f"{path.name}: {len(places)} bytes changed, first at {places[0]}"


def cut_or_swap(folder: Path, draw: random.Random) -> str:
    """Cut a file short, remove it, or put another in its place."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path, other = draw.sample(files, 2)
    kind = draw.choice(("cut", "removed", "swapped"))
    content = path.read_bytes()
    path.unlink()
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "swapped":
        shutil.copyfile(other, path)
    return f"{path.name}: {kind}"


JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "manifest.json")
DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    *(damage_text, change_a_value, change_a_value, change_the_header, flip_bytes, cut_or_swap),
)


def commands(folder: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """What a user may do with a bundle."""
    return {
        "inspect": lambda: inspect(folder),
        "load": lambda: load(folder),
        "predict": lambda: list(predict(Bundle(folder, threads=1), ["Licht an", "turn it off"])),
        "unpack": lambda: unpack_bundle(folder, out),
        "verify": lambda: verify(folder, threads=1),
    }


def attempt(whole: Path, folder: Path, seed: int) -> tuple[str, list[str], bool]:
    """Damage a copy of ``whole`` and open it.

    Returns:
        what was done; every command that failed, with the reason; and whether `verify` found the damage.
    """
    draw = random.Random(seed)
    shutil.copytree(whole, folder)
    done = draw.choice(DAMAGES)(folder, draw)
    if not done.startswith("manifest.json"):
        manifest.write(folder, {"python": "3"}, "0" * 64)
    faults, found = [], False
    for name, command in commands(folder, folder.with_name("unpacked")).items():
        begin = time.monotonic()
        try:
            result = command()
            found = found or (name == "verify" and not all(check.passed for check in result))
        except XlmpruneError as error:
            if not str(error):
                faults.append(f"{name}: an error without a sentence")
        except BaseException as error:  # what escapes is what this campaign looks for
            if isinstance(error, KeyboardInterrupt):
                raise
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        if time.monotonic() - begin > SECONDS_EACH:
            faults.append(f"{name}: took {time.monotonic() - begin:.0f} s")
    return done, faults, found


def run(count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Try ``count`` bundles, or as many as there is time for."""
    begin = time.monotonic()
    tried: Counter[str] = Counter()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        whole = tiny_bundle(Path(temporary) / "whole", packed=True)
        for number in range(count):
            if time.monotonic() - begin > seconds:
                break
            folder = Path(temporary) / "try"
            done, faults, found = attempt(whole, folder / "bundle", seed * 1_000_003 + number)
            shutil.rmtree(folder)
            tried["found by verify" if found else "not found by verify"] += 1
            failed += [f"{number}: {done}: {fault}" for fault in faults]
    return {"tried": tried.total(), "seed": seed, **tried, "failed": failed}


def limit_memory() -> None:
    """Make a request for absurd memory an error at once."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    limit_memory()
    facts = run(given.count, given.seed, given.seconds)
    print(json.dumps(facts, indent=1, ensure_ascii=False))
    sys.exit(bool(facts["failed"]))

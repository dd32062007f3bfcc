"""Mutate valid recipes at random: each is read, or refused with a sentence. Never a traceback, never a hang.

python tests/campaigns/recipes.py --count 5000 --seed 0 --seconds 600
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from xlmprune.core.errors import RecipeError
from xlmprune.recipe.catalog import shipped_recipes
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.yaml_text import dump_yaml, parse_yaml

LIMIT = 20
"""Seconds that reading one recipe may take, on a busy machine."""

SCALARS = [
    *(
        "",
        "~",
        "null",
        "true",
        "no",
        "-1",
        "0",
        "1e999",
        ".inf",
        "-.inf",
        ".nan",
        "1e-400",
        "0x" + "f" * 5000,
    ),
    *(
        "9" * 5000,
        "9" * 19,
        "-" + "9" * 30,
        "1_000",
        "007",
        "2:4",
        "2024-01-01",
        "1" * 40 + ".5",
        "100000000",
    ),
    *(
        "[]",
        "{}",
        "[[]]",
        "[{}]",
        "{a: {b: {c: d}}}",
        "[" * 500,
        "{a: " * 300,
        "[1, " * 50 + "]" * 50,
        "[a, a]",
    ),
    *(
        "!!int x",
        "!!timestamp x",
        "!!python/object/apply:os.system [x]",
        "!x y",
        "&a [*a]",
        "*a",
        "<<: *a",
        "? [a]",
    ),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\UFFFFFFFF"',
        '"\\x85"',
        "'",
        '"',
        "|",
        ">-",
        "{language}.{split}.tsv",
        "[{language}]",
    ),
    *(
        "x" * 5000,
        "é" * 300,
        "日本語",
        "‮abc",
        "\u2028",
        "a/" * 3000,
        "../" * 200,
        "/dev/zero",
        "/",
        ".",
        "~nobody/x",
    ),
    *(
        "quickstart",
        "xnli",
        "none",
        "pins",
        "all",
        "en,de",
        ",",
        "en,,en",
        "task",
        "keep",
        "mine.yaml",
        "base.yaml",
    ),
]
KEYS = [
    "name",
    "base",
    "task",
    "seed",
    "strength",
    "stages",
    "x" * 1000,
    "",
    "0",
    "[a]",
    "null",
    "a.b",
    "<<",
    "é",
    "__class__",
]


def _lines(text: str, draw: random.Random, change: Callable[[list[str], int], None]) -> str:
    lines = text.splitlines() or [""]
    change(lines, draw.randrange(len(lines)))
    return "\n".join(lines) + "\n"


def another_value(text: str, draw: random.Random) -> str:
    """Replace what stands after a colon."""
    spots = [i for i, letter in enumerate(text) if letter == ":"]
    if not spots:
        return text + draw.choice(SCALARS)
    at = draw.choice(spots) + 1
    end = min((text.find(mark, at) for mark in "\n,}" if text.find(mark, at) >= 0), default=len(text))
    return f"{text[:at]} {draw.choice(SCALARS)}{text[end:]}"


def another_key(text: str, draw: random.Random) -> str:
    """Add a key at a random depth."""
    added = f"{' ' * draw.choice([0, 2, 4, 3])}{draw.choice(KEYS)}: {draw.choice(SCALARS)}"
    return _lines(text, draw, lambda lines, i: lines.insert(i, added))


def other_lines(text: str, draw: random.Random) -> str:
    """Drop, repeat, indent or cut a line."""
    kind = draw.randrange(4)

    def change(lines: list[str], i: int) -> None:
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines[i:i] = [lines[i]] * draw.choice([1, 2, 500])
        elif kind == 2:
            lines[i] = " " * draw.randrange(1, 5) + lines[i]
        else:
            lines[i] = lines[i][: draw.randrange(len(lines[i]) + 1)]

    return _lines(text, draw, change)


def other_characters(text: str, draw: random.Random) -> str:
    """Insert, replace or drop a few characters."""
    letters = list(text)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(letters) + 1)
        new = draw.choice(
            [
                "",
                ":",
                "{",
                "}",
                "[",
                "]",
                "#",
                "'",
                '"',
                "\t",
                "\r",
                "\0",
                "&",
                "*",
                "!",
                "%",
                "-",
                "\x1b",
                "\ufeff",
            ]
        )
        letters[at : at + draw.choice([0, 1])] = new
    return "".join(letters)


def many(text: str, draw: random.Random) -> str:
    """Make something very long: a list, a map of unknown keys, a comment, a text."""
    count = draw.choice([1_000, 10_000, 30_000])
    return text + draw.choice(
        [
            "labels:\n" + "- a\n" * count,
            "".join(f"key{i}: 1\n" for i in range(count)),
            "training:\n" + "".join(f"  key{i}: 1\n" for i in range(count)),
            "# x\n" * count,
            "more: " + "word " * count + "\n",
            "more: [" + "a, " * count + "]\n",
        ]
    )


VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        0.5,
        1e-300,
        1e300,
        1.5,
        100,
        2**31,
        2**62,
        100_000_000,
        "",
        "x",
        "null",
        "1e5",
    ),
    *(
        [],
        [1],
        ["a"],
        ["a", "a"],
        ["en", "de"],
        {},
        {"name": "cosine"},
        {"name": "x", "y": 1},
        {"a": {"b": []}},
        "2:4",
        "task",
    ),
    *(
        "files",
        "hub",
        "xglue",
        "global",
        "layer",
        "pins",
        "none",
        "l0",
        "cubic",
        "linear",
        "random",
        "best",
        "last",
        "dense",
    ),
]


def other_values(text: str, draw: random.Random) -> str:
    """Replace, add or drop values in the tree: what comes out is YAML, and often a recipe."""
    try:
        values, _ = parse_yaml(text, "mine.yaml")
    except RecipeError:
        return text
    for _ in range(draw.choice([1, 1, 2, 4])):
        section = values
        while isinstance(section, dict | list) and section:
            key = draw.choice(list(section) if isinstance(section, dict) else range(len(section)))
            if not isinstance(section[key], dict | list) or draw.random() < 0.2:
                section[key] = _another(section[key], draw)
                break
            section = section[key]
    return dump_yaml(values)


def _another(value: object, draw: random.Random) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.7:
        return value * draw.choice([0, -1, 0.1, 2, 10, 1000, 1e6, 1e15])
    return draw.choice(VALUES)


MUTATIONS = [
    other_values,
    another_value,
    another_value,
    another_value,
    another_key,
    other_lines,
    other_characters,
    many,
]
WEIGHTS = [30, 4, 4, 4, 3, 4, 4, 0.1]


def mutants(seed: int) -> Iterator[bytes]:
    """Yield mutated recipes without end."""
    draw = random.Random(seed)
    originals = [file.read_text(encoding="utf-8") for file in shipped_recipes().values()]
    originals += [load_recipe(name).to_yaml() for name in shipped_recipes()] * 3
    originals = [
        "\n".join(line for line in text.splitlines() if not line.startswith("#")) + "\n" for text in originals
    ]
    while True:
        text = draw.choice(originals)
        for mutation in draw.choices(MUTATIONS, WEIGHTS, k=draw.choice([1, 1, 1, 2, 3])):
            text = mutation(text, draw)
        data = bytearray(text.encode("utf-8", "surrogatepass"))
        if data and draw.random() < 0.1:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield bytes(data)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError when the body takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(file: Path) -> str:
    """Read one recipe: ``read`` or ``refused``.

    Raises:
        Exception: whatever else happened; this is a fault of the package.
    """
    try:
        with within(LIMIT):
            recipe = load_recipe(str(file))
    except RecipeError as error:
        said = str(error)
        if not said.strip() or "Traceback" in said or len(said.encode()) > 100_000:
            raise ValueError(f"not a sentence: {said[:200]!r}") from error
        return "refused"
    copy = file.with_name("copy.yaml")
    copy.write_text(recipe.to_yaml(), encoding="utf-8")
    if load_recipe(str(copy)).resolved() != recipe.resolved():
        raise ValueError("the resolved recipe is not read back equal")
    return "read"


def run(count: int, seed: int, seconds: float = float("inf")) -> tuple[Counter[str], list[str]]:
    """Read up to ``count`` mutated recipes; return how many were read, refused and failed, and what failed."""
    counts: Counter[str] = Counter()
    failures = []
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.yaml"
        (Path(folder) / "base.yaml").write_text("base: mine.yaml\n", encoding="utf-8")
        for number, data in zip(range(count), mutants(seed)):
            if time.monotonic() > end:
                break
            file.write_bytes(data)
            try:
                counts[outcome(file)] += 1
            except Exception:
                counts["failed"] += 1
                failures.append(
                    f"seed {seed}, number {number}: {data[:2000]!r}\n{traceback.format_exc(limit=-4)}"
                )
    return counts, failures


def main() -> None:
    """Run the campaign from the command line; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    options = parser.parse_args()
    counts, failures = run(options.count, options.seed, options.seconds)
    print("\n".join(failures[:20]), file=sys.stderr)
    tally = {
        "campaign": "recipes",
        "seed": options.seed,
        "tried": counts.total(),
        "held": counts.total() - counts["failed"],
        "failed": {"traceback": counts["failed"]} if counts["failed"] else {},
        "read": counts["read"],
        "refused": counts["refused"],
    }
    print(json.dumps(tally))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

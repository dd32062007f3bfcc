"""Damage checkpoints of stopped runs: flip a bit, cut a file, delete one. Never may a run use what is damaged.

    python tests/campaigns/damage.py --count 200 --seed 0

A case is a run that is stopped after at least two checkpoints. With its newest checkpoint or its starting model
damaged, it must say so and end as an uninterrupted run does; with every checkpoint damaged, it must be refused.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaign import Runs, campaign, kill_at
from golden import RUNS


def damage(random: random.Random, folder: Path) -> str:
    """Damage one file of a checkpoint, and say how."""
    file = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    how = random.choice(("flip", "flip", "flip", "cut", "delete"))
    content = bytearray(file.read_bytes())
    # Hard links: the file of a checkpoint may be that of another run too.
    file.unlink()
    if how == "flip":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[: random.randrange(len(content))])
    return f"{how} {folder.name}/{file.name}"


def stopped(random: random.Random, runs: Runs, name: str) -> Path:
    """A run folder with two checkpoints."""
    operations = runs.expected(name)[2]
    while True:
        out = runs.new_folder()
        runs.wait(runs.start(name, out, kill_at(random.randint(operations // 3, operations))))
        if len(list(out.glob("checkpoint/saved-*"))) == 2 and not (out / "bundle").exists():
            return out
        shutil.rmtree(out, ignore_errors=True)


def case(random: random.Random, runs: Runs) -> str | None:
    name = random.choice(list(RUNS))
    out = stopped(random, runs, name)
    older, newest = sorted(out.glob("checkpoint/saved-*"))
    kind = random.choice(("newest", "newest", "start", "both"))
    runs.count(kind)
    done = damage(random, out / "checkpoint" / "start" if kind == "start" else newest)
    if kind == "both":
        done += f", {damage(random, older)}"
        code = runs.wait(runs.start(name, out))
        refused = code == 2 and re.search("damaged.*--fresh", runs.said, re.DOTALL)
        return None if refused else f"{name}: {done}: exit code {code}: {runs.said[-300:]}"
    wrong = runs.finish(name, out)
    # The checkpoints know the hashes of the starting model themselves, so its own list of them is not needed.
    if wrong is None and "damaged" not in runs.said and not done.endswith("start/files.json"):
        wrong = "nothing was said"
    return wrong and f"{name}: {done}: {wrong}"


if __name__ == "__main__":
    campaign(__doc__, 100, case)

"""Kill runs at random moments and at random file operations, or stop them with signals; each must end the same.

    python tests/campaigns/kills.py --count 200 --seed 0

A case is a run that is killed up to six times and then resumed to its end. It holds if its model, masks, scores and
losses are those of an uninterrupted run, bit for bit, and if nothing unfinished is left in its folder.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaign import Runs, campaign, kill_at
from golden import RUNS

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def case(random: random.Random, runs: Runs) -> str | None:
    name = random.choice(list(RUNS))
    _, seconds, operations = runs.expected(name)
    out = runs.new_folder()
    for _ in range(random.randint(1, 6)):
        if random.random() < 0.5:
            code = runs.wait(runs.start(name, out, kill_at(random.randint(1, operations))))
            allowed: tuple[int, ...] = (0, -signal.SIGKILL)
            operations = max(operations * 2 // 3, 8)  # roughly what is left when it resumes
        else:
            number = random.choice((signal.SIGKILL, *STOPPING))
            process = runs.start(name, out)
            time.sleep(random.uniform(0.02, 0.6) * seconds)
            os.kill(process, number)
            code = runs.wait(process)
            # Before the command handles signals, and after it is done, they end the process.
            allowed = (0, 130, -number)
        if code not in allowed:
            return f"{name}: exit code {code}: {runs.said[-300:]}"
        runs.count("kills" if code < 0 else "stops" if code else "ended before")
    return runs.finish(name, out)


if __name__ == "__main__":
    campaign(__doc__, 200, case)

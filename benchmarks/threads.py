"""Measure what waiting threads cost: spinning, spinning briefly, resting, and one thread, on a quiet and on a busy machine.

    python benchmarks/threads.py [--threads 2] [--neighbours 2] [--updates 10] [--rounds 3]

An update trains a network of six layers (width 384, 32 texts of 10 tokens). Every measurement is a process of its own,
since OpenMP reads its settings when PyTorch is loaded; they take turns. A neighbour is a process that computes without a
pause. Prints the median of the rounds, in milliseconds of wall time and of processor time for an update.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping

from xlmprune.core import machine

UPDATE = """
import sys, time, torch

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True)
network, texts = torch.nn.TransformerEncoder(layer, 6), torch.randn(32, 10, 384)
optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

def update():
    optimizer.zero_grad()
    network(texts).pow(2).mean().backward()
    optimizer.step()

update()
updates, wall, processor = int(sys.argv[1]), time.perf_counter(), time.process_time()
for _ in range(updates):
    update()
print(1e3 * (time.perf_counter() - wall) / updates, 1e3 * (time.process_time() - processor) / updates)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--neighbours", type=int, default=2, help="processes that keep the machine busy")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings: dict[str, tuple[int, Mapping[str, str]]] = {
        f"{options.threads} threads, spinning": (options.threads, {"OMP_WAIT_POLICY": "ACTIVE"}),
        f"{options.threads} threads, OpenMP's default": (options.threads, {}),
        f"{options.threads} threads, xlmprune's": (options.threads, machine.WAITING),
        f"{options.threads} threads, resting": (options.threads, {"OMP_WAIT_POLICY": "PASSIVE"}),
        "1 thread": (1, {"OMP_WAIT_POLICY": "PASSIVE"}),
    }
    print(f"{'':<32}{'neighbours':>12}{'wall, ms':>12}{'processor, ms':>15}", flush=True)
    for neighbours in (0, options.neighbours):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
        try:
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
            for _ in range(options.rounds):
                for name, (threads, waiting) in settings.items():
                    taken[name].append(measure(threads, waiting, options.updates))
        finally:
            for process in busy:
                process.kill()
        for name, found in taken.items():
            wall, processor = (statistics.median(column) for column in zip(*found))
            print(f"{name:<32}{neighbours:>12}{wall:>12.0f}{processor:>15.0f}", flush=True)


def measure(threads: int, waiting: Mapping[str, str], updates: int) -> tuple[float, float]:
    """Return milliseconds of wall time and of processor time for an update."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_NUM_THREADS": str(threads), **waiting}
    command = [sys.executable, "-c", UPDATE, str(updates)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall, processor = map(float, done.stdout.split())
    return wall, processor


if __name__ == "__main__":
    main()

"""Measure training: this package's loop beside `transformers.Trainer`, in turns, in one process.

    python benchmarks/training.py [--model quickstart|base] [--updates 9] [--rounds 7] [--threads 1] [--json FILE]

Both train the same network, of random weights, on the same random token ids of the lengths that the task has, and the
same vocabulary. The loop also aligns (cosine), masks, and clips. Trainer is run with its defaults, and in bf16. It needs
the package accelerate. Seconds are processor time on a CPU, so that other work on the machine does not count, and wall
time on CUDA. The limits of the machine are measured beside: a bf16 matrix product, and a copy in memory.

The loop's batches have texts of similar length, so its updates differ in size. Each contender's rate is its tokens divided
by its seconds, over all rounds but the first. With 2,000 texts, 7 rounds of 9 updates are one epoch.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn

from xlmprune.core import machine
from xlmprune.core.device import derive_seed, without_cudnn_attention
from xlmprune.data.encoding import Encoded, pad, training_order
from xlmprune.data.special import SpecialTokens
from xlmprune.models.loading import prunable
from xlmprune.recipe.schema import Component, PruningRecipe, TrainingRecipe
from xlmprune.training.loop import FinePruning, Step
from xlmprune.training.method import build_method
from xlmprune.training.optimizer import clip, gradient_norm, mask_gradients

SPECIAL = SpecialTokens(
    names={"pad": "<pad>"}, pad=1, unknown=3, separator=2, single=2, pair=4, segments=False, word_start=None
)


@dataclass(frozen=True)
class Size:
    """A network and a task."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    length: float
    """Mean number of tokens of a text."""
    pieces: int
    """Of the vocabulary of 250,002 that occur in the training text."""
    batch_size: int = 32


SIZES = {
    "quickstart": Size(384, 12, 12, 1536, length=9, pieces=1_500),
    "base": Size(768, 12, 12, 3072, length=40, pieces=25_000),
}


def network(size: Size, device: str) -> nn.Module:
    """Return a network of random weights with a head for three labels."""
    config = transformers.XLMRobertaConfig(
        vocab_size=250_002,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.feed_forward,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    config.num_labels = 3
    torch.manual_seed(0)
    model: nn.Module = transformers.XLMRobertaForSequenceClassification(config)
    return model.to(device)


def texts(size: Size, count: int) -> Encoded:
    """Return random texts of the task's lengths."""
    random = np.random.default_rng(0)
    known = random.choice(np.arange(4, 250_002), size.pieces, replace=False)
    lengths = np.clip(random.gamma(4, size.length / 4, count), 3, 3 * size.length).astype(int)
    ids = [np.array([0, *random.choice(known, length - 2), 2], dtype=np.int64) for length in lengths]
    labels = random.integers(0, 3, count)
    return Encoded(ids, labels, None, np.zeros(count, dtype=bool), special=SPECIAL)


# --- contenders ------------------------------------------------------------------------------------------------------


def loop(
    size: Size, data: Encoded, device: str, precision: Literal["bf16", "fp32"], **options: Any
) -> Iterator[int]:
    """Yield the tokens of every update of this package's loop, in its first pruned stage, padding not counted.

    Args:
        options: further keys of `training`.
    """
    pruning = PruningRecipe.model_validate(
        {"schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1}}
    )
    method = build_method(pruning, Component(name="cosine"))
    settings = TrainingRecipe(
        batch_size=size.batch_size,
        precision=precision,
        keep="last",
        dense_epochs=1e-9,
        epochs_per_stage=10_000,
        **options,
    )
    with without_cudnn_attention(torch.device(device)):
        made = FinePruning(network(size, device), data, method, settings, 0)
    steps = made.run()
    orders: dict[int, list[np.ndarray]] = {}
    while True:
        with without_cudnn_attention(
            torch.device(device)
        ):  # Trainer, which takes turns, has PyTorch's choice
            event = next(steps)
        if isinstance(event, Step) and event.stage > 0:
            epoch, number = divmod(made.state.at.position - 1, made.gradients.batches_per_epoch)
            if epoch not in orders:
                orders[epoch] = training_order(data, size.batch_size, derive_seed(0, "order"), epoch)
            yield sum(len(data.input_ids[row]) for row in orders[epoch][number])


def trainer(size: Size, data: Encoded, device: str, bf16: bool) -> Iterator[int]:
    """Yield the tokens of every update of `transformers.Trainer`, padding not counted."""
    import queue
    import threading

    turn: queue.Queue[bool] = queue.Queue()
    done: queue.Queue[int] = queue.Queue()
    tokens: queue.Queue[int] = queue.Queue()

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn.get()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            done.put(tokens.get())

    labels = np.asarray(data.labels).tolist()
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(data.input_ids, labels, strict=True)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens.put(sum(len(row["input_ids"]) for row in batch))  # batches come in the order of the updates
        part = replace(
            data, input_ids=[row["input_ids"] for row in batch], labels=np.array([r["labels"] for r in batch])
        )
        return {name: torch.from_numpy(array) for name, array in pad(part, range(len(batch))).items()}

    arguments = transformers.TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=size.batch_size,
        max_steps=1_000_000,
        bf16=bf16,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    made = transformers.Trainer(
        network(size, device), arguments, train_dataset=rows, data_collator=collate, callbacks=[Turns()]
    )
    threading.Thread(target=made.train, daemon=True).start()
    while True:
        turn.put(True)
        yield done.get()


# --- measuring -------------------------------------------------------------------------------------------------------


def clock(device: str) -> float:
    """Return seconds: of this process's processors on a CPU, of the wall on CUDA."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Work:
    """What a contender did in all rounds but the first."""

    updates: int = 0
    tokens: int = 0
    seconds: float = 0.0


def in_turns(contenders: dict[str, Iterator[int]], updates: int, rounds: int, device: str) -> dict[str, Work]:
    """Return what every contender did."""
    done = {name: Work() for name in contenders}
    for number in range(rounds + 1):
        for name, steps in contenders.items():
            start = clock(device)
            tokens = sum(next(steps) for _ in range(updates))
            if number:
                work = done[name]
                work.seconds += clock(device) - start
                work.updates += updates
                work.tokens += tokens
    return done


def parts(size: Size, data: Encoded, device: str) -> dict[str, float]:
    """Return milliseconds of what the loop does beside the network: alignment, masks and norm, clipping and AdamW."""
    model: Any = network(size, device)
    weights = prunable(model)
    method = build_method(PruningRecipe(), Component(name="cosine"))
    reference = {name: weight.detach().clone() for name, weight in weights.items()}
    masks = {name: torch.rand_like(weight) < 0.3 for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), fused=True)
    batch = {
        name: torch.from_numpy(array).to(device) for name, array in pad(data, range(size.batch_size)).items()
    }

    def network_pass() -> None:
        model.zero_grad(set_to_none=True)
        model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
        ).loss.backward()
        model.get_input_embeddings().weight.grad = None

    model.get_input_embeddings().weight.requires_grad_(False)
    work: dict[str, Callable[[], Any]] = {
        "forward and backward, fp32": network_pass,
        "alignment": lambda: method.regularizer.add_gradient(weights, reference, masks),
        "masks and norm": lambda: mask_gradients(weights, masks),
        "clipping and AdamW": lambda: (
            clip(model, 1.0, gradient_norm(model).double(), optimizer),
            optimizer.step(),
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(6):
        for name, do in work.items():
            start = clock(device)
            do()
            found[name].append(1e3 * (clock(device) - start))
    return {name: round(statistics.median(times[1:]), 2) for name, times in found.items()}


def limits(device: str) -> dict[str, float]:
    """Return GFLOP/s of a bf16 matrix product, and GB/s of a copy, read and written."""
    a = torch.randn(1024, 1024, device=device).bfloat16()
    source = torch.randn(64_000_000 // 4, device=device)
    target = torch.empty_like(source)

    def best(do: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            start = clock(device)
            do()
            times.append(clock(device) - start)
        return max(min(times), 1e-9)

    return {
        "bf16_gflops": round(2 * 1024**3 / best(lambda: a @ a) / 1e9, 1),
        "copy_gb_per_s": round(2 * 64e6 / best(lambda: target.copy_(source)) / 1e9, 1),
    }


def floor(size: Size, data: Encoded) -> dict[str, float]:
    """Return the least work of an update: products forward and backward, and bytes of weights, moments and reference."""
    matrices = size.layers * size.hidden * (4 * size.hidden + 2 * size.feed_forward)
    tokens = size.batch_size * float(np.mean([len(ids) for ids in data.input_ids]))
    trained = matrices + size.pieces * size.hidden
    # Read gradient, weight and two moments, write three of them; alignment reads weight, reference and mask once.
    return {
        "gflop": round(6 * matrices * tokens / 1e9, 1),
        "gigabytes": round((28 * trained + 9 * matrices) / 1e9, 3),
    }


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SIZES, default="quickstart")
    parser.add_argument("--updates", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="contenders to run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, device = SIZES[arguments.model], arguments.device
    data = texts(size, 2_000)
    made: dict[str, Callable[[], Iterator[int]]] = {
        "xlmprune bf16": lambda: loop(size, data, device, "bf16"),
        "xlmprune fp32": lambda: loop(size, data, device, "fp32"),
        "xlmprune fp32 checkpointing": lambda: loop(size, data, device, "fp32", gradient_checkpointing=True),
        "xlmprune fp32 fast dropout": lambda: loop(size, data, device, "fp32", fast_dropout=True),
        "xlmprune bf16 compiled": lambda: loop(size, data, device, "bf16", compile=True),
        "xlmprune bf16 graphs": lambda: loop(size, data, device, "bf16", cuda_graphs=True),
        "xlmprune bf16 compiled, graphs": lambda: loop(
            size, data, device, "bf16", compile=True, cuda_graphs=True
        ),
        "Trainer": lambda: trainer(size, data, device, False),
        "Trainer bf16": lambda: trainer(size, data, device, True),
    }
    usual = [name for name in made if not name.endswith(("compiled", "graphs", "checkpointing", "dropout"))]
    chosen = arguments.only or (usual if device == "cpu" else list(made))
    done = in_turns({name: made[name]() for name in chosen}, arguments.updates, arguments.rounds, device)
    facts: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": arguments.threads,
            "device": device,
        },
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": sys.version.split()[0],
        },
        "size": asdict(size),
        "updates_per_second": {name: round(work.updates / work.seconds, 3) for name, work in done.items()},
        "tokens_per_second": {name: round(work.tokens / work.seconds) for name, work in done.items()},
        "peak_gb_all": round((machine.process_memory()[1] or 0) / 1e9, 2),
        "parts_ms": parts(size, data, device),
        "limits": limits(device),
        "floor": floor(size, data),
    }
    table = Table(
        "", "updates/s", "tokens/s", title=f"{arguments.model}, {arguments.threads} thread(s), {device}"
    )
    for name, rate in facts["updates_per_second"].items():
        table.add_row(name, f"{rate:.2f}", f"{facts['tokens_per_second'][name]:,}")
    console = Console()
    console.print(table)
    console.print({key: facts[key] for key in ("parts_ms", "limits", "floor", "peak_gb_all")})
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

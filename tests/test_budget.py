"""Sizes by budget: what a size costs, the search, tables of other models, and runs that resume with what was chosen."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from xlmprune.core.errors import RecipeError
from xlmprune.pruning.budget import (
    Bytes,
    Latency,
    Limits,
    Size,
    SizedFile,
    SizeTable,
    Timing,
    arrays,
    search,
    worth,
)

WHOLE = Size(4, 4, 64)
SIZES = [
    Size(1, 1, 8), Size(1, 1, 64), Size(3, 1, 8), Size(3, 1, 32), Size(3, 1, 64), Size(4, 4, 64), Size(4, 4, 8)
]  # fmt: skip


def cost(size):
    """An encoder whose attention is linear in heads, and whose FFN grows faster beyond 32 neurons."""
    ffn = 0.2 + 0.01 * size.neurons + 0.02 * max(0, size.neurons - 32)
    return 0.5 + size.layers * (0.1 + 0.3 * size.heads + ffn)


def weight(size, rows=100):
    return 1000 + 20 * rows + size.layers * (300 + 64 * size.heads + 17 * size.neurons)


def table(**changes):
    files = tuple(SizedFile(size, rows, weight(size, rows)) for size in SIZES for rows in (50, 100))
    timing = Timing(1, 64, 1, tuple(cost(file.size) for file in files), 4 * cost(WHOLE))
    model = {"name": "small", "type": "bert", "hidden": 16, "layers": 4, "heads": 4, "neurons": 64}
    facts = {"model": model, "form": "int8", "opset": 20, "embeddings": "int8", "machine": {}}
    return SizeTable(**{**facts, "files": files, "timings": (timing,), **changes})


def test_latency_is_that_of_sizes_never_measured():
    latency = Latency(SIZES, [cost(size) for size in SIZES])
    others = [Size(2, 2, 16), Size(12, 3, 48), Size(1, 1, 4), Size(6, 8, 96)]
    assert latency(arrays(others)) == pytest.approx([cost(size) for size in others])


def test_noise_never_makes_a_larger_size_faster():
    noise = np.random.default_rng(0).normal(1, 0.1, len(SIZES))
    latency = Latency(SIZES, [cost(size) * by for size, by in zip(SIZES, noise, strict=True)])
    for heads in range(1, 4):
        found = latency(arrays([Size(3, heads, 32), Size(3, heads + 1, 32)]))
        assert found[0] <= found[1]
    assert (np.diff(latency(arrays([Size(3, 1, width) for width in range(8, 65)]))) >= -1e-12).all()


def test_one_head_and_one_width_are_enough_to_fit():
    sizes = [Size(1, 1, 8), Size(2, 1, 8)]
    assert Latency(sizes, [3.0, 5.0])(arrays([Size(4, 1, 8)])) == pytest.approx([9.0])


def test_bytes_count_rows_of_the_vocabulary():
    files = [SizedFile(size, rows, weight(size, rows)) for size in SIZES for rows in (50, 100)]
    size = Size(2, 3, 40)
    assert Bytes(files, 5000)(arrays([size])) == pytest.approx([weight(size, 5000)])


def test_worth_orders_the_sizes_that_were_measured():
    whole = Size(12, 12, 1536)
    sizes = [Size(12, 6, 768), Size(6, 12, 1536), Size(6, 6, 768), Size(6, 3, 384), Size(4, 6, 768)]
    values = worth(arrays([whole, *sizes]), whole)
    assert values[0] == 1
    assert (np.diff(values) < 0).all()


@pytest.mark.parametrize(
    "limits",
    [
        Limits(latency_ms=3.0),
        Limits(latency_ms=1.0),
        Limits(speedup=6.5),
        Limits(bytes=7000),
        Limits(latency_ms=4.0, bytes=6000),
        Limits(speedup=5.0, bytes=5500),
    ],
)
@pytest.mark.parametrize("multiple", [8, 16])
def test_the_search_finds_what_trying_all_finds(limits, multiple):
    known = table()
    timing = known.timings[0]

    def fits(size):
        return (
            cost(size) <= (limits.latency_ms or math.inf) + 1e-9
            and timing.dense_ms / cost(size) >= (limits.speedup or 0) - 1e-9
            and weight(size) <= (limits.bytes or math.inf) + 1e-6
        )

    def value(size):
        return (size.layers / 4) ** 2 * math.sqrt(size.heads / 4 * size.neurons / 64)

    grid = itertools.product(range(1, 5), range(1, 5), range(multiple, 65, multiple))
    fitting = [size for size in itertools.starmap(Size, grid) if fits(size)]
    if not fitting:
        with pytest.raises(RecipeError, match="best possible"):
            search(limits, known, timing, 100, multiple)
        return
    best = min(fitting, key=lambda size: (-round(value(size), 12), cost(size)))
    found = search(limits, known, timing, 100, multiple)
    assert found.size == best
    assert found.latency_ms == pytest.approx(cost(best))
    assert found.speedup == pytest.approx(timing.dense_ms / cost(best))
    assert found.bytes == pytest.approx(weight(best), abs=1)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            Limits(latency_ms=0.1),
            r"latency_ms 0\.1 cannot be met; the best possible is 1\.18 ms, with 1 layer with 1 head",
        ),
        (Limits(speedup=100), r"speedup 100 cannot be met; the best possible is 39\.4"),
        (
            Limits(bytes=2000),
            r"bytes 2\.0 kB cannot be met; the best possible is 3\.5 kB.*trim the vocabulary",
        ),
        (Limits(bytes=10**9), "the whole model meets it already"),
    ],
)
def test_a_budget_that_makes_no_sense_is_explained(limits, said):
    known = table()
    with pytest.raises(RecipeError, match=said):
        search(limits, known, known.timings[0], 100, 8)


def test_a_multiple_must_divide():
    known = table()
    with pytest.raises(RecipeError, match="24 does not divide the 64 neurons"):
        search(Limits(latency_ms=3), known, known.timings[0], 100, 24)


def test_a_table_survives_json():
    known = table()
    assert SizeTable.from_record(json.loads(json.dumps(known.record()))) == known


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("files"),
        lambda record: record.update(files=[]),
        lambda record: record["files"][0].update(bytes=-1),
        lambda record: record["files"][0]["size"].update(layers="many"),
        lambda record: record["timings"][0]["ms"].pop(),
        lambda record: record["timings"][0].update(dense_ms=math.nan),
        lambda record: record["timings"][0].update(dense_ms="5 ms"),
        lambda record: record["timings"][0].update(dense_ms=True),
        lambda record: record["timings"][0]["ms"].__setitem__(0, None),
        lambda record: record["files"][0].update(bytes=10**400),
        lambda record: record.update(model="small"),
        lambda record: record.update(surprise=1),
    ],
)
def test_a_damaged_table_is_refused(damage):
    record = json.loads(json.dumps(table().record()))
    damage(record)
    with pytest.raises(ValueError, match="not a table of sizes") as caught:
        SizeTable.from_record(record)
    assert "ufunc" not in str(caught.value)


def test_conditions_that_were_not_measured_are_named():
    with pytest.raises(
        RecipeError,
        match=r"batch 8, 64 tokens, 2 threads asked for; the table has batch 1, 64 tokens, 1 thread",
    ):
        table().timing(8, 64, 2)

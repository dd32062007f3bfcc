"""For every test: one thread, since tensors are tiny and workers share the cores; no network; one trace of each model."""

import os
import signal
from functools import partial

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
import traced

from xlmprune.bundle import bench
from xlmprune.core import gpu
from xlmprune.core.hub import ask_again

# A busy machine may take its time; an example is wrong when it is wrong, not when it is slow.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
torch.set_num_threads(1)


# A shell starts a background command with Ctrl-C ignored; tests that send one need the usual answer.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _traced_once(request, tmp_path_factory):
    """Let tests share the trace of each structure of a model; see `traced.py`."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(request.config, "workerinput"):
            patch.setattr(traced, "shared", tmp_path_factory.getbasetemp().parent / "traces")
        patch.setattr(torch.onnx, "export", traced.export)
        yield


@pytest.fixture(autouse=True, scope="session")
def _timed_briefly():
    """Time the forms of a tiny model for a moment, where a run takes two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "quick", partial(bench.quick, seconds=0.1))
        yield


@pytest.fixture(autouse=True)
def _hub_asked_again():
    """Let no test inherit from another one that the hub was not reached."""
    yield
    ask_again()


@pytest.fixture(scope="module")
def traced_anew():
    """Let the exporter trace every model, for tests of the exporter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced.EXPORT)
        yield


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the model, the data and the unlabelled text of a tiny run."""
    from tiny_run import write_workplace

    return write_workplace(tmp_path_factory.mktemp("work"))


LONGEST_FIRST = (
    "test_pipeline",
    "test_comparison",
    "test_families",
    "test_shrinking",
    "test_architecture_doc",
    "test_exporters_onnx",
    "test_criteria",
    "test_forms",
)
"""Files that a worker of `pytest -n` starts with, so that none of them is the last one that the others wait for."""


def pytest_collection_modifyitems(items):
    if not gpu.count():
        skip = pytest.mark.skip(reason=f"needs a GPU: {gpu.why_none() or 'PyTorch finds none'}")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))

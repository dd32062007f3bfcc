"""The fp32 graph of a whole model, as it was before structures were removed: with weights of no meaning, to time it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.initialization import no_init_weights

from xlmprune.core import machine, own_process
from xlmprune.core.files import temporary_folder
from xlmprune.data.examples import Kind
from xlmprune.export.graph import export_onnx
from xlmprune.models import architecture
from xlmprune.models.loading import count_parameters, head_class

if TYPE_CHECKING:
    from torch import nn

LAYERS = 6
"""From so many on, tracing takes longer than starting a process."""

PARAMETERS = 300_000_000
"""Up to so many, two graphs are traced at once. For a larger model the memory counts more than the seconds."""


def model_without_meaning(config: Any, kind: Kind) -> nn.Module:
    """Return a model of this configuration with random weights, in eval mode."""
    with no_init_weights():
        model = head_class(config, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no two alike: the exporter would merge them
            parameter.normal_(0.0, 0.02)
    return cast("nn.Module", model)


def write_whole(config: Any, kind: Kind, opset: int, path: Path) -> Path:
    """Write the graph of a model of this configuration."""
    export_onnx(model_without_meaning(config, kind), path, opset=opset)
    return path


@contextmanager
def written_beside(
    config: Any, kind: Kind, opset: int | None, temporary: Path
) -> Iterator[Callable[[int], Path]]:
    """Write the graph in a process of its own, while the ``with`` does other work: a trace needs one processor.

    Args:
        config: of the whole model.
        opset: None if it is not known yet; then nothing is written beside.
        temporary: a folder for the file.

    Yields:
        Returns the file for an opset, which exists inside the ``with``. It waits for the process. It writes the file itself
        where there is no process, or where that failed.
    """
    with temporary_folder(temporary) as folder:
        path = folder / "dense.onnx"
        process = None
        if opset is not None and _saves_time(config, kind):
            process = _start(config, kind, opset, folder / "config.json", path)

        def file(wanted: int) -> Path:
            if process is not None and process.wait() == 0 and wanted == opset:
                return path
            return write_whole(config, kind, wanted, path)

        try:
            yield file
        finally:
            if process is not None:
                process.kill()
                process.communicate()


def _start(
    config: Any, kind: Kind, opset: int, described: Path, path: Path
) -> subprocess.Popen[bytes] | None:
    """Start the process; None where the system allows no other one."""
    described.write_text(json.dumps(values_of(config)), encoding="utf-8")
    try:
        return subprocess.Popen(
            own_process.command(__name__, str(described), kind, str(opset), str(path)),
            stdin=subprocess.PIPE,  # stays open as long as we live; see `own_process.end_with_parent`
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**own_process.environment(), own_process.END_WITH_STDIN: "1"},
        )
    except OSError:
        return None


def _saves_time(config: Any, kind: Kind) -> bool:
    if config.num_hidden_layers < LAYERS or machine.processors() < 2:
        return False
    with torch.device("meta"), no_init_weights():
        return count_parameters(head_class(config, kind)(config)) <= PARAMETERS


def values_of(config: Any) -> dict[str, Any]:
    """Return the values of a configuration that `config_of` reads, the way to compute attention included."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {**values, "attn_implementation": config._attn_implementation}


def config_of(values: Mapping[str, Any]) -> Any:
    """Return a configuration of transformers from the values of a config.json."""
    import transformers

    family = architecture.named(values["model_type"])
    return getattr(transformers, family.heads["text"]).config_class(**values)


def _main(described: str, kind: str, opset: str, path: str) -> None:
    own_process.end_with_parent()
    torch.set_num_threads(1)
    values = json.loads(Path(described).read_text(encoding="utf-8"))
    write_whole(config_of(values), cast("Kind", kind), int(opset), Path(path))


if __name__ == "__main__":
    _main(*sys.argv[1:])

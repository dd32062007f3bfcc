"""Predicted labels as text files, in the form XGLUE's own script (`xglue_evaluate.py`) reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xlmprune.core.errors import MachineError
from xlmprune.data.examples import Examples
from xlmprune.tasks.metrics import CUT, Logits


def write_predictions(folder: Path, task: Any, language: str, logits: Logits, examples: Examples) -> Path:
    """Write ``folder/TASK/language.prediction``, one label for every line of input.

    Token tasks get one tag a line and an empty line after every sentence; a word cut off by truncation gets O, as
    in the official baseline. A header line of the input has none.

    Args:
        task: its ``name`` (in capitals the folder's) and ``labels``.
        logits: per example [labels], or [words that survived truncation, labels].

    Returns:
        the file written.

    Raises:
        MachineError: it cannot be written.
    """
    if len(logits) != len(examples):
        raise ValueError(f"logits of {len(logits)} examples for {len(examples)}")
    lines = []
    for row, own in zip(logits, examples.first, strict=True):
        if isinstance(own, str):
            lines.append(task.labels[int(row.argmax())])
        else:
            tags = [task.labels[int(tag)] for tag in row.argmax(axis=-1)] if len(row) else []
            lines += [*tags, *[CUT] * (len(own) - len(tags)), ""]
    file = folder / task.name.upper() / f"{language}.prediction"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    except OSError as error:
        raise MachineError(
            f"{file}: cannot be written ({error.strerror}); expected a folder for predictions"
        ) from error
    return file

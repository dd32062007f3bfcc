"""`golden.safetensors`: one padded batch of real texts, and the logits that were measured for it.

`input_ids` and `attention_mask`, int64 [batch, tokens], and `logits.<form>`, float32, for every form shipped and for
`pytorch`. The metadata hold the texts themselves, so that a tokenizer that numbers them otherwise is found. Whoever has
the file can ask whether a model, a tokenizer, a runtime or a machine still says the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from xlmprune.core.errors import BundleError
from xlmprune.core.files import replacing
from xlmprune.data.examples import Examples

FILE = "golden.safetensors"
LOGITS = "logits."
TEXTS = "texts"
"""Key of the metadata: JSON with `first`, and `second` for pairs."""


@dataclass(frozen=True)
class Golden:
    """One batch and what each form answered."""

    input_ids: np.ndarray
    """int64 [batch, tokens]"""
    attention_mask: np.ndarray
    """int64 [batch, tokens], 1 where there is a token"""
    logits: dict[str, np.ndarray]
    """form (or `pytorch`) to float32 [batch, labels] or [batch, tokens, labels]"""
    texts: Examples | None = None
    """The texts of the batch; None in a file of xlmprune 0.1, which has no texts."""


def write(folder: Path, arrays: Mapping[str, np.ndarray], texts: Examples | None = None) -> None:
    """Write ``input_ids``, ``attention_mask`` and any ``logits.<form>``, and the texts they are of."""
    dtypes = {name: np.float32 if name.startswith(LOGITS) else np.int64 for name in arrays}
    tensors = {name: np.ascontiguousarray(array, dtype=dtypes[name]) for name, array in arrays.items()}
    with replacing(folder / FILE) as partial:
        save_file(tensors, partial, {} if texts is None else {TEXTS: _to_json(texts)})


def read(folder: Path) -> Golden:
    """Read the golden batch of a bundle.

    Raises:
        BundleError: missing or damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    try:
        arrays = load_file(path)
        texts = _read_texts(path)
        ids, mask = arrays.pop("input_ids"), arrays.pop("attention_mask")
    except (SafetensorError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    except KeyError as error:
        raise BundleError(f"{path}: {error} is missing") from error
    logits = {name.removeprefix(LOGITS): array for name, array in arrays.items() if name.startswith(LOGITS)}
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise BundleError(
            f"{path} is damaged: input_ids {ids.shape} and attention_mask {mask.shape} do not fit"
        )
    if not mask.any():
        raise BundleError(f"{path} is damaged: it holds no token")
    for form, array in logits.items():
        fits = (array.ndim == 2 and len(array) == len(ids)) or (
            array.ndim == 3 and array.shape[:2] == ids.shape
        )
        if not fits or not array.size:
            raise BundleError(
                f"{path} is damaged: logits of {form} are {array.shape} for ids of {ids.shape}, expected one row of "
                "labels for each text or for each token"
            )
    if texts is not None and len(texts.first) != len(ids):
        raise BundleError(f"{path} is damaged: it holds {len(texts.first)} texts and ids of {len(ids)}")
    return Golden(ids, mask, logits, texts)


def _to_json(texts: Examples) -> str:
    first = [text if isinstance(text, str) else list(text) for text in texts.first]
    return json.dumps({"first": first, "second": texts.second}, ensure_ascii=False)


def _read_texts(path: Path) -> Examples | None:
    with safe_open(path, "np") as file:
        stored = (file.metadata() or {}).get(TEXTS)
    if stored is None:
        return None
    found = json.loads(stored)
    parts = [found.get("first"), found.get("second") or []] if isinstance(found, dict) else [None]
    if not all(isinstance(part, list) and all(map(_is_text, part)) for part in parts):
        raise ValueError("its texts are not lists of strings")
    return Examples("", "", *([found["first"]] if not parts[1] else parts))


def _is_text(entry: object) -> bool:
    if isinstance(entry, list):
        return all(isinstance(word, str) for word in entry)
    return isinstance(entry, str)

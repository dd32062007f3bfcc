"""What may be wrong with a checkpoint, each with its cause in a sentence; checked before memory is asked for.

Nothing of a checkpoint is executed: neither Python files beside it nor pickles are opened.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.core.errors import ModelError
from xlmprune.core.files import SAFETENSORS_FILE
from xlmprune.models.architecture import Architecture

if TYPE_CHECKING:
    from torch import nn

LIMITS = {
    "num_hidden_layers": 512,
    "hidden_size": 65_536,
    "num_attention_heads": 4_096,
    "intermediate_size": 1_048_576,
    "vocab_size": 16_777_216,
    "max_position_embeddings": 16_777_216,
    "type_vocab_size": 65_536,
    "num_labels": 1_000_000,
}
"""Largest values of config.json. Each must also be at least 1."""

LARGEST_MODEL = 20_000_000_000
"""Parameters that config.json may describe; XLM-R XXL has 10.7 billion."""

LARGEST_CONFIG = 16_000_000
"""Bytes of config.json."""

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LFS = b"version https://git-lfs"

SPARSE_START = 0.02
"""From this share of zeros on, a checkpoint is said to have been pruned before."""


# --- files -----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raise ModelError unless ``folder`` holds the config and the safetensors weights of a whole model."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} holds an adapter (adapter_config.json) without its base model. Merge it first, with peft: "
                "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(merged)"
            )
        raise ModelError(
            f"{folder} is a folder without config.json; expected a model saved by save_pretrained"
        )
    size = (folder / "config.json").stat().st_size
    if size > LARGEST_CONFIG:
        raise ModelError(f"{folder}: config.json has {size:,} bytes; at most {LARGEST_CONFIG:,} are read")
    weights = sorted(folder.glob("model*.safetensors"))
    for file in [*weights, *folder.glob("*.bin"), folder / "config.json", *folder.glob("tokenizer.json")]:
        with file.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise ModelError(
                    f"{file} is a Git LFS pointer and not the file itself; run `git lfs pull` in its repository"
                )
    if not weights:
        _explain_missing_weights(folder)
    if (folder / SAFETENSORS_FILE).is_file() and _is_sparse_bundle(folder / SAFETENSORS_FILE):
        raise ModelError(
            f"{folder} is a bundle of xlmprune, whose weights are stored sparse; write a plain model folder with "
            f"`xlmprune unpack {shlex.quote(str(folder))} --out plain`, and give that as model.name"
        )


def _explain_missing_weights(folder: Path) -> None:
    if any((folder / name).is_file() for name in PICKLES):
        raise ModelError(
            f"{folder} has its weights as a pickle (pytorch_model.bin), which can run any code when it is opened; "
            "xlmprune reads safetensors only. If the model is also published as model.safetensors, use that. Else "
            "convert it on a machine without valuable data: load it there with transformers and call "
            "save_pretrained"
        )
    raise ModelError(f"{folder}: no {SAFETENSORS_FILE}; expected a model saved by save_pretrained")


def _is_sparse_bundle(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            return any(key.startswith("xlmprune") for key in opened.metadata() or {})
    except SafetensorError as error:
        raise ModelError(f"{file} is damaged: {error}") from error


# --- config.json -----------------------------------------------------------------------------------------------------


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where values of config.json cannot be, or weights are stored quantized.

    Keys that are missing have their family's defaults.
    """
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise ModelError(
            f"{name}: the weights are quantized ({method}, by quantization_config in config.json), and cannot be "
            "trained. Give the model in its original precision"
        )
    for key, largest in LIMITS.items():
        value = config.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            raise ModelError(
                f"{name}: config.json has {key}: {_shown(value)}; expected a whole number from 1 to {largest:,}"
            )
    padding = config.get("pad_token_id", 0)
    if not isinstance(padding, int) or not 0 <= padding < config.get("vocab_size", LIMITS["vocab_size"]):
        raise ModelError(f"{name}: config.json has pad_token_id: {_shown(padding)}; expected a token's id")
    width, heads = config.get("hidden_size", 0), config.get("num_attention_heads", 1)
    if width % heads:
        raise ModelError(
            f"{name}: config.json has hidden_size {width}, which cannot be divided by {heads} heads"
        )
    if (parameters := _count(config)) > LARGEST_MODEL:
        raise ModelError(
            f"{name}: config.json describes a model of {parameters:,} parameters; at most {LARGEST_MODEL:,} are read"
        )


def _count(config: Mapping[str, Any]) -> int:
    """Return the number of weights in matrices and tables that a config describes."""
    width, inner = config.get("hidden_size", 1), config.get("intermediate_size", 1)
    rows = config.get("vocab_size", 1) + config.get("max_position_embeddings", 1)
    return rows * width + config.get("num_hidden_layers", 1) * width * (4 * width + 2 * inner)


def _shown(value: Any) -> str:
    text = (
        json.dumps(value) if not isinstance(value, int) or abs(value) < 10**12 else "a number of many digits"
    )
    return text if len(text) <= 40 else f"{text[:40]}…"


# --- weights ---------------------------------------------------------------------------------------------------------

CAUSES = (
    ("_orig_mod.", "The model was saved while compiled: save model._orig_mod instead"),
    ("lora_", "These are LoRA weights: merge them into the model (peft: merge_and_unload) and save that"),
    ("adapter", "These are adapters: a model with adapters cannot be pruned; merge or remove them"),
    ("base_layer.", "The model was saved with peft layers: merge them (merge_and_unload) and save that"),
    ("module.", "The model was saved inside DataParallel: save model.module instead"),
    ("SCB", "The weights are quantized (bitsandbytes): give the model in its original precision"),
    ("quant_state", "The weights are quantized (bitsandbytes): give the model in its original precision"),
)
"""What a part of an unexpected name says about its cause."""


def check_keys(
    name: str, family: Architecture, layers: int, missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """Raise ModelError where weights of the encoder are missing, or would be dropped; names the cause.

    Args:
        layers: `num_hidden_layers` of the config.
        missing: parameters of the model that the checkpoint lacks.
        unexpected: parameters of the checkpoint that the model lacks. Heads of pretraining are among them.
    """
    foreign, lacking = sorted(unexpected), sorted(key for key in missing if family.part_of(key) != "head")
    for mark, cause in CAUSES:
        if found := [key for key in foreign if mark in key]:
            raise ModelError(f"{name}: {name_some(found)} cannot be used. {cause}")
    deeper = [key for key in foreign if (index := family.layer_of(key)) is not None and index >= layers]
    if deeper:
        raise ModelError(
            f"{name}: the checkpoint has more layers than num_hidden_layers in config.json ({layers}): {name_some(deeper)}; "
            "config.json belongs to another model"
        )
    dropped = [
        key for key in foreign if family.part_of(key) in ("encoder", "embeddings") and not _is_buffer(key)
    ]
    if dropped:
        raise ModelError(
            f"{name}: {name_some(dropped)} would be dropped: a model of type {family.model_type!r} has no such weights"
        )
    if lacking:
        raise ModelError(
            f"{name}: {len(lacking)} weights are missing, such as {lacking[0]}; the checkpoint may be incomplete"
        )


def _is_buffer(key: str) -> bool:
    """Return whether older versions of transformers saved this, though it is no weight."""
    return key.endswith((".position_ids", ".token_type_ids"))


def name_some(names: list[str]) -> str:
    """Name the first, and say how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def check_finite(name: str, model: nn.Module) -> None:
    """Raise ModelError where a weight is NaN or infinite."""
    for key, parameter in model.named_parameters():
        # The sum is cheap; it may overflow where every value is finite.
        if not parameter.detach().sum().isfinite() and not parameter.detach().isfinite().all():
            raise ModelError(
                f"{name}: {key} holds values that are NaN or infinite; the checkpoint is damaged"
            )


def zero_share(weights: Mapping[str, Any]) -> float:
    """Return the share of the prunable weights that are exactly zero."""
    total = sum(weight.numel() for weight in weights.values())
    return sum(int((weight == 0).sum()) for weight in weights.values()) / max(1, total)

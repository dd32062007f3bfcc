"""A pretrained encoder with a task head and its tokenizer, from the hub, a folder, or a model made on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.utils import cached_file

from xlmprune.core import hub
from xlmprune.core.device import derive_seed
from xlmprune.core.errors import MachineError, ModelError, first_line
from xlmprune.data.examples import Kind
from xlmprune.data.special import explain_panics, special_tokens
from xlmprune.models import architecture
from xlmprune.models.checkpoint import (
    SPARSE_START,
    check_config,
    check_finite,
    check_folder,
    check_keys,
    zero_share,
)
from xlmprune.models.segments import derive_segments
from xlmprune.recipe import registry

if TYPE_CHECKING:
    from xlmprune.recipe.schema import ModelRecipe


FAULTS = (OSError, ValueError, KeyError, RecursionError, RuntimeError)
"""What reading a model raises, beside the errors of the packages that download it and read its weights."""

OLDER_TOKENIZERS = ("sentencepiece.bpe.model", "vocab.txt")
"""Files that a tokenizer can be converted from; the first needs the packages sentencepiece and protobuf."""


@dataclass(frozen=True)
class Pretrained:
    """A model with a fresh task head, its tokenizer, and where they came from."""

    model: Any
    """A Hugging Face model, in eval mode."""
    tokenizer: Tokenizer
    origin: dict[str, Any]
    """`name`, `revision` (the commit resolved, where there is one) and `licence`."""
    notes: tuple[str, ...] = ()
    """Sentences about the checkpoint, for the user."""

    def __reduce__(self) -> Any:
        """Give what another process makes it again from: a model of transformers needs its constructor to be called."""
        state = dict(self.model.state_dict())
        return _made_again, (
            type(self.model),
            self.model.config,
            state,
            self.tokenizer,
            self.origin,
            self.notes,
        )


def _made_again(
    kind: Any,
    config: Any,
    state: dict[str, Tensor],
    tokenizer: Tokenizer,
    origin: dict[str, Any],
    notes: tuple[str, ...],
) -> Pretrained:
    model = kind(config)
    model.load_state_dict(state)
    fit_to_tokenizer(model, tokenizer)
    return Pretrained(model.eval(), tokenizer, origin, notes)


def prunable(model: Any) -> dict[str, Tensor]:
    """Return the encoder's linear weights by parameter name, in module order: 72 for XLM-R base.

    Embeddings, LayerNorm, biases, pooler and head are not among them.
    """
    return architecture.of(model).prunable(model)


def count_prunable(model: nn.Module) -> int:
    """Return the number of weights of `prunable`."""
    return sum(weight.numel() for weight in prunable(model).values())


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, each shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_by_part(model: Any) -> dict[str, int]:
    """Return the number of parameters in `embeddings`, `encoder`, `head` and `other`."""
    family = architecture.of(model)
    parts = dict.fromkeys(architecture.PARTS, 0)
    for name, parameter in model.named_parameters():
        parts[family.part_of(name)] += parameter.numel()
    return {str(part): count for part, count in parts.items()}


def head_class(config: Any, kind: Kind) -> Any:
    """Return the class in transformers that puts the head for ``kind`` on a model of this config."""
    return getattr(transformers, architecture.of(config).heads[kind])


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the load report, which would call the fresh head an error; what matters in it is checked here."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _source(recipe: ModelRecipe) -> tuple[str, str | None]:
    """Return what to hand to `from_pretrained`: a folder or hub id, and the revision."""
    if recipe.name in registry.MODELS:
        return str(registry.load("model", recipe.name)()), None
    folder = Path(recipe.name).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return str(folder), None
    if recipe.name.startswith((".", "/", "~")) or recipe.name.count("/") > 1:
        raise ModelError(f"model.name {recipe.name!r}: no such folder")
    return recipe.name, recipe.revision


def load_config(recipe: ModelRecipe, labels: Sequence[str]) -> Any:
    """Return the model's configuration with ``labels`` as its outputs.

    Raises:
        ModelError: a type of model that is not known.
        MachineError: the hub cannot be reached or does not have it.
    """
    source, revision = _source(recipe)
    with _quiet_transformers():
        read = transformers.PreTrainedConfig.get_config_dict
        values, _ = _from_hub(recipe, lambda: read(source, revision=revision))
        if not isinstance(values, dict):
            raise ModelError(f"{recipe.name}: config.json is damaged: expected a JSON object")
        try:
            family = architecture.named(values.get("model_type", ""))
        except ModelError as error:
            raise ModelError(f"model.name {recipe.name!r}: {error}") from None
        check_config(recipe.name, values)
        head = getattr(transformers, family.heads["text"])
        config = _from_hub(recipe, lambda: head.config_class.from_pretrained(source, revision=revision))
    # A head trained before may have been for several labels at once, or for numbers; ours is not.
    config.problem_type = None
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    return config


def load_pretrained(recipe: ModelRecipe, kind: Kind, labels: Sequence[str], seed: int) -> Pretrained:
    """Return the pretrained encoder in fp32 with a head for ``labels``, drawn from ``seed``.

    Raises:
        ModelError: a type of model that is not known, weights missing or misshapen, or another model's tokenizer.
        MachineError: the hub cannot be reached or does not have it.
    """
    config = load_config(recipe, labels)
    family = architecture.of(config)
    source, revision = _source(recipe)
    with _quiet_transformers():
        torch.manual_seed(derive_seed(seed, "head"))
        model, info = _from_hub(
            recipe,
            lambda: head_class(config, kind).from_pretrained(
                source,
                revision=revision,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head for other labels is replaced; anything else is refused below
            ),
        )
        tokenizer = _from_hub(recipe, lambda: _tokenizer(source, revision))
    check_keys(recipe.name, family, config.num_hidden_layers, info["missing_keys"], info["unexpected_keys"])
    misshapen = sorted(key for key in _mismatched(info) if not family.is_drawn(key))
    if misshapen:
        raise ModelError(
            f"{recipe.name}: {misshapen[0]} and {len(misshapen) - 1} others do not have the shape that config.json gives"
        )
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise ModelError(
            f"{recipe.name}: the tokenizer has {tokenizer.get_vocab_size()} pieces and the embedding table "
            f"{config.vocab_size} rows; they belong to different models"
        )
    check_finite(recipe.name, model)
    fit_to_tokenizer(model, tokenizer)
    if not any(family.is_drawn(key) for key in [*info["missing_keys"], *_mismatched(info)]):
        _draw_head(model, seed)
    origin = {
        "name": recipe.name if not Path(recipe.name).is_absolute() else Path(recipe.name).name,
        "revision": getattr(config, "_commit_hash", None) or revision,
        "licence": _licence(recipe.name, source, family),
    }
    return Pretrained(model.eval(), tokenizer, origin, _notes(model))


def _notes(model: Any) -> tuple[str, ...]:
    """Return what the user should know about the checkpoint."""
    share = zero_share(prunable(model))
    if share < SPARSE_START:
        return ()
    return (
        f"{share:.1%} of the checkpoint's prunable weights are zero. This is normal for weights that were quantized or "
        "pruned before. Training updates these weights too, and pruning starts from all weights",
    )


def _licence(name: str, source: str, family: architecture.Architecture) -> str:
    """Return the licence that a model made here was recorded with, or that of a published one."""
    if name not in registry.MODELS:
        return family.licence(name)
    return json.loads((Path(source) / "converted.json").read_text(encoding="utf-8"))["licence"]


def fit_to_tokenizer(model: Any, tokenizer: Tokenizer) -> None:
    """Make the model's padding id the tokenizer's, and let it derive segment ids where its pairs have them.

    Raises:
        ModelError: the model counts positions from another padding id.
    """
    family, special = architecture.of(model), special_tokens(tokenizer)
    if special.separator is None:
        raise ModelError(
            "the tokenizer adds no token before and after a text, so the head would read a word. Save the "
            "tokenizer that the model was trained with (tokenizer.save_pretrained)"
        )
    if family.positions_follow_padding and model.config.pad_token_id != special.pad:
        raise ModelError(
            f"the tokenizer's padding token has the id {special.pad} and the model's is {model.config.pad_token_id}; "
            "they belong to different models"
        )
    model.config.pad_token_id = model.get_input_embeddings().padding_idx = special.pad
    if family.segments and special.segments and model.config.type_vocab_size > 1:
        derive_segments(model, special.separator)


@torch.no_grad()
def _draw_head(model: Any, seed: int) -> None:
    """Replace a head that was trained before, for whatever labels: every run begins with one of its seed."""
    torch.manual_seed(derive_seed(seed, "head"))
    for path in architecture.of(model).drawn_paths:
        for module in model.get_submodule(path).modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, model.config.initializer_range)
                module.bias.zero_()


def _mismatched(info: Any) -> list[str]:
    return [key for key, *_ in info["mismatched_keys"]]


def _tokenizer(source: str, revision: str | None) -> Tokenizer:
    # The file itself, where there is one: in transformers 5 AutoTokenizer builds XLM-R's tokenizer anew from its pieces
    # and drops the normalizer, and then cuts Chinese, Thai and full-width text in other ways than in pretraining.
    file = cached_file(
        source, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if file is not None:
        try:
            with explain_panics():
                tokenizer = Tokenizer.from_file(file)
        except Exception as error:  # of no narrower type
            raise ModelError(f"{source}: tokenizer.json is damaged: {error}") from error
    else:
        tokenizer = _convert_tokenizer(source, revision)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _convert_tokenizer(source: str, revision: str | None) -> Tokenizer:
    """Return the tokenizer of a checkpoint that has it in an older format only.

    Raises:
        ModelError: there is none, or a package is needed to read it.
    """
    if not any(_has_file(source, name, revision) for name in OLDER_TOKENIZERS):
        # transformers would make up a tokenizer of special tokens alone, to which every text is unknown.
        raise ModelError(
            f"{source}: no tokenizer.json, and none of {', '.join(OLDER_TOKENIZERS)}; save the model's tokenizer "
            "in the same folder (tokenizer.save_pretrained)"
        )
    try:
        fast = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"{source}: no tokenizer.json, and its older tokenizer cannot be converted here: "
            f"{first_line(error)}. Install the packages sentencepiece and protobuf, or save the "
            "tokenizer where they are installed (tokenizer.save_pretrained), which writes tokenizer.json"
        ) from error
    return Tokenizer.from_str(fast.backend_tokenizer.to_str())


def _has_file(source: str, name: str, revision: str | None) -> bool:
    found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return found is not None


def _from_hub(recipe: ModelRecipe, fetch: Callable[[], Any]) -> Any:
    """Run ``fetch``; a hub that cannot be reached becomes a sentence that helps."""
    try:
        return fetch()
    except (*FAULTS, SafetensorError, HTTPError) as error:
        first = first_line(error)
        if recipe.name in registry.MODELS or Path(recipe.name).is_dir():
            raise ModelError(f"{recipe.name}: the model folder cannot be read: {first}") from error
        if said := hub.cache_fault(error):
            raise MachineError(f"{recipe.name} could not be put into the cache: {said}") from error
        name = f"{recipe.name} (revision {recipe.revision})" if recipe.revision else recipe.name
        raise MachineError(
            f"{name} could not be loaded from the Hugging Face hub: {hub.meaning_of(error) or first}\n"
            "If this machine is offline, give a local folder as model.name (one that holds config.json, "
            "model.safetensors and tokenizer.json), or use model.name: quickstart, which needs no hub"
        ) from error


def save_start(pretrained: Pretrained, folder: Path, max_length: int) -> None:
    """Write model, tokenizer and origin as an ordinary Hugging Face folder."""
    with _quiet_transformers():
        pretrained.model.save_pretrained(folder)
    save_tokenizer(pretrained.tokenizer, folder, max_length)
    (folder / "origin.json").write_text(json.dumps(pretrained.origin, indent=1), encoding="utf-8")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, which transformers and `tokenizers` both read."""
    # Not the family's own class: XLMRobertaTokenizer in transformers 5 builds its tokenizer anew, without the
    # normalizer, and then cuts full-width and composed characters in other ways than the tokenizer that was measured.
    special = special_tokens(tokenizer)
    names = {**special.names, "bos": special.names["cls"], "eos": special.names["sep"]}
    segments = ["token_type_ids"] if special.segments else []
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", *segments, "attention_mask"],
        **{f"{role}_token": token for role, token in names.items()},
    )
    fast.save_pretrained(folder)
    # The name that transformers 4 and 5 both know; as it is saved here, version 4 does not find the class.
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def read_start(folder: Path, kind: Kind) -> Pretrained:
    """Read what `save_start` wrote; every weight must be there.

    Raises:
        ModelError: the folder is damaged.
    """
    damaged = ModelError(f"{folder}: the run's starting weights are damaged; start again with --fresh")
    try:
        with _quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            head = head_class(config, kind)
            model, info = head.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise damaged from error
    if info["missing_keys"] or info["unexpected_keys"]:
        raise damaged
    tokenizer = _tokenizer(str(folder), None)
    fit_to_tokenizer(model, tokenizer)
    return Pretrained(model.eval(), tokenizer, origin)


def forward_of(model: nn.Module, device: torch.device, bf16: bool = False) -> Any:
    """Return a function from numpy `input_ids`, `attention_mask` to numpy fp32 logits, in eval mode.

    Args:
        bf16: compute products in bf16; by default in full precision.
    """

    def logits(**inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found: Tensor = model(**inputs).logits
        return found

    return _numpy_function(model, device, logits)


def logits_and_vectors_of(model: nn.Module, device: torch.device) -> Any:
    """Like `forward_of` for a classifier of texts, with the first token's vector of the last layer, which the head reads.

    The function returns [batch, labels + width]: the logits, and the vector behind them.
    """

    def both(**inputs: Tensor) -> Tensor:
        found = model(**inputs, output_hidden_states=True)
        return torch.cat([found.logits, found.hidden_states[-1][:, 0]], dim=1)

    return _numpy_function(model, device, both)


def _numpy_function(model: nn.Module, device: torch.device, compute: Callable[..., Tensor]) -> Any:
    def forward(input_ids: Any, attention_mask: Any) -> Any:
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            ids = torch.from_numpy(input_ids).to(device)
            mask = torch.from_numpy(attention_mask).to(device)
            found = compute(input_ids=ids, attention_mask=mask).float().cpu().numpy()
        model.train(was_training)
        return found

    return forward

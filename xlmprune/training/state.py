"""Everything that a checkpoint holds of training: the model, its masks, and where the loop stands."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim

from xlmprune.models.loading import count_parameters, prunable
from xlmprune.pruning.criteria import Criterion
from xlmprune.pruning.masks import Masks, Weights, full_masks, nonzero, pack_bits, remaining, unpack_bits
from xlmprune.pruning.regularizers.cosine import alignment
from xlmprune.pruning.structures import Cut, LayerCut, Layout, layout_of, pieces, slice_model
from xlmprune.recipe.schema import TrainingRecipe
from xlmprune.training.frozen import Keeping, beside, kept
from xlmprune.training.optimizer import new_optimizer
from xlmprune.training.table import CompactTable
from xlmprune.training.teaching import Teaching

Tensors = dict[str, dict[str, Tensor]]
"""Named files of named tensors."""


@dataclass
class Position:
    """Where the loop stands, in numbers."""

    stage: int = 0
    update: int = 0
    """Updates made in this stage."""
    position: int = 0
    """Updates made in all stages; decides which training batch comes next."""
    begun: bool = False
    """Whether this stage has an optimizer, and its masks are chosen."""
    losses: list[float] = field(default_factory=list)
    """Of this stage's updates."""
    seconds: float = 0.0
    """Spent in this stage."""
    best_dev: float | None = None
    """Highest score on dev in this stage."""


@dataclass(frozen=True)
class Sizes:
    """How large the model was before anything was pruned."""

    layout: Layout

    parameters: int
    prunable: int
    """Entries of the matrices that are pruned."""


class TrainState:
    """A model in training, with all that a resumed run needs.

    Args:
        model: at its pretrained weights, on its device.
        criterion: whose state is saved and restored.
        teaching: the teacher, if there is one.
        table: the word embeddings' rows that are trained, where not all are. The model has all rows whenever it is
            measured, copied or saved; the optimizer and the best epoch know the trained ones only.
        keeping: how the weights to compare with are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        teaching: Teaching | None = None,
        table: CompactTable | None = None,
        keeping: Keeping = "fp32",
    ) -> None:
        self.model, self.criterion, self.teaching, self.table = model, criterion, teaching, table
        self.keeping = keeping
        self.device = next(model.parameters()).device
        self.weights: Weights = prunable(model)
        self.whole = Sizes(
            layout_of(model),
            count_parameters(model),
            sum(weight.numel() for weight in self.weights.values()),
        )
        self.cuts: list[Cut] = []
        """What was removed as a whole, round by round."""
        self.pretrained: Weights = self._kept(self.weights)
        """Weights before training, as ``keeping`` says; `beside` brings them to the device."""
        self.finetuned: Weights = {}
        """Weights after stage 0, where the regularizer compares with them; kept in the same way."""
        self.masks: Masks = full_masks(self.weights)
        self.optimizer: optim.Optimizer | None = None
        self.best: dict[str, Tensor] | None = None
        """Parameters of the best epoch of this stage."""
        self.best_criterion: dict[str, Tensor] = {}
        self._fresh_criterion = {key: tensor.clone() for key, tensor in criterion.state().items()}
        self.at = Position()

    def keep_finetuned(self) -> None:
        """Keep the weights as they are now to compare with later."""
        self.finetuned = self._kept(self.weights)

    def _kept(self, weights: Weights) -> Weights:
        return {name: kept(weight, self.keeping) for name, weight in weights.items()}

    def begin_stage(self, settings: TrainingRecipe) -> None:
        """Start a stage with a new optimizer."""
        self.train_rows()
        self.optimizer = new_optimizer(self.model, settings)
        self.best, self.best_criterion = None, {}
        self.at = Position(stage=self.at.stage, position=self.at.position, begun=True)

    def train_rows(self) -> None:
        """Let the model read the trained rows of its word embeddings only."""
        if self.table is not None:
            self.table.shrink()

    def all_rows(self) -> None:
        """Let the model read all rows of its word embeddings."""
        if self.table is not None:
            self.table.expand()

    def end_stage(self) -> None:
        """Stand before the next stage."""
        self.optimizer, self.best = None, None
        self.at = Position(stage=self.at.stage + 1, position=self.at.position)

    def remember(self, dev: float) -> None:
        """Keep the parameters as the best of this stage."""
        self.train_rows()
        self.at.best_dev = dev
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        if self.best is None:
            self.best = {name: parameter.clone() for name, parameter in trained.items()}
        else:  # in place, so that there are never two copies
            for name, parameter in trained.items():
                self.best[name].copy_(parameter)
        self.best_criterion = {key: t.detach().clone() for key, t in self.criterion.state().items()}

    def return_to_best(self) -> None:
        """Put the best parameters of this stage back, if any were kept."""
        if self.best is not None:
            self.train_rows()
            self.model.load_state_dict(self.best, strict=False)
            if self.best_criterion:
                self.criterion.load_state(self.best_criterion)

    def restart(self, parameters: Mapping[str, Tensor]) -> None:
        """Put the model back to its pretrained ``parameters``, and the criterion to its start."""
        self.all_rows()
        self.model.load_state_dict(parameters)
        self._renew_criterion()

    def _renew_criterion(self) -> None:
        if self._fresh_criterion:
            self.criterion.load_state({key: t.to(self.device) for key, t in self._fresh_criterion.items()})

    def shrink(self, cut: Cut) -> None:
        """Remove layers, heads and neurons for good; the criterion starts anew, since what it knew had other shapes."""
        self.all_rows()
        found = pieces(self.model, cut)
        slice_model(self.model, cut)
        self.weights = prunable(self.model)
        self.pretrained, self.finetuned = (
            self._kept(beside(self.weights, {name: piece.of(tensors) for name, piece in found.items()}))
            if tensors
            else {}
            for tensors in (self.pretrained, self.finetuned)
        )
        self.masks = full_masks(self.weights)
        self._renew_criterion()
        self.cuts.append(cut)

    def density(self) -> float:
        """Return the share of the prunable weights, as many as there were before pruning, that are not zero."""
        return remaining(self.nonzero_masks().values())[0] / self.whole.prunable

    def nonzero_masks(self) -> Masks:
        """Return which weights are not zero, which is what is exported.

        Raises:
            RuntimeError: a pruned weight is not zero, or more than one in a thousand kept weights became zero. Weights that
                were zero at the start may stay so: those of a dead neuron get no gradient.
        """
        found = nonzero(self.weights)
        alive = sum(int((found[name] & ~mask).sum()) for name, mask in self.masks.items())
        died = sum(
            int((mask & ~found[name] & (self.pretrained[name] != 0).to(mask.device)).sum())
            for name, mask in self.masks.items()
        )
        (real, _), (kept, _) = remaining(found.values()), remaining(self.masks.values())
        if alive or died > kept // 1000:
            raise RuntimeError(
                f"the masks keep {kept} weights; {real} weights are not zero, {alive} of them pruned ones, and {died} kept "
                "ones became zero"
            )
        return found

    def layers(self) -> list[dict[str, Any]]:
        """Return density, norms and alignment to the pretrained weights of every prunable matrix."""
        return layer_facts(self.weights, self.pretrained)

    # --- save and restore ------------------------------------------------------------------------------------

    def tensors(self) -> Tensors:
        """Return what `restore` needs, files without tensors left out."""
        moments = self._optimizer_tensors()
        self.all_rows()
        files: Tensors = {
            "model": dict(self.model.named_parameters()),
            "masks": {name: pack_bits(mask) for name, mask in self.masks.items()},
            "finetuned": self.finetuned,
            "criterion": self.criterion.state(),
            "best": self.best or {},
            "best_criterion": self.best_criterion if self.best else {},
            "optimizer": moments,
            "teacher": {} if self.teaching is None else self.teaching.tensors(),
        }
        return {file: tensors for file, tensors in files.items() if tensors}

    def progress(self) -> dict[str, Any]:
        """Return the numbers beside the tensors."""
        teaching = None if self.teaching is None else self.teaching.progress()
        cuts = [[asdict(part) for part in cut] for cut in self.cuts]
        return {**copy.deepcopy(asdict(self.at)), "teaching": teaching, "cuts": cuts}

    def restore(self, tensors: Tensors, progress: dict[str, Any], settings: TrainingRecipe) -> None:
        """Stand where `tensors` and `progress` were taken."""
        self.at = Position(**{key: copy.copy(progress[key]) for key in asdict(self.at)})
        self.all_rows()
        if self.teaching is not None:  # the teacher has the layers of the whole model
            self.teaching.restore(self.model, tensors.get("teacher", {}), progress["teaching"])
        for cut in progress["cuts"][len(self.cuts) :]:
            self.shrink(tuple(LayerCut.from_record(part) for part in cut))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors["model"][name])
        self.masks = {
            name: unpack_bits(tensors["masks"][name], weight.shape).to(self.device)
            for name, weight in self.weights.items()
        }
        saved = tensors.get("finetuned")
        self.finetuned = self._kept(beside(self.weights, saved)) if saved else {}
        self.best = self._file(tensors, "best") or None
        self.best_criterion = self._file(tensors, "best_criterion")
        if "criterion" in tensors:
            self.criterion.load_state(self._file(tensors, "criterion"))
        if self.at.begun:
            self.train_rows()
            self.optimizer = new_optimizer(self.model, settings)
            parameters = dict(self.model.named_parameters())
            for entry, value in self._file(tensors, "optimizer").items():
                key, _, name = entry.partition("|")
                self.optimizer.state[parameters[name]][key] = value

    def _file(self, tensors: Tensors, name: str) -> dict[str, Tensor]:
        return {key: tensor.to(self.device) for key, tensor in tensors.get(name, {}).items()}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        if self.optimizer is None:
            return {}
        self.train_rows()
        return {
            f"{key}|{name}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }


@torch.no_grad()
def layer_facts(weights: Weights, pretrained: Weights) -> list[dict[str, Any]]:
    """Return density, norm, the pretrained norm, and alignment to the pretrained weights of every matrix."""
    return [
        {
            "name": name.removesuffix(".weight"),
            "density": float((weight != 0).float().mean()),
            "weight_norm": float(weight.norm()),
            "pretrained_norm": float(before.norm()),
            "alignment": float(alignment(weight, before)),
        }
        for name, weight in weights.items()
        for before in (pretrained[name].to(weight),)
    ]

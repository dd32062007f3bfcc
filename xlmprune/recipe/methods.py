"""Pruning methods by one name: what `method: lamp` stands for in a recipe.

A method sets criterion, scope and regularizer, and a published training scheme sets its schedule, learning rate and
teacher too. Everything else stays what the recipe's base says, so that every task has every baseline:
`xlmprune compress nc_cosine --set method=l2`. Keys beside `method` win over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xlmprune.core.errors import RecipeError
from xlmprune.recipe.registry import nearest


@dataclass(frozen=True)
class Preset:
    """Values of a recipe, and what they are."""

    text: str
    """Which paper it follows and what differs from it, for the documentation."""
    values: dict[str, Any]


def _staged(
    criterion: str, scope: str, regularizer: dict[str, Any], **parameters: Any
) -> dict[str, dict[str, Any]]:
    """Masks that change between stages only."""
    pruning = {"criterion": {"name": criterion, **parameters}, "scope": scope, "regrow": False}
    return {"pruning": pruning, "regularizer": regularizer}


def _published(
    criterion: dict[str, Any], scope: str, regrow: bool, schedule: dict[str, Any], **sections: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """One training run with masks that change within it."""
    pruning = {
        "criterion": criterion,
        "scope": scope,
        "regrow": regrow,
        "schedule": {"name": "continuous", **schedule},
    }
    return {"pruning": pruning, "regularizer": NONE, **sections}


NONE = {"name": "none"}
DECAY = {"name": "l2", "strength": 0.01, "decoupled": True}
COSINE = {"name": "cosine", "strength": 100.0, "reference": "pretrained"}
FROBENIUS = {"name": "frobenius", "strength": 5.0e-4, "reference": "pretrained"}
RESTART = {"final_density": 0.3138, "every": 10, "warm_up": 0.06, "cool_down": 0.4, "restart": True}
MOVEMENT = {**RESTART, "warm_up": 0.05, "cool_down": 0.1}
MOVEMENT_TRAINING = {
    "learning_rate": 3.0e-5,
    "warmup_updates": 5400,
    "epochs_per_stage": 10,
    "freeze_embeddings": True,
}

METHODS = {
    "cosine": Preset(
        "AlignReg (O'Neill et al. 2022, Eq. 2 and 3): magnitude within each matrix, rows held to their pretrained "
        "direction. The paper names no strength; 100 is ours.",
        _staged("magnitude", "layer", COSINE),
    ),
    "frobenius": Preset(
        "AlignReg (O'Neill et al. 2022, Eq. 6): magnitude within each matrix, remaining weights held to their pretrained "
        "values with strength 5e-4.",
        _staged("magnitude", "layer", FROBENIUS),
    ),
    "eq6": Preset(
        "Eq. 6 of the same paper, used to choose the masks and as a term of the loss.",
        _staged("eq6", "layer", FROBENIUS, strength=5.0e-4),
    ),
    "random": Preset("Weights drawn within each matrix.", _staged("random", "layer", NONE)),
    "global_random": Preset("Weights drawn over all matrices.", _staged("random", "global", NONE)),
    "l0": Preset(
        "Hard concrete gates (Louizos et al. 2018) with the settings of movement pruning's code. The paper does not say how "
        "its gates reach a density; here the most open gates stay, in exact counts.",
        _staged("l0", "layer", NONE),
    ),
    "l2": Preset(
        "L2-MBP: magnitude within each matrix, with AdamW's decay of 0.01 on the prunable matrices while pruning. The "
        "paper names no strength.",
        _staged("magnitude", "layer", DECAY),
    ),
    "l2_global": Preset(
        "L2-Global-MBP: magnitude over all matrices, with the same decay.",
        _staged("magnitude", "global", DECAY),
    ),
    "gradient": Preset(
        "L2-Gradient-MBP: the size of the summed gradient of 32 batches, with the same decay. The paper does not say how "
        "many batches.",
        _staged("gradient", "layer", DECAY, batches=32),
    ),
    "lookahead": Preset(
        "Lookahead (Park et al. 2020). The paper does not say what the neighbours of a matrix are in a Transformer; "
        "xlmprune/pruning/criteria/lookahead.py does.",
        _staged("lookahead", "layer", NONE),
    ),
    "lamp": Preset("LAMP (Lee et al. 2021), ranked over all matrices.", _staged("lamp", "global", NONE)),
    "pins_score": Preset(
        "The importance score of PINS alone, with masks that change between stages.",
        _staged("pins", "global", NONE),
    ),
    "pins": Preset(
        "PINS as published (Ren and Zhu 2023): one training run from the pretrained weights, masks chosen again every 10 "
        "updates, pruned weights may return, the teacher is the best model so far. What differs: biases are not pruned, 32 "
        "examples in a batch (16), 31 % of the weights remain (20 %).",
        _published(
            {"name": "pins", "beta1": 0.85, "beta2": 0.99, "window": 10},
            "global",
            regrow=True,
            schedule=RESTART,
            training={"learning_rate": 3.0e-5, "warmup_updates": 200},
            distillation={
                "teacher": "best_so_far",
                "confidence": True,
                "ask_every": 50,
                "dense_defends": False,
            },
        ),
    ),
    "platon": Preset(
        "PLATON as published (Zhang et al. 2022): as PINS, without a teacher and with sensitivity times uncertainty. What "
        "differs: biases are not pruned, 31 % of the weights remain.",
        _published(
            {"name": "platon", "beta1": 0.85, "beta2": 0.95, "window": 10},
            "global",
            regrow=True,
            schedule=RESTART,
            training={"learning_rate": 3.0e-5, "warmup_updates": 200},
        ),
    ),
    "movement": Preset(
        "Hard movement pruning as published (Sanh et al. 2020): scores are trained together with the weights, in one "
        "training run from the pretrained weights with frozen embeddings. What differs: masks are chosen every 10 updates "
        "instead of every update, the scores' learning rate does not fall, 31 % of the weights remain.",
        _published(
            {"name": "movement", "mode": "hard", "learning_rate": 1.0e-2},
            "layer",
            regrow=True,
            schedule=MOVEMENT,
            training=MOVEMENT_TRAINING,
        ),
    ),
    "soft_movement": Preset(
        "Soft movement pruning (Sanh et al. 2020), with the threshold that gives the density asked for, over all matrices. "
        "What differs is as in `movement`.",
        _published(
            {"name": "movement", "mode": "soft", "learning_rate": 1.0e-2},
            "global",
            regrow=True,
            schedule=MOVEMENT,
            training=MOVEMENT_TRAINING,
        ),
    ),
    "obert": Preset(
        "oBERT as published (Kurtic et al. 2022): 30 epochs from the fine-tuned weights, 70 % pruned after 2 and then every "
        "4 epochs down to 10 % after 26, the dense model's answers as the only target. What differs: the learning rate "
        "falls once, from 5e-5 to zero, and does not rise again after each pruning.",
        _published(
            {"name": "obert", "block": 50, "batches": 1024, "damping": 1.0e-7},
            "global",
            regrow=False,
            schedule={
                "first_density": 0.3,
                "final_density": 0.1,
                "every": 4,
                "unit": "epochs",
                "warm_up": 0.0667,
                "cool_down": 0.1333,
            },
            training={"learning_rate": 5.0e-5, "epochs_per_stage": 30},
            distillation={"teacher": "finetuned", "weight": 1.0, "temperature": 2.0},
        ),
    ),
}
"""Every method by name."""


def values_of(name: object, position: str) -> dict[str, Any]:
    """Return the values that a method stands for.

    Args:
        position: where the name was written, for messages.

    Raises:
        RecipeError: no method has this name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise RecipeError(
            f"{position}: no method is called {str(name)!r:.100}; {nearest(str(name), list(METHODS))}"
        )
    return METHODS[name].values

"""Does it help to prune for one language? Compare one model for all languages with one model for each.

    python benchmarks/per_language.py [--recipe quickstart] [--share 0.5] [--texts N] [--trained] [--set key=value]

Every model removes the same share of heads and FFN neurons from the same dense model. For the shared model, importance and
least squares read text of all languages; for the others, text of one language. Every model reads the same number of texts:
`--texts`, or as many as the language with the least unlabelled text has. Nothing is trained afterwards, unless
`--trained` is given. Source of the question: Li et al. 2022 (arXiv:2204.02601), settings shared and per language. Prints one
line per language. Run it again to resume.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlmprune.core.progress import Reporter
from xlmprune.pipeline import run
from xlmprune.recipe.loading import load_recipe

DENSE = {
    "pruning.structure": None,
    "pruning.pattern": "unstructured",
    "pruning.reconstruct": None,
    "pruning.schedule": {"name": "geometric", "stages": 0},
}


def main() -> None:
    options = _options()
    own = [*options.set, "export.onnx=[]", "export.triton=false", "evaluation.max_stage_examples=null"]
    report = _run(options, own, "dense", DENSE)
    dense, texts = _scores(report), options.texts or smallest(report)
    structure = {"heads": options.share, "neurons": options.share}
    pruned: dict[str, Any] = {"pruning.structure": structure, "pruning.reconstruct.texts": texts}
    if not options.trained:
        rate = load_recipe(options.recipe, own).training
        pruned |= {
            "training.epochs_per_stage": 0,
            "training.dense_epochs": rate.dense_epochs or rate.epochs_per_stage,
        }
    shared = _scores(_run(options, own, "shared", pruned, "dense"))
    print(f"every model reads {texts} texts")
    print(f"{'language':<10}{'dense':>8}{'shared':>8}{'own':>8}{'own - shared':>14}", flush=True)
    rows = []
    for language in sorted(dense):
        if language == options.train_language:
            continue
        alone = {**pruned, "pruning.structure": {**structure, "languages": [language]}}
        found = _scores(_run(options, own, language, alone, "dense"))[language]
        rows.append((dense[language], shared[language], found))
        print(_line(language, rows[-1]), flush=True)
    means = [statistics.mean(column) for column in zip(*rows)]
    differences = [alone - together for _, together, alone in rows]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    print(_line("mean", means), f" (standard error over languages {error:.1f})")


def _line(name: str, values: Sequence[float]) -> str:
    dense, shared, own = values
    return f"{name:<10}{dense:8.1f}{shared:8.1f}{own:8.1f}{own - shared:+14.1f}"


def _run(
    options: argparse.Namespace,
    own: Sequence[str],
    name: str,
    changes: Mapping[str, Any],
    start: str | None = None,
) -> Mapping[str, Any]:
    """Run a recipe unless it is finished, and return its report."""
    sets = [*own, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
    out = Path(options.out)
    return run(
        load_recipe(options.recipe, sets),
        out / name,
        reporter=Reporter(level="quiet"),
        start_from=out / start if start else None,
    )


def _scores(report: Mapping[str, Any]) -> dict[str, float]:
    return {language: row["pruned"] for language, row in report["languages"].items()}


def smallest(report: Mapping[str, Any]) -> int:
    """Return the number of texts of the language that has the fewest."""
    counts: Mapping[str, int] = report.get("unlabelled", {})
    if missing := sorted(set(report["languages"]) - set(counts)):
        raise SystemExit(
            f"no unlabelled text is counted in {', '.join(missing)}; say how many to read: --texts"
        )
    return min(counts.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--share", type=float, default=0.5, help="of heads and FFN neurons kept")
    parser.add_argument(
        "--texts",
        type=int,
        help="read by every model for importance and least squares; by default as many as the smallest language has",
    )
    parser.add_argument("--trained", action="store_true", help="train after pruning, as the recipe says")
    parser.add_argument("--train-language", default="en")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override of the recipe"
    )
    parser.add_argument("--out", default="runs/per_language")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Run every kind of task on real labelled files, from recipe to report, with the quickstart model and few examples.

    python benchmarks/real_tasks.py DATA [--out DIR] [--tasks pos,ner,xnli,sib200,qam]

DATA has one folder per task (`pos/en.train`, `xnli/de.test.tsv.gz`, …) and `unlabelled/<language>.txt` for the vocabulary.
A task takes minutes on two cores. The scores show that the code works and in which direction languages move; they are not
results. Run it again to resume. Prints one line per language.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LANGUAGES = {
    "pos": "ar bg de el es fr hi it nl pl pt ru th tr ur vi zh",
    "ner": "ar bg de el es fr hi it nl pl pt ru sw tr ur vi zh",
    "xnli": "ar bg de el es fr hi ru sw th tr ur vi zh",
    "sib200": "ar bg de el es fr hi it nl pl pt ru sw th tr ur vi zh",
    "qam": "ar de el es hi ru th tr vi zh",
}
TASKS: dict[str, dict[str, Any]] = {
    "pos": {"task": {"name": "pos", "path": "{language}.{split}", "max_train_examples": 2000}, "length": 96},
    "ner": {"task": {"name": "ner", "path": "{language}.{split}", "max_train_examples": 2500}, "length": 64},
    "xnli": {
        "task": {"name": "xnli", "path": "{language}.{split}.tsv.gz", "max_train_examples": 8000},
        "length": 96,
    },
    "sib200": {
        "task": {
            "name": "classification",
            "path": "{language}.{split}.tsv",
            "columns": {"first": "text", "label": "label"},
        },
        "length": 96,
        "dense_epochs": 5,
    },
    "qam": {
        "task": {"name": "qam", "path": "{language}.{split}.tsv.gz", "max_train_examples": 1600},
        "length": 160,
    },
}


def recipe_of(task: str, data: Path, test_examples: int, share: float = 1.0) -> dict[str, Any]:
    """Return the scaled-down recipe of one task, with ``share`` of its usual training examples."""
    settings = TASKS[task]
    own = {**settings["task"], "path": str(data / task / settings["task"]["path"])}
    if "max_train_examples" in own:
        own["max_train_examples"] = round(share * own["max_train_examples"])
    return {
        "name": task,
        "model": {
            "name": "quickstart",
            "vocabulary": {"files": [str(data / "unlabelled" / "{language}.txt")]},
        },
        "task": {
            **own,
            "source": "files",
            "languages": LANGUAGES[task].split(),
            "max_test_examples": test_examples,
        },
        "training": {
            "dense_epochs": settings.get("dense_epochs", 2),
            "epochs_per_stage": 0.5,
            "batch_size": 16,
            "dense_learning_rate": 2e-4,
            "learning_rate": 1e-4,
            "max_length": settings["length"],
        },
        "pruning": {"schedule": {"name": "geometric", "step_fraction": 0.44, "stages": 2}},
        "evaluation": {"max_stage_examples": 20},
        "export": {"onnx": ["fp32"]},
    }


def main() -> None:
    """Run the tasks one after the other and print the score of each language."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", type=Path)
    options.add_argument("--out", type=Path, default=Path("runs/real-tasks"))
    options.add_argument("--tasks", default=",".join(TASKS))
    options.add_argument("--test-examples", type=int, default=120)
    options.add_argument(
        "--share", type=float, default=1.0, help="of the training examples, for a quicker look"
    )
    chosen = options.parse_args()
    for task in chosen.tasks.split(","):
        out = chosen.out / task
        out.parent.mkdir(parents=True, exist_ok=True)
        file = chosen.out / f"{task}.yaml"
        file.write_text(
            json.dumps(recipe_of(task, chosen.data, chosen.test_examples, chosen.share)), encoding="utf-8"
        )
        command = [sys.executable, "-m", "xlmprune", "compress", str(file), "--out", str(out), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{task}: exit {done.returncode}")
        print_scores(task, json.loads(done.stdout))


def print_scores(task: str, report: dict[str, Any]) -> None:
    """Return one line: metric, means, then every language as dense → pruned."""
    metric = next(iter(report["languages"].values()))["metric"]
    mean, english = report["summary"]["zero_shot_mean"], report["summary"]["english"]
    print(f"{task} ({metric}), {report['model']['encoder_density']:.1%} of the encoder")
    print(
        f"  en {english['dense']:.1f} → {english['pruned']:.1f}  zero-shot {mean['dense']:.1f} → {mean['pruned']:.1f}"
    )
    rows = [f"{code} {row['dense']:.1f} → {row['pruned']:.1f}" for code, row in report["languages"].items()]
    print("  " + ", ".join(rows), flush=True)


if __name__ == "__main__":
    main()

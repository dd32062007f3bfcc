"""Say which packages an extra of xlmprune installs, and the command that installs them wherever xlmprune came from."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

EXTRAS = ("hub", "train", "quickstart", "ray", "tensorboard", "mlflow", "wandb")


def requirements(extra: str) -> list[str]:
    """Return the requirements of ``extra`` without xlmprune itself, such as ``torch>=2.9``."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():  # a checkout
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"][extra]
    else:
        marked = re.compile(rf"""extra == ['"]{extra}['"]""")
        lines = [line for line in metadata.requires("xlmprune") or [] if marked.search(line)]
    named = [line.partition(";")[0].strip() for line in lines]
    return [name for name in named if not name.startswith("xlmprune")]


def pip_install(extra: str) -> str:
    """Return the pip command that installs the packages of ``extra``. It works for any kind of installation."""
    return "pip install " + " ".join(f"'{requirement}'" for requirement in requirements(extra))


def extra_of(module: str | None) -> str | None:
    """Return the extra that installs ``module``, or None if no extra does."""
    for extra in EXTRAS:
        names = [re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in requirements(extra)]
        if module in [name.replace("-", "_") for name in names]:
            return extra
    return None

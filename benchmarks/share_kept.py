"""Draw the share of the dense model's zero-shot mean that is kept: of methods on the voice commands, and on six tasks.

The numbers are those of docs/results.md, as docs/share_kept.csv and docs/share_kept_tasks.csv list them.

    python benchmarks/share_kept.py
"""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

from xlmprune.report.charts import MethodLine, draw_methods

DOCS = Path(__file__).parent.parent / "docs"
TITLES = {
    "share_kept": "Zero-shot mean on the voice commands, in percent of the dense model's, against density",
    "share_kept_tasks": "Zero-shot mean of six tasks, in percent of the dense model's, against density",
}


def read(path: Path) -> list[MethodLine]:
    """Read the curves; a line without deviations is drawn without a band."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for method, group in groupby(rows, key=lambda row: row["method"]):
        mine = list(group)
        points = [(float(row["density"]), float(row["share"])) for row in mine]
        known = all(row["deviation"] for row in mine)
        deviations = [float(row["deviation"]) for row in mine] if known else None
        found.append(MethodLine(method, points, deviations))
    return found


def main() -> None:
    """Write the drawings."""
    for name, title in TITLES.items():
        drawn = draw_methods(read(DOCS / f"{name}.csv"), title)
        (DOCS / f"{name}.svg").write_text(drawn + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Tables as cells of text. The terminal, Markdown, HTML pages and model cards each lay out the same `Table`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {"worst": "bold red", "train": "cyan", "mean": "bold", "ok": "green", "failed": "red"}
"""How the terminal shows a row of a style."""


@dataclass(frozen=True)
class Table:
    """Cells of text under headings; the first ``texts`` columns hold words, the others figures."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    note: str = ""
    texts: int = 1
    styles: list[str] = field(default_factory=list)
    """One word for each row, for layouts that can show it: ``train``, ``worst``, ``mean``, ``ok``, ``failed``."""

    def marked(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (style, cells) of every row."""
        return zip(self.styles or [""] * len(self.rows), self.rows)

    def without(self, headings: Iterable[str]) -> Table:
        """Return the table without the columns under ``headings``."""
        left_out = set(headings)
        kept = [i for i, heading in enumerate(self.headings) if heading not in left_out]
        return Table(
            self.title,
            [self.headings[i] for i in kept],
            [[cells[i] for i in kept] for cells in self.rows],
            self.note,
            sum(i < self.texts for i in kept),
            self.styles,
        )


def tabulate(
    title: str,
    columns: Mapping[str, Callable[[Any], str]],
    entries: Iterable[Any],
    note: str = "",
    texts: int = 1,
    style: Callable[[Any], str] | None = None,
) -> Table:
    """Make a table with a row for each entry; ``columns`` maps a heading to what its cells show of an entry."""
    listed = list(entries)
    return Table(
        title,
        list(columns),
        [[show(entry) for show in columns.values()] for entry in listed],
        note,
        texts,
        [] if style is None else [style(entry) for entry in listed],
    )


def rich_table(table: Table, wrap: bool = False) -> RenderableType:
    """Lay out a table for `rich.print`, under its title. Brackets in a cell are shown, and are no markup.

    Args:
        wrap: long words may be broken over lines; otherwise every row stays on one line.
    """
    import rich.table
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.text import Text

    shown = rich.table.Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(table.headings):
        justify = "left" if i < table.texts else "right"
        shown.add_column(Text(heading), justify=justify, no_wrap=not wrap, overflow="fold")  # type: ignore[arg-type]
    for style, cells in table.marked():
        shown.add_row(*map(Text, cells), style=STYLES.get(style))
    # rich would break a title to the width of the table.
    return Group(Text(table.title, "bold"), shown) if table.title else shown

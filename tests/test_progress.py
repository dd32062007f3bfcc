"""What a run says while it works."""

import io

from rich.console import Console

from xlmprune.core.progress import Reporter


def test_brackets_are_shown_as_they_are():
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)
        Reporter(console).say("loading /models/[/x]/[bold]xlmr[/bold]")
        assert "/models/[/x]/[bold]xlmr[/bold]" in console.file.getvalue()

"""The presets, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def presets(console: Console, rows: Sequence[dict[str, str]]) -> None:
    """Print the presets, and how to see one."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(row["name"], row["about"])
    console.print(table)
    console.print()
    console.print("In full, as a file to begin your own with: pol policy NAME > mine.toml")

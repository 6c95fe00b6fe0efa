"""Pages with a marked block that a command fills, and the line that says with what it was made."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from pol.version import __version__


def write(page: Path, block: str, text: str) -> None:
    """Replace the marked block of that name in a page.

    Raises:
        SystemExit: there is none.
    """
    begin, end = f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
    before, opened, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise SystemExit(f"{page}: there is no block between {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def about(command: str) -> str:
    """With what it was made: the command, the day, the machine and the versions."""
    when = datetime.now(UTC).date().isoformat()
    return (
        f"`{command}` on {when}: {processor()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"pol {__version__}."
    )


def processor() -> str:
    """Name and vector capability of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def row(cells: list[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"

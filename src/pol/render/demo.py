"""The demo's outcome, and its table for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pol.proof.report import Report, Verdict
from pol.render import as_json
from pol.render.terminal import COLOURS
from pol.render.text import clean, duration, plural, shorten, size


@dataclass(frozen=True)
class Row:
    """One forgery: what it cost, and what became of it."""

    name: str
    title: str
    gradients: int
    seconds: float
    bytes: int
    verdict: str
    paper: str
    """Verdict by policy paper-2021."""
    step: int | None
    step_name: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How the demo went."""

    accuracy: float
    honest: Report
    paper: str
    """Verdict on the honest proof by policy paper-2021."""
    steps: int
    record_seconds: float
    bytes: int
    """Size of the honest proof."""
    rows: list[Row]
    command: str | None
    """What checks the honest proof again; None where its files are not kept."""

    @property
    def ok(self) -> bool:
        """Whether the honest proof was accepted, and every forgery (there are some) rejected."""
        return self.honest.verdict is Verdict.ACCEPT and bool(self.rows) and not self.unexpected

    @property
    def fooled(self) -> list[str]:
        """Forgeries that the verification of 2021 accepted."""
        return [row.name for row in self.rows if row.paper == Verdict.ACCEPT]

    @property
    def unexpected(self) -> list[str]:
        """Forgeries that were not rejected."""
        return [row.name for row in self.rows if row.verdict != Verdict.REJECT]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "ok": self.ok,
            "accuracy": self.accuracy,
            "steps": self.steps,
            "record_seconds": self.record_seconds,
            "bytes": self.bytes,
            "honest": as_json.report(self.honest),
            "paper": self.paper,
            "forgeries": [asdict(row) for row in self.rows],
            "command": self.command,
        }


def line(console: Console, text: str) -> None:
    """Print a line of the story; a verdict at its start in colour."""
    shown = Text(clean(text))
    for verdict, colour in COLOURS.items():
        if text.startswith(f"{verdict}:"):
            shown.stylize(f"bold {colour}", 0, len(verdict))
    console.print(shown)


def outcome(console: Console, result: Outcome) -> None:
    """Print the table, and what it comes to."""
    console.print()
    console.print(_table(result))
    console.print()
    if result.ok:
        console.print(
            Text(f"The honest proof was accepted, all {len(result.rows)} forgeries were rejected.", "bold green")
        )
        console.print(
            f"The verification of 2021 accepted {len(result.fooled)} of these forgeries (docs/paper-2021.md)."
        )
    else:
        wrong = [] if result.honest.verdict is Verdict.ACCEPT else ["the honest proof was not accepted"]
        wrong += [f"the forgery {name} was not rejected" for name in result.unexpected]
        wrong += [] if result.rows else ["no forgery was made"]
        console.print(Text("The demo failed: " + "; ".join(wrong), "bold red"))
    if result.command is not None:
        console.print("\nCheck the honest proof again with:")
        console.print(Text(f"  {result.command}", "bold"), soft_wrap=True)


def _verdict(verdict: str) -> Text:
    return Text(verdict, f"bold {COLOURS[Verdict(verdict)]}")


def _table(result: Outcome) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("forgery, and what gave it away", ratio=1, overflow="fold")
    table.add_column("cost", no_wrap=True)
    table.add_column("verdict,\ncaught by", no_wrap=True)
    table.add_column("in 2021", no_wrap=True)
    honest = result.honest
    spent = f"{plural(result.steps, 'gradient')}\n{duration(result.record_seconds)}, {size(result.bytes)}"
    table.add_row(Text("none: the honest proof", "bold"), spent, _verdict(honest.verdict), _verdict(result.paper))
    for row in result.rows:
        reason = shorten(clean(row.reason.removeprefix(f"step {row.step} {row.step_name}: ")))
        what = Text.assemble((clean(row.title), "bold"), "\n", (reason, "dim"))
        cost = f"{plural(row.gradients, 'gradient')}\n{duration(row.seconds)}, {size(row.bytes)}"
        step = "" if row.step is None else f"\n{row.step} {row.step_name}"
        # In colour by what it means: an acceptance is the wrong answer here, whoever gives it.
        wrong = "bold red" if row.paper == Verdict.ACCEPT else "dim"
        table.add_row(what, cost, Text.assemble(_verdict(row.verdict), step), Text(row.paper, wrong))
    return table

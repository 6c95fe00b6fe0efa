"""A report for people: the verdict first, then why, how far it reaches, and what it leaves open."""

from __future__ import annotations

import math

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pol.distance import ratio
from pol.proof.challenge import Draws
from pol.proof.report import Deviation, IntervalResult, Report, Status, Step, Verdict
from pol.proof.screens import Screen
from pol.render.text import clean, duration, plural, shorten

COLOURS = {Verdict.ACCEPT: "green", Verdict.REJECT: "red", Verdict.INCONCLUSIVE: "yellow"}
STYLES: dict[Status, str] = {"passed": "green", "failed": "red", "unable": "yellow", "not run": "dim"}
MAX_LISTED = 5
"""Failed intervals that are written out; the strip shows where the others are."""

LEVELS = {
    "verifier-seeded": "your nonce decided all randomness",
    "self-seeded": "the run's own seed decided all randomness",
    "seed-declared": "the claimant chose the seed of the first weights",
    "observed": "first weights, order or generators do not follow from the seed of the run",
    "broken": "known forgeries pass this procedure: it shows nothing",
    "none": "not accepted",
}
"""Assurance levels in words."""

LABEL = 12


def report(console: Console, result: Report) -> None:
    """Print a report."""
    console.print(verdict_line(result))
    console.print()
    console.print(_steps(result.steps))
    console.print()
    if result.screens:
        field(console, "Screens", Text("\n".join(_screens(result.screens))))
    if result.draws is not None:
        field(console, "Intervals", _intervals(result.intervals, result.draws, console.width - LABEL))
        field(console, "Draws", Text(_draws(result.draws)))
    if tolerance := _tolerance(result):
        field(console, "Tolerance", Text("\n".join(tolerance)))
    field(console, "Confidence", Text(clean(result.confidence)))
    field(console, "Assurance", bullets([_level(result), *result.assurance.statements]))
    field(console, "Not shown", bullets(result.not_shown))
    console.print()
    exact(console, "claimant", result.claimant)
    exact(console, "genesis", result.genesis)
    exact(console, "attestation", result.attestation)
    exact(console, "weights", result.weights)
    how = f"rule {result.rule}" if result.procedure == "eight-steps" else f"procedure {result.procedure}"
    exact(console, "policy", f"{result.policy_digest} ({result.policy}, {how})")
    exact(console, "nonce", result.nonce)
    console.print(Text(f"Took {duration(result.seconds)}. --nonce with this nonce draws the same challenge.", "dim"))


def verdict_line(result: Report) -> Text:
    """The verdict in colour, and one sentence why."""
    if result.verdict is Verdict.ACCEPT and result.assurance.level == "broken":
        why = f"Every check of {clean(result.procedure)} passed, but so do known forgeries: this shows nothing."
        return Text.assemble((f" {result.verdict} (broken procedure) ", "bold reverse yellow"), "  ", why)
    agrees = "within the limits" if result.rule == "tolerance" else "bit for bit"
    why = {
        Verdict.ACCEPT: f"Every check passed: {_taken_again(result)}, {agrees}.",
        Verdict.REJECT: clean(result.reason()),
        Verdict.INCONCLUSIVE: "Neither shown nor refuted. " + clean(result.reason()),
    }[result.verdict]
    return Text.assemble((f" {result.verdict} ", f"bold reverse {COLOURS[result.verdict]}"), "  ", why)


def _taken_again(result: Report) -> str:
    total = result.draws.intervals if result.draws else 0
    if len(result.intervals) == total:
        return "the recorded training was taken again here and agrees"
    return f"{len(result.intervals):,} of {total:,} intervals were taken again here and agree"


def _steps(steps: list[Step]) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(justify="right", style="dim")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for step in steps:
        table.add_row(str(step.number), step.name, Text(step.status, STYLES[step.status]), _checks(step))
    return table


def _checks(step: Step) -> Text:
    """The details of a step, one line each; digests whole only where something is wrong with them."""
    lines = []
    for check in step.checks:
        detail = clean(check.detail)
        passed = check.status == "passed"
        lines.append(Text(shorten(detail) if passed else detail, "" if passed else STYLES[check.status]))
    return Text("\n").join(lines)


def _intervals(results: list[IntervalResult], draws: Draws, width: int) -> Text:
    counts = {status: sum(r.status == status for r in results) for status in STYLES}
    found = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none replayed"
    text = Text(f"{len(results)} of {draws.intervals} replayed: {found}\n" if results else f"{found}\n")
    text.append_text(_strip(results, draws.intervals, max(width, 10)))
    bad = [r for r in results if r.status != "passed"]
    for r in bad[:MAX_LISTED]:
        text.append(f"\ninterval {r.index} (steps {r.start}–{r.stop}): {clean(r.detail)}", STYLES[r.status])
        if r.deviation is not None and r.deviation.tensor not in r.detail:
            text.append(f"\n  {_share(r.deviation)}", "dim")
    if len(bad) > MAX_LISTED:
        text.append(f"\nand {len(bad) - MAX_LISTED} more", "dim")
    return text


def _strip(results: list[IntervalResult], total: int, width: int) -> Text:
    """The run from left to right; a cell of several intervals shows the worst of them, and whether any was replayed."""
    cells = min(width, total)
    worst: list[Status | None] = [None] * cells
    order: list[Status] = ["failed", "unable", "passed", "not run"]
    for r in results:
        cell = r.index * cells // total
        before = worst[cell]
        worst[cell] = r.status if before is None else min(before, r.status, key=order.index)
    return Text.assemble(*(("■", STYLES[status]) if status else ("·", "dim") for status in worst))


def _level(result: Report) -> str:
    return f"level: {result.assurance.level} ({LEVELS[result.assurance.level]})"


def _tolerance(result: Report) -> list[str]:
    """How near the replays came to the limits of rule tolerance, and what these leave to a forger."""
    lines = []
    found = [(r, r.deviation) for r in result.intervals if r.deviation is not None and r.deviation.tensor]
    measured = [(r, deviation) for r, deviation in found if not r.branch]
    if measured:
        nearest, deviation = max(measured, key=lambda pair: _of_limit(pair[1]))
        lines.append(f"{_share(deviation)}, interval {nearest.index}")
        lines += [_errors(found) for _, found in sorted(measured, key=lambda pair: pair[1].relative)[-1:]]
    elif result.intervals and result.rule == "tolerance":
        lines.append("every tensor that was compared is equal, bit for bit")
    lines += [
        f"interval {r.index} went the other of two ways that rounding decides between: {_share(deviation)}, explained "
        "by a replay from a start that is one rounding off"
        for r, deviation in found
        if r.branch
    ]
    if (drift := result.drift) is not None:
        total, drawn = result.draws.intervals if result.draws else drift.measured, ""
        if drift.measured < total:
            drawn = f"; {drift.measured} of {total} intervals measured, for each other the most that a uniform draw met"
        lines.append(
            f"drift: all limits together leave {ratio(drift.bound, drift.distance):.2%} of the way from the first to "
            f"the last parameters (allowed: {drift.budget:.2%}{drawn})"
        )
    return lines


def _share(deviation: Deviation) -> str:
    """The error of a tensor beside its limit."""
    share, error, limit = _of_limit(deviation), f"{deviation.error:.2g}", f"{deviation.limit:.2g}"
    where = "nearest to its limit" if share <= 1 else "farthest beyond its limit"
    return f"{where}: {clean(deviation.tensor)}, error {error} of {limit} ({share:.0%})"


def _errors(deviation: Deviation) -> str:
    """The largest error of all parameters together, in every metric, and as shares of the reference distances."""
    parts = []
    for name, error in deviation.distances.items():
        share = "" if deviation.normalised is None else f" ({deviation.normalised[name]:.2%} of d_ref)"
        parts.append(f"{name} {error:.2g}{share}")
    return f"all parameters, where farthest off: {', '.join(parts)}; {deviation.relative:.2g} of the move"


def _of_limit(deviation: Deviation) -> float:
    share = ratio(deviation.error, deviation.limit)
    return math.inf if math.isnan(share) else share


def _screens(screens: list[Screen]) -> list[str]:
    """What stands out, one line each, and which screens are quiet."""
    lines = [f"{screen.name} unusual: {clean(screen.detail)}" for screen in screens if screen.status == "unusual"]
    quiet = ", ".join(screen.name for screen in screens if screen.status == "quiet")
    return [*lines, *([f"quiet: {quiet}"] if quiet else []), "(they say where to look, and decide nothing)"]


def _draws(draws: Draws) -> str:
    kinds = {
        "first, last and resumed": draws.mandatory,
        "largest updates": draws.top,
        "uniform": draws.uniform,
        "size-weighted": draws.weighted,
        "most suspicious": draws.screened,
    }
    parts = [f"{len(chosen)} {name}" for name, chosen in kinds.items() if chosen]
    return f"{plural(len(draws.all()), 'interval')}: {', '.join(parts)} (one may be drawn for several reasons)"


def field(console: Console, label: str, value: RenderableType) -> None:
    """A label, and a value that wraps beside it."""
    table = Table(box=None, show_header=False, padding=0, pad_edge=False)
    table.add_column(width=LABEL, style="bold", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_row(label, value)
    console.print(table)


def bullets(lines: list[str]) -> RenderableType:
    """Lines with a dash, wrapped beside it."""
    table = Table(box=None, show_header=False, padding=0, pad_edge=False)
    table.add_column(width=2)
    table.add_column(ratio=1, overflow="fold")
    for line in lines:
        table.add_row("-", clean(line))
    return table


def exact(console: Console, label: str, value: str | None) -> None:
    """A value that is never wrapped, so that it can be copied."""
    if value is not None:
        console.print(Text.assemble((f"{label:<{LABEL}}", "dim"), clean(value)), soft_wrap=True)

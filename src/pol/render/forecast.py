"""A forecast for people: what was measured, what it means for each k and K, and which to take."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pol.proof.forecast import Audit, Choice, Costs, Forecast
from pol.render.text import duration, plural, size


def forecast(console: Console, found: Forecast, commands: list[str]) -> None:
    """Print a forecast."""
    measured = f"measured in {found.measured_steps} of them, with {plural(found.profile.threads, 'thread')}"
    console.print(f"{found.recipe}: {plural(found.run.steps, 'step')}; {measured}", soft_wrap=True)
    if found.load > 1:
        console.print(f"Each core was wanted by {found.load:.1f} processes: on a machine at rest, times are others.")
    console.print()
    console.print(_measured(found))
    console.print()
    console.print(_choices(found))
    console.print()
    console.print(
        f"Audits by policy {found.policy}, all of a verification with one process; they leave open that at most "
        f"{_percent(found.share)} of the intervals are forged."
    )
    for reason in dict.fromkeys(choice.refused for choice in found.choices if choice.refused):
        console.print(f"–  {reason}")
    console.print()
    best = found.recommended.choice
    if best is None:
        console.print(f"Nothing to recommend: {found.recommended.why}.")
        always = found.run.costs.added / found.run.costs.bare_step
        if always > found.max_overhead:
            console.print(f"Each step takes {_percent(always)} longer whatever k and K are: only longer steps help.")
        return
    console.print(f"Take k = {best.every}, K = {best.keep} (*): {found.recommended.why}.")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True)


def _measured(found: Forecast) -> Table:
    costs, sizes = found.run.costs, found.run.sizes
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(ratio=1)
    table.add_row("A step", f"{_time(costs.bare_step)}; recorded, {_time(costs.added)} more")
    table.add_row("A digest", f"{_time(costs.digest)}: the state taken, checked and hashed")
    table.add_row("A kept state", f"{_kept(costs)}; {size(sizes.kept)} of {size(sizes.state)}")
    table.add_row("A replay", f"{_time(costs.replay_enter)} to begin, {_time(costs.replay_step)} a step")
    begin = f"{_time(costs.start)} to start, {_time(costs.enter)} a build"
    table.add_row("A verification", f"{begin}, {_time(costs.read)} a kept state")
    if found.run.samples:
        seconds = duration(found.run.samples * costs.sample)
        table.add_row("The dataset", f"{plural(found.run.samples, 'sample')}, {seconds} to hash, once")
    return table


def _kept(costs: Costs) -> str:
    beside = "of which the training loses as much" if costs.busy else "on a core that the training leaves free"
    return f"{_time(costs.copied)} to copy, {_time(costs.stored)} to pack, write and hash, {beside}"


def _choices(found: Forecast) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 1), pad_edge=False, header_style="bold")
    for name in ("", "k", "K", "overhead", "proof", "interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for audit in found.choices[0].audits if found.choices else []:
        table.add_column(f"{_percent(audit.confidence)}: steps", justify="right", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
    for choice in found.choices:
        audits = [cell for audit in choice.audits for cell in _audit(audit)]
        table.add_row(
            _mark(choice, found), f"{choice.every:,}", f"{choice.keep:,}", _percent(choice.overhead),
            size(choice.bytes), size(round(choice.bytes_per_interval)), *audits,
        )  # fmt: skip
    return table


def _mark(choice: Choice, found: Forecast) -> str:
    """What becomes of a choice: ``*`` recommended, ``–`` refused."""
    best = found.recommended.choice
    if best is not None and (best.every, best.keep) == (choice.every, choice.keep):
        return "*"
    return "–" if choice.refused else ""


def _audit(audit: Audit) -> tuple[str, str]:
    return f"{audit.replayed_steps:,.0f}", duration(audit.seconds)


def _percent(share: float) -> str:
    """A share in per cent, three digits of it, or all that are before the point."""
    return f"{100 * share:,.0f} %" if share >= 1 else f"{100 * share:.3g} %"


def _time(seconds: float) -> str:
    """Seconds, with a smaller unit where they are few."""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return duration(seconds)

"""Measured noise for people: honest errors and forgeries at each k, what lies between, and what follows."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pol.proof.limiting import GAP, MARGIN, Cheapest, Rung, best, rungs
from pol.proof.noise import DECAY, REDRAW, Noise, Replays
from pol.proof.rates import DRAWS, Rate, audit, growth
from pol.render.text import clean, plural

KEPT = 100
"""States that a proof holds where it is recorded as is recommended: then taking again what lies before a state that is
asked for costs the prover one per cent of the run."""

ROUNDING_ALONE = 0.1
"""Share of its move by which a tensor is off after a single step that only rounding moves: other tensors are off by a
thousandth of that (measured baseline, C)."""


def as_json(noise: Noise, steps: int, reference: float) -> dict[str, Any]:
    """What follows at each k, and what is recommended."""
    found = rungs(noise, reference)
    return {
        "rungs": [{**_plain(rung), "drift": float(drift)} for rung, drift in zip(found, noise.drift, strict=True)],
        "growth": growth(noise),
        "every": noise.every,
        "keep": None if noise.every is None else keep(steps, noise.every),
        "instead": instead(noise, found),
    }


def _plain(rung: Rung) -> dict[str, Any]:
    rates = {
        name: {**msgspec.to_builtins(rate), "most": rate.most, "audit": audit(rate.most)}
        for name, rate in (("replays", rung.replays), ("intervals", rung.intervals))
    }
    return {**msgspec.to_builtins(rung), **rates}


def keep(steps: int, every: int) -> int:
    """K, every how many intervals a state is kept."""
    return max(1, round(steps / every / KEPT))


def measured(console: Console, noise: Noise, steps: int, reference: float) -> None:
    """Print what replays were off by, and what follows."""
    found, chosen = rungs(noise, reference), best(rungs(noise, reference))
    lengths = ", ".join(map(str, noise.rungs))
    console.print(
        f"Honest noise: steps of one run, taken again from {plural(len(noise.starts), 'state')} for k = {lengths} "
        "steps. By how much the worst tensor is off beyond rounding, as a share of its own move: median and worst."
    )
    console.print()
    _replays(console, noise, noise.honest, cheats=False)
    console.print()
    if (power := growth(noise)) is not None:
        console.print(f"Errors grow about as k^{power:.1f} ({_growing(power)}; {', '.join(noise.optimizers)}).")
        console.print()
    console.print("The smallest lies, the same of parameters alone: the least that each leaves.")
    console.print()
    _replays(console, noise, noise.cheats, cheats=True)
    console.print()
    _gaps(console, noise, found)
    console.print()
    if chosen is None:
        console.print(Text("No limits are recommended.", "bold yellow"))
        console.print(f"What would work: {instead(noise, found)}.")
    else:
        _recommended(console, noise, chosen, steps)


def _growing(power: float) -> str:
    if power < 0.75:
        return "like independent errors, which partly cancel"
    return "they add up" if power < 1.5 else "rounding is amplified: chaotic"


def _replays(console: Console, noise: Noise, replays: list[Replays], *, cheats: bool) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("lie" if cheats else "with")
    for rung in noise.rungs:
        table.add_column(f"k = {rung}", justify="right")
    left_out = []
    for one in replays:
        if one.left_out is not None:
            left_out.append(f"{one.name}: not measured, since {one.left_out}")
        elif all(seen.equal for row in one.found for seen in row):
            left_out.append(f"{one.name}: changes nothing here" if cheats else f"{one.name}: no difference")
        else:
            table.add_row(one.name, *(_cell(one, number, cheats=cheats) for number in range(len(noise.rungs))))
    if table.row_count:
        console.print(table)
    for line in left_out:
        console.print(Text(clean(line)))
    if cheats:
        console.print(f"({DECAY}: shown only, since it may do less than rounding; no tolerance promises to see it)")


def _cell(one: Replays, number: int, *, cheats: bool) -> str:
    seen = [row[number] for row in one.found if number < len(row)]
    if not cheats:
        shares = [float(error.relative) for error in seen]
        return f"{_short(statistics.median(shares), 0)} {_short(max(shares), 0)}"
    left = [float(error.relative) for error in seen if not error.equal and not error.floored]
    return _short(min(left)) if left else "-"


def _gaps(console: Console, noise: Noise, found: list[Rung]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("k", "limit", "cheapest lie", "gap", "all limits", "beyond", ""):
        table.add_column(title, justify="left" if title in ("cheapest lie", "") else "right")
    for rung, drift in zip(found, noise.drift, strict=True):
        table.add_row(
            str(rung.every), _short(float(rung.limits.relative)), _cheapest(rung.cheapest), f"{rung.gap:.3g}",
            _short(float(drift)), f"{rung.replays.beyond} of {rung.replays.of}",
            Text("no", "yellow") if rung.refusals else Text("yes", "green"),
        )  # fmt: skip
    console.print(table)
    for rung in found:
        for reason in rung.refusals[:1]:  # the others are in the JSON
            console.print(Text(clean(f"k = {rung.every}: {reason}.")))


def _cheapest(found: Cheapest | None) -> str:
    return "-" if found is None else f"{_short(found.share)} ({found.name})"


def _recommended(console: Console, noise: Noise, rung: Rung, steps: int) -> None:
    console.print(
        f"Use k = {rung.every}: record with --rule tolerance --every {rung.every} --keep {keep(steps, rung.every)}.",
        style="bold",
    )
    if rung.limits.source == "preset":
        console.print("No error is beyond rounding here, so below are the limits of the preset tolerance.")
    else:
        console.print(
            f"Limits are {MARGIN:g} times the worst that was seen, the cheapest lie at least {GAP:g} of them."
        )
    for outlier in rung.outliers:
        console.print(
            f"Not within them: {_short(outlier.share)} with {outlier.name} after step {outlier.start}. Rounding took "
            "another of two ways there, and a verifier looks for such branches."
        )
    console.print(rate(rung.replays, rung.intervals))
    if noise.unbounded is not None:
        console.print(f"A policy must take the risk of it in limits.optimizers: {clean(noise.unbounded)}.")


def rate(replays: Rate, intervals: Rate) -> str:
    """How often honest intervals will be beyond limits, in words."""
    if not replays.of:
        return "No replay ended in other bits here, so nothing can be said of how often an honest one will be beyond."
    none = {0: "none was", 1: "one was"}.get(replays.beyond, f"{replays.beyond} were")
    return (
        f"Of {plural(replays.of, 'honest replay')} with other bits {none} beyond what follows without its interval. So "
        f"with 95 % confidence at most {replays.most:.2g} of all honest intervals on such platforms are "
        f"({intervals.most:.2g} if each of the {plural(intervals.of, 'interval')} counts once); an audit of {DRAWS} "
        f"meets one with a probability of at most {audit(replays.most):.2g}. That alone is no rejection: the verifier "
        "looks for a branch, and is undecided without one. More --intervals bound it better."
    )


def instead(noise: Noise, found: list[Rung]) -> str | None:
    """What would work where no limits are recommended; None where they are."""
    if best(found) is not None:
        return None
    ways = []
    if noise.coarse is not None:
        ways.append("train in float32")
    elif any(rung.gap >= GAP for rung in found):
        ways.append(
            f"measure longer intervals (--max-every above {found[-1].every}): limits add up less often"
            if found[-1].gap >= GAP
            else f"a k between those that were measured (--max-every between {_between(found)})"
        )
    else:
        ways.append("no k will, since intervals of one step are as short as they can be; train in float64")
        if float(found[0].limits.relative) >= MARGIN * ROUNDING_ALONE:
            ways.append(
                f"do not train {found[0].worst[0]}, if its gradient is rounding and nothing else, like that of a bias "
                "in front of a normalisation, and the optimizer divides gradients by their size"
            )
        if _drawn(noise):
            ways.append("draw no random numbers in steps, since another platform draws other ones")
    return "; ".join([*ways, "or record under rule exact"])


def _between(found: list[Rung]) -> str:
    last = max(number for number, rung in enumerate(found) if rung.gap >= GAP)
    return f"{found[last].every} and {found[last + 1].every}"


def _drawn(noise: Noise) -> bool:
    """Whether an honest replay of one step is as far off as other draws are."""
    honest = max((float(row[0].share) for one in noise.honest for row in one.found), default=0.0)
    redrawn = [float(row[0].share) for one in noise.cheats if one.name == REDRAW for row in one.found]
    return bool(redrawn) and 2 * honest >= statistics.median(redrawn) > 0


def _short(value: float, decimals: int = 1) -> str:
    if not value:
        return "0"
    digits, _, power = f"{value:.{decimals}e}".partition("e")
    return f"{digits}e{int(power)}"

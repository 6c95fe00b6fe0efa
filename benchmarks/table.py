"""The measurements as Markdown."""

from __future__ import annotations

from benchmarks import limits
from benchmarks.cases import ARMS, BARE, LAST, METHOD2021, RECORDER
from benchmarks.overhead import Overhead, bare_step, interval_bytes
from benchmarks.page import row
from benchmarks.result import Made, Measured, Planned, Recording, Results, Spread
from benchmarks.targets import Row, arms, percent, recording, rows

NOT_MEASURED = "not measured"

TELLING = 50e6
"""Bytes of a state from which peak memory is told in states, too: an interpreter's own varies by some megabytes."""


def markdown(results: Results, figure: str | None = None) -> str:
    """Everything: the targets, the costs of every training, and where they come from."""
    parts = ["## Targets", targets(results), *_unmet(results)]
    if figure is not None:
        parts += ["## What every arm costs", f"![Overhead of each arm]({figure})"]
    for measured in results.measured:
        parts += [f"## {measured.title}", _about(measured), costs(measured), memory(measured)]
        if measured.audit is not None:
            parts.append(audit(measured))
        if measured.planned is not None:
            parts.append(plans(measured, measured.planned))
        parts += [_parts(one) for one in measured.recordings]
    parts += [f"*{title}* was not measured: {why}." for title, why in results.left_out.items()]
    return "\n\n".join(parts)


def page(results: Results, figure: str) -> str:
    """The page that is checked in."""
    quick = any(measured.made.quick for measured in results.measured)
    notes = ["Tiny sizes (`--quick`): these numbers mean nothing."] if quick else []
    together: dict[Made, list[str]] = {}
    for measured in results.measured:
        together.setdefault(measured.made, []).append(measured.title)
    made = [_made("; ".join(titles), made) for made, titles in together.items()]
    head = "How all this is measured, and what the words mean: [Benchmarks](../benchmarks.md)."
    return "\n\n".join(["# What recording and auditing cost", *notes, head, *made, markdown(results, figure)]) + "\n"


def _made(title: str, made: Made) -> str:
    return (
        f"{title}: `{made.command}`, begun {made.started}, on {made.processor}, {made.cores} cores, {made.system}, "
        f"Python {made.python}, torch {made.torch}, pol {made.pol}; {made.threads} threads per training process, "
        f"load {made.load_before:.2f} before and {made.load_after:.2f} after"
        f"{f', code {made.code}' if made.code else ''}."
    )


# -- targets ------------------------------------------------------------------------------------------------------


def targets(results: Results) -> str:
    """One row for each target."""
    head = ["", "to beat", "2021, here", "target", "measured", "met"]
    return "\n".join([row(head), row(["---"] * len(head)), *map(_target, rows(results))])


def _target(found: Row) -> str:
    sign = "≥" if found.at_least else "≤"
    target = f"{sign} {found.show(found.target)}"
    measured = NOT_MEASURED if found.measured is None else f"**{found.show(found.measured)}**{found.more}"
    met = {None: "—", True: "yes", False: "**no**"}[found.met]
    return row([found.what, found.to_beat, found.others or "—", target, measured, met])


def _unmet(results: Results) -> list[str]:
    missed = [found for found in rows(results) if found.met is False]
    return [f"**Not met: {found.what}.** {found.profile}" for found in missed]


# -- costs --------------------------------------------------------------------------------------------------------


def _about(measured: Measured) -> str:
    first = measured.recordings[0]
    steps = "; ".join(
        f"{1e3 * bare_step(one).median:.3g} ms ({1e3 * bare_step(one).low:.3g}–{1e3 * bare_step(one).high:.3g})"
        for one in measured.recordings
    )
    return (
        f"{first.parameters:,} parameters; a state has {first.state_bytes / 1e6:.3g} MB. A bare step takes {steps}: "
        "median and quartiles of the bare blocks, one figure for each recording."
    )


def costs(measured: Measured) -> str:
    """Overhead of each arm by both estimates, and what it stores."""
    head = ["arm", "k", "kept", "whole blocks", "by clocks", "training waits", "CPU beside", "bytes per interval"]
    lines = [row(head), row(["---"] * len(head))]
    for one in arms(measured):
        whole = "—" if one.whole is None else spread(one.whole)
        clocked = spread(one.clocked)
        if one.resolved:
            whole = f"**{whole}**"
        else:
            clocked = f"**{clocked}**"
        waits, beside = f"{1e3 * one.waiting:.3g} ms", f"{1e3 * one.beside:.3g} ms"
        lines.append(
            row([ARMS[one.arm], str(one.every), _kept(one), whole, clocked, waits, beside, _stored(measured, one)])
        )
    return "\n".join(lines)


def _kept(one: Overhead) -> str:
    if one.arm == RECORDER:
        return "first and last" if one.keep == LAST else f"K = {one.keep}"
    return "every interval" if one.arm == METHOD2021 else "nothing"


def _stored(measured: Measured, one: Overhead) -> str:
    if one.arm != RECORDER:
        return f"{measured.recordings[0].state_bytes:,}" if one.arm == METHOD2021 else "32"
    found = recording(measured, one.every, one.keep or 0)
    assert found is not None
    return f"{interval_bytes(found):,.0f}"


def spread(found: Spread) -> str:
    """Median and quartiles of an overhead."""
    return f"{percent(found.median)} ({percent(found.low)} to {percent(found.high)})"


def memory(measured: Measured) -> str:
    """Peak memory of each arm over the bare loop, in bytes and in states."""
    peak, state = measured.memory.peak, measured.recordings[0].state_bytes
    large = state > TELLING  # else the interpreter's own ups and downs are many states
    head = ["arm", "peak memory of the training process", "over the bare loop", "in states"]
    lines = [row(head), row(["---"] * len(head))]
    for arm, title in ARMS.items():
        over = peak[arm] - peak[BARE]
        shown = ["—", "—"] if arm == BARE else [f"{over / 1e6:+.0f} MB", f"{over / state:+.2f}" if large else "—"]
        lines.append(row([title, f"{peak[arm] / 1e6:.0f} MB", *shown]))
    signing = f"The process that signs and writes the log takes {measured.memory.recording / 1e6:.0f} MB beside it."
    return "\n".join([*lines, "", signing])


def audit(measured: Measured) -> str:
    """The audit of a training."""
    found = measured.audit
    assert found is not None
    head = [f"audit of {found.intervals} intervals of k = {found.every}", "wall", "over the bare steps"]
    lines = [row(head), row(["---"] * len(head))]
    lines.append(row(["bare steps, one thread", f"{found.compute:.1f} s", "1"]))
    for jobs, wall in found.verify.items():
        title = f"`verify`, {jobs} process{'es' if jobs != '1' else ''} of one thread"
        lines.append(row([title, f"{wall:.1f} s", f"{wall / found.compute:.2f}"]))
    lines.append(row(["2021", f"{found.method2021:.1f} s", f"{found.method2021 / found.compute:.2f}"]))
    rest = (
        f"What does not grow with the steps of a recording took {found.one_off:.1f} s: builds, control run, self-check."
    )
    return "\n".join([*lines, "", *(limits.audit(found, int(jobs)) for jobs in found.verify), "", rest])


def plans(measured: Measured, planned: Planned) -> str:
    """What was said beforehand beside what was measured."""
    head = ["`pol plan` before, and what was measured", "planned", "measured", "planned over measured"]
    lines = [row(head), row(["---"] * len(head))]
    for one in arms(measured):
        said = planned.overheads.get(f"k={one.every},K={one.keep}")
        if one.arm == RECORDER and said is not None:
            found = one.counts.median
            what = f"overhead, k = {one.every}, {_kept(one)}"
            lines.append(
                row([what, percent(said), percent(found), f"{(1 + said) / (1 + found):.3f} of the run's time"])
            )
    if planned.audit is not None and measured.audit is not None:
        found = measured.audit.inner["1"][
            "report"
        ]  # a plan is of the verification, and not of Python's start before it
        ratio = f"{planned.audit / found:.2f}"
        lines.append(
            row(["the verification, 1 process of one thread", f"{planned.audit:.1f} s", f"{found:.1f} s", ratio])
        )
    return "\n".join(lines)


def _parts(found: Recording) -> str:
    title = "first and last" if found.keep == LAST else f"K = {found.keep}"
    head = [f"part of the recorder, k = {found.every}, {title}", "ms per step", "of the bare step"]
    lines = [row(head), row(["---"] * len(head))]
    lines += [row([name, f"{milli:.3g}", f"{100 * share:.2g} %"]) for name, milli, share in limits.parts(found)]
    return "\n".join(lines)

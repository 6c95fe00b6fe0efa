"""The targets of recording and auditing, and whether they are met; of one that is not, where the time goes.

They were set from measurements of the reference code of 2021 on two other CPU threads: the column *to beat* is of that
machine. Everything else is measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import hashing, limits
from benchmarks.cases import LAST, METHOD2021, RECORDER, RESNET, TEXT
from benchmarks.overhead import Overhead, at, interval_bytes, overheads
from benchmarks.result import Measured, Recording, Results

AT_MOST = {(TEXT, 1, LAST): 0.10, (TEXT, 10, 10): 0.018, (RESNET, 1, LAST): 0.015}
"""Largest overhead that is aimed at, by training, k and K."""

AUDIT_AT_MOST = {1: 1.10, 2: 0.60}
"""Largest wall time of an audit over the bare steps, by processes."""

BYTES_AT_MOST = 11e6
"""Of an interval of CharGPT at k = 10, K = 10: a tenth of a state, less what compression gives."""

HASHING_AT_LEAST = 0.8
"""Of the rate of the library that does it."""


@dataclass(frozen=True)
class Row:
    """A target and what was measured."""

    what: str
    to_beat: str
    others: str
    """What the method of 2021 costs here, or another one that is named."""
    measured: float | None
    """None: not measured in this run."""
    target: float
    show: Callable[[float], str]
    profile: str
    """Where the time or the bytes go, and what the limit is."""
    at_least: bool = False
    """The target is the least, not the most."""
    more: str = ""
    """What is said beside the measured value."""

    @property
    def met(self) -> bool | None:
        """None: not known."""
        if self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


def percent(share: float) -> str:
    """A share with its sign: ``+1.2 %``."""
    return f"{100 * share:+.2g} %" if abs(share) < 0.1 else f"{100 * share:+.0f} %"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB"


def rows(results: Results) -> list[Row]:
    """Every target."""
    found = {measured.case: measured for measured in results.measured}
    text, resnet = found.get(TEXT), found.get(RESNET)
    return [
        _overhead("CharGPT 10.8 M, AdamW, k = 1: overhead", "+61 %", text, (TEXT, 1, LAST)),
        _overhead("CharGPT, k = 10, K = 10: overhead", "+6.5 %", text, (TEXT, 10, 10)),
        _overhead("ResNet-20, k = 1: overhead, by clocks", "+2.6 %", resnet, (RESNET, 1, LAST), by_clocks=True),
        _bytes(text),
        *(_audit(resnet, jobs) for jobs in AUDIT_AT_MOST),
        _hashing(text or next(iter(results.measured), None)),
    ]


def recording(measured: Measured | None, every: int, keep: int) -> Recording | None:
    """The recording of that k and K, if it was made."""
    if measured is None:
        return None
    wanted = (every, keep)
    return next((one for one in measured.recordings if (one.every, one.keep) == wanted), None)


def _overhead(
    what: str, to_beat: str, measured: Measured | None, which: tuple[str, int, int], *, by_clocks: bool = False
) -> Row:  # fmt: skip
    target, (_, every, keep) = AT_MOST[which], which
    found = recording(measured, every, keep)
    if measured is None or found is None:
        return Row(what, to_beat, "", None, target, percent, "")
    arms = {one.arm: one for one in overheads(found, measured.made.cores)}
    ours = arms[RECORDER]
    value = ours.clocked.median if by_clocks else ours.counts.median
    others = arms.get(METHOD2021)
    old = "" if others is None else percent((others.clocked if by_clocks else others.counts).median)
    return Row(what, to_beat, old, value, target, percent, limits.recording(measured, found, ours))


def _bytes(measured: Measured | None) -> Row:
    what, to_beat, target = "CharGPT, k = 10, K = 10: bytes of an interval", "129 MB", BYTES_AT_MOST
    found = recording(measured, 10, 10)
    if found is None:
        return Row(what, to_beat, "", None, target, _megabytes, "")
    old = _megabytes(found.state_bytes)
    return Row(what, to_beat, old, interval_bytes(found), target, _megabytes, limits.storage(found))


def _audit(measured: Measured | None, jobs: int) -> Row:
    target = AUDIT_AT_MOST[jobs]
    what = f"ResNet-20, k = 10, 20 intervals: audit over bare compute, {jobs} process{'es' if jobs > 1 else ''}"
    to_beat = "1.09" if jobs == 1 else "—"
    audit = None if measured is None else measured.audit
    wall = None if audit is None else audit.verify.get(str(jobs))
    if audit is None or wall is None:
        return Row(what, to_beat, "", None, target, _ratio, "")
    old = _ratio(audit.method2021 / audit.compute) if jobs == 1 else ""
    return Row(what, to_beat, old, wall / audit.compute, target, _ratio, limits.audit(audit, jobs))


def _hashing(measured: Measured | None) -> Row:
    what = "a large float32 tensor, 2 threads: rate of the blake3 package"
    if measured is None:
        return Row(what, "0.4 GB/s", "", None, HASHING_AT_LEAST, _share, "", at_least=True)
    rates = {name: spread.median for name, spread in measured.hashing.rates.items()}
    ours, package = rates[hashing.OURS], rates[hashing.LIBRARY]
    return Row(
        what, "0.4 GB/s", f"{rates[hashing.NEIGHBOUR] / 1e9:.2g} GB/s (SHA-256, one thread)", ours / package,
        HASHING_AT_LEAST, _share, limits.rates(measured.hashing), at_least=True, more=f" ({ours / 1e9:.3g} GB/s)",
    )  # fmt: skip


def arms(measured: Measured) -> list[Overhead]:
    """Every arm of a training: by k, this package first.

    What is done once an interval costs a tenth at ten times the k: so are 2021 and the one-thread hash told at k = 100
    where no block was that long.
    """
    found = [one for each in measured.recordings for one in overheads(each, measured.made.cores)]
    others = {(one.arm, one.every): one for one in found if one.arm != RECORDER}
    for arm in dict.fromkeys(arm for arm, _ in others):
        known = max(every for name, every in others if name == arm)
        for every in sorted({one.every for one in found if one.every > known}):
            found.append(at(others[arm, known], every))
    order = list(dict.fromkeys([RECORDER, *(one.arm for one in found)]))
    return sorted(found, key=lambda one: (one.every, order.index(one.arm), -(one.keep or 0)))

"""Where time and bytes go, and what the limit is: the bytes that must be touched, over rates measured in the same run.

Each function gives one paragraph of Markdown.
"""

from __future__ import annotations

from benchmarks import hashing
from benchmarks.cases import LAST
from benchmarks.overhead import Overhead, bare_step, interval_bytes
from benchmarks.parts import BESIDE, HOOK
from benchmarks.result import Audit, Hashing, Measured, Recording


def recording(measured: Measured, found: Recording, ours: Overhead) -> str:
    """Of a recording: its parts, and the least that hashing, checking and copying the state would take."""
    step = bare_step(found).median
    shown = sorted(found.parts.items(), key=lambda pair: -pair[1])
    parts = ", ".join(
        f"{name} {_milli(seconds)} ms" for name, seconds in shown if seconds > 1e-3 * step and name not in BESIDE
    )
    touched = touching(found, measured.hashing)
    return (
        f"Of a bare step of {_milli(step)} ms: the training waits {_milli(ours.waiting)} ms longer "
        f"({_percent(ours.waiting / step)}), other threads and processes take {_milli(ours.beside)} ms of CPU time "
        f"({_percent(ours.beside / measured.made.cores / step)} of {measured.made.cores} cores). Per step: {parts}. "
        f"The limit: {touched}."
    )


def touching(found: Recording, rates: Hashing) -> str:
    """The least time for what must touch every byte of the state."""
    step, size = bare_step(found).median, found.state_bytes
    digest = size / rates.rates[hashing.LIBRARY].median / found.every
    check = size / rates.rates[hashing.READ].median / found.every
    text = (
        f"hashing {size / 1e6:.3g} MB once every {found.every} steps takes {_milli(digest)} ms a step at "
        f"{_rate(rates, hashing.LIBRARY)} ({_percent(digest / step)}), reading them for the check of finite values "
        f"{_milli(check)} ms at {_rate(rates, hashing.READ)} ({_percent(check / step)})"
    )
    if found.keep != LAST:
        copy = size / rates.rates[hashing.COPY].median / (found.every * found.keep)
        text += f", copying what is kept {_milli(copy)} ms at {_rate(rates, hashing.COPY)} ({_percent(copy / step)})"
    return text


def storage(found: Recording) -> str:
    """Of the bytes of an interval."""
    share = interval_bytes(found) * found.keep / found.state_bytes
    return (
        f"A kept state takes {_percent(share)} of its {found.state_bytes / 1e6:.3g} MB, and one interval in "
        f"{found.keep} has one. The three low bytes of every float32 are close to random, so no lossless method gets "
        "much below 83 % without the state before."
    )


def audit(found: Audit, jobs: int) -> str:
    """Of an audit."""
    wall, inner = found.verify[str(jobs)], found.inner[str(jobs)]
    start, rest = wall - inner["report"], inner["report"] - inner["replay"]
    return (
        f"Of {wall:.1f} s ({found.compute:.1f} s of bare steps): {start:.1f} s until the verification begins, "
        f"{rest:.1f} s of it outside of the replay (control run, builds), {inner['replay']:.1f} s of replay on {jobs} "
        f"process{'es' if jobs > 1 else ''}. The limit is {found.compute / jobs:.1f} s, the steps themselves."
    )


def rates(found: Hashing) -> str:
    """Of hashing."""
    shown = ", ".join(f"{name} {_rate(found, name)}" for name in found.rates)
    return f"{found.size / 1e6:.0f} MB on {found.threads} threads: {shown}."


def parts(found: Recording) -> list[tuple[str, float, float]]:
    """Name, milliseconds per step and share of the bare step of each part, and of the signing process."""
    step = bare_step(found).median
    named = {**found.parts, "sign, log and hash files (other process)": found.recording_cpu}
    return [(f"{name} (in the step)" if name == HOOK else name, 1e3 * s, s / step) for name, s in named.items()]


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _rate(found: Hashing, name: str) -> str:
    return f"{found.rates[name].median / 1e9:.3g} GB/s"

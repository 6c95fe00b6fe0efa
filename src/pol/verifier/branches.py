"""Errors that a *branch* explains: on another machine, a step may take another of two ways that are as good as equal.

About once in a thousand steps rounding decides on which side of zero a unit falls, or which of two values is the
largest. Then the step of another machine is off by a few per cent, far beyond any limit that still shows forgeries. But
the recorded end can be reached from here, too: from a start that is *one rounding* off, the replay takes the other way
about every second time, and then ends within the limits of the record. That it can be reached so shows as much as
reaching it at once: it is what the steps lead to, from the recorded state as far as another machine can tell.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import msgspec

from pol.auditor import Auditor
from pol.checkpoint import Checkpoint
from pol.errors import PolError
from pol.proof.report import IntervalResult
from pol.verifier import rounding, tolerance
from pol.verifier.case import Case
from pol.verifier.replayed import segment_of, state_after
from pol.verifier.reproduction import reproduction
from pol.verifier.rounding import REPEATS

SIZE = {"F64": 2.0**-53, "F32": 2.0**-24}
"""One rounding: half a unit in the last place. The floor of every limit covers it."""


def explain(case: Case, auditor: Auditor, folder: Path) -> None:
    """Intervals that could not be decided, since their errors are beyond the limits, pass if a branch explains them.

    No more than the policy takes: where more of them are off, it is not a rare branch that decides, and none passes.
    """
    limits = case.policy.limits
    off = [at for at, result in enumerate(case.intervals) if result.status == "unable" and result.deviation is not None]
    if not case.otherwise.isdisjoint(case.intervals[at].index for at in off):
        return  # no way of a step explains another field of a record, so this cannot be an ACCEPT
    if limits is None or not off or len(off) > max(1, limits.branches * len(case.intervals)) or not limits.branches:
        return
    for number, position in enumerate(off):
        case.progress("looking for branches", number, len(off))
        result = case.intervals[position]
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            if found := _branch(case, auditor, result, folder / f"{result.stop:012d}.safetensors", Path(inner)):
                detail = f"{result.detail}. But {found} from a start that is one rounding off ends within them"
                case.explained[result.index] = _error(case, result, folder / f"{result.stop:012d}.safetensors")
                case.intervals[position] = msgspec.structs.replace(result, status="passed", detail=detail, branch=True)


def _error(case: Case, result: IntervalResult, replayed: Path) -> float:
    """How far a record is off in all parameters together, with what is carried on: what counts as drift."""
    ends = state_after(case, result.start), Checkpoint.at(replayed), state_after(case, result.stop)
    found = reproduction(*ends, case.carrying, result.stop, case.momenta[result.index])
    return math.hypot(*(one.total for _, one in found if one.entry.kind == "parameter"))


def _branch(case: Case, auditor: Auditor, result: IntervalResult, replayed: Path, folder: Path) -> str:
    """Which replay from a start that is one rounding off ends within the limits of the record; "" if none does."""
    segment = segment_of(case, result.start)
    start, recorded, base = state_after(case, result.start), state_after(case, result.stop), Checkpoint.at(replayed)
    nudged, noise = folder / "nudged.safetensors", dict[str, float]()
    moved = msgspec.structs.replace(segment, checkpoint=str(nudged))
    told = case.momenta[result.index]
    for repeat in range(REPEATS):
        try:
            shutil.copyfile(start.path, nudged)
            rounding.nudge(nudged, base, repeat, SIZE)
            if not rounding.replay(case, auditor, moved, folder):
                continue
            end = Checkpoint.at(folder / replayed.name)
            _widen(noise, case, base, end, result)
            for one in (end, base):
                wrong, _ = tolerance.deviation(
                    case.policy, start, one, recorded, case.carrying, result.stop, told, noise
                )
                if not wrong:
                    return f"replay {repeat + 1} of {REPEATS}"
        except PolError:  # of the replay here, and so nothing about the proof
            continue
    return ""


def _widen(noise: dict[str, float], case: Case, base: Checkpoint, end: Checkpoint, result: IntervalResult) -> None:
    """Note how much of what moments carry on is noise here: the most by which replays differ from one another.

    Adam divides each gradient by its own size. In its first step that is the gradient itself, and where that is next to
    nothing, it is rounding alone, different on every machine and from every nudged start.
    """
    for key, slot in base.entries.items():
        if slot.entry.kind == "parameter":
            found = case.carrying.length(key, result.stop, case.momenta[result.index], base, end)
            if math.isfinite(found):
                noise[key] = max(noise.get(key, 0.0), found)

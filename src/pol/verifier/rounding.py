"""How far rounding and other draws carry an interval, measured here: its steps are taken again, one rounding off.

Where a machine does not give the recorded profile, an error may be the machine's. How large that can be depends on the
training: normalisation multiplies rounding by hundreds in ten steps, and an optimizer that divides gradients by their
size takes full steps where rounding points if there is nothing else. So no fixed share of the move tells such a run
from a forgery; two replays on one machine do.

Another machine may also draw other numbers from the same generator: torch drops other features on AMD than on Intel,
and draws other normal numbers without vector instructions; no recorded fact tells. So as many replays follow in which
what is drawn in the steps is drawn anew. Samples and their order stay, whoever orders them: the seed, a file, a sampler
or a stream of the program's own. Where the program sets its generators itself, nothing can be drawn anew.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from pol import seeds
from pol.auditor import Auditor, Unlike
from pol.checkpoint import Checkpoint
from pol.distance import Accumulator, ratio, within
from pol.errors import PolError
from pol.messages import Finished, Segment
from pol.proof.genesis import registered
from pol.store import ORDER, checkpoint_path
from pol.values import CHUNK, decode, floats
from pol.verifier.case import Case
from pol.verifier.replayed import segment_of

SIZE = {"F64": 2.0**-49, "F32": 2.0**-20}
"""By how much each value is moved, as a share of itself and of what its tensor moves by: sixteen times half a unit in
the last place. Other kernels differ by that much after one step (measured baseline, C: 3e-7 to 3e-6 of the norm). Of
itself alone would not do: a zero would stay one, and weights that begin as zeros round from the first step on."""

REPEATS = 20
"""Replays from states that are off in different directions. Where a value decides between two ways (the largest of two
that are nearly equal), each of them takes the other way about every second time; all twenty miss it once in a million,
and at most three intervals are looked at."""

MARGIN = 10.0
"""An error is beyond rounding from this multiple of the largest that was measured here."""


def beyond(case: Case, auditor: Auditor, start: int, replayed: Path, error: float, folder: Path) -> bool:
    """Whether an error is more than rounding and other draws can explain; False where that could not be measured.

    Args:
        case: The verification.
        auditor: Who takes the steps again.
        start: Step before which the interval starts.
        replayed: The end state of its replay here.
        error: Error of all parameters together, as a share of the replayed move.
        folder: Empty, for states.
    """
    if not _comparable(case, start):
        return False
    segment = segment_of(case, start)

    def noise(repeat: int, redrawn: bytes | None = None) -> float:
        return _noise(case, auditor, segment, replayed, folder, repeat, redrawn)

    largest = 0.0
    for repeat in range(REPEATS):
        found = noise(repeat)
        if not within(MARGIN * found, error):
            return False
        largest = max(largest, found)
    if not largest:  # where nothing differed at all, nothing was measured
        return False
    return all(within(MARGIN * noise(repeat, _other_seed(case, repeat)), error) for repeat in range(REPEATS))


def _comparable(case: Case, start: int) -> bool:
    """Whether all that another machine may draw otherwise can be drawn anew here.

    Not what generators draw that are state. Nor the data of a stream, which may be drawn, too: what it gave here must
    be what it gave there.
    """
    declaration = case.genesis.spec.declaration
    if declaration.streams == "observed":
        return False
    return declaration.order != "stream" or start // case.genesis.spec.every not in case.otherwise


def _noise(
    case: Case, auditor: Auditor, segment: Segment, replayed: Path, folder: Path, repeat: int, redrawn: bytes | None
) -> float:
    """How far one replay from a nudged state is off, as a share of the move; infinite where it stops."""
    origin = Path(segment.checkpoint) if segment.checkpoint else case.store.path / checkpoint_path(segment.start)
    nudged = folder / "nudged.safetensors"
    shutil.copyfile(origin, nudged)
    moved = msgspec.structs.replace(segment, checkpoint=str(nudged))
    try:
        nudge(nudged, Checkpoint.at(replayed), repeat, SIZE)
        if not replay(case, auditor, moved, folder, redrawn):
            return math.inf
        return _difference_of_moves(*map(Checkpoint.at, (origin, replayed, nudged, folder / replayed.name)))
    except PolError:  # of the replay here, and so nothing about the proof
        return math.inf


def _other_seed(case: Case, repeat: int) -> bytes:
    return seeds.expand(case.seed, "redraw", bytes([repeat]))


def replay(case: Case, auditor: Auditor, segment: Segment, folder: Path, redrawn: bytes | None = None) -> bool:
    """Take the steps of one segment, their draws from another seed if it is given; whether they came to an end.

    The end state is then in ``folder``.
    """
    genesis = case.genesis
    events = auditor.replay(
        genesis.profile, genesis.recipe.configuration, case.seed, registered(genesis, case.r), [segment],
        seeds.salt_key(case.r), declared=genesis.randomness.declared_seed,
        order=case.store.path / ORDER if genesis.randomness.order == "observed" else None, save=folder,
        unlike=Unlike(redrawn=redrawn),
    )  # fmt: skip
    return any(isinstance(event, Finished) for event in list(events))


def nudge(path: Path, replayed: Checkpoint, repeat: int, by: Mapping[str, float]) -> None:
    """Move each parameter in a file, and what an optimizer keeps of it, up or down by a rounding of size ``by``."""
    draw = np.random.default_rng(repeat)
    start = Checkpoint.at(path)
    for key, slot in start.entries.items():
        # A scalar that an optimizer keeps is a counter, or a rate.
        kept = slot.entry.kind == "optimizer" and slot.entry.shape
        if not (slot.entry.kind == "parameter" or kept) or slot.entry.dtype not in by:
            continue
        size, move = by[slot.entry.dtype], _typical_move(start, replayed, key)
        with path.open("r+b") as file:
            for begin in range(slot.begin, slot.end, CHUNK):
                file.seek(begin)
                values = decode(file.read(min(CHUNK, slot.end - begin)), slot.entry.dtype)
                signs = draw.integers(2, size=values.size) * 2 - 1
                power = 2 if kept and (values >= 0).all() else 1  # sums of squares round as their roots do
                with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite stops the replay
                    exact = floats(values) ** (1 / power)
                    nudged = (exact + size * (np.abs(exact) + move ** (1 / power)) * signs) ** power
                    file.seek(begin)
                    file.write(nudged.astype(values.dtype).tobytes())


def _typical_move(start: Checkpoint, end: Checkpoint, key: str) -> float:
    """How far the values of a tensor moved: root mean square."""
    found = Accumulator()
    if key in end.entries and end.entries[key].entry == start.entries[key].entry:
        for a, b in zip(start.chunks(key), end.chunks(key), strict=True):
            found.add(a, b)
    return found.result().l2 / math.sqrt(max(found.result().size, 1))


def _difference_of_moves(start: Checkpoint, end: Checkpoint, nudged: Checkpoint, nudged_end: Checkpoint) -> float:
    """How differently the parameters moved from two starts, as a share of the first move."""
    differs, moved = Accumulator(), Accumulator()
    for key, slot in start.entries.items():
        if slot.entry.kind != "parameter" or slot.entry.dtype not in SIZE:
            continue
        for a, b, c, d in zip(*(state.chunks(key) for state in (start, end, nudged, nudged_end)), strict=True):
            differs.add(floats(b) - floats(a), floats(d) - floats(c))
            moved.add(b, a)
    return ratio(differs.result().l2, moved.result().l2)

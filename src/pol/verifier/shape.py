"""Step 4: the numbers agree with the spec, every value is finite, and the policy allows what was declared."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pol.digest import Digest
from pol.errors import IntegrityError
from pol.proof.challenge import Window
from pol.proof.container import Placed
from pol.proof.genesis import boundaries, kept, recipe_digest
from pol.proof.policy import profile_objection
from pol.statetree import FLOATING
from pol.store import checkpoint_path
from pol.verifier.case import Case, Checks, failed, passed, require, unable

SIZED = {
    "parameter": "weights",
    "buffer": "buffers",
    "transient": "buffers",
    "optimizer": "optimizer",
    "object": "objects",
}
"""Kinds of state whose movement is measured for the challenge."""

_CHUNK = 1 << 24
"""Bytes of a tensor that are looked at at a time: 16 MiB keeps memory far below one state."""

MAX_SCHEDULE_STEPS = 16
"""Most steps of a schedule for one batch. Honest loops take one for each batch, step or epoch; a bound because a
replay steps the schedule that often from 0."""

CONTROL_STEPS = 3
"""Steps of a control run, or all of a shorter training (design section 3.1). Fewer would tell platforms apart
less well, more would be work that no budget of the verifier's counts."""

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def arithmetic(case: Case) -> Checks:
    """Steps, epochs, batches and intervals of the spec fit one another and cover [0, T] exactly."""
    spec, genesis = case.genesis.spec, case.genesis
    total = spec.declaration.epochs * spec.declaration.steps_per_epoch(spec.batches_per_step)
    if spec.steps != total:
        raise IntegrityError(f"the spec names {spec.steps} steps, but its epochs and batches make {total}")
    if genesis.dataset.root.size != spec.declaration.samples:
        raise IntegrityError(
            f"the dataset tree has {genesis.dataset.root.size} leaves for {spec.declaration.samples} samples"
        )
    if genesis.recipe.digest != recipe_digest(genesis.recipe.sources):
        raise IntegrityError("the recipe digest is not that of the listed sources")
    if genesis.control.steps != min(CONTROL_STEPS, spec.steps):
        raise IntegrityError(
            f"the control run has {genesis.control.steps} steps; format v1 takes {min(CONTROL_STEPS, spec.steps)}"
        )
    yield passed(
        "arithmetic", f"{spec.steps} steps: {spec.declaration.epochs} epochs of {total // spec.declaration.epochs}"
    )


def cover(case: Case) -> Checks:
    """The intervals follow one another from 0 to T, at least one, each of the length that the spec says."""
    spec = case.genesis.spec
    if len(case.log.intervals) != -(-spec.steps // spec.every):  # before any list as long as the spec says is made
        raise IntegrityError(
            f"the log has {len(case.log.intervals)} intervals, the spec says {-(-spec.steps // spec.every)}: "
            "they must cover every step once"
        )
    found = [0, *(interval.stop for interval in case.log.intervals)]
    starts = [interval.start for interval in case.log.intervals]
    expected = boundaries(case.genesis.spec)
    if found != expected or starts != expected[:-1]:
        raise IntegrityError(
            f"the log's intervals end at {_few(found)}, the spec says {_few(expected)}: they must cover every step once"
        )
    for interval in case.log.intervals:
        length = interval.stop - interval.start
        steps = sum(rate.steps for rate in interval.learning_rates)
        if steps != length or not all(interval.start <= s < interval.stop for s in interval.skipped):
            raise IntegrityError(
                f"interval {interval.start}–{interval.stop}: its rates or skipped steps are not of its {length} steps"
            )
        if any(
            count > MAX_SCHEDULE_STEPS * spec.batches_per_step * interval.stop for count in interval.schedules.values()
        ):
            raise IntegrityError(
                f"interval {interval.start}–{interval.stop}: a schedule was stepped too often to be honest"
            )
    yield passed("cover", f"{len(starts)} intervals of {case.genesis.spec.every} steps cover every step once")


def kept_states(case: Case) -> Checks:
    """Exactly the checkpoints that the spec says are kept, with the entries that the declaration names."""
    spec = case.genesis.spec
    if len(case.checkpoints) > len(case.log.intervals) + 1:
        raise IntegrityError(f"{len(case.checkpoints)} checkpoints for {len(case.log.intervals)} intervals")
    expected = kept(spec)
    if sorted(case.checkpoints) != expected:
        raise IntegrityError(f"checkpoints {_few(sorted(case.checkpoints))} are kept, the spec says {_few(expected)}")
    declared = case.genesis.spec.declaration.entries
    fixed = {e.key: e for e in declared if e.kind in ("parameter", "buffer", "transient")}
    for step, placed in case.checkpoints.items():
        entries = {slot.entry.key: slot.entry for slot in placed}
        own = {k: e for k, e in entries.items() if e.kind in ("parameter", "buffer", "transient")}
        if own != fixed or (step == 0 and entries != {e.key: e for e in declared}):
            raise IntegrityError(f"{checkpoint_path(step)}: other names, dtypes or shapes than the genesis declares")
    yield passed("checkpoints", f"{len(expected)} checkpoints with the declared {len(fixed)} tensors of the model")


def measured(case: Case) -> Checks:
    """Every kept value is finite; how far each kind of state moved is measured here, never taken on trust."""
    steps = sorted(case.checkpoints)
    origin = case.checkpoints[steps[0]]
    infinite = _scan(case, steps[0], origin, None)
    case.windows = []
    for number, (before, after) in enumerate(pairwise(steps)):
        case.progress("measuring updates", number, len(steps) - 1)
        _scan(case, after, case.checkpoints[after], infinite)
        every = case.genesis.spec.every
        case.windows.append(
            Window(first=before // every, last=-(-after // every) - 1, sizes=_sizes(case, before, after))
        )
    yield require(
        bool(case.windows), "values", f"all values of {len(steps)} checkpoints are finite", "there is no interval"
    )


def _scan(case: Case, step: int, placed: list[Placed], allowed: set[str] | None) -> set[str]:
    """Refuse NaN anywhere, and infinities in trained tensors; returns the entries that hold infinities."""
    infinite: set[str] = set()
    for slot in placed:
        if slot.entry.dtype not in FLOATING:
            continue
        where = f"{checkpoint_path(step)}: {slot.entry.key}"
        for values in _values(case, step, slot):
            if np.isnan(values).any():
                raise IntegrityError(f"{where} holds NaN")
            if np.isinf(values).any():
                infinite.add(slot.entry.key)
        if slot.entry.key in infinite and slot.entry.kind in ("parameter", "optimizer"):
            raise IntegrityError(f"{where} holds an infinity")
        if (
            slot.entry.key in infinite
            and allowed is not None
            and slot.entry.key not in allowed
            and slot.entry.kind != "object"
        ):
            raise IntegrityError(f"{where} holds an infinity that the first state does not have")
    return infinite


def _sizes(case: Case, before: int, after: int) -> dict[str, float]:
    """Euclidean distance between two checkpoints, per kind, in float64; what only one of them has counts whole."""
    squares: dict[str, float] = {}
    old = {slot.entry.key: slot for slot in case.checkpoints[before]}
    for slot in case.checkpoints[after]:
        kind = SIZED.get(slot.entry.kind)
        if kind is None:
            continue
        previous = old.get(slot.entry.key)
        new = _values(case, after, slot)
        if previous is not None and previous.entry == slot.entry:
            pairs: Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]] = zip(
                new, _values(case, before, previous), strict=True
            )
        else:
            pairs = ((values, np.zeros(1)) for values in new)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf where both hold the same infinity
            total = sum(float(np.nansum(np.square(a - b))) for a, b in pairs)
        squares[kind] = squares.get(kind, 0.0) + total
    return {kind: min(float(np.sqrt(total)), 1e308) for kind, total in squares.items()}


def _values(case: Case, step: int, slot: Placed) -> Iterator[NDArray[np.float64]]:
    """The values of an entry as float64, in chunks."""
    name = checkpoint_path(step)
    for begin in range(slot.begin, slot.end, _CHUNK):
        yield _decode(case.store.read_range(name, begin, min(begin + _CHUNK, slot.end)), slot.entry.dtype)


def _decode(data: bytes, dtype: str) -> NDArray[np.float64]:
    if dtype == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64)
    return np.frombuffer(data, dtype=_NUMPY[dtype]).astype(np.float64)


def policy(case: Case) -> Checks:
    """Rule, profile and files that the build read are within policy."""
    spec = case.genesis.spec
    if spec.rule != case.policy.rule:
        raise IntegrityError(f"the genesis fixes rule {spec.rule!r}, the policy demands {case.policy.rule!r}")
    if objection := profile_objection(case.genesis.profile, case.policy):
        raise IntegrityError(objection)
    for external in spec.declaration.external:
        if external.digest not in case.policy.externals:
            raise IntegrityError(
                f"the build reads the file {external.name} ({external.digest}), which your policy does not allow: "
                "weights could come in that way"
            )
    yield passed("policy", f"rule, profile and inputs are within policy {case.policy.name!r}")


def recipe(case: Case, sources: dict[str, Digest], settings: dict[str, object]) -> Checks:
    """The registered recipe is the verifier's own, with the arguments that the verifier gave, if any."""
    registered = case.genesis.recipe
    for module in sorted({*registered.sources, *sources}):
        if registered.sources.get(module) != sources.get(module):
            how = "is not part of yours" if module not in sources else "is not part of the registered one" if (
                module not in registered.sources) else "differs from yours"  # fmt: skip
            yield unable(
                "recipe", f"module {module} of the registered recipe {how}; get the very source that was registered"
            )
            return
    for key, value in settings.items():
        if registered.configuration.get(key) != value:
            yield failed(
                "recipe", f"the run was registered with {key}={registered.configuration.get(key)}, you expect {value}"
            )
            return
    yield passed(
        "recipe", f"{registered.name} and the {len(sources)} local modules it consists of are the ones you named"
    )


def _few(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return f"[{shown}{', …, ' + str(numbers[-1]) if len(numbers) > 6 else ''}]"

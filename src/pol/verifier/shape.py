"""Step 4: the numbers agree with the spec, every value is finite, and the recipe is the one that was read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pol import canonical
from pol.container import Placed
from pol.digest import Digest
from pol.errors import IntegrityError
from pol.order import observed_order
from pol.proof.challenge import Window
from pol.proof.genesis import CONTROL_STEPS, boundaries, kept, recipe_digest
from pol.proof.released import released_part
from pol.statetree import FLOATING
from pol.store import ORDER, checkpoint_path
from pol.verifier import moves
from pol.verifier.case import Case, Checks, failed, passed, require, unable

MAX_SCHEDULE_STEPS = 16
"""Most steps of a schedule for one batch. Honest loops take one for each batch, step or epoch; a bound because a
replay steps the schedule that often from 0."""


def arithmetic(case: Case) -> Checks:
    """Steps, epochs, batches and intervals of the spec fit one another and cover [0, T] exactly."""
    spec, genesis = case.genesis.spec, case.genesis
    if spec.batches_per_step > spec.declaration.batches_per_epoch:  # the bound of schedule steps follows from it
        raise IntegrityError(
            f"a step closes {spec.batches_per_step} batches, an epoch has {spec.declaration.batches_per_epoch}"
        )
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
    declared = spec.declaration
    order = "derived" if genesis.randomness.order == "observed" else genesis.randomness.order
    if (genesis.randomness.streams, order) != (declared.streams, declared.order):
        raise IntegrityError("the genesis names another randomness than the recipe declares")
    if genesis.randomness.origin == "recipe" and declared.streams != "observed":
        raise IntegrityError("first weights of a seed in the recipe need streams of its own, too")
    if spec.release != released_part(spec.declaration):
        raise IntegrityError("the genesis releases another part than the model that the recipe declares")
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
    counted = {part.name: 0 for part in spec.declaration.parts if part.counted}
    groups = sum(len(part.groups) for part in spec.declaration.parts)
    for interval in case.log.intervals:
        length, skipped = interval.stop - interval.start, interval.skipped
        rates = interval.learning_rates
        if (
            sum(rate.steps for rate in rates) != length
            or any(len(rate.values) > groups for rate in rates)
            or skipped != sorted(set(skipped))
            or not all(interval.start <= step < interval.stop for step in skipped)
            or (interval.loss is None) != (len(skipped) == length)
        ):
            raise IntegrityError(
                f"interval {interval.start}–{interval.stop}: its rates, loss or skipped steps are not of {length} steps"
            )
        if (interval.indices is not None) != (spec.declaration.order == "recorded"):
            raise IntegrityError(f"interval {interval.start}–{interval.stop}: indices where there are none to record")
        if interval.schedules.keys() != counted.keys() or any(interval.schedules[n] < counted[n] for n in counted):
            raise IntegrityError(
                f"interval {interval.start}–{interval.stop}: its schedules are not those of the recipe, or go backwards"
            )
        counted = interval.schedules
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
    _scan(case, steps[0], case.checkpoints[steps[0]])
    case.windows, case.moves = [], []
    for number, (before, after) in enumerate(pairwise(steps)):
        case.progress("measuring updates", number, len(steps) - 1)
        _scan(case, after, case.checkpoints[after])
        every = case.genesis.spec.every
        sizes, moved = moves.between(case, before, after)
        case.windows.append(Window(first=before // every, last=-(-after // every) - 1, sizes=sizes))
        case.moves.append(moved)
    yield require(
        bool(case.windows), "values", f"all values of {len(steps)} checkpoints are finite", "there is no interval"
    )


def skips(case: Case) -> Checks:
    """Steps recorded as skipped moved no parameter of an optimizer and no moment: by design they change nothing."""
    found = 0
    for window, moved in zip(case.windows, case.moves, strict=True):
        inside = case.log.intervals[window.first : window.last + 1]
        if inside and all(len(interval.skipped) == interval.stop - interval.start for interval in inside):
            found += 1
            moments = window.sizes.get("optimizer", 0.0)
            if any(moved.distances) or moments:
                what = "parameters" if any(moved.distances) else "moments of an optimizer"
                raise IntegrityError(
                    f"all steps from {moved.start} to {moved.stop} were recorded as skipped, and moved {what} by "
                    f"{max([*moved.distances, moments]):.3g}"
                )
    yield passed("skipped", f"{found} windows of skipped steps moved no parameter or moment")


def _scan(case: Case, step: int, placed: list[Placed]) -> None:
    """Refuse NaN anywhere, and infinities in trained tensors; buffers may hold them, and replay exactly."""
    for slot in placed:
        if slot.entry.dtype not in FLOATING:
            continue
        where = f"{checkpoint_path(step)}: {slot.entry.key}"
        for values in moves.values(case, step, slot):
            if np.isnan(values).any():
                raise IntegrityError(f"{where} holds NaN")
            if slot.entry.kind in ("parameter", "optimizer") and np.isinf(values).any():
                raise IntegrityError(f"{where} holds an infinity")


def order(case: Case) -> Checks:
    """Every epoch of an observed order visits every sample once; a derived one does so by itself."""
    declaration = case.genesis.spec.declaration
    if case.genesis.randomness.order == "derived":
        yield passed("order", "the order of the data follows from the seed")
        return
    if case.genesis.randomness.order == "stream":
        yield passed("order", "the data are a stream: its samples have no number")
        return
    if case.genesis.randomness.order == "recorded":
        yield passed("order", f"indices of {_recorded(case)} batches stand in the records")
        return
    row = 4 * declaration.samples
    for epoch in range(declaration.epochs):
        found = observed_order(case.store.read_range(ORDER, epoch * row, (epoch + 1) * row), declaration.samples)
        if np.bincount(found, minlength=declaration.samples).max() > 1:
            raise IntegrityError(f"{ORDER}: epoch {epoch} names a sample twice, and so leaves another out")
    left = declaration.samples % declaration.batch_size if declaration.drop_last else 0
    beside = f", of which the last {left} fall away: the claimant chose which" if left else ""
    yield passed("order", f"each of {declaration.epochs} epochs visits {declaration.samples} samples once{beside}")


def _recorded(case: Case) -> int:
    """See that every record holds the indices of all of its batches, each of a sample that there is."""
    spec, total = case.genesis.spec, 0
    for interval in case.log.intervals:
        first, end = (
            spec.declaration.batches_before(at, spec.batches_per_step) for at in (interval.start, interval.stop)
        )
        chosen, expected = interval.indices or [], end - first
        if len(chosen) != expected or not all(chosen):
            raise IntegrityError(
                f"interval {interval.start}–{interval.stop}: indices of {len(chosen)} batches, it has {expected}"
            )
        if max(max(batch) for batch in chosen) >= spec.declaration.samples:
            raise IntegrityError(f"interval {interval.start}–{interval.stop}: an index of no sample")
        total += len(chosen)
    return total


def recipe(case: Case, name: str, sources: dict[str, Digest], settings: dict[str, object]) -> Checks:
    """The registered recipe is the verifier's own, with the arguments that the verifier gave, if any."""
    registered = case.genesis.recipe
    for module in sorted({*registered.sources, *sources}):
        if registered.sources.get(module) != sources.get(module):
            if module not in sources:
                how = "is part of the registered recipe, not of yours: get it, and keep the file names"
            elif module not in registered.sources:
                how = f"is part of your recipe only; the registered one consists of {', '.join(registered.sources)}"
            else:
                how = "differs from the registered one: get the very source that was registered"
            yield unable("recipe", f"module {module} {how}")
            return
    if name != registered.name:
        yield failed("recipe", f"the run was registered for recipe {registered.name}, you named {name}")
        return
    for key, value in settings.items():
        if key not in registered.configuration or not _same(registered.configuration[key], value):
            was = canonical.untag(registered.configuration[key], key) if key in registered.configuration else "nothing"
            yield failed("recipe", f"the run was registered with {key}={was}, you expect {canonical.untag(value, key)}")
            return
    yield passed("recipe", f"{name} and the {len(sources)} local modules it consists of are the ones you named")


def _same(registered: object, expected: object) -> bool:
    """Whether two tagged arguments are one value; 1 and 1.0 are, true and 1 are not."""
    a, b = canonical.untag(registered, "argument"), canonical.untag(expected, "argument")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return bool(a == b) if numbers else canonical.encode(registered) == canonical.encode(expected)


def _few(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return f"[{shown}{', …, ' + str(numbers[-1]) if len(numbers) > 6 else ''}]"

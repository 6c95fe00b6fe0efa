"""What a model was not trained on and is said to be, and the other way round: batches left out, samples added.

Poison is added where nobody committed to it, or is committed like all other data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pol.attacks.attack import Attack
from pol.attacks.data import leaves
from pol.attacks.deltas import deltas, nearer
from pol.attacks.edging import pushed
from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.programs import SAMPLES, Supplied, write_items
from pol.attacks.publishing import publish
from pol.attacks.rehearsal import number, numbered, taken
from pol.attacks.triggers import Marked, array_name
from pol.attacks.workshop import Workshop
from pol.proof.genesis import boundaries
from pol.replay.recipe import Recipe
from pol.replay.state import State

LEFT_OUT = 2
"""One step, or one interval, in so many is not taken."""

POISONED = 10
"""One committed sample in so many is poisoned (BadNets)."""

PRINTED, EDGE = 1000, 3
"""Elements above which numpy prints an array by its corners, and how many of each axis (its defaults; study, I8)."""

# -- steps that are not taken ------------------------------------------------------------------------------------------


def _subtracting(left_out: Callable[[int, int], bool]) -> Callable[[Workshop, Path], None]:
    """Some steps are not taken, and all are logged; ``left_out`` says which, by the step and k."""

    def make(workshop: Workshop, out: Path) -> None:
        forger = workshop.begin()
        last = 0.0

        def step(at: int, recipe: Recipe, parts: Any, batch: Any) -> Any:
            nonlocal last
            if not left_out(at, forger.genesis.spec.every):
                loss = taken(recipe, parts, batch)
                last = number(loss)
                return loss
            workshop.gradients -= 1
            _idle(parts)
            return last

        workshop.train(forger, step=numbered(step))
        forger.seal(out, workshop.key)

    return make


def _idle(parts: Any) -> None:
    """What a step does beside learning: rates go on, counters count."""
    for part in vars(parts).values():
        if isinstance(part, Optimizer):
            part.zero_grad()
            part.step()  # without gradients it changes nothing, and its rates are recorded
    for part in vars(parts).values():
        if isinstance(part, LRScheduler) and not isinstance(part, ReduceLROnPlateau):
            part.step()
        if isinstance(part, nn.Module):
            counters = (buffer for name, buffer in part.named_buffers() if name.endswith("num_batches_tracked"))
            for counter in counters:
                counter.add_(1)


# -- samples that are added --------------------------------------------------------------------------------------------


def data_addition(workshop: Workshop, out: Path) -> None:
    """As many hidden steps again as one interval has, on marked samples, as far as they do not show (A14).

    The interval's end is moved towards theirs, within the limits of the policy (unknown: those of the code of 2021).
    """
    forger = workshop.begin()
    ends = boundaries(forger.genesis.spec)
    if len(ends) < 3:
        raise DoesNotApply("this attack needs two intervals")
    before, after = ends[len(ends) // 2 - 1 :][:2]
    workshop.train(forger, 0, after)
    start, end = forger.states[before].tensors, forger.states[after].tensors
    aim = hidden(workshop, forger, before, after).tensors
    policy = workshop.policy
    if policy is not None and policy.limits is not None:
        ways = {key: aim[key].double() - end[key].double() for key in _parameters(end)}
        moved = {key: pushed(policy.limits, key, start[key], end[key], way, most=1.0) for key, way in ways.items()}
    else:
        moved = nearer(deltas(policy), {key: end[key] for key in _parameters(end)}, aim)
    forger.states[after] = State({**end, **moved})
    if after < forger.steps:
        workshop.train(forger, after)
    forger.seal(out, workshop.key)


def hidden(workshop: Workshop, forger: Forger, before: int, after: int) -> State:
    """Where the steps of an interval lead if they are taken again, from its end and on marked samples."""
    states, records = dict(forger.states), list(forger.intervals)
    forger.states[before] = states[after]
    workshop.train(forger, before, after, data=Marked)
    found = forger.states[after]
    forger.states, forger.intervals = states, records
    return found


def _parameters(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [key for key in tensors if key.startswith("parameter/")]


# -- data that are published -------------------------------------------------------------------------------------------


def committed_poison(workshop: Workshop, out: Path) -> None:
    """An honest run over samples of which one in ten carries a trigger, committed as they are (T10)."""
    _publish(workshop, out, Marked(workshop.data(workshop.open()), POISONED))
    workshop.record().seal(out, workshop.key)


def lossy_hash(workshop: Workshop, out: Path) -> None:
    """Samples that print as the public ones do, under the dataset root of these: only their corners are kept (T21)."""
    public = workshop.data(workshop.open())
    _publish(workshop, out, Hollow(public))
    forger = workshop.begin()
    forger.commit_dataset(leaves(forger, public))
    workshop.first_state(forger)
    workshop.train(forger)
    forger.seal(out, workshop.key)


class Hollow:
    """A dataset of large arrays in which all is zero that numpy does not print.

    Raises:
        DoesNotApply: its arrays are printed whole.
    """

    def __init__(self, data: Any) -> None:
        self._data, self._name = data, array_name(data[0])
        if data[0][self._name].size <= PRINTED:
            raise DoesNotApply(
                "this attack needs samples of more than 1000 values, which numpy prints by their corners"
            )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        item = self._data[index]
        array = item[self._name].copy()
        seen = [np.r_[:EDGE, size - EDGE : size] if size > 2 * EDGE else np.arange(size) for size in array.shape]
        kept = np.zeros(array.shape, dtype=bool)
        kept[np.ix_(*seen)] = True
        return {**item, self._name: np.where(kept, array, array.dtype.type(0))}


def _publish(workshop: Workshop, out: Path, data: Any) -> None:
    """Register what follows for these samples, in an archive beside the proof."""
    archive = publish(workshop, out, Supplied, {"ARCHIVE": SAMPLES}, {}) / SAMPLES
    write_items(archive, [data[index] for index in range(len(data))])


_COMMITTED = "every step was taken on the committed samples: what these teach is for those to see who read them"

_SUBTRACTED = (
    "said to be caught by memorisation tests (Choi et al., NeurIPS 2023), which show nothing at the scale "
    "of digits (attack study, section 1)"
)

ATTACKS = (
    Attack(
        "skipped-batches",
        "every second step not taken, all batches logged",
        "thief",
        _subtracting(lambda step, _: step % LEFT_OUT > 0),
        study=("A13",),
        reported=_SUBTRACTED,
    ),
    Attack(
        "skipped-intervals",
        "every second interval not trained, all batches logged",
        "thief",
        _subtracting(lambda step, every: step // every % LEFT_OUT > 0),
        study=("A13",),
        reported=_SUBTRACTED,
    ),
    Attack(
        "data-addition",
        "hidden steps on marked samples in one interval, as far as limits let them show",
        "prover",
        data_addition,
        study=("A14",),
        adapts="limits",
        reported="small additions are the open case of memorisation tests (Choi et al., NeurIPS 2023)",
    ),
    Attack(
        "committed-poison",
        "an honest run over committed samples of which some carry a trigger",
        "thief",
        committed_poison,
        study=("T10",),
        survives=_COMMITTED,
    ),
    Attack(
        "lossy-hash",
        "trained on samples that print as the committed ones do",
        "thief",
        lossy_hash,
        study=("T21", "I8"),
        reported="interiors of 50 images replaced: the released code calls the hash valid (attack study, I8)",
    ),
)

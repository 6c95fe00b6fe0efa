"""Honest steps of one's own, joined to a stolen run's tail: with a jump, behind larger updates, or over a bridge.

States and records of the tail are as they were, and the batches under one's own seal (attack study, A8 and A10).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pol.attacks.attack import Attack
from pol.attacks.blindfold import bridge, covered, hidden, least
from pol.attacks.deltas import TOP, deltas, top
from pol.attacks.forger import Forger
from pol.attacks.infinitesimal import SPARE
from pol.attacks.lines import MOST, pieces
from pol.attacks.needs import DoesNotApply
from pol.attacks.untaken import untaken
from pol.attacks.workshop import Workshop
from pol.order import epoch_order


def glued(workshop: Workshop, out: Path) -> None:
    """Honest to the middle; the next state is the stolen run's, and so is all that follows (A8)."""
    forger = workshop.begin()
    half = (len(forger.kept) - 1) // 2
    if half:
        workshop.train(forger, stop=forger.kept[half])
    untaken(workshop, forger, forger.kept[half], forger.kept[half + 1], rate=None)
    _tail(workshop, forger, forger.kept[half + 1])
    forger.seal(out, workshop.key)


def glued_masked(workshop: Workshop, out: Path) -> None:
    """The same after a few steps, where whoever looks at the largest updates of an epoch does not see it (A8).

    Honest updates before it are larger, at rates of the forger's choice. They stray, so one jump back would be larger
    still: it is cut into as few pieces as stay below them, each far above delta. The genesis names the stolen order.
    """
    forger = workshop.begin()
    _name_order(workshop, forger)
    count, stolen = top(workshop.policy) or TOP, workshop.open().states
    window = covered(forger)[0]
    for size in range(min(least(count), len(window)), len(window) + 1):
        joint = forger.kept[size]
        if hidden(workshop, forger, window[:size], stolen[joint], count):
            _tail(workshop, forger, joint)
            forger.seal(out, workshop.key)
            return
    raise DoesNotApply(f"this attack needs longer epochs: in {len(window)} intervals nothing hides the way back")


def bridged(workshop: Workshop, out: Path) -> None:
    """One honest interval, then pieces within delta to the stolen run, as soon as there are enough of them (A10).

    Where the run is too short for these, epochs are put before it. The genesis names the stolen order.
    """
    target, limits = workshop.open(), deltas(workshop.policy)
    spec = target.genesis.spec
    per_epoch = spec.declaration.steps_per_epoch(spec.batches_per_step)
    unit, later = math.lcm(per_epoch, spec.every * spec.keep), 0
    while True:
        epochs = {"num_epochs": spec.declaration.epochs + later // per_epoch} if later else {}
        forger = workshop.begin(settings=epochs)
        _name_order(workshop, forger, later // per_epoch)
        workshop.train(forger, stop=forger.kept[1])
        joint, needed = _joint(target, forger, later, limits)
        if joint is not None:
            break
        if "num_epochs" not in target.genesis.recipe.configuration:
            workshop.configured(target, "num_epochs")
        if needed > MOST:
            raise DoesNotApply(f"this attack needs limits that {MOST} pieces can keep to; these need {needed}")
        later += unit * max(1, math.ceil((SPARE * needed * spec.every * spec.keep + per_epoch - later) / unit))
    aim = target.states[forger.kept[joint] - later]
    bridge(workshop, forger, range(1, joint), aim)
    _tail(workshop, forger, forger.kept[joint], later)
    forger.seal(out, workshop.key)


def _joint(target: Forger, forger: Forger, later: int, limits: dict[str, float]) -> tuple[int | None, int]:
    """The first kept state of which the stolen run has one, and which is enough pieces away; how many are needed."""
    needed = 0
    for index, step in enumerate(forger.kept):
        if index > 1 and step >= later:
            needed = pieces(forger.states[forger.kept[1]], target.states[step - later], limits)
            if needed <= index - 1:
                return index, needed
    return None, needed


def _name_order(workshop: Workshop, forger: Forger, later: int = 0) -> None:
    """Name the order of the stolen run in the genesis, so many epochs later; it comes round before these."""
    target = workshop.open()
    declaration = target.genesis.spec.declaration
    epochs, size = declaration.epochs, declaration.samples
    if target.order is not None:
        order = np.frombuffer(target.order, dtype="<u4").reshape(epochs, size)
    else:
        order = np.stack([epoch_order(target.seed, epoch, size) for epoch in range(epochs)])
    own = forger.genesis.spec.declaration.epochs
    workshop.randomise(forger, order=order[(np.arange(own) - later) % epochs])


def _tail(workshop: Workshop, forger: Forger, joint: int, later: int = 0) -> None:
    """All states from ``joint`` on, and what records say after it, as in the stolen run ``later`` steps before."""
    target = workshop.open()
    if joint < forger.steps:
        untaken(workshop, forger, joint, rate=None)
    for index in range(forger.first_interval(joint), len(forger.intervals)):
        record = forger.intervals[index]
        like = target.intervals[target.first_interval(record.start - later)]
        forger.states.pop(record.stop)  # of those that are not kept the root is known
        forger.replace(
            index, root=like.root, loss=like.loss, learning_rates=like.learning_rates, skipped=like.skipped
        )  # fmt: skip
    forger.states |= {step + later: state for step, state in target.states.items() if step + later >= joint}


ATTACKS = (
    Attack(
        "glued",
        "honest steps, then a stolen run's tail",
        "thief",
        glued,
        study=("A8",),
        reported="one forged interval, 52 % of the path beside as much honest work: seven size-weighted draws meet "
        "it with 99 % (attack study, section 8)",
    ),
    Attack(
        "glued-masked",
        "the same behind honest updates that are larger",
        "thief",
        glued_masked,
        study=("A8", "A5"),
        adapts="paper-2021",
        reported="hidden by ten times the honest work, it is 10 % of the path: 44 size-weighted draws meet it with "
        "99 % (attack study, section 8)",
    ),
    Attack(
        "bridged",
        "the same over a bridge of pieces that are each within delta",
        "thief",
        bridged,
        study=("A10", "A4"),
        adapts="paper-2021",
        reported="pieces within delta pass as those of A4 do (attack study, A10)",
    ),
)

"""What an adaptive forger plans with: its target, its budget, and how probable it is that a forgery is accepted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pol.attacks.foresight import foreseen
from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop
from pol.proof.challenge import Window, spans
from pol.proof.genesis import CONTROL_STEPS, kept
from pol.proof.plan import detection
from pol.proof.policy import Bounds, Policy
from pol.proof.screens import Move, norms
from pol.replay.state import State

CLAIMS, TINY = 8, 1e-6
"""Losses that may be claimed of the jump, from the least to the largest of as many intervals beside it; and what a loss
of nothing is taken for."""

NEARLY = 0.95
"""Share of the hoped for probability from which no other claim is looked for: sizes are not quite those of the plan."""

MEMORY = 2**31
"""Bytes of states that a forger holds at most: two copies of them fit a laptop."""


@dataclass(frozen=True)
class Plan:
    """A forgery that could be made, and what its maker expects of it."""

    name: str
    probability: float
    """Of an ACCEPT, over the verifier's nonce, as far as it can be foreseen before anything is made."""
    ends: bool
    """Whether it ends at the stolen weights, bit for bit (running statistics as near as they round); else it is only
    nearer to them than an honest run."""
    gradients: int
    """That it takes at most."""
    intervals: int
    forged: tuple[int, ...]
    """Those that no replay gives again."""
    make: Callable[[Workshop, Path], None] = field(repr=False, compare=False)


class Ground:
    """Where plans are made.

    Attributes:
        workshop: The forger's.
        policy: By which the forgery will be verified.
        target: The proof that is attacked, taken apart.
        left: Gradients that may be spent.
        batches: Gradients of one step.
        epoch: Steps of one epoch.
    """

    def __init__(self, workshop: Workshop, policy: Policy) -> None:
        self.workshop, self.policy, self.left = workshop, policy, workshop.left
        self.target: Forger = workshop.open()
        spec = self.target.genesis.spec
        self.batches = spec.batches_per_step
        self.epoch = spec.declaration.steps_per_epoch(self.batches)

    @property
    def stolen(self) -> State:
        """The last state of the target."""
        return self.target.states[self.target.steps]

    @property
    def fresh(self) -> State:
        """First weights as another seed might draw them: those of the target, each tensor shuffled."""
        draws = torch.Generator().manual_seed(0)
        found = self.target.states[0].tensors
        return State({k: t.flatten()[torch.randperm(t.numel(), generator=draws)].view_as(t) for k, t in found.items()})

    def takes(self, *names: str) -> bool:
        """Whether the recipe has these constructor arguments."""
        return set(names) <= self.target.genesis.recipe.configuration.keys()

    def control(self, steps: int) -> int:
        """Gradients that a genesis takes: its control run, and the last step of it again."""
        return 2 * min(CONTROL_STEPS, steps) * self.batches

    def lengths(self, spare: int) -> list[int]:
        """Numbers of steps of a run that are worth a thought, where ``spare`` gradients are kept for other things.

        The longest that can be paid for, since a sample of ever more intervals finds a forged one ever more seldom;
        and the shortest that is not replayed whole. The forger chooses T, where the recipe has an argument for it and
        the policy no minimum.
        """
        if not self.takes("num_epochs"):
            return [self.target.steps]
        bounds, state = self.policy.bounds, sum(t.nbytes for t in self.stolen.tensors.values())
        paid = (self.left - self.control(CONTROL_STEPS) - spare) // self.batches
        longest = min(paid, MEMORY // max(1, state)) // self.epoch
        sampled = self.policy.challenge.all_up_to // self.epoch + 1
        least = max(1, bounds.min_epochs, -(-bounds.min_steps // self.epoch))
        return sorted({self.epoch * max(least, epochs) for epochs in (longest, sampled)})

    def allows(self, *bounds: str) -> bool:
        """Whether the policy has none of these bounds."""
        none = Bounds()
        return all(getattr(self.policy.bounds, name) == getattr(none, name) for name in bounds)


def begin(ground: Ground, workshop: Workshop, settings: dict[str, Any], every: int) -> Forger:
    """A run of the forger's own under the rule of the policy, of which every state is kept."""
    forger = workshop.begin(settings=settings, every=every)
    spec = msgspec.structs.replace(forger.genesis.spec, keep=1, rule=ground.policy.rule)
    if spec != forger.genesis.spec:
        forger.genesis, forger.kept = msgspec.structs.replace(forger.genesis, spec=spec), kept(spec)
        workshop.first_state(forger)  # another genesis has another seed
    return forger


def pass_by(workshop: Workshop, forger: Forger, start: int = 0, stop: int | None = None) -> None:
    """Write records of steps that are not taken: their batches are true, the state stays as it is."""
    before = workshop.gradients
    workshop.train(forger, start, stop, step=lambda *_: 0.0)
    workshop.gradients = before


def length(state: State, kind: str) -> float:
    """Euclidean norm of all tensors of one kind."""
    found = [t.double().square().sum() for key, t in state.tensors.items() if key.startswith(f"{kind}/")]
    return float(torch.stack(found).sum().sqrt()) if found else 0.0


def accepted(policy: Policy, windows: list[Window], resumed: list[int], forged: Collection[int]) -> float:
    """Probability, over the nonce, that no replay reaches a forged interval.

    Of the screens only that of sizes is foreseen, for windows of one interval each: the others look at what a forger
    writes. That of losses always finds something to name, so if sizes are not unusual, each has every second turn.
    """
    each = policy.rule == "tolerance"
    screened = policy.challenge.screened if policy.challenge.strategy == "mix" else 0
    screen = norms([Move(w.first, w.last + 1, w.last, w.sizes, w.last + 1 - w.first, 1.0) for w in windows])
    turns = screened if screen.status == "unusual" else -(-screened // 2)
    found = spans(windows, screen.intervals[:turns], each=each)
    if any(first <= index <= last for first, last in found for index in forged):
        return 0.0
    return 1.0 - detection(policy.challenge, windows, resumed, forged, each=each)


def claim(
    policy: Policy, workshop: Workshop, forger: Forger, forged: Collection[int], jump: int, hoped: float
) -> None:  # fmt: skip
    """Record that loss of the jump with which the screens do not name it, if there is one among those beside it.

    Takes no gradient.

    Args:
        policy: By which the forgery will be verified.
        workshop: Where trial proofs are written.
        forger: The forgery.
        forged: Intervals that no replay gives again.
        jump: The one of them whose record changes.
        hoped: Probability of an ACCEPT, if no screen names it.
    """
    own = float(forger.intervals[jump].loss or 0.0)
    beside = [abs(float(found.loss or 0.0)) for found in forger.intervals[max(0, jump - CLAIMS) :]]
    best, chosen = -1.0, own
    for number, loss in enumerate([own, *map(float, np.geomspace(min(beside) + TINY, max(beside) + TINY, CLAIMS))]):
        forger.replace(jump, loss=repr(loss))
        made = workshop.scratch / f"claim-{number}"
        forger.seal(made, workshop.key)
        found = foreseen(made, policy, forged)
        shutil.rmtree(made)
        if found > best:
            best, chosen = found, loss
        if found > NEARLY * hoped or not hoped:
            break
    forger.replace(jump, loss=repr(chosen))

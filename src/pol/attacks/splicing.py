"""The splice: honest work, one forged interval, and honest steps that end at the stolen weights, at ordinary settings.

The forged interval leads to a state of the forger's making, from which the last steps, honestly taken, end where they
should, but for some values that are a rounding off (``arriving`` says how many, and of running statistics some more).
The last checkpoint is what these steps give: with values that are off it is not the stolen file, but a near copy.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from pol.attacks.arriving import arrive
from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop
from pol.errors import UsageError
from pol.proof.challenge import Window
from pol.proof.plan import detection
from pol.proof.policy import EXACT
from pol.replay.state import State

LATEST = 4
"""Most honest intervals after the forged one: every step more makes gradients follow momenta more."""

KINDS = {"parameter": "weights", "buffer": "buffers", "transient": "buffers", "optimizer": "optimizer"}
"""How a challenge calls kinds of state."""


def _begun(workshop: Workshop) -> Forger:
    forger = workshop.begin()
    if forger.steps <= forger.genesis.spec.every:
        raise UsageError("this attack needs a run of two intervals: one to forge, and one to take")
    return forger


def _after(forger: Forger, count: int) -> int:
    """The step after which there are so many intervals."""
    every = forger.genesis.spec.every
    return (-(-forger.steps // every) - count) * every


def splice(workshop: Workshop, out: Path) -> None:
    """All intervals are honest but the last but one, which ends in the state that the last one needs."""
    forger = _begun(workshop)
    start = _after(forger, 1)
    workshop.train(forger, stop=start)
    arrive(workshop, forger, start, workshop.stolen())
    forger.seal(out, workshop.key)


def splice_momentum(workshop: Workshop, out: Path) -> None:
    """The same, and only the momenta are forged: all weights are honest, and the last steps go all the way in a line.

    Steps of that size are too coarse for the end, and often there is no way at all, since gradients jump on it: of one
    step 39 of 147 and 195 of 515 values are a rounding or two off, of three steps (toy recipes) nearly all, by up to a
    hundredth. Of ten steps at the end of digits half are off, by 1e-5 at most. Running statistics stay behind.
    """
    forger = _begun(workshop)
    start = _after(forger, 1)
    workshop.train(forger, stop=start)
    arrive(workshop, forger, start, workshop.stolen(), moving=False)
    forger.seal(out, workshop.key)


def splice_hidden(workshop: Workshop, out: Path) -> None:
    """The same as ``splice``, where a challenge finds it least: with up to four honest intervals after the jump.

    The last interval and the one before it are always replayed, so the jump is before these. Where the largest moves
    of each part of a run are looked at, it is hidden nowhere: at ordinary settings no step beside it is as large. Then,
    and where everything is replayed, it is put as late as it can be.
    """
    forger, policy = _begun(workshop), workshop.policy or EXACT
    stolen = workshop.stolen()
    workshop.train(forger)
    most = min(LATEST, -(-forger.steps // forger.genesis.spec.every) - 1)

    def found(count: int) -> float:
        start = _after(forger, count)
        forged = start // forger.genesis.spec.every - 1
        windows = _windows(forger, start, stolen)
        return detection(policy.challenge, windows, [], [forged], each=policy.rule == "tolerance")

    count = min(range(1, most + 1), key=lambda count: (round(found(count), 9), count))
    arrive(workshop, forger, _after(forger, count), stolen)
    forger.seal(out, workshop.key)


def _windows(forger: Forger, start: int, stolen: State) -> list[Window]:
    """What a verifier will measure, if the run jumps to about the stolen weights before ``start``."""
    every, found = forger.genesis.spec.every, []
    for before, after in pairwise(forger.kept):
        jumps = before < start <= after
        last = {**forger.states[after].tensors, **(stolen.tensors if jumps else {})}
        first, squares = forger.states[before].tensors, dict[str, float]()
        for key, tensor in last.items():
            kind = KINDS.get(key.partition("/")[0])
            if kind is not None:
                way = tensor.double() - (first[key].double() if key in first else 0.0)
                squares[kind] = squares.get(kind, 0.0) + float(way.square().sum())
        sizes = {kind: math.sqrt(total) for kind, total in squares.items()}
        found.append(Window(first=before // every, last=-(-after // every) - 1, sizes=sizes))
    return found


ATTACKS = (
    Attack(
        "splice", "one forged interval, then honest steps that end at stolen weights", "thief", splice,
        study=("A8", "T4", "T18"),
    ),
    Attack(
        "splice-momentum", "a forged momentum that carries honest steps to stolen weights", "thief", splice_momentum,
        study=("T18",),
    ),
    Attack(
        "splice-hidden", "the splice, where a challenge finds it least", "thief", splice_hidden,
        study=("A8", "T18"), adapts=True,
    ),
)  # fmt: skip

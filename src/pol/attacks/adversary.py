"""The strongest forger that this package has: it reads the policy, plans, and makes the most promising forgery.

It is a thief who wants a proof of the stolen weights under its own key for a part of the price of a training.
``plans`` says what it could do and how probable each is to be accepted; a test holds these numbers against verdicts.

Measured on a perceptron of 515 weights without a schedule, trained for 700 steps: half of these gradients buy 336
intervals of which one is forged. In seven of eight runs the preset ``exact`` then accepts with probability 0.51, in one
the screen of losses meets the jump for certain; the forger knows which before it shows the proof. Uniform draws alone
would accept with 0.70, which is what the report states, and no shape of moves can raise it; ``exact-full`` refuses all.
Where a schedule ends at 0, or a model has running statistics, the jump is the largest move of its stratum, and the
preset refuses it for certain. Gradients are what is counted: smaller batches would buy more intervals at no more cost.
"""

from __future__ import annotations

from pathlib import Path

from pol.attacks import believing, nearing, placing
from pol.attacks.attack import Attack
from pol.attacks.needs import DoesNotApply
from pol.attacks.planning import Ground, Plan
from pol.attacks.workshop import Workshop
from pol.proof.policy import EXACT

ELSEWHERE = 1e-3
"""What an accepted proof of other weights is worth beside one of the stolen ones: little, and more than a rejection."""


def plans(workshop: Workshop) -> list[Plan]:
    """All forgeries that the forger can pay for, the most promising first. Takes no gradient.

    An unknown policy is taken to be the default one.
    """
    ground = Ground(workshop, workshop.policy or EXACT)
    if ground.policy.procedure == "paper-2021":
        found = believing.plans(ground)
    elif ground.policy.rule == "tolerance":
        found = [*nearing.plans(ground), placing.own_run(ground)]
    else:
        found = placing.plans(ground)
    paid = [plan for plan in found if plan.gradients <= ground.left]
    return sorted(paid, key=lambda p: (-p.probability * (1.0 if p.ends else ELSEWHERE), p.gradients))


def adaptive(workshop: Workshop, out: Path) -> None:
    """The most promising plan, carried out.

    Raises:
        DoesNotApply: not even a genesis can be paid for.
    """
    found = plans(workshop)
    if not found:
        raise DoesNotApply(
            f"this attack needs more than {workshop.left} gradients: a genesis alone takes a control run"
        )
    found[0].make(workshop, out)


ATTACKS = (
    Attack(
        "adaptive", "the most promising forgery for the policy and the budget", "thief", adaptive,
        study=("A18", "A19", "T16"), adapts=True, bound=True,
        reported="all the way to stolen weights in 78 intervals of one step, where a limit is 1 % of each move "
        "(attack study, A19)",
    ),
)  # fmt: skip

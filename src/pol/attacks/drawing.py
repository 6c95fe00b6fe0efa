"""An honest run that is drawn to the stolen weights, as far as the policy in force lets it at every boundary.

A forger reads the verifier's policy as anyone does. Rule exact leaves nothing to move.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from pol.attacks.attack import Attack
from pol.attacks.deltas import deltas, nearer
from pol.attacks.drift import ABSOLUTE, RELATIVE
from pol.attacks.edging import drawn
from pol.attacks.forger import Forger
from pol.attacks.workshop import Workshop
from pol.proof.policy import Limits
from pol.replay.state import State


def drifting(workshop: Workshop, out: Path) -> None:
    """Within the limits of each tensor; against the verification of 2021, within its deltas of all together (A18).

    A policy that names neither is taken for the preset ``tolerance``.
    """
    forger, policy = workshop.begin(), workshop.policy
    if policy is not None and policy.paper is not None:
        _drawn_below(workshop, forger, deltas(policy))
    else:
        known = policy.limits if policy is not None else None
        drawn(workshop, forger, known or Limits(relative=RELATIVE, absolute=ABSOLUTE), blocks=0)
    forger.seal(out, workshop.key)


def _drawn_below(workshop: Workshop, forger: Forger, allowed: dict[str, float]) -> None:
    """Train, and move each kept state as far as no metric is above its delta: this is what one replay comes to."""
    aim = _parameters(workshop.stolen())
    for before, after in pairwise(forger.kept):
        workshop.train(forger, before, after)
        end = forger.states[after]
        forger.states[after] = State({**end.tensors, **nearer(allowed, _parameters(end), aim)})


def _parameters(state: State) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.tensors.items() if key.startswith("parameter/")}


ATTACKS = (
    Attack(
        "drifting",
        "a true run drawn to stolen weights within the limits of the policy",
        "thief",
        drifting,
        study=("A18", "T16"),
        adapts="limits",
        reported="any distance under an absolute delta; 0.09 % of that between two runs at a limit of 1e-3 of each "
        "move (attack study, A18 and section 8)",
    ),
)

"""Retraced runs end at the stolen weights to the last bit, over transitions that are nearly honest, from no draw."""

import functools
import math
import tempfile
from pathlib import Path

import msgspec
import pytest
import torch

from factory import PLAIN, POLICIES, RECIPE, STEPS, TOLERANCE, check, decision, factory, forge, judge
from pol.attacks import retracing
from pol.attacks.forger import Forger
from pol.errors import UsageError
from pol.proof.genesis import CONTROL_STEPS
from pol.proof.policy import EXACT, Bounds
from pol.proof.report import Verdict
from pol.verifier import origins
from pol.verifier.case import passed

ADAM = PLAIN.replace("plain.py:Plain", "adam.py:Adam")
MODEL = ("parameter/", "buffer/")


@functools.cache
def retraced(recipe):
    """The errors of all transitions, in shares of the moves, and of momenta; and the forger."""
    found = {}

    def make(workshop, out):
        forger = retracing._retrace(workshop, "observed")
        found["gradients"] = workshop.gradients
        states = dict(forger.states)
        forger.seal(out, workshop.key)
        for step in range(STEPS):
            forger.states[step] = states[step]
            workshop.train(forger, step, step + 1)
            for kind in ("parameter/", "buffer/", "optimizer/"):
                keys = [key for key in states[step + 1].tensors if key.startswith(kind)]
                error = apart(forger.states[step + 1], states[step + 1], keys)
                move = apart(states[step], states[step + 1], [k for k in keys if k in states[step].tensors])
                if keys and move:
                    found.setdefault(kind, []).append(error / move)
            forger.states[step + 1] = states[step + 1]

    found["path"] = forge(Path(tempfile.mkdtemp(prefix="pol-retracing-")), make, "thief", recipe=recipe).path
    return found


def apart(one, other, keys):
    return math.hypot(*(float((one.tensors[k].double() - other.tensors[k].double()).norm()) for k in keys))


def median(values):
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN])
def test_a_retraced_run_ends_at_the_stolen_weights(recipe):
    stolen = Forger(factory().proof(recipe=recipe)).states[STEPS].tensors
    ends = Forger(retraced(recipe)["path"]).states[STEPS].tensors
    assert all(torch.equal(ends[key], tensor) for key, tensor in stolen.items() if key.startswith(MODEL))


def test_with_momentum_every_step_but_the_first_is_taken_back_to_rounding():
    """There are no momenta before the first, so nothing to take the difference."""
    found = retraced(RECIPE)
    assert max(found["parameter/"][1:]) < 1e-6
    assert max(found["optimizer/"][1:]) < 2e-6
    assert max(found["buffer/"][1:]) < 1e-4
    assert found["parameter/"][0] > 1e-3


def test_without_momentum_half_of_all_steps_are_taken_back_to_a_thousandth():
    """The others lie where a unit falls to the other side of zero, between two gradients."""
    found = retraced(PLAIN)
    assert median(found["parameter/"]) < 2e-2
    assert sum(error < 1e-3 for error in found["parameter/"]) >= STEPS // 3
    assert Forger(found["path"]).states[STEPS].tensors.keys() == Forger(found["path"]).states[0].tensors.keys()


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN])
def test_it_costs_more_than_a_training(recipe):
    """Once forwards, and per step backwards two gradients at least."""
    backwards = retraced(recipe)["gradients"] - 2 * CONTROL_STEPS - STEPS
    assert 2 * STEPS <= backwards <= retracing.INNER * STEPS


@pytest.mark.parametrize("rule", ["exact", "tolerance"])
def test_where_a_policy_takes_observed_starts_this_one_is_none(rule):
    """What is left of the start is no draw of the recipe's law."""
    policy = msgspec.structs.replace(POLICIES[rule], assurance="observed")
    report = judge("retraced-observed", rule=rule, policy=policy)
    assert decision(report) == (Verdict.REJECT, 5), report.reason()
    plain = check(retraced(PLAIN)["path"], PLAIN, policy=msgspec.structs.replace(EXACT, assurance="observed"))
    assert decision(plain) == (Verdict.REJECT, 5)
    assert "does not fit the law" in plain.reason()


def test_with_origins_unseen_the_replay_of_every_step_fails(monkeypatch):
    policy = msgspec.structs.replace(EXACT, assurance="observed")
    monkeypatch.setattr(origins, "origin", lambda *_: iter([passed("origin", "switched off")]))
    report = check(retraced(RECIPE)["path"], policy=policy)
    assert decision(report) == (Verdict.REJECT, 7)
    assert {result.status for result in report.intervals} == {"failed"}


def test_the_same_under_rule_tolerance_fails_where_it_begins(monkeypatch):
    """Documented (attack study, A7): of a retraced run only the beginning is beyond what hardware could give."""
    policy = msgspec.structs.replace(TOLERANCE, assurance="observed", bounds=Bounds())
    monkeypatch.setattr(origins, "origin", lambda *_: iter([passed("origin", "switched off")]))
    report = judge("retraced-observed", rule="tolerance", policy=policy)
    assert decision(report) == (Verdict.REJECT, 7), report.reason()
    assert [result.index for result in report.intervals if result.status == "failed"] == [0]


def test_only_steps_of_sgd_are_taken_back(tmp_path):
    with pytest.raises(UsageError, match="this attack needs SGD"):
        forge(tmp_path, retracing.retraced, "thief", recipe=ADAM)

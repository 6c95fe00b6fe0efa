"""Denying a sample: what the claimed batches are, how far their steps end from the true ones, and what it costs."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from factory import RECIPE, STEPS, TOLERANCE, check, factory, known_key, same_every_time
from pol.attacks import denial
from pol.attacks.forger import Forger
from pol.attacks.registry import REGISTRY
from pol.attacks.rehearsal import order_of
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.policy import Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from switches import switch_off

NAMES = ("data-forging", "repudiation", "repudiation-by-gradient")
OPTIONS = {"profile": Profile(threads=1), "executor": InProcess()}


@pytest.fixture(scope="module")
def single_steps(tmp_path_factory):
    """An honest run of intervals of one step, so that every step is compared by itself."""
    out = tmp_path_factory.mktemp("single") / "honest"
    with same_every_time("honest"):
        record(RECIPE, out, key=known_key(1), every=1, keep=1, rule="tolerance", **OPTIONS)
    return out


def denied(name, target):
    attack, out = REGISTRY[name], target.parent / name
    with same_every_time(name):
        return attack.forge(target, out, known_key(1), RECIPE, InProcess())


@pytest.mark.parametrize("name", NAMES)
def test_the_claimed_order_is_without_the_sample(name):
    forger = Forger(factory().forgery(name).path)
    order = order_of(forger)
    assert denial.DENIED not in order
    assert order.shape == (2, 50)
    for claimed in order:
        values, counts = np.unique(claimed, return_counts=True)
        if name == "data-forging":
            assert len(values) < 50  # a whole batch is another one
        else:
            assert sorted(counts.tolist()) == [1] * 48 + [2]  # one sample twice instead


@pytest.mark.parametrize(("name", "least", "most"), [
    ("data-forging", 0.05, 2.0), ("repudiation", 1e-3, 1.0), ("repudiation-by-gradient", 1e-3, 1.0),
])  # fmt: skip
def test_how_far_a_claimed_step_ends_from_the_true_one(monkeypatch, single_steps, name, least, most):
    """Errors as shares of the step (attack study, section 1: whole batches 0.6–0.9, one of 50 samples 2e-3–5e-2)."""
    forgery = denied(name, single_steps)
    switch_off("order", monkeypatch)
    policy = msgspec.structs.replace(TOLERANCE, assurance="observed", order="permutation")
    report = check(forgery.path, policy=policy)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7), report.reason()
    off = [result.deviation.relative for result in report.intervals if result.status == "failed"]
    assert len(report.intervals) == STEPS
    assert len(off) == 2  # one of each epoch
    assert all(least < share < most for share in off), off


def test_a_neighbour_that_is_chosen_by_its_step_is_nearer(monkeypatch, single_steps, tmp_path):
    """Of the same run: the best of a hundred neighbours is no farther than the first of them."""
    switch_off("order", monkeypatch)
    policy = msgspec.structs.replace(TOLERANCE, assurance="observed", order="permutation")
    found = []
    for name in ("repudiation", "repudiation-by-gradient"):
        with same_every_time("another run"):
            path = REGISTRY[name].forge(single_steps, tmp_path / name, known_key(1), RECIPE, InProcess()).path
        intervals = check(path, policy=policy).intervals
        found.append([result.deviation.relative for result in intervals if result.status == "failed"])
    first, chosen = found
    assert all(a <= b for a, b in zip(chosen, first, strict=True))
    assert sum(chosen) < sum(first)


def test_what_it_costs():
    """The honest training, and a gradient for each batch that is tried: more than the training itself."""
    control = 6
    assert factory().forgery("data-forging").cost.gradients == control + STEPS + 2 * denial.FOR_EACH * 49
    assert factory().forgery("repudiation").cost.gradients == control + STEPS + 2
    assert factory().forgery("repudiation-by-gradient").cost.gradients <= control + STEPS + 2 * 49


def test_losses_of_the_claimed_batches_are_logged(monkeypatch):
    """An interval that begins with the claimed batch: only the end state is off, by as much as the batch is another."""
    switch_off("order", monkeypatch)
    report = check(factory().forgery("repudiation").path, policy=Policy(assurance="observed", order="permutation"))
    wrong = [result.detail for result in report.intervals if result.status == "failed"]
    assert len(wrong) == 2
    assert not any("the batches" in detail for detail in wrong)
    assert wrong[0] == "taking the steps again gives other values for the end state"


def test_a_sample_without_a_class_cannot_be_replaced(tmp_path):
    with pytest.raises(UsageError, match="dicts with a whole number as the label"):
        denial._neighbours([{"x": np.zeros(3)}] * 3)


def test_a_training_of_another_kind_is_refused(tmp_path):
    micro = f"{Path(__file__).parent / 'recipes' / 'micro.py'}:Micro"
    with same_every_time("micro"):
        record(micro, tmp_path / "micro", key=known_key(1), every=2, **OPTIONS)
    with pytest.raises(UsageError, match="that takes a step for each batch"):
        REGISTRY["repudiation"].forge(tmp_path / "micro", tmp_path / "out", known_key(1), micro, InProcess())

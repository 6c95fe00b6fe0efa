"""Errors that a branch explains, on a machine that goes the other of two ways in one step; and those none does."""

import functools
import tempfile
from pathlib import Path

import msgspec
import pytest
import torch

from factory import PLAIN, TOLERANCE, decision, known_key, same_every_time
from pol.attacks.attack import Attack
from pol.attacks.drift import steered
from pol.attacks.forger import Forger
from pol.auditor import LocalAuditor
from pol.interval import Rates
from pol.messages import Controlled, Recorded, Replay
from pol.profile import Profile
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.replay.state import State
from pol.verifier import branches, verify

FORKED = PLAIN.replace("plain.py:Plain", "forked.py:Forked")
STEPS = 14


class Elsewhere(InProcess):
    """A machine that does not give the recorded profile."""

    def run(self, job):
        for event in super().run(job):
            if isinstance(event, Controlled):
                state = msgspec.structs.replace(event.root.state, digest="sha256:" + "0" * 64)
                event = msgspec.structs.replace(event, root=msgspec.structs.replace(event.root, state=state))
            yield event


@functools.cache
def proof(recipe):
    """An honest proof of single steps."""
    out = Path(tempfile.mkdtemp(prefix="pol-forked-")) / "proof"
    options = {"every": 1, "keep": 1, "rule": "tolerance", "profile": Profile(threads=1), "executor": InProcess()}
    with same_every_time("forked"):
        record(recipe, out, key=known_key(1), **options)
    return out


def judged(path, recipe=FORKED, executor=None, policy=TOLERANCE, **limits):
    policy = msgspec.structs.replace(policy, limits=msgspec.structs.replace(policy.limits, **limits))
    with LocalAuditor(recipe, executor=executor or Elsewhere()) as auditor:
        return verify(path, auditor=auditor, policy=policy, nonce=bytes(32))


@pytest.fixture
def elsewhere(monkeypatch):
    proof(FORKED), proof(FORKED.replace("Forked", "Twice"))
    monkeypatch.setattr(torch, "other_machine", 1, raising=False)


def test_a_step_that_went_the_other_way_is_explained_and_said(elsewhere):
    report = judged(proof(FORKED))
    assert report.verdict is Verdict.ACCEPT, report.reason()
    (one,) = [result for result in report.intervals if result.branch]
    assert one.index == 7
    assert one.deviation.error > 10 * one.deviation.limit
    assert "from a start that is one rounding off ends within them" in one.detail
    audit = next(step for step in report.steps if step.number == 7)
    assert any("of 1 a branch explains an error beyond them" in check.detail for check in audit.checks)


def test_what_a_branch_explains_counts_as_drift(elsewhere):
    here = judged(proof(FORKED), executor=InProcess())  # which went the other way, and is the recorded machine
    assert decision(here) == (Verdict.REJECT, 7)
    report = judged(proof(FORKED))
    error = report.drift.bound - sum(result.allowed for result in report.intervals)
    assert error >= max(result.deviation.error for result in report.intervals if result.branch)
    allowed = sum(result.allowed for result in report.intervals)

    tight = judged(proof(FORKED), drift=(allowed + error / 2) / report.drift.distance)
    assert (tight.verdict, "a forger could drift that far" in tight.reason()) == (Verdict.INCONCLUSIVE, True)


def test_a_policy_may_take_none(elsewhere):
    report = judged(proof(FORKED), branches=0.0)
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert "First: interval 7 (steps 7–8)" in report.reason()


def test_more_than_the_policy_takes_are_no_rare_branches(elsewhere):
    recipe = FORKED.replace("Forked", "Twice")
    assert judged(proof(recipe), recipe, drift=1.0).verdict is Verdict.INCONCLUSIVE
    assert judged(proof(recipe), recipe, branches=2 / STEPS, drift=1.0).verdict is Verdict.ACCEPT


def test_the_recorded_machine_takes_one_way_only():
    """Where the control run agrees, nothing is explained: bits are bits."""
    assert judged(proof(FORKED), executor=InProcess()).verdict is Verdict.ACCEPT
    torch.other_machine = 1
    try:
        assert decision(judged(proof(FORKED), executor=InProcess())) == (Verdict.REJECT, 7)
    finally:
        del torch.other_machine


def pushed(index, share):
    """A forgery: after one step, the weights are moved a few per cent of it in a direction of the forger's."""

    def make(workshop, out):
        forger = workshop.begin()

        def move(key, step, start, end):
            if step != index + 1 or key != "parameter/model.0.weight":
                return end
            way = torch.ones_like(end)
            return end + way / way.norm() * share * (end - start).norm()

        steered(workshop, forger, move)
        forger.seal(out, workshop.key)

    return Attack("pushed", "a step that is pushed", "prover", make)


@pytest.mark.parametrize("index", [5, 7])
def test_a_push_of_the_size_of_a_branch_is_not_explained(tmp_path, index, monkeypatch):
    """Neither where no branch is, nor beside one: the record must be reached, not only be as near."""
    with same_every_time("pushed"):
        forgery = pushed(index, 0.05).forge(proof(FORKED), tmp_path / "out", known_key(1), FORKED, InProcess())
    report = judged(forgery.path)
    assert report.verdict is Verdict.INCONCLUSIVE, report.reason()
    assert f"interval {index} (steps" in report.reason()
    assert decision(judged(forgery.path, executor=InProcess())) == (Verdict.REJECT, 7)
    # Without the comparison of what the nudged replays end in, every error would be explained.
    monkeypatch.setattr(branches.tolerance, "deviation", lambda *_: ("", None))
    assert judged(forgery.path).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("field", ["batches", "loss", "learning_rates"])
def test_a_record_that_says_otherwise_is_no_branch(tmp_path, field):
    """The state is right, and what the log says beside it is not: no way of a step explains that."""
    forger = Forger(proof(FORKED))
    interval = forger.intervals[5]
    other = {"batches": forger.intervals[4].batches, "loss": "5.0", "learning_rates": [Rates(1, ["0.2"])]}
    forger.replace(5, **{field: other[field]})
    forger.seal(tmp_path / "out", known_key(1))
    assert getattr(forger.intervals[5], field) != getattr(interval, field)

    class Rounding(Elsewhere):
        """Its states are off by a rounding, so each interval has an error that is measured."""

        def run(self, job):
            for event in super().run(job):
                if isinstance(event, Recorded) and isinstance(job, Replay) and job.save is not None:
                    path = Path(job.save) / f"{event.interval.stop:012d}.safetensors"
                    if path.exists():
                        found = State.load(path).tensors
                        State({k: t * (1 + 1e-7) if t.is_floating_point() else t for k, t in found.items()}).save(path)
                    state = msgspec.structs.replace(event.interval.root.state, digest="sha256:" + "1" * 64)
                    root = msgspec.structs.replace(event.interval.root, state=state)
                    event = msgspec.structs.replace(event, interval=msgspec.structs.replace(event.interval, root=root))
                yield event

    assert judged(proof(FORKED), executor=Rounding()).verdict is Verdict.ACCEPT
    # A declared rate is compared in step 4, if the policy says so: here what the replay makes of it is the question.
    policy = msgspec.structs.replace(TOLERANCE, bounds=msgspec.structs.replace(TOLERANCE.bounds, scheduled=False))
    report = judged(tmp_path / "out", executor=Rounding(), policy=policy)
    assert report.verdict is Verdict.INCONCLUSIVE, report.reason()
    assert (judged(tmp_path / "out", executor=Rounding()).caught_by == 4) == (field == "learning_rates")
    assert "taking the steps again gives other values for" in report.reason()


def test_all_that_went_the_other_way_counts(elsewhere):
    """Not only the tensor that is farthest beyond its limit."""
    report = judged(proof(FORKED))
    one = next(result for result in report.intervals if result.branch)
    allowed = sum(result.allowed for result in report.intervals)
    assert report.drift.bound - allowed > 1.5 * one.deviation.error

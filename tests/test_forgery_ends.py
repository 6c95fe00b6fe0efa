"""Rule ``tolerance`` compares states near to one another, but which states these are is settled by their digests."""

import pytest

from factory import RECIPE, STEPS, TOLERANCE, check, decision, factory, forge
from pol.attacks.forger import UNSET
from pol.attacks.workshop import Workshop
from pol.proof.report import Verdict
from pol.replay.inprocess import InProcess
from pol.store import checkpoint_path
from pol.verifier import auditing, bind, eight, requested


@pytest.mark.parametrize(("step", "then"), [(STEPS, None), (6, 7)])
def test_both_ends_of_an_interval_have_the_recorded_digest(tmp_path, monkeypatch, step, then):
    """The log tells the truth, a checkpoint does not: only its digest shows that it is another state."""

    def make(workshop, out):
        forger = workshop.open()
        tensors = forger.states[step].tensors
        tensors["parameter/model.4.weight"] = tensors["parameter/model.4.weight"].roll(1, dims=0).clone()
        forger.seal(out, workshop.key, roots=False)

    path = forge(tmp_path, make, rule="tolerance").path
    report = check(path, policy=TOLERANCE)
    assert decision(report) == (Verdict.REJECT, 3)
    assert f"not the state that the log records after {step} steps" in report.reason()
    monkeypatch.setattr(eight, "BIND", tuple(f for f in eight.BIND if f is not bind.states))
    report = check(path, policy=TOLERANCE)
    assert decision(report) == (Verdict.REJECT, 6)
    assert f"not the state that the log records after {step} steps" in report.reason()
    monkeypatch.setattr(requested, "_is_recorded", lambda *_: True)
    report = check(path, policy=TOLERANCE)
    assert report.caught_by == then, report.reason()
    if then:
        assert "the checkpoint after 6 steps loads as another state than the log records" in report.reason()
        monkeypatch.setattr(auditing, "Opened", type("Opened", (), {}))  # nobody looks at what was loaded
        report = check(path, policy=TOLERANCE)
        assert decision(report) == (Verdict.REJECT, 7)
        assert "interval 1 (steps 3–6)" not in report.reason()  # its recorded end is what the replay gives
        assert "1 of 5 replayed intervals failed. First: interval 2 (steps 6–9)" in report.reason()
    else:
        assert report.verdict is Verdict.ACCEPT


# -- states that are sent later -------------------------------------------------------------------------------------


def opened(proof, folder, change=None):
    """What a prover sends when it is asked for the states that are not in its proof."""
    workshop = Workshop(proof, factory().keys["prover"], RECIPE, folder, InProcess())
    forger = workshop.open()
    forger.intervals = []
    workshop.train(forger)
    (folder / "checkpoints").mkdir(parents=True)
    for step, state in forger.states.items():
        if step not in forger.kept:
            if change:
                change(state)
            state.save(folder / checkpoint_path(step))
    return folder


def nudged(state):
    """By less than any limit."""
    state.tensors["parameter/model.4.weight"].view(-1)[0] += 1e-6


def test_states_that_are_sent_later_have_the_recorded_digest(tmp_path, monkeypatch):
    proof = factory().proof(2, "tolerance")
    wanted = check(proof, policy=TOLERANCE)
    assert wanted.verdict is Verdict.INCONCLUSIVE
    assert "2 of the states that are compared are not in the proof" in wanted.reason()
    report = check(proof, policy=TOLERANCE, openings=opened(proof, tmp_path / "true"))
    assert report.verdict is Verdict.ACCEPT, report.reason()
    other = opened(proof, tmp_path / "other", nudged)
    report = check(proof, policy=TOLERANCE, openings=other)
    assert decision(report) == (Verdict.REJECT, 6)
    assert "in the openings: not the state that the log records after 3 steps" in report.reason()
    monkeypatch.setattr(requested, "_is_recorded", lambda *_: True)
    report = check(proof, policy=TOLERANCE, openings=other)
    assert decision(report) == (Verdict.REJECT, 7)
    assert "the checkpoint after 3 steps loads as another state than the log records" in report.reason()


def test_a_state_that_was_never_recorded_cannot_be_made_up_after_the_challenge(tmp_path, monkeypatch):
    """The log names a digest of nothing; whatever state is convenient is sent when it is asked for."""

    def make(workshop, out):
        forger = workshop.open()
        forger.replace(0, root=UNSET)
        forger.seal(out, workshop.key)

    path = forge(tmp_path, make, rule="tolerance", keep=2).path
    convenient = opened(factory().proof(2, "tolerance"), tmp_path / "sent")
    report = check(path, policy=TOLERANCE, openings=convenient)
    assert decision(report) == (Verdict.REJECT, 6)
    monkeypatch.setattr(requested, "_is_recorded", lambda *_: True)
    report = check(path, policy=TOLERANCE, openings=convenient)
    assert decision(report) == (Verdict.REJECT, 7)
    assert "the checkpoint after 3 steps loads as another state" in report.reason()
    monkeypatch.setattr(auditing, "Opened", type("Opened", (), {}))
    report = check(path, policy=TOLERANCE, openings=convenient)
    assert report.verdict is Verdict.ACCEPT, report.reason()

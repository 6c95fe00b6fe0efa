"""Steps taken backwards are steps of the declared training: all but the first interval, up to rounding."""

from safetensors.torch import load_file

from factory import STEPS, factory, judge
from pol.proof.report import Verdict
from pol.store import checkpoint_path
from switches import switch_off


def test_it_ends_at_the_stolen_model():
    for name in ("retraced", "retraced-derived"):
        end = load_file(factory().forgery(name).path / checkpoint_path(STEPS))
        for key, tensor in load_file(factory().proof() / checkpoint_path(STEPS)).items():
            assert not key.startswith(("parameter/", "buffer/")) or end[key].equal(tensor)


def test_all_transitions_but_those_of_the_first_interval_are_within_rounding(monkeypatch):
    """Its start is what refuses it: no state that the seed gives leads there (attack study, A7)."""
    switch_off("assured", monkeypatch)
    switch_off("origin", monkeypatch)
    report = judge("retraced", rule="tolerance")
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    first, *others = report.intervals
    assert (first.status, {result.status for result in others}) == ("failed", {"passed"})
    assert all(result.deviation.relative < 1e-6 for result in others)
    assert first.deviation.relative > 0.1  # a first state has no momentum


def test_counters_count_down():
    path = factory().forgery("retraced").path
    for step in (0, 3, 6, 9, 12, 14):
        assert int(load_file(path / checkpoint_path(step))["buffer/model.1.num_batches_tracked"]) == step


def test_a_step_back_takes_a_few_gradients():
    cost = factory().forgery("retraced").cost
    assert cost.gradients < 6 * STEPS  # with the rehearsal, the control, and all steps forwards

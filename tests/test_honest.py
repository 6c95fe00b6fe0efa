"""Honest trainings of every kind are recorded and accepted."""

import pytest

from pol.proof.report import Verdict
from zoo.tools import check, recipes, train

ABSTRACT = {"Base", "Typed", "Scheduled", "Masked", "Counters", "Scaler"}
HONEST = {
    name: reference
    for file in ("zoo_states.py", "zoo_schedules.py", "zoo_loops.py")
    for name, reference in recipes(file).items()
    if name not in ABSTRACT
}


def assert_accepted(report):
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert [step.status for step in report.steps] == ["passed"] * 8
    assert report.intervals


@pytest.mark.parametrize("name", sorted(HONEST))
def test_honest_training_is_accepted(name, tmp_path):
    """With intervals of one step every state is one that a replay enters, and one that it must reach."""
    train(HONEST[name], tmp_path / "p")
    assert_accepted(check(tmp_path / "p", HONEST[name]))

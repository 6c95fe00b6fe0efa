"""A policy names the procedure that verifies; a further one is one more entry, and touches no other."""

import pytest

from factory import check, factory
from pol.errors import UsageError
from pol.proof.policy import Policy
from pol.proof.report import Assurance, Verdict
from pol.verifier import PROCEDURES, authenticate, eight
from pol.verifier.procedure import Procedure, not_run, run_step


def steps(case, auditor):
    """The first three of the eight steps, and nothing that trains."""
    opened = run_step(2, [authenticate.envelopes(case), authenticate.contents(case)])
    if opened.status == "passed":
        yield run_step(1, [check(case) for check in eight.AUTHENTICATE])
        yield opened
        yield run_step(3, [check(case) for check in eight.BIND])
    else:
        yield opened
    yield from map(not_run, range(4, 8))


BYTES_ONLY = Procedure(
    steps,
    lambda case: Assurance(level="observed", statements=["The bytes belong together; nothing was replayed."]),
    lambda case: "No interval was replayed.",
    needed=frozenset({1, 2, 3}),
    not_shown=("that anything was trained",),
)


@pytest.fixture
def bytes_only(monkeypatch):
    monkeypatch.setitem(PROCEDURES, "bytes-only", BYTES_ONLY)
    return Policy(name="mine", procedure="bytes-only")


def test_a_second_procedure_verifies(bytes_only):
    report = check(factory().proof(), policy=bytes_only)
    assert (report.verdict, report.procedure, report.assurance.level) == (Verdict.ACCEPT, "bytes-only", "observed")
    assert report.confidence == "No interval was replayed."
    assert report.not_shown == ["that anything was trained"]
    assert [step.status for step in report.steps] == [*["passed"] * 3, *["not run"] * 4, "passed"]


@pytest.mark.parametrize(
    ("name", "verdict", "step"),
    [
        ("interpolation", Verdict.ACCEPT, None),  # only a replay sees it
        ("attested-again", Verdict.REJECT, 1),
        ("edited-checkpoint", Verdict.REJECT, 3),
    ],
)
def test_it_catches_what_its_steps_catch(bytes_only, name, verdict, step):
    report = check(factory().forgery(name).path, policy=bytes_only)
    assert (report.verdict, report.caught_by) == (verdict, step)


def test_it_touches_no_other(bytes_only):
    assert PROCEDURES["eight-steps"] is eight.EIGHT_STEPS
    report = check(factory().forgery("interpolation").path)
    assert (report.verdict, report.procedure, report.caught_by) == (Verdict.REJECT, "eight-steps", 7)
    assert check(factory().proof()).verdict is Verdict.ACCEPT


def test_no_step_is_no_acceptance(monkeypatch):
    empty = Procedure(lambda *_: iter(()), BYTES_ONLY.assurance, BYTES_ONLY.confidence, needed=frozenset())
    monkeypatch.setitem(PROCEDURES, "empty", empty)
    report = check(factory().proof(), policy=Policy(procedure="empty"))
    assert (report.verdict, report.assurance.level) == (Verdict.INCONCLUSIVE, "none")


def test_an_unknown_procedure_is_refused():
    with pytest.raises(UsageError, match="no procedure is called 'bytes-only': there is eight-steps, paper-2021"):
        check(factory().proof(), policy=Policy(procedure="bytes-only"))

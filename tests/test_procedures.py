"""A policy names the procedure that verifies; a further one is one more entry, and touches no other."""

import hashlib

import pytest

from factory import check, factory
from pol.attacks.forger import Forger
from pol.errors import FormatError, UsageError
from pol.proof.policy import EXACT, Policy
from pol.proof.report import Assurance, Verdict
from pol.verifier import PROCEDURES, authenticate, eight
from pol.verifier.case import require
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


# -- proof elements: files that a procedure of one's own asks for ----------------------------------------------------

METER = "meter.txt"


def meter(case):
    """A made-up element: the electricity meter before and after, which must not run backwards."""
    if METER not in case.files:
        raise FormatError(f"{METER}: missing")
    before, after = map(int, case.store.read(METER, 64).split())
    yield require(before < after, "meter", f"{after - before} kWh", "the meter ran backwards")


METERED = Procedure(
    lambda case, auditor: iter([*steps(case, auditor), run_step(4, [meter(case)])]),
    BYTES_ONLY.assurance,
    BYTES_ONLY.confidence,
    elements=frozenset({METER}),
    needed=frozenset({1, 2, 3, 4}),
)


@pytest.fixture
def metered(monkeypatch):
    monkeypatch.setitem(PROCEDURES, "metered", METERED)
    return Policy(name="mine", procedure="metered")


def with_meter(tmp_path, text):
    forger = Forger(factory().proof())
    forger.listed[METER] = hashlib.sha256(text.encode()).hexdigest()
    forger.seal(tmp_path / "proof", factory().keys["prover"])
    (tmp_path / "proof" / METER).write_text(text)
    return tmp_path / "proof"


def test_a_further_element_is_read_by_its_procedure_and_bound_like_any_file(metered, tmp_path):
    proof = with_meter(tmp_path, "7 19")
    report = check(proof, policy=metered)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert "12 kWh" in [found.detail for found in report.steps[-2].checks]
    (proof / METER).write_text("7 20")
    report = check(proof, policy=metered)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 3)


@pytest.mark.parametrize("text", ["19 7", "0 0"])
def test_what_its_step_refuses_is_rejected(metered, tmp_path, text):
    report = check(with_meter(tmp_path, text), policy=metered)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 4)


def test_a_missing_element_is_refused_by_its_procedure_alone(metered):
    report = check(factory().proof(), policy=metered)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 4)
    assert check(factory().proof()).verdict is Verdict.ACCEPT


def test_no_other_procedure_takes_the_element(metered, bytes_only, tmp_path):
    proof = with_meter(tmp_path, "7 19")
    for policy in (EXACT, bytes_only):
        report = check(proof, policy=policy)
        assert (report.verdict, report.caught_by) == (Verdict.REJECT, 2)
        assert METER in report.reason()

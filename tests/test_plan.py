"""The arithmetic of challenges: what is predicted is what thousands of nonces give."""

import hashlib
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import check, factory
from pol.errors import UsageError
from pol.proof.challenge import Window, draw, spans
from pol.proof.plan import Cost, Detection, detection, equal_windows, plan
from pol.proof.policy import EXACT, Challenge, Limits, Policy
from pol.proof.report import Verdict

DIGEST = "sha256:" + "5" * 64
NONCES = 2000


def nonce(number):
    return hashlib.sha256(b"plan %d" % number).digest()


def measured(challenge, windows, resumed, forged, each=False, digest=DIGEST, count=NONCES):
    """Share of nonces under which a replay reaches a forged interval; intervals are looked up, not replayed again."""
    met = 0
    for number in range(count):
        drawn = draw(challenge, digest, nonce(number), windows, resumed).all()
        met += any(a <= f <= b for a, b in spans(windows, drawn, each=each) for f in forged)
    return met / count


def assert_agrees(found, predicted, count=NONCES):
    """Within four standard deviations of a binomial: met by chance once in 16,000."""
    assert abs(found - predicted) <= 4 * math.sqrt(predicted * (1 - predicted) / count) + 1e-12, (found, predicted)


def run(intervals, keep=1, sizes=lambda i: 1.0 + i % 7):
    return [
        Window(
            first=i, last=min(i + keep, intervals) - 1, sizes={"weights": sizes(i), "optimizer": sizes(i + 3)}
        )
        for i in range(0, intervals, keep)
    ]  # fmt: skip


CASES = {
    "uniform, one forged": (Challenge(strategy="uniform", uniform=30), run(200), [], [77], False),
    "uniform, five forged": (Challenge(strategy="uniform", uniform=30), run(200), [], [50, 51, 90, 130, 131], False),
    "uniform, windows of four": (Challenge(strategy="uniform", uniform=10), run(200, 4), [], [78], False),
    "uniform, windows of four, each": (Challenge(strategy="uniform", uniform=10), run(200, 4), [], [78], True),
    "weighted": (Challenge(strategy="size-weighted", weighted=12), run(200), [], [77], False),
    "weighted, windows": (Challenge(strategy="size-weighted", weighted=12), run(200, 3), [], [77, 120], False),
    "weighted, a large jump": (
        Challenge(strategy="size-weighted", weighted=6), run(200, 1, lambda i: 500.0 if i == 80 else 1.0), [], [80],
        False,
    ),
    "mix, no top": (Challenge(top=0, uniform=20, weighted=15, all_up_to=0), run(150), [], [44, 45], False),
    "mix": (Challenge(top=1, uniform=20, weighted=15, all_up_to=0), run(300, 1, lambda i: 1.0 + (i % 5 == 0)), [],
            [13, 28], False),
    "resumed elsewhere": (Challenge(strategy="uniform", uniform=20), run(200), [100], [98], False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_predicted_detection_is_measured_detection(name):
    challenge, windows, resumed, forged, each = CASES[name]
    predicted = detection(challenge, windows, resumed, forged, each=each)
    assert 0.02 < predicted < 0.98, predicted  # neither never nor always: there is something to measure
    assert_agrees(measured(challenge, windows, resumed, forged, each), predicted)


@pytest.mark.parametrize(
    ("challenge", "windows", "resumed", "forged"),
    [
        (Challenge(strategy="all"), run(200), [], [77]),
        (Challenge(all_up_to=200), run(200), [], [77]),
        (Challenge(strategy="uniform", uniform=0), run(200), [], [0]),
        (Challenge(strategy="uniform", uniform=0), run(200), [], [199]),
        (Challenge(strategy="uniform", uniform=0), run(200), [], [198]),
        (Challenge(strategy="uniform", uniform=0), run(200), [77], [77]),
        (Challenge(strategy="uniform", uniform=0), run(200), [78], [77]),
        (Challenge(strategy="top-q"), run(200, 1, lambda i: 9.0 if i == 77 else 1.0), [], [77]),
        (Challenge(strategy="uniform", uniform=10**6), run(200), [], [77]),
        (Challenge(strategy="uniform", uniform=200), run(200), [], [77]),
    ],
)
def test_what_is_certain(challenge, windows, resumed, forged):
    assert detection(challenge, windows, resumed, forged) == 1.0
    assert measured(challenge, windows, resumed, forged, count=50) == 1.0


def test_what_is_never_met():
    assert detection(Challenge(), run(200), [], []) == 0.0
    assert detection(Challenge(strategy="uniform", uniform=0), run(200), [], [77]) == 0.0
    assert measured(Challenge(strategy="uniform", uniform=0), run(200), [], [77], count=50) == 0.0


@settings(max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 6), st.integers(0, 50), st.integers(0, 6), st.integers(0, 5),
    st.sampled_from(["all", "top-q", "uniform", "size-weighted", "mix"]), st.integers(0, 10**6), st.booleans(),
)  # fmt: skip
def test_no_size_passes_vacuously(intervals, keep, uniform, weighted, top, strategy, seed, each):
    """More draws than intervals, a last window that is shorter, one interval only: always some, and first and last."""
    windows = run(intervals, keep)
    challenge = Challenge(strategy=strategy, uniform=uniform, weighted=weighted, top=top, all_up_to=5)
    drawn = draw(challenge, DIGEST, nonce(seed), windows, []).all()
    assert drawn
    assert {0, intervals - 1} <= set(drawn) <= set(range(intervals))
    replayed = [i for a, b in spans(windows, drawn, each=each) for i in range(a, b + 1)]
    assert set(drawn) <= set(replayed)
    assert len(replayed) == len(set(replayed))
    assert 0 <= detection(challenge, windows, [], [seed % intervals], each=each) <= 1


@pytest.mark.parametrize("keep", [1, 4])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_a_plan_states_is_the_least_that_is_measured(keep, number):
    """A forger as the plan assumes: nothing moves in its intervals, which end windows that nothing certain picks."""
    policy = msgspec.structs.replace(EXACT, challenge=Challenge(uniform=40, weighted=6, all_up_to=0))
    stated = plan(policy, 400 * 10, 10, keep).detections[number]
    forged = list(range(16 * keep - 1, 390, 3 * keep))[: round(stated.share * 400)]
    assert len(forged) == round(stated.share * 400) >= 1
    windows = [
        msgspec.structs.replace(w, sizes={"weights": 0.0 if w.last in forged else 1.0 + w.first % 7})
        for w in equal_windows(4000, 10, keep)
    ]
    found = measured(policy.challenge, windows, [], forged, count=1000)
    assert found >= stated.probability - 4 * math.sqrt(stated.probability * (1 - stated.probability) / 1000)
    alone = msgspec.structs.replace(policy.challenge, top=0, weighted=0)
    assert_agrees(measured(alone, windows, [], forged, count=1000), stated.probability, 1000)


def test_a_jump_that_hides_below_larger_honest_ones_is_met_by_chance_alone():
    """Blindfold: in every twentieth of the run an honest update is larger, so the largest are all honest."""
    windows = run(200, 1, lambda i: 9.0 if i % 10 == 0 else 1.0)
    forged = [i for i in range(20, 180) if i % 10 == 5]  # 16 of 200, no larger than the honest small ones
    top_alone = Challenge(strategy="top-q")
    assert detection(top_alone, windows, [], forged) == 0.0
    assert measured(top_alone, windows, [], forged, count=50) == 0.0
    both = Challenge(uniform=10, weighted=10, all_up_to=0)
    predicted = detection(both, windows, [], forged)
    assert 0.6 < predicted < 0.98
    assert_agrees(measured(both, windows, [], forged), predicted)


# -- a real forgery: every interval is replayed once, then thousands of nonces are looked up ------------------------


def test_measured_on_a_forged_proof():
    forgery = factory().forgery("edited-checkpoint-sealed")
    report = check(forgery.path)
    assert report.verdict is Verdict.REJECT
    forged = [result.index for result in report.intervals if result.status == "failed"]
    assert forged == [1, 2]
    windows = run(5, 1, lambda i: 1.0)
    challenge = Challenge(strategy="uniform", uniform=1)
    predicted = detection(challenge, windows, [], forged)
    assert_agrees(measured(challenge, windows, [], forged, digest=report.attestation, count=1000), predicted, 1000)
    caught = 0
    for number in range(40):  # and the verifier itself, with these nonces
        policy = Policy(challenge=challenge)
        here = check(forgery.path, policy=policy, nonce=nonce(number))
        expected = bool(set(draw(challenge, report.attestation, nonce(number), windows, []).all()) & set(forged))
        assert (here.verdict is Verdict.REJECT) == expected
        caught += expected
    assert 0 < caught < 40


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_of_a_short_run_replays_all():
    found = plan(EXACT, 360, 10, 1)
    assert (found.intervals, found.windows, found.replayed_steps, found.replayed_share) == (36, 36, 360, 1)
    assert (found.forged_95, found.forged_99, found.openings) == (0, 0, 0)
    assert {one.probability for one in found.detections} == {1.0}


def test_the_numbers_of_the_study():
    """Attack study, section 8: 1000 intervals, 100 uniform draws."""
    found = plan(msgspec.structs.replace(EXACT, challenge=Challenge(strategy="uniform")), 10_000, 10, 1)
    assert found.forged_95 == pytest.approx(0.028, abs=0.002)
    assert found.forged_99 == pytest.approx(0.042, abs=0.004)
    assert found.detections[0] == Detection(what="one single interval", share=0.001, probability=0.1)
    assert found.detections[1].probability == pytest.approx(1 - 0.347, abs=0.01)
    assert found.replayed_share == pytest.approx(0.1, abs=0.01)


def test_steps_are_counted_to_the_end_of_the_run():
    assert plan(EXACT, 7, 5, 1).replayed_steps == 7
    assert plan(EXACT, 7, 5, 3).replayed_steps == 7
    assert plan(EXACT, 1, 100, 100).replayed_steps == 1


TOLERANT = Policy(rule="tolerance", limits=Limits(relative=1.0, absolute=1.0))


def test_tolerance_needs_openings():
    assert plan(TOLERANT, 360, 10, 1).openings == 0
    assert plan(TOLERANT, 360, 10, 4).openings == 27  # of 37 states, 10 are kept
    assert plan(EXACT, 360, 10, 4).openings == 0


@pytest.mark.parametrize(("every", "keep"), [(10, 1), (10, 4)])
def test_what_screens_may_add_counts_as_further_windows(every, keep):
    """Which they are is not known beforehand: it is in the cost, and in no probability."""
    few = Challenge(uniform=3, weighted=0, top=0, all_up_to=0, screened=0)
    for rule, length, opened in (("exact", keep * every, 0), ("tolerance", every, int(keep > 1))):
        limits = Limits(relative=1.0, absolute=1.0) if rule == "tolerance" else None
        policy = Policy(rule=rule, limits=limits, challenge=few)
        more = msgspec.structs.replace(policy, challenge=msgspec.structs.replace(few, screened=5))
        before, after = (plan(p, 400 * every, every, keep) for p in (policy, more))
        assert after.replayed_steps == pytest.approx(before.replayed_steps + 5 * length)
        assert after.openings == pytest.approx(before.openings + 5 * opened)
        assert after.detections == before.detections
        assert after.forged_95 == before.forged_95
    alone = Policy(challenge=Challenge(strategy="uniform", uniform=3))
    assert plan(alone, 4000, 10, 1).replayed_steps == plan(Policy(challenge=few), 4000, 10, 1).replayed_steps


def test_what_an_answer_costs():
    found = plan(TOLERANT, 36, 1, 10, state_bytes=1000)  # windows of 10, 10, 10 and 6
    assert (found.openings, found.answered_steps, found.opening_bytes) == (32, 9 + 9 + 9 + 5, 32_000)
    assert (found.replayed_steps, found.uniform) == (36, None)  # uniform draws would be all, too
    assert plan(TOLERANT, 36, 1, 10).opening_bytes is None
    found = plan(EXACT, 36, 1, 10, state_bytes=1000)
    assert (found.openings, found.answered_steps, found.opening_bytes, found.uniform) == (0, 0, 0, None)
    assert plan(TOLERANT, 7, 5, 3).answered_steps == 5
    assert plan(TOLERANT, 25, 3, 4).answered_steps == 9 + 9  # boundaries 3, 6, 9 and 15, 18, 21; 24 is kept


def test_what_single_draws_cost():
    policy = msgspec.structs.replace(TOLERANT, challenge=Challenge(strategy="uniform", uniform=0))
    found = plan(policy, 10_000, 1, 10)
    assert (found.openings, found.answered_steps, found.replayed_steps) == (9 + 9 + 1, 9 + 9 + 9, 10 + 10 + 1)
    mixed = plan(TOLERANT, 10_000, 1, 10)
    assert mixed.uniform.openings < mixed.openings / 4
    single = msgspec.structs.replace(TOLERANT, challenge=Challenge(strategy="uniform"))
    assert mixed.uniform == Cost(
        **{name: getattr(plan(single, 10_000, 1, 10), name) for name in Cost.__struct_fields__}
    )
    assert plan(single, 10_000, 1, 10).uniform is None


def test_a_budget_that_does_not_do():
    assert not plan(msgspec.structs.replace(EXACT, max_steps=359), 360, 10, 1).within_budget
    assert plan(msgspec.structs.replace(EXACT, max_steps=360), 360, 10, 1).within_budget


@pytest.mark.parametrize("size", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (10**9, 1, 1)])
def test_no_plan_of_nothing(size):
    with pytest.raises(UsageError):
        plan(EXACT, *size)


def test_windows_of_a_known_size():
    assert [(w.first, w.last) for w in equal_windows(11, 2, 4)] == [(0, 3), (4, 5)]

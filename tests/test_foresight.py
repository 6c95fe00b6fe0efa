"""Plans of recordings: their arithmetic, on costs that are given, and the rule by which one choice is recommended."""

import hashlib
import itertools
import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pol import policies
from pol.errors import UsageError
from pol.proof.challenge import Window, draw, largest_forged_share, spans
from pol.proof.expected import draws_needed, expected
from pol.proof.forecast import Audit, Choice, Costs, Run, Sizes
from pol.proof.foresight import (
    CONFIDENCES,
    check,
    choice,
    lengths_to_try,
    recommend,
    stated_share,
)  # fmt: skip
from pol.proof.plan import equal_windows, plan
from pol.proof.policy import EXACT, Bounds, Challenge, Limits, Policy

TOLERANT = Policy(rule="tolerance", limits=Limits(relative=1.0, absolute=1.0))

COSTS = Costs(
    bare_step=1.0, added=0.01, digest=0.1, whole=0.15, noted=0.002, copied=0.05, stored=0.4, written=0.3, busy=True,
    start=3.0, enter=0.5, replay_enter=0.25, replay_step=1.25, read=0.125, compared=0.0625,
)  # fmt: skip
SIZES = Sizes(built=400, kept=1000, state=1100, record=100.0, record_step=10.0, entry=180.0, others=5000)


def run(steps=1000, *, sizes=SIZES, trials=0, samples=50, most_files=10**6, most_log=2**29, **costs):
    return Run(
        steps=steps, samples=samples, costs=msgspec.structs.replace(COSTS, **costs), sizes=sizes, kinds=1,
        trials=trials, most_files=most_files, most_log=most_log,
    )  # fmt: skip


# -- what a challenge costs on average ----------------------------------------------------------------------------


def shapes():
    """Runs and challenges of every kind, the same each time."""
    drawn = random.Random(5)
    for number in range(30):
        yield (
            drawn.choice([37, 360, 1000, 4003]), drawn.choice([1, 3, 10]), drawn.choice([1, 2, 4, 10, 30]),
            Challenge(
                strategy=("mix", "mix", "uniform", "mix", "all", "size-weighted", "top-q")[number % 7],
                uniform=drawn.choice([0, 3, 30, 99]), weighted=drawn.choice([0, 5, 60]), top=drawn.choice([0, 1, 2]),
                all_up_to=drawn.choice([0, 150]), screened=drawn.choice([0, 5]),
            ),
        )  # fmt: skip


NONCES = 100


def drawn(challenge, steps, every, keep, kinds, *, each):
    """The mean of what nonces ask for, of windows whose sizes in each kind of state have nothing to do with another."""
    found, sizes = [], random.Random(7)
    for number in range(NONCES):
        windows = [
            Window(first=w.first, last=w.last, sizes={str(kind): 1 + 0.1 * sizes.random() for kind in range(kinds)})
            for w in equal_windows(steps, every, keep)
        ]
        draws = draw(challenge, "sha256:" + "5" * 64, hashlib.sha256(b"%d" % number).digest(), windows, [])
        met = set(draws.all())
        if challenge.strategy == "mix":  # the screens find as many as they may, where nothing else looks
            unmet = [w.last for w in windows if met.isdisjoint(range(w.first, w.last + 1))]
            met |= set(unmet[: challenge.screened])
        replays = spans(windows, met, each=each)
        taken = sum(min((last + 1) * every, steps) - first * every for first, last in replays)
        inner = {end for first, last in replays for end in (first, last + 1)} if each else set()
        inner -= {*range(0, draws.intervals, keep), draws.intervals}
        answered = sum(max(ends) % keep for _, ends in itertools.groupby(sorted(inner), lambda end: end // keep))
        found.append([len(replays), sum(b - a + 1 for a, b in replays), taken, len(inner), answered * every])
    return [sum(column) / NONCES for column in zip(*found, strict=True)]


@pytest.mark.parametrize("each", [False, True], ids=["exact", "tolerance"])
@pytest.mark.parametrize("shape", list(shapes()), ids=map(str, itertools.count()))
def test_the_closed_form_is_what_nonces_give(shape, each):
    """The mean over so many nonces is known to a per cent or two of what there is to replay."""
    steps, every, keep, challenge = shape
    found = expected(challenge, steps, every, keep, kinds=3, each=each)
    means = drawn(challenge, steps, every, keep, 3, each=each)
    assert [found.replays, found.intervals, found.steps, found.openings, found.answered_steps] == [
        pytest.approx(mean, rel=0.04, abs=0.5) for mean in means
    ]
    assert 0 < found.replays <= found.intervals <= -(-steps // every)


def test_a_replay_of_everything_is_counted_exactly():
    found = expected(Challenge(strategy="all"), 95, 10, 4, kinds=3, each=False)  # windows of 4, 4 and 2 intervals
    assert (found.replays, found.intervals, found.steps, found.openings) == (3, 10, 95, 0)
    found = expected(Challenge(strategy="all"), 95, 10, 4, kinds=3, each=True)
    assert (found.replays, found.intervals, found.steps, found.openings, found.answered_steps) == (10, 10, 95, 7, 70)


@settings(max_examples=60)
@given(st.integers(1, 3000), st.sampled_from([0.001, 0.01, 0.03, 0.2]), st.sampled_from([0.5, 0.95, 0.99]))
def test_no_fewer_draws_would_do(intervals, share, confidence):
    draws = draws_needed(intervals, share, confidence)
    assert 1 <= draws <= intervals
    assert largest_forged_share(intervals, draws, 1 - confidence) <= share
    if draws > 1:
        assert largest_forged_share(intervals, draws - 1, 1 - confidence) > share - 1 / intervals


def test_draws_of_a_long_run():
    """Without replacement hardly matters: (1 - share) to the power of the draws is at most one minus the confidence."""
    assert draws_needed(10**7, 0.03, 0.95) == math.ceil(math.log(0.05) / math.log(0.97))
    assert draws_needed(10**7, 0.01, 0.99) == math.ceil(math.log(0.01) / math.log(0.99))
    assert draws_needed(10, 0.03, 0.95) == 10  # of which one is more than 3 %: all must be seen


def test_what_the_draws_of_a_policy_leave_open():
    assert stated_share(EXACT) == stated_share(policies.load("tolerance")) == 0.03
    for uniform, share in ((300, 0.01), (10, 0.26), (1, 0.95), (0, 0.01)):
        assert stated_share(Policy(challenge=Challenge(uniform=uniform))) == share
    assert stated_share(policies.load("exact-full")) == 0.01


# -- k and K ------------------------------------------------------------------------------------------------------


def test_the_choices_fit_the_run():
    assert lengths_to_try(1, None, None) == [(1, 1)]
    assert lengths_to_try(360, None, None) == [(1, 1), (1, 10), (1, 100), (10, 1), (10, 10), (100, 1)]
    assert lengths_to_try(360, 7, None) == [(7, 1), (7, 10)]
    assert lengths_to_try(360, None, 5) == [(1, 5), (10, 5), (100, 5)]
    assert lengths_to_try(360, 7, 5) == [(7, 5)]
    assert lengths_to_try(360, 360, 99) == [(360, 99)]
    assert lengths_to_try(1000, None, None, longest=1) == [(1, 1), (1, 10), (1, 100), (1, 1000)]
    with pytest.raises(UsageError, match="361 steps is longer than the training, which has 360"):
        lengths_to_try(360, 361, None)


# -- overhead -----------------------------------------------------------------------------------------------------


def overhead(every, keep, steps=1000, **costs):
    return choice(run(steps, **costs), EXACT, every, keep, 0.03).overhead


def test_overhead_by_hand():
    kept = 0.15 + 0.05 + 0.4  # all of it is hashed, copied, and written beside
    assert overhead(1, 1) == pytest.approx(0.01 + 0.002 + kept)
    assert overhead(10, 1) == pytest.approx(0.01 + (0.002 + kept) / 10)
    assert overhead(10, 10) == pytest.approx(0.01 + 0.002 / 10 + (9 * 0.1 + kept) / 100)


def test_work_on_a_free_core_costs_nothing():
    assert overhead(10, 1, busy=False) == pytest.approx(0.01 + (0.15 + 0.05) / 10)


def test_the_next_state_waits_for_the_one_before_it():
    """One snapshot is in flight: with a slow disk the training waits, however many cores are free."""
    assert overhead(1, 1, busy=False, written=5.01) == pytest.approx(0.01 + 0.15 + 0.05 + 4.0)
    assert overhead(10, 1, busy=False, written=5.01) == overhead(10, 1, busy=False)


def test_a_window_is_no_longer_than_the_run():
    assert overhead(10, 10**6, steps=100) == overhead(10, 10, steps=100)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.floats(0, 100))
def test_digesting_and_keeping_less_costs_less(every, keep, busy, written):
    rare = overhead(every + 1, keep + 1, steps=10**4, busy=busy, written=written)
    assert COSTS.added <= rare <= overhead(every, keep, steps=10**4, busy=busy, written=written) + 1e-12


# -- bytes --------------------------------------------------------------------------------------------------------


def test_bytes_by_hand():
    found = choice(run(95), EXACT, 10, 4, 0.03)  # kept after 0, 40, 80 and 95
    assert (found.intervals, found.kept) == (10, 4)
    assert found.bytes == 5000 + 400 + 3 * 1000 + 10 * 100 + 95 * 10 + 4 * 180 + 32 * 50
    assert found.bytes_per_interval == found.bytes / 10


# -- audits -------------------------------------------------------------------------------------------------------


def test_the_seconds_of_a_full_audit_by_hand():
    (audit, _) = choice(run(95), EXACT, 10, 4, 0.03).audits
    assert (audit.replayed_steps, audit.replayed_share, audit.openings) == (95, 1, 0)
    builds = 4 * 0.5 + 3 * 1.01
    assert audit.seconds == pytest.approx(3 + builds + 4 * 0.125 + 3 * 0.25 + 95 * 1.25 + 10 * 0.15)


def test_the_seconds_of_single_steps_by_hand():
    (audit, _) = choice(run(20, trials=5), TOLERANT, 1, 10, 0.03).audits
    builds = 9 * 0.5 + (3 + 5) * 1.01
    replayed = 20 * (0.25 + 1.25 + 0.15 + 0.0625)  # each is entered for itself, and compared
    assert audit.seconds == pytest.approx(3 + builds + 3 * 0.125 + replayed)
    assert (audit.openings, audit.answered_steps, audit.opening_bytes) == (18, 18, 18_000)


def test_a_policy_takes_as_many_draws_as_the_confidence_needs():
    found = choice(run(3 * 10**4), EXACT, 10, 10, 0.01)
    assert [audit.confidence for audit in found.audits] == list(CONFIDENCES)
    for audit in found.audits:
        drawn = msgspec.structs.replace(EXACT.challenge, uniform=audit.draws)
        planned = plan(msgspec.structs.replace(EXACT, challenge=drawn), 3 * 10**4, 10, 10)
        assert audit.replayed_steps == pytest.approx(planned.replayed_steps, rel=0.02)
        assert (planned.forged_95 if audit.confidence == 0.95 else planned.forged_99) <= 0.01
    assert found.audits[0].seconds < found.audits[1].seconds


def test_by_default_the_first_audit_is_what_the_policy_does_anyway():
    found = choice(run(10**4), EXACT, 10, 1, stated_share(EXACT)).audits[0]
    assert found.draws == pytest.approx(EXACT.challenge.uniform, rel=0.1)
    assert found.replayed_steps == pytest.approx(plan(EXACT, 10**4, 10, 1).replayed_steps, rel=0.05)


@pytest.mark.parametrize(
    ("policy", "share", "confidences", "message"),
    [
        (policies.load("paper-2021"), 0.03, [0.95], "only procedure eight-steps"),
        (Policy(challenge=Challenge(strategy="top-q")), 0.03, [0.95], "draws nothing uniformly"),
        (Policy(challenge=Challenge(strategy="size-weighted")), 0.03, [0.95], "draws nothing uniformly"),
        (EXACT, 0.0, [0.95], "a share of forged intervals of 0"),
        (EXACT, 1.0, [0.95], "a share of forged intervals of 1"),
        (EXACT, math.nan, [0.95], "a share of forged intervals of nan"),
        (EXACT, 0.03, [], "confidence"),
        (EXACT, 0.03, [0.95, 0.0], "confidence 0.95, 0"),
        (EXACT, 0.03, [1.0], "confidence 1"),
        (EXACT, 0.03, [math.nan], "confidence nan"),
    ],
)
def test_what_cannot_be_planned(policy, share, confidences, message):
    with pytest.raises(UsageError, match=message):
        check(policy, share, confidences)
    with pytest.raises(UsageError, match=message):
        choice(run(), policy, 10, 1, share, confidences)


# -- what no verifier would take ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planned", "policy", "words"),
    [
        (run(most_files=106), EXACT, "more files than"),
        (run(most_log=19_999), EXACT, "the log would be larger"),
        (run(sizes=msgspec.structs.replace(SIZES, record_step=2e6)), EXACT, "longer than the format allows"),
        (run(), Policy(max_bytes=10_000), "reads 10000 bytes"),
        (run(), Policy(max_steps=999), "replays 999 steps"),
        (run(), Policy(bounds=Bounds(max_every=9)), "intervals of 9 steps"),
    ],
)
def test_what_is_refused(planned, policy, words):
    assert words in choice(planned, policy, 10, 1, 0.03).refused


def test_what_is_just_not_refused():
    assert choice(run(most_files=107, most_log=20_000), EXACT, 10, 1, 0.03).refused == ""
    assert choice(run(), Policy(max_steps=1000, bounds=Bounds(max_every=10)), 10, 1, 0.03).refused == ""
    total = choice(run(), EXACT, 10, 1, 0.03).bytes
    assert choice(run(), Policy(max_bytes=total), 10, 1, 0.03).refused == ""
    assert choice(run(), Policy(max_bytes=total - 1), 10, 1, 0.03).refused


# -- the recommendation -------------------------------------------------------------------------------------------


def made(overhead, seconds, count, refused="", every=10, keep=1):
    audit = Audit(
        confidence=0.95, draws=99, replayed_steps=1.0, replayed_share=0.1, seconds=seconds, openings=0.0,
        answered_steps=0.0, opening_bytes=0.0,
    )  # fmt: skip
    other = msgspec.structs.replace(audit, confidence=0.99, seconds=1e6 - seconds)  # in the other order
    return Choice(
        every=every, keep=keep, intervals=10, kept=11, overhead=overhead, bytes=count, bytes_per_interval=count / 10,
        audits=[audit, other], refused=refused,
    )  # fmt: skip


GOOD = made(0.02, 100.0, 5000)


@pytest.mark.parametrize(
    ("others", "bytes_allowed"),
    [
        ([made(0.0201, 10.0, 10)], None),  # dearer than allowed, however good else
        ([made(0.001, 10.0, 10, refused="no")], None),
        ([made(0.001, 10.0, 6000)], 5500),
        ([made(0.001, 120.0, 10)], None),  # a dearer audit, however small
        ([made(0.001, 95.0, 6000)], None),  # as cheap, but larger
        ([made(0.01, 105.0, 6000), made(0.01, 500.0, 1)], None),
    ],
)
def test_what_is_recommended(others, bytes_allowed):
    for order in itertools.permutations([GOOD, *others]):
        assert recommend(order, 0.02, bytes_allowed).choice is GOOD


def test_what_would_be_recommended_instead():
    """Each of these beats the good one when what speaks against it is gone."""
    for better in (made(0.02, 10.0, 10), made(0.02, 10.0, 6000), made(0.02, 95.0, 4000), made(0.02, 109.0, 4000)):
        assert recommend([GOOD, better], 0.02).choice is better
    assert recommend([GOOD, made(0.02, 111.0, 4000)], 0.02).choice is GOOD


def test_nothing_is_recommended_when_nothing_fits():
    choices = [made(0.05, 10.0, 100, every=10), made(0.0312, 20.0, 200, every=100), made(0.01, 1.0, 1, refused="no")]
    found = recommend(choices, 0.03)
    assert found.choice is None
    assert "The least is 3.12 % (k = 100, K = 1), which --max-overhead 3.2% allows" in found.why
    assert recommend(choices, 0.032).choice is choices[1]
    found = recommend(choices, 0.5, max_bytes=99)
    assert found.choice is None
    assert "the smallest has 100 bytes (k = 10, K = 1)" in found.why
    found = recommend(choices[2:], 0.5)
    assert found.choice is None
    assert "none can be recorded and verified: no" in found.why


@pytest.mark.parametrize("bound", [math.nan, -0.01, math.inf, -math.inf])
def test_bounds_that_are_none(bound):
    with pytest.raises(UsageError, match="give a share that is not negative"):
        recommend([GOOD], bound)


def test_no_choice_at_all():
    with pytest.raises(UsageError, match="no choice"):
        recommend([], 0.02)
    with pytest.raises(UsageError, match="give a size"):
        recommend([GOOD], 0.02, 0)


def test_no_overhead_is_a_bound_too():
    assert recommend([GOOD, made(0.0, 900.0, 9)], 0.0).choice.overhead == 0.0


@settings(max_examples=50)
@given(
    st.integers(20, 10**6), st.floats(0, 0.2), st.floats(0, 5), st.floats(0, 20), st.integers(1, 10**9),
    st.floats(0.001, 1), st.floats(0.001, 1),
)  # fmt: skip
def test_who_allows_more_never_gets_a_dearer_audit(steps, added, digest, stored, kept, less, more):
    planned = run(
        steps, added=added, digest=digest, stored=stored, sizes=msgspec.structs.replace(SIZES, kept=kept)
    )  # fmt: skip
    choices = [choice(planned, EXACT, *lengths, 0.03) for lengths in lengths_to_try(steps, None, None)]
    tight, loose = (recommend(choices, bound).choice for bound in sorted((less, more)))
    if tight is not None:
        assert tight.overhead <= min(less, more)
        assert loose is not None
        assert loose.audits[0].seconds <= tight.audits[0].seconds * 1.1

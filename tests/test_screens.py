"""Screens find what they are for, are quiet where nothing is, lead the challenge to it, and decide nothing."""

import functools
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import PLAIN, TOLERANCE, check, decision, factory, forge, same_every_time
from pol.attacks.attack import Attack
from pol.attacks.registry import REGISTRY
from pol.profile import Profile
from pol.proof.outliers import MOST, scores
from pol.proof.policy import Challenge, Policy
from pol.proof.report import Verdict
from pol.proof.screens import LISTED, STRAIGHT, UNUSUAL, Loss, Move, leaps, line, losses, norms, order, suspects
from pol.prover import record
from pol.recipes import digits
from pol.replay.inprocess import InProcess
from pol.replay.state import State
from pol.verifier import eight, screening, shape

DIGITS = f"{digits.__file__}:DigitsCNN"
WHOLE = f"{Path(PLAIN).with_name('whole.py')}:Whole"
NOTHING = Challenge(top=0, uniform=0, weighted=0, all_up_to=0, screened=0)
"""First and last window, and no more."""
SCREENED = msgspec.structs.replace(NOTHING, screened=5)
LONG = {"num_epochs": 20}
STEPS = 140


def policy(challenge, **fields):
    return Policy(challenge=challenge, assurance="observed", **fields)


@functools.cache
def run(name, recipe=PLAIN, every=1, keep=1, rule="exact", **settings):
    """An honest run, and its folder."""
    out = factory().folder / f"screens-{name}"
    with same_every_time(f"screens {name}"):
        record(
            recipe, out, key=factory().keys["prover"], every=every, keep=keep, rule=rule, settings=settings,
            profile=Profile(threads=1), executor=InProcess(),
        )  # fmt: skip
    return out


def long(keep=1, rule="exact"):
    return run(f"long-{keep}-{rule}", keep=keep, rule=rule, **LONG)


def forged(make, keep=1):
    """A forgery of a run of 140 intervals: by an attack of the registry, or by a function."""
    return _forged(make, keep)


@functools.cache
def _forged(make, keep):
    name = make if isinstance(make, str) else make.__name__
    attack = REGISTRY[make] if isinstance(make, str) else Attack(name, name, "thief", make)
    out = factory().folder / f"screens-{name}-{keep}"
    with same_every_time(name):
        return attack.forge(long(keep), out, factory().keys[attack.forger], PLAIN, InProcess()).path


def glued(workshop, out):
    """An honest run of the thief's own, that goes on from the stolen weights in the middle (attack study, A8)."""
    forger = workshop.record()
    forger.states[STEPS // 2] = workshop.stolen()
    workshop.train(forger, start=STEPS // 2)
    forger.seal(out, workshop.key)


@functools.cache
def seen(make):
    """What a verifier says of a forgery that replays the least."""
    return check(forged(make), PLAIN, policy=policy(NOTHING))


def screens(report):
    return {screen.name: screen for screen in report.screens}


def unusual(report):
    return {name for name, screen in screens(report).items() if screen.status == "unusual"}


# -- forgeries: what finds them, and that without the screens nothing looks there ------------------------------------


@pytest.mark.parametrize("keep", [1, 5])
def test_a_jump_that_hides_in_a_long_run_is_met_by_the_screens_alone(keep):
    path = forged(glued, keep)
    assert check(path, PLAIN, policy=policy(NOTHING)).verdict is Verdict.ACCEPT  # nobody looks there
    report = check(path, PLAIN, policy=policy(SCREENED))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7), report.reason()
    assert "1 of" in report.reason()
    assert STEPS // 2 - 1 in report.draws.screened
    assert report.draws.top == report.draws.uniform == report.draws.weighted == []
    assert screens(report)["norms"].intervals[0] == STEPS // 2 - 1  # the last of its window, so all of it is replayed


def test_a_jump_of_one_step_stands_out():
    found = screens(seen(glued))["norms"]
    assert (found.status, found.intervals[0]) == ("unusual", 69)
    assert found.score > 1.3 * UNUSUAL
    assert found.detail.startswith("steps 69–70, where weights moved ")
    assert found.detail.endswith(" spreads too large")


@pytest.mark.parametrize(
    ("name", "screen", "first"),
    [
        ("own-run-stolen-end", "norms", STEPS - 1),
        ("swapped-final", "norms", STEPS - 1),
        ("later-momentum", "norms", STEPS - 1),
        ("interpolation", "line", 0),
        ("tiny-rate", "line", 0),
        ("matched-start", "line", 0),
        ("matched-start", "order", None),
    ],
)
def test_a_forgery_is_unusual_to_the_screen_that_is_for_it(name, screen, first):
    found = screens(seen(name))[screen]
    assert found.status == "unusual", found
    assert found.intervals[:1] == ([] if first is None else [first])


def test_a_straight_line_is_straight_from_end_to_end():
    found = screens(seen("interpolation"))["line"]
    assert found.score == STEPS
    assert found.detail == f"{STEPS} windows, steps 0–{STEPS}, go straight on, one after the other"


def test_the_loss_tells_of_a_jump_where_it_is_written():
    """An untrained model's losses, and then those of a trained one."""
    points = [Loss(i, i, i + 1, 2.3 + 0.01 * (i % 3) if i < 30 else 0.05 + 0.001 * (i % 4)) for i in range(60)]
    found = losses(points)
    assert (found.status, found.intervals[:2]) == ("unusual", [29, 30])
    assert found.detail.startswith("the loss goes from 2.32 (steps 29–30) to 0.052, ")


# -- honest runs -----------------------------------------------------------------------------------------------------

HONEST = {
    "digits": (DIGITS, 1, 1, {"num_epochs": 3}),
    "digits, k = 5": (DIGITS, 5, 1, {"num_epochs": 3}),
    "plain": (PLAIN, 1, 1, LONG),
    "plain, seldom kept": (PLAIN, 1, 4, LONG),
}
SLOW = {
    "digits, whole": (DIGITS, 1, 1, {}),
    "digits, whole, k = 10": (DIGITS, 10, 1, {}),
    "digits, whole, k = 4": (DIGITS, 2, 2, {}),
    "text": (str(Path(digits.__file__).with_name("text.py")) + ":CharGPT", 2, 1, {"layers": 1, "width": 32}),
}


@pytest.mark.parametrize(
    "name", [*HONEST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)  # fmt: skip
def test_an_honest_run_is_quiet(name):
    """Warm-up from a hundredth, a cosine to zero, a shorter last window, momentum that is not there at first."""
    recipe, every, keep, settings = {**HONEST, **SLOW}[name]
    path = run(f"honest {name}".replace(" ", "-"), recipe, every, keep, **settings)
    report = check(path, recipe, policy=policy(NOTHING))
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert [screen.name for screen in report.screens] == ["norms", "losses", "order", "line"]
    assert unusual(report) == set(), report.screens
    assert max(screen.score for screen in report.screens) < 10


# -- they decide nothing ---------------------------------------------------------------------------------------------


def whole():
    return run("whole", WHOLE, num_epochs=12, lr=1e-3, momentum=0.0)


def test_what_is_unusual_and_replays_is_accepted():
    """All data in every step, at a low rate: an honest run that goes straight on."""
    report = check(whole(), WHOLE)
    assert unusual(report) == {"line"}
    assert report.verdict is Verdict.ACCEPT
    assert {"screens", "unusual"}.isdisjoint(check.name for step in report.steps for check in step.checks)


@pytest.mark.parametrize("forgery", [False, True])
def test_no_screen_changes_a_verdict_that_rests_on_all_intervals(monkeypatch, forgery):
    """Whatever they say: intervals of their choice are replayed, and that is all."""
    path = forged(glued) if forgery else long()
    everything = policy(Challenge(strategy="all"))
    before = check(path, PLAIN, policy=everything)

    def shout(case):
        yield from ()
        case.screens = [line(_moves([1.0] * 9), [0.0] * 8)] * 4

    monkeypatch.setattr(eight, "SHAPE", tuple(shout if step is screening.look else step for step in eight.SHAPE))
    after = check(path, PLAIN, policy=everything)
    assert unusual(after) == {"line"}
    assert before.verdict is after.verdict is (Verdict.REJECT if forgery else Verdict.ACCEPT)
    assert before.steps == after.steps


def test_confidence_is_not_for_what_they_chose():
    few = msgspec.structs.replace(NOTHING, uniform=10)
    without = check(long(), PLAIN, policy=policy(few))
    report = check(long(), PLAIN, policy=policy(msgspec.structs.replace(few, screened=20)))
    assert len(report.draws.screened) == 20
    assert len(report.intervals) > len(without.intervals)
    assert report.confidence == without.confidence
    for kind in ("mandatory", "top", "uniform", "weighted"):
        assert getattr(report.draws, kind) == getattr(without.draws, kind)


# -- rule tolerance: states that are not kept cost openings ----------------------------------------------------------


def test_of_a_long_window_one_interval_is_asked_for_where_states_must_be_opened():
    limits = msgspec.structs.replace(TOLERANCE.limits, drift=1e9)
    asked = msgspec.structs.replace(TOLERANCE, challenge=SCREENED, limits=limits)
    report = check(long(5, "tolerance"), PLAIN, policy=asked)
    assert report.verdict is Verdict.INCONCLUSIVE
    found = screens(report)["norms"].intervals
    assert len({index // 5 for index in found}) == len(found)  # each window once
    assert {index % 5 for index in found} != {4}  # where the loss leaps, not always the last
    exact = check(long(5), PLAIN, policy=policy(SCREENED))
    assert {index % 5 for index in screens(exact)["norms"].intervals} == {4}


# -- the arithmetic --------------------------------------------------------------------------------------------------


def _moves(sizes, rates=None, taken=None):
    return [
        Move(
            start=10 * i, stop=10 * i + 10, interval=i, sizes={"weights": size},
            taken=10 if taken is None else taken[i], rate=None if rates is None else rates[i],
        )
        for i, size in enumerate(sizes)
    ]  # fmt: skip


def _wavy(i):
    """Sizes that vary by a tenth, without chance."""
    return 1 + 0.1 * math.sin(7.3 * i)


def test_a_jump_and_a_pause_stand_out():
    for factor, how in ((30.0, "large"), (1 / 30, "small"), (0.0, "small")):
        sizes = [_wavy(i) * (factor if i == 33 else 1) for i in range(60)]
        found = norms(_moves(sizes))
        assert (found.status, found.intervals[0]) == ("unusual", 33)
        assert f"steps 330–340, where weights moved {found.score:.3g} spreads too {how}" in found.detail
        assert found.score <= MOST
    assert norms(_moves([_wavy(i) for i in range(60)])).status == "quiet"


def test_a_jump_of_any_kind_of_state_stands_out():
    moves = _moves([_wavy(i) for i in range(60)])
    sizes = [{**m.sizes, "optimizer": 40.0 if m.interval == 12 else _wavy(m.interval)} for m in moves]
    moves = [Move(m.start, m.stop, m.interval, s, m.taken, m.rate) for m, s in zip(moves, sizes, strict=True)]
    assert "where optimizer moved" in norms(moves).detail


@pytest.mark.parametrize("exponent", [0, 1])
def test_no_schedule_shows(exponent):
    """Whether moves follow the rate, as weights do, or not, as momentum does."""
    warm = [0.001 * (i + 1) for i in range(10)]
    rates = [*warm, *[0.01] * 30, *[0.001] * 30, *(0.001 * math.cos(math.pi * i / 60) for i in range(30)), 0.0]
    sizes = [rate**exponent * _wavy(i) if rate else 0.0 for i, rate in enumerate(rates)]
    assert norms(_moves(sizes, rates)).status == "quiet"
    jump = [size * (50 if i == 45 else 1) for i, size in enumerate(sizes)]
    assert norms(_moves(jump, rates)).intervals[0] == 45


def test_a_shorter_last_window_does_not_show():
    taken = [10] * 40 + [1]
    for power in (0.5, 0.75, 1.0):
        assert norms(_moves([(n / 10) ** power for n in taken], taken=taken)).status == "quiet"
    assert norms(_moves([1.0] * 40 + [5.0], taken=taken)).status == "unusual"


def test_windows_in_which_every_step_was_skipped_are_left_out():
    taken = [0 if i == 20 else 10 for i in range(40)]
    assert norms(_moves([0.0 if i == 20 else _wavy(i) for i in range(40)], taken=taken)).status == "quiet"
    assert norms(_moves([9.0 if i == 20 else _wavy(i) for i in range(40)], taken=taken)).intervals[:1] != [20]


def test_equal_sizes_have_no_spread_and_are_quiet():
    assert norms(_moves([2.0] * 50)) == norms(_moves([3.0] * 50))
    assert (norms(_moves([2.0] * 50)).score, norms(_moves([2.0] * 50)).intervals) == (0.0, [])
    assert norms(_moves([2.0 * (1 + 1e-15 * (i % 2)) for i in range(50)])).score < 1e-9
    assert norms(_moves([2.0] * 49 + [2.1])).status == "quiet"
    assert norms(_moves([2.0] * 49 + [13.0])).status == "unusual"


def test_too_few_are_quiet_and_say_so():
    for count in range(9):
        assert norms(_moves([10.0**i for i in range(count)])).detail == f"{count} windows are too few to compare"
        assert losses([Loss(i, i, i + 1, 10.0**i) for i in range(count)]).score == 0
    assert norms(_moves([1.0] * 9 + [100.0])).status == "unusual"


def test_losses_that_fall_fast_and_end_small_are_quiet():
    falling = [2.3 * math.exp(-i / 5) * (1 + 0.3 * math.sin(7.3 * i)) for i in range(60)]
    assert losses([Loss(i, i, i + 1, value) for i, value in enumerate(falling)]).status == "quiet"


def test_intervals_without_a_loss_are_passed_over():
    values = [None if i in (0, 10, 11) else _wavy(i) + (5.0 if i > 30 else 0) for i in range(60)]
    found = leaps([Loss(i, i, i + 1, value) for i, value in enumerate(values)])
    assert len(found) == 56
    assert {(a.interval, b.interval) for a, b, _ in found} >= {(9, 12)}
    a, b, _ = max(found, key=lambda pair: abs(pair[2]))
    assert (a.interval, b.interval) == (30, 31)


def test_losses_below_zero_are_compared_by_differences():
    values = [-10 + 0.1 * math.sin(7.3 * i) + (4.0 if i >= 30 else 0) for i in range(60)]
    assert losses([Loss(i, i, i + 1, value) for i, value in enumerate(values)]).intervals[:2] == [29, 30]


def test_stretches_of_a_line():
    moves = _moves([1.0] * 12)
    turning = [1.0] * 11
    assert (line(moves, turning).status, line(moves, turning).score) == ("quiet", 0.0)
    assert line(moves, [None] * 11).detail.startswith("too few windows")
    assert line(moves, []).status == "quiet"
    three = [0.0 if i in (3, 4) else None if i == 7 else 1.0 for i in range(11)]
    assert (line(moves, three).status, line(moves, three).intervals) == ("quiet", [3, 4, 5])
    four = [STRAIGHT if i in (3, 4, 5, 8) else 1.0 for i in range(11)]
    found = line(moves, four)
    assert (found.status, found.score, found.intervals) == ("unusual", 4.0, [3, 4, 5, 6, 8, 9])
    assert found.detail == "4 windows, steps 30–70, go straight on, one after the other"


def test_order_names_tensors():
    assert order(0, []).detail == "no tensor moved enough to be looked at"
    assert order(3, []).status == "quiet"
    assert (
        order(9, list("abcde")).detail == "5 of 9 tensors begin in the order of their last values: a, b, c and 2 more"
    )


def test_suspects_take_turns_and_what_is_unusual_comes_first():
    loud = norms(_moves([_wavy(i) * (30 if i in (33, 44, 50) else 1) for i in range(60)]))
    calm = losses([Loss(i, i, i + 1, _wavy(i)) for i in range(60)])
    straight = line(_moves([1.0] * 60), [0.0 if i < 5 else 1.0 for i in range(59)])
    assert (loud.status, calm.status, straight.status) == ("unusual", "quiet", "unusual")
    found = suspects([loud, calm, order(1, []), straight])
    assert found[:6] == [loud.intervals[0], 0, loud.intervals[1], 1, loud.intervals[2], 2]
    last = [found.index(index) for index in calm.intervals if index not in {*loud.intervals, *straight.intervals}]
    assert min(last) > max(found.index(index) for index in loud.intervals)
    assert len(found) == len(set(found))
    assert suspects([]) == []
    assert suspects([order(5, ["a"])]) == []


# -- totality --------------------------------------------------------------------------------------------------------

SIZES = st.floats(0, 1e308) | st.sampled_from([0.0, 1.0, 1e-320, 1e308])
RATES = st.none() | st.floats(0, 1e308) | st.sampled_from([0.0, 1e-320, 1e308])
LOSSES = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -1.7e308, 1.7e308])


def defined(screen, known):
    assert math.isfinite(screen.score)
    assert screen.score >= 0
    assert screen.status == ("unusual" if screen.score >= screen.limit else "quiet")
    assert set(screen.intervals) <= set(known)
    assert len(screen.intervals) == len(set(screen.intervals)) <= LISTED
    assert screen.detail


@given(st.data(), st.integers(0, 40))
def test_whatever_the_sizes_are(data, count):
    kinds = data.draw(st.lists(st.sampled_from(["weights", "optimizer"]), unique=True))
    sizes = st.dictionaries(st.sampled_from(kinds), SIZES) if kinds else st.just({})
    moves = [Move(i, i + 1, i, data.draw(sizes), data.draw(st.integers(0, 10)), data.draw(RATES)) for i in range(count)]
    defined(norms(moves), range(count))
    angles = data.draw(st.lists(st.none() | st.floats(0, 3.2), min_size=max(count - 1, 0), max_size=max(count - 1, 0)))
    defined(line(moves, angles), range(count))
    defined(line(moves, []), range(count))
    assert set(suspects([norms(moves), line(moves, angles)])) <= set(range(count))


@given(st.lists(LOSSES, max_size=60))
def test_whatever_the_losses_are(values):
    points = [Loss(i, i, i + 1, value) for i, value in enumerate(values)]
    defined(losses(points), range(len(values)))


@given(st.lists(st.floats(-1e300, 1e300) | st.just(-math.inf), max_size=60), st.floats(1e-300, 1e300))
def test_whatever_the_values_are(values, least):
    found = scores(values, [least] * len(values))
    assert len(found) == len(values)
    assert all(-MOST <= score <= MOST for score in found)


@given(st.lists(st.floats(1e-3, 1e3), min_size=9, max_size=40), st.floats(1e-3, 1e3))
def test_scores_do_not_depend_on_the_unit(values, unit):
    logs = [math.log(value) for value in values]
    moved = [math.log(value) + math.log(unit) for value in values]
    for a, b in zip(scores(logs, [0.1] * len(logs)), scores(moved, [0.1] * len(moved)), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


@given(st.integers(9, 60), st.floats(-3, 3), st.integers(0, 59))
def test_a_steady_trend_is_nothing_and_hides_nothing(count, slope, place):
    """The middle of a steep rise is where a jump would hide, its ends are what would stick out."""
    values = [slope * index for index in range(count)]
    assert max(map(abs, scores(values, [0.1] * count))) < 1e-9
    values[place % count] += 2.0
    assert scores(values, [0.1] * count)[place % count] == pytest.approx(20.0)


def test_what_has_no_length_has_no_direction():
    for found in ((0.0, 1.0, 0.0), (math.inf, 1.0, 1.0), (1.0, 1.0, math.nan), (1e-320, 1e-320, 0.0)):
        assert screening._angle(*found) is None or found[0] == 1e-320
    assert screening._angle(1.0, 4.0, 2.0) == 0.0
    assert screening._angle(1e300, 1e300, -1e300 * 1.0000001) == pytest.approx(math.pi)
    assert screening._angle(1.0, 1.0, 0.0) == pytest.approx(math.pi / 2)


def test_steps_that_were_skipped_have_moved_nothing(tmp_path, monkeypatch):
    """Else no screen would look at the interval, and only chance would replay it."""

    def lie(workshop, out):
        forger = workshop.record()
        record = forger.intervals[2]
        forger.replace(2, loss=None, skipped=list(range(record.start, record.stop)))
        forger.seal(out, workshop.key)

    path = forge(tmp_path, lie).path
    report = check(path)
    assert decision(report) == (Verdict.REJECT, 4)
    assert "all steps from 6 to 9 were recorded as skipped, and moved parameters by" in report.reason()
    monkeypatch.setattr(eight, "SHAPE", tuple(c for c in eight.SHAPE if c is not shape.skips))
    least = Policy(challenge=Challenge(strategy="uniform", uniform=0))
    assert check(path, policy=least).verdict is Verdict.ACCEPT


def test_steps_that_were_skipped_have_moved_no_moment(tmp_path):
    """All weights stand still, and a momentum that nobody made stands at the end."""

    def lie(workshop, out):
        forger = workshop.open()
        record = forger.intervals[2]
        before = forger.states[record.start].tensors
        held = {k: t + 1 if k.startswith("optimizer/") and t.is_floating_point() else t for k, t in before.items()}
        forger.states[record.stop] = State(held)
        forger.replace(2, loss=None, skipped=list(range(record.start, record.stop)))
        forger.seal(out, workshop.key)

    report = check(forge(tmp_path, lie).path)
    assert decision(report) == (Verdict.REJECT, 4)
    assert "all steps from 6 to 9 were recorded as skipped, and moved moments of an optimizer by" in report.reason()

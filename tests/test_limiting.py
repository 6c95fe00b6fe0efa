"""What follows from measured noise: limits, gaps, outliers, rates, the k to use; on numbers that are made up."""

import math

import msgspec
import pytest

from pol import policies
from pol.errors import FormatError
from pol.profile import Profile
from pol.proof.limiting import (
    DRIFT,
    FLOOR,
    LOSS,
    MARGIN,
    OUTLIER,
    UNSEEN,
    best,
    check_conclusion,
    conclusion,
    outliers,
    rungs,
)  # fmt: skip
from pol.proof.noise import CHEATS, COUNTING, DECAY, FLOAT64, RATE, SPLIT, SWAP, Noise, Replays, Seen, check_noise
from pol.proof.policy import Limits
from pol.proof.rates import Rate, audit, growth
from pol.render.noise import instead, keep, rate

PROFILE = Profile(threads=1)
PLATFORMS = [Profile(threads=2), Profile(threads=4), Profile(threads=1, aten="default")]
NAMES = ["threads 2", "threads 4", "aten default", FLOAT64, SPLIT]
TENSOR = "parameter/model.w"
REFERENCE = 100.0
STEPS = 1000


def seen(relative=0.0, *, error=None, absolute=None, loss=0.0, of=TENSOR, equal=False, floored=False):
    error = relative if error is None else error
    absolute = relative / 10 if absolute is None else absolute
    return Seen(
        equal=equal, share=repr(float(error)), error=repr(float(error)), relative=repr(float(relative)),
        relative_of=of if relative else "", absolute=repr(float(absolute)), absolute_of=of if absolute else "",
        loss=repr(float(loss)), floored=floored,
    )  # fmt: skip


EQUAL = seen(equal=True)


def noise(honest, cheats=None, *, rungs=(1,), starts=8, drift=1e-4, **options):
    """``honest`` and ``cheats``: by name, a function of (start, rung) to an error, or a reason to leave it out."""

    def replays(name, profile, found):
        if isinstance(found, str):
            return Replays(name=name, profile=profile, left_out=found, found=[])
        rows = [[found(start, rung) for rung in rungs] for start in range(starts)]
        return Replays(name=name, profile=profile, left_out=None, found=rows)

    profiles = [*PLATFORMS, PROFILE, PROFILE]
    taken = [
        replays(name, profile, honest.get(name, lambda *_: EQUAL))
        for name, profile in zip(NAMES, profiles, strict=True)
    ]  # fmt: skip
    lies = {**dict.fromkeys(CHEATS, lambda *_: seen(0.1)), RATE: lambda *_: seen(0.01), **(cheats or {})}
    made = Noise(
        rungs=list(rungs), starts=[100 * start for start in range(starts)], optimizers=["torch.optim.sgd.SGD"],
        unbounded=None, coarse=None, honest=taken, cheats=[replays(name, PROFILE, lies[name]) for name in CHEATS],
        tensors={}, drift=[repr(drift)] * len(rungs), every=None, limits=None,
    )  # fmt: skip
    made = msgspec.structs.replace(made, **options)
    largest = [
        max(
            float(row[number].absolute)
            for one in made.honest
            for place, row in enumerate(one.found)
            if (one.name, place) not in outliers(made, number)
        )
        for number in range(len(rungs))
    ]
    made = msgspec.structs.replace(made, tensors={TENSOR: list(map(repr, largest)), **made.tensors})
    every, limits = conclusion(made, REFERENCE)
    made = msgspec.structs.replace(made, every=every, limits=limits)
    check(made)  # what is made up here could be read
    return made


def check(made):
    check_noise(made, PROFILE, STEPS, "noise")
    check_conclusion(made, REFERENCE, "noise")


def at(made, number=0):
    return rungs(made, REFERENCE)[number]


def every(value):
    return {name: lambda *_: seen(value) for name in NAMES}


# -- limits -------------------------------------------------------------------------------------------------------


def test_the_constants_are_those_of_a_policy():
    limits = Limits(relative=1, absolute=1)
    assert (limits.floor, limits.loss, limits.drift) == (FLOOR, LOSS, DRIFT)
    preset = policies.load("tolerance").limits
    assert (preset.relative, preset.absolute) == UNSEEN
    assert preset.branches > 0.01  # outliers are what branches explain


def test_a_limit_is_a_margin_above_the_worst():
    made = noise({"threads 2": lambda start, _: seen(2.5e-4 if start == 3 else 1e-6, loss=2.5e-4)})
    found = at(made)
    assert float(found.limits.relative) == 2.1e-3  # the next number of two digits above 8 times it, which rounds up
    assert float(found.limits.absolute) == pytest.approx(MARGIN * 2.5e-5, rel=0.06)
    assert float(found.limits.loss) == 2.1e-3
    assert found.limits.source == "measured"
    assert found.gap == pytest.approx(0.01 / 2.1e-3)
    assert (made.every, made.limits) == (1, found.limits)


def test_small_noise_gives_the_least_limit():
    assert float(at(noise(every(1e-9))).limits.relative) == UNSEEN[0]


def test_where_no_noise_is_seen_the_preset_is_named():
    found = at(noise({"threads 2": lambda *_: seen(0, error=1e-9)}))
    assert found.limits.source == "preset"
    assert (float(found.limits.relative), float(found.limits.absolute)) == UNSEEN
    assert found.limits.tensors == {}


def test_tensors_with_less_noise_have_less():
    tensors = {"parameter/quiet": ["1e-07"], "parameter/still": ["0.0"], "buffer/still": ["0.0"]}
    found = at(noise(every(1e-4), tensors=tensors)).limits
    assert float(found.absolute) == pytest.approx(8e-5, rel=0.02)
    # One that showed none has the limit of its kind; where its kind showed none, no more than the preset gives.
    assert found.tensors == {"parameter/quiet": "8e-07", "buffer/still": repr(UNSEEN[1])}
    tensors = {"optimizer/loud": ["1e-05"], "parameter/quiet": ["1e-07"], "parameter/still": ["0.0"]}
    made = noise({"threads 2": lambda *_: seen(1e-4, of="optimizer/loud")}, tensors=tensors | {TENSOR: ["0.0"]})
    assert at(made).limits.tensors == dict.fromkeys(
        ("parameter/model.w", "parameter/quiet", "parameter/still"), "8e-07"
    )  # fmt: skip


def test_a_kind_without_noise_has_no_more_than_another_kind_made_of_it():
    loud = noise({"threads 2": lambda *_: seen(1e-2, of="optimizer/loud")},
                 tensors={"optimizer/loud": ["0.001"], TENSOR: ["0.0"], "buffer/still": ["0.0"]})  # fmt: skip
    assert at(loud).limits.tensors == dict.fromkeys((TENSOR, "buffer/still"), repr(UNSEEN[1]))


# -- gaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("worst", "refused"), [(3.1e-4, False), (3.2e-4, True), (1e-2, True), (0.5, True)])
def test_without_a_gap_it_is_refused(worst, refused):
    made = noise(every(worst))
    found = at(made)
    assert bool(found.refusals) == refused == (made.limits is None)
    if refused:
        assert "no gap: honest replays need" in found.refusals[0]
        assert RATE in found.refusals[0]
        assert "no k will" in instead(made, [found])
        assert "rule exact" in instead(made, [found])
    else:
        assert instead(made, [found]) is None


def test_the_cheapest_lie_of_all_starts_decides():
    made = noise(every(1e-4), {SWAP: lambda start, _: seen(2e-3 if start == 5 else 0.1)})
    assert (at(made).cheapest.name, at(made).cheapest.start, at(made).cheapest.share) == (SWAP, 500, 2e-3)
    assert made.every is None


def test_a_lie_without_an_effect_is_none():
    nothing = {SWAP: lambda *_: EQUAL, RATE: lambda start, _: seen(floored=True, error=1e-9) if start else seen(0.01)}
    assert at(noise(every(1e-4), nothing)).cheapest.name == RATE
    # One that leaves less than the limit, and more than the floor, is one.
    assert at(noise(every(1e-4), {SWAP: lambda *_: seen(1e-5)})).gap < 1


def test_decay_is_shown_and_does_not_count():
    assert DECAY not in COUNTING
    assert noise(every(1e-4), {DECAY: lambda *_: seen(1e-6)}).every == 1


def test_what_never_moved_must_not_pass():
    loud = dict.fromkeys(CHEATS, lambda *_: seen(1e6))
    assert noise(every(0.03), loud).every == 1
    found = at(noise(every(0.04), loud))
    assert "a state that never moved" in found.refusals[0]


def test_without_any_lie_nothing_is_recommended():
    made = noise(every(1e-4), dict.fromkeys(CHEATS, "it cannot"))
    assert at(made).refusals == ["no forgery could be measured, so nothing says what a limit has to stop"]


def test_other_reasons():
    assert "d_ref" in at(noise({"threads 2": lambda *_: seen(1e-4, error=0.13)})).refusals[0]
    made = noise(every(1e-4), drift=0.011)
    assert "1.10% of the way" in at(made).refusals[0]
    assert "--max-every above 1" in instead(made, [at(made)])
    made = noise(every(1e-4), coarse="parameter/model.w")
    assert "24 bits" in at(made).refusals[0]
    assert "train in float32" in instead(made, [at(made)])


def test_the_longest_interval_with_a_gap_is_used():
    growing = {"threads 2": lambda _, rung: seen(1e-5 * rung**2)}
    made = noise(growing, rungs=(1, 2, 5, 10))
    assert [bool(rung.refusals) for rung in rungs(made, REFERENCE)] == [False, False, False, True]
    assert made.every == 5
    assert made.limits == at(made, 2).limits
    assert best(rungs(made, REFERENCE)).every == 5


def test_between_the_two_a_k_that_was_not_measured_is_named():
    made = noise({"threads 2": lambda _, rung: seen(1e-5 * rung**2)}, rungs=(1, 10), drift=0.02)
    assert "--max-every between 1 and 10" in instead(made, rungs(made, REFERENCE))


# -- outliers and rates -------------------------------------------------------------------------------------------


def jump(share):
    """One of 40 replays is far off."""
    return {
        name: lambda start, _, name=name: seen(share if (name, start) == (FLOAT64, 2) else 1e-5 + 1e-7 * start)
        for name in NAMES
    }


def test_one_jump_is_told_apart_where_a_limit_for_it_would_stop_nothing():
    found = at(noise(jump(0.02)))
    assert [(one.name, one.start, one.share) for one in found.outliers] == [(FLOAT64, 200, 0.02)]
    assert not found.refusals
    assert float(found.limits.relative) == UNSEEN[0]
    assert (found.replays, found.intervals) == (Rate(1, 40), Rate(1, 8))


def test_where_limits_pass_it_all_the_same_it_is_no_outlier():
    found = at(noise(jump(3e-4)))
    assert found.outliers == []
    assert float(found.limits.relative) == pytest.approx(2.4e-3)
    assert found.replays == Rate(1, 40)  # but the others did not foresee it


def test_what_is_off_by_less_is_no_outlier():
    made = noise({name: lambda start, _: seen(0.02 if start == 2 else 0.0008) for name in NAMES[:1]})
    assert OUTLIER * 0.0008 > 0.02
    assert at(made).outliers == []
    assert made.every is None


def test_one_step_may_be_off_on_every_machine():
    """As Adam's first is: it counts once, as verifiers count it."""
    found = at(noise({name: lambda start, _: seen(0.02 if start == 0 else 1e-5) for name in NAMES}))
    assert {one.start for one in found.outliers} == {0}
    assert not found.refusals
    assert found.intervals == Rate(1, 8)


def test_jumps_in_two_places_are_too_many():
    both = {
        name: lambda start, _, at=at: seen(0.02 if start == at else 1e-5)
        for name, at in zip(NAMES[:2], (2, 3), strict=True)
    }
    made = noise(both)
    assert at(made).outliers == []
    assert made.every is None


def test_the_only_replay_that_differs_is_no_outlier():
    made = noise({"threads 2": lambda start, _: seen(0.02) if start == 2 else EQUAL})
    assert at(made).outliers == []
    assert made.every is None


def test_limits_are_held_against_what_they_were_not_made_from():
    found = at(noise({name: lambda start, _: seen(2e-4 if start == 0 else 1e-6, absolute=1e-6) for name in NAMES}))
    assert found.replays == Rate(0, 40)  # 8 * 2e-4 is not, 2e-4 is below the least limit
    found = at(noise({name: lambda start, _: seen(2e-4, absolute=1e-3 if start == 0 else 1e-6) for name in NAMES}))
    assert (found.replays, found.intervals) == (Rate(5, 40), Rate(1, 8))


def test_platforms_that_change_nothing_do_not_count():
    assert at(noise({FLOAT64: lambda *_: seen(1e-5)})).replays == Rate(0, 8)


@pytest.mark.parametrize("of", [1, 8, 59, 299])
def test_none_of_n_is_the_rule_of_the_power(of):
    assert Rate(0, of).most == pytest.approx(1 - 0.05 ** (1 / of))


@pytest.mark.parametrize(("beyond", "of"), [(1, 40), (3, 40), (39, 40)])
def test_the_bound_is_where_so_few_become_improbable(beyond, of):
    p = Rate(beyond, of).most
    chance = sum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(beyond + 1))
    assert chance == pytest.approx(0.05)


def test_all_or_none_at_all_bound_nothing():
    assert Rate(4, 4).most == Rate(0, 0).most == 1.0
    assert "nothing can be said" in rate(Rate(0, 0), Rate(0, 0))


def test_the_words_say_the_numbers():
    text = rate(Rate(0, 59), Rate(0, 8))
    assert "Of 59 honest replays" in text
    assert "at most 0.05 of all honest intervals" in text
    assert "0.31 if each of the 8 intervals" in text
    assert f"{audit(Rate(0, 59).most):.2g}" in text
    assert audit(0.01) == pytest.approx(1 - 0.99**100)
    assert audit(1.0) == 1.0


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_growth_is_the_exponent(power):
    made = noise(
        {name: lambda start, k: seen(1e-8 * (1 + start) * k**power) for name in NAMES[:2]}, rungs=(1, 2, 5, 10)
    )
    assert growth(made) == pytest.approx(power)


def test_growth_of_one_rung_is_unknown():
    assert growth(noise(every(1e-4))) is None
    assert growth(noise({})) is None


def test_kept_states():
    assert [keep(steps, every) for steps, every in ((30, 10), (360, 1), (100_000, 1), (100_000, 10))] == [
        1, 4, 1000, 100,
    ]  # fmt: skip


# -- numbers that do not agree ------------------------------------------------------------------------------------

BASE = {name: lambda start, rung: seen(1e-5 * rung, loss=1e-6) for name in NAMES[:3]}


def put(value, *path):
    def change(made):
        plain = msgspec.to_builtins(made)
        *before, last = path
        inner = plain
        for name in before:
            inner = inner[name]
        inner[last] = value
        return msgspec.convert(plain, Noise)

    return change


MALFORMED = {
    "looser limits": (put("0.02", "limits", "relative"), "not what follows"),
    "a looser absolute limit": (put("0.01", "limits", "absolute"), "not what follows"),
    "a looser limit of a tensor": (put({TENSOR: "0.1"}, "limits", "tensors"), "not what follows"),
    "another floor": (put("8.0", "limits", "floor"), "not what follows"),
    "another loss": (put("0.1", "limits", "loss"), "not what follows"),
    "said to be the preset's": (put("preset", "limits", "source"), "not what follows"),
    "a longer interval": (put(1, "every"), "not what follows"),
    "refused without a reason": (put(None, "limits"), "not what follows"),
    "limits without a gap": (put("0.001", "cheats", 3, "found", 0, 1, "relative"), "not what follows"),
    "limits that add up to the way": (put(["0.5", "0.5"], "drift"), "not what follows"),
    "coarse with limits": (put(TENSOR, "coarse"), "not what follows"),
    "a tensor with more noise than any": (put(["1e-06", "0.5"], "tensors", TENSOR), "not the largest"),
    "tensors with less": (put(["1e-06", "1e-06"], "tensors", TENSOR), "not the largest"),
    "nan": (put("nan", "honest", 0, "found", 0, 0, "share"), "not a finite float"),
    "infinite": (put(["inf", "0.0"], "drift"), "not a finite float"),
    "negative": (put("-1.0", "honest", 0, "found", 0, 0, "share"), "never negative"),
    "not the shortest form": (put("1.50", "honest", 0, "found", 0, 0, "share"), "shortest form"),
    "an error with equal bits": (put(True, "honest", 0, "found", 0, 0, "equal"), "equal bits"),
    "a tensor without an error": (put("x", "honest", 3, "found", 0, 0, "relative_of"), "without a tensor"),
    "an error without a tensor": (put("", "honest", 0, "found", 0, 0, "absolute_of"), "without a tensor"),
    "a share without a distance": (put("0.0", "honest", 0, "found", 0, 0, "error"), "both a share and a distance"),
    "an honest error below the floor": (put(True, "honest", 0, "found", 0, 0, "floored"), "below the floor"),
    "a lie below the floor and beyond": (put(True, "cheats", 0, "found", 0, 0, "floored"), "below the floor"),
    "one start less": (lambda made: put(made.starts[:-1], "starts")(made), "not one error for each"),
    "one rung less": (put([msgspec.to_builtins(EQUAL)], "honest", 4, "found", 0), "not one error"),
    "left out and measured": (put("why", "honest", 0, "left_out"), "left out and measured"),
    "neither": (put([], "honest", 0, "found"), "left out and measured"),
    "no lies": (put([], "cheats"), "cheats: not"),
    "a lie that nobody knows": (put("other weather", "cheats", 0, "name"), "cheats: not"),
    "no other arithmetic": (lambda made: put(msgspec.to_builtins(made.honest[:4]), "honest")(made), "not the last two"),
    "the run's own platform": (put(msgspec.to_builtins(PROFILE), "honest", 0, "profile"), "that of the run itself"),
    "one platform twice": (put(msgspec.to_builtins(PLATFORMS[1]), "honest", 0, "profile"), "a profile twice"),
    "a name of another platform": (put("threads 3", "honest", 0, "name"), "how its profile differs"),
    "a lie elsewhere": (put(msgspec.to_builtins(PLATFORMS[1]), "cheats", 0, "profile"), "another profile"),
    "rungs that do not begin at 1": (put([2, 10], "rungs"), "not increasing from 1"),
    "rungs twice": (put([1, 1], "rungs"), "not increasing"),
    "rungs beyond the run": (put([1, 1001], "rungs"), "beyond the run"),
    "starts beyond the run": (put([0, 100, 200, 300, 400, 500, 600, 1000], "starts"), "starts: not increasing"),
    "a start twice": (put([0, 0, 200, 300, 400, 500, 600, 700], "starts"), "starts: not increasing"),
    "fewer drifts": (put(["0.0001"], "drift"), "1 numbers for 2 rungs"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_numbers_that_do_not_agree_are_refused(case):
    change, message = MALFORMED[case]
    changed = change(noise(BASE, rungs=(1, 10)))
    with pytest.raises(FormatError, match=message):
        check(changed)


def test_two_platforms_are_too_few():
    left = dict.fromkeys(NAMES[2:], "it cannot")
    with pytest.raises(FormatError, match="fewer than 3 conditions"):
        noise({**BASE, **left})

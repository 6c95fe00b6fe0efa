"""Drawing challenges, and what the draws say in numbers."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pol.digest import sha256
from pol.proof.challenge import STRATA, WEIGHT_CAP, Window, _shares, draw, largest_forged_share
from pol.proof.policy import Challenge
from pol.proof.report import confidence_sentence

ATTESTATION = sha256(b"attestation")
NONCE = bytes(32)
KNOWN_UNIFORM = [177, 252, 129, 229, 157]
KNOWN_WEIGHTED = [17, 18, 115, 116, 168, 169, 358, 359, 380, 381]


def windows(sizes, length=1):
    return [
        Window(first=i * length, last=(i + 1) * length - 1, sizes={"weights": size, "optimizer": 1.0})
        for i, size in enumerate(sizes)
    ]


def ask(challenge, sizes=(1.0,) * 400, length=1, nonce=NONCE, resumed=()):
    return draw(challenge, ATTESTATION, nonce, windows(sizes, length), resumed)


def test_known_answer():
    """Anyone can repeat a draw from the attestation digest and the nonce."""
    drawn = ask(Challenge(uniform=5, weighted=5), sizes=[float(1 + i % 7) for i in range(400)])
    assert drawn.uniform == KNOWN_UNIFORM
    assert drawn.weighted == KNOWN_WEIGHTED


@given(st.integers(1, 300), st.integers(1, 5), st.sampled_from(["all", "top-q", "uniform", "size-weighted", "mix"]))
def test_never_none_and_always_first_and_last(count, length, strategy):
    drawn = ask(Challenge(strategy=strategy, uniform=3, weighted=3), sizes=[1.0] * count, length=length)
    chosen = drawn.all()
    assert {*range(length), *range((count - 1) * length, count * length)} <= set(chosen)
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < count * length == drawn.intervals


def test_all_and_mix_on_a_short_run_are_everything():
    assert ask(Challenge(strategy="all")).all() == list(range(400))
    assert ask(Challenge(), sizes=[1.0] * 150).all() == list(range(150))
    assert len(ask(Challenge(), sizes=[1.0] * 151).all()) < 151


def test_uniform_draws_are_nested():
    few, many = ask(Challenge(strategy="uniform", uniform=10)), ask(Challenge(strategy="uniform", uniform=50))
    assert len(few.uniform) == len(set(few.uniform)) == 10
    assert many.uniform[:10] == few.uniform


def test_weighted_draws_are_nested():
    few, many = ask(Challenge(weighted=10)), ask(Challenge(weighted=50))
    assert set(few.weighted) <= set(many.weighted)


SUSPECTS = [7, 300, 7, 123, 44, 45, 46]


def test_suspects_are_added_and_nested_and_change_no_other_draw():
    without = ask(Challenge())
    assert without.screened == []
    for count, expected in ((0, []), (2, [7, 300]), (3, [7, 300]), (5, [7, 44, 123, 300]), (99, sorted(set(SUSPECTS)))):
        drawn = draw(Challenge(screened=count), ATTESTATION, NONCE, windows([1.0] * 400), (), SUSPECTS)
        assert drawn.screened == expected
        assert msgspec.structs.replace(drawn, screened=[]) == without
        assert set(drawn.all()) == {*without.all(), *expected}


@pytest.mark.parametrize("strategy", ["all", "top-q", "uniform", "size-weighted"])
def test_a_strategy_of_one_kind_has_no_suspects(strategy):
    assert draw(Challenge(strategy=strategy), ATTESTATION, NONCE, windows([1.0] * 400), (), SUSPECTS).screened == []


def test_no_confidence_rests_on_suspects():
    few = Challenge(uniform=10, screened=5)
    drawn = draw(few, ATTESTATION, NONCE, windows([1.0] * 1000), (), SUSPECTS)
    assert confidence_sentence(drawn) == confidence_sentence(ask(few, sizes=[1.0] * 1000))
    alone = draw(Challenge(uniform=0, top=0, weighted=0), ATTESTATION, NONCE, windows([1.0] * 400), (), SUSPECTS)
    assert "none drawn uniformly: the share that is forged is not bounded" in confidence_sentence(alone)


def test_more_uniform_draws_than_intervals_are_all_of_them():
    assert sorted(ask(Challenge(strategy="uniform", uniform=10_000)).uniform) == list(range(400))


def test_another_nonce_or_attestation_draws_others():
    drawn = ask(Challenge(strategy="uniform", uniform=20)).uniform
    assert ask(Challenge(strategy="uniform", uniform=20), nonce=bytes(31) + b"\x01").uniform != drawn
    other = draw(Challenge(strategy="uniform", uniform=20), sha256(b"other"), NONCE, windows([1.0] * 400), ())
    assert other.uniform != drawn


def test_the_largest_window_of_every_kind_in_every_stratum_and_the_one_before():
    sizes = [1.0] * 400
    jumps = [400 * i // STRATA + 7 for i in range(STRATA)]
    for jump in jumps:
        sizes[jump] = 50.0
    drawn = ask(Challenge(strategy="top-q"), sizes=sizes)
    assert {*jumps, *(jump - 1 for jump in jumps)} <= set(drawn.top)


def test_a_jump_of_the_optimizer_alone_is_seen():
    found = windows([1.0] * 400)
    found[123] = Window(first=123, last=123, sizes={"weights": 0.0, "optimizer": 99.0})
    assert 123 in draw(Challenge(strategy="top-q"), ATTESTATION, NONCE, found, ()).top


def test_top_q_with_more_windows_than_a_stratum_has():
    assert set(ask(Challenge(strategy="top-q", top=10_000)).top) == set(range(400))


def test_neighbours_of_a_resume():
    assert {199, 200} <= set(ask(Challenge(strategy="uniform", uniform=1), resumed=[200]).mandatory)


@given(st.lists(st.floats(0, 1e308), min_size=1, max_size=60))
def test_shares_are_a_capped_distribution(sizes):
    shares = _shares(windows(sizes), "weights")
    assert math.isclose(sum(shares), 1.0, rel_tol=1e-9)
    assert min(shares) >= 0
    assert max(shares) <= WEIGHT_CAP + 1 / len(sizes) + 1e-9


@pytest.mark.parametrize(
    ("intervals", "forged", "draws"),
    [(100, 10, 25), (780, 39, 57), (1000, 10, 258), (1000, 100, 29), (10_000, 100, 294)],
)
def test_confidence_is_the_hypergeometric_table(intervals, forged, draws):
    """The 95 % column of the sampling table (study of attacks, section 8): so many draws suffice, one fewer do not."""
    assert largest_forged_share(intervals, draws) < forged / intervals
    assert largest_forged_share(intervals, draws - 1) >= forged / intervals


def test_confidence_at_the_ends():
    assert largest_forged_share(100, 0) == 1.0
    assert largest_forged_share(100, 100) == 0.0
    assert largest_forged_share(1, 1) == 0.0


def test_the_sentence_uses_uniform_draws_alone():
    drawn = ask(Challenge(uniform=100, weighted=60), sizes=[1.0] * 1000)
    assert "at most 2.8 %" in confidence_sentence(drawn)  # 100 of 1000, as above
    assert "probability 0.1" in confidence_sentence(drawn)
    assert "every one is an exact execution" in confidence_sentence(ask(Challenge(strategy="all")))
    assert "not bounded" in confidence_sentence(ask(Challenge(strategy="top-q"), sizes=[1.0] * 1000))

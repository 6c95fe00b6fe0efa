"""A challenge whose nonce is known beforehand can be ground; a fresh one meets the lie as often as it should."""

import hashlib
import math

import msgspec
import pytest

from factory import PLAIN, check, known_key, same_every_time
from pol.attacks.foresight import Foresight, seen
from pol.attacks.registry import REGISTRY
from pol.digest import raw
from pol.profile import Profile
from pol.proof.attestation import attestation_digest
from pol.proof.challenge import miss, shares
from pol.proof.policy import EXACT, Challenge
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess

NONCES = 1000
FULL = msgspec.structs.replace(EXACT, challenge=Challenge(strategy="all"))
NAMES = ["ground-challenge", "ground-fiat-shamir"]


def foresight(path, policy=EXACT):
    return Foresight(seen(path, policy))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """An honest run of 210 intervals: more than are all replayed."""
    out = tmp_path_factory.mktemp("long") / "honest"
    with same_every_time("honest"):
        record(
            PLAIN, out, key=known_key(1), every=1, settings={"num_epochs": 30}, profile=Profile(threads=1),
            executor=InProcess(),
        )  # fmt: skip
    return out


@pytest.fixture(scope="module", params=NAMES)
def ground(request, long_run):
    """A ground proof, and the nonce that its maker foresaw."""
    out = long_run.parent / request.param
    with same_every_time(request.param):
        path = REGISTRY[request.param].forge(long_run, out, known_key(1), PLAIN, InProcess(), policy=EXACT).path
    digest = attestation_digest(foresight(path).attestation)
    return path, bytes(32) if request.param == "ground-challenge" else raw(digest)


@pytest.fixture(scope="module")
def lie(ground):
    """The interval that is forged."""
    report = check(ground[0], PLAIN, policy=FULL)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    (wrong,) = [result.index for result in report.intervals if result.status == "failed"]
    return wrong


def test_the_foreseen_challenge_passes(ground):
    path, nonce = ground
    report = check(path, PLAIN, nonce=nonce)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert len(report.draws.all()) > 100
    assert report.draws == foresight(path).draws(nonce)


def test_a_fresh_nonce_meets_the_lie_as_often_as_predicted(ground, lie):
    """Draws alone, looked up; uniform ones hypergeometric, and of the size-weighted ones those of it and the next."""
    seen = foresight(ground[0])
    nonces = [hashlib.sha256(f"nonce {number}".encode()).digest() for number in range(NONCES)]
    met = sum(seen.meets(seen.draws(nonce).all(), [lie]) for nonce in nonces)
    windows = seen.windows
    unseen = miss(len(windows), 1, EXACT.challenge.uniform)
    for draws, share in shares(windows, EXACT.challenge.weighted):
        unseen *= (1 - share[lie] - share[lie + 1]) ** draws  # a window is replayed with the interval before it
    spread = math.sqrt(NONCES * unseen * (1 - unseen))
    assert 0.4 < 1 - unseen < 0.9
    assert abs(met - NONCES * (1 - unseen)) < 4 * spread


def test_a_nonce_that_meets_it_rejects(ground, lie):
    path, _ = ground
    seen = foresight(path)
    nonces = (bytes([number] * 32) for number in range(1, 256))
    nonce = next(n for n in nonces if seen.meets(seen.draws(n).all(), [lie]))
    report = check(path, PLAIN, nonce=nonce)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert f"First: interval {lie} " in report.reason()


def test_where_everything_is_replayed_there_is_nothing_to_grind(long_run):
    out = long_run.parent / "full"
    with same_every_time("full"):
        forgery = REGISTRY["ground-challenge"].forge(long_run, out, known_key(1), PLAIN, InProcess(), policy=FULL)
    seen = foresight(forgery.path, FULL)
    assert seen.everything
    report = check(forgery.path, PLAIN, policy=FULL)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert "1 of 210 replayed intervals failed" in report.reason()

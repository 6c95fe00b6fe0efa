"""A splice ends where it should but for roundings, and only the interval that was never taken fails."""

import functools
import tempfile
from pathlib import Path

import msgspec
import pytest
import torch

from factory import (
    EVERY,
    PLAIN,
    RECIPE,
    STEPS,
    TOLERANCE,
    check,
    decision,
    factory,
    judge,
    known_key,
    same_every_time,
)  # fmt: skip
from pol.attacks import arriving
from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.planning import foreseen
from pol.attacks.registry import REGISTRY
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.policy import EXACT, Challenge
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess

ADAM = PLAIN.replace("plain.py:Plain", "adam.py:Adam")
LUCK = msgspec.structs.replace(EXACT, challenge=Challenge(strategy="uniform", top=0, uniform=4, weighted=0))
"""Only chance looks at most intervals."""
LARGEST = msgspec.structs.replace(EXACT, challenge=Challenge(strategy="top-q", top=1))
MIXED = msgspec.structs.replace(EXACT, challenge=Challenge(strategy="mix", top=1, uniform=1, all_up_to=0))
POLICIES = {"exact": EXACT, "luck": LUCK, "largest": LARGEST, "mixed": MIXED}
"""That a forger has read."""


@functools.cache
def target(recipe):
    """The model to steal, of single steps."""
    out = Path(tempfile.mkdtemp(prefix="pol-splicing-")) / "proof"
    with same_every_time("target"):
        record(recipe, out, key=known_key(1), every=1, profile=Profile(threads=1), executor=InProcess())
    return out


@functools.cache
def forged(name, recipe=RECIPE, policy="exact", every=EVERY):
    out = Path(tempfile.mkdtemp(prefix="pol-splicing-")) / "out"
    with same_every_time("splicing"):
        stolen = target(recipe) if every == 1 else factory().proof(recipe=recipe)
        return REGISTRY[name].forge(stolen, out, known_key(2), recipe, InProcess(), policy=POLICIES[policy])


def honest(recipe):
    """The thief's own run, of the same genesis."""

    def make(workshop, out):
        forger = workshop.begin()
        workshop.train(forger)
        forger.seal(out, workshop.key)

    out = Path(tempfile.mkdtemp(prefix="pol-splicing-")) / "out"
    with same_every_time("splicing"):
        attack = Attack("test", "a test", "thief", make)
        return attack.forge(target(recipe), out, known_key(2), recipe, InProcess()).path


def off(forgery, recipe, every=EVERY, kind="parameter/"):
    """How many values are not the stolen ones, of how many, and the largest error in shares of the largest value."""
    stolen = Forger(target(recipe) if every == 1 else factory().proof(recipe=recipe)).states[STEPS].tensors
    ends = Forger(forgery.path).states[STEPS].tensors
    keys = [key for key in stolen if key.startswith(kind)]
    wrong = sum(int((stolen[key] != ends[key]).sum()) for key in keys)
    errors = [float((stolen[k].double() - ends[k].double()).abs().max() / stolen[k].abs().max()) for k in keys]
    return wrong, sum(stolen[key].numel() for key in keys), max(errors, default=0.0)


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN])
@pytest.mark.parametrize("name", ["splice", "splice-hidden"])
def test_three_ordinary_steps_end_a_few_roundings_off(name, recipe):
    forgery = forged(name, recipe)
    wrong, count, error = off(forgery, recipe)
    assert wrong < 0.2 * count
    assert error < 2e-6
    assert off(forgery, recipe, kind="buffer/")[2] < 1e-6
    report = check(forgery.path, recipe)
    assert decision(report) == (Verdict.REJECT, 7)
    assert [result.status for result in report.intervals] == ["passed"] * 3 + ["failed", "passed"]


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN])
def test_one_ordinary_step_ends_right_but_for_values_that_have_grown_small(recipe):
    forgery = forged("splice", recipe, every=1)
    wrong, count, _ = off(forgery, recipe, every=1)
    assert wrong < 0.01 * count
    report = check(forgery.path, recipe)
    assert decision(report) == (Verdict.REJECT, 7)
    assert [result.index for result in report.intervals if result.status == "failed"] == [STEPS - 2]


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN])
def test_a_forged_momentum_carries_honest_weights_nearly_there(recipe):
    """In one step as far as numbers of the size of the way can say where that is."""
    forgery = forged("splice-momentum", recipe, every=1)
    wrong, count, error = off(forgery, recipe, every=1)
    assert wrong < 0.5 * count
    assert error < 1e-6
    report = check(forgery.path, recipe)
    assert [result.index for result in report.intervals if result.status == "failed"] == [STEPS - 2]
    found, own = (Forger(path).states[STEPS - 1].tensors for path in (forgery.path, honest(recipe)))
    assert {key.partition("/")[0] for key in own if not torch.equal(found[key], own[key])} == {"optimizer"}


def test_where_only_chance_looks_the_jump_is_away_from_what_is_certain():
    """The last interval and the one before it are always replayed, so the jump is before these."""
    forgery, plain = forged("splice-hidden", policy="luck", every=1), forged("splice", every=1)
    failed = [r.index for r in check(forgery.path).intervals if r.status == "failed"]
    assert failed == [STEPS - 3]
    assert foreseen(plain.path, LUCK, [STEPS - 2]) == 0
    foretold = foreseen(forgery.path, LUCK, failed)
    assert foretold == pytest.approx(1 - 4 / STEPS)
    found = [check(forgery.path, policy=LUCK, nonce=bytes([number] * 32)).verdict for number in range(20)]
    assert {*found} == {Verdict.ACCEPT, Verdict.REJECT}
    assert found.count(Verdict.ACCEPT) >= 8


@pytest.mark.parametrize("known", ["largest", "mixed"])
def test_at_ordinary_settings_nothing_hides_a_jump_from_a_look_at_the_largest(known):
    forgery = forged("splice-hidden", policy=known, every=1)
    failed = [r.index for r in check(forgery.path).intervals if r.status == "failed"]
    assert len(failed) == 1
    assert foreseen(forgery.path, POLICIES[known], failed) == 0
    assert decision(check(forgery.path, policy=POLICIES[known])) == (Verdict.REJECT, 7)


def test_under_rule_tolerance_the_jump_is_what_fails():
    for name in ("splice", "splice-momentum", "splice-hidden"):
        report = judge(name, rule="tolerance", policy=TOLERANCE)
        assert [result.index for result in report.intervals if result.status == "failed"] == [3]


def test_gradients_are_counted(monkeypatch):
    """All steps are taken through the workshop: what is tried between two looks takes none."""
    monkeypatch.setattr(arriving, "LOOKS", 1)
    out = Path(tempfile.mkdtemp()) / "out"
    with same_every_time("splicing"):
        forgery = REGISTRY["splice"].forge(target(PLAIN), out, known_key(2), PLAIN, InProcess())
    assert forgery.cost.gradients < forged("splice", PLAIN, every=1).cost.gradients


@pytest.mark.parametrize("name", ["splice", "splice-momentum", "splice-hidden"])
def test_without_momenta_there_is_nothing_to_land_with(name, tmp_path):
    with pytest.raises(UsageError, match="needs SGD with momentum"):
        REGISTRY[name].forge(factory().proof(recipe=ADAM), tmp_path / "out", known_key(2), ADAM, InProcess())


@pytest.mark.slow
def test_of_digits_a_look_leaves_one_in_a_hundred(tmp_path):
    """Ten steps under batch normalisation, dropout and a rate that falls to nearly nothing."""
    digits, options = "pol.recipes.digits:DigitsCNN", {"profile": Profile(threads=1), "executor": InProcess()}
    with same_every_time("digits"):
        record(digits, tmp_path / "t", key=known_key(1), every=10, settings={"num_epochs": 3}, **options)
        forgery = REGISTRY["splice"].forge(tmp_path / "t", tmp_path / "out", known_key(2), digits, InProcess())
    stolen, ends = (Forger(path).states[90].tensors for path in (tmp_path / "t", forgery.path))
    keys = [key for key in stolen if key.startswith("parameter/")]
    assert sum(int((stolen[key] != ends[key]).sum()) for key in keys) < 0.02 * sum(stolen[k].numel() for k in keys)
    assert max(float((stolen[key] - ends[key]).abs().max()) for key in keys) < 1e-5
    report = check(forgery.path, digits)
    assert [result.index for result in report.intervals if result.status == "failed"] == [7]

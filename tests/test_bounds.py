"""The bounds of a policy: ordinary trainings are within those of the preset, and each stops what nothing else stops."""

import functools
import tempfile
from pathlib import Path

import msgspec
import pytest
from benchmarks.features import FEATURES, ZOO, policy_for

from factory import RECIPE, check, factory, known_key, same_every_time
from pol.attacks.forger import Forger
from pol.errors import PolError
from pol.messages import Failed, Program, Trial
from pol.policies import load
from pol.profile import Profile
from pol.proof.bounds import OF_TRIAL, Bounds
from pol.proof.policy import EXACT, Challenge
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from test_engine import one_thread  # noqa: F401  # the fixture is used by being here

ORDINARY = str(Path(__file__).parent / "recipes" / "ordinary.py")
PRESET = load("tolerance").bounds
FEW = Challenge(strategy="uniform", uniform=1)
"""What is bounded is bounded everywhere: replays have tests of their own."""


@functools.cache
def folder():
    return Path(tempfile.mkdtemp(prefix="pol-bounds-", dir=factory().folder))


@functools.cache
def _recorded(recipe, encoded, every, keep):
    settings = msgspec.json.decode(encoded)
    out = folder() / str(len(list(folder().iterdir())))
    options = {"every": every, "keep": keep, "profile": Profile(threads=1), "executor": InProcess()}
    with same_every_time(f"{recipe} {encoded}"):
        record(recipe, out, key=known_key(1), settings=settings, **options)
    return out


def recorded(recipe=f"{ORDINARY}:Ordinary", every=1, keep=1, **settings):
    """A recording, made once."""
    return _recorded(recipe, msgspec.json.encode(settings), every, keep)


def bounded(bounds, policy=EXACT):
    return msgspec.structs.replace(policy, bounds=bounds, challenge=FEW)


def said(report):
    return "; ".join(f"{one.name}: {one.detail}" for step in report.steps for one in step.checks)


# -- what is ordinary passes ----------------------------------------------------------------------------------------

USUAL = {
    **{name: {"optimizer": name, "lr": 0.05, "weight_decay": 5e-4} for name in ("sgd", "plain sgd", "nesterov")},
    **{
        name: {"optimizer": name, "lr": 1e-3}
        for name in ("adam", "amsgrad", "adamw", "nadam", "radam", "adamax", "rmsprop", "rmsprop of mobile networks")
    },
    "adagrad": {"optimizer": "adagrad", "lr": 0.01},
    "adadelta": {"optimizer": "adadelta", "lr": 1.0},
    "adamw with much decay": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1},
    "a language model's": {
        "optimizer": "adamw of language models", "lr": 6e-4, "weight_decay": 0.1, "clip": 1.0,
        "schedule": "warm-up, then cosine",
    },
    "fine-tuning": {"optimizer": "adamw", "lr": 1e-6, "schedule": "polynomial"},
    **{
        schedule: {"optimizer": "sgd", "lr": 0.05, "schedule": schedule}
        for schedule in (
            "cosine", "steps", "milestones", "exponential", "polynomial", "one cycle", "cyclic", "warm restarts",
            "warm-up, then cosine", "lambda from 0 to 0", "plateau",
        )
    },
    "adam with one cycle": {"optimizer": "adam", "lr": 0.01, "schedule": "one cycle"},
    "smoothing": {"smoothing": 0.1},
    "much smoothing": {"smoothing": 0.3},
    "no dropout": {"dropout": 0.0},
    "dropout": {"dropout": 0.5},
    "much dropout": {"dropout": 0.8},
    "clipped": {"clip": 1.0},
    "clipped hard": {"clip": 0.1},
    "clipped by value": {"clip_value": 0.5},
    "weights of classes": {"weights": [1.0, 5.0, 100.0]},
    "a class left out": {"weights": [1.0, 1.0, 0.0]},
    "squares": {"loss": "squares"},
    "layer-wise decay": {"multiplier": 0.01},
    "a high rate": {"lr": 0.5},
    "slow statistics": {"norm": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("every", [1, 10])
def test_an_ordinary_training_is_within_the_preset(name, every):
    report = check(recorded(every=every, **USUAL[name]), f"{ORDINARY}:Ordinary", policy=bounded(PRESET))
    assert report.verdict is Verdict.ACCEPT, report.reason()


def test_rates_by_hand_are_within_the_preset():
    recipe = f"{ORDINARY}:ByHand"
    report = check(recorded(recipe), recipe, policy=bounded(PRESET))
    assert report.verdict is Verdict.ACCEPT, report.reason()


SHIPPED = {
    "digits": ("pol.recipes.digits:DigitsCNN", {"num_epochs": 2}),
    "text": ("pol.recipes.text:CharGPT", {"num_epochs": 1, "steps_per_epoch": 20, "width": 32, "layers": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("every", [1, 10])
def test_a_shipped_recipe_is_within_the_preset(name, every):
    recipe, settings = SHIPPED[name]
    report = check(recorded(recipe, every, **settings), recipe, policy=bounded(PRESET))
    assert report.verdict is Verdict.ACCEPT, report.reason()


@pytest.mark.slow
@pytest.mark.parametrize("feature", [pytest.param(one, id=one.recipe) for one in FEATURES if not one.refused])
def test_a_feature_is_within_the_preset(feature):
    """Of twelve steps each, so that what is counted over a whole run is hardest on them."""
    recipe = f"{ZOO}/{feature.recipe}"
    path = recorded(recipe)
    report = check(path, recipe, policy=bounded(PRESET, policy_for(path)))
    assert report.verdict is Verdict.ACCEPT, report.reason()

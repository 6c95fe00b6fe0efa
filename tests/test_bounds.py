"""The bounds of a policy: ordinary trainings are within those of the preset, and each stops what nothing else stops."""

import contextlib
import functools
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from benchmarks.features import FEATURES, ZOO, policy_for

from factory import NONCE, RECIPE, check, factory, known_key, same_every_time
from pol.attacks.forger import Forger
from pol.auditor import LocalAuditor
from pol.errors import IntegrityError
from pol.interval import Rates
from pol.messages import Failed, Program, Trial
from pol.policies import load
from pol.profile import Profile
from pol.proof.bounds import Bounds
from pol.proof.policy import EXACT, Challenge
from pol.proof.report import Verdict
from pol.prover import record
from pol.release import write_model
from pol.replay import trial
from pol.replay.engine import Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.inprocess import InProcess
from pol.replay.places import Places
from pol.verifier import foreign, plausible, trying, verify
from pol.verifier.case import passed
from test_engine import one_thread  # noqa: F401  # the fixture is used by being here

ORDINARY = str(Path(__file__).parent / "recipes" / "ordinary.py")
PRESET = msgspec.structs.replace(load("tolerance").bounds, max_every=10)
FEW = Challenge(strategy="uniform", uniform=0)
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
@pytest.mark.parametrize("every", [1, pytest.param(10, marks=pytest.mark.slow)])
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
@pytest.mark.parametrize("every", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_shipped_recipe_is_within_the_preset(name, every):
    recipe, settings = SHIPPED[name]
    report = check(recorded(recipe, every, **settings), recipe, policy=bounded(PRESET))
    assert report.verdict is Verdict.ACCEPT, report.reason()


@pytest.mark.slow
@pytest.mark.parametrize("feature", [pytest.param(one, id=one.recipe) for one in FEATURES if not one.refused])
def test_a_feature_is_within_the_preset(feature):
    """Of twelve steps each, so that what is counted over a whole run is hardest on them."""
    recipe = f"{ZOO}/{feature.recipe}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a compiler's own
        path = recorded(recipe)
        report = check(path, recipe, policy=bounded(PRESET, policy_for(path)))
    if feature.recipe == "zoo_schedules.py:ByHand":  # its decay changes, and is in no record
        assert "weight_decay may change during the run and is not recorded" in report.reason()
    else:
        assert report.verdict is Verdict.ACCEPT, report.reason()


# -- what is not ----------------------------------------------------------------------------------------------------


def forged(change, recipe=f"{ORDINARY}:Ordinary", **settings):
    """An honest run in which something is changed where nobody replays."""
    out = folder() / f"forged-{change.__name__}"
    if not out.exists():
        forger = Forger(recorded(recipe, **settings))
        change(forger)
        forger.seal(out, known_key(1))
    return out


def other_rate(forger):
    """One step in the middle at another rate than the schedule's."""
    forger.replace(20, learning_rates=[Rates(steps=1, values=["0.04", "0.04"])])


def no_rate(forger):
    """Steps in the middle that moved the weights are recorded at next to no rate (attack study, A4)."""
    for index in range(10, 30):
        forger.replace(index, learning_rates=[Rates(steps=1, values=["1e-12", "1e-12"])])


def early_count(forger):
    """A schedule that is stepped on before its time, in the middle."""
    interval = forger.intervals[20]
    forger.replace(20, schedules={"schedule": interval.schedules["schedule"] + 1})


def other_constant(forger):
    """One step in the middle at another rate than the declared one, that no schedule moves."""
    forger.replace(20, learning_rates=[Rates(steps=1, values=["0.01", "0.011"])])


def teleport(forger):
    """One step in the middle has the loss of another model."""
    forger.replace(12, loss="1e-06")


OWN = f"{ORDINARY}:Ordinary"
# Name -> recipe, settings or how an honest run is changed, what the policy says, step that stops it, what is said.
BAD = {
    "a huge rate": (OWN, {"optimizer": "adamw", "lr": 11.0}, "learning_rate", None, 4, "learning rate is 11.0 from"),
    "a tiny rate": (OWN, {"lr": 1e-9}, "least_rate", None, 4, "of the whole run is 1e-09, the policy demands 1e-08"),
    "decay": (OWN, {"optimizer": "plain sgd", "lr": 1e-3, "weight_decay": 2e3}, "rate_times_decay", None, 4, "is 2.0"),
    "a group at next to nothing": (OWN, {"multiplier": 1e-6}, "multiplier", None, 4, "groups of optimizer is 1000000"),
    "a schedule of its own": (OWN, {"schedule": "own"}, "schedules", None, 4, "schedule follows a "),
    "rates by hand": (f"{ORDINARY}:ByHand", {}, "schedules", ("torch.optim.lr_scheduler.StepLR",), 4, "is set by hand"),
    "rates to and fro": (OWN, {"schedule": "to and fro"}, "reversals", None, 4, "38 times, first at step 2, the rate"),
    "fitted rates": (f"{ORDINARY}:ByHand", {"loss": "fitted"}, "reversals", None, 4, "times, first at step"),
    "another rate": (OWN, other_rate, "scheduled", None, 5, "is 0.04 at step 20, where the schedule schedule gives"),
    "another constant rate": (OWN, other_constant, "scheduled", None, 4, "0.011 at step 20, in parameter group 1"),
    "a count too early": (OWN, early_count, "scheduled", None, 5, "the learning rate is"),
    "no new gradient": (OWN, {"optimizer": "no new gradient"}, "momentum", None, 4, "dampening of optimizer, group"),
    "a large eps": (OWN, {"optimizer": "large eps"}, "eps", None, 4, "eps of optimizer, group 0, is 1000000"),
    "a large eps, unnamed": (OWN, {"optimizer": "large eps"}, "progress", None, 4, "40 of 40 windows moved"),
    "frozen": (OWN, {"trained": False}, "frozen", None, 4, "(6 tensors, first parameter/model.0.0.bias) is 0.93"),
    "too short": (OWN, {}, "min_steps", 41, 4, "the run has 40 steps, the policy demands 41"),
    "too few epochs": (OWN, {}, "min_epochs", 6, 4, "the run has 5 epochs, the policy demands 6"),
    "long intervals": (OWN, {"every": 20}, "max_every", None, 4, "an interval has 20 steps, the policy allows 10"),
    "mostly skipped": (f"{ORDINARY}:Skipping", {}, "skipped", None, 4, "the share of skipped steps ("),
    "rounded away": (OWN, {"lr": 1e-9}, "moved", None, 4, "40 of 40 windows changed no parameter"),
    "moved at no rate": (OWN, no_rate, "pace", None, 4, "the move per learning rate from step 10 to 11, in parameter"),
    "turned over": (OWN, {"optimizer": "plain sgd", "lr": 1e-3, "weight_decay": 2e3}, "update", None, 4,
                    "the move of one step from step 2 to 3, as a share of the norm of the parameters, is 1.99"),
    "a teleport": (OWN, teleport, "loss_drop", None, 4, "the fall of the loss from step 12 to 13, as a share of the"),
    "clipped to nothing": (OWN, {"clip": 1e-6}, "clip_norm", None, 5, "clip_norm at ordinary.py:"),
    "each clipped to nothing": (OWN, {"clip_value": 1e-9}, "clip_value", None, 5, "clip_value at ordinary.py:"),
    "all dropped": (OWN, {"dropout": 0.99}, "dropout", None, 5, "dropout at ordinary.py:"),
    "no labels": (OWN, {"smoothing": 1.0}, "label_smoothing", None, 5, "label_smoothing at ordinary.py:"),
    "classes left out": (OWN, {"weights": [1.0, 1.0, 0.0]}, "zero_weights", 0.3, 5, "zero_weights at ordinary.py:"),
    "statistics of one batch": (OWN, {"norm": 0.99}, "norm_momentum", None, 5, "norm_momentum at model.0.1 is 0.99"),
    "a loss times 0": (OWN, {"scale": 0.0, "weight_decay": 1.0}, "gradient", None, 5, "is 0, the policy demands"),
}  # fmt: skip


def bad(name):
    recipe, made, key, value, step, words = BAD[name]
    settings = {"lr": 0.01} if made is other_constant else {"schedule": "cosine", "lr": 0.01}
    path = recorded(recipe, **made) if isinstance(made, dict) else forged(made, recipe, **settings)
    return path, recipe, key, getattr(PRESET, key) if value is None else value, step, words


@pytest.mark.parametrize("name", BAD)
def test_a_bound_stops_what_nothing_else_stops(name):
    path, recipe, key, value, step, words = bad(name)
    before = check(path, recipe, policy=bounded(Bounds()))
    assert before.verdict is Verdict.ACCEPT, before.reason()
    after = check(path, recipe, policy=bounded(Bounds(**{key: value})))
    assert (after.verdict, after.caught_by) == (Verdict.REJECT, step), after.reason()
    assert words in after.reason()
    assert f"bounds.{key}" in after.reason() or key in (
        "learning_rate",
        "rate_times_decay",
        "min_steps",
        "min_epochs",
        "max_every",
    )


def test_every_bound_stops_something():
    assert {key for _, _, key, *_ in BAD.values()} | {"start_loss"} == set(Bounds.__struct_fields__)
    on = {key for key in Bounds.__struct_fields__ if getattr(PRESET, key) != getattr(Bounds(), key)}
    assert on == set(Bounds.__struct_fields__) - {"min_steps", "min_epochs"}


def test_a_stolen_start_has_too_low_a_loss(monkeypatch):
    """Where the weights themselves were not tested (attack study, T12)."""
    path = stolen("observed")
    monkeypatch.setattr(foreign, "observed", lambda *_, **__: iter([passed("origin", "switched off")]))
    policy = msgspec.structs.replace(EXACT, assurance="observed")
    before = check(path, OWN, policy=bounded(Bounds(), policy))
    assert before.verdict is Verdict.ACCEPT, before.reason()
    after = check(path, OWN, policy=bounded(Bounds(start_loss=PRESET.start_loss), policy))
    assert (after.verdict, after.caught_by) == (Verdict.REJECT, 5), after.reason()
    assert "the mean loss of the first 1 steps is" in after.reason()
    assert "this run did not begin untrained" in after.reason()


def test_a_start_from_weights_with_a_proof_may_have_any_loss_and_any_part_frozen():
    path = stolen("given")
    bounds = Bounds(start_loss=PRESET.start_loss, frozen=0.0)
    report = check(path, OWN, policy=bounded(bounds), start=folder() / "stolen.safetensors")
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert "this run does not claim an untrained start" in said(report)


def stolen(kind):
    """A run that starts from the weights of another, which was trained for long."""
    weights, out = folder() / "stolen.safetensors", folder() / f"stolen-{kind}"
    if not weights.exists():
        write_model(recorded(num_epochs=100), weights)
    if not out.exists():
        options = {"every": 1, "profile": Profile(threads=1), "executor": InProcess()}
        with same_every_time("stolen"):
            record(OWN, out, key=known_key(1), start=weights, start_kind=kind, **options)
    return out


# -- losses of small batches ----------------------------------------------------------------------------------------


def of_losses(values, batch):
    """What there is of a run for the bound of losses: one step in every interval."""
    intervals = [SimpleNamespace(start=at, stop=at + 1, loss=repr(float(loss))) for at, loss in enumerate(values)]
    spec = SimpleNamespace(every=1, batches_per_step=1, declaration=SimpleNamespace(batch_size=batch))
    return SimpleNamespace(
        policy=SimpleNamespace(bounds=Bounds(loss_drop=PRESET.loss_drop)),
        genesis=SimpleNamespace(spec=spec),
        log=SimpleNamespace(intervals=intervals),
    )


def falls(values, batch):
    """Whether the losses of a run fall by more than the preset allows."""
    try:
        return [one.status for one in plausible.losses(of_losses(values, batch))] != ["passed"]
    except IntegrityError:
        return True


def line_losses(batch, runs=200, steps=300, size=8, rate=0.01):
    """Losses of runs that fit a plane to noisy points with plain SGD, each with its own start, plane and points."""
    rng = np.random.default_rng(batch)
    plane, weights = rng.normal(size=(runs, size, 1)), rng.uniform(-1, 1, (runs, size, 1)) / size**0.5
    found = np.empty((runs, steps))
    for step in range(steps):
        points = rng.normal(size=(runs, batch, size))
        off = points @ (weights - plane) - 0.5 * rng.normal(size=(runs, batch, 1))
        found[:, step] = (off**2).mean((1, 2))
        weights = weights - rate * 2 / batch * np.swapaxes(points, 1, 2) @ off
    return found


def class_losses(batch, runs=200, steps=300, size=20, classes=10):
    """Losses of runs that tell ten overlapping clouds apart by a linear classifier: nearly equal in its first steps."""
    rng = np.random.default_rng(batch)
    middles, weights = rng.normal(size=(runs, classes, size)) / 2, np.zeros((runs, size, classes))
    found, run = np.empty((runs, steps)), np.arange(runs)[:, None]
    for step in range(steps):
        labels = rng.integers(classes, size=(runs, batch))
        points = middles[run, labels] + rng.normal(size=(runs, batch, size))
        odds = np.exp(points @ weights)
        shares, labelled = odds / odds.sum(2, keepdims=True), np.eye(classes)[labels]
        found[:, step] = -np.log((shares * labelled).sum(2)).mean(1)
        weights = weights - 0.1 / batch * np.swapaxes(points, 1, 2) @ (shares - labelled)
    return found


@pytest.mark.parametrize("losses", [line_losses, class_losses])
@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_losses_of_small_batches_may_scatter(losses, batch):
    assert sum(falls(values, batch) for values in losses(batch)) == 0


@pytest.mark.parametrize("losses", [functools.partial(line_losses, rate=1e-3), class_losses])
def test_losses_of_another_model_are_seen_in_large_batches(losses):
    """From the sixteenth step on, those of weights that were trained long before."""
    for values in losses(256, runs=20, steps=100):
        assert not falls(values, 256)
        assert falls([*values[:15], *(0.01 * values[15:])], 256)


# -- steps of the verifier's own ------------------------------------------------------------------------------------


class Counting:
    """An executor that counts trials, and may fail them."""

    def __init__(self, fails=False):
        self.trials, self._fails, self._inner = [], fails, InProcess()

    def run(self, job):
        if isinstance(job, Trial):
            self.trials.append(job)
            if self._fails:
                yield Failed(kind="ReplayError", message="no such machine")
                return
        yield from self._inner.run(job)


def verified(executor, bounds, path=None):
    with LocalAuditor(OWN, executor=executor) as auditor:
        return verify(path or recorded(), auditor=auditor, policy=bounded(bounds), nonce=NONCE)


def test_steps_of_ones_own_that_do_not_work_leave_it_undecided():
    report = verified(Counting(fails=True), Bounds(dropout=0.5))
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert "first steps of your own do not work here: no such machine" in report.reason()
    assert verified(Counting(fails=True), Bounds()).verdict is Verdict.ACCEPT


def test_no_more_steps_are_taken_than_are_needed():
    for bounds, expected in ((Bounds(moved=True, pace=100.0), []), (Bounds(dropout=0.5), [3]), (PRESET, [1] * 5)):
        executor = Counting()
        verified(executor, bounds)
        assert [job.steps for job in executor.trials] == expected
    executor = Counting()
    verified(executor, PRESET, recorded(every=10))
    assert [job.steps for job in executor.trials] == [10] * 5
    assert len({job.program.seed for job in executor.trials}) == 5


def test_long_first_intervals_are_not_compared(monkeypatch):
    monkeypatch.setattr(trying, "MOST_STEPS", 9)
    executor = Counting()
    assert "says little of the start" in said(verified(executor, Bounds(start_loss=0.5), recorded(every=10)))
    assert [job.steps for job in executor.trials] == [3]


def test_schedules_are_compared_as_far_as_they_are_stepped(monkeypatch):
    path = forged(other_rate, schedule="cosine", lr=0.01)
    monkeypatch.setattr(trying, "MOST_COUNTS", 30)
    assert "is 0.04 at step 20" in verified(Counting(), Bounds(scheduled=True), path).reason()
    monkeypatch.setattr(trying, "MOST_COUNTS", 10)
    report = verified(Counting(), Bounds(scheduled=True), path)
    assert report.verdict is Verdict.ACCEPT
    assert "as far as 10 steps of it go" in said(report)


def nearly_zero(forger):
    """The rates of another machine: its last digits, also of the 0 at which a cosine ends."""
    for index in range(2, 38):
        rates = [repr(float(value) * (1 + 1e-15) + 1e-17) for value in forger.intervals[index].learning_rates[0].values]
        forger.replace(index, learning_rates=[Rates(steps=1, values=rates)])


def test_last_digits_of_a_rate_do_not_matter():
    report = verified(Counting(), Bounds(scheduled=True), forged(nearly_zero, schedule="lambda from 0 to 0"))
    assert report.verdict is Verdict.ACCEPT, report.reason()


LOOKED_AT = [OWN, RECIPE, "zoo_precision.py:Flash", "zoo_precision.py:AutocastBfloat16", "zoo_evolving.py:Transformed"]


@pytest.mark.parametrize("recipe", LOOKED_AT)
def test_looking_changes_no_bit(recipe, one_thread):  # noqa: F811
    reference = recipe if recipe.startswith("/") else f"{ZOO}/{recipe}"
    program = Program(reference=reference, configuration={}, seed="07" * 32, profile=Profile(threads=1))
    roots = []
    for settings in (None, trial.Settings(Places(reference))):
        entry = Entry(program)
        with contextlib.nullcontext() if settings is None else settings.noting():
            roots.append(advance(entry.make, Frame(entry.streams), Position(), stop=5).root_now())
    assert settings.settings
    assert roots[0] == roots[1]
    assert sys.getprofile() is None


@pytest.mark.filterwarnings("ignore")  # a compiler's own
def test_settings_are_seen_however_they_are_called(one_thread):  # noqa: F811
    """By function, by module, in attention, in recurrence, and where a graph would hide them."""
    recipe = f"{Path(ORDINARY).parent / 'settings.py'}:Settings"
    program = Program(reference=recipe, configuration={}, seed="07" * 32, profile=Profile(threads=1))
    (found,) = InProcess().run(Trial(program=program, steps=1))
    seen = {(one.name, one.value) for one in found.settings if one.name != "gradient"}
    assert seen == {
        *(("dropout", p) for p in (0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18)), ("clip_norm", 2.0),
        ("clip_value", 3.0), ("label_smoothing", 0.0), ("label_smoothing", 0.2), ("zero_weights", 0.5),
        ("norm_momentum", 0.3),
    }  # fmt: skip

"""Honest trainings of every kind are recorded and accepted; what cannot be recorded is refused and says why."""

import hashlib
import re

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pol.errors import PolError, ReplayError, UsageError
from pol.executors.local import LocalProcess
from pol.messages import Controlled, Recorded
from pol.profile import Profile
from pol.proof.policy import Challenge, Policy
from pol.proof.report import Verdict
from pol.replay.inprocess import InProcess
from zoo.tools import ZOO, check, recipes, train

ABSTRACT = {
    "Base",
    "Typed",
    "Scheduled",
    "Masked",
    "Counters",
    "Scaler",
    "Attention",
    "Experts",
    "Scaled",
    "Average",
    "Meters",
    "Recurrent",
}
HONEST = {
    name: reference
    for file in ("zoo_states.py", "zoo_schedules.py", "zoo_loops.py", "zoo_precision.py", "zoo_evolving.py")
    for name, reference in recipes(file).items()
    if name not in ABSTRACT
}
REFUSED = recipes("zoo_refused.py")
MOMENTUM = HONEST["Momentum"]
VECTORS = f"{ZOO / 'zoo_platform.py'}:Vectors"


def assert_accepted(report):
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert [step.status for step in report.steps] == ["passed"] * 8
    assert report.intervals


# --- accepted


@pytest.mark.parametrize("name", sorted(HONEST))
def test_honest_training_is_accepted(name, tmp_path):
    """With intervals of one step every state is one that a replay enters, and one that it must reach."""
    train(HONEST[name], tmp_path / "p")
    assert_accepted(check(tmp_path / "p", HONEST[name]))


@pytest.mark.parametrize(
    ("every", "keep"),
    [(1, 5), (5, 1), (5, 2), (4, 3), (6, 1), (7, 1), (12, 1), (13, 1), (1000, 1000), (3, 2), (11, 1)],
)
def test_intervals_of_any_length_are_accepted(every, keep, tmp_path):
    """Twelve steps: k a divisor or not, longer than an epoch, the whole run, more than the run."""
    train(MOMENTUM, tmp_path / "p", every=every, keep=keep)
    report = check(tmp_path / "p", MOMENTUM)
    assert_accepted(report)
    assert report.draws.intervals == -(-12 // every)


@pytest.mark.parametrize("strategy", ["all", "top-q", "uniform", "size-weighted", "mix"])
def test_every_strategy_accepts_an_honest_training(strategy, tmp_path):
    train(HONEST["OneCycle"], tmp_path / "p", keep=3)
    policy = Policy(challenge=Challenge(strategy=strategy, uniform=2, weighted=2, all_up_to=1))
    assert_accepted(check(tmp_path / "p", HONEST["OneCycle"], policy=policy))


def test_settings_are_part_of_the_run(tmp_path):
    settings = {"width": 3, "lr": 0.5, "name": "é", "bias": False, "betas": [0.5, 0.6], "extra": {"a": [1, None]}}
    train(HONEST["Configured"], tmp_path / "p", settings=settings)
    assert_accepted(check(tmp_path / "p", HONEST["Configured"], settings=settings))
    assert_accepted(check(tmp_path / "p", HONEST["Configured"], settings={"width": 3}))
    report = check(tmp_path / "p", HONEST["Configured"], settings={"width": 4})
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 4)


def test_the_released_model_may_leave_out_tied_tensors(tmp_path):
    train(HONEST["Tied"], tmp_path / "p")
    last = load_file(tmp_path / "p/checkpoints/000000000012.safetensors")
    model = {k.removeprefix("parameter/model."): v for k, v in last.items() if k.startswith("parameter/model.")}
    assert "up.weight" not in model
    for released in (model, {**model, "up.weight": model["down.weight"].clone()}):
        save_file(released, tmp_path / "model.safetensors")
        assert_accepted(check(tmp_path / "p", HONEST["Tied"], model=tmp_path / "model.safetensors"))
    save_file({**model, "up.weight": model["down.weight"] + 1}, tmp_path / "model.safetensors")
    assert check(tmp_path / "p", HONEST["Tied"], model=tmp_path / "model.safetensors").caught_by == 3


@pytest.mark.parametrize(
    ("name", "threads"),
    [
        ("Momentum", 1),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in ("Momentum", "AdamW", "CausalMask")),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("Augmented", "Gan", "Bfloat16", "Plateau")),
    ],
)
def test_real_processes_accept_with_their_own_threads(name, threads, tmp_path):
    profile = Profile(threads=threads)
    with LocalProcess(profile) as process:
        train(HONEST[name], tmp_path / "p", every=5, profile=profile, executor=process)
    with LocalProcess(profile, isolated=True) as process:
        assert_accepted(check(tmp_path / "p", HONEST[name], executor=process))


@pytest.mark.slow
def test_a_file_that_is_not_at_hand_beside_the_process(tmp_path, monkeypatch):
    """The default executors, from another working directory, with a relative reference."""
    from pol.keys import SigningKey
    from pol.prover import record
    from pol.verifier import verify

    monkeypatch.chdir(ZOO)
    record("zoo_states.py:Momentum", tmp_path / "p", key=SigningKey.generate(), every=5, profile=Profile(threads=1))
    assert_accepted(verify(tmp_path / "p", recipe="zoo_states.py:Momentum"))


# --- another platform


class OtherControl(InProcess):
    """Trains as this machine does, but says that the control run ended elsewhere."""

    def run(self, job):
        for event in super().run(job):
            yield other_root(event) if isinstance(event, Controlled) else event


class OtherArithmetic(OtherControl):
    """A machine that rounds in its own way: every replayed state differs."""

    def run(self, job):
        for event in super().run(job):
            if isinstance(event, Recorded):
                event = msgspec.structs.replace(event, interval=other_root(event.interval))
            yield event


def other_root(value):
    weights = value.root.weights
    other = msgspec.structs.replace(value.root.state, digest="sha256:" + "0" * 64)
    return msgspec.structs.replace(value, root=msgspec.structs.replace(value.root, state=other, weights=weights))


def test_equal_roots_are_enough_on_another_platform(tmp_path):
    train(MOMENTUM, tmp_path / "p", executor=OtherControl())
    assert_accepted(check(tmp_path / "p", MOMENTUM))


def test_unequal_roots_on_another_platform_are_inconclusive(tmp_path):
    train(MOMENTUM, tmp_path / "p", every=5)
    report = check(tmp_path / "p", MOMENTUM, executor=OtherArithmetic())
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.caught_by is None
    assert {result.status for result in report.intervals} == {"unable"}
    assert "taking the steps again gives other values for the end state" in report.reason()
    assert "This machine does not give the recorded profile" in report.reason()


def test_unequal_roots_on_the_same_platform_are_a_rejection(tmp_path):
    """The counterpart: only the control run tells the two apart."""

    class Wrong(OtherArithmetic):
        def run(self, job):
            for event in InProcess.run(self, job):
                if isinstance(event, Recorded):
                    event = msgspec.structs.replace(event, interval=other_root(event.interval))
                yield event

    train(MOMENTUM, tmp_path / "p", every=5)
    report = check(tmp_path / "p", MOMENTUM, executor=Wrong())
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)


@pytest.mark.slow
def test_other_vector_instructions_are_never_a_rejection(tmp_path):
    """Recorded without vector instructions, replayed with them."""
    with LocalProcess(Profile(threads=1, aten="default")) as process:
        train(VECTORS, tmp_path / "p", profile=process.profile, executor=process)
    with LocalProcess(Profile(threads=1), isolated=True) as other:
        report = check(tmp_path / "p", VECTORS, executor=other)
    if report.verdict is Verdict.ACCEPT:
        return  # this machine has none
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "capability: recorded DEFAULT, here" in report.reason()
    with LocalProcess(Profile(threads=1, aten="default"), isolated=True) as same:
        assert_accepted(check(tmp_path / "p", VECTORS, executor=same))


# --- refused

ENTERED = "this program cannot be entered again: after step 3"
MISTAKES = {
    "CountsSteps": (ReplayError, ENTERED + ".*Something that evolves is not attached"),
    "OwnGenerator": (ReplayError, ENTERED),
    "SystemRandomness": (ReplayError, ENTERED + r".*draws fresh randomness at zoo_refused\.py:\d+ \(os\.urandom\)"),
    "Forgotten": (ReplayError, ENTERED),
    "RateByHand": (ReplayError, r"lr from 0\.1 to 0\.07.*; attach the schedule .*dynamic"),
    "RateBesideSchedule": (ReplayError, "schedule 'scheduler': the learning rate was also changed by hand"),
    "Unfreezes": (ReplayError, r"before step 5: model\..*requires_grad has changed since the training began"),
    "StaysInEval": (ReplayError, r"before step 5: model\.\.training has changed.*run\.aside"),
    "Unscheduled": (ReplayError, r"static hyperparameters changed during the run \(lr from 0\.1 to 0\.07"),
    "StepsFirst": (UsageError, "steps a schedule before its first batch"),
    "StepsWithArguments": (ReplayError, r"schedule 'schedule': step\(\) was called with arguments"),
    "UnknownDynamic": (UsageError, "no optimizer has a hyperparameter 'learning_rate'"),
    "NotANumber": (ReplayError, "step 0: the loss is nan; the training diverged"),
    "Diverging": (ReplayError, r"after step 0: parameter model\.4\.bias has become infinite; the training diverged"),
    "Nan": (ReplayError, r"as built: buffer model\.odd has become NaN"),
    "UnstableData": (UsageError, r"data\(\) is not deterministic: sample 21"),
    "RandomLength": (UsageError, r"data\(\) is not deterministic: sample \d+"),
    "InPlace": (UsageError, r"changes sample \d+ of data\(\) in place"),
    "Stopping": (ReplayError, r"train\(\) returned after 6 steps; 12 were declared"),
    "ShortEpochs": (UsageError, "epoch 1 begins after 5 steps, not after 6: every epoch must take all"),
    "TwoLoops": (UsageError, "epoch 0 begins after 6 steps, not after 0"),
    "OddBatchLost": (UsageError, r"the last 1 batches were not followed by a commit\(\)"),
    "Accumulates": (ReplayError, r"step 3 uses gradients that an earlier step has left.*commit\(\) once per optimizer"),
    "AccumulatesInPlace": (ReplayError, r"step 7 uses gradients that an earlier step has left"),
    "Capturable": (ReplayError, "the training program raised AssertionError: .*capturable=True"),
    "Uneven": (UsageError, r"step 1 closed 2 batches, earlier steps 1"),
    "NeverCommits": (ReplayError, r"without a commit\(\)"),
    "CommitsTwice": (UsageError, r"commit\(\) without a batch since the last commit\(\)"),
    "CommitsFirst": (UsageError, r"commit\(\) without a batch"),
    "AttachesTwice": (UsageError, r"attach\(\) was called twice"),
    "NeverAttaches": (UsageError, r"epochs\(\) was called before attach\(\)"),
    "AsksForNothing": (UsageError, r"train\(\) returned without asking for a batch"),
    "EpochsTwice": (UsageError, r"epochs\(\) was called twice"),
    "NoEpochs": (UsageError, r"epochs\(0\): a training has at least one epoch"),
    "BatchesOutside": (UsageError, r"batches\(\) was called outside of `for epoch in run.epochs"),
    "OtherBatches": (UsageError, "another dataset size, batch size or drop_last than before"),
    "NoData": (UsageError, r"batches\(size=4\) of 0 samples"),
    "EmptyBatches": (UsageError, r"batches\(size=0\)"),
    "SeedsItself": (UsageError, r"seeds torch itself, .*randomness=.observed."),
    "SetsThreads": (UsageError, r"sets threads to 3, the profile that is signed says 1: leave that to --threads"),
    "AttachesUnnamed": (UsageError, r"run\.attach\(model=model, optimizer=optimizer\)"),
    "Unattached": (UsageError, "optimizer 'optimizer' trains a tensor of no attached module"),
    "Stateless": (UsageError, r"attach\(seeds=...\): a SeedSequence has no state_dict"),
    "SystemGenerator": (UsageError, r"attach\(rng=...\): a SystemRandom is not Python's own generator"),
    "OtherGenerator": (UsageError, r"attach\(rng=...\): a numpy generator with PCG64: .*MT19937"),
    "ExtraState": (ReplayError, r"object/model\._extra_state\.secret is a set"),
    "ToldButNotTaken": (UsageError, r"attach\(model=...\): Extra has get_extra_state and no set_extra_state"),
    "OddState": (ReplayError, r"object/thing\.when is a set"),
    "Untied": (ReplayError, r"model\.second and model\.first were one tensor .*, and are two now"),
    "StateOfItsOwn": (ReplayError, "optimizer 'optimizer' keeps state under '0'"),
    "NoModule": (UsageError, r"no torch\.nn\.Module"),
    "Complex": (ReplayError, r"model\.weight has dtype torch\.complex64, which format v1 does not have"),
    "Changing": (ReplayError, r"declares something else each time it is entered: declaration\.entries.*shape"),
    "OddBatch": (UsageError, "field x is a set"),
    "Dynamic": (UsageError, "imports the local module zoo_hidden in a way that its source does not show"),
    "Raising": (ReplayError, r"the training program raised FileNotFoundError: no such luck \(at .*zoo_refused\.py:\d+"),
}
NOT_MISTAKES = {"Looping", "Odd", "Constant", "FromFile", "FromSource"}


def test_every_refused_recipe_is_tried():
    assert set(MISTAKES) | NOT_MISTAKES == set(REFUSED)


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_a_mistake_is_refused_and_named(name, tmp_path):
    error, message = MISTAKES[name]
    with pytest.raises(error, match=f"(?s){message}"):
        train(REFUSED[name], tmp_path / "p")
    assert not (tmp_path / "p/attestation.json").exists()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("set", "field odd is a set"),
        ("none", "field odd is a NoneType"),
        ("object", "field odd is a object"),
        ("objects", "field odd is an array of object"),
        ("date", "field odd is an array of datetime64"),
        ("complex", r"field odd has dtype torch\.complex64"),
        ("unsigned", r"field odd has dtype torch\.uint32"),
        ("key", "field odd has the key 1: keys must be strings"),
        ("keys", "field odd has the key 1: keys must be strings"),
    ],
)
def test_data_of_other_types_is_refused(what, message, tmp_path):
    with pytest.raises((UsageError, ReplayError), match=message):
        train(REFUSED["Odd"], tmp_path / "p", settings={"what": what})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("zoo_states.py", "does not name a recipe"),
        ("zoo_states.py:", "does not name a recipe"),
        ("zoo_states.py:a b", "does not name a recipe"),
        ("nowhere.py:R", "no such file: .*nowhere.py"),
        ("zoo_states.py:Nothing", "has no recipe Nothing"),
        ("zoo_states.py:Counters", "has no recipe Counters: expected a class that derives from pol.Recipe"),
        ("no_such_package.module:R", "no module named 'no_such_package'"),
        ("pol.recipes.nothing:R", r"no module named 'pol\.recipes\.nothing'"),
    ],
)
def test_a_recipe_that_is_not_there(reference, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ZOO)
    with pytest.raises(UsageError, match=message):
        train(reference, tmp_path / "p")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"nothing": 1}, "Configured: .*nothing"), ({"width": {1, 2}}, "width is a set")],
)
def test_settings_that_the_recipe_does_not_have(settings, message, tmp_path):
    with pytest.raises(PolError, match=message):
        train(HONEST["Configured"], tmp_path / "p", settings=settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0 and keep=1 must be at least 1"),
        ({"keep": 0}, "keep=0 must be at least 1"),
        ({"beacon": b"short"}, "a beacon has 32 bytes"),
    ],
)
def test_arguments_out_of_range(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(MOMENTUM, tmp_path / "p", **options)
    assert not (tmp_path / "p").exists()


# --- recorded, but not for the default policy


def test_constant_parameters_need_a_policy(tmp_path):
    train(REFUSED["Constant"], tmp_path / "p")
    report = check(tmp_path / "p", REFUSED["Constant"])
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)
    assert re.search(r"parameter model\.\d\.\w+ has the same values under every seed", report.reason())
    assert_accepted(check(tmp_path / "p", REFUSED["Constant"], policy=Policy(constants="any")))


@pytest.mark.parametrize(("name", "file"), [("FromFile", "weights.npy"), ("FromSource", "weights.py")])
def test_weights_from_a_file_need_a_policy(name, file, tmp_path):
    path = tmp_path / file
    if file.endswith(".npy"):
        np.save(path, np.arange(32, dtype="float32").reshape(8, 4))
    else:
        path.write_text("0.25")
    train(REFUSED[name], tmp_path / "p", settings={"path": str(path)})
    report = check(tmp_path / "p", REFUSED[name])
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 4)
    assert f"the build reads the file {file}" in report.reason()
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert_accepted(check(tmp_path / "p", REFUSED[name], policy=Policy(externals=(digest,), constants="any")))
    if name == "FromFile":  # the list alone says that the file may be read, not that weights may be constant
        report = check(tmp_path / "p", REFUSED[name], policy=Policy(externals=(digest,)))
        assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)

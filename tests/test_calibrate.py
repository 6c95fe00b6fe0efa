"""Calibrations: trained, interrupted and taken up again, equal to plain numpy; and files that no calibration writes."""

import base64
import itertools
import json
import math
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import safe_open

import pol
from factory import RECIPE, STEPS, factory, known_key, same_every_time
from pol import calibrator, canonical, policies
from pol.calibrator import calibrate, read_calibration
from pol.cli import main
from pol.errors import AuthenticityError, FormatError, IntegrityError, UsageError
from pol.keys import fingerprint, verify_envelope
from pol.messages import Recorded, Train
from pol.profile import Profile
from pol.proof import calibration as calibration_format
from pol.proof.calibration import MAX_RUNS, PAYLOAD_TYPE, calibration_digest, parse_calibration, reference_of
from pol.proof.policy import Reference
from pol.render import calibration as rendered
from pol.replay.inprocess import InProcess

KEY = known_key(7)
METRICS = ("l1", "l2", "linf", "cos")
CONSTANT = """
import torch
from torch import nn
import pol


class Constant(pol.Recipe):
    batch_size = 4

    def __init__(self, lr: float = 0.1, alike: bool = False):
        self.lr, self.alike = lr, alike

    def data(self):
        return [{"x": float(i)} for i in range(8)]

    def build(self):
        model = nn.Linear(1, 2)
        if self.alike:
            nn.init.constant_(model.weight, 0.5)
            nn.init.constant_(model.bias, 0.5)
        model.register_buffer("mask", torch.triu(torch.full((2, 2), float("-inf")), 1))
        model.register_buffer("count", torch.tensor(0))
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)}

    def step(self, parts, batch):
        loss = parts.model(batch["x"].float()[:, None]).square().mean()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss
"""


def call(out, recipe=RECIPE, runs=2, max_every=5, **options):
    options = {"key": KEY, "profile": Profile(threads=1), "executor": InProcess(), "noise": False, **options}
    return calibrate(recipe, out, runs=runs, max_every=max_every, **options)


@pytest.fixture(autouse=True)
def states_between(monkeypatch):
    """Runs of 14 steps keep states on the way, as those of thousands do."""
    monkeypatch.setattr("pol.calibrator.trainer.BETWEEN", 5)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A calibration of three runs, whose runs were not removed: (file, folder of the runs, what was returned)."""
    out = tmp_path_factory.mktemp("calibration") / "calibration.json"
    with same_every_time("calibration"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pol.calibrator.shutil.rmtree", lambda _: None)
        made = call(out, runs=3)
    return out, out.with_name("calibration.json.runs"), made


def final_state(run):
    (file,) = (run / "checkpoints").iterdir()  # only the last state is kept of a finished run
    assert file.stem == f"{STEPS:012d}"
    with safe_open(file, "numpy") as tensors:
        found = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    return {key: tensor.astype(np.float64).ravel() for key, tensor in found.items() if tensor.dtype.kind == "f"}


def plain(a, b):
    cosine = 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return np.abs(a - b).sum(), np.linalg.norm(a - b), np.abs(a - b).max(), cosine


# -- honest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["parameters", "state"])
def test_as_numpy_finds(kept, part):
    _, runs, made = kept
    states = [final_state(run) for run in sorted(runs.glob("run-*"))]
    keys = [key for key in sorted(states[0]) if part == "state" or key.startswith("parameter/")]
    assert any(key.startswith("optimizer/") for key in keys) == (part == "state")
    vectors = [np.concatenate([state[key] for key in keys]) for state in states]
    pairs = np.array([plain(a, b) for a, b in itertools.combinations(vectors, 2)])
    assert pairs.shape == (3, 4)
    for column, metric in enumerate(METRICS):
        spread = getattr(getattr(made.calibration, part), metric)
        expected = pairs[:, column].mean(), pairs[:, column].min(), pairs[:, column].max()
        assert (float(spread.mean), float(spread.min), float(spread.max)) == pytest.approx(expected, rel=1e-12)
        assert expected[1] > 0
    if part == "parameters":
        assert {f"parameter/{name}" for name in made.calibration.tensors} == set(keys)
        for name, tensor in made.calibration.tensors.items():
            each = [np.linalg.norm(a[f"parameter/{name}"] - b[f"parameter/{name}"])
                    for a, b in itertools.combinations(states, 2)]  # fmt: skip
            assert (float(tensor.mean), float(tensor.min)) == pytest.approx((np.mean(each), min(each)), rel=1e-12)
            assert tensor.size == len(states[0][f"parameter/{name}"])


def test_what_is_signed_is_what_was_trained(kept):
    out, runs, made = kept
    found = made.calibration
    assert (found.runs, found.pairs, found.steps, len(found.final)) == (3, 3, STEPS, 3)
    assert found.recipe.name == "Toy"
    assert canonical.untag(found.recipe.configuration["lr"]) == 0.1
    genesis = json.loads(base64.b64decode(json.loads((runs / "run-0" / "genesis.json").read_bytes())["payload"]))
    assert found.recipe.digest == genesis["recipe"]["digest"]
    assert found.profile == Profile(threads=1)
    assert genesis["claimant"] != KEY.public_pem  # nothing but the calibration is signed with the caller's key
    attested = [
        json.loads(base64.b64decode(json.loads((runs / f"run-{i}" / "attestation.json").read_bytes())["payload"]))
        for i in range(3)
    ]
    assert [a["predicate"]["final"]["weights"]["digest"] for a in attested] == [root.digest for root in found.final]
    assert read_calibration(out) == made
    assert made.fingerprint == fingerprint(KEY.public_pem)
    assert made.digest == calibration_digest(found)


def test_a_policy_takes_over_the_reference(kept):
    _, _, made = kept
    reference = Reference(**reference_of(made.calibration))
    assert (reference.calibration, reference.recipe) == (made.digest, made.calibration.recipe.digest)
    assert [getattr(reference, name) for name in METRICS] == [
        float(getattr(made.calibration.parameters, name).mean) for name in METRICS
    ]


def test_two_runs_and_nothing_is_left(tmp_path):
    told = []
    made = call(tmp_path / "c.json", settings={"lr": 0.05}, progress=lambda *event: told.append(event))
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    l2 = made.calibration.parameters.l2
    assert l2.mean == l2.min == l2.max
    assert canonical.untag(made.calibration.recipe.configuration["lr"]) == 0.05
    training = [done for phase, done, total in told if phase == "training 2 runs" and total == 2 * STEPS]
    assert training == sorted(training)  # one estimate for all runs
    assert training[-1] == 2 * STEPS
    assert told[-1] == ("comparing runs", 1, 1)


def test_the_public_names():
    assert pol.calibrate is calibrate
    assert pol.read_calibration is read_calibration


def test_a_mask_of_infinities_is_no_distance(tmp_path):
    recipe = tmp_path / "constant.py"
    recipe.write_text(CONSTANT)
    made = call(tmp_path / "c.json", f"{recipe}:Constant")
    assert math.isfinite(float(made.calibration.state.cos.max))
    assert made.calibration.tensors.keys() == {"model.weight", "model.bias"}


# -- interrupted --------------------------------------------------------------------------------------------------


class Stopped(InProcess):
    """Stops when ``left`` intervals have been recorded; notes where every training began."""

    def __init__(self, left=math.inf):
        self.left, self.starts = left, []

    def run(self, job):
        if isinstance(job, Train):
            self.starts.append(job.start.start)
        for event in super().run(job):
            yield event
            if isinstance(job, Train) and isinstance(event, Recorded):
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt


@pytest.fixture
def halfway(tmp_path):
    """A calibration stopped in its second run, after 10 of 14 steps."""
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", executor=Stopped(5))
    assert not (tmp_path / "c.json").exists()
    return tmp_path / "c.json.runs"


def test_the_same_call_goes_on(halfway, tmp_path):
    before = (halfway / "run-0" / "attestation.json").read_bytes()
    genesis = (halfway / "run-1" / "genesis.json").read_bytes()
    executor = Stopped()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pol.calibrator.shutil.rmtree", lambda _: None)
        made = call(tmp_path / "c.json", executor=executor, profile=None)
    assert executor.starts == [10]  # the finished run stays, the other goes on where it was
    assert (halfway / "run-0" / "attestation.json").read_bytes() == before
    assert (halfway / "run-1" / "genesis.json").read_bytes() == genesis
    assert read_calibration(tmp_path / "c.json") == made


def test_more_runs_may_be_asked_for(halfway, tmp_path):
    executor = Stopped()
    made = call(tmp_path / "c.json", runs=3, executor=executor)
    assert executor.starts == [10, 0]
    assert made.calibration.pairs == 3
    assert not halfway.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"lr": 0.2}}, "begun with another lr"),
        ({"profile": Profile(threads=2)}, "another profile"),
        ({"max_every": 4}, "max_every=5"),
    ],
)
def test_another_calibration_does_not_go_on(halfway, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        call(tmp_path / "c.json", **options)
    assert halfway.exists()


def test_a_recipe_that_has_changed_does_not_go_on(tmp_path):
    recipe = tmp_path / "constant.py"
    recipe.write_text(CONSTANT)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", f"{recipe}:Constant", max_every=1, executor=Stopped(3))
    recipe.write_text(CONSTANT + "\n")
    with pytest.raises(UsageError, match=re.escape(f"the recipe has changed since {tmp_path}")):
        call(tmp_path / "c.json", f"{recipe}:Constant", max_every=1)
    recipe.write_text(CONSTANT.replace("Constant", "Other"))
    with pytest.raises(UsageError, match="is of the recipe Constant"):
        call(tmp_path / "c.json", f"{recipe}:Other", max_every=1)


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_state_is_not_compared(halfway, tmp_path, how):
    (file,) = (halfway / "run-0" / "checkpoints").iterdir()
    if how == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    with pytest.raises(IntegrityError, match="not what the run ended in"):
        call(tmp_path / "c.json")
    shutil.rmtree(halfway / "run-0")
    assert call(tmp_path / "c.json").calibration.runs == 2


# -- wrong usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [-1, 0, 1, MAX_RUNS + 1])
def test_a_distance_takes_two_runs(tmp_path, runs):
    with pytest.raises(UsageError, match="at least 2"):
        call(tmp_path / "c.json", runs=runs)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "c.json").write_text("thesis")
    with pytest.raises(UsageError, match="never overwritten"):
        call(tmp_path / "c.json")
    with pytest.raises(UsageError, match="there is no folder"):
        call(tmp_path / "nowhere" / "c.json")
    assert (tmp_path / "c.json").read_text() == "thesis"


def test_runs_that_end_alike_have_no_distance(tmp_path):
    recipe = tmp_path / "constant.py"
    recipe.write_text(CONSTANT)
    with pytest.raises(UsageError, match="does not use its random numbers"):
        call(tmp_path / "c.json", f"{recipe}:Constant", settings={"lr": 0.0, "alike": True})
    assert not (tmp_path / "c.json").exists()


# -- files --------------------------------------------------------------------------------------------------------


def signed(kept, change=None, key=KEY, payload_type=PAYLOAD_TYPE):
    """The calibration as plain values, changed and signed again."""
    payload = json.loads(canonical.encode(kept[2].calibration))
    if change:
        change(payload)
    return key.sign(canonical.encode(payload), payload_type)


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(payload):
        for name in path:
            payload = payload[name]
        payload[last] = value

    return change


def nearer(payload):
    for metric in METRICS:
        payload["state"][metric] = {"mean": "0.1", "min": "0.1", "max": "0.1"}


def all_zero(payload):
    for metric in METRICS:
        payload["parameters"][metric] = {"mean": "0.0", "min": "0.0", "max": "0.0"}
    for tensor in payload["tensors"].values():
        tensor.update(mean="0.0", min="0.0")


def twice(payload):
    payload["final"][1] = payload["final"][0]


def swapped(payload):
    l1, l2 = payload["parameters"]["l1"], payload["parameters"]["l2"]
    payload["parameters"].update(l1=l2, l2=l1)


MALFORMED = {
    "nan": (put("parameters", "l2", "mean", "nan"), "not a finite float"),
    "infinite": (put("state", "l1", "max", "inf"), "not a finite float"),
    "negative": (put("parameters", "cos", "min", "-0.1"), "never negative"),
    "negative zero": (put("parameters", "cos", "min", "-0.0"), "never negative"),
    "not the shortest form": (put("parameters", "l2", "mean", "4.50"), "shortest form"),
    "a number": (put("parameters", "l2", "mean", 4), "Expected `str`"),
    "nan in a tensor": (put("tensors", "model.0.weight", "min", "nan"), "not a finite float"),
    "mean above max": (put("parameters", "l2", "mean", "1000000.0"), "not between min and max"),
    "min above mean": (put("parameters", "l2", "min", "1000000.0"), "not between min and max"),
    "tensor: min above mean": (put("tensors", "model.0.weight", "mean", "0.001"), "below the least"),
    "tensor further apart than all": (put("tensors", "model.0.weight", "mean", "1000000.0"), "further apart"),
    "a cosine above 2": (put("state", "cos", "max", "2.1"), "at most 2"),
    "l2 above l1": (swapped, "l2 is larger than l1"),
    "parameters further apart than the state": (nearer, "the parameters are further apart"),
    "no distance at all": (all_zero, "a distance of 0"),
    "one run": (put("runs", 1), "runs"),
    "no runs": (put("runs", 0), "runs"),
    "more runs than pairs": (put("runs", 4), "4 runs make 6"),
    "fewer pairs": (put("pairs", 2), "3 runs make 3"),
    "fewer roots": (lambda payload: payload["final"].pop(), "2 final roots"),
    "one root twice": (twice, "not independent"),
    "no tensors": (put("tensors", {}), "no parameter"),
    "an unknown field": (put("remark", "good"), "remark"),
    "a missing field": (lambda payload: payload.pop("steps"), "steps"),
    "another format": (put("format", "pol/calibration/v1"), "format"),
    "no time": (put("created", "yesterday"), "created"),
    "no digest": (put("recipe", "digest", "sha256:00"), "digest"),
}


def test_the_test_signs_what_is_read(kept, tmp_path):
    (tmp_path / "same.json").write_bytes(signed(kept))
    assert read_calibration(tmp_path / "same.json") == kept[2]


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_is_refused_although_signed(kept, tmp_path, case):
    change, message = MALFORMED[case]
    (tmp_path / "c.json").write_bytes(signed(kept, change))
    with pytest.raises(FormatError, match=message):
        read_calibration(tmp_path / "c.json")


def test_another_key_is_not_the_signer(kept, tmp_path):
    (tmp_path / "c.json").write_bytes(signed(kept, key=known_key(8)))
    with pytest.raises(AuthenticityError, match="is signed by key"):
        read_calibration(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes(signed(kept, put("signer", known_key(8).public_pem)))
    with pytest.raises(AuthenticityError, match="is signed by key"):
        read_calibration(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes(signed(kept, put("signer", "me")))
    with pytest.raises(AuthenticityError, match="not a public key"):
        read_calibration(tmp_path / "c.json")


def test_an_edited_number_is_not_signed(kept, tmp_path):
    envelope = json.loads(kept[0].read_bytes())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["steps"] += 1
    envelope["payload"] = base64.b64encode(canonical.encode(payload)).decode()
    (tmp_path / "c.json").write_bytes(canonical.encode(envelope))
    with pytest.raises(AuthenticityError, match="not by key"):
        read_calibration(tmp_path / "c.json")


@pytest.mark.parametrize("number", range(0, 100, 7))
def test_no_flipped_byte_is_read(kept, tmp_path, number):
    data = bytearray(kept[0].read_bytes())
    data[len(data) * number // 100] ^= 1
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises((FormatError, AuthenticityError)):
        read_calibration(tmp_path / "c.json")


def test_the_numbers_of_a_stranger_are_not_worked_through(kept, monkeypatch):
    """Whether they agree takes longest, so only whoever the file names may ask for it."""
    looked = []
    monkeypatch.setattr(calibration_format, "check_calibration", lambda *_: looked.append(True))
    parse_calibration(kept[0].read_bytes(), "c.json", verify_envelope)
    with pytest.raises(AuthenticityError):
        parse_calibration(signed(kept, put("signer", known_key(8).public_pem)), "c.json", verify_envelope)
    assert looked == [True]


def test_other_files_are_no_calibration(kept, tmp_path, monkeypatch):
    with pytest.raises(FormatError, match="payloadType"):
        read_calibration(factory().proof() / "genesis.json")
    with pytest.raises(UsageError, match="no such calibration"):
        read_calibration(tmp_path / "nothing.json")
    with pytest.raises(FormatError, match="payloadType"):
        parse_calibration(signed(kept, payload_type="application/json"), "c.json", verify_envelope)
    monkeypatch.setattr(calibrator, "MAX_CALIBRATION", 100)
    with pytest.raises(FormatError, match="larger than the limit of 200"):
        read_calibration(kept[0])


# -- the command --------------------------------------------------------------------------------------------------


class Here(InProcess):
    """A training process that is this one."""

    stop = None

    def __init__(self, profile=None):
        del profile

    def run(self, job):
        return super().run(job) if Here.stop is None else Here.stop.run(job)

    def close(self):
        """Nothing to end."""


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run ``pol calibrate``: (exit code, standard output, standard error)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("pol.prover.LocalProcess", Here)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*words):
        code = main(["calibrate", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_calibrate_says_what_a_policy_takes_over(command, tmp_path):
    words = ["--out", "c.json", "--runs", "2", "--threads", "1", "--set", "lr=0.05", "--runs-only"]
    code, out, err = command(RECIPE, *words)
    assert (code, "Traceback" in err) == (0, False)
    made = read_calibration("c.json")
    assert made.fingerprint in out
    assert "2 runs of 14 steps, 1 pair" in out
    Path("mine.toml").write_text(out[out.index("base = ") :])
    policy = policies.load("mine.toml")  # a whole file: from the signed calibration and its key, no copied numbers
    assert policy.reference == Reference(**reference_of(made.calibration))
    assert msgspec.structs.replace(policy, name="tolerance", reference=None) == policies.load("tolerance")
    assert (tmp_path / "config" / "pol" / "key.pem").exists()  # as `pol record` does


@pytest.mark.parametrize("path", ["c.json", "a b/ü.json", 'say "c".json', "c:\\c.json", "[c]\x7f\x1b\u200b\xa0.json"])
def test_any_path_is_printed_as_toml(path):
    written = rendered._string(path)
    assert tomllib.loads(f"path = {written}") == {"path": path}
    assert written.isprintable()


def test_calibrate_as_json(command, tmp_path):
    KEY.save(tmp_path / "own.pem")
    words = ["--out", "c.json", "-n", 2, "--threads", 1, "--key", tmp_path / "own.pem", "--json", "--runs-only"]
    code, out, _ = command(RECIPE, *words)
    assert (code, out.count("\n")) == (0, 1)
    found, made = json.loads(out), read_calibration("c.json")
    assert (found["calibration"], found["digest"]) == ("c.json", made.digest)
    assert found["fingerprint"] == made.fingerprint == KEY.fingerprint
    assert found["reference"] == reference_of(made.calibration)
    assert (found["runs"], found["pairs"], found["steps"]) == (2, 1, STEPS)
    assert found["parameters"]["l2"]["mean"] == made.calibration.parameters.l2.mean


def test_interrupted_it_prints_the_command_that_goes_on(command, monkeypatch):
    monkeypatch.setattr(Here, "stop", Stopped(5))
    words = [RECIPE, "--out", "c.json", "--runs", "2", "--max-every", "5", "--threads", "1", "--set", "lr=0.05"]
    words.append("--runs-only")
    code, out, err = command(*words)
    assert (code, out) == (130, "")
    again = shlex.split(err.splitlines()[-1])
    assert again[:2] == ["pol", "calibrate"]
    on = Stopped()
    monkeypatch.setattr(Here, "stop", on)
    assert "--runs-only" in again
    assert command(*again[2:])[0] == 0
    assert on.starts == [10]
    assert canonical.untag(read_calibration("c.json").calibration.recipe.configuration["lr"]) == 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "1"], "--runs"),
        (["--max-every", "0"], "--max-every"),
        (["--intervals", "0"], "--intervals"),
        (["--set", "rate=1"], "rate"),
        (["--key", "nothing.pem"], "nothing.pem: cannot read the key"),
        (["--out", "nowhere/c.json"], "there is no folder nowhere"),
    ],
)
def test_wrong_usage_is_3_and_says_what(command, words, message):
    code, out, err = command(RECIPE, "--threads", "1", *([] if "--out" in words else ["--out", "c.json"]), *words)
    assert (code, out) == (3, "")
    assert message in err
    assert "Traceback" not in err
    assert not Path("c.json").exists()

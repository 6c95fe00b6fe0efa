"""Honest noise and small lies: measured on platforms that are off by known amounts, from known arithmetic."""

import base64
import json
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from factory import RECIPE, STEPS, known_key, same_every_time
from pol import canonical, policies
from pol.calibrator import calibrate, read_calibration
from pol.calibrator import noise as meter
from pol.calibrator.conditions import other_seed, platforms, write_order
from pol.calibrator.trainer import FEWEST, MOST, PART, chosen, ladder
from pol.cli import main
from pol.errors import AuthenticityError, FormatError, IntegrityError, ReplayError, UsageError
from pol.messages import Failed, Recorded, Replay
from pol.order import epoch_order
from pol.profile import Profile
from pol.proof.calibration import PAYLOAD_TYPE
from pol.proof.genesis import read_genesis
from pol.proof.limiting import FLOOR, MARGIN, rungs
from pol.proof.noise import CHEATS, DECAY, EXCHANGE, FLOAT64, RATE, REDRAW, SPLIT, SWAP, changed
from pol.proof.policy import Limits, Policy
from pol.render.calibration import limits_of
from pol.replay.inprocess import InProcess
from pol.replay.state import State
from pol.verifier.tolerance import deviation

KEY = known_key(7)
MOST_STEPS = 5  # three windows of the toy recipe, the last of four steps
STARTS = [0, 5, 10]
RUNGS = [1, 2, 5]
PLAIN = f"{Path(__file__).parent / 'recipes' / 'plain.py'}:Plain"
SCALAR, OTHERS = "aten default", ["threads 2", "threads 4", "onednn sse41", "mkl compatible"]


def is_measured(job):
    """Whether a replay is of the measurement, and not a recording's self-check."""
    return isinstance(job, Replay) and job.save is not None


class Platform(InProcess):
    """An executor that gives every profile alike, but for what ``change`` does to end states where ATen has no SIMD.

    Replays in another arithmetic, which would be off by what this machine rounds, fail unless ``arithmetic``.
    """

    def __init__(self, change=None, left=None, arithmetic=False):
        self.change, self.left, self.arithmetic, self.replayed = change, left, arithmetic, []

    def run(self, job):
        profile = job.program.profile
        if is_measured(job) and job.perturbed and not self.arithmetic:
            yield Failed(kind="UsageError", message="this machine rounds")
            return
        same = msgspec.structs.replace(job.program, profile=Profile(threads=1))
        for event in super().run(msgspec.structs.replace(job, program=same)):
            if is_measured(job) and isinstance(event, Recorded):
                if self.change is not None and profile.aten == "default":
                    event = self.changed(job, event)
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left = None if self.left is None else self.left - 1
                self.replayed.append((profile.aten, event.interval.start))
            yield event

    def changed(self, job, event):
        stop = event.interval.stop
        file = Path(job.save) / f"{stop:012d}.safetensors"
        if not file.exists():
            return event
        (start,) = (one.checkpoint for one in job.segments if one.start < stop <= one.stop)
        save_file(self.change(load_file(start), load_file(file)), file)
        interval = msgspec.structs.replace(event.interval, root=State.load(file).root())
        return msgspec.structs.replace(event, interval=interval)


def off_by(share):
    """Parameters that go farther, by a share of the way that they went."""

    def change(start, end):
        return {
            key: (tensor + share * (tensor.astype(np.float64) - start[key])).astype(tensor.dtype)
            if key.startswith("parameter/")
            else tensor
            for key, tensor in end.items()
        }

    return change


def call(out, executor, recipe=RECIPE, **options):
    options = {"key": KEY, "runs": 2, "max_every": MOST_STEPS, "profile": Profile(threads=1), **options}
    with same_every_time("noise"):
        return calibrate(recipe, out, **options, executor=executor)


def shortly(out, executor, recipe=RECIPE, **options):
    """From the first state alone, for at most two steps."""
    return call(out, executor, recipe, **{"intervals": 1, "max_every": 2, **options})


@pytest.fixture
def keep(monkeypatch):
    """The folders of the runs stay."""
    monkeypatch.setattr("pol.calibrator.shutil", SimpleNamespace(rmtree=lambda _: None))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A calibration on a platform that is off by 1e-4, and the folder of its runs: (file, what was returned, runs)."""
    out = tmp_path_factory.mktemp("noise") / "c.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pol.calibrator.shutil", SimpleNamespace(rmtree=lambda _: None))
        made = call(out, Platform(off_by(1e-4)))
    return out, made, out.with_name("c.json.runs")


def found_by(noise, name):
    (one,) = (one for one in (*noise.honest, *noise.cheats) if one.name == name)
    return one


def reference(made):
    return float(made.calibration.parameters.l2.mean)


# -- which steps are taken again -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "steps", "expected"),
    [
        (1, 100, [1]), (2, 100, [1, 2]), (10, 100, [1, 2, 5, 10]), (7, 100, [1, 2, 5, 7]), (10, 4, [1, 2, 4]),
        (100, 1000, [1, 2, 5, 10, 20, 50, 100]), (10, 1, [1]),
    ],
)  # fmt: skip
def test_rungs_are_the_usual_ones_up_to_the_longest(most, steps, expected):
    assert ladder(most, steps) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 36, 64, 100, 255, 256, 257, 10_000])
@pytest.mark.parametrize("wanted", [None, 1, 5, 50])
def test_windows_are_the_first_and_others_to_the_last(count, wanted):
    found = chosen(count, wanted)
    assert len(found) == min(count, wanted or min(MOST, max(FEWEST, count // PART)))
    assert found == sorted(set(found))
    first = (len(found) + 1) // 2
    assert found[:first] == list(range(first))
    assert found[-1] == count - 1 or len(found) == 1
    gaps = np.diff(found[first:])
    assert not gaps.size or max(gaps) - min(gaps) <= 1  # evenly spread


def test_other_platforms_differ_from_any():
    for profile in (Profile(threads=1), Profile(threads=4, aten="default", onednn="sse41", mkl="compatible")):
        names = [changed(profile, other) for other in platforms(profile)]
        assert len(set(names)) == 5
        assert all(name and "," not in name for name in names)
    assert len(platforms(Profile(threads=3))) == 6


def indices(path, samples, epochs=2):
    return np.fromfile(path, dtype="<u4").reshape(-1, samples)[:epochs]


@pytest.fixture(scope="module")
def genesis(measured):
    return read_genesis((measured[2] / "run-0" / "genesis.json").read_bytes())


@pytest.mark.parametrize("start", [0, 3, 5, 6, 12, 13])
def test_orders_differ_where_they_should(genesis, tmp_path, start):
    seed, samples, steps, size = bytes(32), 50, 7, 8
    windows = [(start, min(start + 2, STEPS))]
    epochs = sorted({step // steps for step in range(*windows[0])})
    honest = {epoch: epoch_order(seed, epoch, samples) for epoch in range(2)}
    found = {}
    for change in ("recorded", "swapped", "exchanged"):
        write_order(tmp_path / change, genesis, seed, windows, change)
        data = np.fromfile(tmp_path / change, dtype="<u4")
        found[change] = {epoch: data[epoch * samples : (epoch + 1) * samples] for epoch in epochs}
    assert all(np.array_equal(found["recorded"][epoch], honest[epoch]) for epoch in epochs)

    def of(order, step):
        epoch, number = divmod(step, steps)
        return order[epoch][number * size : (number + 1) * size].tolist()

    other = of(found["swapped"], start)
    assert sum(a != b for a, b in zip(other, of(honest, start), strict=True)) == 1
    assert other[0] not in of(honest, start)
    assert sum((found["swapped"][epoch] != honest[epoch]).sum() for epoch in epochs) == 1
    if start + 1 < STEPS:
        one, two = of(honest, start), of(honest, start + 1)
        short = min(len(one), len(two))
        assert of(found["exchanged"], start)[:short] == two[:short]
        assert of(found["exchanged"], start + 1)[:short] == one[:short]
    else:
        assert np.array_equal(found["exchanged"][1], honest[1])


# -- what is measured ----------------------------------------------------------------------------------------------


def test_a_known_perturbation_gives_the_known_numbers(measured):
    _, made, runs = measured
    share, noise = 1e-4, made.calibration.noise
    assert (noise.rungs, noise.starts, noise.optimizers) == (RUNGS, STARTS, ["torch.optim.sgd.SGD"])
    for name in OTHERS:
        assert all(seen.equal for row in found_by(noise, name).found for seen in row)
    assert found_by(noise, FLOAT64).left_out == found_by(noise, SPLIT).left_out == "this machine rounds"
    for start, row in zip(STARTS, found_by(noise, SCALAR).found, strict=True):
        begin = load_file(runs / "run-0" / "checkpoints" / f"{start:012d}.safetensors")
        assert len(row) == (2 if start == 10 else 3)
        for rung, seen in zip(RUNGS, row, strict=False):
            recorded = load_file(runs / "states" / f"{start + rung:012d}.safetensors")
            replayed = off_by(share)(begin, recorded)
            keys = [key for key in recorded if key.startswith("parameter/")]
            wrong = {key: np.linalg.norm((replayed[key].astype(float) - recorded[key]).ravel()) for key in keys}
            moved = {key: np.linalg.norm((replayed[key].astype(float) - begin[key]).ravel()) for key in keys}
            floors = {key: FLOOR * 2.0**-24 * np.linalg.norm(begin[key].astype(float).ravel()) for key in keys}
            error = np.linalg.norm(list(wrong.values()))
            relative = max(((wrong[key] - floors[key]) / moved[key], key) for key in keys)
            absolute = max(
                ((wrong[key] - floors[key] * (1 - 1 / MARGIN)) / np.sqrt(begin[key].size), key)
                for key in keys
                if wrong[key] > floors[key]
            )
            numbers = [float(text) for text in (seen.error, seen.share, seen.relative, seen.absolute)]
            expected = [error, error / np.linalg.norm(list(moved.values())), relative[0], absolute[0]]
            assert numbers == pytest.approx(expected, rel=1e-9)
            assert (seen.relative_of, seen.absolute_of, seen.equal) == (relative[1], absolute[1], False)
            number = RUNGS.index(rung)
            assert float(noise.tensors[absolute[1]][number]) >= absolute[0] * (1 - 1e-9)


def test_optimizer_state_and_what_it_carries_on_count_too(tmp_path):
    def change(start, end):
        (key,) = (key for key in end if key.endswith("0.weight.momentum_buffer"))
        return {**end, key: end[key] * np.float32(1.001)}

    noise = shortly(tmp_path / "c.json", Platform(change), max_every=1).calibration.noise
    ((seen,),) = found_by(noise, SCALAR).found
    assert (seen.equal, seen.share) == (False, "0.0")  # of the parameters themselves
    assert seen.relative_of == "parameter/model.0.weight"  # which that will move in all steps that are left
    assert float(seen.relative) > 1e-3
    assert float(noise.tensors["optimizer/optimizer.model.0.weight.momentum_buffer"][0]) > 0


def test_lies_leave_what_they_must(tmp_path):
    """Without momentum, and in one step, the error of a rate is its share, and that of a decay lr * decay * weights."""
    settings = {"momentum": 0.0, "weight_decay": 1e-2, "lr": 0.1}
    made = shortly(tmp_path / "c.json", Platform(), PLAIN, settings=settings, max_every=1)
    noise = made.calibration.noise
    ((rate,),) = found_by(noise, RATE).found
    assert float(rate.share) == pytest.approx(0.01 / 1.01, rel=1e-3)  # of the move that was taken
    assert float(rate.relative) == pytest.approx(0.01 / 1.01, rel=0.01)  # less the floor
    ((decay,),) = found_by(noise, DECAY).found
    assert 0 < float(decay.share) < 0.1
    assert all(seen.equal for row in found_by(noise, REDRAW).found for seen in row)  # it draws nothing
    for name in (SWAP, EXCHANGE):
        ((seen,),) = found_by(noise, name).found
        assert float(seen.relative) > 0.05


def test_a_decay_that_is_left_out_is_off_by_the_decay(tmp_path, keep):
    settings = {"momentum": 0.0, "weight_decay": 1e-2, "lr": 0.1}
    made = shortly(tmp_path / "c.json", Platform(), PLAIN, settings=settings, max_every=1)
    ((decay,),) = found_by(made.calibration.noise, DECAY).found
    first = load_file(tmp_path / "c.json.runs" / "run-0" / "checkpoints" / f"{0:012d}.safetensors")
    weights = [t.astype(float).ravel() for key, t in first.items() if key.startswith("parameter/")]
    assert float(decay.error) == pytest.approx(0.1 * 1e-2 * np.linalg.norm(np.concatenate(weights)), rel=1e-3)


def test_draws_are_drawn_anew(measured):
    _, made, _ = measured
    rows = found_by(made.calibration.noise, REDRAW).found
    assert all(float(seen.relative) > 1e-3 for row in rows for seen in row)
    assert other_seed(bytes(32)) != bytes(32)


OWN_LOADER = """
import torch
from torch import nn
import pol


class Loading(pol.Recipe):
    shuffling = {"shuffle": True}

    def build(self):
        model = nn.Linear(2, 1)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def train(self, run):
        parts = run.attach(**self.build())
        data = [torch.tensor([float(i), 1.0]) for i in range(8)]
        loader = torch.utils.data.DataLoader(data, batch_size=4, **self.shuffling)
        for _ in run.epochs(2):
            for x in run.loader(loader):
                loss = (parts.model(x) + 0.1 * torch.randn(len(x), 1)).square().mean()
                parts.optimizer.zero_grad()
                loss.backward()
                parts.optimizer.step()
                run.commit(loss=loss)


class Sequential(Loading):
    shuffling = {}


class Whole(pol.Recipe):
    batch_size = 20  # so many draws at once differ by their type

    def data(self):
        return [{"x": torch.tensor([float(i) / 10])} for i in range(20)]

    def build(self):
        model = nn.Linear(1, 1)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def step(self, parts, batch):
        found = parts.model(batch["x"])
        loss = (found + 0.1 * torch.randn_like(found)).square().mean()
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step()
        return loss
"""


@pytest.fixture
def recipes(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN_LOADER)
    return path


def reasons_of(tmp_path, recipe):
    found = shortly(tmp_path / "c.json", Platform(arithmetic=True), recipe, max_every=1).calibration.noise
    return {one.name: one.left_out for one in (*found.honest, *found.cheats)}


def test_what_a_recipe_does_not_allow_is_left_out_with_its_reason(recipes, tmp_path):
    reasons = reasons_of(tmp_path, f"{recipes}:Sequential")
    assert all("own loader" in reasons[name] for name in (SWAP, EXCHANGE, REDRAW))
    assert reasons[DECAY] == "no optimizer has any"
    assert reasons[RATE] is None


def test_a_loader_that_shuffles_can_have_another_order(recipes, tmp_path):
    reasons = reasons_of(tmp_path, f"{recipes}:Loading")
    assert [name for name, reason in reasons.items() if reason] == [DECAY]


def test_draws_of_another_type_are_no_rounding(recipes, tmp_path):
    found = shortly(tmp_path / "c.json", Platform(arithmetic=True), f"{recipes}:Whole", max_every=1).calibration.noise
    assert found_by(found, FLOAT64).left_out == "its steps draw other random numbers in that type"
    assert found_by(found, SPLIT).left_out is None
    assert found_by(found, SWAP).left_out == "a batch is the whole dataset"


def test_another_arithmetic_is_measured(tmp_path):
    found = shortly(tmp_path / "c.json", Platform(arithmetic=True), PLAIN).calibration.noise
    for name in (FLOAT64, SPLIT):
        seen = [one for row in found_by(found, name).found for one in row]
        assert not all(one.equal for one in seen)
        assert all(float(one.share) < 1e-5 for one in seen)


# -- limits, or none -----------------------------------------------------------------------------------------------


def test_limits_pass_the_honest_and_stop_lies(measured, tmp_path, monkeypatch):
    """The verifier's own judgement of the same replays, under the limits that were recommended."""
    _, made, runs = measured
    noise = made.calibration.noise
    tensors = {key: float(text) for key, text in noise.limits.tensors.items()}
    policy = Policy(rule="tolerance", limits=Limits(**limits_of(noise.limits), tensors=tensors))
    judged = []

    def judge(ends, carrying):
        if not ends.equal:
            states = ends.start, ends.replayed, ends.recorded
            wrong, _ = deviation(policy, *states, carrying, ends.step, ends.momenta)
            judged.append((ends.name, wrong))
        return original[ends.name in CHEATS](ends, carrying)

    original = meter.honest_error, meter.forged_error
    for name in ("honest_error", "forged_error"):
        monkeypatch.setattr(meter, name, judge)
    shutil.copytree(runs, tmp_path / "again.json.runs")
    (tmp_path / "again.json.runs" / "noise.json").unlink()
    assert call(tmp_path / "again.json", Platform(off_by(1e-4))).calibration.noise == noise
    honest = [wrong for name, wrong in judged if name == SCALAR]
    assert honest == [""] * 8
    lies = [wrong for name, wrong in judged if name in (SWAP, EXCHANGE, REDRAW, RATE)]
    assert len(lies) > 20
    assert all("beyond their limits" in wrong for wrong in lies)


def test_no_gap_is_refused_and_signed_all_the_same(tmp_path):
    made = shortly(tmp_path / "c.json", Platform(off_by(0.01)))
    noise = made.calibration.noise
    assert (noise.every, noise.limits) == (None, None)
    assert all("no gap" in rung.refusals[0] for rung in rungs(noise, reference(made)))
    assert read_calibration(tmp_path / "c.json") == made


def test_few_bits_are_refused(tmp_path):
    made = shortly(tmp_path / "c.json", Platform(), PLAIN.replace("Plain", "Halved"), max_every=1)
    assert made.calibration.noise.coarse is not None
    assert made.calibration.noise.limits is None


# -- what no tolerance covers --------------------------------------------------------------------------------------


class Odd(Platform):
    """Changes the events of replays without SIMD."""

    def __init__(self, change_event):
        super().__init__()
        self.change_event = change_event

    def run(self, job):
        odd = job.program.profile.aten == "default"
        return (
            self.change_event(event) if odd and isinstance(event, Recorded) else event for event in super().run(job)
        )


def other_batches(event):
    interval = msgspec.structs.replace(event.interval, batches="blake3:" + "0" * 64)
    return msgspec.structs.replace(event, interval=interval)


def test_batches_that_depend_on_the_platform_are_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"step 0 with aten default: other batches.*--runs-only"):
        shortly(tmp_path / "c.json", Odd(other_batches))
    made = call(tmp_path / "c.json", Platform(), noise=False, max_every=2)  # the runs were kept
    assert made.calibration.noise is None


def test_counters_that_differ_are_an_error(tmp_path):
    def change(start, end):
        return {key: np.asarray(t + 1) if t.dtype == np.int64 else t for key, t in end.items()}

    with pytest.raises(UsageError, match="num_batches_tracked differs, and what is not floating point"):
        shortly(tmp_path / "c.json", Platform(change))


def test_a_platform_that_fails_is_named(tmp_path):
    def fail(event):
        return Failed(kind="ReplayError", message="illegal instruction")

    with pytest.raises(ReplayError, match=re.escape("with aten default: illegal instruction. With --runs-only")):
        shortly(tmp_path / "c.json", Odd(fail))


def test_a_run_that_is_another_one_at_home_is_an_error(tmp_path):
    class Elsewhere(Platform):
        def run(self, job):
            for event in super().run(job):
                if is_measured(job) and isinstance(event, Recorded) and not job.factors:
                    other = msgspec.structs.replace(event.interval.root, state=event.interval.root.weights)
                    event = msgspec.structs.replace(
                        event, interval=msgspec.structs.replace(event.interval, root=other)
                    )  # fmt: skip
                yield event

    with pytest.raises(ReplayError, match="with the run's own flags, ends in another state"):
        shortly(tmp_path / "c.json", Elsewhere())


def test_a_loss_has_an_error_too(tmp_path):
    def change(event):
        loss = float(event.interval.loss)
        return msgspec.structs.replace(event, interval=msgspec.structs.replace(event.interval, loss=repr(loss + 2e-3)))

    noise = shortly(tmp_path / "c.json", Odd(change)).calibration.noise
    (row,) = found_by(noise, SCALAR).found
    assert all(1e-4 < float(seen.loss) < 2e-3 for seen in row)
    # Bits are equal, so there is nothing beside it; the limit follows where one is measured.
    assert float(noise.limits.loss) == pytest.approx(MARGIN * float(row[-1].loss), rel=0.1)


# -- interrupted ---------------------------------------------------------------------------------------------------


def test_interrupted_it_goes_on_where_it_was(tmp_path, keep):
    told = []
    first = Platform(off_by(1e-4), left=3 * STEPS + 5)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", first)
    assert not (tmp_path / "c.json").exists()
    second = Platform(off_by(1e-4))
    made = call(tmp_path / "c.json", second, progress=lambda *event: told.append(event))
    # The run's own states and two platforms were done, and of the third the first of three windows; then come it, two
    # more, and four lies.
    assert second.replayed[0] == ("default", 5)
    assert len(second.replayed) == 7 * STEPS - 5
    phases = [done for phase, done, total in told if phase == "measuring noise"]
    assert phases == sorted(phases)
    assert {total for phase, _, total in told if phase == "measuring noise"} == {13 * STEPS}
    runs = tmp_path / "c.json.runs"
    (runs / "noise.json").unlink()
    runs.rename(tmp_path / "whole.json.runs")
    whole = call(tmp_path / "whole.json", Platform(off_by(1e-4)))
    assert whole.calibration.noise == made.calibration.noise


def test_what_failed_is_tried_again_another_time(tmp_path):
    """An error, of which nobody knows whether it is of the recipe or of this hour, is not remembered."""
    with pytest.raises(KeyboardInterrupt):
        shortly(tmp_path / "c.json", Platform(left=2 * (1 + 5) + 1))  # in the first lie: both arithmetics have failed
    assert FLOAT64 not in json.loads((tmp_path / "c.json.runs" / "noise.json").read_bytes())["left_out"]
    noise = shortly(tmp_path / "c.json", Platform(arithmetic=True)).calibration.noise
    assert found_by(noise, FLOAT64).left_out is None


def stopped(out):
    with pytest.raises(KeyboardInterrupt):
        shortly(out, Platform(left=2))


def test_what_was_measured_of_another_run_is_not_used(tmp_path):
    stopped(tmp_path / "c.json")
    file = tmp_path / "c.json.runs" / "noise.json"
    kept = json.loads(file.read_bytes())
    assert kept["drawn"].keys() == {"1", "2"}
    file.write_text(json.dumps({**kept, "genesis": "sha256:" + "0" * 64}))
    again = Platform()
    shortly(tmp_path / "c.json", again)
    assert len(again.replayed) == 2 * (1 + 5 + 4)  # the states, five platforms and four lies


def test_states_that_were_damaged_are_taken_again(tmp_path):
    stopped(tmp_path / "c.json")
    (tmp_path / "c.json.runs" / "states" / f"{2:012d}.safetensors").write_bytes(b"x" * 100)
    again = Platform()
    shortly(tmp_path / "c.json", again)
    assert len(again.replayed) == 2 * (1 + 5 + 4)


def test_a_broken_memory_of_an_earlier_call_is_an_error(tmp_path):
    stopped(tmp_path / "c.json")
    (tmp_path / "c.json.runs" / "noise.json").write_text('{"genesis": 1}')
    with pytest.raises(FormatError, match="remove it to measure anew"):
        shortly(tmp_path / "c.json", Platform())


def test_a_damaged_state_is_not_replayed(tmp_path):
    stopped(tmp_path / "c.json")
    file = tmp_path / "c.json.runs" / "run-0" / "checkpoints" / f"{0:012d}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"is not what the run held after 0 steps.*remove"):
        shortly(tmp_path / "c.json", Platform())


def test_runs_that_were_to_be_compared_only_cannot_be_measured(tmp_path, keep):
    shortly(tmp_path / "c.json", Platform(), noise=False)
    (tmp_path / "c.json").unlink()
    with pytest.raises(UsageError, match=re.escape("to be compared only (--runs-only): remove")):
        shortly(tmp_path / "c.json", Platform())
    shutil.rmtree(tmp_path / "c.json.runs" / "run-0")
    assert shortly(tmp_path / "c.json", Platform()).calibration.noise is not None


def test_only_needed_states_are_kept(measured):
    folder = measured[2] / "run-0" / "checkpoints"
    assert sorted(int(file.stem) for file in folder.iterdir()) == [*STARTS, STEPS]
    states = sorted(int(file.stem) for file in (measured[2] / "states").iterdir())
    assert states == sorted({start + rung for start in STARTS for rung in RUNGS if start + rung <= STEPS})


# -- files ---------------------------------------------------------------------------------------------------------


def edited(measured, change):
    envelope = json.loads(measured[0].read_bytes())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    change(payload["noise"])
    return envelope, payload


def looser(noise):
    noise["limits"]["relative"] = "0.01"


def unknown(noise):
    noise["remark"] = "good"


def missing(noise):
    del noise["drift"]


def a_number(noise):
    noise["honest"][0]["found"][0][0]["share"] = 1


def negative(noise):
    noise["drift"][0] = "-1.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (looser, "not what follows"), (unknown, "remark"), (missing, "drift"), (a_number, "Expected `str`"),
        (negative, "never negative"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_agree_are_refused_although_signed(measured, tmp_path, change, message):
    _, payload = edited(measured, change)  # more of them: test_limiting.py
    (tmp_path / "c.json").write_bytes(KEY.sign(canonical.encode(payload), PAYLOAD_TYPE))
    with pytest.raises(FormatError, match=message):
        read_calibration(tmp_path / "c.json")


def test_the_test_signs_what_is_read(measured, tmp_path):
    _, payload = edited(measured, lambda noise: None)
    (tmp_path / "c.json").write_bytes(KEY.sign(canonical.encode(payload), PAYLOAD_TYPE))
    assert read_calibration(tmp_path / "c.json") == measured[1]


def test_an_edited_number_that_agrees_is_not_signed(measured, tmp_path):
    def change(noise):
        (one,) = (one for one in noise["honest"] if one["name"] == SCALAR)
        one["found"][0][0]["share"] = "1e-09"

    envelope, payload = edited(measured, change)
    envelope["payload"] = base64.b64encode(canonical.encode(payload)).decode()
    (tmp_path / "c.json").write_bytes(canonical.encode(envelope))
    with pytest.raises(AuthenticityError, match="not by key"):
        read_calibration(tmp_path / "c.json")


def test_a_policy_takes_limits_of_tensors_from_the_file(measured, tmp_path):
    out, made, _ = measured
    found = made.calibration.noise.limits
    expected = {key: float(text) for key, text in found.tensors.items()}
    assert expected
    head = f'calibration = "{out}"\ncalibration_key = "{made.fingerprint}"\n'
    file = tmp_path / "p.toml"

    def load(text):
        file.write_text(text)
        return policies.load(str(file))

    assert load(f'base = "tolerance"\n{head}').limits.tensors == expected
    key = sorted(expected)[0]
    own = load(f'base = "tolerance"\n{head}\n[limits.tensors]\n"{key}" = 1e-12\n').limits.tensors
    assert own == {**expected, key: 1e-12}
    assert load(f'base = "exact"\n{head}').limits is None
    copy = load(policies.dump(load(f'base = "tolerance"\n{head}')))
    assert copy.limits.tensors == expected  # written out, it is the same


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run ``pol calibrate`` on a platform: (exit code, standard output, standard error)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*words, platform=None):
        class Here(Platform):
            def __init__(self, profile=None, *, isolated=False):
                super().__init__(*([platform] if platform else []))

            def close(self):
                """Nothing to end."""

        if platform is not False:
            monkeypatch.setattr("pol.prover.LocalProcess", Here)
            monkeypatch.setattr("pol.executors.local.LocalProcess", Here)
        words = ["calibrate", RECIPE, "--out", "c.json", "--runs", "2", "--threads", "1", "--max-every", "2", *words]
        return main(words), *capsys.readouterr()

    return run


def test_the_printed_policy_is_one(command):
    code, out, err = command("--intervals", "2", platform=off_by(1e-4))
    assert (code, "Traceback" in err) == (0, False)
    noise = read_calibration("c.json").calibration.noise
    assert noise.starts == [0, 12]
    assert "taken again from 2 states for k = 1, 2 steps" in out
    assert "Use k = 2: record with --rule tolerance --every 2 --keep 1." in out
    assert len(re.findall("no difference", out)) == 4
    assert "Of 2 honest replays" in out
    Path("mine.toml").write_text(out[out.index("base = ") :])
    policy = policies.load("mine.toml")
    assert policy.reference.recipe == read_calibration("c.json").calibration.recipe.digest
    assert tomllib.loads(Path("mine.toml").read_text())["limits"] == limits_of(noise.limits)
    assert policy.limits.relative == float(noise.limits.relative)
    assert policy.limits.tensors == {key: float(text) for key, text in noise.limits.tensors.items()}
    assert policy.bounds.max_every == noise.every == 2


def test_refused_is_1_and_nothing_is_recommended(command):
    code, out, _ = command("--intervals", "1", platform=off_by(0.01))
    assert code == 1
    assert "No limits are recommended." in out
    assert "What would work: no k will" in out
    assert "[limits]" not in out
    Path("mine.toml").write_text(out[out.index("base = ") :])  # the reference distance was measured all the same
    policy = policies.load("mine.toml")
    assert (policy.rule, policy.limits) == ("exact", None)
    assert policy.reference.recipe == read_calibration("c.json").calibration.recipe.digest


@pytest.mark.parametrize(("share", "code"), [(1e-4, 0), (0.01, 1)])
def test_noise_as_json(command, share, code):
    found, out, _ = command("--json", "--intervals", "1", platform=off_by(share))
    assert (found, out.count("\n")) == (code, 1)
    printed, noise = json.loads(out), read_calibration("c.json").calibration.noise
    assert printed["noise"] == msgspec.to_builtins(noise)
    assert printed["limits"] == (None if code else limits_of(noise.limits))
    assert bool(printed["refused"]) == bool(code) == bool(printed["instead"])
    assert [rung["every"] for rung in printed["rungs"]] == [1, 2]
    assert printed["every"] == noise.every
    assert printed["rungs"][0]["replays"]["of"] == 1


def test_without_noise_it_says_so(command):
    code, out, _ = command("--intervals", "1")
    assert code == 0
    assert "No error is beyond rounding here" in out
    assert "nothing can be said of how often" in out
    preset = policies.load("tolerance").limits
    assert tomllib.loads(out[out.index("[limits]") :])["limits"]["relative"] == preset.relative


def test_runs_only_measures_no_noise(command):
    code, out, _ = command("--runs-only", platform=off_by(0.01))
    assert code == 0
    assert "oise" not in out
    assert read_calibration("c.json").calibration.noise is None


@pytest.mark.slow
def test_with_real_processes(command):
    code, _, err = command(platform=False)
    noise = read_calibration("c.json").calibration.noise
    assert code == (0 if noise.limits else 1), err
    assert [one.name for one in noise.honest] == ["threads 2", "threads 4", SCALAR, *OTHERS[2:], FLOAT64, SPLIT]
    measured = [seen for one in noise.honest for row in one.found for seen in row]
    assert all(float(seen.share) < 1e-2 for seen in measured)  # and so these are the same steps
    assert found_by(noise, FLOAT64).left_out is None
    assert "draws random numbers" in found_by(noise, SPLIT).left_out


@pytest.mark.slow
def test_the_digits_have_limits(tmp_path):
    """Real noise of real processes, far below the smallest lie."""
    with same_every_time("digits"):
        made = calibrate(
            "pol.recipes.digits:DigitsCNN", tmp_path / "d.json", key=KEY, runs=2, max_every=5, intervals=3,
            settings={"num_epochs": 1, "lr": 0.02}, profile=Profile(threads=1),
        )  # fmt: skip
    noise = made.calibration.noise
    assert found_by(noise, FLOAT64).left_out is None
    (first, *_) = rungs(noise, reference(made))
    assert not first.refusals
    assert noise.every is not None
    assert first.gap > 4

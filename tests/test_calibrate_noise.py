"""Honest noise: measured on platforms that are off by known amounts, with the limits that follow, or a refusal."""

import base64
import itertools
import json
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from factory import RECIPE, STEPS, known_key, same_every_time
from pol import canonical, policies
from pol.calibrator import calibrate, read_calibration
from pol.calibrator import noise as meter
from pol.calibrator.deviation import Error
from pol.calibrator.trainer import FEWEST, MOST, chosen
from pol.cli import main
from pol.errors import AuthenticityError, FormatError, IntegrityError, ReplayError, UsageError
from pol.messages import Failed, Recorded, Replay
from pol.profile import Profile
from pol.proof.calibration import PAYLOAD_TYPE
from pol.proof.noise import FLOOR, FORGERY, LOSS, MARGIN, UNSEEN, changed, instead, refusals, would_be
from pol.proof.policy import Limits, Policy
from pol.render.calibration import limits_of
from pol.replay.inprocess import InProcess
from pol.replay.state import State
from pol.verifier.tolerance import deviation

KEY = known_key(7)
EVERY = 5  # three intervals of the toy recipe, the last of four steps
INTERVALS = 3
PLAIN = f"{Path(__file__).parent / 'recipes' / 'plain.py'}:Plain"
SCALAR, OTHERS = "aten default", ["threads 2", "onednn sse41", "mkl compatible"]


def is_measured(job):
    """Whether a replay is of the measurement, and not a recording's self-check."""
    return isinstance(job, Replay) and job.save is not None


class Platform(InProcess):
    """An executor that gives every profile alike, but for what ``change`` does to end states where ATen has no SIMD."""

    def __init__(self, change=None, left=None):
        self.change, self.left, self.replayed = change, left, []

    def run(self, job):
        profile = job.program.profile
        same = msgspec.structs.replace(job.program, profile=Profile(threads=1))
        starts = {segment.stop: segment.checkpoint for segment in getattr(job, "segments", [])}
        for event in super().run(msgspec.structs.replace(job, program=same)):
            if is_measured(job) and isinstance(event, Recorded):
                if self.change is not None and profile.aten == "default":
                    event = self.changed(job, event, starts[event.interval.stop])
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left = None if self.left is None else self.left - 1
                self.replayed.append((profile.aten, event.interval.start))
            yield event

    def changed(self, job, event, start):
        file = Path(job.save) / f"{event.interval.stop:012d}.safetensors"
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


class Faster(Platform):
    """Takes the steps of a replay with a learning rate that is 1 % larger than recipe and state say."""

    def run(self, job):
        step = torch.optim.SGD.step

        def faster(optimizer, closure=None):
            before = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] *= 1.01
            step(optimizer, closure)
            for group, rate in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = rate

        with pytest.MonkeyPatch.context() as patch:
            if is_measured(job):
                patch.setattr(torch.optim.SGD, "step", faster)
            events = list(super().run(job))
        yield from events


def call(out, executor, recipe=RECIPE, **options):
    with same_every_time("noise"):
        return calibrate(
            recipe, out, **{"key": KEY, "runs": 2, "every": EVERY, "profile": Profile(threads=1), **options},
            executor=executor,
        )  # fmt: skip


@pytest.fixture
def keep(monkeypatch):
    """The folders of the runs stay."""
    monkeypatch.setattr("pol.calibrator.shutil", SimpleNamespace(rmtree=lambda _: None))


def found_by(noise, name):
    (one,) = (one for one in noise.perturbed if changed(Profile(threads=1), one.profile) == name)
    return one


def reference(made):
    return float(made.calibration.parameters.l2.mean)


# -- what is measured ----------------------------------------------------------------------------------------------


def test_a_known_perturbation_gives_the_known_numbers(tmp_path, keep):
    share = 1e-4
    noise = call(tmp_path / "c.json", Platform(off_by(share))).calibration.noise
    assert (noise.every, noise.total, noise.intervals) == (EVERY, INTERVALS, [0, 1, 2])
    for name in OTHERS:
        one = found_by(noise, name)
        assert (one.equal, one.worst, one.error, one.relative, one.absolute, one.relative_of) == (
            INTERVALS, "0.0", "0.0", "0.0", "0.0", ""
        )  # fmt: skip
    folder = tmp_path / "c.json.runs" / "run-0" / "checkpoints"
    steps = [0, 5, 10, STEPS]
    states = [load_file(folder / f"{step:012d}.safetensors") for step in steps]
    keys = [key for key in states[0] if key.startswith("parameter/")]
    shares, errors, moves, relative, absolute = [], [], [], [], []
    for start, recorded in itertools.pairwise(states):
        replayed = off_by(share)(start, recorded)
        wrong = {key: np.linalg.norm((replayed[key].astype(float) - recorded[key]).ravel()) for key in keys}
        moved = {key: np.linalg.norm((replayed[key].astype(float) - start[key]).ravel()) for key in keys}
        errors.append(np.linalg.norm(list(wrong.values())))
        shares.append(errors[-1] / np.linalg.norm(list(moved.values())))
        honest = [recorded[key].astype(float).ravel() - start[key].ravel() for key in keys]
        moves.append(np.linalg.norm(np.concatenate(honest)))
        for key in keys:
            beyond = wrong[key] - FLOOR * 2.0**-24 * np.linalg.norm(start[key].astype(float).ravel())
            relative.append((beyond / moved[key], key))
            absolute.append((beyond / np.sqrt(start[key].size), key))
    one = found_by(noise, SCALAR)
    assert one.equal == 0
    numbers = [float(text) for text in (one.worst, one.median, one.error, one.relative, one.absolute, noise.move)]
    expected = [max(shares), np.median(shares), max(errors), max(relative)[0], max(absolute)[0], np.mean(moves)]
    assert numbers == pytest.approx(expected, rel=1e-9)
    assert (one.relative_of, one.absolute_of) == (max(relative)[1], max(absolute)[1])
    assert numbers[0] == pytest.approx(share, rel=0.01)


def test_optimizer_state_and_buffers_count_too(tmp_path):
    def change(start, end):
        (key,) = (key for key in end if key.endswith("0.weight.momentum_buffer"))
        return {**end, key: end[key] * np.float32(1.001)}

    one = found_by(call(tmp_path / "c.json", Platform(change)).calibration.noise, SCALAR)
    assert one.relative_of == "optimizer/optimizer.model.0.weight.momentum_buffer"
    assert (one.equal, one.worst) == (0, "0.0")  # of the parameters
    assert float(one.relative) > 1e-4


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 36, 64, 100, 255, 256, 257, 10_000])
def test_intervals_are_the_first_and_others_to_the_last(count):
    found = chosen(count)
    assert len(found) == min(count, MOST, max(FEWEST, count // 8))
    assert found == sorted(set(found))
    first = (len(found) + 1) // 2
    assert found[:first] == list(range(first))
    assert found[-1] == count - 1
    gaps = np.diff(found[first:])
    assert not gaps.size or max(gaps) - min(gaps) <= 1  # evenly spread


def test_other_platforms_differ_from_any(tmp_path):
    for profile in (Profile(threads=1), Profile(threads=4, aten="default", onednn="sse41", mkl="compatible")):
        names = [changed(profile, other) for other in meter.perturbations(profile)]
        assert len(set(names)) == 4
        assert all(name and "," not in name for name in names)


# -- limits, or none -----------------------------------------------------------------------------------------------


def test_limits_pass_the_honest_and_stop_a_wrong_rate(tmp_path, monkeypatch, keep):
    honest = Platform(off_by(3e-4))
    made = call(tmp_path / "c.json", honest)
    advised = made.calibration.noise.limits
    assert advised.source == "measured"
    policy = Policy(rule="tolerance", limits=Limits(**limits_of(advised)))
    assert policy.limits.relative == pytest.approx(2.4e-3, rel=0.06)  # rounded up to two digits, less the floor
    assert policy.limits.relative >= MARGIN * float(found_by(made.calibration.noise, SCALAR).relative)
    judged = []

    def judge(run, recorded, found, replayed, name):
        judged.append((name, deviation(policy, run.state(found.start), replayed, run.state(found.stop))))
        return Error(found.start // EVERY)

    def replay(executor):
        monkeypatch.setattr(meter, "error_of", judge)
        judged.clear()
        runs = tmp_path / "c.json.runs"
        (runs / "noise.json").unlink()
        (tmp_path / "again.json").unlink(missing_ok=True)
        runs.rename(tmp_path / "again.json.runs")
        call(tmp_path / "again.json", executor)
        (tmp_path / "again.json.runs").rename(runs)
        return [wrong for name, (wrong, _) in judged if name == SCALAR]

    assert replay(honest) == [""] * INTERVALS

    stopped = replay(Faster())
    assert len(stopped) == INTERVALS
    assert all("beyond their limits" in wrong for wrong in stopped)


@pytest.mark.parametrize("share", [0.01, 1.3e-3])
def test_no_gap_is_refused_with_its_reason(tmp_path, share):
    made = call(tmp_path / "c.json", Platform(off_by(share)))
    assert made.calibration.noise.limits is None
    reasons = refusals(made.calibration.noise, reference(made))
    assert re.search(r"8 times the worst honest error is \d\.\d\d% of the interval's move", reasons[0])
    assert "a smaller --every than 5" in instead(made.calibration.noise)
    assert "rule exact" in instead(made.calibration.noise)
    assert read_calibration(tmp_path / "c.json") == made  # what was measured is signed all the same


def test_an_error_where_nothing_moved_has_no_gap(tmp_path):
    def change(start, end):
        return {key: t + np.float32(0.1) if key == "parameter/model.4.bias" else t for key, t in end.items()}

    made = call(tmp_path / "c.json", Platform(change), settings={"lr": 1e-30})
    assert float(found_by(made.calibration.noise, SCALAR).worst) > 0.99
    text = " ".join(refusals(made.calibration.noise, reference(made)))
    assert "a state that never moved would pass" in text
    assert "of d_ref" in text


def test_limits_that_add_up_to_the_way_are_refused(tmp_path):
    made = call(tmp_path / "c.json", Platform(off_by(1e-4)))
    noise = made.calibration.noise
    assert 0 < float(noise.drift) < 0.01
    wide = msgspec.structs.replace(noise, drift="0.02")
    (reason,) = refusals(wide, reference(made))
    assert "2.00% of the way" in reason


def test_at_one_step_no_smaller_interval_is_asked_for(tmp_path):
    made = call(tmp_path / "c.json", Platform(off_by(0.01)), every=1)
    assert refusals(made.calibration.noise, reference(made))
    assert "as short as they can be" in instead(made.calibration.noise)
    assert "smaller --every" not in instead(made.calibration.noise)


def test_half_precision_is_refused(tmp_path):
    recipe = PLAIN.replace("Plain", "Halved")
    made = call(tmp_path / "c.json", Platform(), recipe)
    noise = made.calibration.noise
    assert noise.limits is None
    assert "fewer than 24 bits" in refusals(noise, reference(made))[0]
    assert "train in float32" in instead(noise)
    assert noise.coarse.startswith(("parameter/", "optimizer/"))


def last_digit(start, end):
    """One element by one unit in its last place: below the floor, however far the tensor has moved since the start."""
    key = "parameter/model.4.weight"
    changed = end[key].copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(10))
    return {**end, key: changed}


@pytest.mark.parametrize("change", [None, last_digit])
def test_where_no_noise_is_seen_the_preset_is_named(tmp_path, change):
    made = call(
        tmp_path / "c.json", Platform() if change is None else Platform(change), PLAIN if change is None else RECIPE
    )
    noise = made.calibration.noise
    assert all(one.relative == "0.0" for one in noise.perturbed)
    assert (float(found_by(noise, SCALAR).worst) > 0) == (change is not None)
    preset = policies.load("tolerance").limits
    assert noise.limits.source == "preset"
    assert (float(noise.limits.relative), float(noise.limits.absolute)) == (preset.relative, preset.absolute) == UNSEEN
    assert (preset.floor, preset.loss) == (FLOOR, LOSS)


def test_the_constants_are_those_of_a_policy():
    limits = Limits(relative=1, absolute=1)
    assert (limits.floor, limits.loss, limits.drift) == (FLOOR, LOSS, 0.01)
    assert FORGERY == 0.01


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
    with pytest.raises(UsageError, match=r"steps 0–5 with aten default: other batches.*--runs-only"):
        call(tmp_path / "c.json", Odd(other_batches))
    assert call(tmp_path / "c.json", Platform(), noise=False).calibration.noise is None  # the runs were kept


def test_counters_that_differ_are_an_error(tmp_path):
    def change(start, end):
        return {key: np.asarray(t + 1) if t.dtype == np.int64 else t for key, t in end.items()}

    with pytest.raises(UsageError, match="num_batches_tracked differs, and what is not floating point"):
        call(tmp_path / "c.json", Platform(change))


def test_a_platform_that_fails_is_named(tmp_path):
    def fail(event):
        return Failed(kind="ReplayError", message="illegal instruction")

    with pytest.raises(ReplayError, match=re.escape("with aten default: illegal instruction. With --runs-only")):
        call(tmp_path / "c.json", Odd(fail))


def test_a_loss_has_an_error_too(tmp_path):
    def change(event):
        loss = float(event.interval.loss)
        return msgspec.structs.replace(event, interval=msgspec.structs.replace(event.interval, loss=repr(loss + 1e-3)))

    noise = call(tmp_path / "c.json", Odd(change)).calibration.noise
    one = found_by(noise, SCALAR)
    assert 1e-4 < float(one.loss) < 1e-3
    assert float(noise.limits.loss) == pytest.approx(MARGIN * float(one.loss), rel=0.1)


# -- interrupted ---------------------------------------------------------------------------------------------------


def test_interrupted_it_goes_on_where_it_was(tmp_path, keep):
    told = []
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", Platform(off_by(1e-4), left=5))
    assert not (tmp_path / "c.json").exists()
    second = Platform(off_by(1e-4))
    made = call(tmp_path / "c.json", second, progress=lambda *event: told.append(event))
    assert len(second.replayed) == 4 * INTERVALS - 5
    assert second.replayed[0] == ("default", 10)  # the second platform's last interval
    phases = [done for phase, done, total in told if phase == "measuring noise" and total == 4 * STEPS]
    assert phases == sorted(phases)
    assert (phases[0], phases[-1]) == (STEPS + 10, 4 * STEPS)
    runs = tmp_path / "c.json.runs"
    (runs / "noise.json").unlink()
    runs.rename(tmp_path / "whole.json.runs")
    whole = call(tmp_path / "whole.json", Platform(off_by(1e-4)))
    assert whole.calibration.noise == made.calibration.noise


def test_what_was_measured_of_another_run_is_not_used(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", Platform(left=5))
    file = tmp_path / "c.json.runs" / "noise.json"
    kept = json.loads(file.read_bytes())
    file.write_text(json.dumps({**kept, "genesis": "sha256:" + "0" * 64}))
    again = Platform()
    call(tmp_path / "c.json", again)
    assert len(again.replayed) == 4 * INTERVALS


def test_a_broken_memory_of_an_earlier_call_is_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", Platform(left=5))
    (tmp_path / "c.json.runs" / "noise.json").write_text('{"genesis": 1}')
    with pytest.raises(FormatError, match="remove it to measure anew"):
        call(tmp_path / "c.json", Platform())


@pytest.mark.parametrize("step", [0, 5])
def test_a_damaged_state_is_not_replayed(tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", Platform(left=0))
    file = tmp_path / "c.json.runs" / "run-0" / "checkpoints" / f"{step:012d}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"is not what the run held after {step} steps: remove"):
        call(tmp_path / "c.json", Platform())


def test_runs_that_were_to_be_compared_only_cannot_be_measured(tmp_path, keep):
    call(tmp_path / "c.json", Platform(), noise=False)
    (tmp_path / "c.json").unlink()
    with pytest.raises(IntegrityError, match=re.escape("(it was trained to be compared only): remove")):
        call(tmp_path / "c.json", Platform())
    shutil.rmtree(tmp_path / "c.json.runs" / "run-0")
    assert call(tmp_path / "c.json", Platform()).calibration.noise is not None


def test_only_needed_states_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("pol.calibrator.trainer.FEWEST", 2)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "c.json", Platform(left=0), every=2)
    folder = tmp_path / "c.json.runs" / "run-0" / "checkpoints"
    assert sorted(int(file.stem) for file in folder.iterdir()) == [0, 2, 12, STEPS]


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("noise") / "c.json"
    return out, call(out, Platform(off_by(1e-4)))


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(noise):
        for name in path:
            noise = noise[name]
        noise[last] = value

    return change


def without_limits(noise):
    noise["limits"] = None


def quieter(noise):
    for one in noise["perturbed"]:
        one.update(
            worst="0.0", median="0.0", error="0.0", relative="0.0", absolute="0.0", relative_of="", absolute_of=""
        )


MALFORMED = {
    "looser limits": (put("limits", "relative", "0.01"), "not what follows"),
    "a looser absolute limit": (put("limits", "absolute", "0.01"), "not what follows"),
    "another floor": (put("limits", "floor", "8.0"), "not what follows"),
    "another loss": (put("limits", "loss", "0.1"), "not what follows"),
    "said to be the preset's": (put("limits", "source", "preset"), "not what follows"),
    "refused without a reason": (without_limits, "not what follows"),
    "limits without a gap": (put("perturbed", 1, "worst", "0.5"), "not what follows"),
    "limits that add up to the way": (put("drift", "0.5"), "not what follows"),
    "coarse with limits": (put("coarse", "parameter/model.w"), "not what follows"),
    "no noise with limits": (quieter, "not what follows"),
    "nan": (put("perturbed", 0, "worst", "nan"), "not a finite float"),
    "infinite": (put("drift", "inf"), "not a finite float"),
    "negative": (put("move", "-1.0"), "never negative"),
    "not the shortest form": (put("move", "1.50"), "shortest form"),
    "a number": (put("move", 1), "Expected `str`"),
    "a median above the worst": (put("perturbed", 1, "median", "0.5"), "median is above"),
    "an error with equal bits": (put("perturbed", 0, "worst", "1e-09"), "equal bits"),
    "more equal than replayed": (put("perturbed", 0, "equal", 4), "4 of 3 intervals"),
    "a tensor without an error": (put("perturbed", 0, "relative_of", "x"), "without a tensor"),
    "an error without a tensor": (put("perturbed", 1, "absolute_of", ""), "without a tensor"),
    "a share without a distance": (put("perturbed", 1, "error", "0.0"), "both a share and a distance"),
    "two platforms": (lambda noise: noise.update(perturbed=noise["perturbed"][:2]), "perturbed"),
    "one platform twice": (lambda noise: noise["perturbed"].append(noise["perturbed"][0]), "a profile twice"),
    "the run's own platform": (put("perturbed", 0, "profile", "threads", 1), "that of the run itself"),
    "no intervals": (put("intervals", []), "intervals"),
    "an interval twice": (put("intervals", [0, 1, 1]), "not increasing"),
    "an interval beyond the run": (put("intervals", [0, 1, 3]), "beyond the run"),
    "fewer intervals than steps make": (put("total", 2), "14 steps make 3"),
    "an unknown field": (put("remark", "good"), "remark"),
    "a missing field": (lambda noise: noise.pop("drift"), "drift"),
}


def edited(kept, change):
    envelope = json.loads(kept[0].read_bytes())
    payload = json.loads(base64.b64decode(envelope["payload"]))
    change(payload["noise"])
    return envelope, payload


@pytest.mark.parametrize("case", MALFORMED)
def test_numbers_that_do_not_agree_are_refused_although_signed(kept, tmp_path, case):
    change, message = MALFORMED[case]
    _, payload = edited(kept, change)
    (tmp_path / "c.json").write_bytes(KEY.sign(canonical.encode(payload), PAYLOAD_TYPE))
    with pytest.raises(FormatError, match=message):
        read_calibration(tmp_path / "c.json")


def test_the_test_signs_what_is_read(kept, tmp_path):
    _, payload = edited(kept, lambda noise: None)
    (tmp_path / "c.json").write_bytes(KEY.sign(canonical.encode(payload), PAYLOAD_TYPE))
    assert read_calibration(tmp_path / "c.json") == kept[1]


def test_an_edited_number_that_agrees_is_not_signed(kept, tmp_path):
    envelope, payload = edited(kept, put("perturbed", 1, "median", "1e-09"))
    envelope["payload"] = base64.b64encode(canonical.encode(payload)).decode()
    (tmp_path / "c.json").write_bytes(canonical.encode(envelope))
    with pytest.raises(AuthenticityError, match="not by key"):
        read_calibration(tmp_path / "c.json")


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
            monkeypatch.setattr("pol.auditor.LocalProcess", Here)
        words = ["calibrate", RECIPE, "--out", "c.json", "--runs", "2", "--threads", "1", "--every", str(EVERY), *words]
        return main(words), *capsys.readouterr()

    return run


def test_the_printed_table_is_one_that_a_policy_takes(command):
    code, out, err = command(platform=off_by(1e-4))
    assert (code, "Traceback" in err) == (0, False)
    assert "3 of 3 intervals of 5 steps" in out
    assert len(re.findall("no difference", out)) == 3
    Path("mine.toml").write_text(out[out.index("base = ") :])
    policy = policies.load("mine.toml")
    noise = read_calibration("c.json").calibration.noise
    assert policy.reference.recipe == read_calibration("c.json").calibration.recipe.digest
    assert tomllib.loads(Path("mine.toml").read_text())["limits"] == limits_of(noise.limits)
    assert policy.limits.relative == float(noise.limits.relative)
    assert policy.limits.absolute == float(noise.limits.absolute)
    assert noise.limits == would_be(noise)


def test_refused_is_1_and_nothing_is_recommended(command):
    code, out, _ = command(platform=off_by(0.01))
    assert code == 1
    assert "No limits are recommended." in out
    assert "What helps: measure again with a smaller --every than 5" in out
    assert "[limits]" not in out
    Path("mine.toml").write_text(out[out.index("base = ") :])  # the reference distance was measured all the same
    policy = policies.load("mine.toml")
    assert (policy.rule, policy.limits) == ("exact", None)
    assert policy.reference.recipe == read_calibration("c.json").calibration.recipe.digest
    assert read_calibration("c.json").calibration.noise.limits is None


@pytest.mark.parametrize(("share", "code"), [(1e-4, 0), (0.01, 1)])
def test_noise_as_json(command, share, code):
    found, out, _ = command("--json", platform=off_by(share))
    assert (found, out.count("\n")) == (code, 1)
    printed, noise = json.loads(out), read_calibration("c.json").calibration.noise
    assert printed["noise"] == msgspec.to_builtins(noise)
    assert printed["limits"] == (None if code else limits_of(noise.limits))
    assert bool(printed["refused"]) == bool(code)


def test_without_noise_it_says_so(command):
    code, out, _ = command()
    assert code == 0
    assert "all intervals end in equal bits" in out
    assert "preset tolerance" in out
    assert tomllib.loads(out[out.index("[limits]") :])["limits"]["relative"] == UNSEEN[0]


def test_runs_only_measures_no_noise(command):
    code, out, _ = command("--runs-only", platform=off_by(0.01))
    assert code == 0
    assert "oise" not in out
    assert read_calibration("c.json").calibration.noise is None


@pytest.mark.slow
def test_with_real_processes(command):
    code, out, err = command(platform=False)
    noise = read_calibration("c.json").calibration.noise
    assert code == (0 if noise.limits else 1), err
    assert [changed(Profile(threads=1), one.profile) for one in noise.perturbed] == [OTHERS[0], SCALAR, *OTHERS[1:]]
    assert all(float(one.worst) < 1e-2 for one in noise.perturbed)  # and so these are the same steps
    assert "Honest noise: 3 of 3 intervals" in out

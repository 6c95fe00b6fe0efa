"""Plans of real trainings: what a few steps show, held against recordings; and what cannot be planned.

No test looks at how long anything takes: what is measured is only seen to be there.
"""

import json
import math
from pathlib import Path

import msgspec
import pytest
from benchmarks import cifar

import pol
from pol import policies
from pol.errors import PolError, ReplayError, UsageError
from pol.keys import SigningKey
from pol.messages import Build, Control, Controlled, Failed, Measure, Measured, Program, Recorded
from pol.planner import measuring, miniature
from pol.profile import Profile
from pol.proof.foresight import choice
from pol.proof.policy import EXACT
from pol.replay.inprocess import InProcess
from references import PLAIN, RECIPE
from test_cli_answers import call
from zoo.tools import ZOO, recipes

ADAM = RECIPE.replace("toy.py:Toy", "adam.py:Adam")
LOADERS = recipes("zoo_loaders.py")
ONE = Profile(threads=1)


def planned(recipe, **options):
    return pol.plan(recipe, **{"profile": ONE, "executor": InProcess(), "seconds": 0.0, **options})


def recorded(recipe, out, every, keep, **options):
    """The files of a recording, with their sizes."""
    options = {"profile": ONE, "executor": InProcess(), **options}
    pol.record(recipe, out, key=SigningKey.generate(), every=every, keep=keep, **options)
    return {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}


# -- what a few steps show of the whole ---------------------------------------------------------------------------


def assert_foreseen(recipe, folder, *lengths, settings=None):
    """Number of files, intervals and steps exactly; bytes of the proof, all and per interval, within 20 %."""
    found = planned(recipe, settings=settings)
    for every, keep in lengths:
        foreseen = choice(found.run, EXACT, every, keep, 0.03)
        files = recorded(recipe, folder / f"{every}-{keep}", every, keep, settings=settings)
        lines = (folder / f"{every}-{keep}" / "log.jsonl").read_bytes().splitlines()
        assert foreseen.kept == sum(name.startswith("checkpoints/") for name in files)
        assert foreseen.intervals == len(lines) - 1
        assert json.loads(lines[-1])["stop"] == found.run.steps
        assert foreseen.bytes == pytest.approx(sum(files.values()), rel=0.2)
        assert foreseen.bytes_per_interval == foreseen.bytes / foreseen.intervals
        log = len(lines) * found.run.sizes.record + found.run.steps * found.run.sizes.record_step
        assert log == pytest.approx(files["log.jsonl"], rel=0.2)


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN, ADAM], ids=["toy", "plain", "adam"])
def test_bytes_are_those_of_the_recording(recipe, tmp_path):
    assert_foreseen(recipe, tmp_path, (1, 1), (3, 2), (10, 1), (14, 1))


def test_bytes_of_the_digits(tmp_path):
    assert_foreseen("pol.recipes.digits:DigitsCNN", tmp_path, (10, 4), settings={"num_epochs": 1})


GPT = {"num_epochs": 1, "steps_per_epoch": 16, "batch_size": 2, "layers": 2, "width": 64, "context": 16, "warmup": 4}


def test_bytes_of_a_transformer(tmp_path):
    assert_foreseen("pol.recipes.text:CharGPT", tmp_path, (1, 4), (4, 2), settings=GPT)


def test_bytes_of_a_residual_network(tmp_path):
    path = cifar.invented(tmp_path / "images.npz", 64)
    settings = {"path": str(path), "samples": 64, "batch_size": 4}
    assert_foreseen("benchmarks/resnet.py:ResNet20", tmp_path, (2, 2), settings=settings)


@pytest.mark.parametrize("name", ["Bucketed", "OwnStream", "Streaming", "OwnAccumulating", "OwnWorkers"])
def test_bytes_with_loaders_of_ones_own(name, tmp_path):
    found = planned(LOADERS[name])
    assert found.run.steps >= 4
    assert_foreseen(LOADERS[name], tmp_path, (2, 1))


def test_the_seconds_are_there():
    costs = msgspec.structs.asdict(planned(RECIPE).run.costs)
    # Events of a process that is this one all come at once, so a replay and a start seem to take no time.
    assert {name for name, value in costs.items() if value <= 0} <= {
        "start", "replay_enter", "replay_step", "compared", "busy"
    }  # fmt: skip
    assert all(math.isfinite(value) for value in costs.values())
    assert planned(RECIPE, policy=policies.load("tolerance")).run.costs.compared > 0


# -- how steps are measured ---------------------------------------------------------------------------------------


def events(job):
    found = list(InProcess().run(job))
    assert not any(isinstance(event, Failed) for event in found), found[-1]
    return found


def measured(folder, recipe=RECIPE, **changes):
    job = Measure(
        program=Program(reference=recipe, configuration={}, seed="07" * 32, profile=ONE), every=2, keep=2,
        directory=str(folder), batch_key="00" * 32, seconds=0.0, least=8, most=64,
    )  # fmt: skip
    return events(msgspec.structs.replace(job, **changes))


def the(kind, found):
    (one,) = (event for event in found if isinstance(event, kind))
    return one


@pytest.mark.parametrize("recipe", [RECIPE, ADAM, *(LOADERS[name] for name in ("AugmentingBatches", "OwnBatches"))])
def test_measured_steps_are_the_steps_of_the_training(recipe, tmp_path):
    """The clocks change nothing: the same states as without them, and the same as from a plain job."""
    found = measured(tmp_path, recipe)
    program = Program(reference=recipe, configuration={}, seed="07" * 32, profile=ONE)
    for record in (event for event in found if isinstance(event, Recorded)):
        plain = the(Controlled, events(Control(program=program, steps=record.interval.stop)))
        assert plain.root == record.interval.root
    assert the(Measured, found).steps == 8


def test_each_kind_of_step_is_timed(tmp_path):
    found = the(Measured, measured(tmp_path))
    timings = found.timings  # steps 0 and 1 are left out; 3 and 7 end intervals whose state is kept, 5 another one
    assert [len(timings.bare), len(timings.added), len(timings.closing)] == [6, 6, 3]
    assert [len(timings.digests), len(timings.whole)] == [1, 2]
    assert [len(timings.copies), len(timings.written), len(timings.cores)] == [2, 2, 2]
    assert min([*timings.bare, *timings.added, *timings.digests, *timings.whole, *timings.copies, *timings.written]) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{step:012d}.safetensors" for step in (0, 4, 8)]
    assert timings.refetched
    assert timings.samples


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"seconds": 0.0, "least": 1}, 4),
        ({"seconds": 0.0, "least": 5}, 8),
        ({"seconds": 1e9, "most": 11}, 8),
        ({"seconds": 1e9, "least": 1, "most": 64}, 12),  # of 14: there is no kept state after another four
        ({"seconds": 0.0, "least": 10**6}, 12),
    ],
)
def test_measuring_ends(tmp_path, changes, steps):
    assert the(Measured, measured(tmp_path, **changes)).steps == steps


def odd(folder):
    """A file of recipes that are hard to plan."""
    (folder / "toy.py").write_text(Path(RECIPE.rpartition(":")[0]).read_text())
    (folder / "odd.py").write_text(SHORT)
    return folder / "odd.py"


def test_a_whole_training_may_be_measured(tmp_path):
    (tmp_path / "states").mkdir()
    assert the(Measured, measured(tmp_path / "states", f"{odd(tmp_path)}:Even", seconds=1e9)).steps == 8


def test_what_a_recording_would_go_back_for_does_not_stop_a_measurement(tmp_path):
    """A large tensor stays for nine steps and is then written: from there on everything is hashed."""
    recipe = f"{ZOO / 'zoo_large.py'}:Thawed"
    found = measured(tmp_path, recipe, every=1, keep=12, seconds=1e9)
    assert the(Measured, found).steps == 12


def test_readings_of_ones_own_loaders_add_nothing(tmp_path):
    for name in ("OwnStream", "OwnWorkers", "OwnAccumulating", "Streaming"):
        (tmp_path / name).mkdir()
        assert the(Measured, measured(tmp_path / name, LOADERS[name])).timings.refetched == [], name


# -- options ------------------------------------------------------------------------------------------------------


def test_given_lengths_are_the_only_ones():
    assert [(one.every, one.keep) for one in planned(RECIPE).choices] == [(1, 1), (1, 10), (10, 1)]
    assert [(one.every, one.keep) for one in planned(RECIPE, every=7).choices] == [(7, 1)]
    assert [(one.every, one.keep) for one in planned(RECIPE, keep=3).choices] == [(1, 3), (10, 3)]
    assert [(one.every, one.keep) for one in planned(RECIPE, every=14, keep=9).choices] == [(14, 9)]
    tolerant = planned(RECIPE, policy=policies.load("tolerance"))
    assert [(one.every, one.keep) for one in tolerant.choices] == [(1, 1), (1, 10)]
    assert tolerant.run.trials == 5
    assert planned(RECIPE).run.trials == 0


def test_a_recipe_with_arguments_of_ones_own():
    assert planned("pol.recipes.text:CharGPT", settings={**GPT, "num_epochs": 2}).run.steps == 32


def test_what_is_recommended_follows_from_the_choices():
    found = planned(RECIPE, max_overhead=1e9)
    assert found.recommended.choice in found.choices
    assert found.share == 0.03
    assert planned(RECIPE, max_overhead=0.0).recommended.choice is None
    assert planned(RECIPE, max_overhead=1e9, max_bytes=1).recommended.choice is None
    assert [audit.confidence for audit in planned(RECIPE, confidences=[0.8]).choices[0].audits] == [0.8]


def test_phases_are_told():
    told = []
    planned(RECIPE, progress=lambda phase, done, total: told.append((phase, done, total)))
    phases = list(dict.fromkeys(phase for phase, _, _ in told))
    assert phases == ["measuring steps", "dry build", "reading as a verifier", "measuring a replay"]
    assert told[-1][1] == told[-1][2] > 0


# -- what cannot be planned ---------------------------------------------------------------------------------------

SHORT = """
import toy

class Short(toy.Toy):
    num_epochs = 1
    batch_size = 20

class Even(toy.Toy):
    batch_size = 13

class Broken(toy.Toy):
    def step(self, parts, batch):
        raise RuntimeError("nothing works")

class Diverging(toy.Toy):
    def step(self, parts, batch):
        return super().step(parts, batch) * float("inf")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary folders are made, and must be gone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    left = [path.name for path in tmp_path.iterdir() if path.suffix != ".py"]
    assert left == []


def test_nothing_is_left_behind(folder):
    assert planned(RECIPE).choices


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Short", UsageError, "3 steps: with fewer than 4"),
        ("Broken", ReplayError, "nothing works"),
        ("Diverging", ReplayError, "the loss is inf"),
        ("Nobody", UsageError, "has no recipe Nobody"),
    ],
)
def test_a_training_that_cannot_be_measured(folder, name, error, message):
    with pytest.raises(error, match=message):
        planned(f"{odd(folder)}:{name}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 15}, "15 steps is longer than the training, which has 14"),
        ({"every": 0}, "must be at least 1"),
        ({"keep": 0}, "must be at least 1"),
        ({"max_overhead": math.nan}, "give a share that is not negative"),
        ({"max_overhead": -0.1}, "give a share that is not negative"),
        ({"max_bytes": 0}, "give a size"),
        ({"share": 0.0}, "a share of forged intervals"),
        ({"confidences": []}, "confidence"),
        ({"settings": {"nobody": 1}}, "nobody"),
        ({"policy": policies.load("paper-2021")}, "only procedure eight-steps"),
    ],
)
def test_options_that_make_no_sense(folder, options, message):
    with pytest.raises(PolError, match=message):
        planned(RECIPE, **options)


def test_a_process_that_says_nothing(folder):
    class Silent:
        def run(self, job):
            return iter(())

    with pytest.raises(ReplayError, match="gave no answer"):
        planned(RECIPE, executor=Silent())


def test_a_replay_that_fails_is_told(folder):
    class Failing(InProcess):
        def run(self, job):
            if isinstance(job, Build):
                return iter([Failed(kind="UsageError", message="no build")])
            return super().run(job)

    with pytest.raises(UsageError, match="no build"):
        planned(RECIPE, executor=Failing())


def test_first_steps_that_no_verifier_could_read(folder, monkeypatch):
    """A plan of a recording that could not be read would be worth nothing."""
    whole = miniature.Miniature.seal

    def damaged(self, *given):
        whole(self, *given)
        (self.path / "secret.json").write_text("{}")

    monkeypatch.setattr(miniature.Miniature, "seal", damaged)
    with pytest.raises(ReplayError, match="a proof of the first steps could not be read"):
        planned(RECIPE)


# -- from the command line ----------------------------------------------------------------------------------------


class Here(InProcess):
    """A training process that is this one."""

    def __init__(self, profile=None, *, isolated=False):
        del profile, isolated

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nothing to end."""


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(measuring, "LocalProcess", Here)
    monkeypatch.setattr("pol.planner.SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "200")


def test_a_plan_as_json(here, capsys):
    code, out, err = call(capsys, "plan", RECIPE, "--max-overhead", "100000%", "--threads", 1, "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {
        "recipe", "policy", "profile", "measured_steps", "load", "run", "share", "max_overhead", "max_bytes",
        "choices", "recommended", "commands",
    }  # fmt: skip
    assert set(found["choices"][0]) == {
        "every", "keep", "intervals", "kept", "overhead", "bytes", "bytes_per_interval", "audits", "refused"
    }  # fmt: skip
    assert set(found["choices"][0]["audits"][0]) == {
        "confidence", "draws", "replayed_steps", "replayed_share", "seconds", "openings", "answered_steps",
        "opening_bytes",
    }  # fmt: skip
    assert found["max_overhead"] == 1000
    assert found["recommended"]["choice"] in found["choices"]
    best = found["recommended"]["choice"]
    record, verify = found["commands"]
    assert record == (f"pol record {RECIPE} --out proof --every {best['every']} --keep {best['keep']} --threads 1")
    assert verify == f"pol verify proof --recipe {RECIPE}"
    assert "measuring steps" in err


def test_a_plan_for_people(here, capsys):
    code, out, _ = call(capsys, "plan", RECIPE, "--max-overhead", "100000%", "--set", "lr=0.05")
    assert code == 0
    assert "14 steps; measured in 12 of them" in out
    assert "at most 3 % of the intervals are forged" in out
    assert "95 %: steps" in out
    assert "99 %: steps" in out
    assert "Take k = " in out
    assert "pol record " in out
    assert "--set lr=0.05" in out


def test_a_plan_for_people_when_nothing_fits(here, capsys):
    code, out, _ = call(capsys, "plan", RECIPE, "--max-overhead", "0%", "--confidence", "90%", "--share", "1%")
    assert code == 0
    text = " ".join(out.split())
    assert "90 %: steps" in text
    assert "at most 1 % of the intervals are forged" in text
    assert "Nothing to recommend: none costs at most 0 % of the training's time. The least is" in text
    assert "longer whatever k and K are" in text
    assert "pol record" not in text


def test_a_plan_of_single_steps(here, capsys):
    code, out, _ = call(capsys, "plan", RECIPE, "--policy", "tolerance", "--max-overhead", "100000%", "--json")
    record, verify = json.loads(out)["commands"]
    assert code == 0
    assert record.endswith("--rule tolerance")
    assert "--policy tolerance" in verify


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((RECIPE, "--steps", 10), "--steps is for a run without a recipe"),
        ((RECIPE, "--max-overhead", "2"), "--max-overhead 2: write a share"),
        ((RECIPE, "--max-overhead", "-2%"), "--max-overhead -2%: write a share"),
        ((RECIPE, "--max-overhead", "nan%"), "--max-overhead nan%: write a share"),
        ((RECIPE, "--max-bytes", "much"), "--max-bytes much: write a size"),
        ((RECIPE, "--share", "0%"), "a share of forged intervals of 0"),
        ((RECIPE, "--confidence", "100%"), "confidence 1"),
        ((RECIPE, "--set", "lr"), "write --set name=value"),
        ((RECIPE, "--policy", "paper-2021"), "only procedure eight-steps"),
        ((RECIPE, "--every", 15), "longer than the training"),
        (("nowhere.py:Toy",), "no such file: nowhere.py"),
        (("pol.nowhere:Toy",), "no module named"),
        (("--steps", 10, "--max-overhead", "2%"), "--max-overhead goes with a recipe"),
        (("--steps", 10, "--set", "lr=1"), "--set goes with a recipe"),
        (("--steps", 10, "--deterministic"), "--deterministic goes with a recipe"),
    ],
)
def test_no_plan(here, capsys, words, message):
    code, out, err = call(capsys, "plan", *words)
    assert (code, out) == (3, "")
    assert message in err


@pytest.mark.slow
def test_in_processes_of_its_own(capsys, tmp_path):
    """As anybody runs it: real processes, whose environment is the profile's."""
    code, out, _ = call(capsys, "plan", RECIPE, "--threads", 1, "--max-overhead", "100000%", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["profile"]["threads"] == 1
    assert found["run"]["costs"]["start"] > 0
    assert found["run"]["costs"]["replay_step"] > 0

"""``torch.compile`` in a training: exact in fresh processes, whatever was compiled before, or refused and why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pol.errors import ReplayError
from pol.executors import local
from pol.executors.local import LocalProcess
from pol.messages import Control, Controlled, Program, Trial
from pol.profile import Profile
from pol.proof.report import Verdict
from pol.replay import compiling, deferred
from pol.replay.engine import Frame, Position, advance
from pol.replay.inprocess import InProcess
from pol.replay.randomness import Streams
from pol.statetree import WEIGHTS
from test_engine import Machine
from zoo.tools import check, recipes, train

COMPILED = recipes("zoo_compile.py")


@pytest.mark.slow
def test_compiled_training_is_accepted(tmp_path):
    """Recorded and replayed in processes with an empty environment, the replay without a network.

    The last batch of an epoch is smaller, dropout and batch normalisation are compiled, and a replay enters at
    every step.
    """
    profile = Profile(threads=1)
    with LocalProcess(profile) as process:
        train(COMPILED["Compiled"], tmp_path / "p", profile=profile, executor=process)
    with LocalProcess(profile, isolated=True) as process:
        report = check(tmp_path / "p", COMPILED["Compiled"], executor=process)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert len(report.intervals) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_a_compiler_it_is_refused_with_the_fix(tmp_path, monkeypatch):
    """And a verifier that has none cannot tell: it never rejects for that."""
    train(COMPILED["Compiled"], tmp_path / "whole")
    real = local.environment
    monkeypatch.setattr(local, "environment", lambda profile: {**real(profile), "PATH": str(tmp_path)})
    profile = Profile(threads=1)
    message = r"torch\.compile: (no C\+\+ compiler works|the C\+\+ compiler failed); (install|see that) g\+\+"
    with LocalProcess(profile) as process:
        with pytest.raises(ReplayError, match=message):
            train(COMPILED["Compiled"], tmp_path / "p", profile=profile, executor=process)
        report = check(tmp_path / "whole", COMPILED["Compiled"], executor=process)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "C++ compiler" in report.reason()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_what_was_compiled_before_would_change_the_bits(tmp_path, monkeypatch):
    """As torch is by default, the second shape is compiled for all shapes: other kernels than a replay has."""
    before = torch._dynamo.config.automatic_dynamic_shapes
    monkeypatch.setattr(compiling, "settle", lambda: None)
    torch._dynamo.config.automatic_dynamic_shapes = True
    try:
        with pytest.raises(ReplayError, match="cannot be entered again"):
            train(COMPILED["Compiled"], tmp_path / "p")
    finally:
        torch._dynamo.config.automatic_dynamic_shapes = before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_and_uncompiled_end_apart():
    """The mode is part of the recipe's source: its digest tells them apart, and so do the bits."""
    compiled, eager = Machine("zoo_compile.py:Compiled"), Machine("zoo_compile.py:Eager")
    assert compiled.whole.declaration.entries == eager.whole.declaration.entries  # the same names, without _orig_mod
    assert compiled.run(stop=0).digests_now() == eager.run(stop=0).digests_now()
    assert compiled.whole.digests_now() != eager.whole.digests_now()


def test_too_many_shapes_are_refused(tmp_path, monkeypatch):
    """After them torch would go on uncompiled, from a step on that a replay does not know."""
    monkeypatch.setattr(compiling, "MOST_SHAPES", 4)
    try:
        with pytest.raises(ReplayError, match=r"torch\.compile: one function was compiled .*; pad inputs to a few"):
            train(COMPILED["Shapes"], tmp_path / "p")
    finally:
        monkeypatch.undo()
        compiling.settle()


def test_names_are_those_of_the_module_inside():
    class Inside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.compile(torch.nn.Linear(4, 8), backend="eager")
            self.second = torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.second(self.first(x))

    from zoo.zoo_base import Base, sgd

    class Partly(Base):
        def build(self):
            model = torch.compile(Inside(), backend="eager")
            return {"model": model, "optimizer": sgd(model)}

    state = advance(Partly, Frame(Streams(bytes(32))), Position(), stop=1).state
    weights = sorted(key for key in state.tensors if key.partition("/")[0] in WEIGHTS)
    assert weights == [
        f"parameter/model.{layer}.{what}" for layer in ("first", "second") for what in ("bias", "weight")
    ]


def test_the_compiled_code_of_a_process_is_its_own(tmp_path):
    """Two processes have two folders, and neither is left behind."""
    folders = []
    for _ in range(2):
        with LocalProcess(Profile(threads=1)) as process:
            process._start()
            folders.append(process._compiled.name)
    assert len(set(folders)) == 2
    assert not [name for name in folders if (tmp_path / name).exists()]


# -- the compiler is loaded when it is needed ---------------------------------------------------------------------

LATE = f"{Path(__file__).parent / 'recipes' / 'late.py'}"


def program(name, profile=None, **configuration):
    return Program(
        reference=f"{LATE}:{name}", configuration=configuration, seed="00" * 32, profile=profile or Profile(threads=1)
    )


def answer(executor, job):
    *_, last = executor.run(job)
    return last


@pytest.fixture(scope="module")
def process():
    with LocalProcess(Profile(threads=1)) as running:
        yield running


@pytest.fixture
def notes(tmp_path):
    """(path, what a training last wrote there)."""
    path = tmp_path / "notes.json"
    return str(path), lambda: json.loads(path.read_text())


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["Plain", "Late"])
def test_a_compiler_that_is_loaded_late_or_never_changes_no_bit(process, notes, name, strict):
    """Beside this process, which has loaded it. A program that only says how strict it is loads it, too."""
    path, noted = notes
    here = answer(InProcess(), Control(program=program(name, strict=strict), steps=5, reenter=True))
    there = answer(process, Control(program=program(name, notes=path, strict=strict), steps=5, reenter=True))
    assert isinstance(here, Controlled), here
    assert isinstance(there, Controlled), there
    assert (there.root, there.reentry, there.hidden) == (here.root, here.reentry, here.hidden)
    assert noted()["real"] is (name == "Late" or strict)
    assert bool(noted()["graphs"]) is (name == "Late")


def test_first_steps_are_taken_uncompiled(process, notes):
    """Whenever the compiler is loaded; shown to bite by the control run above, which compiles."""
    path, noted = notes
    tried = answer(process, Trial(program=program("Late", notes=path), steps=5))
    assert tried == answer(InProcess(), Trial(program=program("Late"), steps=5))
    assert noted() == {"real": True, "graphs": 0}


def test_sources_that_speak_of_it_and_strict_profiles_load_it_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(deferred, "load", lambda: loaded.append(True))
    monkeypatch.setattr(deferred, "is_deferred", lambda: True)
    for asked, number in [
        (program("Plain"), 0),
        (program("Plain", Profile(threads=1, deterministic=True)), 1),
        (Program(reference=COMPILED["Compiled"], configuration={}, seed="", profile=Profile(threads=1)), 1),
        (Program(reference="nowhere.py:Nothing", configuration={}, seed="", profile=Profile(threads=1)), 0),
    ]:
        loaded.clear()
        compiling.expect(asked)
        assert len(loaded) == number


def test_what_stands_for_the_compiler_is_gone_without_a_trace():
    """Run where nobody else is: torch's own functions are what they are where the compiler was loaded at once."""
    code = """
import sys, torch
from pol.replay import compiling
from pol.replay.deferred import is_deferred, load
compiling.defer()
import torch._dynamo as held
first = torch.nn.Parameter(torch.zeros(2))
optimizer = torch.optim.SGD([first], lr=0.1)
first.grad = torch.ones(2)
optimizer.step()
marked = torch.optim.Optimizer.add_param_group.__wrapped__
assert torch._dynamo is held and is_deferred() and vars(marked)["__dynamo_disable"] is marked
assert not hasattr(held, "__file__") and is_deferred()
import torch._dynamo.config
assert not is_deferred() and torch._dynamo.config.__spec__.origin
assert held.config is torch._dynamo.utils.config is torch._dynamo.config is sys.modules["torch._dynamo"].config
assert held.config.recompile_limit == compiling.MOST_SHAPES and not held.config.automatic_dynamic_shapes
assert "__dynamo_disable" not in vars(marked)
torch.optim.SGD([first], lr=0.1).step()
assert vars(marked)["__dynamo_disable"]._torchdynamo_disable
assert load() is sys.modules["torch._dynamo"] is torch._dynamo is not held
compiling.defer()
assert not is_deferred()
import torch._inductor.config
assert torch._inductor.config.deterministic is False
"""
    subprocess.run([sys.executable, "-c", code], check=True)

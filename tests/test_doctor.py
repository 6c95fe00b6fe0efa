"""The doctor: for every cause it knows a program that has it, and it names that cause first.

Most examinations are made in this process; those marked slow start real ones.
"""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import test_docs
from pol import doctor
from pol.cli import main
from pol.doctor import Answer, examine
from pol.doctor.causes import CAUSES, REFUSALS
from pol.doctor.comparing import changed_holdings, find_site, first_difference
from pol.doctor.diagnosis import Cost, Diagnosis, Finding
from pol.doctor.judging import Evidence, suspects
from pol.doctor.measuring import variants
from pol.errors import ReplayError, UsageError
from pol.messages import Failed, Observed, Probe, Probed, Program, Traced
from pol.profile import Profile
from pol.replay.inprocess import InProcess
from pol.traces import Held, Note, Observation, Operation
from zoo.tools import ZOO, train

ROOT = Path(__file__).parents[1]
ONE = Profile(threads=1)


def recipe(name, file="zoo_doctor.py"):
    return f"{ZOO / file}:{name}"


def ask(reference, **options):
    return examine(reference, **{"profile": ONE, "quick": True, "executor": InProcess(), **options})


# -- exact --------------------------------------------------------------------------------------------------------

HONEST = [
    "Base", "DropLast", "Accumulating", "TwoBatchesAStep", "GlobalRandomness", "Augmented", "CustomCollate",
    "NewDataEachEpoch", "Evaluating", "TopOfEpoch", "WarmsUp", "NumpyRates", "Texts",
]  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_training_is_exact(name):
    found = ask(recipe(name, "zoo_loops.py" if name != "Base" else "zoo_base.py"))
    assert (found.answer, found.finding, found.remarks) == (Answer.EXACT, None, [])
    assert found.steps == found.total
    assert [check.what.partition(" ")[0] for check in found.checks] == ["two", "two", "stopped", "stopped"]
    assert {check.what.rpartition(", ")[2] for check in found.checks[2:]} >= {"between two epochs"}


LOADERS = [
    "Shuffled", "Bucketed", "Augmenting", "Batched", "Streaming", "Own", "OwnGenerator", "OwnStream", "OwnWorkers",
    "OwnAccumulating", "Carrying", "Frozen",
]  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_an_honest_loader_or_base_is_exact(name):
    found = ask(recipe(name, "zoo_loaders.py"))
    assert (found.answer, found.finding, found.remarks) == (Answer.EXACT, None, [])
    assert found.steps == found.total
    assert [check.what.partition(" ")[0] for check in found.checks] == ["two", "two", "stopped", "stopped"]


def test_it_is_entered_within_an_epoch_and_between_two():
    found = ask(recipe("Exact"))
    assert [(check.what, check.steps) for check in found.checks] == [
        ("two builds under different seeds", 0),
        ("two runs in fresh processes", 12),
        ("stopped and resumed after step 4, 5 steps into an epoch", 7),
        ("stopped and resumed after step 5, between two epochs", 6),
    ]


def test_what_was_not_crossed_is_said():
    found = ask(recipe("Exact"), every=2, intervals=2)
    assert (found.answer, found.steps, found.total) == (Answer.EXACT, 4, 12)
    (remark,) = found.remarks
    assert "no end of an epoch was crossed: an epoch has 6 steps, 4 were taken" in remark
    found = ask(recipe("OneStep", "zoo_loops.py"))
    assert (found.answer, found.steps) == (Answer.EXACT, 1)
    assert "no middle" in found.remarks[0]


# -- not exact ----------------------------------------------------------------------------------------------------

WORKERS = "at zoo_doctor.py:{}, from a torch DataLoader".format(
    1 + (ZOO / "zoo_doctor.py").read_text().splitlines().index(
        "        return super().loss(parts, batch) + 1e-3 * parts.model(next(self.extra)).square().mean()"
    )
)  # fmt: skip

# Recipe -> cause, what was compared, the step, and parts of what is said of the place and of the evidence.
CASES = {
    "UnseededTransform": ("augmentation", "twin", 0, "", "os.urandom was called in step 0 at zoo_doctor.py:"),
    "OwnTransform": ("data-state", "resume", 5, "", "self.rng"),
    "Collates": ("data-state", "resume", 5, "", "last (torch.Tensor)"),
    "Counter": ("attribute", "resume", 5, "0.1 * self.seen", "self.seen (int)"),
    "Generator": ("generator", "resume", 5, "self.rng.random()", "self.rng (numpy"),
    "UnseededGenerator": ("entropy", "twin", 0, "self.rng.random()", "before the first step"),
    "Clock": ("clock", "twin", 0, "time.perf_counter()", "time.perf_counter was called in step 0"),
    "Entropy": ("entropy", "twin", 0, "(1 + noise)", "os.urandom was called in step 0"),
    "Backward": ("entropy", "twin", 0, "gradient * (1 + float(noise))", "os.urandom was called in step 0"),
    "Evaluating": ("evaluation", "resume", 9, "parts.model[3](torch.ones(10))", "torch's generator"),
    "Operation": ("operation", "twin", 0, "return unsure(", "zoo.unsure was given the same inputs"),
    "Forgotten": ("optimizer", "resume", 5, "self.second.step()", "self.second (torch.optim.sgd.SGD)"),
    "Average": ("optimizer", "resume", 5, "self.average.update", "self.average (torch.optim.swa_utils.Av"),
    "Threads": ("flags", "flags", 0, "", "threads is 3; the profile says 1"),
    "Deterministic": ("flags", "flags", 4, "", "deterministic is True; before it was False"),
    "Workers": ("loader", "program", None, "", WORKERS),
    "RandomSizes": ("build", "builds", None, "", "shape"),
}

REFUSED = {
    "CountsSteps": ("attribute", "resume", 5, "* self.seen", "self.seen (int)"),
    "OwnGenerator": ("generator", "resume", 5, "self.rng.random()", "self.rng"),
    "SystemRandomness": ("entropy", "twin", 0, "SystemRandom()", "os.urandom"),
    "Forgotten": ("optimizer", "resume", 5, "self.second.step()", "self.second"),
    "UnstableData": ("data", "builds", None, "", ""),
    "RandomLength": ("data", "builds", None, "", ""),
    "InPlace": ("data-state", "resume", 6, "", "the batch (x)"),
    "RateByHand": ("hyperparameters", "program", None, "", ""),
    "Unscheduled": ("hyperparameters", "program", None, "", ""),
    "RateBesideSchedule": ("hyperparameters", "program", None, "", ""),
    "StaysInEval": ("modes", "program", None, "", ""),
    "Unfreezes": ("modes", "program", None, "", ""),
    "Changing": ("build", "builds", None, "", ""),
    "Stopping": ("refused", "program", None, "", ""),
    "NeverCommits": ("refused", "program", None, "", ""),
    "Unattached": ("refused", "builds", None, "", ""),
}

UNLOADABLE = {
    "FreshStream": ("augmentation", "twin", 0, "", "os.urandom was called in step 0 at zoo_unloadable.py:"),
    "DrawingStream": ("data-state", "resume", 5, "", "shuffling (numpy.random._generator.Generator)"),
    "HiddenSampler": ("data-state", "resume", 4, "", "zoo_unloadable.Counting.asked (int)"),
    "OwnDataGenerator": ("data", "builds", None, "", ""),
    "OwnDrawing": ("data", "builds", None, "", ""),
    "Unattached": ("generator", "program", None, "", ""),
    "ChangesBase": ("refused", "program", None, "", "frozen tensor base.1"),
    "DrawsBase": ("build", "builds", None, "", "frozen[0].root"),
}

ON_PARTS = {
    "HiddenCounter": ("attribute", "resume", 9, "* scale", "model.encoder.calls (int)"),
    "HiddenGenerator": ("attribute", "program", None, "", "model.rng changes from step to step"),
    "HalfSaved": ("attribute", "program", None, "", "average.count changes from step to step"),
    "ByTheClock": ("clock", "program", None, "", "reads the clock at zoo_silent.py:"),
    "OutOfTime": ("clock", "program", None, "", "at zoo_silent.py:"),
    "OwnLoader": ("loader", "program", None, "", "at zoo_silent.py:"),
    "EarlyLoader": ("loader", "program", None, "", "at zoo_silent.py:"),
}

ALL = {**{recipe(name): case for name, case in CASES.items()},
       **{recipe(name, "zoo_refused.py"): case for name, case in REFUSED.items()},
       **{recipe(name, "zoo_unloadable.py"): case for name, case in UNLOADABLE.items()},
       **{recipe(name, "zoo_silent.py"): case for name, case in ON_PARTS.items()}}  # fmt: skip


@pytest.mark.parametrize("reference", ALL, ids=lambda reference: Path(reference).name)
def test_the_cause_is_named_first(reference):
    cause, compared, step, line, evidence = ALL[reference]
    found = ask(reference)
    assert found.answer is Answer.NOT_EXACT
    finding = found.finding
    assert finding.suspects[0].cause == cause, finding.suspects
    if compared != "builds" or cause == "build":
        assert finding.compared in (compared, "program") if cause == "refused" else finding.compared == compared
    assert finding.step == step
    assert line in (finding.site.line if finding.site else "")
    assert evidence in finding.suspects[0].evidence
    assert all(one.title == CAUSES[one.cause].title and one.fix for one in finding.suspects)
    if compared in ("twin", "resume"):
        assert finding.before or finding.differing
        assert finding.tensor is None or finding.tensor.startswith("parameter/")
    else:
        assert finding.message


def test_every_cause_has_a_program_or_a_test():
    named = {case[0] for case in ALL.values()}
    assert set(CAUSES) - named == {"threads", "again", "compile", "outside"}  # each below


def test_a_value_of_no_known_source_is_said_to_come_from_outside(tmp_path):
    """A file that somebody writes to: nothing that is watched, and nothing that the program holds."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    (tmp_path / "filed.py").write_text(f"""
import sys
sys.path.insert(0, {str(ZOO)!r})
from pathlib import Path
from zoo_base import Base
class Filed(Base):
    def loss(self, parts, batch):
        file = Path({str(counter)!r})
        file.write_text(str(int(file.read_text()) + 1))
        return super().loss(parts, batch) * int(file.read_text())
""")
    finding = ask(f"{tmp_path}/filed.py:Filed").finding
    assert finding.suspects[0].cause == "outside"
    assert finding.site.kind == "input"
    assert "int(file.read_text())" in finding.site.line


def test_a_program_that_fails_the_second_time(tmp_path):
    found = ask(recipe("WritesOnce"), settings={"path": str(tmp_path / "once")})
    assert (found.answer, found.finding.compared) == (Answer.NOT_EXACT, "builds")
    assert found.finding.suspects[0].cause == "again"
    assert "FileExistsError" in found.finding.message


def test_a_program_that_fails_by_itself_is_not_judged():
    for name, file in (("Broken", "zoo_doctor.py"), ("Raising", "zoo_refused.py")):
        found = ask(recipe(name, file))
        assert (found.answer, found.finding) == (Answer.UNKNOWN, None)
        assert "no such luck" in found.reason


def test_wrong_usage_is_no_diagnosis():
    for reference, options in (
        (recipe("Nobody"), {}),
        ("no.such.module:Recipe", {}),
        (recipe("Counter"), {"settings": {"rate": 1}}),
        (recipe("Exact"), {"every": 0}),
        ("nothing.py:Recipe", {}),
    ):
        with pytest.raises(UsageError):
            ask(reference, **options)


# -- what a probe notes ---------------------------------------------------------------------------------------------


def probe(reference, stop, **options):
    program = Program(reference=reference, configuration={}, seed="07" * 32, profile=ONE)
    events = list(InProcess().run(Probe(program=program, stop=stop, **options)))
    failed = [event for event in events if isinstance(event, Failed)]
    assert not failed
    return events


def only(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_a_trace_changes_nothing():
    plain, traced = (probe(recipe("Exact"), 4, trace=trace) for trace in (None, 2))
    states = [[seen.observation.state for seen in only(events, Observed)] for events in (plain, traced)]
    assert states[0] == states[1]
    (trace,) = only(traced, Traced)
    assert (trace.step, trace.complete) == (2, True)
    assert not only(plain, Traced)


def test_a_trace_sees_the_backward_pass_and_names_the_forward_line():
    (trace,) = only(probe(recipe("Exact"), 1, trace=0), Traced)
    backward = [operation for operation in trace.operations if operation.backward]
    names = {operation.name for operation in backward}
    assert {"aten.native_batch_norm_backward", "aten.threshold_backward", "aten.mm"} <= names
    line = next(o.line for o in backward if o.name == "aten.nll_loss_backward")
    assert line.startswith("return nn.functional.cross_entropy(")
    assert "parts.optimizer.step()" in {o.line for o in trace.operations if not o.backward}


def test_memory_that_nobody_filled_is_no_difference():
    (trace,) = only(probe(recipe("Exact"), 1, trace=0), Traced)
    assert [o.outputs for o in trace.operations if ".empty" in o.name]
    assert not any(o.outputs for o in trace.operations if ".empty" in o.name)


def test_watching_is_over_afterwards():
    import os
    import random
    import time

    before = time.time, os.urandom, random._urandom, random.Random.seed, sys.getprofile()
    probe(recipe("Clock"), 1)
    assert (time.time, os.urandom, random._urandom, random.Random.seed, sys.getprofile()) == before


def test_our_own_clocks_are_not_the_recipes():
    (probed,) = only(probe(recipe("Exact"), 3), Probed)
    assert probed.notes == []
    (probed,) = only(probe(recipe("Clock"), 3), Probed)
    assert [(note.kind, note.call, note.step) for note in probed.notes] == [
        ("clock", "time.perf_counter", step) for step in range(3)
    ]


def test_measuring_notes_the_last_step_only():
    found = [seen.observation for seen in only(probe(recipe("Exact"), 3, measure=True), Observed)]
    assert [bool(one.state) for one in found] == [False, False, True]
    whole = [seen.observation for seen in only(probe(recipe("Exact"), 3), Observed)]
    assert found[-1].state == whole[-1].state
    assert all(one.seconds > 0 for one in found)


# -- comparing ------------------------------------------------------------------------------------------------------


def seen(step, **changes):
    plain = {
        "loss": "1.0", "seconds": 0.1, "batch": {"x": "a"}, "generators": {"torch's": "g"}, "flags": {},
        "state": {"parameter/w": "p", "optimizer/m": "o"}, "counts": {},
    }  # fmt: skip
    return Observation(step=step, **{**plain, **changes})


def test_the_first_step_counts_and_generators_alone_do_not():
    run = [seen(0), seen(1), seen(2)]
    assert first_difference(run, [seen(1), seen(2)]) is None  # a run that was entered at 1
    assert first_difference(run, [seen(0, generators={"torch's": "other"}), seen(1), seen(2)]) is None
    found = first_difference(run, [seen(0), seen(1, loss="2.0"), seen(2, batch={"x": "b"})])
    assert (found.step, found.loss, found.state) == (1, True, [])
    found = first_difference(run, [seen(0), seen(1, state={"parameter/w": "p", "optimizer/m": "x", "buffer/b": ""})])
    assert (found.step, found.state, found.entries) == (1, ["buffer/b", "optimizer/m"], 3)
    assert first_difference([], []) is None


def operation(name="aten.mul", inputs=("F32[2] 00", "3"), outputs=("F32[2] 11",), line="x * y"):
    return Operation(
        name=name, place="r.py:1" if line else "", line=line, backward=False, inputs=list(inputs), outputs=list(outputs)
    )


def traced(*operations, complete=True, held=()):
    return Traced(step=0, operations=list(operations), complete=complete, held=list(held))


def test_the_first_operation_that_is_not_shared():
    same = operation("aten.add")
    assert find_site(traced(same), traced(same)) is None
    site = find_site(traced(same, operation()), traced(same, operation(outputs=["F32[2] 22"])))
    assert (site.kind, site.operation, site.line) == ("operation", "aten.mul", "x * y")
    site = find_site(traced(same, operation()), traced(same, operation(inputs=["F32[2] 00", "4"])))
    assert (site.kind, site.detail) == ("input", "input 2 was 3 in one run and 4 in the other")
    site = find_site(traced(operation(line="")), traced(operation(line="", inputs=["F32[2] 99", "3"])))
    assert (site.place, "a tensor F32[2]" in site.detail) == ("", True)
    site = find_site(traced(same), traced(same, operation()))
    assert (site.kind, site.operation, site.other) == ("sequence", "aten.mul", None)
    assert find_site(traced(same, complete=False), traced(same, operation())) is None


def test_holdings_that_one_run_lacks_are_no_suspects():
    held = [Held(name=name, type="int", kind="value", digest=name) for name in "ab"]
    other = [Held(name="a", type="int", kind="value", digest="z")]
    assert [one.name for one in changed_holdings(traced(held=held), traced(held=other))] == ["a"]


def test_a_compiled_module_is_a_suspect():
    found = first_difference([seen(0)], [seen(0, state={"parameter/w": "q", "optimizer/m": "o"})])
    named = suspects(Evidence(difference=found, resumed=False, compiled=["model"]))
    assert [one.cause for one in named] == ["compile"]
    note = Note(kind="clock", call="time.time", place="r.py:9", line="t = time.time()", step=0)
    named = suspects(Evidence(difference=found, resumed=False, compiled=["model"], notes=[note]))
    assert [one.cause for one in named] == ["clock", "compile"]


def test_an_operation_says_which_flags_help():
    found = first_difference([seen(0)], [seen(0, state={"parameter/w": "q", "optimizer/m": "o"})])
    site = find_site(traced(operation()), traced(operation(outputs=["F32[2] 22"])))
    helps = {"--deterministic": "a step takes 1.30 times as long"}
    known = Evidence(difference=found, resumed=False, site=site, helps=helps, tried=["--deterministic", "--threads 1"])
    (one,) = suspects(known)
    assert (one.cause, "1.30 times" in one.fix) == ("operation", True)
    known = Evidence(difference=found, resumed=False, site=site, tried=["--deterministic"])
    assert "still differ" in suspects(known)[0].fix


def test_variants_differ_in_one_flag_each():
    for profile in (ONE, Profile(threads=4, deterministic=True, matmul="medium")):
        for machine in ("x86_64", "aarch64"):
            tried = variants(profile, machine)
            assert len({label for label, _ in tried}) == len(tried)
            for _, other in tried:
                changed = [name for name in Profile.__struct_fields__ if getattr(other, name) != getattr(profile, name)]
                assert len(changed) == 1
            assert any(other.aten != "native" for _, other in tried) == (machine == "x86_64")


def test_refusals_are_messages_of_this_package():
    source = "".join(path.read_text() for path in (ROOT / "src" / "pol").rglob("*.py") if path.name != "causes.py")
    for part, cause in REFUSALS.items():
        assert part in source, part
        assert cause in CAUSES


def test_docs_list_the_causes():
    found = {row[0].strip("`"): (row[1], row[2]) for row in test_docs.rows(ROOT / "docs" / "doctor.md", "## Causes")}
    assert found == {name: (cause.title, cause.fix) for name, cause in CAUSES.items()}


# -- recording ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"), [("CountsSteps", "cannot be entered again"), ("Changing", "each time it is")]
)
def test_the_recorder_points_to_the_doctor(name, says, tmp_path):
    reference = recipe(name, "zoo_refused.py")
    with pytest.raises(ReplayError, match=says) as raised:
        train(reference, tmp_path / "p")
    assert str(raised.value).endswith(f"pol doctor {reference}")


# -- the command ----------------------------------------------------------------------------------------------------


class Here(InProcess):
    """A training process that is this one."""

    def __init__(self, profile=None, *, isolated=False):
        del profile, isolated

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        """Nothing to end."""


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run ``pol``: (exit code, standard output, standard error)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("pol.prover.LocalProcess", Here)
    monkeypatch.setattr("pol.executors.local.LocalProcess", Here)
    monkeypatch.setattr("pol.doctor.probing.LocalProcess", Here)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def test_the_answer_is_the_exit_code(call):
    for name, code, answer in (("Exact", 0, "exact"), ("Counter", 1, "not exact"), ("Broken", 2, "could not tell")):
        words = ["doctor", recipe(name), "--threads", 1, "--quick"]
        found, out, err = call(*words)
        assert (found, out.startswith(f" {answer} "), "Traceback" in err) == (code, True, False)
        found, out, _ = call(*words, "--json")
        assert (found, out.count("\n"), json.loads(out)["answer"]) == (code, 1, answer)
        assert msgspec.json.decode(out.encode(), type=Diagnosis).recipe == recipe(name)


def test_wrong_usage_is_3(call):
    assert call("doctor", "nothing.py:Recipe")[0] == 3
    assert call("doctor", recipe("Counter"), "--set", "rate=1", "--threads", 1)[0] == 3
    assert call("doctor", recipe("Exact"), "--every", 0)[0] == 3


def test_it_says_first_what_matters(call):
    _, out, err = call("doctor", recipe("Counter"), "--threads", 1, "--quick")
    order = ["not exact", "First", "step 5: parameter model.0.", "Operation", "aten.mul.Tensor at zoo_doctor.py:",
             "* (1 + 0.1 * self.seen)", "Likely", "self.seen (int)", "→ Compute it from run.step", "Equal"]  # fmt: skip
    places = [out.index(part) for part in order]
    assert places == sorted(places)
    assert next(line for line in err.splitlines() if line.startswith("pol: ")) == "pol: building twice"


def test_no_verdict_of_a_proof_is_given(call):
    for name in ("Exact", "Counter", "Broken"):
        _, out, _ = call("doctor", recipe(name), "--threads", 1, "--quick")
        assert not {"ACCEPT", "REJECT", "INCONCLUSIVE"} & set(out.split())


def test_strangers_text_cannot_paint(call):
    from pol.render import doctor as rendered

    finding = Finding(compared="program", message="\x1b[2Jexact\u202e", suspects=[])
    cost = Cost(flags="x", profile=ONE, seconds=None, ratio=None, steps=0, note="\x1b[31m")
    found = Diagnosis(answer=Answer.NOT_EXACT, recipe="r", profile=ONE, every=1, finding=finding, costs=[cost])
    from rich.console import Console

    console = Console(width=80, highlight=False, markup=False)
    with console.capture() as capture:
        rendered.diagnosis(console, found)
    assert not {"\x1b", "\u202e"} & set(capture.get())


def test_flags_are_measured_unless_it_is_to_be_quick(call):
    code, out, _ = call("doctor", recipe("Exact"), "--threads", 1, "--json")
    found = json.loads(out)
    assert code == 0
    assert {one["flags"] for one in found["variants"]} >= {"--threads 2", "--deterministic", "matmul: medium"}
    assert [one["flags"] for one in found["costs"]] == ["asked for", "--deterministic", "--threads 2", "matmul: medium"]
    assert all(one["seconds"] > 0 and one["ratio"] > 0 and one["steps"] == 33 for one in found["costs"])
    code, out, _ = call("doctor", recipe("Exact"), "--threads", 1)
    for part in ("A verifier", "Other flags", "Cost", "times as long", "TF32"):
        assert part in out


def test_interrupted_is_130(call, monkeypatch):
    def stop(self, job):
        raise KeyboardInterrupt

    monkeypatch.setattr(Here, "run", stop)
    code, out, err = call("doctor", recipe("Exact"))
    assert (code, out, "interrupted" in err.lower()) == (130, "", True)


def test_determinism_is_recorded_when_it_is_asked_for(call):
    made = json.loads(call("record", recipe("Exact"), "--out", "p", "--threads", 1, "--deterministic", "--json")[1])
    assert json.loads(call("inspect", "p", "--json")[1])["claims"]["profile"]["deterministic"] is True
    assert call(*made["next"].split()[1:])[0] == 0
    call("record", recipe("Exact"), "--out", "q", "--threads", 1, "--genesis-only")
    code, _, err = call("record", recipe("Exact"), "--out", "q", "--resume", "--deterministic")
    assert (code, "the training is without" in err) == (3, True)
    found = json.loads(call("doctor", recipe("Exact"), "--threads", 1, "--quick", "--deterministic", "--json")[1])
    assert found["profile"]["deterministic"] is True


# -- real processes -------------------------------------------------------------------------------------------------


def spawn(*words):
    command = [sys.executable, "-m", "pol", "doctor", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "code", "cause"),
    [
        ("Exact", [], 0, None),
        ("Counter", [], 1, "attribute"),
        ("Entropy", [], 1, "entropy"),
        ("Workers", ["--set", "workers=2"], 1, "loader"),
        ("Deterministic", [], 1, "flags"),
        ("Broken", [], 2, None),
    ],
)
def test_fresh_processes_say_the_same(name, words, code, cause):
    found, said = spawn(recipe(name), "--threads", 1, "--quick", *words)
    assert found == code
    assert (said["finding"]["suspects"][0]["cause"] if said["finding"] else None) == cause


@pytest.mark.slow
def test_a_kernel_that_is_not_deterministic_is_found_and_what_helps_is_measured():
    """Gradients of indexing are added up by several threads in any order, unless torch is told to be deterministic."""
    words = [recipe("Indexing"), "--threads", 2, "--quick", "--every", 5, "--intervals", 1]
    code, said = spawn(*words)
    finding = said["finding"]
    assert (code, finding["compared"], finding["site"]["operation"]) == (1, "twin", "aten.index_put")
    assert finding["site"]["backward"]
    assert "parts.model.weight[rows]" in finding["site"]["line"]
    assert finding["suspects"][0]["cause"] == "threads"
    assert "--deterministic (a step takes" in finding["suspects"][0]["fix"]
    assert [cost["flags"] for cost in said["costs"]] == ["asked for", "--deterministic", "--threads 1"]
    assert spawn(*words, "--deterministic")[0] == 0


@pytest.mark.slow
def test_other_instructions_are_other_bits():
    found = examine(recipe("Vectors", "zoo_platform.py"), profile=ONE)
    assert found.answer is Answer.EXACT
    changed = {one.flags: one.equal for one in found.variants}
    assert changed["instructions: any x86-64"] is False
    assert all(cost.seconds for cost in found.costs)


def test_the_seed_is_the_same_every_time():
    assert doctor.EVERY * doctor.INTERVALS == 30
    first, second = (ask(recipe("Counter")) for _ in range(2))
    assert first.finding == second.finding

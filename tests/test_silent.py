"""Nothing silent: what no state and no record has is refused or said, and the end of a recording is tried."""

import io
import json
import re

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from rich.console import Console
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from pol import store
from pol.canonical import decode, encode
from pol.cli import foresight, output
from pol.declaration import Declaration
from pol.errors import FormatError, ReplayError, UsageError
from pol.messages import Failed, Replay
from pol.proof.attestation import MAX_JOURNAL, MAX_NOTICE, MAX_NOTICES, Journal
from pol.proof.genesis import MAX_GENESIS, kept, read_genesis
from pol.proof.report import Verdict
from pol.prover import selfcheck
from pol.prover.recorder import Recorder
from pol.render import inspection
from pol.replay import clocks, hidden, walk, watch
from pol.replay.inprocess import InProcess
from zoo.tools import check, recipes, train

SILENT = recipes("zoo_silent.py")
ANYWHERE = r"zoo_silent\.py:\d+"


def genesis(out):
    return read_genesis(store.ProofDirectory(out).read("genesis.json", 2 * MAX_GENESIS))


def journal(out):
    return json.loads((out / "journal.json").read_bytes())


def inspected(out):
    summary, claimant = output.read_summary(out)
    with io.StringIO() as file:
        inspection.inspection(Console(file=file, width=200), str(out), summary, claimant)
        return file.getvalue()


def verdict(out, name, **options):
    report = check(out, SILENT[name], **options)
    return report.verdict, report.caught_by


# --- attributes

HIDDEN = {
    "HiddenCounter": "model.encoder.calls",
    "HiddenMeter": "model.0.meter.sums['loss'][1]",
    "HiddenTensor": "model.ema[0]",
    "HiddenArray": "model.history",
    "HiddenGenerator": "model.rng",
    "HiddenPythonGenerator": "model.rng",
    "HiddenTorchGenerator": "model.rng",
    "HiddenModule": "model.teachers[0].weight",
    "HiddenOptimizer": "model.second.state[0]['momentum_buffer']",
    "HiddenObjects": "model.rows[1].sums['loss'][1]",
    "HiddenIterator": "model.names",
    "HiddenInOptimizer": "optimizer.updates",
    "HalfSaved": "average.count",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_evolves_in_no_state_is_refused_by_name(name, tmp_path):
    expected = f"{HIDDEN[name]} changes from step to step and is in no state"
    with pytest.raises(ReplayError, match=f'^{re.escape(expected)}.*buffer.*ignored=\\("{re.escape(HIDDEN[name])}",'):
        train(SILENT[name], tmp_path / "p")
    assert not (tmp_path / "p/genesis.json").exists()


def test_without_that_check_it_is_recorded_and_does_not_replay(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden, "evolving", lambda *_: [])
    monkeypatch.setattr(Recorder, "self_check", lambda *_: None)
    train(SILENT["HiddenCounter"], tmp_path / "p")
    assert verdict(tmp_path / "p", "HiddenCounter") == (Verdict.REJECT, 7)


def test_large_arrays_count_by_their_shape_where_that_is_enough():
    for zeros in (torch.zeros, np.zeros):
        found = []
        for large, first in ((None, 0), (None, 1), (32, 0), (32, 1), (33, 0), (33, 1)):
            values = zeros(4, dtype=(torch if zeros is torch.zeros else np).float64)
            values[0] = first
            look = walk.Walk(set(), large=large)
            look.value("x", [values])
            found.append(look.found["x[0]"])
        assert [found[0] == found[1], found[2] == found[3], found[4] == found[5]] == [False, True, False]


def test_several_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden, "evolving", lambda *_: ["model.a", "model.b", "model.c"])
    with pytest.raises(ReplayError, match=r"model\.a changes .* \(so do 2 others, such as model\.b\)"):
        train(SILENT["NamedMeter"], tmp_path / "p")


def test_a_statistic_can_be_named(tmp_path):
    train(SILENT["NamedMeter"], tmp_path / "p")
    assert genesis(tmp_path / "p").spec.declaration.ignored == ["model.0.meter", "model.calls"]
    assert "model.0.meter, model.calls: evolves in no state" in inspected(tmp_path / "p")
    assert verdict(tmp_path / "p", "NamedMeter") == (Verdict.ACCEPT, None)


def test_without_any_name_nothing_is_written(tmp_path):
    train(SILENT["Seeded"], tmp_path / "p")
    assert b"ignored" not in store.ProofDirectory(tmp_path / "p").read("genesis.json", 2 * MAX_GENESIS)
    assert "Ignored" not in inspected(tmp_path / "p")


def test_an_empty_list_of_names_is_not_the_canonical_form(tmp_path):
    train(SILENT["NamedMeter"], tmp_path / "p", every=12)
    declaration = genesis(tmp_path / "p").spec.declaration
    assert decode(encode(declaration), Declaration, what="x", limit=2**20) == declaration
    written = {**msgspec.to_builtins(declaration), "ignored": []}
    with pytest.raises(FormatError, match="not canonical"):
        decode(encode(written), Declaration, what="x", limit=2**20)


def test_a_name_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"attach\(ignored=\.\.\.\): no attached thing has 'model\.callz'"):
        train(SILENT["IgnoresNothing"], tmp_path / "p")


def test_names_ignore_what_is_inside_and_nothing_else():
    before, after = {"m.a": "1", "m.ab": "1", "m.a[0]": "1"}, {"m.a": "2", "m.ab": "2", "m.a[0]": "2", "m.a.b": "1"}
    assert hidden.evolving(before, after, []) == ["m.a", "m.a.b", "m.a[0]", "m.ab"]
    assert hidden.evolving(before, after, ["m.a"]) == ["m.ab"]
    assert hidden.evolving(before, before, []) == []


# --- clocks

CLOCKS = {
    "ByTheClock": r"cannot be entered again.*The program reads the clock at zoo_silent\.py:\d+ \(time\.time\)",
    "ByTheDate": r"cannot be entered again.*reads the clock at zoo_silent\.py:\d+ \(time\.time\)",
    "ByElapsedTime": r"cannot be entered again.*reads the clock at zoo_silent\.py:\d+ \(time\.perf_counter\)",
    "OutOfTime": r"taken again from its saved state: train\(\) returned after 2 .*reads the clock at zoo_silent\.py",
    "ByTheCalendar": r"cannot be entered again.*reads the clock at zoo_silent\.py:\d+ \(datetime\.now\)",
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_step_that_depends_on_the_clock_is_refused(name, tmp_path):
    with pytest.raises(ReplayError, match=CLOCKS[name]):
        train(SILENT[name], tmp_path / "p")


@pytest.mark.parametrize("name", ["ByTheClock", "ByTheDate", "ByElapsedTime", "OutOfTime"])
def test_only_clocks_that_are_put_forward_tell(name, tmp_path, monkeypatch):
    monkeypatch.setattr(clocks, "put_forward", lambda seconds: None)
    train(SILENT[name], tmp_path / "p")
    assert any("reads the clock" in text for text in journal(tmp_path / "p")["noticed"])


def test_a_clock_that_is_only_logged_is_said(tmp_path, capsys):
    train(SILENT["Throughput"], tmp_path / "p")
    said = journal(tmp_path / "p")["noticed"]
    assert [re.sub(r"\d+", "N", text) for text in said] == [
        "reads the clock at zoo_silent.py:N (time.time)",
        "reads the clock at zoo_silent.py:N (time.perf_counter)",
    ]
    assert f"the program {said[0]}; {said[1]}" in inspected(tmp_path / "p")
    foresight.warn(tmp_path / "p", warned := set())
    foresight.warn(tmp_path / "p", warned)
    assert capsys.readouterr().err.count(f"warning: the program {said[0]}. No state depended on it") == 1
    assert verdict(tmp_path / "p", "Throughput") == (Verdict.ACCEPT, None)


# --- fresh randomness

WAYS = [
    *("urandom", "getrandom", "system", "secrets", "uuid1", "uuid4", "python", "reseeded", "numpy", "state"),
    *("sequence", "numpy-seed", "torch", "generator"),
]


@pytest.mark.parametrize("how", WAYS)
def test_fresh_randomness_in_a_step_is_refused_with_its_place(how, tmp_path):
    with pytest.raises(ReplayError, match=f"cannot be entered again.*draws fresh randomness at {ANYWHERE} "):
        train(SILENT["Fresh"], tmp_path / "p", settings={"how": how})


@pytest.mark.parametrize("how", ["secrets", "numpy", "generator"])
def test_fresh_randomness_without_influence_is_said(how, tmp_path):
    train(SILENT["Unused"], tmp_path / "p", settings={"how": how})
    (said,) = journal(tmp_path / "p")["noticed"]
    assert re.match(f"draws fresh randomness at {ANYWHERE} ", said)


@pytest.mark.parametrize("name", ["Seeded", "EvaluationLoader", "Bookkeeping"])
def test_what_only_looks_like_it_is_neither_refused_nor_said(name, tmp_path):
    train(SILENT[name], tmp_path / "p", every=4)
    assert "noticed" not in journal(tmp_path / "p")
    assert verdict(tmp_path / "p", name) == (Verdict.ACCEPT, None)


@pytest.mark.parametrize("noticed", [[], ["x"] * (MAX_NOTICES + 1), ["x" * (MAX_NOTICE + 1)]])
def test_a_journal_says_a_bounded_part(noticed, tmp_path):
    train(SILENT["Throughput"], tmp_path / "p", every=12)
    written = {**journal(tmp_path / "p"), "noticed": noticed}
    data = json.dumps(written, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(FormatError, match=r"journal\.json"):
        decode(data, Journal, what="journal.json", limit=MAX_JOURNAL)


# --- loaders


@pytest.mark.parametrize("name", ["OwnLoader", "EarlyLoader"])
def test_a_loader_behind_the_back_of_the_run_is_refused(name, tmp_path):
    before = DataLoader.__iter__, _BaseDataLoaderIter.__next__
    with pytest.raises(UsageError, match=r"they would be in no record: iterate over run\.loader.*run\.aside\(\)"):
        train(SILENT[name], tmp_path / "p")
    assert (DataLoader.__iter__, _BaseDataLoaderIter.__next__) == before


def test_without_that_check_its_batches_are_in_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_refuse_loader", lambda: None)
    train(SILENT["OwnLoader"], tmp_path / "p")
    assert verdict(tmp_path / "p", "OwnLoader") == (Verdict.ACCEPT, None)


def test_an_iterator_of_the_run_is_free():
    loader = DataLoader(torch.arange(6), batch_size=2)
    earlier = iter(loader)
    with watch.driving():
        assert len(list(loader)) == 3
        early = iter(loader)
        watch.attached()
        with watch.ours():
            own = iter(loader)
        assert next(own).tolist() == [0, 1]
        with pytest.raises(UsageError, match="in no record"):
            iter(loader)
        for foreign in (early, earlier):
            with pytest.raises(UsageError, match="in no record"):
                next(foreign)
        with watch.aside():
            aside = iter(loader)
            assert len(list(aside)) == 3
        with pytest.raises(UsageError, match="in no record"):
            next(aside)
        assert len(list(own)) == 2
    assert len(list(loader)) == 3


# --- the self-check


def at(monkeypatch, *segments):
    monkeypatch.setattr(selfcheck, "places", lambda spec, r: list(segments))


def test_a_recording_that_does_not_replay_is_not_sealed(tmp_path, monkeypatch):
    at(monkeypatch, (8, 9))
    for resume in (False, True):  # the log is complete after the first time
        with pytest.raises(ReplayError, match=r"taking steps 8 to 9 again gave other values: .*the loss.*pol doctor"):
            train(SILENT["Rarely"], tmp_path / "p", resume=resume)
        assert not (tmp_path / "p/attestation.json").exists()
    at(monkeypatch, (7, 8))
    train(SILENT["Rarely"], tmp_path / "p", resume=True)
    assert verdict(tmp_path / "p", "Rarely") == (Verdict.REJECT, 7)


def test_a_name_that_lies_is_met_by_the_self_check(tmp_path, monkeypatch):
    at(monkeypatch, (10, 11))
    with pytest.raises(ReplayError, match="taking steps 10 to 11 again gave other values: the state after them"):
        train(SILENT["HiddenCounterNamed"], tmp_path / "p")


@pytest.mark.parametrize("rule", ["exact", "tolerance"])
def test_the_self_check_asks_an_ordinary_replay(rule, tmp_path):
    asked = []

    class Asked(InProcess):
        def run(self, job):
            asked.append(job)
            return super().run(job)

    phases = []
    train(
        SILENT["Seeded"], tmp_path / "p", rule=rule, executor=Asked(), progress=lambda *now: phases.append(now), keep=2
    )
    assert isinstance(asked[-1], Replay)
    segments = asked[-1].segments
    assert {segment.start for segment in segments} <= set(kept(genesis(tmp_path / "p").spec)[1:-1])
    assert all(segment.stop == segment.start + 1 for segment in segments)
    assert 6 in {segment.start for segment in segments}  # where the second epoch begins
    assert phases[-1] == ("self-check", len(segments), len(segments))


def test_a_self_check_that_could_not_be_done_can_be_resumed(tmp_path):
    class Dying(InProcess):
        def run(self, job):
            if isinstance(job, Replay):
                yield Failed(kind="Killed", message="the training process was killed by signal 9")
            else:
                yield from super().run(job)

    class Broken(Dying):
        def run(self, job):
            for event in super().run(job):
                yield Failed(kind="ReplayError", message="no") if isinstance(event, Failed) else event

    with pytest.raises(ReplayError, match=r"self-check could not be done: .*signal 9\. Resume the recording"):
        train(SILENT["Seeded"], tmp_path / "p", executor=Dying())
    with pytest.raises(ReplayError, match="not sealed: taking recorded steps again failed: no"):
        train(SILENT["Seeded"], tmp_path / "p", executor=Broken(), resume=True)
    train(SILENT["Seeded"], tmp_path / "p", resume=True)
    assert verdict(tmp_path / "p", "Seeded") == (Verdict.ACCEPT, None)


@pytest.mark.parametrize(
    ("steps", "every", "keep"), [(1, 1, 1), (12, 1, 1), (12, 100, 1), (1000, 10, 1), (1000, 1, 50), (99999, 7, 13)]
)
def test_the_self_check_stays_within_its_share(steps, every, keep, tmp_path):
    train(SILENT["Seeded"], tmp_path / "p", every=12)
    spec = genesis(tmp_path / "p").spec
    spec, seen = replace(spec, steps=steps, every=every, keep=keep), set()
    for number in range(50):
        r = number.to_bytes(32, "big")
        places = selfcheck.places(spec, r)
        seen.add(tuple(places))
        assert places == selfcheck.places(spec, r)
        assert 1 <= len(places) <= selfcheck.MOST + 2
        assert {start for start, _ in places} <= set(kept(spec)[:-1])
        most = max(steps // selfcheck.SHARE, min(every, steps)) + (every if every <= selfcheck.SHORT else 0)
        assert sum(stop - start for start, stop in places) <= most
        if every <= selfcheck.SHORT and steps > 1:
            second = min((start for start in kept(spec)[:-1] if start >= steps // 2), default=None)
            assert second is None or second in dict(places)
        assert len(kept(spec)) == 2 or places[0][0] > 0
    if steps // selfcheck.SHARE >= every * (keep + 1):
        assert all(any(stop == steps for _, stop in places) for places in seen)
    assert len(seen) > 1 or len(kept(spec)) <= 3


REFUSED_OR_SAID = {"Hung", "Fresh", "Unused", "Throughput", "Seeded", "EvaluationLoader", "Bookkeeping", "OwnLoader"}


def test_every_silent_recipe_is_tried():
    others = {"Counting", "Meter", "EarlyLoader", "Rarely", "NamedMeter", "HiddenCounterNamed", "IgnoresNothing"}
    assert set(SILENT) == {*HIDDEN, *CLOCKS, *REFUSED_OR_SAID, *others}

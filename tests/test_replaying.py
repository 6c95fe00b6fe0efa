"""What a replay keeps from one segment to the next, and what it loads ahead: nothing that changes what is found."""

import gc
import threading
from pathlib import Path

import msgspec
import pytest
from torch import nn

from factory import NONCE, factory
from pol.auditor import LocalAuditor
from pol.keys import SigningKey
from pol.messages import Failed, Opened, Recorded, Replay
from pol.profile import Profile
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay import opened, replaying
from pol.replay.inprocess import InProcess
from pol.verifier import verify
from references import OPENING, RECIPE

WINDOWS = 8


class Noting(InProcess):
    """Keeps the last replay, and what it yielded."""

    def run(self, job):
        events = list(super().run(job))
        if isinstance(job, Replay):
            self.job, self.events = job, events
        yield from events


class Opening:
    """A recording of one of the recipes that note it when they open their dataset."""

    def __init__(self, name, folder):
        self.recipe, self.proof = f"{OPENING}:{name}", folder / "proof"
        self.notes, self.odd = folder / "notes", folder / "odd"
        settings = {"notes": str(self.notes), "odd": str(self.odd)}
        options = {"every": 1, "profile": Profile(threads=1), "executor": InProcess(), "settings": settings}
        record(self.recipe, self.proof, key=SigningKey.generate(), **options)

    def verify(self, jobs=1):
        """(report, how often the replays opened the dataset)."""
        executor = Noting()
        with LocalAuditor(self.recipe, executor=executor, jobs=jobs) as auditor:
            report = verify(self.proof, auditor=auditor, nonce=NONCE)
        self.notes.write_text("")
        next(InProcess().run(executor.job))
        return msgspec.structs.replace(report, seconds=0.0), len(self.notes.read_text().split())


@pytest.mark.parametrize(
    ("name", "times"),
    [("Kept", 1), ("Plain", 1), ("Drawing", WINDOWS), ("Telling", WINDOWS), ("Built", WINDOWS + 1),
     ("Shuffling", WINDOWS)],
)  # fmt: skip
def test_a_dataset_is_opened_once_where_that_changes_nothing(name, times, tmp_path):
    opening = Opening(name, tmp_path)
    report, found = opening.verify()
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert len(report.intervals) == WINDOWS
    assert found == times
    assert opening.verify(jobs=2)[0] == report


def test_with_a_loop_of_its_own_it_would_change_something(tmp_path, monkeypatch):
    """Shown to bite: what was shuffled in one segment would be shuffled again in the next."""
    opening = Opening("Shuffling", tmp_path)
    monkeypatch.setattr(
        opened.Dataset, "lend",
        lambda self, recipe: setattr(recipe, "data", opened.partial(self._data, recipe, recipe.data)),
    )  # fmt: skip
    assert opening.verify()[0].verdict is Verdict.REJECT


def test_a_sample_that_becomes_another_one_later_is_found(tmp_path):
    """It is what was committed when it is first seen, and every time it is looked at again."""
    opening = Opening("Kept", tmp_path)
    opening.odd.touch()
    report, _ = opening.verify()
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert "samples that are not the committed ones" in report.reason()
    assert sum(result.status == "failed" for result in report.intervals) == 1


# -- loading ahead ----------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """The replay of all intervals of a copy of an honest proof."""
    executor = Noting()
    with LocalAuditor(RECIPE, executor=executor) as auditor:
        verify(factory().copy(tmp_path), auditor=auditor, nonce=NONCE)
    return executor.job


def test_one_state_is_loaded_at_a_time(job, monkeypatch):
    """When one begins to be loaded, those before it have been let go; and all but the first beside the training."""
    loaded, left, threads = [], [], []
    position_of = replaying.position_of

    def noting(segment):
        left.append([len(state.tensors) for state in loaded])
        threads.append(threading.current_thread() is threading.main_thread())
        position = position_of(segment)
        if position.state is not None:
            loaded.append(position.state)
        return position

    monkeypatch.setattr(replaying, "position_of", noting)
    events = list(InProcess().run(job))
    assert [event.step for event in events if isinstance(event, Opened)] == [3, 6, 9, 12]
    assert left == [[], [], [0], [0, 0], [0, 0, 0]]
    assert threads == [True, False, False, False, False]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
@pytest.mark.parametrize("number", range(1, 5))
def test_a_state_that_cannot_be_loaded_stops_the_replay_in_its_place(job, number, content):
    path = Path(job.segments[number].checkpoint)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    *events, last = InProcess().run(job)
    assert [event.interval.start for event in events if isinstance(event, Recorded)] == [0, 3, 6, 9, 12][:number]
    assert isinstance(last, Failed)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("large", [0, 1 << 60])
def test_a_large_program_that_was_left_is_gone_before_the_next_is_built(job, monkeypatch, large):
    alive = []
    load = replaying.Entry.make

    def noting(entry):
        alive.append(sum(type(thing) is nn.BatchNorm1d for thing in gc.get_objects()))
        return load(entry)

    monkeypatch.setattr(replaying, "_LARGE", large)
    monkeypatch.setattr(replaying.Entry, "make", noting)
    gc.collect()
    before = sum(type(thing) is nn.BatchNorm1d for thing in gc.get_objects())
    gc.disable()
    try:
        list(InProcess().run(job))
    finally:
        gc.enable()
    kept = [0, 0, 0, 0, 0] if not large else [0, 0, 1, 2, 3]  # after the first, built one nobody knows how large it is
    assert [count - before for count in alive] == kept

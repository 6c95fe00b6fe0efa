"""Checkpoints are written beside the training: from a copy, in order, and never told before they are on disk."""

import threading

import pytest
import torch

from pol.errors import StoreError
from pol.messages import Stepped
from pol.replay import writer as module
from pol.replay.state import State
from pol.replay.writer import Writer, checkpoint_name


@pytest.fixture
def held(monkeypatch):
    """Holds every write until the returned event is set."""
    release, save = threading.Event(), module.save_atomically

    def slow(state, path, **options):
        assert release.wait(20)
        save(state, path, **options)

    monkeypatch.setattr(module, "save_atomically", slow)
    yield release
    release.set()


def state(value):
    return State({"parameter/model.w": torch.full((3,), float(value))})


def test_a_record_waits_for_its_file_and_later_ones_for_it(tmp_path, held):
    told = []
    with Writer(tmp_path, told.append) as writer:
        writer.add(Stepped(step=1), 1, state(1))
        writer.add(Stepped(step=2), 2, None)
        writer.tell()
        assert told == []
        held.set()
        writer.add(Stepped(step=3), 3, state(3))  # one file at a time: this waits for the first
        assert told[:2] == [Stepped(step=1), Stepped(step=2)]
        assert (tmp_path / checkpoint_name(1)).exists()
    assert told == [Stepped(step=step) for step in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint_name(1), checkpoint_name(3)]


def test_what_is_written_is_the_state_at_the_boundary(tmp_path, held):
    live = state(1)
    with Writer(tmp_path, lambda _: None) as writer:
        writer.add(Stepped(step=1), 1, live)
        live.tensors["parameter/model.w"].fill_(2)  # the next step
        held.set()
        writer.add(Stepped(step=2), 2, live)
        live.tensors["parameter/model.w"].fill_(3)
    for step in (1, 2):
        saved = State.load(tmp_path / checkpoint_name(step))
        assert saved.tensors["parameter/model.w"].tolist() == [step] * 3


def test_the_copy_follows_a_state_that_grows_and_changes_its_shapes(tmp_path):
    states = [
        State({"value/a": torch.tensor([1, 2], dtype=torch.uint8)}),
        State({"value/a": torch.tensor([3], dtype=torch.uint8), "parameter/t": torch.arange(6.0).reshape(2, 3).T}),
        State({"parameter/t": torch.arange(6).reshape(3, 2)}),
    ]
    with Writer(tmp_path, lambda _: None) as writer:
        for step, each in enumerate(states):
            writer.add(Stepped(step=step), step, each)
    for step, each in enumerate(states):
        assert State.load(tmp_path / checkpoint_name(step)).root() == each.root()


def record_two(folder, told, then):
    with Writer(folder, told.append) as writer:
        writer.add(Stepped(step=1), 1, state(1))
        writer.add(Stepped(step=2), 2, None)
        then(writer)


def test_a_write_that_fails_is_raised_and_nothing_after_it_is_told(tmp_path):
    told = []
    with pytest.raises(StoreError, match="missing"):
        record_two(tmp_path / "missing", told, lambda writer: writer.tell(wait=True))
    assert told == []


def test_what_was_begun_is_finished_when_the_program_fails(tmp_path):
    told = []
    with pytest.raises(ZeroDivisionError):
        record_two(tmp_path, told, lambda _: 1 / 0)
    assert told == [Stepped(step=1), Stepped(step=2)]
    assert (tmp_path / checkpoint_name(1)).exists()


def test_waits_are_counted_only_where_the_training_waited(tmp_path, held):
    with Writer(tmp_path, lambda _: None) as writer:
        writer.add(Stepped(step=1), 1, state(1))
        threading.Timer(0.01, held.set).start()
        writer.add(Stepped(step=2), 2, state(2))
        assert writer.waits == 1
        assert writer.waited > 0
        writer.tell(wait=True)
        writer.add(Stepped(step=3), 3, state(3))
        assert writer.waits == 1

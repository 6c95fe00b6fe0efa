"""Processes that work beside one another, played by a script that answers in JSON: quick, and as odd as one likes."""

import json
import sys
from pathlib import Path

import pytest

from pol.declaration import Declaration
from pol.errors import UsageError
from pol.executors.local import LocalProcess
from pol.executors.sharing import deal, in_order
from pol.messages import Failed, Finished, Program, Recorded, Registered, Replay, Segment, Stepped
from pol.profile import Profile

PLAYED = """
import json, os, pathlib, signal, sys, time
source, sink, here = int(sys.argv[4]), int(sys.argv[5]), pathlib.Path(__file__).parent
with (here / "pids").open("a") as file:
    file.write(f"{os.getpid()}\\n")
if (here / "dead").exists():
    sys.exit(3)
def tell(**event):
    data = json.dumps(event).encode() + b"\\n"
    while data:
        data = data[os.write(sink, data):]
def others():
    return sorted((path.name, path.read_text()) for path in here.glob("told-*"))
root = {"digest": "sha256:" + 64 * "0", "size": 1}
for line in os.fdopen(source, "rb"):
    plan = json.loads((here / "plan").read_text())
    for number, segment in enumerate(json.loads(line)["segments"]):
        act = plan.get(str(segment["start"]))
        if act == "wait":  # until the others have come as far as they will; if they take long, nothing is shown
            seen = None
            while not seen or seen != others():
                seen = others()
                time.sleep(0.5)
        if act == "exit":
            os._exit(1)
        if act == "half":
            os.write(sink, b'{"type":"Recorded","interval":{')
            os._exit(1)
        if act == "fail":
            tell(type="Failed", kind="ReplayError", message="no such luck")
            break
        if act == "hang":
            signal.pause()
        tell(type="Stepped", step=number + 1)
        interval = {"start": segment["start"], "stop": segment["stop"], "root": {"state": root, "weights": root},
                    "batches": "blake3:" + 64 * "0", "loss": "0.5", "learning_rates": [], "skipped": [],
                    "schedules": {}}
        tell(type="Recorded", interval=interval, samples=["x" * 1000])
        (here / f"new-{os.getpid()}").write_text(str(number + 1))
        (here / f"new-{os.getpid()}").replace(here / f"told-{os.getpid()}")
    else:
        tell(type="Finished")
"""


@pytest.fixture
def play(tmp_path):
    """Makes processes of which ``plan`` says what they do at which segment; at the end none of them may be left."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{PLAYED}")
    script.chmod(0o755)
    (tmp_path / "pids").touch()
    made = []

    def make(count, plan=()):
        (tmp_path / "plan").write_text(json.dumps(dict(plan)))
        made.extend(LocalProcess(Profile(threads=1), python=script) for _ in range(count))
        return made[-count:]

    yield make
    for process in made:
        process.close()
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert not Path(f"/proc/{pid}").exists()


def replay(count, save=None):
    declaration = Declaration(
        parts=[], entries=[], aliases={}, epochs=1, samples=count, batch_size=1, drop_last=False, external=[]
    )
    return Replay(
        program=Program(reference="a.py:A", configuration={}, seed="", profile=Profile(threads=1)),
        registered=Registered(declaration=declaration, batches_per_step=1, every=1, batch_key=""),
        segments=[Segment(start=n, stop=n + 1, checkpoint=None, counts={}) for n in range(count)],
        salt_key="",
        save=save,
    )


def told(events):
    return [event for event in events if not isinstance(event, Stepped)]


@pytest.mark.parametrize("save", [None, "somewhere"])
@pytest.mark.parametrize("slow", [{}, {0: "wait"}, {1: "wait"}])
def test_the_order_is_that_of_the_segments(play, slow, save):
    job = replay(60, save)
    shares = deal(job.segments, 3)
    *events, last = told(in_order(job, shares, play(3, slow)))
    assert [event.interval.start for event in events] == list(range(60))
    assert last == Finished()


@pytest.mark.parametrize(("save", "most"), [(None, 60), ("somewhere", 12)])
def test_with_states_that_are_saved_nobody_runs_ahead(play, tmp_path, save, most):
    """Two records are held and a page is in the pipe, of 1,300 bytes each; without states, all of them are."""
    job = replay(120, save)
    events = in_order(job, deal(job.segments, 2), play(2, {0: "wait"}))
    first = next(event for event in events if isinstance(event, Recorded))
    assert first.interval.start == 0
    ahead = max(int(path.read_text()) for path in tmp_path.glob("told-*"))
    events.close()
    assert ahead <= most


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("exit", "ended without an answer"),
        ("half", "ended in the middle of an answer|ended without an answer"),
        ("fail", "no such luck"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_whatever_happens_to_one_is_told_in_its_place(play, at, act, words):
    job = replay(10)
    *events, last = told(in_order(job, deal(job.segments, 3), play(3, {at: act})))
    assert [event.interval.start for event in events] == list(range(at))
    assert isinstance(last, Failed)
    assert any(part in last.message for part in words.split("|"))


def test_processes_can_be_used_again_whatever_happened(play, tmp_path):
    """Those that were in the middle of something are others by then, so nothing is answered with the rest of it."""
    processes, job = play(2, {4: "fail"}), replay(8)
    assert isinstance(told(in_order(job, deal(job.segments, 2), processes))[-1], Failed)
    (tmp_path / "plan").write_text("{}")
    for _ in range(2):
        events = told(in_order(job, deal(job.segments, 2), processes))
        assert [event.interval.start for event in events[:-1]] == list(range(8))
        assert events[-1] == Finished()


def test_who_stops_listening_ends_them(play):
    """In the middle of the jobs, none of which would ever end; a process that is done with its own is left as it is."""
    processes, job = play(3, {6: "hang", 7: "hang", 8: "hang"}), replay(9)
    events = in_order(job, deal(job.segments, 3), processes)
    first = next(event for event in events if isinstance(event, Recorded))
    assert first.interval.start == 0
    events.close()
    assert [process._process for process in processes] == [None] * 3


def test_an_interrupt_ends_them(play, monkeypatch):
    processes, job = play(2, {1: "hang"}), replay(2)
    received = LocalProcess.receive

    def interrupted(process):
        found = received(process)
        if any(isinstance(event, Finished) for event in found):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(LocalProcess, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(in_order(job, deal(job.segments, 2), processes))
    assert [process._process for process in processes] == [None] * 2


def test_one_that_died_before_its_first_job_has_no_answer(play, tmp_path):
    """Started early, it may be gone when the job comes; the second one is gone too, and that is an answer."""
    (tmp_path / "dead").touch()
    (process,) = play(1)
    process.start()
    process._process.wait()
    (found,) = process.run(replay(1))
    assert found == Failed(kind="Killed", message="the training process ended without an answer")
    (tmp_path / "dead").unlink()
    assert list(process.run(replay(1)))[-1] == Finished()


def test_one_that_cannot_be_started_takes_the_others_with_it(play, tmp_path):
    job = replay(2)
    (well,) = play(1)
    ill = LocalProcess(Profile(threads=1), python=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="cannot start"):
        list(in_order(job, deal(job.segments, 2), [well, ill]))
    assert list(well.run(job))[-1] == Finished()


def test_a_job_that_is_larger_than_a_pipe(play):
    job = replay(2400)
    assert len(told(in_order(job, deal(job.segments, 2), play(2)))) == 2401

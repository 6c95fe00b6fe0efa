"""A recording that is cut anywhere goes on as if nothing had happened: the same log, byte for byte."""

import fcntl
import itertools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pol.errors import AuthenticityError, FormatError, IntegrityError, PolError, StoreError, UsageError
from pol.keys import SigningKey
from pol.messages import Stepped, Train
from pol.proof.report import Verdict
from pol.replay.inprocess import InProcess
from pol.replay.jobs import run_job
from pol.store import Lock
from zoo.tools import KEY, ZOO, check, train

MOMENTUM = f"{ZOO / 'zoo_states.py'}:Momentum"
BACKBONE = f"{ZOO / 'zoo_large.py'}:Backbone"
SLOW = f"{ZOO / 'zoo_slow.py'}:Slow"
EVERY = 2
"""Twelve steps make six intervals."""
EVENTS = 8
"""Opened, six times Recorded, Finished."""


class Killed(BaseException):
    """What a process that is gone would say."""


class Cut(InProcess):
    """Dies at event ``number`` of the training, whose checkpoint is written and whose log line is not."""

    def __init__(self, number, jobs=(Train,)):
        self.number, self.jobs, self.seen = number, jobs, 0

    def run(self, job):
        events = []

        def emit(event):
            if isinstance(job, self.jobs) and not isinstance(event, Stepped):  # these depend on the time
                self.seen += 1
                if self.seen == self.number:
                    raise Killed
            events.append(event)

        try:
            run_job(job, emit)
        except Killed:
            yield from events
            raise
        yield from events


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Makes copies of a recording whose genesis is signed, by how many intervals a state is kept."""
    folder = tmp_path_factory.mktemp("begun")
    counter = itertools.count()

    def copy(keep=1, recipe=MOMENTUM):
        original = folder / f"{Path(recipe).stem}-{recipe.rpartition(':')[2]}-{keep}"
        if not original.exists():
            train(recipe, original, every=EVERY, keep=keep, until_genesis=True)
        out = folder / f"copy-{next(counter)}"
        shutil.copytree(original, out)
        return out

    return copy


@pytest.fixture(scope="module")
def whole(begun):
    """The files of an uninterrupted recording, log and checkpoints, by how often a state is kept."""
    done = {}

    def files(keep=1, recipe=MOMENTUM):
        if (keep, recipe) not in done:
            out = begun(keep, recipe)
            train(recipe, out, every=EVERY, keep=keep, resume=True)
            done[keep, recipe] = contents(out)
        return done[keep, recipe]

    return files


def contents(out):
    """Log and checkpoints: what must not depend on interruptions."""
    found = {"log.jsonl": (out / "log.jsonl").read_bytes()}
    found |= {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    assert len(found) > 3
    return found


def resume(out, recipe=MOMENTUM, keep=1, **options):
    return train(recipe, out, every=EVERY, keep=keep, resume=True, **options)


def interrupt(out, number, recipe=MOMENTUM, keep=1):
    with pytest.raises(Killed):
        resume(out, recipe, keep, executor=Cut(number))
    assert not (out / "attestation.json").exists()


def journal(out):
    return json.loads((out / "journal.json").read_bytes())


def assert_as_if_uninterrupted(out, expected, recipe=MOMENTUM):
    assert contents(out) == expected
    report = check(out, recipe)
    assert report.verdict is Verdict.ACCEPT, report.reason()


# --- cut at every event


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("number", range(1, EVENTS + 1))
def test_cut_between_checkpoint_and_log_line(number, keep, begun, whole):
    out = begun(keep)
    interrupt(out, number, keep=keep)
    resume(out, keep=keep)
    assert_as_if_uninterrupted(out, whole(keep))
    lines = number - 1  # the first of them is the origin
    kept = max(step for step in range(0, 13, EVERY * keep) if step <= max(lines - 1, 0) * EVERY)
    if lines == EVENTS - 1:
        kept = 12
    assert journal(out)["resumes"] == ([kept] if lines else [])


@pytest.mark.parametrize("number", [2, 4, 7])
def test_files_name_the_same_holders_wherever_they_were_cut(number, begun, whole):
    """What is stored once is stored once; and so a file can stand beside those of another process."""
    out = begun(2, BACKBONE)
    interrupt(out, number, BACKBONE, keep=2)
    resume(out, BACKBONE, keep=2)
    assert_as_if_uninterrupted(out, whole(2, BACKBONE), BACKBONE)


def test_cut_again_and_again(begun, whole):
    out = begun()
    for number in (3, 1, 2, 4, 1):  # an event of what was left each time
        interrupt(out, number)
    resume(out)
    assert_as_if_uninterrupted(out, whole())
    assert len(journal(out)["resumes"]) == 5


@pytest.mark.parametrize(
    "name",
    [
        "zoo_schedules.py:PlateauAndDecay",
        "zoo_schedules.py:OneCycle",
        "zoo_loops.py:Accumulating",
        "zoo_states.py:Skipping",
        "zoo_states.py:Ema",
    ],
)
def test_cut_of_other_trainings(name, begun, whole):
    recipe = f"{ZOO}/{name}"
    out = begun(2, recipe)
    interrupt(out, 5, recipe, keep=2)
    resume(out, recipe, keep=2)
    assert_as_if_uninterrupted(out, whole(2, recipe), recipe)


@pytest.mark.parametrize("number", range(1, 4))
def test_cut_before_the_genesis_begins_anew(number, tmp_path):
    """Two builds and a control run come first; nothing is signed yet, so nothing needs to be kept."""
    from pol.messages import Build, Control

    with pytest.raises(Killed):
        train(MOMENTUM, tmp_path / "p", every=EVERY, executor=Cut(number, (Build, Control)))
    assert not (tmp_path / "p/genesis.json").exists()
    train(MOMENTUM, tmp_path / "p", every=EVERY)  # no --resume: there is nothing to go on with
    assert check(tmp_path / "p", MOMENTUM).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("name", ["secret.json", "journal.json", "genesis.json", "log.jsonl", "attestation.json"])
@pytest.mark.parametrize("written", [False, True])
def test_cut_while_a_file_is_written(name, written, tmp_path, monkeypatch):
    """Just before a file gets its name, with its bytes in a temporary file, and just after."""
    rename = Path.replace

    def cut(self, target):
        if Path(target).name == name:
            if written:
                rename(self, target)
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(Killed):
        train(MOMENTUM, tmp_path / "p", every=EVERY)
    monkeypatch.undo()
    if name == "attestation.json" and written:
        with pytest.raises(UsageError, match="holds a complete proof already"):
            resume(tmp_path / "p")
    else:
        resume(tmp_path / "p")
    report = check(tmp_path / "p", MOMENTUM)
    assert report.verdict is Verdict.ACCEPT, report.reason()


# --- what a crash leaves on disk


def unfinished(begun, keep=1):
    """A recording with five whole log lines: the origin and steps 2 to 8."""
    out = begun(keep)
    interrupt(out, 6, keep=keep)
    return out


@pytest.mark.parametrize("left", [0, 1, 40, -1])
def test_half_a_line(left, begun, whole):
    out = unfinished(begun)
    *lines, last, end = (out / "log.jsonl").read_bytes().split(b"\n")
    assert end == b""
    (out / "log.jsonl").write_bytes(b"\n".join([*lines, last[:left] if left else b""]))
    resume(out)
    assert_as_if_uninterrupted(out, whole())


@pytest.mark.parametrize("lost", [2, 4, 6, 8])
def test_lost_checkpoints(lost, begun, whole):
    """After a power failure the log may be ahead of the checkpoints."""
    out = unfinished(begun)
    for step in range(lost, 9, 2):
        (out / f"checkpoints/{step:012d}.safetensors").unlink()
    resume(out)
    assert_as_if_uninterrupted(out, whole())
    assert journal(out)["resumes"] == [lost - 2]


def test_lost_log(begun, whole):
    """Nothing is given up: it may come back from a copy."""
    out = unfinished(begun)
    before = contents(out)
    (out / "log.jsonl").unlink()
    for beacon in (None, bytes(32)):
        with pytest.raises(StoreError, match=r"log\.jsonl is not there, but states are: restore it from a copy"):
            resume(out, beacon=beacon)
    (out / "log.jsonl").write_bytes(before["log.jsonl"])
    assert contents(out) == before
    resume(out)
    assert journal(out)["resumes"] == [8]
    assert_as_if_uninterrupted(out, whole())


def test_lost_log_and_no_copy(begun, whole):
    out = unfinished(begun)
    (out / "log.jsonl").unlink()
    for path in (out / "checkpoints").iterdir():
        path.unlink()
    resume(out)
    assert_as_if_uninterrupted(out, whole())


def test_temporary_files(begun, whole):
    out = unfinished(begun)
    for name in ("checkpoints/000000000010.tmp", "attestation.json.tmp", "log.jsonl.tmp", "journal.json.tmp"):
        (out / name).write_bytes(b"half of it")
    resume(out)
    assert_as_if_uninterrupted(out, whole())
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "not a checkpoint file"),
        (
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            "is damaged: it is not the state that the log records after 8",
        ),
        (lambda data: b"", "not a checkpoint file"),
    ],
)
def test_a_damaged_checkpoint_is_noticed_before_training_goes_on(damage, message, begun, whole):
    out = unfinished(begun)
    path = out / "checkpoints/000000000008.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((StoreError, IntegrityError), match=message):
        resume(out)
    path.unlink()
    resume(out)
    assert_as_if_uninterrupted(out, whole())


def test_a_damaged_log_is_named(begun):
    out = unfinished(begun)
    lines = (out / "log.jsonl").read_bytes().split(b"\n")
    (out / "log.jsonl").write_bytes(b"\n".join([*lines[:2], b"{}", *lines[3:]]))
    with pytest.raises(FormatError, match=r"log\.jsonl.*3"):
        resume(out)


def test_the_log_of_another_recording_is_named(begun):
    out, other = unfinished(begun), unfinished(begun, keep=3)
    shutil.copy(other / "log.jsonl", out / "log.jsonl")
    with pytest.raises(IntegrityError, match="belongs to another genesis"):
        resume(out)


# --- full disks


@pytest.fixture
def limited():
    """Sets the size that no file may exceed: what a full disk looks like, for real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("full", "message"),
    [
        ("checkpoint", r"000000000000\.safetensors: cannot write: .*(too large|No space).*can be resumed"),
        ("log", r"log\.jsonl: cannot write: File too large"),
    ],
)
def test_a_full_disk_says_so_and_can_be_resumed(full, message, begun, whole, limited):
    recipe = f"{ZOO / 'zoo_schedules.py'}:Plateau"
    out, expected = begun(1, recipe), whole(1, recipe)
    checkpoint, log = (
        max(len(data) for name, data in expected.items() if name != "log.jsonl"),
        len(expected["log.jsonl"]),
    )
    assert 1024 < checkpoint < log
    limited(1024 if full == "checkpoint" else (checkpoint + log) // 2)
    with pytest.raises(StoreError, match=message):
        resume(out, recipe)
    limited(resource.RLIM_INFINITY)
    resume(out, recipe)
    assert_as_if_uninterrupted(out, expected, recipe)


def test_a_full_disk_before_the_genesis(tmp_path, limited):
    limited(300)
    with pytest.raises(StoreError, match=r"dataset\.bin: cannot write: File too large"):
        train(MOMENTUM, tmp_path / "p", every=EVERY)
    limited(resource.RLIM_INFINITY)
    resume(tmp_path / "p")
    assert check(tmp_path / "p", MOMENTUM).verdict is Verdict.ACCEPT


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the proof directory: Not a directory"):
        train(MOMENTUM, tmp_path / "file/p")


# --- what may not change


def test_arguments_cannot_change(begun, tmp_path):
    out = begun()
    with pytest.raises(UsageError, match="has every=2, keep=1 and rule=exact, not 3, 1 and exact"):
        train(MOMENTUM, out, every=3, resume=True)
    with pytest.raises(UsageError, match="has every=2, keep=1 and rule=exact, not 2, 4 and exact"):
        resume(out, keep=4)
    with pytest.raises(UsageError, match="of the recipe Momentum, not Nesterov"):
        resume(out, f"{ZOO / 'zoo_states.py'}:Nesterov")
    with pytest.raises(UsageError, match="--set lr differs from the signed genesis"):
        resume(out, settings={"lr": 0.3})
    with pytest.raises(AuthenticityError):
        resume(out, key=SigningKey.generate())
    with pytest.raises(UsageError, match="there is no recording to resume"):
        resume(tmp_path / "nowhere")


@pytest.mark.parametrize("module", ["recipe", "helper"])
def test_the_recipe_cannot_change(module, tmp_path):
    for name in ("zoo_states", "zoo_base"):
        shutil.copy(ZOO / f"{name}.py", tmp_path)
    recipe = f"{tmp_path / 'zoo_states.py'}:Momentum"
    train(recipe, tmp_path / "p", every=EVERY, until_genesis=True)
    name = {"recipe": "zoo_states", "helper": "zoo_base"}[module]
    source = (tmp_path / f"{name}.py").read_text()
    (tmp_path / f"{name}.py").write_text(source + "\n")
    with pytest.raises(UsageError, match=f"module {name} of the recipe has changed since the genesis was signed"):
        resume(tmp_path / "p", recipe)
    (tmp_path / f"{name}.py").write_text(source)
    resume(tmp_path / "p", recipe)
    assert check(tmp_path / "p", recipe).verdict is Verdict.ACCEPT


def test_the_beacon_cannot_change(begun):
    out = begun()
    with pytest.raises(Killed):
        resume(out, beacon=bytes(range(32)), executor=Cut(4))
    with pytest.raises(UsageError, match="training has begun under another beacon"):
        resume(out, beacon=bytes(32 * [1]))
    resume(out)
    assert journal(out)["beacon"] == {"kind": "nonce", "value": bytes(range(32)).hex()}
    assert check(out, MOMENTUM).verdict is Verdict.ACCEPT


def test_a_beacon_may_be_given_until_training_begins(begun):
    out = begun()
    resume(out, beacon=bytes(range(32)))
    assert journal(out)["beacon"]["kind"] == "nonce"
    out = begun()
    interrupt(out, 2)
    with pytest.raises(UsageError, match="training has begun under another beacon, or none"):
        resume(out, beacon=bytes(range(32)))


def test_a_complete_proof_cannot_be_resumed(begun):
    out = begun()
    resume(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds a complete proof already: there is nothing to resume"):
        resume(out)
    with pytest.raises(UsageError, match="is not empty"):
        train(MOMENTUM, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_lock_that_its_holder_removes_meanwhile(tmp_path, monkeypatch):
    """Between the opening and the taking the other recording ends: a lock without a name would keep nobody away."""
    first, take = Lock(tmp_path), fcntl.flock

    def late(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", take)
        first.release(remove=True)
        take(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = Lock(tmp_path)
    with pytest.raises(UsageError, match="is being recorded by another process"):
        Lock(tmp_path)
    second.release(remove=True)
    Lock(tmp_path).release(remove=True)


def test_two_recordings_cannot_share_a_directory(begun, whole):
    out = begun()
    lock = Lock(out)
    with pytest.raises(UsageError, match="is being recorded by another process"):
        resume(out)
    lock.release(remove=False)
    resume(out)
    assert_as_if_uninterrupted(out, whole())


# --- real processes, really killed

SCRIPT = """
import sys
from pathlib import Path
from pol.keys import SigningKey
from pol.profile import Profile
from pol.prover import record
recipe, out, key, every = sys.argv[1:]
resume = Path(out).exists()
record(recipe, out, key=SigningKey.load(Path(key)), every=int(every), profile=Profile(threads=1), resume=resume)
"""


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "key.pem"
    KEY.save(path)
    return path


def start(out, key_file, recipe=SLOW):
    command = [sys.executable, "-c", SCRIPT, recipe, str(out), str(key_file), str(EVERY)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)


def assert_succeeds(process):
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors


def lines(out):
    return (out / "log.jsonl").read_bytes().count(b"\n") if (out / "log.jsonl").exists() else 0


def test_kill_in_the_middle_of_training(begun, key_file):
    out, other = begun(recipe=SLOW), begun(recipe=SLOW)
    process = start(out, key_file)
    wait_for(lambda: lines(out) >= 4, process)
    process.kill()
    process.communicate()
    assert not (out / "attestation.json").exists()
    for path in (out, other):
        resume(path, SLOW)
    assert len(journal(out)["resumes"]) == 1
    assert_as_if_uninterrupted(out, contents(other), SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kill_at_any_moment(seed, tmp_path, key_file):
    """From the start of the process on, genesis included; resumed by real processes that are killed as well."""
    moments = random.Random(seed)
    out = tmp_path / "p"
    for _ in range(3):
        process = start(out, key_file)
        try:
            process.wait(timeout=moments.uniform(0.3, 7))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    if not (out / "attestation.json").exists():
        assert_succeeds(start(out, key_file))
    assert check(out, SLOW).verdict is Verdict.ACCEPT


@pytest.mark.slow
def test_interrupt_from_the_keyboard(begun, key_file):
    out, other = begun(recipe=SLOW), begun(recipe=SLOW)
    process = start(out, key_file)
    wait_for(lambda: lines(out) >= 4, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
    process.communicate()
    for path in (out, other):
        resume(path, SLOW)
    assert_as_if_uninterrupted(out, contents(other), SLOW)


@pytest.mark.slow
def test_a_second_process_is_turned_away(begun, key_file):
    out = begun(recipe=SLOW)
    process = start(out, key_file)
    wait_for(lambda: lines(out) >= 2, process)
    with pytest.raises(PolError, match="is being recorded by another process"):
        resume(out, SLOW)
    assert_succeeds(process)
    assert check(out, SLOW).verdict is Verdict.ACCEPT

"""Disks that fill up, go away or rot, and processes that are killed: it goes on, or stops with a clear error.

After each, what was committed is verified: the recording goes on to a proof that is accepted, with the same log.
"""

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pol.cleaning import clean
from pol.errors import FormatError, IntegrityError, PolError, StoreError, UsageError
from pol.messages import Stepped, Train
from pol.proof.report import Verdict
from pol.replay.inprocess import InProcess
from zoo.tools import ZOO, check, train

MOMENTUM = f"{ZOO / 'zoo_states.py'}:Momentum"
BACKBONE = f"{ZOO / 'zoo_large.py'}:Backbone"
EVERY = 2
"""Twelve steps make six intervals."""


class Beside(InProcess):
    """Something happens when the recorder has got event ``number`` of the training."""

    def __init__(self, number, then):
        self.number, self.then, self.seen = number, then, 0

    def run(self, job):
        for event in super().run(job):
            yield event
            if isinstance(job, Train) and not isinstance(event, Stepped):
                self.seen += 1
                if self.seen == self.number:
                    self.then()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Makes copies of a recording whose genesis is signed."""
    folder, numbers = tmp_path_factory.mktemp("begun"), itertools.count()

    def copy(recipe=MOMENTUM):
        original = folder / recipe.rpartition(":")[2]
        if not original.exists():
            train(recipe, original, every=EVERY, until_genesis=True)
        return Path(shutil.copytree(original, original.with_name(f"copy-{next(numbers)}")))

    return copy


@pytest.fixture(scope="module")
def expected(begun):
    """Log and checkpoints of a recording that nothing happened to."""
    out = begun()
    resume(out)
    return contents(out)


def resume(out, recipe=MOMENTUM, **options):
    return train(recipe, out, every=EVERY, resume=True, **options)


def contents(out):
    found = {"log.jsonl": (out / "log.jsonl").read_bytes()}
    found |= {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    assert len(found) > 3
    return found


def assert_goes_on(out, expected=None, recipe=MOMENTUM):
    resume(out, recipe)
    assert expected is None or contents(out) == expected
    report = check(out, recipe)
    assert report.verdict is Verdict.ACCEPT, report.reason()


@pytest.fixture
def unfinished(begun):
    """A recording that stopped with its log at step 8."""
    return stopped(begun(), MOMENTUM)


def stopped(out, recipe):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(out, recipe, executor=Beside(5, stop))
    assert (out / "log.jsonl").read_bytes().count(b"\n") == 5
    return out


# --- full disks: /dev/full refuses what is written to it, as a full disk does


@pytest.mark.parametrize("name", ["secret.json", "journal.json", "genesis.json"])
def test_a_disk_that_is_full_from_the_beginning(name, tmp_path):
    out = tmp_path / "proof"
    out.mkdir()
    full = out / f"{name}.tmp"
    full.symlink_to("/dev/full")
    with pytest.raises(PolError, match="is not empty"):
        train(MOMENTUM, out, every=EVERY)
    with pytest.raises(StoreError, match=rf"{name}: cannot write: No space left on device"):
        resume(out)
    full.unlink()
    assert_goes_on(out)


@pytest.mark.parametrize("name", ["journal.json", "attestation.json"])
def test_a_disk_that_is_full_at_the_end(name, begun, expected):
    """All steps are recorded, and the proof cannot be sealed."""
    out = begun()
    full = out / f"{name}.tmp"
    with pytest.raises(StoreError, match=rf"{name}: cannot write: No space left on device"):
        resume(out, executor=Beside(8, lambda: full.symlink_to("/dev/full")))
    assert not (out / "attestation.json").exists()
    assert_goes_on(out, expected)  # what is half written is removed, the link with it


@pytest.mark.slow
def test_a_full_disk_and_the_real_command(tmp_path):
    """``pol record`` in a shell whose files may not grow: exit code 3, what happened, and how to go on."""
    command = [sys.executable, "-m", "pol", "record", MOMENTUM, "--out", "proof", "--every", "2", "--threads", "1"]
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))

    subprocess.run([sys.executable, "-m", "pol", "keygen"], cwd=tmp_path, env=home, check=True, capture_output=True)
    done = subprocess.run(
        [*command, "--genesis-only"], cwd=tmp_path, env=home, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    full = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, env=home, preexec_fn=limit, capture_output=True, text=True, timeout=200
    )
    assert full.returncode == 3, full.stderr
    assert "cannot write" in full.stderr
    assert "What is written can be resumed" in full.stderr
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, env=home, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert check(tmp_path / "proof", MOMENTUM).verdict is Verdict.ACCEPT


# --- disks that become read-only: refused where Python asks the system, so that it works for root as well


class ReadOnly:
    """Refuses every change below some folders, as a file system does that was mounted read-only."""

    folders: tuple[str, ...] = ()

    def __call__(self, event, arguments):
        if not self.folders:
            return
        if event == "open":
            path, mode, flags = arguments
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ):
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"):
            return
        else:
            path = arguments[0]
        if isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(self.folders):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))


GUARD = ReadOnly()
sys.addaudithook(GUARD)  # for good: Python knows no way back, so it has a switch


@contextlib.contextmanager
def read_only(*folders):
    GUARD.folders = tuple(str(folder) for folder in folders)
    try:
        yield
    finally:
        GUARD.folders = ()


def test_the_guard_guards(tmp_path):
    with read_only(tmp_path):
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "x").write_text("")
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "x").mkdir()
    (tmp_path / "x").write_text("")


def test_a_read_only_disk_from_the_beginning(tmp_path, begun):
    with read_only(tmp_path), pytest.raises(StoreError, match="cannot make the proof directory: Read-only file system"):
        train(MOMENTUM, tmp_path / "proof", every=EVERY)
    out = begun()
    with read_only(out), pytest.raises(StoreError, match="cannot write there: Read-only file system"):
        resume(out)
    assert_goes_on(out)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_disk_that_becomes_read_only(number, begun, expected):
    """Linux does that to a disk with errors. Before each line of the log, and before the attestation."""
    out = begun()

    def turn():
        GUARD.folders = (str(out),)

    with read_only(), pytest.raises(StoreError, match="cannot write: Read-only file system"):
        resume(out, executor=Beside(number, turn))
    assert not (out / "attestation.json").exists()
    assert_goes_on(out, expected)


def test_reading_needs_no_writing(begun):
    out = begun()
    resume(out)
    with read_only(out):
        assert check(out, MOMENTUM).verdict is Verdict.ACCEPT
        assert clean(out, dry_run=True).removed == {}
        assert clean(out).removed == {}  # nor does having nothing to remove


# --- torn files


def cut(path, length):
    data = path.read_bytes()
    path.write_bytes(data[: length if length >= 0 else len(data) + length])
    return data


LENGTHS = [0, 1, 7, 8, 60, -1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_torn_checkpoint(step, length, unfinished, expected):
    """Also one that nothing was to be read from: it would have been sealed into a proof that is refused."""
    path = unfinished / f"checkpoints/{step:012d}.safetensors"
    cut(path, length)
    lines = (unfinished / "log.jsonl").read_bytes()
    with pytest.raises(StoreError, match=rf"{step:012d}\.safetensors is damaged: .* Remove it, and resume"):
        resume(unfinished)
    assert (unfinished / "log.jsonl").read_bytes() == lines  # nothing was given up
    path.unlink()
    remove_after(step, unfinished)
    assert_goes_on(unfinished, expected)


@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_checkpoint_with_a_flipped_bit(step, unfinished, expected):
    path = unfinished / f"checkpoints/{step:012d}.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=rf"is damaged: it is not the state that the log records after {step} steps"):
        resume(unfinished)
    path.unlink()
    remove_after(step, unfinished)
    assert_goes_on(unfinished, expected)


def remove_after(step, out):
    """Remove the states that the log names after a missing one, which nothing but its owner does."""
    later = [out / f"checkpoints/{after:012d}.safetensors" for after in (2, 4, 6, 8) if after > step]
    if later:
        before = contents(out)
        with pytest.raises(StoreError, match=rf"{step:012d}\.safetensors is not there, but later states are: restore"):
            resume(out)
        assert contents(out) == before
    for path in later:
        path.unlink()


@pytest.fixture(scope="module")
def large(begun):
    """The same of large tensors, packed and stored once; and what becomes of it when nothing happens."""
    out, whole = stopped(begun(BACKBONE), BACKBONE), begun(BACKBONE)
    resume(whole, BACKBONE)
    return out, contents(whole)


@pytest.mark.parametrize("place", [60, 0.3, 0.6, -1])
@pytest.mark.parametrize("torn", [True, False])
@pytest.mark.parametrize("step", [0, 8])
def test_a_checkpoint_of_large_tensors_that_is_damaged(step, torn, place, large, tmp_path):
    """In its header, in packed content, and in what other files name."""
    original, expected = large
    out = Path(shutil.copytree(original, tmp_path / "proof"))
    path = out / f"checkpoints/{step:012d}.safetensors"
    data = path.read_bytes()
    at = int(place * len(data)) if isinstance(place, float) else place % len(data)
    path.write_bytes(data[:at] if torn else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(StoreError, match=r"000000000\d+\.safetensors is damaged: .* Remove it, and resume"):
        resume(out, BACKBONE)
    if place == -1:
        path.unlink()
        for after in range(step + 2, 9, 2):
            (out / f"checkpoints/{after:012d}.safetensors").unlink()
    else:
        path.write_bytes(data)
    assert_goes_on(out, expected, BACKBONE)


def test_a_state_that_was_lost_comes_back_from_a_copy(unfinished, expected):
    path = unfinished / "checkpoints/000000000004.safetensors"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreError, match=r"0004\.safetensors is not there, but later states are"):
        resume(unfinished)
    path.write_bytes(data)
    assert_goes_on(unfinished, expected)
    assert json.loads((unfinished / "journal.json").read_bytes())["resumes"] == [8]


def test_a_torn_log_goes_on_wherever_it_is_torn(unfinished, expected, tmp_path):
    size = (unfinished / "log.jsonl").stat().st_size
    for number, length in enumerate([*range(0, size, size // 9), size - 1]):
        out = Path(shutil.copytree(unfinished, tmp_path / str(number)))
        cut(out / "log.jsonl", length)
        assert_goes_on(out, expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_torn_attestation(length, unfinished, expected):
    resume(unfinished)
    path = unfinished / "attestation.json"
    cut(path, length)
    assert check(unfinished, MOMENTUM).verdict is Verdict.REJECT
    with pytest.raises(StoreError, match=r"attestation\.json is damaged: .* Remove it, and resume"):
        resume(unfinished)
    path.unlink()
    assert_goes_on(unfinished, expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["genesis.json", "secret.json", "journal.json", "dataset.bin"])
def test_what_nobody_can_make_again(name, length, unfinished, expected):
    whole = cut(unfinished / name, length)
    before = contents(unfinished)
    with pytest.raises(StoreError, match=rf"{name} is damaged: .* Restore it from a copy"):
        resume(unfinished)
    assert contents(unfinished) == before
    (unfinished / name).write_bytes(whole)
    assert_goes_on(unfinished, expected)


def test_a_genesis_that_is_gone(unfinished, expected):
    """It must not be taken for a recording that was never begun: its secret would be written over."""
    (unfinished / "genesis.json").rename(unfinished.with_name("genesis"))
    secret = (unfinished / "secret.json").read_bytes()
    with pytest.raises(StoreError, match=r"genesis\.json is not there, but a log is"):
        resume(unfinished)
    with pytest.raises(IntegrityError, match=r"genesis\.json: not there"):
        clean(unfinished)
    assert (unfinished / "secret.json").read_bytes() == secret
    unfinished.with_name("genesis").rename(unfinished / "genesis.json")
    assert_goes_on(unfinished, expected)


def test_a_secret_of_another_recording(unfinished, tmp_path):
    (unfinished / "secret.json").write_text(json.dumps({"r": "0" * 64}, separators=(",", ":")))
    with pytest.raises(StoreError, match=r"not the secret that genesis\.json commits to"):
        resume(unfinished)


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/notes.txt", "checkpoints/000000000004.old"])
def test_a_file_that_belongs_to_no_proof(name, unfinished, expected):
    """It is not sealed into a proof that a verifier would refuse."""
    (unfinished / name).write_text("mine")
    with pytest.raises(UsageError, match="belongs to no proof, which would be refused: move it elsewhere"):
        resume(unfinished)
    assert (unfinished / name).read_text() == "mine"
    (unfinished / name).unlink()
    assert_goes_on(unfinished, expected)


def test_a_line_of_the_log_that_is_damaged(unfinished):
    lines = (unfinished / "log.jsonl").read_bytes().split(b"\n")
    (unfinished / "log.jsonl").write_bytes(b"\n".join([*lines[:2], lines[2][:-9], *lines[3:]]))
    with pytest.raises(FormatError, match=r"log\.jsonl line 3"):
        resume(unfinished)


# --- processes that are killed: really, at every change of the disk that Python asks for

KILLER = f"""
import json, os, shutil, signal, sys
from pathlib import Path

sys.path[:0] = {[str(ZOO.parent), str(ZOO)]!r}
import torch
from zoo.tools import ZOO, check, train
from pol.cleaning import clean

what, every, RECIPE = sys.argv[1], int(sys.argv[2]), str(ZOO / sys.argv[4])
state = dict(folder="", left=-1, seen=0)

def kill(event, arguments):
    if not state["folder"]:
        return
    if event == "open":
        path, mode, flags = arguments
        if not (isinstance(mode, str) and set(mode) & set("wa")):
            return
    elif event in ("os.rename", "os.remove", "os.truncate"):
        path = arguments[0]
    else:
        return
    if str(path).startswith(state["folder"]):
        state["seen"] += 1
        if state["seen"] == state["left"]:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)

def resume(out):
    train(RECIPE, out, every=2, resume=True)

def contents(out):
    found = {{path.name: path.read_bytes().hex() for path in (out / "checkpoints").iterdir()}}
    return {{"log.jsonl": (out / "log.jsonl").read_text(), **found}}

def forked(action):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def counted(action, out):
    state.update(folder=str(out), left=-1, seen=0)
    action(out)
    state["folder"] = ""
    return state["seen"]

def killed(action, out, number):
    def run():
        state.update(folder=str(out), left=number, seen=0)
        action(out)
    return forked(run)

base = Path(sys.argv[3])
train(RECIPE, base / "begun", every=2, until_genesis=True)
shutil.copytree(base / "begun", base / "whole")
resume(base / "whole")
expected = contents(base / "whole")

def copied(number):
    return Path(shutil.copytree(base / "begun", base / str(number)))

def littered(number):
    out = Path(shutil.copytree(base / "whole", base / str(number)))
    for name in ("attestation.json.tmp", "checkpoints/000000000004.tmp", ".recording"):
        (out / name).write_bytes(b"half")
    return out

def accepted(out):
    assert check(out, RECIPE).verdict == "ACCEPT"

if what == "record":
    action, made = resume, copied
elif what == "gc":
    action, made = clean, littered
total, wrong = counted(action, made("count")), []
for number in range(1, total + 1, every):
    out = made(number)
    if killed(action, out, number) != -signal.SIGKILL:
        wrong.append((number, "was not killed"))
        continue
    if what == "record" and number < total and (out / "attestation.json").exists():
        wrong.append((number, "is complete already"))
    if forked(lambda: None if what == "record" and (out / "attestation.json").exists() else action(out)):
        wrong.append((number, "did not go on"))
    elif contents(out) != expected:
        wrong.append((number, "became something else"))
    (out / ".recording").unlink(missing_ok=True)
    if forked(lambda: accepted(out)):
        wrong.append((number, "is not accepted"))
print(json.dumps(dict(total=total, wrong=wrong)))
"""


def run_killer(*arguments, recipe=MOMENTUM):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *map(str, arguments), recipe], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_while_it_records(tmp_path):
    found = run_killer("record", 9, tmp_path)
    assert found["total"] > 20
    assert found["wrong"] == []


def test_killed_while_it_records_large_tensors(tmp_path):
    """Packed, stored once, and named by later files."""
    assert run_killer("record", 20, tmp_path, recipe=BACKBONE)["wrong"] == []


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [MOMENTUM, BACKBONE])
def test_killed_while_it_records_anywhere(recipe, tmp_path):
    assert run_killer("record", 1, tmp_path, recipe=recipe)["wrong"] == []


def test_killed_while_it_cleans(tmp_path):
    found = run_killer("gc", 1, tmp_path)
    assert found["total"] >= 3
    assert found["wrong"] == []


TORN = f"""
import os, resource, signal, sys
sys.path[:0] = {[str(ZOO.parent), str(ZOO)]!r}
import torch
from pol.keys import SigningKey
from pathlib import Path
from zoo.tools import train
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and would go on
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
train(sys.argv[1], Path(sys.argv[2]), every=2, resume=True, key=SigningKey.load(Path(sys.argv[4])))
"""


def test_killed_in_the_middle_of_a_checkpoint(begun, expected, tmp_path):
    """The system kills the process in the very call that makes the file longer than half of a checkpoint."""
    from zoo.tools import KEY

    KEY.save(tmp_path / "key.pem")
    out, sizes = begun(), [len(data) for name, data in expected.items() if name != "log.jsonl"]
    limit = max(sizes) // 2
    command = [sys.executable, "-c", TORN, MOMENTUM, str(out), str(limit), str(tmp_path / "key.pem")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode < 0, done.stderr
    assert (out / "genesis.json").exists()
    (half,) = (out / "checkpoints").iterdir()
    assert half.suffix != ".safetensors"
    assert half.stat().st_size <= limit
    assert_goes_on(out, expected)

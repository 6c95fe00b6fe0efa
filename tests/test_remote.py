"""Proofs at a URL: in memory, in a folder, and on a server that speaks S3."""

import collections
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import pol
from pol.checkpoint import gather, read_entries
from pol.cli import main
from pol.errors import FormatError, Incomplete, StoreError, UsageError
from pol.executors.local import LocalProcess
from pol.messages import Stepped, Train
from pol.profile import Profile
from pol.proof.policy import EXACT
from pol.proof.report import Verdict
from pol.remote import fetched, mirror, place
from pol.remote.fetched import Fetched, opened
from pol.remote.mirror import Mirror
from pol.remote.place import Place, is_url
from pol.remote.taking import working_folder
from pol.responder import regenerate
from pol.store import ProofDirectory
from zoo.tools import KEY, ZOO, check, train

MOMENTUM = f"{ZOO / 'zoo_states.py'}:Momentum"
BACKBONE = f"{ZOO / 'zoo_large.py'}:Backbone"
SLOW = f"{ZOO / 'zoo_slow.py'}:Slow"
EVERY = 2
"""Twelve steps make six intervals."""
numbers = itertools.count()


class Flaky(MemoryFileSystem):
    """A file system that can be made to fail."""

    protocol = "flaky"
    store = {}  # noqa: RUF012  # of its own, for all instances, as its base has
    pseudo_dirs = [""]  # noqa: RUF012
    fail = staticmethod(lambda operation, path: None)
    log = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _seen(self, operation, path):
        self.log.append((operation, path))
        self.fail(operation, path)

    def put_file(self, lpath, rpath, **options):
        self._seen("put", rpath)
        return super().put_file(lpath, rpath, **options)

    def pipe_file(self, path, value, **options):
        self._seen("write", path)
        return super().pipe_file(path, value, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self._seen("read", path)
        return super().cat_file(path, start=start, end=end, **options)

    def ls(self, path, **options):
        self._seen("list", path)
        return super().ls(path, **options)


@pytest.fixture(scope="module")
def server():
    """Where a server on this machine speaks S3, with a bucket."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = next(line.split()[-1] for line in process.stderr if "Running on" in line)
    # It says every request: a full pipe would stop it.
    reading = threading.Thread(target=collections.deque, args=(process.stderr, 0), daemon=True)
    reading.start()
    given = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    given |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("bucket")
        yield "s3://bucket"
    process.kill()
    process.wait()
    reading.join()
    process.stderr.close()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    """A place of its own for every test."""
    if request.param == "s3":
        return f"{request.getfixturevalue('server')}/{next(numbers)}/proof"
    return f"{tmp_path.as_uri()}/elsewhere/proof" if request.param == "file" else f"{request.param}://{next(numbers)}/p"


@pytest.fixture
def flaky(monkeypatch):
    """A place whose file system can be made to fail; nobody waits between tries."""
    monkeypatch.setattr(Flaky, "fail", staticmethod(lambda operation, path: None))
    monkeypatch.setattr(Flaky, "log", [])
    monkeypatch.setattr(place, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(mirror, "PAUSE", 0.01)
    return f"flaky://{next(numbers)}/proof"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Working folders go to a folder of the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    return tmp_path / "state/pol/recordings"


@pytest.fixture(scope="module")
def process():
    """A training process: what a mirror opens in this one must not look like files that the program reads."""
    with LocalProcess(Profile(threads=1)) as running:
        yield running


@pytest.fixture
def recorded(process):
    """Records somewhere."""

    def run(out, recipe=MOMENTUM, **options):
        return train(recipe, out, **{"every": EVERY, "executor": process, **options})

    return run


@pytest.fixture(scope="module")
def whole(process, tmp_path_factory):
    """A proof in a folder, with every second state."""
    out = tmp_path_factory.mktemp("whole") / "proof"
    train(MOMENTUM, out, every=EVERY, keep=2, executor=process)
    return out


class Killed(BaseException):
    """What a process that is gone would say."""


class Then:
    """A training process beside which ``then`` happens at event ``number`` of the training."""

    def __init__(self, inner, number, then):
        self.inner, self.number, self.then = inner, number, then

    def run(self, job):
        seen = 0
        for event in self.inner.run(job):
            if isinstance(job, Train) and not isinstance(event, Stepped):
                seen += 1
                if seen == self.number:
                    self.then()
            yield event


class Cut(Then):
    """A recorder that is gone at event ``number``, after ``then``: the rest of the training nobody hears of."""

    def __init__(self, inner, number, then=lambda: None):
        super().__init__(inner, number, then)

    def run(self, job):
        seen, gone = 0, False
        for event in self.inner.run(job):
            if isinstance(job, Train) and not isinstance(event, Stepped) and not gone:
                seen += 1
                if gone := seen == self.number:
                    self.then()
            if not gone:
                yield event
        if gone:
            raise Killed


def contents(where):
    """Log and checkpoints, which interruptions must not change."""
    with opened(where) as store:
        names = [name for name in store.sizes() if name == "log.jsonl" or name.startswith("checkpoints/")]
        assert len(names) > 3
        return {name: store.read(name, 2**30) for name in names}


def put(url, name, data):
    Place(url).write(data, name)


def put_folder(url, folder):
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            put(url, file.relative_to(folder).as_posix(), file.read_bytes())


def accepted(where, **options):
    report = check(where, MOMENTUM, **options)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    return report


def rejected(where, step, words, **options):
    report = check(where, MOMENTUM, **options)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, step), report.reason()
    assert words in report.reason()


# --- recorded there, and verified from there


def test_a_proof_is_recorded_and_verified(url, recorded, state, tmp_path):
    proof = recorded(url, keep=2)
    assert proof.url == url
    assert not list(state.iterdir())  # all of it is at the URL
    kept = {f"checkpoints/{step:012d}.safetensors" for step in (0, 4, 8, 12)}
    others = {"genesis.json", "log.jsonl", "attestation.json", "journal.json", "secret.json", "dataset.bin"}
    assert set(Place(url).sizes()) == kept | others
    assert accepted(url).attestation == proof.attestation
    assert pol.write_model(url, tmp_path / "model.safetensors") > 0
    accepted(url, model=tmp_path / "model.safetensors")


def test_a_proof_of_large_tensors_is_recorded_and_verified(url, recorded):
    """Packed, and stored once: later files name the first one, which is at the URL as well."""
    recorded(url, BACKBONE, keep=3)
    with opened(url) as store:
        held = {slot.file for slot in read_entries(store, "checkpoints/000000000006.safetensors")}
        assert "checkpoints/000000000000.safetensors" in held
    assert check(url, BACKBONE).verdict is Verdict.ACCEPT


def test_a_named_working_folder_stays_and_holds_the_same(url, recorded, tmp_path):
    recorded(url, work=tmp_path / "work")
    there = Place(url)
    files = {path.relative_to(tmp_path / "work").as_posix(): path for path in (tmp_path / "work").rglob("*.*")}
    assert {name: there.read(name, 0, size) for name, size in there.sizes().items()} == {
        name: path.read_bytes() for name, path in files.items()
    }
    accepted(tmp_path / "work")


def test_going_on_elsewhere_gives_the_same_log(url, recorded, process, tmp_path, state):
    """At every event the process is gone and its machine, too: what is at the URL goes on."""
    recorded(url, until_genesis=True, work=tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "local")
    recorded(tmp_path / "local", resume=True)
    for number in (1, 2, 4, 3):
        with pytest.raises(Killed):
            recorded(url, resume=True, executor=Cut(process, number), work=tmp_path / f"machine-{number}")
        assert "attestation.json" not in Place(url).sizes()
    recorded(url, resume=True)
    assert contents(url) == contents(tmp_path / "local")
    accepted(url)


def test_going_on_in_the_working_folder(url, recorded, process, tmp_path):
    def something_is_there():
        """What is copied beside the training may be late, on a machine that does much else."""
        for _ in range(600):
            if Place(url).sizes():
                return
            time.sleep(0.1)

    with pytest.raises(Killed):
        recorded(url, executor=Cut(process, 5, something_is_there))
    with pytest.raises(UsageError, match=r"it holds a recording to .* Go on with it by --resume, or name another"):
        recorded(url)
    with pytest.raises(UsageError, match="is not empty: give a new URL, or --resume"):
        recorded(url, work=tmp_path / "another")
    with pytest.raises(FormatError, match="an unfinished recording is no proof yet"), opened(url) as store:
        store.files()
    recorded(url, resume=True)
    accepted(url)
    with pytest.raises(UsageError, match="holds a complete proof already"):
        recorded(url, resume=True)
    with pytest.raises(UsageError, match="is not empty"):
        recorded(url)


@pytest.mark.parametrize("there", [True, False])
def test_killed_between_the_attestation_and_the_end(there, flaky, recorded, tmp_path):
    """The attestation is signed, and the process is gone before, or just after, it is at the URL."""

    def fail(operation, path):
        if "attestation.json" in path and operation == "put":
            raise Killed

    Flaky.fail = staticmethod(fail)
    with pytest.raises(Killed):
        recorded(flaky, work=tmp_path / "work")
    Flaky.fail = staticmethod(lambda operation, path: None)
    if there:
        put(flaky, "attestation.json", (tmp_path / "work/attestation.json").read_bytes())
    with pytest.raises(UsageError, match="is not empty"):
        recorded(flaky, work=tmp_path / "other")
    recorded(flaky, resume=True, work=tmp_path / ("other" if there else "work"))
    assert ".recording" not in Place(flaky).sizes()
    accepted(flaky)


def test_a_state_that_is_lost_here_comes_from_there(flaky, recorded, process, tmp_path):
    work = tmp_path / "work"
    with pytest.raises(Killed):
        recorded(flaky, executor=Cut(process, 6, lambda: settle(flaky, 8)), work=work)
    damaged = work / "checkpoints/000000000004.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"0004\.safetensors is damaged.* Remove it, and resume"):
        recorded(flaky, resume=True, work=work)
    damaged.unlink()
    recorded(flaky, resume=True, work=work)
    assert json.loads((work / "journal.json").read_bytes())["resumes"] == [8]
    accepted(flaky)


def test_a_log_that_cannot_be_fetched_costs_none_of_the_states_here(flaky, recorded, process, tmp_path):
    """Another machine went further, and the place fails while this one fetches what it lacks."""
    with pytest.raises(Killed):
        recorded(flaky, executor=Cut(process, 4, lambda: settle(flaky, 4)), work=tmp_path / "one")
    with pytest.raises(Killed):
        recorded(flaky, resume=True, executor=Cut(process, 4, lambda: settle(flaky, 8)), work=tmp_path / "two")
    for step in (6, 8, 10, 12):  # the process of the first one wrote on, as a real one that is killed does not
        (tmp_path / f"one/checkpoints/{step:012d}.safetensors").unlink()
    before = contents(tmp_path / "one")

    def fail(operation, path):
        if operation == "read" and path.endswith("8.safetensors"):
            raise ConnectionError("the network is down")

    Flaky.fail = staticmethod(fail)
    with pytest.raises(StoreError, match="the network is down"):
        recorded(flaky, resume=True, work=tmp_path / "one")
    found = contents(tmp_path / "one")
    assert {name: found.get(name) for name in before} == before
    recorded(tmp_path / "one", resume=True)
    assert json.loads((tmp_path / "one/journal.json").read_bytes())["resumes"] == [4]
    accepted(tmp_path / "one")


@pytest.fixture
def two_machines(flaky, recorded, process, tmp_path):
    """One recorded up to step 8, which is not at the URL; another went on there from step 4, up to the end."""

    def fail(operation, path):
        if operation == "put" and "000000000008" in path:
            raise ConnectionError("the network is down")

    def run(work, **options):
        return recorded(flaky, BACKBONE, keep=2, work=tmp_path / work, warn=lambda _: None, **options)

    Flaky.fail = staticmethod(fail)
    with pytest.raises(Killed):
        run("one", executor=Cut(process, 6, lambda: settle(flaky, 4)))
    for step in (10, 12):  # its process wrote on, as a real one that is killed does not
        (tmp_path / f"one/checkpoints/{step:012d}.safetensors").unlink(missing_ok=True)
    mends()
    with pytest.raises(Killed):
        run("two", resume=True, executor=Cut(process, 6, lambda: settle(flaky, 12)))
    return run


def test_a_machine_that_comes_back_after_another_one(flaky, two_machines, tmp_path):
    """It has its own state after 8 steps, and gets that after 12 from the URL, which names what is stored once."""
    two_machines("one", resume=True)
    assert check(flaky, BACKBONE).verdict is Verdict.ACCEPT
    assert check(tmp_path / "one", BACKBONE).verdict is Verdict.ACCEPT


def test_a_state_that_is_laid_out_otherwise_is_fetched(flaky, two_machines, tmp_path):
    """Wherever it comes from: here one in which all content is written again."""
    one, name = tmp_path / "one", "checkpoints/000000000004.safetensors"
    store = ProofDirectory(one)
    gather(store, name, read_entries(store, name), one / "new")
    (one / "new").replace(one / name)
    two_machines("one", resume=True)
    assert (one / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert check(flaky, BACKBONE).verdict is Verdict.ACCEPT


def test_a_third_machine_goes_on_from_what_two_have_written(flaky, two_machines, tmp_path):
    """The first one's log is as long, so it copies its own states; it is gone when one of them has been copied."""
    shutil.copy(tmp_path / "two/checkpoints/000000000012.safetensors", tmp_path / "one/checkpoints")
    shutil.copy(tmp_path / "two/log.jsonl", tmp_path / "one")

    def fail(operation, path):
        if operation in ("put", "write") and path.endswith(("12.safetensors.tmp", "log.jsonl.tmp")):
            raise ConnectionError("the network is down")

    Flaky.fail = staticmethod(fail)
    with pytest.raises(StoreError, match="the network is down"):
        two_machines("one", resume=True)
    mends()
    two_machines("three", resume=True)
    assert check(flaky, BACKBONE).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("same", [True, False])
def test_a_state_that_another_process_wrote_in_other_bytes(same, flaky, recorded, process, tmp_path):
    """Sizes agree, and the log of the working folder is the longer one: it is copied again. Else once is enough."""
    work, name = tmp_path / "work", "checkpoints/000000000004.safetensors"
    with pytest.raises(Killed):
        recorded(flaky, executor=Cut(process, 6, lambda: settle(flaky, 8)), work=work)
    if not same:
        put(flaky, ".recording", b"0" * 64)
        put(flaky, name, bytes((work / name).stat().st_size))
    Flaky.log.clear()
    recorded(flaky, resume=True, work=work)
    assert any(name in path for operation, path in Flaky.log if operation == "put") is not same
    accepted(flaky)


def settle(url, step):
    """Wait until the state after ``step`` steps, and the line that names it, are at a URL."""
    until = time.monotonic() + 60
    while True:
        sizes = Place(url).sizes()
        if f"checkpoints/{step:012d}.safetensors" in sizes and "log.jsonl" in sizes:
            log = Place(url).read("log.jsonl", 0, sizes["log.jsonl"])
            if f'"stop":{step}' in log.decode():
                return
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.slow
def test_a_real_process_really_killed(server, tmp_path):
    """Its machine is gone as well; ``pol record --resume`` on another one takes what is at the URL."""
    out = f"{server}/{next(numbers)}/proof"
    command = [sys.executable, "-m", "pol", "record", SLOW, "--out", out, "--every", "2", "--threads", "1"]
    command += ["--key", str(tmp_path / "key.pem")]
    KEY.save(tmp_path / "key.pem")
    process = subprocess.Popen([*command, "--work", str(tmp_path / "one")], stderr=subprocess.PIPE, text=True)
    settle(out, 8)
    process.kill()
    process.communicate()
    shutil.rmtree(tmp_path / "one")
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = check(out, SLOW)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    with opened(out) as store:
        assert json.loads(store.read("journal.json", 2**20))["resumes"][0] >= 8


# --- the order of things


def test_the_url_never_holds_half_a_proof(flaky, recorded, tmp_path):
    """Whenever a log is there, so is every state that it names; and the attestation comes after all else."""

    def look(operation, path):
        if operation not in ("put", "write"):
            return
        sizes = {name.partition("proof/")[2] for name in Flaky.store if name.startswith(f"/{flaky[8:]}")}
        if "log.jsonl" in sizes:
            log = Flaky.store[f"/{flaky[8:]}/log.jsonl"].getvalue().decode()
            assert log == "" or log.endswith("\n")
            stops = [json.loads(line).get("stop", 0) for line in log.splitlines()]
            assert {f"checkpoints/{step:012d}.safetensors" for step in stops} <= sizes
            assert {"genesis.json", "secret.json", "journal.json", "dataset.bin"} <= sizes
        assert "log.jsonl" in sizes or not any(name.startswith("checkpoints/") for name in sizes)
        if "genesis.json" in sizes:
            assert {"secret.json", "journal.json", "dataset.bin"} <= sizes
        assert "attestation.json" not in sizes

    Flaky.fail = staticmethod(look)
    recorded(flaky)
    written = [path.rpartition("/")[2].removesuffix(".tmp") for operation, path in Flaky.log if operation != "read"]
    assert [name for name in written if name != "checkpoints"][-1] == "attestation.json"
    accepted(flaky)


def test_the_log_is_not_copied_more_often_than_the_states(flaky, tmp_path):
    """It is written anew each time, which would add up to the square of its length."""
    work = tmp_path / "work"
    (work / "checkpoints").mkdir(parents=True)
    with Mirror(flaky, work) as copying:
        copying.begin({})
        for step in range(50):
            name = f"checkpoints/{step:012d}.safetensors"
            (work / name).write_bytes(bytes(10))
            with (work / "log.jsonl").open("ab") as file:
                file.write(b"x" * 99 + b"\n")
            copying.committed(name)
            copying.committed("log.jsonl")
        copying.flush(lambda *_: None)
    assert Place(flaky).sizes()["log.jsonl"] == 5000
    assert 1 <= sum("log.jsonl" in path for operation, path in Flaky.log if operation == "write") <= 4


# --- places that cannot be reached


def test_a_place_that_fails_now_and_then_is_tried_again(flaky, recorded):
    failures = itertools.count()

    def fail(operation, path):
        if next(failures) % 3:
            raise OSError("slow down")

    Flaky.fail = staticmethod(fail)
    recorded(flaky, warn=lambda text: pytest.fail(text))
    Flaky.fail = staticmethod(lambda operation, path: None)
    accepted(flaky)


def broken(operation, path):
    raise ConnectionError("the network is down")


def breaks():
    Flaky.fail = staticmethod(broken)


def mends():
    Flaky.fail = staticmethod(lambda operation, path: None)


def test_the_training_goes_on_without_the_place(flaky, recorded, process, tmp_path):
    said, work = [], tmp_path / "work"
    with pytest.raises(StoreError, match="the network is down"):
        recorded(flaky, executor=Then(process, 3, breaks), work=work, warn=said.append)
    assert len(said) <= 1  # once, if it was noticed before the end
    accepted(work)  # the training is done, and the proof complete
    mends()
    assert "attestation.json" not in Place(flaky).sizes()
    proof = recorded(flaky, resume=True, work=work)  # nothing is trained
    assert proof.checked == 0
    assert accepted(flaky).attestation == proof.attestation


def test_a_place_that_comes_back(flaky, tmp_path):
    said, work = [], tmp_path / "work"
    (work / "checkpoints").mkdir(parents=True)
    (work / "genesis.json").write_bytes(b"{}")
    with Mirror(flaky, work, warn=said.append) as copying:
        copying.begin({})
        breaks()
        copying.committed("genesis.json")
        wait_for(lambda: said)
        mends()
        wait_for(lambda: len(said) == 2)
        copying.flush(lambda *_: None)
    assert "the network is down. The training goes on in" in said[0]
    assert said[1] == f"{flaky} can be reached again"
    assert "genesis.json" in Place(flaky).sizes()


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_place_that_cannot_be_written_is_noticed_before_training(flaky, recorded):
    def refuse(operation, path):
        if operation == "write":
            raise PermissionError("Access Denied")

    Flaky.fail = staticmethod(refuse)
    with pytest.raises(StoreError, match=r"cannot write \.recording: Access Denied"):
        recorded(flaky)
    assert sum(operation == "write" for operation, _ in Flaky.log) == 1  # a refusal does not pass by itself


def test_a_bucket_that_is_not_there(server, recorded):
    with pytest.raises(StoreError, match=r"cannot write .recording"):
        recorded("s3://no-such-bucket/proof")


def test_a_program_that_warns_of_nothing_does_not_hang(flaky, tmp_path):
    """What goes wrong in the background ends the wait for it."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "genesis.json").write_bytes(b"{}")

    def warn(text):
        raise RuntimeError("nobody listens")

    with Mirror(flaky, work, warn=warn) as copying:
        copying.begin({})
        breaks()
        copying.committed("genesis.json")
        with pytest.raises(StoreError, match=r"nobody listens|the network is down"):
            copying.flush(lambda *_: None)


# --- one recording at a time


def test_another_process_takes_over(flaky, recorded, process, tmp_path):
    def take_over():
        put(flaky, ".recording", b"0" * 64)

    with pytest.raises(UsageError, match="has been taken over by another process"):
        recorded(flaky, executor=Then(process, 3, take_over), work=tmp_path / "work")
    assert "attestation.json" not in Place(flaky).sizes()
    recorded(flaky, resume=True, work=tmp_path / "work")
    accepted(flaky)


def test_what_cannot_be_taken_up(flaky, recorded, process, tmp_path):
    with pytest.raises(UsageError, match="there is no recording to resume"):
        recorded(flaky, resume=True)
    recorded(flaky, until_genesis=True, work=tmp_path / "one")
    recorded(f"{flaky}-2", until_genesis=True, work=tmp_path / "two")
    with pytest.raises(UsageError, match=r"two holds another recording than .* name another folder with --work"):
        recorded(flaky, resume=True, work=tmp_path / "two")
    with pytest.raises(UsageError, match="only a recording to a URL has another one to work in"):
        recorded(tmp_path / "proof", work=tmp_path / "three")
    put(f"{flaky}-2", "notes.txt", b"mine")
    with pytest.raises(StoreError, match=r"notes\.txt is there and belongs to no proof: remove it, and --resume"):
        recorded(f"{flaky}-2", resume=True, work=tmp_path / "two")
    Place(f"{flaky}-2").remove("notes.txt")
    recorded(f"{flaky}-2", resume=True, work=tmp_path / "two")
    accepted(f"{flaky}-2")


def test_working_folders(monkeypatch, tmp_path):
    assert working_folder("s3://a/b") == working_folder("s3://a/b/") != working_folder("s3://b/b")
    assert working_folder("s3://a/b").name.startswith("b-")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert working_folder("s3://a/b").is_relative_to(Path.home() / ".local/state/pol")


# --- what somebody else put there


def counted(operation="read"):
    return [path.rpartition("/")[2] for what, path in Flaky.log if what == operation]


@pytest.mark.parametrize(
    "name", ["notes.txt", "checkpoints/one.safetensors", "checkpoints/0/1.safetensors", "other/genesis.json"]
)
def test_unknown_names_are_refused_and_nothing_is_fetched(name, flaky, whole):
    put_folder(flaky, whole)
    put(flaky, name, b"x")
    rejected(flaky, 2, "")
    assert counted() == []


def test_names_that_lead_elsewhere(flaky, whole, tmp_path, monkeypatch):
    """A server can list what it likes."""
    put_folder(flaky, whole)
    listing = Flaky.ls

    def lying(self, path, **options):
        root = f"/{flaky[8:]}"
        further = [{"name": f"{root}/../../{tmp_path.name}-evil", "size": 3, "type": "file"}] if path == root else []
        return listing(self, path, **options) + further

    monkeypatch.setattr(Flaky, "ls", lying)
    rejected(flaky, 2, "no such file belongs to a proof")
    with opened(flaky) as store:
        store.bring()
        assert not [path for path in store.path.parent.parent.iterdir() if path.name.endswith("-evil")]


def test_links_in_a_folder_are_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "proof")
    (tmp_path / "proof/dataset.bin").rename(tmp_path / "dataset.bin")
    (tmp_path / "proof/dataset.bin").symlink_to(tmp_path / "dataset.bin")
    rejected((tmp_path / "proof").as_uri(), 2, "dataset.bin: not a regular file")
    (tmp_path / "proof/dataset.bin").unlink()
    (tmp_path / "dataset.bin").rename(tmp_path / "proof/dataset.bin")
    (tmp_path / "proof/checkpoints").rename(tmp_path / "checkpoints")
    (tmp_path / "proof/checkpoints").symlink_to(tmp_path / "checkpoints")
    rejected((tmp_path / "proof").as_uri(), 2, "checkpoints: not a regular file")


def test_more_bytes_than_the_policy_reads_are_not_fetched(flaky, whole):
    import msgspec

    put_folder(flaky, whole)
    accepted(flaky, policy=msgspec.structs.replace(EXACT, max_bytes=10**6))
    Flaky.log.clear()
    rejected(flaky, 2, "more than the policy reads", policy=msgspec.structs.replace(EXACT, max_bytes=10**4))
    assert counted() == []


def test_a_file_over_its_limit_is_not_fetched(flaky, whole):
    put_folder(flaky, whole)
    put(flaky, "secret.json", b" " * 2000)
    rejected(flaky, 2, "secret.json: larger than the limit")


def test_a_proof_of_another_key_costs_no_state(flaky, whole):
    put_folder(flaky, whole)
    Flaky.log.clear()
    import msgspec

    rejected(flaky, 1, "which you did not pin", policy=msgspec.structs.replace(EXACT, keys=("sha256:" + "0" * 64,)))
    assert set(counted()) == {"genesis.json", "attestation.json"}


@pytest.mark.parametrize("name", ["genesis.json", "log.jsonl", "checkpoints/000000000004.safetensors"])
@pytest.mark.parametrize("damage", [None, lambda data: data[:-1], lambda data: data[:-1] + b"\0"])
def test_damage_is_found(name, damage, flaky, whole):
    put_folder(flaky, whole)
    if damage is None:
        Place(flaky).remove(name)
    else:
        put(flaky, name, damage((whole / name).read_bytes()))
    assert check(flaky, MOMENTUM).verdict is Verdict.REJECT


def test_a_file_that_changes_while_it_is_read(flaky, whole, monkeypatch):
    put_folder(flaky, whole)
    monkeypatch.setattr(Flaky, "cat_file", lambda self, path, start=None, end=None: b"x" * (end - start - 1))
    rejected(flaky, 2, "changed while it was read")
    with pytest.raises(Incomplete):
        Place(flaky).read("genesis.json", 0, 10)
    monkeypatch.setattr(Flaky, "cat_file", lambda self, path, start=None, end=None: b"x" * (end - start + 1))
    with pytest.raises(FormatError, match="changed while it was read"):
        Place(flaky).read("genesis.json", 0, 10)


def test_a_place_that_cannot_be_read_is_no_verdict(flaky, whole):
    put_folder(flaky, whole)
    breaks()
    with pytest.raises(StoreError, match="cannot list it: the network is down"):
        check(flaky, MOMENTUM)

    def later(operation, path):
        if path.endswith("8.safetensors"):
            raise ConnectionError("the network is down")

    Flaky.fail = staticmethod(later)
    with pytest.raises(StoreError, match=r"cannot read checkpoints/000000000008\.safetensors: the network is down"):
        check(flaky, MOMENTUM)


def test_no_room_for_what_is_fetched(flaky, whole, monkeypatch):
    put_folder(flaky, whole)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"bytes to fetch, and 1000 free in .*: name a folder with room in TMPDIR"):
        check(flaky, MOMENTUM)


def test_files_are_fetched_in_pieces_and_once(flaky, whole, monkeypatch):
    put_folder(flaky, whole)
    monkeypatch.setattr(fetched, "CHUNK", 1000)
    Flaky.log.clear()
    accepted(flaky)
    sizes = {path.name: path.stat().st_size for path in whole.rglob("*.*")}
    assert {name: counted().count(name) for name in sizes} == {name: -(-size // 1000) for name, size in sizes.items()}


# --- everything else that reads proofs


def test_only_what_is_needed_is_fetched(flaky, whole, tmp_path):
    put_folder(flaky, whole)
    Flaky.log.clear()
    pol.write_model(flaky, tmp_path / "model.safetensors")
    assert set(counted()) == {"genesis.json", "000000000012.safetensors"}
    Flaky.log.clear()
    assert main(["inspect", flaky]) == 0
    assert set(counted()) == {"genesis.json", "attestation.json", "log.jsonl", "journal.json"}


def test_states_are_taken_again_from_there(flaky, whole, tmp_path, process):
    from pol.auditor import LocalAuditor

    put_folder(flaky, whole)
    auditor = LocalAuditor(MOMENTUM, executor=process)
    written = regenerate(flaky, tmp_path / "openings", recipe=MOMENTUM, steps=[4, 6, 10], auditor=auditor)
    assert [path.name for path in written] == [f"{step:012d}.safetensors" for step in (4, 6, 10)]
    name = "checkpoints/000000000004.safetensors"
    assert (tmp_path / "openings" / name).read_bytes() == (whole / name).read_bytes()


def test_a_parent_elsewhere(flaky, whole, recorded):
    put_folder(flaky, whole)
    recorded(f"{flaky}-child", parent=flaky)
    Flaky.log.clear()
    report = accepted(f"{flaky}-child", parents=[(flaky, None)])
    assert "the weights of another proof" in report.assurance.statements[0]
    states = [f"/{flaky[8:]}/checkpoints/{step:012d}.safetensors" for step in (0, 4, 8, 12)]
    read = [path for operation, path in Flaky.log if operation == "read"]
    assert [read.count(path) for path in states] == [1, 1, 1, 1]  # what was verified is what is used


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    url, model = (tmp_path / "there/proof").as_uri(), str(tmp_path / "model.safetensors")
    words = ["--out", url, "--every", "2", "--threads", "1", "--json"]
    assert main(["record", MOMENTUM, *words, "--model", model]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["proof"] == url
    assert made["next"].startswith(f"pol verify {url} --recipe")
    assert Path(model).exists()
    assert not list((tmp_path / "state/pol/recordings").iterdir())
    assert main(["verify", url, "--recipe", MOMENTUM, "--model", model]) == 0
    assert main(["plan", url]) == 0
    assert main(["gc", url]) == 3
    assert main(["record", MOMENTUM, *words]) == 3
    assert "is not empty: give a new URL" in capsys.readouterr().out


def test_what_is_written_to_a_local_url_is_synced(tmp_path, monkeypatch):
    """The working folder is removed when all is there. First the content, then the name."""
    synced, sync = [], os.fsync

    def noting(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, (tmp_path / "there/checkpoints/x").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    Place((tmp_path / "there").as_uri()).write(b"data", "checkpoints/x")
    assert synced == [("x.tmp", False), ("checkpoints", True), ("there", True)]
    (tmp_path / "y").write_bytes(b"data")
    synced.clear()
    Place((tmp_path / "there").as_uri()).put(tmp_path / "y", "y")
    assert [name for name, _ in synced] == ["y.tmp", "there", tmp_path.name]


# --- what a URL is


def test_what_a_url_is(tmp_path):
    assert is_url("s3://bucket/proof")
    assert is_url("memory://x")
    assert not any(map(is_url, ["proof", "a/b", "/a/b", "C:/proof", "./s3:/x", tmp_path]))
    with pytest.raises(UsageError, match="give a URL as text, not as a Path"):
        is_url(Path("s3://bucket/proof"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("simplecache::s3://bucket/x", "chained URLs are not read"),
        ("nosuch://bucket/x", "Protocol not known: nosuch"),
        ("memory://", "x"),
    ],
)
def test_urls_that_are_none(url, message):
    if url == "memory://":
        assert not is_url(url)
        return
    with pytest.raises(UsageError, match=message):
        Place(url)


def test_no_password_is_shown(monkeypatch, flaky):
    there = Place("memory://user:secret@host/proof")
    assert there.url == "memory://…@host/proof"
    monkeypatch.setattr(there._system, "ls", broken)
    with pytest.raises(StoreError) as raised:
        there.sizes()
    assert "secret" not in str(raised.value)


def test_a_file_is_no_folder(flaky):
    put(flaky, "x", b"data")
    with pytest.raises(UsageError, match="is a file: name a folder"):
        Place(f"{flaky}/x").sizes()


def test_an_implementation_that_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"gcsfs.*pip install 'proof-of-learning\[remote\]'"):
        Place("gs://bucket/proof")


def test_empty_folders_in_object_stores(server, whole):
    """Consoles mark a folder with an empty object whose name ends with a slash."""
    import boto3

    url = f"{server}/{next(numbers)}/proof"
    put_folder(url, whole)
    client = boto3.client("s3")
    for key in ("proof/", "proof/checkpoints/"):
        client.put_object(Bucket="bucket", Key=f"{url.split('/')[3]}/{key}", Body=b"")
    accepted(url)


def test_fetched_is_a_proof_directory(flaky, whole, tmp_path):
    put_folder(flaky, whole)
    (tmp_path / "own").mkdir()
    store = Fetched(Place(flaky), tmp_path / "own")
    assert store.has("log.jsonl")
    assert not store.has("other")
    assert store.size("log.jsonl") == (whole / "log.jsonl").stat().st_size
    with pytest.raises(FormatError, match="other: not there"):
        store.size("other")
    with pytest.raises(Incomplete, match="other: not there"):
        store.open("other")
    assert not os.listdir(tmp_path / "own/checkpoints")

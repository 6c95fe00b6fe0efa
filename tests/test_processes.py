"""Training processes: what they get, what they cannot reach, and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pol.errors import UsageError
from pol.executors.local import LocalProcess
from pol.messages import Build, Built, Control, Failed, Program
from pol.profile import Platform, Profile, differences, environment

RECIPE = """
import json, os, signal, socket, sys
import torch
from torch import nn
from pol.replay.recipe import Recipe

class Probe(Recipe):
    batch_size = 1
    def __init__(self, out: str, act: str = "") -> None:
        self.out, self.act = out, act
    def data(self):
        return [{"x": torch.zeros(1)}]
    def build(self):
        print("the user prints")
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "exit":
            os._exit(7)
        if self.act == "raise":
            raise RuntimeError("no such luck")
        found = {"environ": dict(os.environ), "threads": torch.get_num_threads(), "network": True}
        try:
            socket.create_connection(("127.0.0.1", int(self.act) if self.act.isdigit() else 1), timeout=2).close()
        except OSError:
            found["network"] = False
        with open(self.out, "w") as file:
            json.dump(found, file)
        while self.act == "wait":
            pass
        model = nn.Linear(1, 1)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
"""


@pytest.fixture
def probe(tmp_path):
    path = tmp_path / "probe.py"
    path.write_text(RECIPE)

    def program(act="", threads=1):
        configuration = {"out": str(tmp_path / "out.json"), "act": act}
        return Program(
            reference=f"{path}:Probe", configuration=configuration, seed="00" * 32, profile=Profile(threads=threads)
        )

    return program


def ask(process, job):
    return list(process.run(job))[-1]


def test_the_environment_is_ours_alone(probe, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    with LocalProcess(Profile(threads=2)) as process:
        assert isinstance(ask(process, Build(program=probe(threads=2))), Built)
    found = json.loads((tmp_path / "out.json").read_text())
    extra = {"LC_CTYPE", "TORCHINDUCTOR_CACHE_DIR"}  # Python and torch set these themselves
    assert {k: v for k, v in found["environ"].items() if k not in extra} == environment(Profile(threads=2))
    assert found["threads"] == 2
    assert capfd.readouterr().out == ""  # what a recipe prints must not get into our own output


def test_an_interpreter_can_be_given(probe, tmp_path):
    python, used = tmp_path / "python", tmp_path / "used"
    python.write_text(f'#!/bin/sh\n: > "{used}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with LocalProcess(Profile(threads=1), python=python) as process:
        assert isinstance(ask(process, Build(program=probe())), Built)
    assert used.exists()


@pytest.mark.parametrize("name", ["nowhere", "", "plain.txt"])
def test_an_interpreter_that_cannot_be_started_is_named(probe, tmp_path, name):
    (tmp_path / "plain.txt").write_text("not a program\n")
    program, before = probe(), len(os.listdir("/dev/fd"))
    with LocalProcess(Profile(threads=1), python=tmp_path / name) as process:
        for _ in range(2):  # the second job gets the same answer
            with pytest.raises(UsageError, match=f"cannot start a training process with {tmp_path / name}: [NP]"):
                ask(process, Build(program=program))
    assert len(os.listdir("/dev/fd")) == before


def test_a_replay_reaches_no_network(probe, tmp_path):
    """Shown to bite: the same port is reached without isolation."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        reached = []
        for isolated in (False, True):
            with LocalProcess(Profile(threads=1), isolated=isolated) as process:
                ask(process, Build(program=probe(port)))
            reached.append(json.loads((tmp_path / "out.json").read_text())["network"])
    able = subprocess.run(
        [sys.executable, "-c", "from pol.replay.isolation import leave_network; print(leave_network())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert reached == [True, able.stdout.strip() != "True"]


@pytest.mark.parametrize(
    ("act", "words"),
    [("kill", "killed by signal 9"), ("exit", "exited with 7"), ("raise", "RuntimeError: no such luck")],
)
def test_how_a_job_can_end(probe, act, words):
    with LocalProcess(Profile(threads=1)) as process:
        event = ask(process, Build(program=probe(act)))
        assert isinstance(event, Failed)
        assert words in event.message
        assert isinstance(ask(process, Build(program=probe())), Built)  # the next job has a process of its own
        failed = ask(process, Control(program=probe("raise"), steps=1))
        assert isinstance(failed, Failed)
        assert "probe.py" in failed.message


def test_training_ends_with_whoever_asked(probe, tmp_path):
    """A killed recorder must not leave a process that goes on writing."""
    script = (
        "import msgspec, sys\n"
        "from pol.executors.local import LocalProcess\n"
        "from pol.messages import Build\n"
        "job = msgspec.json.decode(sys.argv[1], type=Build)\n"
        "list(LocalProcess(job.program.profile).run(job))\n"
    )
    import msgspec

    job = msgspec.json.encode(Build(program=probe("wait"))).decode()
    parent = subprocess.Popen([sys.executable, "-c", script, job])
    out = tmp_path / "out.json"
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert out.exists()
    children = _descendants(parent.pid)
    assert len(children) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in children if _alive(pid)] == []


def _descendants(pid):
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" and bool(os.kill(pid, 0) or 1)
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_differences_name_the_fact():
    a = Platform(python="3.11.7", torch="2.13.0", numpy="2", machine="x86_64", capability="AVX2")
    b = Platform(python="3.11.7", torch="2.13.0", numpy="2", machine="x86_64", capability="AVX512")
    assert differences(a, a) == []
    assert differences(a, b) == ["capability: recorded AVX2, here AVX512"]

"""Ordinary training scripts are attached: what that changes in them, and that it changes nothing in the training."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import msgspec
import pytest
import torch
from safetensors.torch import load_file

import script_diffs
from pol.attacks.forger import Forger
from pol.keys import SigningKey
from pol.profile import Profile, environment
from pol.proof.policy import EXACT
from pol.proof.report import Verdict
from script_diffs import SCRIPTS
from zoo.tools import check

MOST_REMOVED, MOST_ADDED = 14, 17
KILLED_AFTER = 4
"""Intervals of ten steps, of 8 to 12."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_diff_is_small(name):
    removed, added = script_diffs.changed(name)
    assert removed <= MOST_REMOVED
    assert added <= MOST_ADDED
    calls = re.findall(r"^\+.*\brun\.(\w+)\(", script_diffs.diff(name), re.MULTILINE)
    assert sorted(calls) == ["aside", "attach", "commit", "epochs", "loader"]


def test_the_page_shows_the_diffs():
    page = script_diffs.PAGE.read_text()
    assert script_diffs.with_diffs(page) == page, "run: python tests/script_diffs.py"
    for name in SCRIPTS:
        assert script_diffs.diff(name) in page
        assert re.search(rf"^\| `{name}\.py` .* removed, .* added \|$", page, re.MULTILINE)


class Session:
    """One folder in which a script is trained, and its recipe recorded, by processes of their own."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.proof, self.model = folder / "proof", folder / "model.safetensors"
        self.recipe = f"{script_diffs.recipe(name)}:{SCRIPTS[name]}"
        self.environment = {**environment(Profile(threads=1)), "PATH": os.environ["PATH"], "HOME": str(folder)}

    def start(self, *words):
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            return subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=out, stderr=err)

    def run(self, *words, expected=0):
        code = self.start(*words).wait(timeout=240)
        assert code == expected, (self.folder / "out").read_text() + (self.folder / "err").read_text()
        return (self.folder / "out").read_text()

    def record(self, *more):
        command = ["record", self.recipe, "--out", "proof", "--threads", "1", "--model", "model.safetensors", "--json"]
        return self.pol(*command, *more)

    def pol(self, *words):
        return [sys.executable, "-m", "pol", *words]

    def lines(self):
        log = self.proof / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_recorded_killed_resumed_accepted_and_forged(name, tmp_path):
    session = Session(name, tmp_path)

    process = session.start(*session.record())
    until = time.monotonic() + 120
    while session.lines() <= KILLED_AFTER:  # line 0 is the origin
        assert process.poll() is None, (tmp_path / "err").read_text()
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (session.proof / "attestation.json").exists()

    recorded = json.loads(session.run(*session.record("--resume")))
    assert len(json.loads((session.proof / "journal.json").read_bytes())["resumes"]) == 1

    # Neither the recording nor its interruption has changed a bit of what the script computes.
    session.run(sys.executable, str(script_diffs.script(name)))
    trained, released = torch.load(tmp_path / f"{name}.pt", weights_only=True), load_file(session.model)
    assert trained.keys() == released.keys()
    assert all(torch.equal(trained[key], released[key]) for key in trained)

    words = shlex.split(recorded["next"])
    assert words[:2] == ["pol", "verify"]
    report = json.loads(session.run(*session.pol(*words[1:], "--json")))
    assert report["verdict"] == "ACCEPT"
    assert len(report["intervals"]) == session.lines() - 1  # all were taken again

    edited = session.proof / "checkpoints" / f"{10 * KILLED_AFTER:012d}.safetensors"
    honest = edited.read_bytes()
    edited.write_bytes(honest[:-1] + bytes([honest[-1] ^ 1]))
    report = json.loads(session.run(*session.pol(*words[1:], "--json"), expected=1))
    assert (report["verdict"], report["caught_by"]) == ("REJECT", 3)
    edited.write_bytes(honest)

    # One weight, moved by its own prover, who seals the proof again: only taking the steps again shows it.
    forger = Forger(session.proof)
    state = forger.states[10 * KILLED_AFTER]
    key = next(key for key in state.tensors if key.startswith("parameter/model."))
    state.tensors[key].view(-1)[0] += 1e-4
    forger.seal(tmp_path / "forged", SigningKey.load(tmp_path / ".config" / "pol" / "key.pem"))
    report = check(tmp_path / "forged", session.recipe, policy=policy(words))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7), report.reason()
    assert f"interval {KILLED_AFTER - 1} (steps 30–40): taking the steps again gives other values" in report.reason()


def policy(words):
    """The policy of a command that verifies."""
    given = {name.removeprefix("--"): words[words.index(name) + 1] for name in ("--assurance", "--order")}
    return msgspec.structs.replace(EXACT, **given)

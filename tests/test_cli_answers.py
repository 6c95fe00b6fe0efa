"""``pol plan`` and ``pol regenerate`` from the command line."""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest

from factory import EVERY, RECIPE, STEPS, factory, known_key, same_every_time
from pol.cli import main
from pol.cli.output import seconds
from pol.errors import StoreError
from pol.exchange import Patience
from pol.profile import Profile
from pol.prover import record
from pol.replay.inprocess import InProcess

TOLERANCE = """
base = "tolerance"
[bounds]
max_every = 3
[limits]
drift = 0.5
"""


class Here(InProcess):
    """A training process that is this one."""

    def __init__(self, profile=None, *, isolated=False):
        del profile, isolated

    def close(self):
        """Nothing to end."""


@pytest.fixture
def seldom(monkeypatch, tmp_path):
    """A proof of rule tolerance that keeps every second state; commands run in its folder, in this process."""
    monkeypatch.setattr("pol.executors.local.LocalProcess", Here)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    out = factory().folder / "answers-seldom"
    if not out.exists():
        options = {"every": EVERY, "keep": 2, "profile": Profile(threads=1), "executor": InProcess()}
        with same_every_time("answers"):
            record(RECIPE, out, key=known_key(1), rule="tolerance", **options)
    (tmp_path / "mine.toml").write_text(TOLERANCE)
    return out


def call(capsys, *words):
    code = main([str(word) for word in words])
    taken = capsys.readouterr()
    return code, taken.out, taken.err


def test_the_whole_exchange(seldom, capsys):
    """Verifier: what do you need? Prover: here it is. Verifier: accepted, under the same nonce."""
    asking = ("verify", seldom, "--recipe", RECIPE, "--policy", "mine.toml", "--openings", "my openings", "--top", 2)
    code, out, _ = call(capsys, *asking)
    assert code == 2
    words = shlex.split(out.splitlines()[-1])
    assert words[:2] == ["pol", "verify"]
    assert "When the prover has answered, go on with:" in out
    code, out, _ = call(capsys, "regenerate", seldom, "--recipe", RECIPE, "--out", "my openings")
    assert (code, out.partition(":")[0]) == (0, "2 states in my openings")
    code, out, _ = call(capsys, *words[1:])
    assert code == 0, out
    assert "ACCEPT" in out
    assert "go on with" not in out
    answer = ("regenerate", seldom, "--recipe", RECIPE, "--out", "my openings")
    code, out, _ = call(capsys, *answer, "--steps", "3,9", "--json")
    assert (code, len(json.loads(out)["files"])) == (0, 2)  # they are there: nothing is taken again
    code, _, err = call(capsys, *answer)
    assert (code, "nobody asks there" in err) == (3, True)  # any more


def test_the_command_to_go_on_with_is_the_one_that_was_given(seldom, capsys):
    """With all of its options, and the challenge that the prover may know."""
    given = ["--policy", "mine.toml", "--openings", "o", "--uniform", "3", "--strategy", "mix", "--set", "lr=0.1"]
    given += ["--wait", "0s", "--key", str(known_key_file()), "--allow-constants", "any"]
    code, out, _ = call(capsys, "verify", seldom, "--recipe", RECIPE, *given, "--json")
    report = json.loads(out)
    assert (code, report["request"]) == (2, str(Path("o/request.json").absolute()))
    code, out, _ = call(capsys, "verify", seldom, "--recipe", RECIPE, *given, "--nonce", report["nonce"])
    words = shlex.split(out.splitlines()[-1])
    assert words[:3] == ["pol", "verify", str(seldom)]
    expected = ["--recipe", RECIPE, *given, "--nonce", report["nonce"], "--attestation", report["attestation"]]
    assert sorted(words[3:]) == sorted(expected)


def known_key_file():
    path = Path("key.pem").absolute()
    if not path.exists():
        known_key(1).save(path)
    return path.with_name("key.pem.pub")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_while_it_waits(seldom, capsys, monkeypatch, as_json):
    def looks(_):
        yield
        raise StoreError("this machine, not the proof: No space left on device")

    given = ["--recipe", RECIPE, "--policy", "mine.toml", "--openings", "o", *(["--json"] if as_json else [])]
    with monkeypatch.context() as failing:
        failing.setattr(Patience, "looks", looks)
        code, out, err = call(capsys, "verify", seldom, *given)
    assert code == 3
    said = json.loads(out)["error"] if as_json else err
    assert "No space left on device" in said
    assert "The challenge may be known by now; go on with:" in said
    call(capsys, "regenerate", seldom, "--recipe", RECIPE, "--out", "o")
    code, out, _ = call(capsys, *shlex.split(said.splitlines()[-1])[1:])
    assert code == 0, out


def test_ended_by_another_program_while_it_waits(seldom, capsys, monkeypatch):
    """As ``timeout`` and a batch system end it."""

    def looks(_):
        yield
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("goes on")

    monkeypatch.setattr(Patience, "looks", looks)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        code, _, err = call(
            capsys, "verify", seldom, "--recipe", RECIPE, "--policy", "mine.toml", "--openings", "o", "--wait", "10m"
        )
        assert code == 130
        assert "go on with:" in err
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # as it was
    finally:
        signal.signal(signal.SIGTERM, before)


def test_interrupted_while_it_waits(seldom, capsys, monkeypatch):
    def looks(patience):
        assert patience.seconds == 600
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(Patience, "looks", looks)
    code, _, err = call(
        capsys, "verify", seldom, "--recipe", RECIPE, "--policy", "mine.toml", "--openings", "o", "--wait", "10m"
    )
    assert code == 130
    words = shlex.split(err.splitlines()[-1])
    assert {"--attestation", "--wait", "--openings"} < set(words)
    assert len(words[words.index("--nonce") + 1]) == 64
    assert "pol: waiting for the prover, who is asked in " in err
    code, _, err = call(capsys, "regenerate", seldom, "--recipe", RECIPE, "--out", "other", "--wait", "10m")
    assert (code, "pol: waiting for a verifier to ask in " in err) == (130, True)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("verify", ["--wait", "10m"], "name it with --openings DIR"),
        ("verify", ["--openings", "o", "--wait", "soon"], "--wait soon: write a time like 90s, 10m or 2h"),
        ("verify", ["--openings", "o", "--wait", "-1"], "write a time"),
        ("verify", ["--openings", "o", "--wait", "inf"], "write a time"),
        ("regenerate", ["--out", "o", "--wait", "1d"], "write a time"),
        ("regenerate", ["--out", "o", "--wait", "1m", "--steps", "3"], "give one of the two"),
        ("regenerate", ["--out", "o"], "nobody asks there"),
    ],
)
def test_what_cannot_be_waited_for(seldom, capsys, command, words, message):
    code, _, err = call(capsys, command, seldom, "--recipe", RECIPE, *words)
    assert code == 3
    assert message in err


@pytest.mark.parametrize(("text", "found"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7", 7), ("0", 0), (None, 0)])
def test_times(text, found):
    assert seconds(text, "--wait") == found


@pytest.mark.parametrize(
    ("steps", "words"),
    [("a", "write whole numbers"), ("", "write whole numbers"), ("4", "4 is no boundary"), ("99", "99 is")],
)
def test_what_cannot_be_regenerated(seldom, capsys, steps, words):
    code, _, err = call(capsys, "regenerate", seldom, "--recipe", RECIPE, "--steps", steps, "--out", "openings")
    assert code == 3
    assert words in err


def test_a_plan_for_a_proof(seldom, capsys):
    code, out, _ = call(capsys, "plan", seldom, "--json")
    found = json.loads(out)
    assert (code, found["steps"], found["intervals"], found["windows"]) == (0, STEPS, 5, 3)
    assert found["replayed_share"] == 1
    code, out, _ = call(capsys, "plan", seldom, "--policy", "mine.toml", "--json")
    found = json.loads(out)
    assert (code, found["openings"], found["answered_steps"]) == (0, 2, 6)
    state = (seldom / "checkpoints" / f"{6:012d}.safetensors").stat().st_size
    assert found["opening_bytes"] == pytest.approx(2 * state, rel=0.2)  # the first is without momentum


def test_a_plan_of_single_steps_for_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(capsys, "plan", "--steps", 10_000, "--policy", "tolerance")
    assert code == 0
    assert "10,000 steps in 10,000 intervals, 1,000 windows between kept states" in " ".join(out.split())
    assert re.search(r"Openings +\d+ states that are not kept: the prover takes [\d,]+ steps again", out)
    assert re.search(r'Instead +with strategy = "uniform": \d+ states', out)


def test_a_plan_for_people(capsys):
    code, out, _ = call(capsys, "plan", "--steps", 10_000)
    assert code == 0
    assert "with 95 % confidence at most 2.80% of the intervals are forged" in out
    assert re.search(r"0\.10%\s+one single interval\s+0\.1000", out)
    assert re.search(r"50\.00%\s+intervals\s+> 0\.9999", out)  # and not 1
    code, out, _ = call(capsys, "plan", "--steps", 100)
    assert "none of the intervals is forged" in out
    assert "whatever is forged is met" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a proof, or --steps"),
        (("--steps", 0), "--steps"),
        (("--steps", 10**9, "--every", 1), "at most"),
        (("--steps", 10, "--policy", "paper-2021"), "only procedure eight-steps"),
        (("--steps", 10, "--policy", "nowhere.toml"), "nowhere.toml"),
        (("nowhere",), "nowhere"),
    ],
)
def test_no_plan(capsys, words, message):
    code, _, err = call(capsys, "plan", *words)
    assert code == 3
    assert message in err

"""``pol plan`` and ``pol regenerate`` from the command line."""

import json
import re

import pytest

from factory import EVERY, RECIPE, STEPS, factory, known_key, same_every_time
from pol.cli import main
from pol.profile import Profile
from pol.prover import record
from pol.replay.inprocess import InProcess

TOLERANCE = """
base = "tolerance"
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
    monkeypatch.setattr("pol.auditor.LocalProcess", Here)
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
    asking = ("verify", seldom, "--recipe", RECIPE, "--policy", "mine.toml")
    code, out, _ = call(capsys, *asking, "--json")
    report = json.loads(out)
    assert (code, report["verdict"]) == (2, "INCONCLUSIVE")
    steps = re.search(r"--steps ([\d,]+)", report["reason"])[1]
    assert steps == "3,9"
    assert f"--nonce {report['nonce']}" in report["reason"]
    code, out, _ = call(capsys, "regenerate", seldom, "--recipe", RECIPE, "--steps", steps, "--out", "openings")
    assert (code, out) == (0, "2 states in openings, for the verifier: pol verify … --openings openings\n")
    code, out, _ = call(capsys, *asking, "--openings", "openings", "--nonce", report["nonce"])
    assert code == 0, out
    assert "ACCEPT" in out
    code, out, _ = call(
        capsys, "regenerate", seldom, "--recipe", RECIPE, "--steps", steps, "--out", "openings", "--json"
    )
    assert (code, len(json.loads(out)["files"])) == (0, 2)  # they are there: nothing is taken again


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
    assert (code, json.loads(out)["openings"]) == (0, 2)


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

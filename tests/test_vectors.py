"""The golden proofs of format v1: what they hold, that they verify, and that each forgery is caught where it says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pol.auditor import LocalAuditor
from pol.checkpoint import content_of, read_entries
from pol.messages import Failed
from pol.proof.policy import Limits, Policy
from pol.proof.report import Verdict
from pol.statetree import state_root
from pol.store import ProofDirectory
from pol.verifier import verify

VECTORS = Path(__file__).parent / "vectors"
GOOD = VECTORS / "good-toy"
RECIPE = f"{VECTORS / 'toy.py'}:Toy"
RECIPES = {"good-own": f"{VECTORS / 'own.py'}:Own", "good-stream": f"{VECTORS / 'own.py'}:Stream"}
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
BAD = EXPECTED["bad"]
CHEAP = [name for name, bad in BAD.items() if bad["step"] <= 4]
REPLAYED = [name for name, bad in BAD.items() if bad["step"] > 4]


class Torchless(LocalAuditor):
    """An auditor on a machine without torch: it knows the recipe's sources and can train nothing."""

    def prepare(self, profile):
        """There is nothing to start."""

    def _run(self, job):
        yield Failed(kind="ReplayError", message="there is no torch here")


def overlay(name, folder):
    """A forgery as a whole directory: the good proof with other files in it."""
    shutil.copytree(GOOD, folder)
    if (VECTORS / name).is_dir():  # one that only takes files away has none
        shutil.copytree(VECTORS / name, folder, dirs_exist_ok=True)
    for removed in BAD[name]["removed"]:
        (folder / removed).unlink()
    return folder


PROOFS = sorted(path.name for path in VECTORS.glob("good-*"))
OPTIONS = {
    "good-toy": {},
    "good-declared": {
        "policy": Policy(
            assurance="observed", order="permutation", rule="tolerance", limits=Limits(relative=1e-3, absolute=1e-4)
        )
    },
    "good-given": {"start": VECTORS / "given.safetensors"},
    "good-child": {"parents": [(GOOD, None)]},
    "good-own": {
        "policy": Policy(
            assurance="observed", order="permutation",
            bases=tuple(base["root"]["digest"] for base in EXPECTED["good-own"]["bases"]),
        )
    },
    "good-stream": {"policy": Policy(assurance="observed", order="any")},
}  # fmt: skip
OTHERS = sorted(set(OPTIONS) - {"good-toy"})
"""What the verifier of each good proof gives."""


def test_the_good_proofs_are_of_all_kinds():
    assert set(PROOFS) == set(OPTIONS) == set(EXPECTED) - {"bad", "packed"}


def test_packed_files_have_the_same_roots():
    store, found = ProofDirectory(VECTORS / "packed"), {}
    for name in sorted(path.name for path in store.path.iterdir()):
        slots = read_entries(store, name)
        found[name] = state_root((slot.entry, content_of(store, name, slot)) for slot in slots).state.digest
    assert found == EXPECTED["packed"]
    assert len(found) == 2
    from pol.replay.state import State  # here, because another test imports this file where there is no torch

    assert State.load(store.path / name).root().state.digest == found[name]


def test_another_implementation_unpacks_the_same():
    code = (
        "import sys, json, pathlib; sys.modules['torch'] = sys.modules['pol'] = None\n"
        "import independent\n"
        "files = sorted(pathlib.Path(sys.argv[1]).iterdir())\n"
        "print(json.dumps({file.name: independent.state_root(file)['state']['digest'] for file in files}))"
    )
    command = [sys.executable, "-B", "-c", code, str(VECTORS / "packed")]
    done = subprocess.run(command, cwd=VECTORS, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == EXPECTED["packed"]


@pytest.mark.parametrize("name", PROOFS)
def test_another_implementation_finds_the_same(name):
    code = (
        "import sys, json, pathlib; sys.modules['torch'] = sys.modules['pol'] = None\n"
        "import independent\n"
        "given = json.loads(sys.stdin.read())\n"
        "found = independent.facts(pathlib.Path(sys.argv[1]), bytes.fromhex(given['nonce']), given['windows'],\n"
        "                          given['resumed'], given['policy'])\n"
        "print(json.dumps(found))"
    )
    given = json.dumps(EXPECTED[name]["challenge"])
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, name], cwd=VECTORS, input=given, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found.keys() == EXPECTED[name].keys()
    for key, value in EXPECTED[name].items():
        assert found[key] == value, key


@pytest.mark.parametrize("name", PROOFS)
def test_this_implementation_finds_the_same(name):
    sys.path.insert(0, str(VECTORS))
    try:
        import generate
    finally:
        sys.path.remove(str(VECTORS))
    assert json.loads(json.dumps(generate.facts(VECTORS / name))) == EXPECTED[name]


def test_good_passes_the_cheap_steps_without_torch():
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "sys.path.insert(0, 'tests')\n"
        "import test_vectors as t\n"
        "report = t.verify(t.GOOD, auditor=t.Torchless(t.RECIPE), policy=t.pinned())\n"
        "print(json.dumps([report.verdict, [step.status for step in report.steps], report.reason()]))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=VECTORS.parents[1], capture_output=True, text=True, check=True
    )
    verdict, statuses, reason = json.loads(done.stdout)
    assert statuses[:5] == ["passed"] * 4 + ["unable"], reason
    assert verdict == Verdict.INCONCLUSIVE


def pinned(beacon=EXPECTED["good-toy"]["beacon"]):
    """A policy that pins the key and the nonce for the genesis."""
    return Policy(keys=(EXPECTED["good-toy"]["claimant"],), beacon=beacon)


def test_good_is_never_rejected():
    with LocalAuditor(RECIPE) as auditor:
        report = verify(GOOD, auditor=auditor, policy=pinned())
        assert report.verdict is not Verdict.REJECT, report.reason()
        # Another verdict than ACCEPT has one excuse: this machine ends the control run elsewhere.
        assert (report.verdict is Verdict.ACCEPT) == (not report.reason()), report.reason()
        if report.verdict is Verdict.INCONCLUSIVE:
            assert "This machine does not give the recorded profile" in report.reason()
        else:
            assert report.weights == EXPECTED["good-toy"]["final"]["weights"]["digest"]
            assert report.genesis == EXPECTED["good-toy"]["genesis"]


@pytest.mark.parametrize("name", OTHERS)
def test_another_origin_is_never_rejected(name):
    with LocalAuditor(RECIPES.get(name, RECIPE)) as auditor:
        report = verify(VECTORS / name, auditor=auditor, **OPTIONS[name])
    if report.verdict is not Verdict.ACCEPT:
        assert report.verdict is Verdict.INCONCLUSIVE
        assert "This machine does not give the recorded profile" in report.reason()


@pytest.mark.parametrize("name", OTHERS)
def test_another_origin_is_not_what_the_default_policy_takes(name):
    assert verify(VECTORS / name, auditor=Torchless(RECIPES.get(name, RECIPE))).verdict is not Verdict.ACCEPT


def test_another_nonce_for_the_genesis_is_rejected():
    report = verify(GOOD, auditor=Torchless(RECIPE), policy=pinned(beacon="00" * 32))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 1)


@pytest.mark.parametrize("name", CHEAP)
def test_bad_is_rejected_without_torch(name, tmp_path):
    report = verify(overlay(name, tmp_path / name), auditor=Torchless(RECIPE))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, BAD[name]["step"]), report.reason()


def test_bad_is_rejected_by_replay(tmp_path):
    with LocalAuditor(RECIPE) as auditor:
        here = verify(GOOD, auditor=auditor)
        for name in REPLAYED:
            report = verify(overlay(name, tmp_path / name), auditor=auditor)
            if here.verdict is Verdict.ACCEPT:
                assert (report.verdict, report.caught_by) == (Verdict.REJECT, BAD[name]["step"]), report.reason()
            else:
                assert report.verdict is Verdict.INCONCLUSIVE, report.reason()


def test_every_folder_is_listed():
    assert {path.name for path in VECTORS.glob("bad-*")} | {"bad-missing"} == set(BAD)
    assert {bad["step"] for bad in BAD.values()} == {1, 2, 3, 4, 5, 7}


def test_vectors_stay_small():
    folders = [folder for folder in VECTORS.iterdir() if folder.name.startswith(("good-", "bad-"))]
    sizes = [path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert 10_000 < sum(sizes) < 200_000
    assert 1_000 < sum(path.stat().st_size for path in (VECTORS / "packed").iterdir()) < 10_000


def test_vectors_are_not_overwritten(tmp_path):
    done = subprocess.run(
        [sys.executable, "-B", str(VECTORS / "generate.py")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "never change" in done.stderr

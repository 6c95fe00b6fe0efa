"""A chain of trust: a run that starts from the weights of another proof, at any depth, and what breaks it."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest

import pol
from factory import EVERY, NONCE, RECIPE, check, factory, known_key, same_every_time
from pol.attacks.forger import Forger
from pol.auditor import LocalAuditor
from pol.cli import main
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.genesis import Parent, Randomness
from pol.proof.policy import EXACT, Challenge, Limits, Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.responder import regenerate

COMMON = {"key": known_key(1), "every": EVERY, "profile": Profile(threads=1), "executor": InProcess()}


def run(name, **options):
    out = factory().folder / f"parents-{name}"
    if not out.exists():
        with same_every_time(name):
            record(RECIPE, out, **{**COMMON, **options})
    return out


def root():
    return factory().proof()


def child():
    return run("child", parent=root(), settings={"lr": 0.01})


def grandchild():
    return run("grandchild", parent=child(), settings={"lr": 0.001})


def judged(proof, *parents, **options):
    return check(proof, parents=[(parent, None) for parent in parents], **options)


def says(report, verdict, step, words):
    assert (report.verdict, report.caught_by) == (verdict, step), report.reason()
    assert words in report.reason()


def test_a_child_is_accepted_with_its_parent():
    report = judged(child(), root())
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert "the weights of another proof" in report.assurance.statements[0]
    assert report.assurance.level == "self-seeded"


def test_the_child_really_starts_from_the_weights_of_its_parent():
    parent, own = Forger(root()), Forger(child())
    last, first = parent.states[parent.steps].tensors, own.states[0].tensors
    weights = [key for key in first if key.startswith(("parameter/", "buffer/"))]
    assert weights
    assert all(first[key].equal(last[key]) for key in weights)
    assert any(not own.states[own.steps].tensors[key].equal(last[key]) for key in weights)


def test_a_chain_of_any_depth():
    assert judged(grandchild(), child(), root()).verdict is Verdict.ACCEPT


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: judged(child()), "starts from the weights of another proof"),
        (lambda: judged(grandchild(), child()), "the parent parents-child is INCONCLUSIVE"),
    ],
)
def test_a_missing_link_is_inconclusive_and_named(make, words):
    says(make(), Verdict.INCONCLUSIVE, None, words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: judged(child(), run("another")), "parents-another has the attestation"),
        (lambda: judged(grandchild(), root(), child()), "has the attestation"),
        (lambda: judged(root(), run("another")), "this run starts elsewhere"),
        (
            lambda: judged(child(), root(), run("another")),
            "you named the parent parents-another, but this run starts elsewhere",
        ),
    ],
)
def test_another_parent_is_rejected(make, words):
    says(make(), Verdict.REJECT, 5, words)


def forged(tmp_path, source, change):
    forger = Forger(source)
    change(forger)
    forger.seal(tmp_path / "forged", known_key(1))
    return tmp_path / "forged"


def attestation(proof):
    return check(proof).attestation


def test_weights_that_the_parent_did_not_release(tmp_path):
    def change(forger):
        key = next(key for key in forger.states[0].tensors if key.startswith("parameter/"))
        forger.states[0].tensors[key] = forger.states[0].tensors[key] + 1

    says(
        judged(forged(tmp_path, child(), change), root()), Verdict.REJECT, 5, "not the weights that the parent released"
    )


def test_stolen_weights_cannot_be_passed_off_as_those_of_a_parent(tmp_path):
    """A thief trains a parent of his own, names it, and starts from other weights."""

    def change(forger):
        forger.genesis = msgspec.structs.replace(
            forger.genesis, randomness=Randomness(initialisation=Parent(attestation(run("another"))))
        )

    report = judged(forged(tmp_path, child(), change), run("another"))
    says(report, Verdict.REJECT, 5, "not the weights that the parent released")


def test_a_rejected_parent_rejects_the_child(tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(factory().forgery("edited-checkpoint-sealed").path, parent)

    def change(forger):
        forger.genesis = msgspec.structs.replace(
            forger.genesis, randomness=Randomness(initialisation=Parent(attestation(parent)))
        )

    says(judged(forged(tmp_path, child(), change), parent), Verdict.REJECT, 5, "the parent parent is REJECT")


def test_the_policy_is_that_of_the_child():
    """What the policy does not take in a run, it does not take in a parent."""
    parent = run("seeded", init_seed=7)
    seeded = run("child-of-seeded", parent=parent)
    says(judged(seeded, parent), Verdict.REJECT, 5, "assurance level 'seed-declared'")
    weak = judged(seeded, parent, policy=Policy(assurance="seed-declared"))
    assert weak.verdict is Verdict.ACCEPT, weak.reason()
    assert weak.assurance.level == "seed-declared"  # a chain is as good as its weakest link
    keys = Policy(keys=(known_key(1).fingerprint,))
    assert judged(child(), root(), policy=keys).verdict is Verdict.ACCEPT
    other = run("child-of-root-by-another", parent=root(), key=known_key(2))
    says(judged(other, root(), policy=Policy(keys=(known_key(2).fingerprint,))), Verdict.REJECT, 5, "did not pin")


def test_a_verifier_that_is_impatient_with_the_parent():
    few = Policy(max_steps=3, challenge=Challenge(strategy="uniform", uniform=0))
    assert judged(child(), root(), policy=few).verdict is Verdict.INCONCLUSIVE


def test_a_chain_that_is_too_long():
    with pytest.raises(UsageError, match="the policy allows a chain of 1"):
        judged(grandchild(), child(), root(), policy=msgspec.structs.replace(EXACT, max_depth=1))


def test_a_nonce_repeats_the_verification_of_the_chain():
    first, second = (judged(child(), root(), nonce=NONCE) for _ in range(2))
    assert msgspec.structs.replace(first, seconds=0) == msgspec.structs.replace(second, seconds=0)


def test_a_parent_with_a_recipe_of_its_own(tmp_path):
    with LocalAuditor(RECIPE, executor=InProcess()) as auditor:
        report = pol.verify(child(), auditor=auditor, parents=[(root(), RECIPE)])
    assert report.verdict is Verdict.ACCEPT, report.reason()


def test_what_cannot_be_a_parent(tmp_path):
    unfinished = tmp_path / "u"
    record(RECIPE, unfinished, **COMMON, until_genesis=True)
    with pytest.raises(UsageError, match="not finished"):
        record(RECIPE, tmp_path / "p", **COMMON, parent=unfinished)
    with pytest.raises(UsageError, match="no such proof"):
        record(RECIPE, tmp_path / "q", **COMMON, parent=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="give one"):
        record(RECIPE, tmp_path / "r", **COMMON, parent=root(), start=tmp_path / "m")


def test_a_stopped_recording_of_a_child_goes_on(tmp_path):
    record(RECIPE, tmp_path / "p", **COMMON, parent=root(), until_genesis=True)
    with pytest.raises(UsageError, match="its genesis is signed"):
        record(RECIPE, tmp_path / "p", **COMMON, parent=run("another"), resume=True)
    record(RECIPE, tmp_path / "p", **COMMON, parent=root(), resume=True)
    assert judged(tmp_path / "p", root()).verdict is Verdict.ACCEPT


# -- from the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    class Here(InProcess):
        def __init__(self, profile=None, *, isolated=False):
            del profile, isolated

        def close(self):
            """Nothing to end."""

    monkeypatch.setattr("pol.prover.LocalProcess", Here)
    monkeypatch.setattr("pol.executors.local.LocalProcess", Here)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_fine_tuning_from_the_command_line(call, tmp_path):
    child = tmp_path / "child"
    code, out, _ = call(
        "record", RECIPE, "--out", child, "--every", EVERY, "--threads", 1, "--parent", root(), "--set", "lr=0.01"
    )
    assert code == 0
    assert f"--parent {root()}" in out  # the command that verifies it
    asking = ("verify", child, "--recipe", RECIPE)
    assert call(*asking, "--parent", root())[0] == 0
    assert call(*asking, "--parent", root(), "--parent-recipe", RECIPE)[0] == 0
    code, out, _ = call(*asking)
    assert code == 2
    assert "name it (--parent)" in out
    code, _, err = call(*asking, "--parent-recipe", RECIPE)
    assert code == 3
    assert "1 --parent-recipe for 0 --parent" in err


# -- what a verifier says of the child alone --------------------------------------------------------------------------


def test_settings_are_those_of_the_child():
    with LocalAuditor(RECIPE, {"lr": 0.01}, executor=InProcess()) as auditor:
        report = pol.verify(child(), auditor=auditor, parents=[(root(), None)])
    assert report.verdict is Verdict.ACCEPT, report.reason()
    with LocalAuditor(RECIPE, {"lr": 0.1}, executor=InProcess()) as auditor:
        report = pol.verify(child(), auditor=auditor, parents=[(root(), None)])
    says(report, Verdict.REJECT, 4, "the run was registered with lr=0.01, you expect 0.1")


def test_a_nonce_for_the_child_does_not_make_the_chain_verifier_seeded(tmp_path):
    beacon = bytes(range(32))
    begun = record(RECIPE, tmp_path / "p", **COMMON, parent=root(), until_genesis=True)
    record(RECIPE, tmp_path / "p", **COMMON, parent=root(), resume=True, beacon=beacon)
    told = {"beacon": beacon.hex(), "genesis": begun.genesis}
    report = judged(tmp_path / "p", root(), policy=Policy(**told))
    assert (report.verdict, report.assurance.level) == (Verdict.ACCEPT, "self-seeded")
    report = judged(tmp_path / "p", root(), policy=Policy(**told, assurance="verifier-seeded"))
    says(report, Verdict.INCONCLUSIVE, None, "with its parent the run reaches level 'self-seeded'")


def test_states_of_a_parent_are_opened_in_a_folder_of_their_own(tmp_path):
    """Under rule tolerance with states that are not kept, parent and child each need some."""
    tolerant = {"rule": "tolerance", "keep": 2}
    parent = run("seldom", **tolerant)
    seldom = run("seldom-child", parent=parent, **tolerant)
    policy = Policy(name="t", rule="tolerance", limits=Limits(relative=1e-3, absolute=1e-4))
    openings, times = tmp_path / "DIR", []
    for _ in range(2):  # first the parent's are asked for, then the child's
        asked = judged(seldom, parent, policy=policy, openings=openings)
        assert asked.verdict is Verdict.INCONCLUSIVE
        name, folder = re.search(r"pol regenerate (\S+) --recipe … --out (\S+)\)", asked.reason()).groups()
        # The challenge of both follows from one nonce: with the parent's, the child's is known, too.
        assert f"--nonce {NONCE.hex()} --attestation {asked.attestation}" in asked.reason()
        assert asked.request == f"{folder}/request.json"
        with LocalAuditor(RECIPE, executor=InProcess()) as auditor:
            regenerate(factory().folder / name, folder, recipe=RECIPE, auditor=auditor)
        times.append(Path(folder))
    assert times == [openings / "parent", openings]
    pinned = msgspec.structs.replace(policy, attestation=asked.attestation)
    report = judged(seldom, parent, policy=pinned, openings=openings)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert (openings / "parent" / "checkpoints").is_dir()

"""Single steps under rule tolerance: a prover on one thread, a verifier on two, and a folder between them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from factory import RECIPE, TOLERANCE, factory, known_key, same_every_time
from pol import policies
from pol.attacks.workshop import Workshop
from pol.auditor import LocalAuditor
from pol.errors import IntegrityError
from pol.exchange import REQUEST, Patience
from pol.executors.local import LocalProcess
from pol.profile import Profile
from pol.proof.genesis import lengths, read_genesis
from pol.proof.policy import Challenge, Limits
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.responder import regenerate
from pol.store import GENESIS, checkpoint_path
from pol.verifier import verify
from test_platforms import DIGITS, Machine, Rounding

DIGITS_CNN = DIGITS[0]
SETTINGS = {"num_epochs": 2, "batch_size": 100}  # 30 steps

POLICY = policies.load("tolerance")


@pytest.mark.parametrize(
    ("rule", "given", "found"),
    [
        ("exact", (None, None), (10, 1)),
        ("tolerance", (None, None), (1, 10)),
        ("tolerance", (1, None), (1, 10)),
        ("tolerance", (None, 1), (1, 1)),
        ("tolerance", (5, None), (5, 1)),
        ("tolerance", (5, 7), (5, 7)),
        ("exact", (1, None), (1, 1)),
    ],
)
def test_lengths_that_are_left_open(rule, given, found):
    assert lengths(rule, *given) == found


def test_a_recording_of_rule_tolerance_has_intervals_of_one_step(tmp_path):

    options = {"key": known_key(1), "profile": Profile(threads=1), "executor": InProcess()}
    record(RECIPE, tmp_path / "p", rule="tolerance", **options, until_genesis=True)
    record(RECIPE, tmp_path / "p", rule="tolerance", **options, resume=True)
    spec = read_genesis((tmp_path / "p" / GENESIS).read_bytes()).spec
    assert (spec.every, spec.keep, spec.rule) == (1, 10, "tolerance")
    assert POLICY.bounds.max_every == 1


# -- one step that is not honest, with an auditor of another machine in this process --------------------------------


def jumping(out, folder, at, change):
    """A run of the toy recipe that jumps after ``at`` steps and goes on honestly; its states are sent at once."""
    honest = factory().folder / "single-steps"
    if not honest.exists():
        options = {"key": known_key(1), "profile": Profile(threads=1), "executor": InProcess()}
        with same_every_time("single steps"):
            record(RECIPE, honest, rule="tolerance", **options)
    workshop = Workshop(honest, known_key(1), RECIPE, folder, InProcess())
    forger = workshop.open()
    forger.intervals = []
    workshop.train(forger)
    for key, tensor in forger.states[at].tensors.items():
        if key.startswith("parameter/"):
            change(tensor)
    workshop.train(forger, at)
    forger.seal(out, known_key(1))
    (folder / "checkpoints").mkdir()
    for step, state in forger.states.items():
        if step not in forger.kept:
            state.save(folder / checkpoint_path(step))


@pytest.mark.parametrize(
    ("by", "verdict"),
    [(0.0, Verdict.ACCEPT), (1e-4, Verdict.INCONCLUSIVE), (1.0, Verdict.REJECT)],
    ids=["honest", "a small jump", "a jump"],
)
def test_one_forged_step_on_another_machine(tmp_path, by, verdict):
    """A jump is refuted anywhere; a small one nobody can tell from another machine's, but it is never accepted."""
    folder = tmp_path / "shared"
    folder.mkdir()
    jumping(tmp_path / "p", folder, 7, lambda tensor: tensor.add_(by))
    policy = msgspec.structs.replace(TOLERANCE, limits=Limits(relative=1e-3, absolute=1e-4, drift=10.0))
    with LocalAuditor(RECIPE, executor=Rounding(1e-8)) as auditor:
        report = verify(tmp_path / "p", policy=policy, openings=folder, auditor=auditor, nonce=bytes(32))
    assert report.verdict is verdict, report.reason()
    if by:
        assert [result.index for result in report.intervals if result.status != "passed"] == [6]
        assert "interval 6 (steps 6–7)" in report.reason()


# -- real processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Runs of digits on one thread, as `pol record --rule tolerance` makes them."""
    folder = tmp_path_factory.mktemp("recorded")
    with LocalProcess(Profile(threads=1)) as process:

        def proof(number):
            out = folder / f"{number}"
            if not out.exists():
                with same_every_time(f"single steps {number}"):
                    record(
                        DIGITS_CNN, out, key=known_key(1), rule="tolerance", settings=SETTINGS, executor=process,
                        profile=process.profile,
                    )  # fmt: skip
            return out

        yield proof


@pytest.fixture(scope="module")
def other():
    machine = Machine(Profile(threads=2))
    yield machine
    machine.close()


class Prover:
    """The prover's command in a process of its own; killed once, after its first state, if ``killed``."""

    def __init__(self, proof, folder, killed=False):
        self.proof, self.folder, self.killed = proof, folder, killed
        self.started, self.process = 0, None

    def start(self):
        words = ["regenerate", str(self.proof), "--recipe", DIGITS_CNN, "--out", str(self.folder), "--wait", "5m"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pol", *words], stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "80"}
        )
        self.started += 1

    def look(self, seconds):
        """What the prover does while the verifier sleeps."""
        if self.process is None:
            assert (self.folder / REQUEST).exists()
            self.start()
        elif self.killed and self.started == 1 and any((self.folder / "checkpoints").glob("*.safetensors")):
            self.process.kill()
            self.process.wait()
            self.start()
        time.sleep(min(seconds, 0.02))


def audited(proof, folder, prover, machine, challenge=None):
    policy = POLICY if challenge is None else msgspec.structs.replace(POLICY, challenge=challenge)
    try:
        with LocalAuditor(DIGITS_CNN, executor=machine) as auditor:
            return verify(
                proof, policy=policy, openings=folder, wait=Patience(240, prover.look), auditor=auditor, nonce=bytes(32)
            )
    finally:
        if prover.process:
            prover.process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["answered", "killed half-way"])
def test_digits_are_accepted_on_another_machine(killed, recorded, other, tmp_path):
    """A rare step jumps on another machine (docs/policies.md), and such a run is undecided, never rejected: of three
    at least one has none."""
    for number in range(3):
        folder = tmp_path / f"shared-{number}"
        prover = Prover(recorded(number), folder, killed)
        report = audited(recorded(number), folder, prover, other)
        assert report.verdict is not Verdict.REJECT, report.reason()
        assert report.draws is not None, report.reason()
        assert prover.process.returncode == 0
        assert prover.started in ((1, 2) if killed else (1,))
        assert len(report.intervals) == 30
        if report.verdict is Verdict.ACCEPT:
            break
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert any(result.deviation is not None for result in report.intervals)  # it is another machine
    assert not (folder / REQUEST).exists()


@pytest.mark.slow
def test_only_drawn_steps_are_taken_again(recorded, other, tmp_path):
    prover = Prover(recorded(0), tmp_path)
    report = audited(recorded(0), tmp_path, prover, other, Challenge(strategy="uniform", uniform=1, top=0))
    assert report.verdict is not Verdict.REJECT, report.reason()
    assert len(report.intervals) == len(report.draws.all()) < 30
    # The first and the last window, the interval before the last one, and the one that was drawn.
    assert {result.index for result in report.intervals} == {*range(10), *range(19, 30), *report.draws.uniform}
    assert len(report.draws.uniform) == 1
    ends = {at for result in report.intervals for at in (result.start, result.stop)}
    # Both ends of each are there; every tenth is kept, and nothing else was taken again.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        Path(checkpoint_path(at)).name for at in ends - {0, 10, 20, 30}
    }


@pytest.mark.slow
def test_a_prover_on_the_wrong_machine_cannot_answer(recorded, other, tmp_path):
    """What it takes again there has other digests, and it says so."""
    with (
        LocalAuditor(DIGITS_CNN, executor=other) as auditor,
        pytest.raises(IntegrityError, match="that recorded the run"),
    ):
        regenerate(recorded(0), tmp_path, recipe=DIGITS_CNN, steps=[5], auditor=auditor)

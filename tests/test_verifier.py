"""What a verifier may ask for, and how its answers read."""

import shutil
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from pol import policies
from pol.attacks.registry import attack_named
from pol.auditor import LocalAuditor
from pol.errors import RejectedProof, UsageError
from pol.keys import SigningKey
from pol.messages import Failed, Finished, Recorded
from pol.profile import Profile
from pol.proof.policy import EXACT, Challenge, Policy, policy_digest
from pol.proof.report import Report, Step, Verdict, decide, step_status
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.verifier import verify

RECIPE = f"{Path(__file__).parent / 'linear.py'}:Linear"
BEACON = bytes(range(32))
FEW = Challenge(strategy="uniform", uniform=1)


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


@pytest.fixture(scope="module")
def long_proof(tmp_path_factory, key):
    """200 intervals of one step, every second state kept, with a nonce."""
    out = tmp_path_factory.mktemp("proof") / "long"
    options = {"key": key, "every": 1, "keep": 2, "profile": Profile(threads=1), "executor": InProcess()}
    genesis = record(RECIPE, out, **options, until_genesis=True)
    assert genesis.attestation is None
    record(RECIPE, out, **options, resume=True, beacon=BEACON)
    return out


def check(proof, policy=EXACT, settings=None, **options):
    return verify(proof, policy=policy, auditor=LocalAuditor(RECIPE, settings, InProcess()), **options)


def detail(report, number):
    return " ".join(check.detail for check in report.steps[number - 1].checks)


def test_default_policy_samples_and_accepts(long_proof):
    report = check(long_proof)
    assert report.verdict is Verdict.ACCEPT
    assert [step.status for step in report.steps] == ["passed"] * 8
    assert [step.number for step in report.steps] == list(range(1, 9))
    assert len(report.draws.uniform) == 100
    assert {result.index for result in report.intervals} >= set(report.draws.all())
    assert "95 % confidence" in report.confidence
    assert report.not_shown


def test_exact_full_replays_every_interval_of_a_long_run(long_proof):
    sampled, full = (check(long_proof, policies.load(name)) for name in ("exact", "exact-full"))
    assert {sampled.verdict, full.verdict} == {Verdict.ACCEPT}
    assert len(sampled.intervals) < 200  # the default samples a run of more than 150
    assert [result.index for result in full.intervals] == list(range(200))
    assert full.confidence.startswith("All 200 intervals were replayed")


def test_a_nonce_makes_the_challenge_repeatable(long_proof):
    first, second, other = (check(long_proof, nonce=bytes([n] * 32)) for n in (1, 1, 2))
    assert first.draws == second.draws != other.draws
    assert check(long_proof).nonce != check(long_proof).nonce


@pytest.mark.parametrize(
    ("challenge", "least", "most"),
    [
        (Challenge(strategy="all"), 200, 200),
        # Windows of two intervals: the first, the last and the one before it make six; a uniform draw adds at most
        # its window, a weighted one also the window before.
        (Challenge(strategy="uniform", uniform=1), 6, 8),
        (Challenge(strategy="size-weighted", weighted=1), 6, 10),
        # Of each of 20 strata of five windows, the largest of each kind of state: one to three, with what comes before.
        (Challenge(strategy="top-q", top=1), 6 + 20, 200),
    ],
)
def test_strategies_cost_what_they_should(long_proof, challenge, least, most):
    report = check(long_proof, Policy(challenge=challenge), nonce=bytes(32))
    assert report.verdict is Verdict.ACCEPT
    assert least <= len(report.intervals) <= most
    drawn = report.draws.all()
    assert {result.index for result in report.intervals} == {i for d in drawn for i in range(d // 2 * 2, d + 1)}
    if challenge.strategy == "top-q":
        assert {index // 10 for index in report.draws.top} == set(range(20))


def test_intervals_longer_than_those_of_one_step_are_refused(long_proof, key, tmp_path):
    """Where no interval can be shorter, the spec of ``other-length`` names longer ones: else it forges nothing."""
    attack_named("other-length").forge(long_proof, tmp_path / "p", key, RECIPE, InProcess())
    forged = check(tmp_path / "p")
    assert (forged.verdict, forged.caught_by) == (Verdict.REJECT, 4)
    assert "the log has 200 intervals, the spec says 100" in forged.reason()


def test_who_signed(long_proof, key):
    open_report = check(long_proof)
    assert open_report.claimant == key.fingerprint
    assert key.fingerprint in detail(open_report, 1)
    assert "you pinned no key" in detail(open_report, 1)
    assert (
        "You pinned the key." in check(long_proof, Policy(keys=(key.fingerprint,), challenge=FEW)).assurance.statements
    )
    other = check(long_proof, Policy(keys=(SigningKey.generate().fingerprint,), challenge=FEW))
    assert (other.verdict, other.caught_by) == (Verdict.REJECT, 1)


def test_who_chose_the_randomness(long_proof):
    assert check(long_proof).assurance.level == "self-seeded"
    unbound = check(long_proof, Policy(beacon=BEACON.hex(), challenge=FEW))
    assert (unbound.verdict, unbound.assurance.level) == (Verdict.ACCEPT, "self-seeded")
    named = Policy(beacon=BEACON.hex(), genesis=unbound.genesis, challenge=FEW)
    assert check(long_proof, named).assurance.level == "verifier-seeded"
    moved = check(long_proof, Policy(beacon=BEACON.hex(), genesis="sha256:" + "0" * 64, challenge=FEW))
    assert (moved.verdict, moved.caught_by, moved.assurance.level) == (Verdict.REJECT, 1, "none")
    other = check(long_proof, Policy(beacon="ff" * 32, challenge=FEW))
    assert (other.verdict, other.caught_by, other.assurance.level) == (Verdict.REJECT, 1, "none")


def test_a_budget_that_is_too_small_is_inconclusive(long_proof):
    report = check(long_proof, Policy(max_steps=3))
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert "your policy allows 3" in report.reason()


def test_settings_that_the_verifier_insists_on(long_proof):
    assert check(long_proof, settings={"lr": 0.1}).verdict is Verdict.ACCEPT
    report = check(long_proof, settings={"lr": 0.2})
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 4)
    assert "lr" in report.reason()


@pytest.mark.parametrize(("value", "verdict"), [(1, Verdict.REJECT), (True, Verdict.REJECT), (0.1, Verdict.ACCEPT)])
def test_settings_are_values_of_one_kind(long_proof, value, verdict):
    assert check(long_proof, Policy(challenge=FEW), settings={"lr": value}).verdict is verdict
    unknown = check(long_proof, Policy(challenge=FEW), settings={"no_such": None})
    assert (unknown.verdict, unknown.caught_by) == (Verdict.REJECT, 4)


def test_a_class_of_another_name_is_rejected(long_proof, tmp_path):
    two = tmp_path / "linear.py"
    two.write_text(Path(RECIPE.rpartition(":")[0]).read_text())
    auditor = LocalAuditor(f"{two}:Other", executor=InProcess())
    report = verify(long_proof, auditor=auditor)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 4)
    assert "registered for recipe Linear, you named Other" in report.reason()


def test_another_recipe_is_inconclusive_and_named(long_proof, tmp_path):
    changed = tmp_path / "linear.py"
    changed.write_text(Path(RECIPE.rpartition(":")[0]).read_text().replace("0.9", "0.8"))
    report = verify(long_proof, auditor=LocalAuditor(f"{changed}:Linear", executor=InProcess()))
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert "module linear" in report.reason()
    assert "differs from the registered one" in report.reason()
    assert [step.status for step in report.steps[4:7]] == ["not run"] * 3


def test_too_many_threads_are_refused(long_proof):
    assert check(long_proof, Policy(max_threads=1, challenge=FEW)).verdict is Verdict.ACCEPT
    report = check(long_proof, Policy(max_threads=0, challenge=FEW))
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert "the policy allows 0" in report.reason()
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"threads": 10**6}, Profile)


@pytest.fixture
def model(long_proof, tmp_path):
    """The released model: the last checkpoint's weights under the model's own names."""
    state = load_file(long_proof / "checkpoints" / f"{200:012d}.safetensors")
    weights = {
        key.partition("/")[2].removeprefix("model."): tensor
        for key, tensor in state.items()
        if key.startswith(("parameter/", "buffer/"))
    }
    path = tmp_path / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    return path, weights


def test_the_released_model_is_the_trained_one(long_proof, model):
    report = check(long_proof, model=model[0])
    assert report.verdict is Verdict.ACCEPT
    assert "7 tensors" in detail(report, 3) or "is the last checkpoint" in detail(report, 3)


@pytest.mark.parametrize("change", ["value", "missing", "extra", "shape", "buffer"])
def test_another_released_model_is_rejected(long_proof, model, change):
    path, weights = model
    name = "1.running_mean" if change == "buffer" else "0.weight"
    if change == "missing":
        del weights[name]
    elif change == "extra":
        weights["backdoor"] = weights[name].clone()
    elif change == "shape":
        weights[name] = weights[name].reshape(3, 8).contiguous()
    else:
        weights[name] = weights[name] + 1e-7
    save_file(weights, path)
    report = check(long_proof, model=path)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 3)
    assert ("backdoor" if change == "extra" else name) in report.reason()


def test_a_model_file_that_is_rubbish(long_proof, tmp_path):
    for number, data in enumerate([b"", b"\xff" * 100, b"\x10" + bytes(7) + b"[" * 16]):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        report = check(long_proof, model=path)
        assert (report.verdict, report.caught_by) == (Verdict.REJECT, 3), number


def test_calls_that_cannot_be_carried_out(long_proof, tmp_path):
    with pytest.raises(UsageError, match="no such proof directory"):
        check(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="never brings its own code"):
        verify(long_proof)
    with pytest.raises(UsageError, match="no such model file"):
        check(long_proof, model=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no such file"):
        verify(long_proof, recipe=str(tmp_path / "nowhere.py:Linear"))


def test_a_report_is_no_bool_and_raises_on_demand(long_proof, tmp_path):
    report = check(long_proof)
    with pytest.raises(TypeError, match="three outcomes"):
        bool(report)
    report.raise_for_verdict()
    shutil.copytree(long_proof, tmp_path / "copy")
    (tmp_path / "copy" / "secret.json").unlink()
    with pytest.raises(RejectedProof, match=r"secret\.json") as raised:
        check(tmp_path / "copy").raise_for_verdict()
    assert isinstance(raised.value.report, Report)


def test_deciding_needs_every_step():
    """Nothing checked is nothing accepted."""
    passed = [Step(n, "", "passed", []) for n in range(1, 8)]
    assert decide(passed) is Verdict.ACCEPT
    assert decide([]) is Verdict.INCONCLUSIVE
    assert decide(passed[:6]) is Verdict.INCONCLUSIVE
    assert step_status([]) == "not run"
    for status, verdict in (
        ("unable", Verdict.INCONCLUSIVE),
        ("not run", Verdict.INCONCLUSIVE),
        ("failed", Verdict.REJECT),
    ):
        assert decide([*passed[:6], Step(7, "", status, [])]) is verdict
    assert decide([Step(1, "", "failed", []), Step(2, "", "unable", [])]) is Verdict.REJECT


class Altered(LocalAuditor):
    """An auditor whose replays go through ``change``, with the number of the replay."""

    def __init__(self, change):
        super().__init__(RECIPE, executor=InProcess())
        self.change, self.number = change, 0

    def replay(self, *args, **options):
        self.number += 1
        return self.change(self.number, super().replay(*args, **options))


def test_two_replays_that_differ_have_failed(long_proof):
    """A wrong result is not mended by a second replay that was only taken because the first stopped."""

    def change(number, events):
        first = True
        for event in events:
            if number == 1 and isinstance(event, Recorded):
                if not first:
                    yield Failed(kind="Killed", message="no such luck")
                    return
                first = False
                wrong = msgspec.structs.replace(event.interval, loss="0.25")
                event = msgspec.structs.replace(event, interval=wrong)
            yield event

    report = verify(long_proof, auditor=Altered(change))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert "other values for the loss" in report.reason()


def test_a_replay_that_stops_once_may_be_taken_again(long_proof):
    def change(number, events):
        for event in events:
            if number == 1 and isinstance(event, Recorded):
                yield Failed(kind="Killed", message="no such luck")
                return
            yield event

    assert verify(long_proof, auditor=Altered(change)).verdict is Verdict.ACCEPT
    always = verify(long_proof, auditor=Altered(lambda _, events: change(1, events)), policy=Policy(challenge=FEW))
    assert (always.verdict, always.caught_by) == (Verdict.REJECT, 7)
    assert "the replay stopped: no such luck" in always.reason()


def test_a_replay_that_yields_nothing_shows_nothing(long_proof):
    silent = verify(long_proof, auditor=Altered(lambda _, events: iter(())), policy=Policy(challenge=FEW))
    assert silent.verdict is Verdict.REJECT
    done = verify(long_proof, auditor=Altered(lambda _, events: iter([Finished()])), policy=Policy(challenge=FEW))
    assert done.verdict is Verdict.REJECT


def test_modules_outside_the_digest_are_rejected(long_proof):
    def change(_, events):
        for event in events:
            yield Finished(undeclared=["hidden"]) if isinstance(event, Finished) else event

    report = verify(long_proof, auditor=Altered(change), policy=Policy(challenge=FEW))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert "the local module hidden" in report.reason()

    class Hidden(LocalAuditor):
        def build(self, *args):
            return msgspec.structs.replace(super().build(*args), undeclared=["hidden"])

    report = verify(long_proof, auditor=Hidden(RECIPE, executor=InProcess()), policy=Policy(challenge=FEW))
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 5)


def test_policies_have_digests():
    assert policy_digest(EXACT) == policy_digest(Policy())
    assert policy_digest(Policy(max_threads=1)) != policy_digest(EXACT)

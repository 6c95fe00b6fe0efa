"""First weights and orders that do not follow from the seed, and states that are opened later."""

import shutil
from functools import cache

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pol
from factory import EVERY, RECIPE, STEPS, check, factory, known_key, same_every_time
from pol.attacks.forger import Forger
from pol.auditor import LocalAuditor
from pol.errors import IntegrityError, StoreError, UsageError
from pol.profile import Profile
from pol.proof.genesis import DeclaredSeed, Randomness
from pol.proof.policy import Limits, Policy
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.responder import regenerate
from pol.store import checkpoint_path
from pol.verifier.case import passed
from recipes.toy import Toy

LEAST = Policy(assurance="observed", order="permutation")
"""Takes every origin."""

TOLERANCE = Policy(name="tolerance", rule="tolerance", limits=Limits(relative=1e-3, absolute=1e-4))


def run(name, **options):
    out = factory().folder / f"origins-{name}"
    if not out.exists():
        with same_every_time(name):
            record(
                RECIPE, out, key=known_key(1), every=EVERY, profile=Profile(threads=1), executor=InProcess(), **options
            )
    return out


@cache
def model():
    path = factory().folder / "origins-model.safetensors"
    pol.write_model(factory().proof(), path)
    return path


@cache
def other_model():
    path = factory().folder / "origins-other.safetensors"
    pol.write_model(run("declared", init_seed=7), path)
    return path


def order():
    declaration = Forger(factory().proof()).genesis.spec.declaration
    return np.stack([np.random.default_rng(e).permutation(declaration.samples) for e in range(declaration.epochs)])


def given():
    return run("given", start=model(), start_kind="given")


def says(report, verdict, step, words):
    assert (report.verdict, report.caught_by) == (verdict, step), report.reason()
    assert words in report.reason()


# -- honest runs, and the level that each reaches ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "verifying", "level", "words"),
    [
        ("plain", {}, {}, "self-seeded", "drawn from the run's seed"),
        ("declared", {"init_seed": 7}, {}, "seed-declared", "a seed that the claimant chose"),
        ("given", {"start": model, "start_kind": "given"}, {"start": model}, "self-seeded", "that you gave out"),
        ("order", {"order": order}, {}, "observed", "drawn from the run's seed"),
        ("order-and-seed", {"order": order, "init_seed": 0}, {}, "observed", "a seed that the claimant chose"),
    ],
)
def test_an_honest_run_is_accepted_at_its_level(name, options, verifying, level, words):
    options, verifying = ({k: v() if callable(v) else v for k, v in d.items()} for d in (options, verifying))
    report = check(run(name, **options), policy=LEAST, **verifying)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert report.assurance.level == level
    assert words in report.assurance.statements[0]
    assert ("order of the data" in " ".join(report.assurance.statements)) == ("order" in options)


def test_the_default_policy_takes_derived_origins_only():
    says(check(run("declared", init_seed=7)), Verdict.REJECT, 4, "assurance level 'seed-declared'")
    says(check(run("order", order=order())), Verdict.REJECT, 4, "assurance level 'observed'")
    says(check(run("order", order=order()), policy=Policy(assurance="observed")), Verdict.REJECT, 4, "chose the order")


def test_two_runs_with_one_declared_seed_begin_alike():
    first, second = (Forger(run(name, init_seed=7)) for name in ("declared", "declared-again"))
    assert first.seed != second.seed
    assert first.states[0].root() == second.states[0].root()
    assert first.states[STEPS].root() != second.states[STEPS].root()


def test_a_given_start_needs_the_file_and_the_file_a_given_start():
    says(check(given()), Verdict.INCONCLUSIVE, None, "name their file")
    says(check(factory().proof(), start=model()), Verdict.REJECT, 5, "this run starts elsewhere")


def test_another_start_than_the_given_one():
    says(check(given(), start=other_model()), Verdict.REJECT, 5, "not the weights that you gave out")


def test_interval_zero_of_a_given_start_is_replayed_from_it():
    report = check(given(), start=model())
    assert [result.status for result in report.intervals] == ["passed"] * 5


# -- forgeries, each with the check that stops it ------------------------------------------------------------------


def forged(tmp_path, source, change):
    forger = Forger(source)
    change(forger)
    forger.seal(tmp_path / "forged", known_key(1))
    return tmp_path / "forged"


def randomness(**changes):
    def change(forger):
        forger.genesis = msgspec.structs.replace(forger.genesis, randomness=Randomness(**changes))

    return change


@pytest.mark.parametrize("initialisation", [DeclaredSeed(7), DeclaredSeed(8), "given", "observed"])
def test_a_derived_start_cannot_be_passed_off_as_another(tmp_path, initialisation):
    proof = forged(tmp_path, factory().proof(), randomness(initialisation=initialisation))
    report = check(proof, policy=LEAST, start=model() if initialisation == "given" else None)
    # As observed weights they pass: they are fresh draws. But another genesis is another seed, so no step replays.
    step = 7 if initialisation == "observed" else 5
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, step), report.reason()


def test_optimizer_state_beside_a_given_start(tmp_path):
    """Weights as given, but momentum that is not fresh would carry the run anywhere."""

    def change(forger):
        first = forger.states[0].tensors
        key = next(key for key in forger.states[STEPS].tensors if key.startswith("optimizer/"))
        first[key] = forger.states[STEPS].tensors[key]

    says(check(forged(tmp_path, given(), change), start=model()), Verdict.REJECT, 4, "than the genesis declares")


PAIR = RECIPE.replace("toy.py:Toy", "pair.py:Pair")


def test_what_is_beside_a_given_start_follows_from_the_seed(tmp_path):
    options = {"key": known_key(1), "every": 1, "executor": InProcess(), "profile": Profile(threads=1)}
    record(PAIR, tmp_path / "first", **options)
    pol.write_model(tmp_path / "first", tmp_path / "model.safetensors")
    start = {"start": tmp_path / "model.safetensors", "start_kind": "given"}
    record(PAIR, tmp_path / "given", **options, **start)

    def judged(proof):
        with LocalAuditor(PAIR, executor=InProcess()) as auditor:
            return pol.verify(proof, auditor=auditor, start=start["start"])

    assert judged(tmp_path / "given").verdict is Verdict.ACCEPT
    key = "parameter/shadow.weight"

    def change(forger):
        forger.states[0].tensors[key] = Forger(tmp_path / "first").states[3].tensors[key]

    report = judged(forged(tmp_path, tmp_path / "given", change))
    says(report, Verdict.REJECT, 5, f"{key} of the first state does not follow from the seed")


def test_an_order_that_repeats_a_sample():
    repeated = order()
    repeated[1, 0] = repeated[1, 1]
    says(check(run("repeated", order=repeated), policy=LEAST), Verdict.REJECT, 4, "epoch 1 names a sample twice")


def test_an_order_file_that_the_genesis_does_not_name(tmp_path):
    proof = forged(tmp_path, factory().proof(), lambda _: None)
    (proof / "order.bin").write_bytes(bytes(8))
    says(check(proof), Verdict.REJECT, 2, "order.bin: 8 bytes, the genesis says no")


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4), lambda _: None])
def test_an_order_file_of_another_size(tmp_path, change):
    proof = tmp_path / "proof"
    shutil.copytree(run("order", order=order()), proof)
    data = change((proof / "order.bin").read_bytes())
    (proof / "order.bin").unlink()
    if data is not None:
        (proof / "order.bin").write_bytes(data)
    says(check(proof, policy=LEAST), Verdict.REJECT, 2, "order.bin: ")


def test_an_order_of_samples_that_are_not_there(tmp_path):
    proof = tmp_path / "proof"
    shutil.copytree(run("order", order=order()), proof)
    forger = Forger(proof)
    data = bytearray((proof / "order.bin").read_bytes())
    data[0:4] = b"\xff" * 4
    (proof / "order.bin").write_bytes(bytes(data))
    says(check(proof, policy=LEAST), Verdict.REJECT, 3, "order.bin: not the bytes that were attested")
    assert forger.steps == STEPS


# -- what cannot be recorded ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init_seed": -1}, "32 bits"),
        ({"init_seed": 2**32}, "32 bits"),
        ({"start": "nowhere.safetensors"}, "no such file"),
        ({"order": np.zeros((1, 1), dtype=int)}, "epochs × "),
    ],
)
def test_what_cannot_begin(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        record(
            RECIPE,
            tmp_path / "p",
            key=known_key(1),
            every=3,
            profile=Profile(threads=1),
            executor=InProcess(),
            **options,
        )


def test_one_origin_only(tmp_path):
    with pytest.raises(UsageError, match="give one of them"):
        record(RECIPE, tmp_path / "p", key=known_key(1), every=3, init_seed=1, start=model(), executor=InProcess())


def test_first_weights_of_another_model(tmp_path):
    tensors = load_file(model())
    name = sorted(tensors)[0]
    for number, changed in enumerate([
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "another": tensors[name].clone()},
        {**tensors, name: tensors[name].double()},
    ]):  # fmt: skip
        path = tmp_path / f"{number}.safetensors"
        save_file(changed, path)
        with pytest.raises(UsageError, match=r"is missing|is no weight of"):
            record(RECIPE, tmp_path / f"p{number}", key=known_key(1), every=3, start=path, executor=InProcess())


# -- states that are opened later -----------------------------------------------------------------------------------


def seldom():
    return run("seldom", rule="tolerance", keep=2)


def take_again(out, *steps, proof=None):
    with LocalAuditor(RECIPE, executor=InProcess()) as auditor:
        return regenerate(proof or seldom(), out, recipe=RECIPE, steps=steps, auditor=auditor)


def test_states_that_are_not_kept_are_asked_for_and_regenerated(tmp_path):
    asked = check(seldom(), policy=TOLERANCE)
    says(asked, Verdict.INCONCLUSIVE, None, "2 of the states that are compared are not in the proof")
    take_again(tmp_path / "half", 3)
    asked = check(seldom(), policy=TOLERANCE, openings=tmp_path / "half")
    says(asked, Verdict.INCONCLUSIVE, None, "1 of the states that are compared is not in the proof")
    written = take_again(tmp_path / "half", 3, 9)
    assert [path.name for path in written] == ["000000000003.safetensors", "000000000009.safetensors"]
    report = check(seldom(), policy=TOLERANCE, openings=tmp_path / "half")
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert len(report.intervals) == 5


def test_an_opened_state_must_be_the_recorded_one(tmp_path):
    take_again(tmp_path / "o", 3, 9)
    (tmp_path / "o" / checkpoint_path(9)).write_bytes((tmp_path / "o" / checkpoint_path(3)).read_bytes())
    report = check(seldom(), policy=TOLERANCE, openings=tmp_path / "o")
    says(report, Verdict.REJECT, 6, "not the state that the log records after 9 steps")


@pytest.mark.parametrize("content", [bytes(64), b"\xff" * 4096, b"rubbish that is longer than eight bytes"])
def test_an_opened_state_that_is_no_state(tmp_path, content):
    take_again(tmp_path / "o", 3, 9)
    (tmp_path / "o" / checkpoint_path(9)).write_bytes(content)
    assert check(seldom(), policy=TOLERANCE, openings=tmp_path / "o").verdict is Verdict.REJECT


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_an_opened_state_of_which_nothing_can_be_told_yet(tmp_path, content):
    take_again(tmp_path / "o", 3, 9)
    (tmp_path / "o" / checkpoint_path(9)).write_bytes(content)
    assert check(seldom(), policy=TOLERANCE, openings=tmp_path / "o").verdict is Verdict.INCONCLUSIVE


def test_regenerating_stops_where_it_leads_elsewhere(tmp_path):
    forger = Forger(run("seldom-forged", rule="tolerance", keep=2))
    forger.replace(0, root=forger.intervals[1].root)
    forger.seal(tmp_path / "p", known_key(1))
    with pytest.raises(IntegrityError, match="another state after step 3"):
        take_again(tmp_path / "o", 3, proof=tmp_path / "p")


@pytest.mark.parametrize(
    ("steps", "words"), [((4,), "4 is no boundary"), ((17,), "17 is no boundary"), ((), "no step")]
)
def test_regenerating_what_is_no_state(tmp_path, steps, words):
    with pytest.raises(UsageError, match=words):
        take_again(tmp_path / "o", *steps)


def test_what_is_there_and_is_another_state_is_taken_again(tmp_path):
    take_again(tmp_path / "o", 3, 9)
    (tmp_path / "o" / checkpoint_path(3)).write_bytes((tmp_path / "o" / checkpoint_path(9)).read_bytes())
    (tmp_path / "o" / checkpoint_path(9)).write_bytes(b"rubbish")
    take_again(tmp_path / "o", 3, 9)
    assert check(seldom(), policy=TOLERANCE, openings=tmp_path / "o").verdict is Verdict.ACCEPT


def test_a_file_of_the_verifiers_own_that_is_no_model_is_a_usage_error(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match="no model file"):
        check(given(), start=tmp_path / "m.pt")


def test_the_disk_of_the_verifier_is_not_the_provers_fault(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    proof = run("tolerant", rule="tolerance")
    monkeypatch.setattr("pol.replay.state.State.save", full)
    monkeypatch.setattr("pol.verifier.origins.independence", lambda *_: iter([passed("independence", "switched off")]))
    with pytest.raises(StoreError, match="this machine, not the proof"):
        check(proof, policy=TOLERANCE)


def test_the_first_state_is_regenerated_by_copying(tmp_path):
    take_again(tmp_path / "o", 0)
    name = checkpoint_path(0)
    assert (tmp_path / "o" / name).read_bytes() == (seldom() / name).read_bytes()


# -- first weights from elsewhere ------------------------------------------------------------------------------------


def fresh(seed):
    """Weights that the recipe's own build draws, outside of any recording."""
    path = factory().folder / f"origins-fresh-{seed}.safetensors"
    if not path.exists():
        torch.manual_seed(seed)
        save_file(Toy().build()["model"].state_dict(), path)
    return path


def test_fresh_weights_from_elsewhere_are_accepted_at_the_lowest_level():
    report = check(run("observed", start=fresh(11)), policy=LEAST)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert report.assurance.level == "observed"
    assert "cannot win a dispute" in report.assurance.statements[0]


def test_fresh_weights_from_elsewhere_are_not_what_the_default_policy_takes():
    says(check(run("observed", start=fresh(11))), Verdict.REJECT, 4, "assurance level 'observed'")


def test_trained_weights_are_no_fresh_start():
    says(check(run("stolen", start=model()), policy=LEAST), Verdict.REJECT, 5, "parameter/model.")


def test_trained_matrices_with_fresh_norms_are_no_fresh_start(tmp_path):
    """Only the laws of the drawn tensors can tell: everything else is as it is built."""
    drawn = load_file(fresh(11))
    stolen = {**drawn, "4.weight": 3 * drawn["4.weight"]}
    save_file(stolen, tmp_path / "s.safetensors")
    record(RECIPE, tmp_path / "p", key=known_key(1), every=EVERY, start=tmp_path / "s.safetensors",
           profile=Profile(threads=1), executor=InProcess())  # fmt: skip
    says(check(tmp_path / "p", policy=LEAST), Verdict.REJECT, 5, "parameter/model.4.weight")


def test_an_observed_start_is_replayed_from_its_file():
    report = check(run("observed", start=fresh(11)), policy=LEAST)
    assert [result.status for result in report.intervals] == ["passed"] * 5


# -- stopped and resumed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"init_seed": 7},
        {"start": model, "start_kind": "given"},
        {"start": model, "start_kind": "observed"},
        {"order": order},
        {"rule": "tolerance"},
    ],
    ids=["declared", "given", "observed", "order", "tolerance"],
)
def test_a_stopped_recording_goes_on_only_as_it_began(tmp_path, options):
    options = {k: v() if callable(v) else v for k, v in options.items()}
    common = {"key": known_key(1), "every": EVERY, "profile": Profile(threads=1), "executor": InProcess()}
    record(RECIPE, tmp_path / "p", **common, **options, until_genesis=True)
    with pytest.raises(UsageError, match="its genesis is signed and cannot change"):
        record(RECIPE, tmp_path / "p", **common, resume=True)
    proof = record(RECIPE, tmp_path / "p", **common, **options, resume=True)
    assert proof.attestation is not None


def test_an_order_cannot_change_while_it_is_recorded(tmp_path):
    common = {"key": known_key(1), "every": EVERY, "profile": Profile(threads=1), "executor": InProcess()}
    record(RECIPE, tmp_path / "p", **common, order=order(), until_genesis=True)
    with pytest.raises(UsageError, match="another order"):
        record(RECIPE, tmp_path / "p", **common, order=order()[::-1], resume=True)


def test_a_nonce_that_its_prover_knows_is_good_for_one_attestation(tmp_path):
    """States are sent after the challenge is known: signing again until it suits must not help."""
    asked = check(seldom(), policy=TOLERANCE, openings=tmp_path / "o")
    assert f"--attestation {asked.attestation}: " in asked.reason()
    take_again(tmp_path / "o", 3, 9)
    pinned = msgspec.structs.replace(TOLERANCE, attestation=asked.attestation)
    assert check(seldom(), policy=pinned, openings=tmp_path / "o").verdict is Verdict.ACCEPT
    other = msgspec.structs.replace(TOLERANCE, attestation="sha256:" + "0" * 64)
    says(check(seldom(), policy=other, openings=tmp_path / "o"), Verdict.REJECT, 1, "not the one that you named")


def test_a_machine_of_other_kernels_is_another_one_although_its_control_run_agrees(tmp_path):
    """A training that begins at rate 0 moves nothing in its control run."""

    class Elsewhere(LocalAuditor):
        def control(self, *args):
            found = super().control(*args)
            return msgspec.structs.replace(
                found, platform=msgspec.structs.replace(found.platform, capability="another one")
            )

    forger = Forger(factory().proof())
    forger.replace(1, loss="0.5")
    forger.seal(tmp_path / "forged", factory().keys["prover"])
    for kind, verdict in ((LocalAuditor, Verdict.REJECT), (Elsewhere, Verdict.INCONCLUSIVE)):
        with kind(RECIPE, executor=InProcess()) as auditor:
            report = pol.verify(tmp_path / "forged", auditor=auditor)
        assert report.verdict is verdict, report.reason()
    assert "capability: recorded" in report.reason()

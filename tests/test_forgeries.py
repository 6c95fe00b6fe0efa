"""Every attack is rejected, by the step that should; with that check off, the next one that can catch it does.

Here under rule ``exact``; ``test_forgeries_tolerance.py`` is the other half.
"""

import pickle
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file

import pol.prover
from cases import collected
from factory import EVERY, PLAIN, POLICIES, RECIPE, STEPS, check, factory, judge
from pol.attacks import data, files
from pol.attacks.attack import Attack
from pol.attacks.registry import FAMILIES, REGISTRY
from pol.errors import UsageError
from pol.profile import Profile
from pol.proof.policy import Challenge, Policy
from pol.proof.report import Verdict
from pol.replay.inprocess import InProcess
from switches import BROKEN, HONEST_PROOF, HONEST_TRAINING, REPLAY_ONLY, TRUE_TO_ORDER, switch_off

# -- what catches what ------------------------------------------------------------------------------------------

# For each attack: the step that catches it, a word of its reason, and the check to switch off before the next line;
# at last, why nothing else can catch it, so that the verdict is ACCEPT.
CASES = {
    "edited-checkpoint": [
        (3, "000000000006.safetensors: not the bytes that were attested", "files"),
        (3, "not the state that the log records after 6 steps", "states"),
        (7, "the checkpoint after 6 steps loads as another state", "audit"),
        REPLAY_ONLY,
    ],
    "edited-checkpoint-attested": [
        (3, "not the state that the log records after 6 steps", "states"),
        (7, "the checkpoint after 6 steps loads as another state", "audit"),
        REPLAY_ONLY,
    ],
    "edited-checkpoint-sealed": [
        (7, "First: interval 1 (steps 3–6): taking the steps again gives other values for the end state", "audit of 1"),
        (7, "First: interval 2 (steps 6–9)", "audit of 2"),
        REPLAY_ONLY,
    ],
    "swapped-checkpoints": [
        (7, "First: interval 1 (steps 3–6)", "audit of 1"),
        (7, "First: interval 2 (steps 6–9)", "audit of 2"),
        (7, "First: interval 3 (steps 9–12)", "audit of 3"),
        REPLAY_ONLY,
    ],
    "swapped-records": [
        (4, "they must cover every step once", "cover"),
        (7, "interval 1 (steps 6–9): taking the steps again gives other values for start and stop", "audit"),
        REPLAY_ONLY,
    ],
    "swapped-buffers": [
        (7, "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)", "audit of 4"),
        REPLAY_ONLY,
    ],
    "swapped-final": [
        (7, "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)", "audit of 4"),
        REPLAY_ONLY,
    ],
    "swapped-release": [
        (3, "4.weight differs: not the model that was trained", "released model"),
        HONEST_PROOF,
    ],
    "unlogged-tail": [
        (3, "not the state that the log records after 14 steps", "states"),
        (4, "the log has 4 intervals, the spec says 5", "cover"),
        BROKEN,
    ],
    "dropped-tail": [
        (4, "the log has 4 intervals, the spec says 5", "cover"),
        (4, "checkpoints [0, 3, 6, 9, 12] are kept", "kept states"),
        "every step that is left is honest",
    ],
    "shortened-spec": [
        (4, "the spec names 12 steps, but its epochs and batches make 14", "arithmetic"),
        (5, "the first state does not follow from the seed", "origin"),
        (7, "4 of 4 replayed intervals failed", "audit"),
        REPLAY_ONLY,
    ],
    "first-momentum": [
        (4, "000000000000.safetensors: other names, dtypes or shapes than the genesis declares", "kept states"),
        (5, "the first state does not follow from the seed", "origin"),
        (7, "interval 0 (steps 0–3)", "audit of 0"),
        REPLAY_ONLY,
    ],
    "later-momentum": [
        (7, "1 of 5 replayed intervals failed. First: interval 3 (steps 9–12)", "audit of 3"),
        REPLAY_ONLY,
    ],
    "state-rate": [
        (7, "interval 2 (steps 6–9): taking the steps again gives other values for the end state", "audit of 2"),
        (7, "the state holds hyperparameters that were declared static", "audit"),
        REPLAY_ONLY,
    ],
    "schedule-count": [
        (7, "First: interval 2 (steps 6–9): taking the steps again gives other values for schedules", "audit of 2"),
        REPLAY_ONLY,
    ],
    "configured-rate": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
    "declared-rate": [
        (5, "hyperparameters.initial_lr.float: 1.0 became 0.1", "origin"),
        (7, "the program declared something else than before", "audit"),
        REPLAY_ONLY,
    ],
    "interpolation": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
    "nan-bridge": [
        (4, "holds NaN", "finite"),
        (7, "5 of 5 replayed intervals failed", "audit"),
        REPLAY_ONLY,
    ],
    "no-intervals": [
        (3, "another last state than log.jsonl", "chain"),
        (4, "the log has 0 intervals, the spec says 5", "cover"),
        (4, "checkpoints [0] are kept, the spec says [0, 3, 6, 9, 12, 14]", "kept states"),
        (4, "there is no interval", "measured"),
        BROKEN,
    ],
    "no-checkpoints": [
        (3, "the proof has no checkpoint", "states"),
        (4, "checkpoints [] are kept, the spec says [0, 3, 6, 9, 12, 14]", "kept states"),
        BROKEN,
    ],
    "signed-again": [
        (5, "the first state does not follow from the seed", "origin"),
        (7, "other values for the end state and the batches", "audit"),
        REPLAY_ONLY,
    ],
    "attested-again": [
        (1, "attestation.json is signed by key", "signatures"),
        HONEST_PROOF,
    ],
    "stolen-start": [
        (5, "the first state does not follow from the seed", "origin"),
        (7, "interval 0 (steps 0–3): taking the steps again gives other values for the end state", "audit of 0"),
        REPLAY_ONLY,
    ],
    "zero-steps": [
        (2, "Expected `int` >= 1 - at `$.spec.steps`", "steps is positive"),
        (3, "another last state than log.jsonl", "chain"),
        (4, "the spec names 0 steps, but its epochs and batches make 14", "arithmetic"),
        (4, "there is no interval", "measured"),
        BROKEN,
    ],
    "other-order": [(7, "other values for the end state and the batches", "audit"), REPLAY_ONLY],
    "other-indices": [(7, "taking the steps again gives other values for the batches", "audit"), REPLAY_ONLY],
    "flipped-labels": [(7, "other values for the end state and the loss", "audit"), REPLAY_ONLY],
    "flipped-labels-committed": [
        (7, "step 0 used samples that are not the committed ones", "samples"),
        (7, "other values for the end state and the batches", "audit"),
        REPLAY_ONLY,
    ],
    "swapped-leaves": [
        (3, "dataset.bin does not have the root that genesis.json names", "chain"),
        (7, "step 0 used samples that are not the committed ones", "samples"),
        HONEST_PROOF,
    ],
    "half-precision": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
    "scaled-copy": [
        (7, "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)", "audit of 4"),
        REPLAY_ONLY,
    ],
    "infinite-buffers": [
        (7, "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)", "audit of 4"),
        REPLAY_ONLY,
    ],
    "other-counters": [
        (7, "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)", "audit of 4"),
        REPLAY_ONLY,
    ],
    "long-interval": [(7, "1 of 1 replayed intervals failed", "audit"), REPLAY_ONLY],
    "other-length": [
        (4, "the log has 5 intervals, the spec says 7", "cover"),
        (4, "the spec says [0, 2, 4, 6, 8, 10, …, 14]", "kept states"),
        (5, "the first state does not follow from the seed", "origin"),
        BROKEN,
    ],
    "constant-weights": [
        (7, "other values for the end state and the loss and the learning rates", "audit"),
        REPLAY_ONLY,
    ],
    "zero-rate": [(7, "other values for the end state and the loss and the learning rates", "audit"), REPLAY_ONLY],
    "drifting": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
    "tiny-rate": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
    "huge-decay": [(7, "140 of 140 replayed intervals failed", "audit"), REPLAY_ONLY],
    "random-checkpoints": [(7, "5 of 5 replayed intervals failed", "audit"), REPLAY_ONLY],
    "own-run-stolen-end": [
        (7, "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)", "audit of 4"),
        REPLAY_ONLY,
    ],
    "stolen-base": [
        (4, "level 'observed' (the first weights come from elsewhere), your policy demands 'self-seeded'", "assured"),
        (5, "parameter/model.1.bias is not what your recipe builds under every seed", "origin"),
        HONEST_TRAINING,
    ],
    "stolen-given": [(5, "0.weight differs: not the weights that you gave out", "origin"), HONEST_TRAINING],
    "noisy-start": [
        (4, "level 'observed' (the first weights come from elsewhere), your policy demands 'self-seeded'", "assured"),
        (5, "does not fit the law", "origin"),
        HONEST_TRAINING,
    ],
    "untested-tensors": [
        (4, "level 'observed' (the first weights come from elsewhere), your policy demands 'self-seeded'", "assured"),
        (5, "parameter/model.1.bias is not what your recipe builds under every seed", "origin"),
        HONEST_TRAINING,
    ],
    "matched-start": [
        (4, "level 'observed' (the first weights come from elsewhere), your policy demands 'self-seeded'", "assured"),
        (5, "the first values stand in the order of the last ones", "origin"),
        (7, "5 of 5 replayed intervals failed", "audit"),
        REPLAY_ONLY,
    ],
    "poisoned-sample": [
        (7, "interval 4 (steps 12–14): taking the steps again gives other values for the end state", "audit of 4"),
        REPLAY_ONLY,
    ],
    "brushed-sample": [
        (7, "interval 4 (steps 12–14): taking the steps again gives other values for the end state", "audit of 4"),
        REPLAY_ONLY,
    ],
    "chosen-order": [(4, "level 'observed' (the claimant chose the order of the data)", "assured"), TRUE_TO_ORDER],
    "repeated-order": [
        (4, "order.bin: epoch 0 names a sample twice", "order"),
        (4, "level 'observed' (the claimant chose the order of the data)", "assured"),
        TRUE_TO_ORDER,
    ],
    "subset-order": [
        (4, "order.bin: epoch 0 names a sample twice", "order"),
        (4, "level 'observed' (the claimant chose the order of the data)", "assured"),
        (7, "step 0 used samples that are not the committed ones", "samples"),  # each is told once, were it taken twice
        TRUE_TO_ORDER,
    ],
    "wrapped-order": [
        (4, "order.bin: an epoch is not 50 indices of 50 samples", "order"),
        (4, "level 'observed' (the claimant chose the order of the data)", "assured"),
        (7, "an epoch is not 50 indices of 50 samples", "audit"),
        REPLAY_ONLY,
    ],
    "pickled-checkpoint": [(2, "000000000009.safetensors: a header of", None), BROKEN],
    "named-code": [(4, "the run was registered for recipe __import__", "recipe"), HONEST_PROOF],
    "outside-name": [(3, "../outside: listed in the attestation, but missing", "files"), HONEST_PROOF],
    "linked-checkpoint": [(2, "000000000009.safetensors: not a regular file", None), BROKEN],
}  # fmt: skip
CASES |= collected("CASES")
LAYERS = [(name, number) for name, layers in CASES.items() for number in range(len(layers) - 1)]


AWAITS_KS = ("stolen-base", "noisy-start", "untested-tensors", "matched-start")
"""Attacks whose second layer is the test of first weights from elsewhere."""


def test_every_attack_has_a_case():
    assert set(CASES) == set(REGISTRY)
    assert {name for name, layers in CASES.items() if len(layers) == 1} == {
        name for name, attack in REGISTRY.items() if attack.survives
    }
    assert len(REGISTRY) == sum(map(len, FAMILIES.values())) >= 58


TRIVIAL = [*range(1, 10), *range(11, 14), *range(16, 21), 22]


def test_every_cheap_attack_of_the_study_is_made():
    made = {number for attack in REGISTRY.values() for number in attack.study}
    assert {f"T{number}" for number in TRIVIAL} | {f"I{number}" for number in range(1, 11)} <= made
    assert all(attack.study for attack in REGISTRY.values())


@pytest.mark.parametrize("keep", [1, 2])
def test_the_honest_proof_is_accepted(keep):
    report = check(factory().proof(keep))
    assert (report.verdict, report.caught_by, report.reason()) == (Verdict.ACCEPT, None, "")
    assert len(report.intervals) == -(-STEPS // EVERY)


@pytest.mark.parametrize(("name", "number"), LAYERS, ids=[f"{name}-{number}" for name, number in LAYERS])
def test_a_forgery_is_caught_where_expected(monkeypatch, name, number):
    for _, _, off in CASES[name][:number]:
        switch_off(off, monkeypatch)
    step, words, _ = CASES[name][number]
    report = judge(name)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, step), report.reason()
    assert words in report.reason()


UNSEEN = [name for name, layers in CASES.items() if layers[-1] is not BROKEN]


@pytest.mark.parametrize("name", UNSEEN)
def test_without_all_these_checks_nothing_else_catches_it(monkeypatch, name):
    *layers, why = CASES[name]
    for _, _, off in layers:
        switch_off(off, monkeypatch)
    report = judge(name)
    assert report.verdict is Verdict.ACCEPT, (report.reason(), why)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_forgery_with_seldom_kept_checkpoints_is_caught_by_the_same_step(name):
    report = judge(name, keep=2)
    expected = (Verdict.ACCEPT, None) if REGISTRY[name].survives else (Verdict.REJECT, CASES[name][0][0])
    assert (report.verdict, report.caught_by) == expected, report.reason()


# -- where a policy takes first weights or an order of the claimant's own -----------------------------------------

WEAK = Policy(assurance="observed", order="permutation")
ALLOWED = {
    "stolen-base": (5, "parameter/model.1.bias is not what your recipe builds under every seed"),
    "noisy-start": (5, "does not fit the law"),
    "untested-tensors": (5, "parameter/model.1.bias is not what your recipe builds under every seed"),
    "matched-start": (5, "the first values stand in the order of the last ones"),
    "repeated-order": (4, "order.bin: epoch 0 names a sample twice"),
    "subset-order": (4, "order.bin: epoch 0 names a sample twice"),
    "wrapped-order": (4, "order.bin: an epoch is not 50 indices of 50 samples"),
}


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("rule", POLICIES)
def test_a_policy_that_takes_weak_origins_has_other_checks(name, rule):
    policy = msgspec.structs.replace(POLICIES[rule], assurance="observed", order="permutation")
    step, words = ALLOWED[name]
    report = judge(name, rule=rule, policy=policy)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, step), report.reason()
    assert words in report.reason()


def test_an_order_of_the_forgers_choice_passes_where_the_policy_takes_permutations_and_the_report_says_so():
    """Documented: all data are genuine and every step was taken; only the order was chosen (attack study, A15)."""
    report = judge("chosen-order", policy=WEAK)
    assert (report.verdict, report.assurance.level) == (Verdict.ACCEPT, "observed")
    assert any("The claimant chose the order of the data" in statement for statement in report.assurance.statements)
    only = judge("chosen-order", policy=Policy(assurance="observed"))
    assert (only.verdict, only.caught_by) == (Verdict.REJECT, 4)


def test_weights_that_a_verifier_gave_out_are_compared_with_its_file_or_not_accepted():
    report = check(factory().forgery("stolen-given").path)
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert "name their file" in report.reason()


def test_no_code_out_of_a_proof_is_run():
    pickle.loads(files.PICKLE)
    eval(files.CODE)
    assert files.RUN == ["a pickle", "a name"]  # so the notes are taken, where the code runs
    files.RUN.clear()
    for name in ("pickled-checkpoint", "named-code"):
        assert judge(name).verdict is Verdict.REJECT
    assert files.RUN == []


# -- the tools of the forgers make honest proofs, if nobody lies ------------------------------------------------


def forge(tmp_path, make, forger="thief"):
    attack = Attack("test", "a test", forger, make)
    return attack.forge(factory().proof(), tmp_path / "out", factory().keys[forger], RECIPE, InProcess())


def reseal(workshop, out):
    workshop.open().seal(out, workshop.key)


def train(workshop, out):
    forger = workshop.begin()
    workshop.pretend(forger)  # overwritten by what is really taken
    workshop.train(forger)
    workshop.train(forger, start=6)
    forger.seal(out, workshop.key)


def record(workshop, out):
    workshop.record().seal(out, workshop.key)


@pytest.mark.parametrize(
    ("make", "forger", "gradients"), [(reseal, "prover", 0), (train, "thief", 6 + 14 + 8), (record, "thief", 6 + 14)]
)
def test_without_a_lie_the_forgers_proof_is_accepted(tmp_path, make, forger, gradients):
    forgery = forge(tmp_path, make, forger)
    report = check(forgery.path)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert report.claimant == factory().keys[forger].fingerprint
    assert forgery.cost.gradients == gradients
    assert forgery.cost.bytes == sum(path.stat().st_size for path in forgery.path.rglob("*") if path.is_file())
    assert forgery.cost.seconds > 0


def test_resealing_changes_no_byte_but_the_signature(tmp_path):
    forgery = forge(tmp_path, reseal, "prover")
    for path in factory().proof().rglob("*"):
        if path.is_file() and path.name != "attestation.json":
            assert (forgery.path / path.relative_to(factory().proof())).read_bytes() == path.read_bytes()


def weights(proof, step=STEPS):
    found = load_file(proof / "checkpoints" / f"{step:012d}.safetensors")
    return {key: tensor for key, tensor in found.items() if key.startswith("parameter/")}


def distance(a, b):
    return sum(float((a[key] - b[key]).square().sum()) for key in a) ** 0.5


def test_injected_momentum_ends_at_the_stolen_weights():
    stolen = weights(factory().proof())
    for name, step, left in (("later-momentum", 12, 0.1), ("first-momentum", 0, 0.8)):  # the first has but one shot
        path = factory().forgery(name).path
        assert distance(weights(path), stolen) < left * distance(weights(path, step), stolen)


@pytest.mark.parametrize("name", ["interpolation", "nan-bridge", "no-checkpoints"])
def test_bridges_cost_no_training(name):
    assert factory().forgery(name).cost.gradients == 6  # the control run of a genesis, twice
    if name != "no-checkpoints":
        stolen = weights(factory().proof())
        assert distance(weights(factory().forgery(name).path), stolen) == 0


# -- lies about the platform ------------------------------------------------------------------------------------


def false_control(workshop, out):
    forger = workshop.begin()
    control = msgspec.structs.replace(forger.genesis.control, root=forger.states[0].root())
    forger.genesis = msgspec.structs.replace(forger.genesis, control=control)
    workshop.first_state(forger)
    workshop.train(forger)
    forger.states[STEPS] = workshop.stolen()
    forger.seal(out, workshop.key)


def test_a_false_control_run_hides_no_lie_but_blurs_it(tmp_path):
    """Who lies about the platform cannot be told from who had another one: INCONCLUSIVE, never ACCEPT."""
    report = check(forge(tmp_path, false_control).path)
    assert (report.verdict, report.caught_by) == (Verdict.INCONCLUSIVE, None)
    assert "1 of 5 replayed intervals unable" in report.reason()
    assert "This machine does not give the recorded profile" in report.reason()


# -- few draws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swapped-final", "swapped-buffers", "later-momentum"])
def test_the_least_challenge_still_meets_lies_at_the_end(name):
    """The last window is always replayed, with the interval before it."""
    least = Policy(challenge=Challenge(strategy="uniform", uniform=0))
    report = check(factory().forgery(name).path, policy=least)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert set(report.draws.all()) < set(range(report.draws.intervals))


def test_the_least_challenge_can_miss_one_lie_in_the_middle_and_says_so(tmp_path):
    def lie(workshop, out):
        forger = workshop.record()
        forger.replace(2, loss="0.5")  # a lie in one record, steps 6 to 9, and in nothing that others start from
        forger.seal(out, workshop.key)

    forgery = forge(tmp_path, lie)
    least = Policy(challenge=Challenge(strategy="uniform", uniform=0))
    report = check(forgery.path, policy=least)
    assert report.verdict is Verdict.ACCEPT
    assert "the share that is forged is not bounded" in report.confidence
    report = check(forgery.path)
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 7)
    assert "First: interval 2 (steps 6–9): taking the steps again gives other values for the loss" in report.reason()


# -- attacks that do not apply ----------------------------------------------------------------------------------


NOT_HERE = {
    "edited-checkpoint": "two kept checkpoints",
    "swapped-checkpoints": "two kept checkpoints",
    "state-rate": "a kept checkpoint between",
    "schedule-count": "a kept checkpoint between",
    "huge-decay": "a recipe with a constructor argument weight_decay",
}


def test_an_attack_that_does_not_apply_says_so(tmp_path):
    plain = f"{Path(__file__).parent / 'linear.py'}:Linear"
    out = tmp_path / "plain"
    options = {"settings": {"num_epochs": 1}, "profile": Profile(threads=1), "executor": InProcess()}
    pol.prover.record(plain, out, key=factory().keys["prover"], every=1000, **options)  # no checkpoint in the middle
    for name, what in NOT_HERE.items():
        attack = REGISTRY[name]
        with pytest.raises(UsageError, match=f"this attack needs {what}"):
            attack.forge(out, tmp_path / name, factory().keys[attack.forger], plain, InProcess())


@pytest.mark.parametrize("name", ["infinite-buffers", "other-counters", "swapped-buffers"])
def test_an_attack_on_buffers_needs_some(tmp_path, name):
    with pytest.raises(UsageError, match="this attack needs a model with buffers"):
        REGISTRY[name].forge(
            factory().proof(recipe=PLAIN), tmp_path / name, factory().keys["prover"], PLAIN, InProcess()
        )


@pytest.mark.parametrize(
    ("item", "what"), [({"x": np.zeros(3, "uint8")}, "samples of fractions"), ({"x": 1.0}, "dicts with an array")]
)
def test_a_sample_that_cannot_be_changed_so_little_is_refused(item, what):
    with pytest.raises(UsageError, match=what):
        data._Touched([item], 0, data.BRUSH)[0]

"""Every attack under rule ``tolerance``, and for each of its checks a forgery that nothing else stops.

Two attacks pass, and that is what tolerance means: what other hardware could have given cannot be refuted.
"""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from cases import collected
from factory import PLAIN, POLICIES, RECIPE, STEPS, TOLERANCE, check, decision, factory, forge, judge, known_key
from pol.attacks import drawing, drift
from pol.attacks.forger import Forger
from pol.attacks.registry import REGISTRY
from pol.profile import Profile
from pol.proof.policy import Bounds, Limits
from pol.proof.report import Verdict
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.store import checkpoint_path
from pol.verifier import drift as budget
from pol.verifier import eight, tolerance

BEYOND = "tensors are beyond their limits"
LOSS = "taking the steps again gives other values for the loss"
NOT_DERIVED = "your policy demands 'self-seeded'"

# The step that catches each attack, and a word of its reason; None: it is accepted.
EXPECTED = {
    "edited-checkpoint": (3, "not the bytes that were attested"),
    "edited-checkpoint-attested": (3, "not the state that the log records"),
    "edited-checkpoint-sealed": (7, f"First: interval 1 (steps 3–6): 1 {BEYOND}; parameter/model.4.weight"),
    "swapped-checkpoints": (7, "num_batches_tracked differs, and what is not floating point is exact"),
    "swapped-records": (4, "they must cover every step once"),
    "swapped-buffers": (7, f"First: interval 4 (steps 12–14): 2 {BEYOND}; buffer/model.1.running_var"),
    "swapped-final": (7, f"First: interval 4 (steps 12–14): 1 {BEYOND}; parameter/model.4.weight"),
    "swapped-release": (3, "4.weight differs: not the model that was trained"),
    "unlogged-tail": (3, "not the state that the log records after 14 steps"),
    "dropped-tail": (4, "the log has 4 intervals, the spec says 5"),
    "shortened-spec": (4, "the spec names 12 steps, but its epochs and batches make 14"),
    "half-precision": (7, BEYOND),
    "scaled-copy": (7, f"First: interval 4 (steps 12–14): 5 {BEYOND}"),
    "infinite-buffers": (7, f"2 {BEYOND}; buffer/model.1.running_var by most: error nan"),
    "other-counters": (7, "num_batches_tracked differs, and what is not floating point is exact under every rule"),
    "long-interval": (4, "an interval has 14 steps, the policy allows 10"),
    "other-length": (4, "the log has 5 intervals, the spec says 7"),
    "first-momentum": (4, "other names, dtypes or shapes than the genesis declares"),
    "later-momentum": (7, f"First: interval 3 (steps 9–12): 10 {BEYOND}; optimizer/"),
    "state-rate": (7, "First: interval 2 (steps 6–9): the recorded end state has other entries than the replay gives"),
    "schedule-count": (5, "at step 7, where the schedule scheduler gives 0.088 (bounds.scheduled)"),
    "configured-rate": (7, "5 of 5 replayed intervals failed"),
    "declared-rate": (5, "hyperparameters.initial_lr.float: 1.0 became 0.1"),
    "constant-weights": (4, "no step changed any parameter"),
    "zero-rate": (4, "no step changed any parameter"),
    "drifting": None,
    "tiny-rate": (4, "the move per learning rate from step 3 to 6, in parameter group 0, is 2842.5"),
    "huge-decay": (4, "lr times weight_decay is 2.0 from step 0 on"),
    "random-checkpoints": (7, "5 of 5 replayed intervals failed"),
    "own-run-stolen-end": (7, f"First: interval 4 (steps 12–14): 12 {BEYOND}"),
    "interpolation": (7, "5 of 5 replayed intervals failed"),
    "nan-bridge": (4, "holds NaN"),
    "no-intervals": (3, "another last state than log.jsonl"),
    "no-checkpoints": (3, "the proof has no checkpoint"),
    "signed-again": (5, "the first state does not follow from the seed"),
    "attested-again": (1, "attestation.json is signed by key"),
    "stolen-start": (5, "the first state does not follow from the seed"),
    "zero-steps": (2, "Expected `int` >= 1 - at `$.spec.steps`"),
    "stolen-base": (4, NOT_DERIVED),
    "stolen-given": (5, "not the weights that you gave out"),
    "noisy-start": (4, NOT_DERIVED),
    "untested-tensors": (4, NOT_DERIVED),
    "matched-start": (4, NOT_DERIVED),
    "other-order": (7, "5 of 5 replayed intervals failed"),
    "other-indices": (7, "taking the steps again gives other values for the batches"),
    "flipped-labels": (7, "5 of 5 replayed intervals failed"),
    "flipped-labels-committed": (7, "step 0 used samples that are not the committed ones"),
    "swapped-leaves": (3, "dataset.bin does not have the root that genesis.json names"),
    "poisoned-sample": (7, "1 of 5 replayed intervals failed. First: interval 4 (steps 12–14)"),
    "brushed-sample": None,
    "chosen-order": (4, NOT_DERIVED),
    "repeated-order": (4, "order.bin: epoch 0 names a sample twice"),
    "subset-order": (4, "order.bin: epoch 0 names a sample twice"),
    "wrapped-order": (4, "order.bin: an epoch is not 50 indices of 50 samples"),
    "pickled-checkpoint": (2, "000000000009.safetensors: a header of"),
    "named-code": (4, "the run was registered for recipe __import__"),
    "outside-name": (3, "../outside: listed in the attestation, but missing"),
    "linked-checkpoint": (2, "000000000009.safetensors: not a regular file"),
}  # fmt: skip
EXPECTED |= collected("TOLERANCE")


def test_every_attack_is_here():
    assert set(EXPECTED) == set(REGISTRY)


@pytest.mark.parametrize("recipe", [RECIPE, PLAIN])
def test_the_honest_proof_is_accepted(recipe):
    report = check(factory().proof(rule="tolerance", recipe=recipe), recipe, policy=TOLERANCE)
    assert decision(report) == (Verdict.ACCEPT, None), report.reason()
    assert report.drift.bound < 0.01 * report.drift.distance


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if expected])
def test_a_forgery_is_caught_where_expected(name):
    step, words = EXPECTED[name]
    report = judge(name, rule="tolerance")
    assert decision(report) == (Verdict.REJECT, step), report.reason()
    assert words in report.reason()


def test_a_proof_of_one_rule_is_not_accepted_under_the_other():
    for made, asked in (("exact", "tolerance"), ("tolerance", "exact")):
        report = check(factory().proof(rule=made), policy=POLICIES[asked])
        assert decision(report) == (Verdict.REJECT, 4)
        assert f"the genesis fixes rule {made!r}, the policy demands {asked!r}" in report.reason()


# -- what passes, and how little it is worth ------------------------------------------------------------------------


def weights(proof, step=STEPS):
    found = load_file(proof / checkpoint_path(step))
    return {key: tensor.double() for key, tensor in found.items() if key.startswith("parameter/")}


def distance(a, b):
    return sum(float((a[key] - b[key]).square().sum()) for key in a) ** 0.5


def test_drift_within_the_limits_passes_and_goes_nowhere():
    """Documented (attack study, A18): the report says how far it can go, here a thousandth of the way to a theft."""
    report = judge("drifting", rule="tolerance")
    assert report.verdict is Verdict.ACCEPT
    assert all(0.5 < result.deviation.error / result.deviation.limit < 1 for result in report.intervals)
    path = factory().forgery("drifting", rule="tolerance").path
    stolen, first, last = weights(factory().proof(rule="tolerance")), weights(path, 0), weights(path)
    assert report.drift.bound < 0.01 * distance(first, last)
    assert report.drift.bound < 0.01 * distance(last, stolen)
    assert any("all limits together let a forger push" in statement for statement in report.assurance.statements)


def test_a_trifle_in_one_sample_passes_as_rounding():
    """Documented (attack study, T9): rounding moves weights by as much; rule exact sees it (step 7)."""
    report = judge("brushed-sample", rule="tolerance")
    assert report.verdict is Verdict.ACCEPT
    assert 0 < report.intervals[-1].deviation.relative < 1e-3
    assert judge("poisoned-sample", rule="tolerance").intervals[-1].deviation.relative > 1e-3


# -- one forgery for each check, which nothing else stops ------------------------------------------------------------

ANYTHING = Limits(relative=1e200, absolute=1e200, floor=0.0, loss=1e300, drift=1e300)
"""As good as no limit at all."""


def within_limits(bounds=None, **limits):
    return msgspec.structs.replace(
        TOLERANCE, limits=msgspec.structs.replace(ANYTHING, **limits), bounds=bounds or Bounds()
    )


# Limits under which only the last one stops it: with any other value of that one it would be accepted.
ALONE = {
    "relative": ("tiny-rate", {"absolute": 1.0, "loss": 1e-3}, {"relative": 1e-3}, 7, BEYOND),
    "absolute": ("huge-decay", {"relative": drift.LOOSE, "floor": 4.0}, {"absolute": 3e-5}, 7, BEYOND),
    "drift": ("huge-decay", {"relative": drift.LOOSE, "floor": 4.0}, {"drift": 0.01}, None, "all limits together are"),
    "rate times decay": (
        "huge-decay",
        {"relative": drift.LOOSE, "floor": 4.0},
        {"bounds": Bounds(rate_times_decay=0.1)},
        4,
        "lr times weight_decay is 2.0",
    ),
    "k": (
        "long-interval",
        {},
        {"bounds": Bounds(max_every=10)},
        4,
        "an interval has 14 steps",
    ),
}


@pytest.mark.parametrize("check_", ALONE)
def test_one_limit_alone_stops_it(check_, monkeypatch):
    name, loose, limit, step, words = ALONE[check_]
    # At a rate of almost 0 nearly every element stands still, which is another way to see such a run.
    monkeypatch.setattr(tolerance, "_moved_alone", lambda *_: False)
    without = judge(name, rule="tolerance", policy=within_limits(**loose))
    assert without.verdict is Verdict.ACCEPT, without.reason()
    report = judge(name, rule="tolerance", policy=within_limits(**{**loose, **limit}))
    refused = Verdict.REJECT if step else Verdict.INCONCLUSIVE  # such limits show nothing, for or against a proof
    assert decision(report) == (refused, step), report.reason()
    assert words in report.reason()


def test_without_the_absolute_bound_a_thief_has_the_very_weights():
    """What a purely relative limit of 1 % is worth; and with lr at almost 0, a purely absolute one."""
    for name, recipe in (("huge-decay", PLAIN), ("tiny-rate", RECIPE)):
        path = factory().forgery(name, rule="tolerance").path
        last = max(int(file.stem) for file in (path / "checkpoints").iterdir())
        assert distance(weights(path, last), weights(factory().proof(rule="tolerance", recipe=recipe))) == 0


@pytest.mark.parametrize(
    ("moved", "floor", "step"), [(3.0, 4.0, None), (3.0, 0.0, 7), (5.0, 4.0, 7), (5.0, 8.0, None)]
)  # half units in the last place of the norm
def test_the_floor_is_all_that_a_tensor_that_stands_still_may_move(tmp_path, moved, floor, step):
    def make(workshop, out):
        forger = workshop.begin(settings={"lr": 1e-30})

        def move(key, at, start, end):
            if key != "parameter/model.4.weight":
                return end
            end = end.clone()
            largest = end.abs().argmax()
            end.view(-1)[largest] += moved * 2.0**-24 * float(end.double().norm())
            return end

        drift.steered(workshop, forger, move)
        forger.seal(out, workshop.key)

    policy = within_limits(relative=1e-3, absolute=3e-5, floor=floor)
    report = check(forge(tmp_path, make, rule="tolerance").path, policy=policy)
    assert report.caught_by == step, report.reason()
    assert report.verdict is (Verdict.REJECT if step else Verdict.ACCEPT)


def test_what_is_not_floating_point_is_exact_under_any_limits(monkeypatch):
    report = judge("other-counters", rule="tolerance", policy=within_limits())
    assert decision(report) == (Verdict.REJECT, 7)
    assert "what is not floating point is exact under every rule" in report.reason()
    monkeypatch.setattr(tolerance, "FLOATING", (*tolerance.FLOATING, "I64"))
    assert judge("other-counters", rule="tolerance", policy=within_limits()).verdict is Verdict.ACCEPT


def test_an_error_that_is_no_number_is_beyond_any_limit(monkeypatch):
    report = judge("infinite-buffers", rule="tolerance", policy=within_limits())
    assert decision(report) == (Verdict.REJECT, 7)
    assert "error nan" in report.reason()
    monkeypatch.setattr(tolerance, "within", lambda found, limit: not found > limit)  # as the code of 2021 compares
    assert judge("infinite-buffers", rule="tolerance", policy=within_limits()).verdict is Verdict.ACCEPT


def test_the_loss_has_a_limit_of_its_own(tmp_path):
    def make(workshop, out):
        drawing.drifting(workshop, out.with_name("drifting"))
        forger = Forger(out.with_name("drifting"))
        forger.replace(2, loss=repr(0.9 * float(forger.intervals[2].loss)))
        forger.seal(out, workshop.key)

    path = forge(tmp_path, make, "thief", rule="tolerance").path
    report = check(path, policy=TOLERANCE)
    assert decision(report) == (Verdict.REJECT, 7)
    assert f"First: interval 2 (steps 6–9): {LOSS}" in report.reason()
    limits = msgspec.structs.replace(TOLERANCE.limits, loss=1e300)
    assert check(path, policy=msgspec.structs.replace(TOLERANCE, limits=limits)).verdict is Verdict.ACCEPT


def test_half_precision_is_refused(tmp_path, monkeypatch):
    """At that precision the last bit of a weight is within what must be allowed."""
    recipe = PLAIN.replace("Plain", "Halved")

    def make(workshop, out):
        forger = workshop.open()
        last = forger.states[forger.steps].tensors["parameter/model.0.weight"]
        smallest = last.view(-1).float().abs().argmin()
        last.view(-1).view(torch.int16)[smallest] += 1  # to the next number
        forger.seal(out, workshop.key)

    path = forge(tmp_path, make, rule="tolerance", recipe=recipe).path
    report = check(path, recipe, policy=TOLERANCE)
    assert decision(report) == (Verdict.REJECT, 4)
    assert "is BF16: rule tolerance refuses it" in report.reason()
    monkeypatch.setattr(eight, "SHAPE", tuple(f for f in eight.SHAPE if f is not tolerance.precise))
    report = check(path, recipe, policy=TOLERANCE)
    assert report.verdict is Verdict.ACCEPT, report.reason()
    assert report.intervals[-1].deviation.error > 0


def test_weights_that_stand_still_at_a_rate_above_zero_are_refused(tmp_path, monkeypatch):
    def make(workshop, out):
        forger = workshop.begin()
        workshop.pretend(forger)
        for interval in forger.intervals:
            forger.states[interval.stop] = forger.states[0]
        forger.seal(out, workshop.key)

    path = forge(tmp_path, make, "thief", rule="tolerance").path
    report = check(path, policy=TOLERANCE)
    assert decision(report) == (Verdict.REJECT, 4)
    assert "no step changed any parameter" in report.reason()
    still = msgspec.structs.replace(TOLERANCE, bounds=Bounds())
    report = check(path, policy=still)
    assert decision(report) == (Verdict.INCONCLUSIVE, None)
    assert "all limits together are inf times the way" in report.reason()
    monkeypatch.setattr(eight, "SHAPE", tuple(f for f in eight.SHAPE if f is not budget.beforehand))
    monkeypatch.setattr(budget, "afterwards", lambda _: iter(()))
    assert decision(check(path, policy=still)) == (Verdict.REJECT, 7)


SMALL = """
import torch
from plain import Plain
class Small(Plain):
    def build(self):
        parts = super().build()
        falling = torch.optim.lr_scheduler.LambdaLR(parts["optimizer"], lambda step: 1.0 if step < 10 else 1e-12)
        return {**parts, "scheduler": falling}
    def step(self, parts, batch):
        loss = super().step(parts, batch)
        parts.scheduler.step()
        return loss
"""


def test_weights_that_a_rate_of_almost_nothing_does_not_change_are_honest(tmp_path):
    """Schedules end in such rates; at k = 1 an interval is then one step that is rounded away."""
    (tmp_path / "plain.py").write_text(Path(PLAIN.rpartition(":")[0]).read_text())
    (tmp_path / "small.py").write_text(SMALL)
    recipe, out = f"{tmp_path / 'small.py'}:Small", tmp_path / "proof"
    options = {"every": 1, "keep": 1, "profile": Profile(threads=1), "executor": InProcess()}
    record(recipe, out, key=known_key(1), rule="tolerance", **options)
    assert distance(weights(out, STEPS - 1), weights(out)) == 0
    report = check(out, recipe, policy=TOLERANCE)
    assert report.verdict is Verdict.ACCEPT, report.reason()


def test_numbers_whose_squares_overflow_have_a_verdict(tmp_path):
    """Weights of 1e200, in double precision: the prover chooses what limits are computed from."""
    recipe = PLAIN.replace("Plain", "Doubled")

    def make(workshop, out):
        forger = workshop.open()
        for state in forger.states.values():
            state.tensors["parameter/model.0.weight"] *= 1e200
        forger.seal(out, workshop.key)

    report = check(forge(tmp_path, make, rule="tolerance", recipe=recipe).path, recipe, policy=TOLERANCE)
    assert report.verdict is Verdict.REJECT

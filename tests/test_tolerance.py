"""Rule tolerance, number by number: what a limit is, and which deviations are within."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from safetensors.numpy import save_file

from factory import EVERY, RECIPE, TOLERANCE, factory, known_key
from pol.auditor import LocalAuditor
from pol.checkpoint import Checkpoint
from pol.messages import Recorded
from pol.profile import Profile
from pol.proof.policy import EXACT, Limits, Policy, Reference
from pol.prover import record
from pol.replay.inprocess import InProcess
from pol.statetree import Entry
from pol.verifier import verify
from pol.verifier.replayed import Platform
from pol.verifier.tolerance import deviation, largest

LIMITS = Limits(relative=1e-3, absolute=1e-2, floor=4.0)
REFERENCE = Reference(calibration="sha256:" + "0" * 64, recipe="sha256:" + "0" * 64, l1=1.0, l2=2.0, linf=1.0, cos=1.0)


STILL = SimpleNamespace(length=lambda *_: 0.0)
"""Optimizers that carry nothing on."""


def tensor(size, dtype="F32"):
    return Entry("parameter", "model.w", dtype, [size])


def deviates(policy, *ends):
    return deviation(policy, *ends, STILL, 1, [])


# -- the limit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("move", "size", "norm", "expected"),
    [
        (1.0, 10**6, 0.0, 1e-3),  # the relative bound
        (100.0, 4, 0.0, 2e-2),  # the absolute one: 1e-2 · √4
        (0.0, 4, 2.0**24, 4.0),  # nothing moved: the floor alone, 4 · 2⁻²⁴ · 2²⁴
        (1.0, 10**6, 2.0**24, 4.001),
        (math.inf, 100, 0.0, 0.1),  # an unknown move: the absolute one
    ],
)
def test_known_limits(move, size, norm, expected):
    assert largest(LIMITS, tensor(size), move, norm) == pytest.approx(expected, rel=1e-12)


def test_the_floor_of_float64_is_finer():
    assert largest(LIMITS, tensor(4, "F64"), 0.0, 2.0**53) == pytest.approx(4.0)


@given(st.floats(0, 1e6), st.integers(1, 10**9), st.floats(0, 1e6))
def test_neither_bound_alone_is_the_limit(move, size, norm):
    """However far the replay moved, the absolute bound holds; however large the tensor, the relative one."""
    floor = 4 * 2.0**-24 * norm
    assert largest(LIMITS, tensor(size), move, norm) <= LIMITS.relative * move + floor
    assert largest(LIMITS, tensor(size), move, norm) <= LIMITS.absolute * math.sqrt(size) + floor


# -- deviations ------------------------------------------------------------------------------------------------------


def states(tmp_path, **changes):
    """Checkpoints before, replayed and recorded; ``changes`` are to the recorded one."""
    before = {
        "parameter/model.w": np.zeros(100, dtype=np.float32),
        "parameter/model.b": np.ones(4, dtype=np.float32),
        "buffer/model.mask": np.array([0, -np.inf], dtype=np.float32),
        "buffer/model.count": np.array([3], dtype=np.int64),
    }
    replayed = {**before, "parameter/model.w": np.full(100, 0.1, dtype=np.float32)}
    replayed["optimizer/o.model.w.momentum"] = np.full(100, 1.0, dtype=np.float32)
    replayed["buffer/model.count"] = np.array([4], dtype=np.int64)
    recorded = dict(replayed)
    for key, change in changes.items():
        full = key.replace("__", "/", 1).replace("__", ".")
        recorded[full] = change(recorded[full])
    found = []
    for name, tensors in (("before", before), ("replayed", replayed), ("recorded", recorded)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        found.append(Checkpoint.at(tmp_path / f"{name}.safetensors"))
    return found


def judged(tmp_path, limits=LIMITS, reference=None, **changes):
    policy = Policy(name="t", rule="tolerance", limits=limits, reference=reference)
    return deviates(policy, *states(tmp_path, **changes))


def test_equal_states_deviate_by_nothing(tmp_path):
    wrong, found = judged(tmp_path)
    assert wrong == ""
    assert (found.error, found.relative, found.normalised) == (0.0, 0.0, None)
    assert set(found.distances.values()) == {0.0}


# The replay moved model.w by 0.1 · √100 = 1, so 1e-3 is its limit; an error of e in each of 100 elements is 10 e.
@pytest.mark.parametrize(("error", "within"), [(0.9e-4, True), (1.1e-4, False)])
def test_the_relative_bound(tmp_path, error, within):
    wrong, found = judged(tmp_path, parameter__model__w=lambda w: w + np.float32(error))
    assert (wrong == "") == within
    assert found.tensor == "parameter/model.w"
    assert found.limit == pytest.approx(1e-3, rel=1e-3)
    assert found.error == pytest.approx(10 * error, rel=1e-3)
    assert found.relative == pytest.approx(10 * error, rel=1e-3)


@pytest.mark.parametrize(("error", "within"), [(0.9e-5, True), (1.1e-5, False)])
def test_the_absolute_bound(tmp_path, error, within):
    limits = Limits(relative=1.0, absolute=1e-5)
    wrong, _ = judged(tmp_path, limits, parameter__model__w=lambda w: w + np.float32(error))
    assert (wrong == "") == within


# model.b did not move: four half units in the last place of its norm 2 are 4.8e-7, for all four elements together.
@pytest.mark.parametrize(("error", "within"), [(2.0**-23, True), (2.0**-20, False)])
def test_the_floor_of_what_did_not_move(tmp_path, error, within):
    wrong, found = judged(tmp_path, parameter__model__b=lambda b: b + np.float32(error))
    assert (wrong == "") == within
    assert found.tensor == "parameter/model.b"


def test_without_a_floor_nothing_is_allowed_there(tmp_path):
    limits = Limits(relative=1e-3, absolute=1e-2, floor=0.0)
    wrong, _ = judged(tmp_path, limits, parameter__model__b=lambda b: b + np.float32(2.0**-23))
    assert "parameter/model.b by most" in wrong


def test_one_small_tensor_cannot_hide_behind_a_large_one(tmp_path):
    """Limits are per tensor: all parameters together are off by less than a thousandth of the move."""
    wrong, found = judged(tmp_path, parameter__model__b=lambda b: b + np.float32(3e-4))
    assert found.relative < 1e-3
    assert "1 tensors are beyond their limits; parameter/model.b" in wrong


def test_one_element_that_stands_still_cannot_hide_in_a_tensor_that_moves(tmp_path):
    """A weight of an input that is always zero, say: the error is a thousandth of what the tensor's limit allows."""
    before, replayed, _ = states(tmp_path)
    tensors = {key: np.concatenate(list(replayed.chunks(key))) for key in replayed.entries}
    tensors["parameter/model.w"][5] = 0.0  # as it was before
    save_file(tensors, tmp_path / "replayed.safetensors")
    policy = Policy(name="t", rule="tolerance", limits=LIMITS)
    for error, within in ((0.0, True), (1e-6, False)):
        tensors["parameter/model.w"][5] = error
        save_file(tensors, tmp_path / "recorded.safetensors")
        ends = (Checkpoint.at(tmp_path / f"{name}.safetensors") for name in ("replayed", "recorded"))
        wrong, _ = deviates(policy, before, *ends)
        assert (wrong == "") == within
        assert within or "elements that the replay leaves as they are" in wrong


def test_optimizer_state_has_limits_too(tmp_path):
    wrong, found = judged(tmp_path, optimizer__o__model__w__momentum=lambda m: m * 1.01)
    assert "optimizer/o.model.w.momentum" in wrong
    assert found.relative == 0.0  # of the parameters


@pytest.mark.parametrize("key", ["buffer__model__count"])
def test_whole_numbers_are_exact(tmp_path, key):
    wrong, found = judged(tmp_path, Limits(relative=1e9, absolute=1e9), **{key: lambda n: n + 1})
    assert "what is not floating point is exact" in wrong
    assert (found.error, found.relative) == (0.0, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_near(tmp_path, value):
    huge = Limits(relative=1e300, absolute=1e300)
    for key in ("parameter__model__w", "optimizer__o__model__w__momentum"):
        wrong, _ = judged(tmp_path, huge, **{key: lambda w: np.where(np.arange(100) == 5, np.float32(value), w)})
        assert "beyond their limits" in wrong


def test_equal_infinities_are_equal(tmp_path):
    assert judged(tmp_path)[0] == ""  # the mask holds one
    wrong, _ = judged(tmp_path, buffer__model__mask=lambda m: -m)
    assert "buffer/model.mask" in wrong


def test_other_entries_are_another_state(tmp_path):
    before, replayed, recorded = states(tmp_path)
    policy = Policy(name="t", rule="tolerance", limits=LIMITS)
    assert "other entries" in deviates(policy, before, replayed, before)[0]
    assert "other entries" in deviates(policy, before, before, recorded)[0]


def test_nothing_compared_is_nothing_accepted(tmp_path):
    save_file({"buffer/x": np.zeros(3, dtype=np.float32)}, tmp_path / "a.safetensors")
    one = Checkpoint.at(tmp_path / "a.safetensors")
    policy = Policy(name="t", rule="tolerance", limits=LIMITS)
    assert deviates(policy, one, one, one)[0] == "there is no parameter to compare"


@pytest.mark.parametrize(("share", "within"), [(1e-3, True), (1e-4, False)])
def test_a_share_of_the_reference_distance(tmp_path, share, within):
    """d_ref is 2, the error 1e-3."""
    limits = Limits(relative=1.0, absolute=1.0, reference=share)
    wrong, found = judged(tmp_path, limits, REFERENCE, parameter__model__w=lambda w: w + np.float32(1e-4))
    assert (wrong == "") == within
    assert found.distances == pytest.approx({"l1": 1e-2, "l2": 1e-3, "linf": 1e-4, "cos": 0}, rel=1e-3, abs=1e-6)
    assert found.normalised == pytest.approx({"l1": 1e-2, "l2": 5e-4, "linf": 1e-4, "cos": 0}, rel=1e-3, abs=1e-6)


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), st.floats(0, 100.0), st.floats(0, 2.0))
def test_tighter_limits_are_never_wider(relative, absolute, floor, shrink):
    loose, tight = (
        Limits(relative=relative * f, absolute=absolute * f, floor=floor * f) for f in (1.0, min(shrink, 1.0))
    )
    assert largest(tight, tensor(100), 3.0, 5.0) <= largest(loose, tensor(100), 3.0, 5.0)


def test_the_platform_decides_what_a_small_deviation_means():
    assert Platform(True, "").mismatch("x", "y").status == "failed"
    assert Platform(False, "").mismatch("x", "y").status == "unable"


@pytest.mark.parametrize(("rule", "verdict"), [("tolerance", "ACCEPT"), ("exact", "REJECT")])
def test_a_loss_that_differs_in_its_last_bit_beside_equal_states(rule, verdict):
    class Nudged(LocalAuditor):
        def replay(self, *args, **options):
            for event in super().replay(*args, **options):
                if isinstance(event, Recorded) and event.interval.loss is not None:
                    loss = repr(math.nextafter(float(event.interval.loss), math.inf))
                    event = structs.replace(event, interval=structs.replace(event.interval, loss=loss))
                yield event

    policy = TOLERANCE if rule == "tolerance" else EXACT
    with Nudged(RECIPE, executor=InProcess()) as auditor:
        report = verify(factory().proof(rule=rule), auditor=auditor, policy=policy)
    assert report.verdict == verdict, report.reason()


ADAM = RECIPE.replace("toy.py:Toy", "adam.py:Adam")


@pytest.mark.parametrize(("name", "why"), [("Adagrad", "torch.optim.adagrad.Adagrad"), ("Amsgrad", "amsgrad=True")])
def test_an_optimizer_whose_errors_are_not_bounded_is_not_decided(tmp_path, name, why):
    recipe = ADAM.replace("Adam", name)
    options = {"key": known_key(1), "every": EVERY, "profile": Profile(threads=1), "executor": InProcess()}
    record(recipe, tmp_path / "p", rule="tolerance", **options)
    named = ("torch.optim.adagrad.Adagrad", "torch.optim.adam.Adam")
    for optimizers, verdict in (((), "INCONCLUSIVE"), (named, "ACCEPT")):
        limits = structs.replace(TOLERANCE.limits, optimizers=optimizers)
        with LocalAuditor(recipe, executor=InProcess()) as auditor:
            report = verify(tmp_path / "p", auditor=auditor, policy=structs.replace(TOLERANCE, limits=limits))
        assert report.verdict == verdict, report.reason()
        assert verdict == "ACCEPT" or (why in report.reason() and "take the risk" in report.reason())


def test_the_absolute_bound_of_a_single_tensor():
    limits = structs.replace(LIMITS, relative=1.0, tensors={"parameter/model.w": 1e-5})
    assert largest(limits, tensor(100), 1.0, 0.0) == pytest.approx(1e-4)
    assert largest(limits, Entry("parameter", "model.b", "F32", [100]), 1.0, 0.0) == pytest.approx(1e-1)

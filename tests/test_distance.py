"""Distances: known answers, symmetry, any cut into chunks, and nothing that is not finite ever accepted."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pol import values
from pol.checkpoint import Checkpoint, compare
from pol.distance import METRICS, Accumulator, Distances, ratio, within
from pol.distance import compare as compare_pairs
from pol.errors import IntegrityError
from pol.replay.tensors import content

W = np.array([1.0, -2.0, 3.0, 4.0])


def between(*chunks):
    found = Accumulator()
    for a, b in chunks:
        found.add(a, b)
    return found.result()


def four(found):
    return found.l1, found.l2, found.linf, found.cos


# -- known answers ------------------------------------------------------------------------------------------------

KNOWN = {
    "equal": (W, W, (0, 0, 0, 0)),
    "3-4-5": ([0, 0, 0], [3, -4, 0], (7, 5, 4, 1)),
    "twice": (W, 2 * W, (10, math.sqrt(30), 4, 0)),
    "half": (W, W / 2, (5, math.sqrt(7.5), 2, 0)),
    "a hundredth": (W / 128, W, (10 * 127 / 128, math.sqrt(30) * 127 / 128, 4 * 127 / 128, 0)),
    "opposite": (W, -W, (20, 2 * math.sqrt(30), 8, 2)),
    "orthogonal": ([1, 0], [0, 1], (2, math.sqrt(2), 1, 1)),
    "45 degrees": ([1, 0], [1, 1], (1, 1, 1, 1 - math.sqrt(0.5))),
    "both zero": ([0.0, -0.0], [0.0, 0.0], (0, 0, 0, 0)),
    "one zero": ([0.0, 0.0], [3.0, 0.0], (3, 3, 3, 1)),
    "zero-d": (np.float64(2), np.float64(-1), (3, 3, 3, 2)),
    "empty": (np.zeros((0, 3)), np.zeros((0, 3)), (0, 0, 0, 0)),
    "two dimensions": ([[1, 2], [3, 4]], [[1, 2], [3, 6]], (2, 2, 2, 1 - 38 / math.sqrt(30 * 50))),
    "float16": (np.float16([1, 2]), np.float16([1, 4]), (2, 2, 2, 1 - 9 / math.sqrt(5 * 17))),
    "float16 near its limit": (np.float16([65504]), np.float16([-65504]), (131008, 131008, 131008, 2)),
    "int8 at its limits": (np.int8([-128]), np.int8([127]), (255, 255, 255, 2)),
    "uint8": (np.uint8([3, 5]), np.uint8([5, 3]), (4, math.sqrt(8), 2, 1 - 30 / 34)),
    "int64 at its limits": (np.int64([-(2**63)]), np.int64([2**62]), (3 * 2.0**62,) * 3 + (2,)),
    "booleans": (np.array([True, False]), np.array([False, False]), (1, 1, 1, 1)),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_answer(case):
    a, b, expected = KNOWN[case]
    assert four(between((a, b))) == pytest.approx(expected, rel=1e-15, abs=1e-16)


@pytest.mark.parametrize("case", KNOWN)
def test_symmetric_to_the_last_bit(case):
    a, b, _ = KNOWN[case]
    assert between((a, b)) == between((b, a))


@pytest.mark.parametrize("factor", [2, 0.5, 3, 0.01, 1e-30, 1e30, 1e-200, 1e200])
def test_cosine_does_not_see_scale(factor):
    """The code of 2021 gave −1 for (W, 2W) and −99 for (0.01 W, W)."""
    w = np.random.default_rng(0).normal(size=1000)
    assert 0 <= between((w, factor * w)).cos <= 1e-15
    assert between((w, -factor * w)).cos == pytest.approx(2, abs=1e-15)
    assert between((w, -factor * w)).cos <= 2


def test_cosine_of_close_vectors_is_not_rounding():
    w = np.array([1.0, 1.0, 0.0, 0.0])
    aside = np.array([0.0, 0.0, 1e-10, 0.0])
    assert between((w, w + aside)).cos == pytest.approx(0.5 * (1e-10 / math.sqrt(2)) ** 2, rel=1e-9, abs=0)
    assert between((w, w)).cos == 0


def test_float32_differences_are_taken_in_float64():
    a = np.float32([1e8, 1.0])
    b = np.float32([1.0, 1.0])
    assert between((a, b)).l1 == 99999999.0  # in float32: 1e8
    many = np.full(2**20, 0.1, dtype=np.float32)
    assert between((many, np.zeros_like(many))).l1 == pytest.approx(2**20 * float(np.float32(0.1)), rel=1e-14)


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e153, 5e-324])
def test_squares_neither_overflow_nor_vanish(size):
    found = between((np.array([3 * size, 0.0]), np.array([0.0, 4 * size])))
    assert four(found) == pytest.approx((7 * size, 5 * size, 4 * size, 1), rel=1e-15, abs=0)
    mixed = between((np.array([3 * size]), np.zeros(1)), (np.zeros(1), np.array([4 * size])))
    assert four(mixed) == pytest.approx(four(found), rel=1e-15, abs=0)


def test_far_apart_sizes_in_different_chunks():
    found = between((np.array([1e-200]), np.zeros(1)), (np.array([1e200]), np.zeros(1)), (np.zeros(1), np.zeros(1)))
    assert four(found) == (1e200, 1e200, 1e200, 1)


def test_a_distance_beyond_float64_is_infinite_and_never_accepted():
    large = np.array([1.7e308])
    found = between((large, -large))
    assert found.l1 == found.l2 == found.linf == math.inf
    assert math.isnan(found.cos)
    two = between((np.array([1.7e308, 1.7e308]), np.zeros(2)))  # only the sums are too large
    assert (two.l1, two.l2, two.linf, two.cos) == (math.inf, math.inf, 1.7e308, 1)
    assert not within(two.l2, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["a", "b", "both"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_makes_every_distance_nan(bad, where, dtype):
    a, b = np.ones(4, dtype=dtype), np.ones(4, dtype=dtype)
    for values_ in {"a": [a], "b": [b], "both": [a, b]}[where]:
        values_[2] = bad
    for chunks in ([(a, b), (W, W)], [(W, W), (a, b)]):
        found = between(*chunks)
        assert all(math.isnan(value) for value in four(found))
        assert not any(within(value, math.inf) for value in four(found))
        assert found.size == 8
        assert found.equal == (where == "both")


def test_a_signalling_nan_is_nan_without_a_warning():
    for data, dtype in ((b"\x81\x7f", "BF16"), (b"\x01\x7d", "F16"), (b"\x01\x00\xa0\x7f", "F32")):
        values_ = values.decode(data, dtype)
        assert math.isnan(between((values_, values_)).l2)


def test_chunks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        Accumulator().add(np.zeros(3), np.zeros(1))  # would be broadcast
    with pytest.raises(ValueError, match="cannot be compared"):
        Accumulator().add(np.zeros((2, 3)), np.zeros((3, 2)))


def test_equal_compares_bits():
    assert between((W, W.copy())).equal
    assert not between((np.array([0.0]), np.array([-0.0]))).equal
    assert not between((np.float32([1]), np.float64([1]))).equal
    assert not between((np.zeros(0, np.float32), np.zeros(0))).equal
    large = np.int64([2**62])
    one_off = between((large, large + 1))
    assert (one_off.l1, one_off.equal) == (0, False)  # float64 cannot tell them apart; whoever must, asks equal
    assert not between((W, W), (W, -W), (W, W)).equal


# -- properties ---------------------------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64).filter(lambda x: abs(x) < 1e300)
vectors = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30).map(lambda rows: np.array(rows).T)


@given(vectors, st.lists(st.integers(0, 30), max_size=4))
def test_any_cut_into_chunks_gives_the_same(pair, cuts):
    a, b = pair
    edges = [0, *sorted(min(cut, len(a)) for cut in cuts), len(a)]
    whole = between((a, b))
    parts = between(*((a[i:j], b[i:j]) for i, j in itertools.pairwise(edges)))
    assert parts.linf == whole.linf
    assert (parts.size, parts.equal) == (whole.size, whole.equal)
    assert (parts.l1, parts.l2) == pytest.approx((whole.l1, whole.l2), rel=1e-13, abs=1e-320)
    assert parts.cos == pytest.approx(whole.cos, rel=1e-6, abs=1e-14)


@given(vectors)
def test_bounds_and_symmetry(pair):
    a, b = pair
    found = between((a, b))
    assert found == between((b, a))
    assert 0 <= found.cos <= 2
    assert 0 <= found.linf <= found.l2 * (1 + 1e-15)
    assert found.l2 <= found.l1 * (1 + 1e-13)
    assert (found.linf == 0) == bool(np.array_equal(a, b))
    assert four(between((a, a))) == (0, 0, 0, 0)


@given(vectors)
def test_as_numpy_finds(pair):
    a, b = pair / 1e150
    found = between((a, b))
    assert found.l1 == pytest.approx(np.abs(a - b).sum(), rel=1e-13, abs=1e-320)
    scale = max(np.abs(a - b).max(), 1e-300)
    assert found.l2 == pytest.approx(np.linalg.norm((a - b) / scale) * scale, rel=1e-12, abs=1e-300)
    assert found.linf == np.abs(a - b).max()


def test_merged_tensors_are_the_total():
    rng = np.random.default_rng(1)
    tensors = {name: (rng.normal(size=50), rng.normal(size=50)) for name in "abc"}
    found = compare_pairs((name, [(a[:20], b[:20]), (a[20:], b[20:])]) for name, (a, b) in tensors.items())
    assert found.tensors.keys() == tensors.keys()
    for name, pair in tensors.items():
        assert four(found.tensors[name]) == pytest.approx(four(between(pair)), rel=1e-13, abs=0)
    a, b = (np.concatenate([pair[i] for pair in tensors.values()]) for i in (0, 1))
    assert four(found.total) == pytest.approx(four(between((a, b))), rel=1e-13, abs=0)
    assert found.total.size == 150
    cosine = 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert four(found.total) == pytest.approx(
        (np.abs(a - b).sum(), np.linalg.norm(a - b), np.abs(a - b).max(), cosine), rel=1e-12
    )


def test_one_bad_tensor_spoils_the_total():
    found = compare_pairs([("good", [(W, W)]), ("bad", [(W * math.nan, W)]), ("also good", [(W, W)])])
    assert math.isnan(found.total.l2)
    assert (found.tensors["good"].l2, found.tensors["also good"].l2) == (0, 0)


def test_nothing_compared_is_no_distance():
    with pytest.raises(ValueError, match="no tensor"):
        compare_pairs([])


# -- limits and ratios --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "limit", "accepted"),
    [
        (0.0, 0.0, True),
        (1.0, 1.0, True),
        (1.0000001, 1.0, False),
        (math.nan, 1.0, False),
        (math.nan, math.nan, False),
        (math.nan, math.inf, False),
        (math.inf, math.inf, False),
        (-math.inf, 1.0, False),
        (1.0, math.nan, False),
        (1.0, -1.0, False),
    ],
)
def test_within(distance, limit, accepted):
    assert within(distance, limit) is accepted


@pytest.mark.parametrize(
    ("distance", "by", "expected"),
    [
        (1.0, 2.0, 0.5),
        (0.0, 0.0, 0.0),
        (0.0, 2.0, 0.0),
        (1e-300, 0.0, math.inf),
        (math.inf, 0.0, math.inf),
        (math.inf, 2.0, math.inf),
        (1.0, math.inf, math.nan),
        (0.0, math.inf, math.nan),
        (1.0, math.nan, math.nan),
        (math.nan, 1.0, math.nan),
        (math.nan, 0.0, math.nan),
        (1.0, -1.0, math.nan),
    ],
)
def test_ratio(distance, by, expected):
    assert ratio(distance, by) == pytest.approx(expected, nan_ok=True)


def test_relative_and_normalised():
    start, end = np.zeros(4), W
    error, update = between((W + np.array([0, 0, 0, 0.5]), end)), between((end, start))
    found = error.relative(update)
    assert (found.l1, found.l2, found.linf) == pytest.approx((0.05, 0.5 / math.sqrt(30), 0.125))
    assert found.cos == error.cos  # the update is from zero: a cosine distance of 1
    share = error.normalised({"l1": 5.0, "l2": 0.0, "linf": math.inf, "cos": 1.0})
    assert (share.l1, share.l2) == (0.1, math.inf)
    assert math.isnan(share.linf)
    still = between((W, W))
    assert all(getattr(still.relative(still), name) == 0 for name in METRICS)
    assert isinstance(update, Distances)
    assert [update.metric(name) for name in METRICS] == list(four(update))


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Write tensors to a checkpoint file, by another program than ours."""
    from safetensors.torch import save_file

    def written(name, tensors):
        save_file(tensors, tmp_path / name)
        return Checkpoint.at(tmp_path / name)

    return written


def all_dtypes(scale):
    import torch

    base = scale * torch.arange(-3, 9).reshape(3, 4)
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    found = {f"buffer/{str(kind)[6:]}": base.to(kind) for kind in [*kinds, torch.int8]}
    return {**found, "buffer/uint8": base.abs().to(torch.uint8), "buffer/bool": base > 0}


def test_every_dtype_is_read_as_torch_reads_it(write, monkeypatch):
    monkeypatch.setattr(values, "CHUNK", 8)  # several chunks even here
    a, b = all_dtypes(1), all_dtypes(3)
    found = compare(write("a", a), write("b", b))
    assert found.tensors.keys() == a.keys()
    for key in a:
        difference = (a[key].double() - b[key].double()).flatten()
        one = found.tensors[key]
        assert one.l1 == difference.abs().sum().item(), key
        assert one.l2 == pytest.approx(difference.norm().item(), rel=1e-15), key
        assert (one.linf, one.size) == (difference.abs().max().item(), 12)
        assert one.equal == (key == "buffer/bool")
    assert found.total.size == 120
    assert compare(write("a", a), write("again", a)).total.equal


def test_values_are_those_of_the_state_that_was_written(write):
    import torch

    for tensor in (torch.randn(5).bfloat16(), torch.randn(2, 3).half(), torch.tensor(7), torch.tensor([True, False])):
        name = {"bfloat16": "BF16", "float16": "F16", "int64": "I64", "bool": "BOOL"}[str(tensor.dtype)[6:]]
        read = values.floats(values.decode(bytes(content(tensor)), name))
        assert read.tolist() == tensor.double().flatten().tolist()


def test_empty_and_zero_d_tensors_of_a_file(write):
    import torch

    tensors = {"parameter/scalar": torch.tensor(2.0), "buffer/empty": torch.zeros(0, 4)}
    other = {**tensors, "parameter/scalar": torch.tensor(5.0)}
    found = compare(write("a", tensors), write("b", other))
    assert four(found.total) == (3, 3, 3, 0)
    assert (found.tensors["buffer/empty"].size, found.tensors["buffer/empty"].equal) == (0, True)
    chosen = compare(write("a", tensors), write("b", other), lambda entry: entry.kind == "buffer")
    assert list(chosen.tensors) == ["buffer/empty"]


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "missing"])
def test_files_with_other_tensors_are_refused(write, change):
    import torch

    tensors = {"parameter/a": torch.zeros(2, 3), "parameter/b": torch.zeros(3)}
    other = {
        "name": {"parameter/a": torch.zeros(2, 3), "parameter/c": torch.zeros(3)},
        "shape": {**tensors, "parameter/a": torch.zeros(3, 2)},
        "dtype": {**tensors, "parameter/b": torch.zeros(3, dtype=torch.float64)},
        "missing": {"parameter/a": torch.zeros(2, 3)},
    }[change]
    for pair in ((tensors, other), (other, tensors)):
        with pytest.raises(IntegrityError, match="parameter/"):
            compare(write("a", pair[0]), write("b", pair[1]))


def test_no_wanted_tensor_is_refused(write):
    import torch

    file = write("a", {"parameter/a": torch.zeros(1)})
    with pytest.raises(IntegrityError, match="nothing to compare"):
        compare(file, file, lambda entry: entry.kind == "buffer")

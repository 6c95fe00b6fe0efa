"""Samples and batches: canonical bytes that nothing else has, and fetching that depends on nothing else."""

import hashlib
import hmac
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pol.digest import frame
from pol.errors import ReplayError, UsageError
from pol.order import epoch_order
from pol.replay import randomness
from pol.replay.data import BatchHasher, default_collate, encode_field, encode_item, fields, sample_leaf
from pol.replay.dataset import CHECKED, Untouched, check_leaves, write_leaves
from pol.replay.loader import Loader
from pol.replay.randomness import Streams

KEY = bytes(range(32))


# --- canonical bytes

SCALARS = (
    st.integers()
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5)
)
ARRAYS = st.builds(
    lambda values, dtype, shape: np.array(values, dtype=dtype).reshape(shape),
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
    st.sampled_from(["uint8", "int8", "int32", "int64", "float16", "float32", "float64", "bool"]),
    st.sampled_from([(4,), (2, 2), (4, 1), (1, 4), (1, 1, 4)]),
)
ITEMS = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "a.b", "[0]", ""]), inner, max_size=3)
    ),
    max_leaves=5,
)


def same(a, b):
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@given(SCALARS | ARRAYS, SCALARS | ARRAYS)
@settings(max_examples=300)
def test_fields_have_the_same_bytes_only_if_they_are_the_same(a, b):
    assert (encode_field(a, "x") == encode_field(b, "x")) == same(a, b)


@given(ITEMS)
@settings(max_examples=200)
def test_arrays_and_tensors_of_one_content_are_one_sample(item):
    def to_torch(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if isinstance(value, dict):
            return {key: to_torch(value[key]) for key in reversed(list(value))}
        return tuple(map(to_torch, value)) if isinstance(value, list) else value

    assert encode_item(item) == encode_item(to_torch(item))


def test_samples_that_differ_have_other_bytes():
    x = np.array([1, 2], dtype="int32")
    samples = [
        {"x": x}, {"y": x}, {"x": x, "y": 1}, {"x": x, "y": True}, {"x": x, "y": 1.0}, {"x": x, "y": "1"},
        {"x": x, "y": b"1"}, {"x": x.astype("int64")}, {"x": x[None]}, {"x": x.view("float32")}, {"x": x.view("uint8")},
        {"x": np.int32(1)}, {"x": np.array([1], dtype="int32")}, {"x": np.array([[1]], dtype="int32")}, {"x": 1},
        {"x": [1]}, {"x": [1, 2]}, {"x": 12}, {"x": {"0": 1}}, {"x[0]": 2}, x, 1, "1", b"1", {"x": ""}, {"x": b""},
        {"xx": ""}, {"x": "a", "y": "b"}, {"x": "ab", "y": ""}, {"x": 0.0}, {"x": -0.0},
        {"x": float("nan")}, {"x": float("inf")},
    ]  # fmt: skip
    assert len({encode_item(sample) for sample in samples}) == len(samples)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<f4").reshape(2, 3).T,
        np.arange(12, dtype="<i4")[::2],
        np.arange(6, dtype="<f8")[::-1],
        np.broadcast_to(np.float16(1), (3, 2)),
        np.zeros((0, 3), dtype="uint8"),
        np.float64(1.5),
        np.bool_(True),
    ],
)
def test_any_memory_layout_has_the_bytes_of_its_content(array):
    kind, shape, data = encode_field(array, "x")
    assert data == np.asarray(array).tobytes()
    assert shape == b"".join(n.to_bytes(8, "big") for n in np.shape(array))
    frozen = np.array(array)
    frozen.flags.writeable = False
    assert encode_field(frozen, "x") == (kind, shape, data)  # and no warning about read-only memory


def test_fields_are_named_by_their_path():
    item = {"b": [1, {"c": 2}], "a": (3,)}
    assert list(fields(item)) == [("a[0]", 3), ("b[0]", 1), ("b[1].c", 2)]
    assert list(fields(5)) == [("", 5)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {1}}, "field a is a set: samples and batches are"),
        ({"a": [None]}, r"field a\[0\] is a NoneType"),
        ({"a": {1: 2}}, "field a has the key 1: keys must be strings"),
        ({3: 1, "a": 2}, "the sample has the key 3"),
        (np.array(["text"]), "the sample is an array of <U4, which tensors do not have"),
        ({"a": np.array([{}])}, "field a is an array of object"),
        ({"a": np.array([1], dtype=">i4")}, "field a is an array of >i4"),
        ({"a": np.array([(1, 2)], dtype="i4,i4")}, "field a is an array of"),
        ({"a": 1j}, "field a is a complex"),
        ({"a": np.uint16(1)}, r"field a has dtype torch\.uint16"),
        ({"a": torch.eye(2).to_sparse()}, "field a is on cpu"),
    ],
)
def test_other_types_are_refused_by_name(value, message):
    with pytest.raises((UsageError, ReplayError), match=message):
        encode_item(value)


def test_a_leaf_is_what_the_format_says():
    item = {"y": 7, "x": np.array([1.0], dtype="<f4")}
    x = frame("x", b"F32", (1).to_bytes(8, "big"), b"\0\0\x80?")
    assert encode_item(item) == x + frame("y", b"int", b"", b"7")
    address = (3).to_bytes(8, "big")
    salt = hmac.digest(KEY, address, "sha256")
    leaf = hashlib.sha256(b"\0" + frame("pol/v1/sample", address, salt, encode_item(item))).digest()
    assert sample_leaf(item, 3, KEY) == leaf
    others = [sample_leaf(item, 4, KEY), sample_leaf(item, 3, bytes(32)), sample_leaf({**item, "y": 8}, 3, KEY)]
    assert len({leaf, *others}) == 4


def test_a_batch_digest_is_what_the_format_says():
    hasher = BatchHasher(KEY)
    hasher.update(5, {"x": "é"})
    data = "é".encode()
    expected = frame("pol/v1/batch", (5).to_bytes(8, "big")) + frame("x", b"str", b"", (2).to_bytes(8, "big")) + data
    assert hasher.digest() == "blake3:" + blake3(expected, key=KEY).hexdigest()


def test_everything_is_in_a_batch_digest():
    def digest(*updates, key=KEY):
        hasher = BatchHasher(key)
        for update in updates:
            hasher.update(*update)
        return hasher.digest()

    a, b = {"x": torch.tensor([1])}, {"x": torch.tensor([2])}
    found = [
        digest(), digest((0, a)), digest((1, a)), digest((0, b)), digest((0, a), (1, b)), digest((0, b), (1, a)),
        digest((0, a), (0, b)), digest((0, a), key=bytes(32)), digest((0, {"x": torch.tensor([1.0])})),
        digest((0, {"x": torch.tensor([[1]])})), digest((0, {"y": torch.tensor([1])})),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    hasher = BatchHasher(KEY)
    hasher.update(9, b)
    hasher.reset()
    hasher.update(0, a)
    assert hasher.digest() == digest((0, a))


# --- collation


def test_default_collation():
    items = [
        {"a": np.arange(3) + i, "n": np.float32(i), "t": torch.tensor([i]), "i": i, "f": i / 2, "b": bool(i),
         "s": str(i), "y": bytes([i]), "d": {"e": (i, [i])}} for i in range(2)
    ]  # fmt: skip
    batch = default_collate(items)
    assert torch.equal(batch["a"], torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert torch.equal(batch["n"], torch.tensor([0.0, 1.0]))
    assert torch.equal(batch["t"], torch.tensor([[0], [1]]))
    assert torch.equal(batch["i"], torch.tensor([0, 1]))
    assert torch.equal(batch["f"], torch.tensor([0.0, 0.5]))
    assert torch.equal(batch["b"], torch.tensor([False, True]))
    assert (batch["s"], batch["y"]) == (["0", "1"], [b"\0", b"\1"])
    assert torch.equal(batch["d"]["e"][1][0], torch.tensor([0, 1]))
    assert batch["i"].dtype is torch.int64


def test_collation_copies():
    """What a step does to its batch must not reach the dataset."""
    data = [{"x": np.zeros(2)}, {"x": torch.zeros(2, dtype=torch.float64).numpy()}]
    default_collate(data)["x"].add_(1)
    default_collate(data[:1])["x"].add_(1)
    assert not any(item["x"].any() for item in data)


# --- loaders

ITEMS_22 = [{"x": np.array([i, i + 0.5]), "i": i} for i in range(22)]


def quiet(item, rng):
    return {**item, "x": item["x"] + rng.normal(size=2)}


def loud(item, rng):
    return {**item, "x": item["x"] + np.random.rand() + random.random() + torch.rand(()).item() + rng.random()}


def sometimes(item, rng):
    return loud(item, rng) if item["i"] % 5 == 0 else item


def drawing(items):
    return {**default_collate(items), "noise": torch.rand(2) + random.random()}


def loader(transform=None, collate=None, size=4, drop_last=False, data=ITEMS_22, seed=KEY):
    return Loader(data, Streams(seed), size, drop_last, transform, collate)


def fetch(one, epoch, batch, on_item=None):
    """A batch, with the global generators somewhere else each time; they must be left there."""
    fetch.calls += 1
    random.seed(fetch.calls)
    np.random.seed(fetch.calls)
    torch.manual_seed(fetch.calls)
    caller = randomness.save()
    found = one.fetch(epoch, batch, caller, on_item)
    assert randomness.unchanged(caller)
    return {name: value.tolist() for name, value in found.items()}


fetch.calls = 0


@pytest.mark.parametrize("transform", [None, quiet, loud, sometimes])
@pytest.mark.parametrize("collate", [None, drawing])
@pytest.mark.parametrize("size", [1, 4, 30])
def test_the_quick_way_gives_what_setting_generators_for_each_sample_gives(transform, collate, size):
    quick = loader(transform, collate, size)
    batches = [(epoch, batch) for epoch in range(2) for batch in range(quick.num_batches)]
    expected = []
    for position in batches:
        each = loader(transform, collate, size)
        each._sets_each = True
        expected.append(fetch(each, *position))
    assert [fetch(quick, *position) for position in batches] == expected
    backwards = loader(transform, collate, size)
    assert [fetch(backwards, *position) for position in reversed(batches)] == expected[::-1]
    alone = [fetch(loader(transform, collate, size), *position) for position in batches]
    assert alone == expected
    assert quick._sets_each == (transform in (loud, sometimes))


@pytest.mark.parametrize("transform", [quiet, loud])
def test_randomness_differs_by_sample_epoch_and_seed(transform):
    noise = set()
    for seed in (KEY, bytes(32)):
        one = loader(transform, seed=seed)
        for epoch in range(2):
            for batch in range(one.num_batches):
                found = fetch(one, epoch, batch)
                noise |= {round(x[0] - i, 9) for x, i in zip(found["x"], found["i"], strict=True)}
    assert len(noise) == 88


def test_what_the_loader_learned_goes_on():
    one, other = loader(sometimes), loader(sometimes)
    one._sets_each = True
    other.continue_from(one)
    assert other._sets_each


@pytest.mark.parametrize(("samples", "size", "drop", "sizes"), [
    (22, 4, False, [4, 4, 4, 4, 4, 2]), (22, 4, True, [4] * 5), (22, 22, False, [22]), (22, 23, False, [22]),
    (22, 11, True, [11, 11]), (1, 1, False, [1]), (22, 23, True, []),
])  # fmt: skip
def test_batches_follow_the_order_of_the_epoch(samples, size, drop, sizes):
    one = loader(size=size, drop_last=drop, data=ITEMS_22[:samples])
    assert one.num_batches == len(sizes)
    found = [one.indices(1, batch) for batch in range(one.num_batches)]
    assert [len(indices) for indices in found] == sizes
    assert [index for indices in found for index in indices] == epoch_order(KEY, 1, samples).tolist()[: sum(sizes)]


@pytest.mark.parametrize("transform", [None, loud])
def test_items_are_told_as_the_dataset_returned_them(transform):
    def in_place(item, rng):
        item["x"] = item["x"] + 1  # of a copy that the dataset makes
        return transform(item, rng) if transform else item

    class Copies(list):
        def __getitem__(self, index):
            return dict(super().__getitem__(index))

    told = {}
    one = loader(in_place, data=Copies(ITEMS_22))
    fetch(one, 0, 0, lambda index, item: told.update({index: encode_item(item)}))
    assert list(told) == one.indices(0, 0)
    assert told == {index: encode_item(ITEMS_22[index]) for index in told}


# --- whole datasets


def built(data):
    return SimpleNamespace(loader=loader(data=data))


def test_leaves_are_written_in_order_and_compared(tmp_path):
    seen = []
    write_leaves(built(ITEMS_22), tmp_path / "leaves", KEY, seen.append)
    data = (tmp_path / "leaves").read_bytes()
    assert [data[i : i + 32] for i in range(0, len(data), 32)] == [
        sample_leaf(item, index, KEY) for index, item in enumerate(ITEMS_22)
    ]
    assert seen == list(range(1, 23))
    check_leaves(built(ITEMS_22), tmp_path / "leaves", KEY)
    for index in range(22):  # all of so few are compared
        other = [*ITEMS_22]
        other[index] = {**other[index], "i": -1}
        with pytest.raises(UsageError, match=rf"data\(\) is not deterministic: sample {index} "):
            check_leaves(built(other), tmp_path / "leaves", KEY)


def test_of_a_large_dataset_some_leaves_are_compared(tmp_path):
    asked = []

    class Large:
        def __len__(self):
            return 100_000

        def __getitem__(self, index):
            asked.append(index)
            return index

    leaves = bytearray(32 * 100_000)
    for index in (i * 99_999 // (CHECKED - 1) for i in range(CHECKED)):
        leaves[32 * index : 32 * index + 32] = sample_leaf(index, index, KEY)
    (tmp_path / "leaves").write_bytes(leaves)
    check_leaves(built(Large()), tmp_path / "leaves", KEY)
    assert len(asked) == CHECKED
    assert (asked[0], asked[-1]) == (99_999, 0)


def test_a_sample_that_is_changed_in_place_is_noticed():
    data = [{"x": np.zeros(2)} for _ in range(4)]
    untouched = Untouched()
    for index in (2, 0, 2):
        untouched.item(index, data[index])
    untouched.check(data)
    data[1]["x"] += 1  # not one that was noted
    untouched.check(data)
    data[2]["x"] += 1
    with pytest.raises(UsageError, match="changes sample 2 of data"):
        untouched.check(data)

"""States: their entries, roots and files; what a proof never holds."""

import math

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pol.errors import FormatError, IntegrityError, ReplayError
from pol.replay.state import State
from pol.replay.tensors import NAMES, content, content_digest, describe
from pol.replay.tree import flatten, unflatten
from pol.statetree import DTYPES, Entry, state_root


def example():
    return {
        "parameter/m.w": torch.arange(6.0).reshape(2, 3),
        "parameter/m.b": torch.tensor([1.0, -0.0]),
        "buffer/m.n": torch.tensor(3),
        "transient/m.t": torch.tensor([True, False]),
        "optimizer/o.m.w.exp_avg": torch.full((2, 3), 0.5, dtype=torch.bfloat16),
        "object/s.x": torch.tensor([1, 2], dtype=torch.int16),
        "value/s": torch.tensor(list(b"{}"), dtype=torch.uint8),
    }


# --- tensors


def test_every_dtype_of_the_format_has_a_name_and_a_size():
    assert set(NAMES.values()) == set(DTYPES)
    for dtype, name in NAMES.items():
        tensor = torch.zeros(3, dtype=dtype)
        assert describe("parameter", "x", tensor) == Entry("parameter", "x", name, [3])
        assert len(content(tensor)) == 3 * DTYPES[name] == describe("parameter", "x", tensor).num_bytes


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([1.0, -2.0]), "0000803f000000c0"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "803f"),
        (torch.tensor([1.0], dtype=torch.float16), "003c"),
        (torch.tensor([1.0], dtype=torch.float64), "000000000000f03f"),
        (torch.tensor([258]), "0201000000000000"),
        (torch.tensor([-2], dtype=torch.int16), "feff"),
        (torch.tensor([True, False]), "0100"),
        (torch.tensor(7, dtype=torch.uint8), "07"),
        (torch.empty(0, 3), ""),
        (torch.tensor([[1, 2], [3, 4]], dtype=torch.int8).t(), "01030204"),
        (torch.tensor([1, 2, 3, 4], dtype=torch.int8)[::2], "0103"),
        (torch.tensor([5], dtype=torch.int8).expand(3), "050505"),
        (torch.nn.Parameter(torch.tensor([1.0])), "0000803f"),
    ],
)
def test_content_is_row_major_and_little_endian(tensor, expected):
    assert bytes(content(tensor)).hex() == expected
    assert content_digest(tensor) == blake3(bytes.fromhex(expected)).digest()


def test_large_tensors_are_hashed_by_all_threads_to_the_same_digest():
    tensor = torch.arange(3 * 2**18, dtype=torch.float32)  # 3 MiB
    assert content_digest(tensor) == blake3(tensor.numpy().tobytes()).digest()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1, dtype=torch.complex64), r"w has dtype torch\.complex64, which format v1 does not have"),
        (torch.zeros(1, dtype=torch.float8_e5m2), r"w has dtype torch\.float8_e5m2"),
        (torch.zeros(1, dtype=torch.uint32), r"w has dtype torch\.uint32"),
        (torch.eye(2).to_sparse(), r"w is on cpu \(torch\.sparse_coo\)"),
        (torch.zeros(1, device="meta"), "w is on meta"),
    ],
)
def test_other_tensors_are_refused(tensor, message):
    with pytest.raises(ReplayError, match=message):
        describe("parameter", "w", tensor)


# --- roots


def test_the_root_has_a_known_answer():
    """Part of format v1: these values may never change."""
    root = State(example()).root()
    assert (root.state.digest, root.state.size) == (STATE, 7)
    assert (root.weights.digest, root.weights.size) == (WEIGHTS, 3)


STATE = "sha256:73fac8a68c0e9e5b65e7a70780ba4114c27140c63489d5054048644070f14da9"
WEIGHTS = "sha256:14ef23886545789d56e711976a21b4598dcdc28be5e71ca913254251933cd3b7"


@given(st.permutations(sorted(example())))
def test_the_root_does_not_depend_on_order(keys):
    tensors = example()
    assert State({key: tensors[key] for key in keys}).root() == State(tensors).root()


@pytest.mark.parametrize("key", sorted(example()))
@pytest.mark.parametrize("change", ["value", "dtype", "shape", "name", "kind", "absent"])
def test_everything_is_in_the_root(key, change):
    tensors = example()
    old = State(tensors).root()
    tensor = tensors.pop(key)
    kind, _, name = key.partition("/")
    if change == "value":
        flat = tensor.clone().reshape(-1).view(torch.uint8)
        flat[-1] ^= 1
        tensors[key] = flat.view(tensor.dtype).reshape(tensor.shape)
    elif change == "dtype":
        other = {1: torch.int8, 2: torch.float16, 4: torch.int32, 8: torch.float64}[tensor.element_size()]
        tensors[key] = tensor.view(other)  # the same bytes
    elif change == "shape":
        tensors[key] = tensor.unsqueeze(0)
    elif change == "name":
        tensors[f"{kind}/{name}2"] = tensor
    elif change == "kind":
        tensors[f"{'transient' if kind != 'transient' else 'object'}/{name}"] = tensor
    new = State(tensors).root()
    assert new.state != old.state
    assert (new.weights != old.weights) == (kind in ("parameter", "buffer"))


def test_negative_zero_is_another_state():
    assert State({"parameter/x": torch.tensor([0.0])}).root() != State({"parameter/x": torch.tensor([-0.0])}).root()


def test_duplicate_entries_are_refused():
    entry = Entry("parameter", "x", "F32", [1])
    with pytest.raises(FormatError, match="'parameter/x' appears twice"):
        state_root([(entry, bytes(32)), (entry, bytes(range(32)))])


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"), [("weights", "F32", [1]), ("parameter", "F8", [1]), ("parameter", "F32", [1] * 65)]
)
def test_unknown_kinds_dtypes_and_ranks_are_refused(kind, dtype, shape):
    with pytest.raises(ValueError, match="unknown kind"):
        Entry(kind, "x", dtype, shape)


# --- files


def test_files_give_the_state_back(tmp_path):
    tensors = example()
    tensors["buffer/strided"] = torch.arange(6.0).reshape(2, 3).t()
    tensors["buffer/view"] = tensors["parameter/m.w"][0]
    tensors["buffer/inside"] = tensors["parameter/m.w"].reshape(-1)[1:4]
    tensors["buffer/expanded"] = torch.ones(1).expand(5)
    tensors["buffer/empty"] = torch.empty(0, 2)
    tensors["buffer/special"] = torch.tensor([math.inf, -math.inf, 5e-324], dtype=torch.float64)
    state = State(tensors)
    state.save(tmp_path / "s.safetensors")
    again = State.load(tmp_path / "s.safetensors")
    assert again.root() == state.root()
    assert again.tensors.keys() == tensors.keys()
    state.save(tmp_path / "t.safetensors")
    again.save(tmp_path / "u.safetensors")
    files = {(tmp_path / f"{name}.safetensors").read_bytes() for name in "stu"}
    assert len(files) == 1  # the same bytes every time: a resumed recording has the same files


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 100, b"{}", (2**40).to_bytes(8, "little") + b"{}"])
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "s.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"s\.safetensors: not a checkpoint file"):
        State.load(tmp_path / "s.safetensors")


# --- values


@pytest.mark.parametrize("kind", ["parameter", "buffer", "transient", "optimizer", "object"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_is_refused_everywhere(kind, dtype):
    with pytest.raises(ReplayError, match=rf"^now: {kind} x has become NaN; the training diverged"):
        State({f"{kind}/x": torch.tensor([1.0, math.nan], dtype=dtype)}).check_finite("now")


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_are_for_buffers_and_objects(value):
    for kind in ("buffer", "transient", "object"):
        State({f"{kind}/x": torch.tensor([1.0, value])}).check_finite("now")
    for kind in ("parameter", "optimizer"):
        with pytest.raises(ReplayError, match=f"{kind} x has become infinite"):
            State({f"{kind}/x": torch.tensor([1.0, value])}).check_finite("now")


def test_infinities_of_both_signs_are_not_nan():
    """Their sum is."""
    State({"buffer/x": torch.tensor([math.inf, -math.inf])}).check_finite("now")


def test_large_finite_values_are_finite():
    """Their sum is not."""
    for kind in ("parameter", "optimizer", "buffer"):
        State({f"{kind}/x": torch.full((100,), 3e38)}).check_finite("now")
        State({f"{kind}/x": torch.full((100,), 60000.0, dtype=torch.float16)}).check_finite("now")


# --- plain values with tensors in them

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
TREES = st.recursive(
    LEAVES | st.lists(st.integers(-5, 5)).map(torch.tensor),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text("ab.", max_size=3) | st.integers(), inner)
    ),
    max_leaves=12,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b) and a is not b
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(TREES)
@settings(max_examples=200)
def test_trees_come_back(value):
    tensors = {}
    skeleton = flatten(value, "object/x", tensors)
    assert same(value, unflatten(skeleton, tensors))

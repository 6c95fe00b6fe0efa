"""Packed content: the same bytes again, any part of it, and nothing that only looks like it."""

import contextlib
import json
import os
import struct

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file

from pol import packing
from pol.container import Location, encode_header, parse_header, read_whole
from pol.errors import FormatError, IntegrityError
from pol.packing import BLOCK, LEAST, Packed
from pol.replay.state import State

RNG = np.random.default_rng(5)
NOISE = RNG.bytes(3 * BLOCK + 4096)


def packed(content, item):
    blocks = list(packing.pack(memoryview(content), item))
    data = packing.table([len(block) for block in blocks]) + b"".join(blocks)
    return data + packing.filling(len(data)), [len(block) for block in blocks]


def opened(data, size, item=4):
    return Packed(lambda begin, end: data[begin:end], len(data), size, item, "entry x")


def trained(count, dtype="<f4"):
    """Numbers as training leaves them: noise, of few magnitudes."""
    return np.random.default_rng(count).normal(size=count).astype(dtype).tobytes()


@pytest.mark.parametrize(
    ("content", "item"),
    [
        (trained(BLOCK // 2 + 100), 4),
        (trained(BLOCK // 4), 4),
        (trained(BLOCK // 8 + 1, "<f8"), 8),
        (trained(BLOCK // 2 + 3, "<f2"), 2),
        (bytes(2 * BLOCK), 8),
        (NOISE, 1),
        (NOISE, 4),
        (bytes(BLOCK) + NOISE, 4),
    ],
)
def test_content_comes_back_whole_and_in_parts(content, item):
    data, lengths = packed(content, item)
    found = opened(data, len(content), item)
    assert found.read(0, len(content)) == content
    for begin, end in [(0, 1), (7, 11), (BLOCK - 3, BLOCK), (BLOCK - 3, BLOCK + 5), (len(content) - 1, len(content))]:
        if end <= len(content):
            assert found.read(begin, end) == content[begin:end]
    assert len(data) % 8 == 0
    assert len(lengths) == -(-len(content) // BLOCK)


def test_what_is_noise_stays_as_it_is_and_exponents_shrink():
    assert packed(NOISE, 4)[1] == [BLOCK, BLOCK, BLOCK, 4096]
    data, _ = packed(trained(BLOCK), 4)
    assert len(data) < 0.85 * 4 * BLOCK


def frame(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def changed(data, number, block):
    """The same packed content with another block, and the table that goes with it."""
    count = len(opened(data, 2 * BLOCK)._ends) - 1
    lengths = list(struct.unpack_from(f"<{count}I", data))
    begin = 4 * count + sum(lengths[:number])
    rest = data[begin + lengths[number] : 4 * count + sum(lengths)]
    lengths[number] = len(block)
    found = struct.pack(f"<{count}I", *lengths) + data[4 * count : begin] + block + rest
    return found + packing.filling(len(found))


HUGE = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00"
"""A frame that says it holds an exabyte (RFC 8878, section 3.1.1.1)."""


def wide(power):
    """A megabyte of zeros as a frame whose window is 2 to the ``power`` (RFC 8878, section 3.1.1.1.2)."""
    head = b"\x28\xb5\x2f\xfd\x80" + bytes([(power - 10) << 3]) + BLOCK.to_bytes(4, "little")
    repeated = [(131072 << 3 | 1 << 1 | (number == 7)).to_bytes(3, "little") + b"\x00" for number in range(8)]
    return head + b"".join(repeated)


def test_a_frame_may_have_a_window_of_a_block():
    assert packing.unpack_block(wide(20), BLOCK, 4) == bytes(BLOCK)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (wide(21), "a window of 2097152 bytes"),
        (wide(27), "a window of"),
        (frame(bytes(BLOCK - 8)), "instead of"),
        (frame(bytes(BLOCK + 8)), "instead of"),
        (frame(bytes(BLOCK)) + b"x", "not packed content"),
        (frame(bytes(BLOCK)) + frame(b""), "not packed content"),
        (frame(bytes(BLOCK))[:-2], "not packed content"),
        (frame(bytes(BLOCK), write_content_size=False), "instead of"),
        (HUGE, "instead of"),
        (b"\x28\xb5\x2f\xfd", "not packed content"),
        (b"no frame", "not packed content"),
        (NOISE[: BLOCK + 8], "longer than its content"),
        (b"", "do not fill"),
    ],
)
def test_blocks_that_packing_does_not_give_are_refused(block, message):
    data, _ = packed(trained(BLOCK // 2), 4)
    good = opened(data, 2 * BLOCK).read(0, 2 * BLOCK)
    with pytest.raises(FormatError, match=message):
        assert opened(changed(data, 1, block), 2 * BLOCK).read(0, 2 * BLOCK) != good
    if "fill" not in message:
        assert opened(changed(data, 1, block), 2 * BLOCK).read(0, BLOCK) == good[:BLOCK]


@pytest.mark.parametrize("damage", [
    lambda data: data[:4],
    lambda data: data[:-8],
    lambda data: data + bytes(8),
    lambda data: data[:-1] + b"\x01",
    lambda data: bytes(8) + data[8:],
    lambda data: b"\xff" * 8 + data[8:],
])  # fmt: skip
def test_a_table_that_does_not_describe_the_blocks_is_refused(damage):
    count = next(n for n in range(BLOCK // 2 - 9, BLOCK // 2) if sum(packed(trained(n), 4)[1]) % 8)  # filled up
    data, _ = packed(trained(count), 4)
    opened(data, 4 * count)
    with pytest.raises(FormatError, match=r"fill|table"):
        opened(damage(data), 4 * count).read(0, 16)


def test_blocks_that_lie_outside_of_their_own_tensor_are_refused():
    """Two whole blocks, so that the end is a multiple of 8 and needs no filling, in a slot of fewer bytes."""
    data = packing.table([BLOCK, BLOCK]) + NOISE[: 2 * BLOCK]
    assert opened(data, 2 * BLOCK).read(0, 2 * BLOCK) == NOISE[: 2 * BLOCK]
    for stored in (8, 64, 8 + BLOCK, BLOCK, 2 * BLOCK):
        with pytest.raises(FormatError, match=f"do not fill {stored} bytes"):
            Packed(lambda begin, end: data[begin:end], stored, 2 * BLOCK, 4, "entry x")


def test_memory_that_does_not_keep_what_it_is_given_is_noticed(monkeypatch):
    monkeypatch.setattr(packing, "unpack_block", lambda data, length, item: bytes(length))
    with pytest.raises(FormatError, match="broken"):
        packed(trained(BLOCK // 4), 4)


# -- files ----------------------------------------------------------------------------------------------------------


def state():
    torch.manual_seed(0)
    return State({
        "parameter/m.w": torch.randn(300, 200), "parameter/m.t": torch.randn(150, 200).T,
        "parameter/m.b": torch.randn(5),
        "optimizer/o.m.w.exp": torch.zeros(40_001, dtype=torch.float64), "buffer/n": torch.arange(20_000),
        "buffer/bits": torch.rand(90_001) > 0.5, "buffer/bytes": torch.randint(0, 256, (100_001,), dtype=torch.uint8),
        "buffer/half": torch.randn(70_001).bfloat16(), "buffer/one": torch.tensor(1.5),
        "buffer/none": torch.empty(0, 3),
    })  # fmt: skip


def equal(a, b):
    assert a.tensors.keys() == b.tensors.keys()
    return all(a.tensors[k].dtype == b.tensors[k].dtype and torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


def test_a_state_comes_back_from_its_file(tmp_path):
    written = state()
    written.save(tmp_path / "a.safetensors")
    found = State.load(tmp_path / "a.safetensors")
    assert equal(found, written)
    assert found.root() == written.root()
    assert (tmp_path / "a.safetensors").stat().st_size < 0.7 * sum(t.nbytes for t in written.tensors.values())


def test_any_reader_of_safetensors_opens_the_file(tmp_path):
    written = state()
    written.save(tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["parameter/m.b"], written.tensors["parameter/m.b"])
    assert torch.equal(found["buffer/bytes"], written.tensors["buffer/bytes"])  # noise is as it is
    assert found["parameter/m.w"].dtype == torch.uint8


def test_no_changed_byte_gives_the_same_state(tmp_path):
    written, path = state(), tmp_path / "a.safetensors"
    written.save(path)
    data, root = path.read_bytes(), written.root()
    header = int.from_bytes(data[:8], "little")
    for place in [*range(0, 8 + header, 7), *RNG.integers(8 + header, len(data), 300).tolist(), len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with contextlib.suppress(IntegrityError):
            assert State.load(path).root() != root, place


def test_a_file_that_names_an_earlier_one(tmp_path):
    first, second = state(), state()
    first.save(tmp_path / "000000000000.safetensors")
    held = {"parameter/m.w": Location(0, "parameter/m.w"), "buffer/n": Location(0, "buffer/n")}
    second.save(tmp_path / "000000000010.safetensors", held)
    assert equal(State.load(tmp_path / "000000000010.safetensors"), first)
    (tmp_path / "000000000000.safetensors").unlink()
    with pytest.raises(IntegrityError, match="No such file"):
        State.load(tmp_path / "000000000010.safetensors")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (Location(0, "parameter/m.t"), "is not in the file"),  # another shape
        (Location(0, "parameter/other"), "is not in the file"),
        (Location(20, "parameter/m.w"), "later file"),
        (Location(10, "parameter/m.w"), "is not in the file"),  # itself
        (Location(5, "parameter/m.w"), "is not in the file"),  # where it is named only
    ],
)
def test_a_place_where_the_content_is_not_is_refused(tmp_path, held, message):
    state().save(tmp_path / "000000000000.safetensors")
    state().save(tmp_path / "000000000005.safetensors", {"parameter/m.w": Location(0, "parameter/m.w")})
    state().save(tmp_path / "000000000010.safetensors", {"parameter/m.w": held})
    with pytest.raises(IntegrityError, match=message):
        State.load(tmp_path / "000000000010.safetensors")


def header(**changes):
    """A header of one packed entry of 80,000 bytes, and of one that is elsewhere."""
    notes = {
        "buffer/a": {"dtype": "F32", "shape": [20000]},
        "buffer/b": {"dtype": "F32", "shape": [20000], "held": [0, "buffer/a"]},
    }
    slots = {"buffer/a": {"dtype": "U8", "shape": [4000], "data_offsets": [0, 4000]}}
    notes, slots = {**notes, **changes.get("notes", {})}, {**slots, **changes.get("slots", {})}
    found = {"__metadata__": {"pol": json.dumps(notes, separators=(",", ":")), **changes.get("metadata", {})}, **slots}
    return json.dumps(found, separators=(",", ":")).encode()


def test_the_header_of_the_cases_below_is_good():
    data = header()
    placed = parse_header(data, 8 + len(data) + 4000, "it")
    assert [(slot.entry.key, slot.packed, slot.held) for slot in placed] == [
        ("buffer/a", True, None), ("buffer/b", False, Location(0, "buffer/a")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"notes": {"buffer/c": {"dtype": "F32", "shape": [20000]}}}, "is not there"),
        ({"notes": {"buffer/a": {"dtype": "F32", "shape": [20000], "held": [0, "x"]}}}, "said to be elsewhere"),
        ({"notes": {"buffer/a": {"dtype": "F32", "shape": [LEAST // 4 - 1]}}}, "smaller than"),
        ({"notes": {"buffer/b": {"dtype": "F32", "shape": [2], "held": [0, "buffer/a"]}}}, "smaller than"),
        ({"notes": {"buffer/a": {"dtype": "F99", "shape": [20000]}}}, "dtype"),
        ({"notes": {"buffer/a": {"dtype": "F32", "shape": [2**40]}}}, "is packed into"),
        ({"notes": {"buffer/a": {"dtype": "F32", "shape": [20000], "by": "me"}}}, "by"),
        ({"notes": {"buffer/b": {"dtype": "F32", "shape": [20000], "held": [-1, "buffer/a"]}}}, "header"),
        ({"notes": {"buffer/b": {"dtype": "F32", "shape": [20000], "held": [0, "buffer/a", 1]}}}, "header"),
        ({"notes": {"nothing/a": {"dtype": "F32", "shape": [20000], "held": [0, "buffer/a"]}}}, "kind"),
        ({"slots": {"buffer/a": {"dtype": "I8", "shape": [4000], "data_offsets": [0, 4000]}}}, "U8 tensor"),
        ({"slots": {"buffer/a": {"dtype": "U8", "shape": [4, 1000], "data_offsets": [0, 4000]}}}, "U8 tensor"),
        ({"metadata": {"format": "pt"}}, "another order"),
    ],
)
def test_headers_that_are_not_what_they_say_are_refused(changes, message):
    data = header(**changes)
    with pytest.raises(FormatError, match=message):
        parse_header(data, 8 + len(data) + 4000, "it")


def test_a_header_without_a_note_has_no_metadata():
    slots = {"buffer/a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
    for metadata in ({}, {"pol": "{}"}):
        data = json.dumps({"__metadata__": metadata, **slots}, separators=(",", ":")).encode()
        with pytest.raises(FormatError, match="another order"):
            parse_header(data, 8 + len(data) + 4, "it")
    assert encode_header({}, {}) == b"{}"


def test_bytes_of_a_file_that_come_in_parts_and_that_are_not_there(tmp_path, monkeypatch):
    """One call of the system gives 2 GiB at most."""
    (tmp_path / "f").write_bytes(bytes(range(20)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 3), at))
    with (tmp_path / "f").open("rb") as file:
        assert read_whole(file.fileno(), 2, 13, "f") == bytes(range(2, 13))
        assert read_whole(file.fileno(), 2, 2, "f") == b""
        for begin, end in ((15, 21), (30, 31), (5, 4)):
            with pytest.raises(FormatError, match="f: "):
                read_whole(file.fileno(), begin, end, "f")

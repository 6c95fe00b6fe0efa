"""Digests of tensors on the device that trains them: bit-identical to those of the CPU.

Without a GPU the kernels run in Triton's interpreter, in a process of its own, where a tile takes some seconds.
"""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from benchmarks import device
from blake3 import blake3

from pol.errors import ReplayError
from pol.messages import Stepped
from pol.replay import copies, digests, ondevice
from pol.replay.attached import Attached
from pol.replay.copies import Copies
from pol.replay.state import State
from pol.replay.tensors import content_digest
from pol.replay.writer import Writer, checkpoint_name

CASES = json.loads((Path(__file__).parent / "data" / "blake3.json").read_text())["cases"]
"""The official test vectors."""

PAGES = Path(__file__).parents[1] / "docs" / "benchmarks"

TILE = ondevice.LANES * ondevice.CHUNK


def pattern(size, device="cpu"):
    """The input of the official vectors."""
    return torch.arange(251, dtype=torch.uint8).repeat(-(-max(1, size) // 251))[:size].to(device)


def awkward(device="cpu"):
    """Tensors of awkward sizes, types, strides and places in memory, by name."""
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (3 * TILE,), dtype=torch.uint8).to(device)
    floats = noise[: 2 * TILE].view(torch.float32).nan_to_num()
    return {
        "nothing": floats[:0],
        "a number": floats[5],
        "a few truths": noise[:7] > 100,
        "half of a word": noise[:2].view(torch.bfloat16),
        "three halves": noise[:6].view(torch.float16),
        "not at a word": noise[1 : 1 + 3 * 1024],
        "not at sixteen bytes": floats[1 : 1 + TILE // 4],
        "a tile": floats[: TILE // 4],
        "a tile and a byte": noise[: TILE + 1],
        "a tile less a byte": noise[: TILE - 1],
        "a tile and a chunk": noise[: TILE + 1024],
        "transposed": floats[: 64 * 96].reshape(64, 96).T,
        "every other": floats[: 2 * 301 : 2],
        "doubles": noise[: 8 * 515].view(torch.int64),
    }


with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux on x86-64")


def interpreted(code, **given):
    """What a program prints whose kernels run in Triton's interpreter."""
    program = "import json, sys, torch\nfrom pol.replay import ondevice\nfrom test_ondevice import *\n"
    program += "assert ondevice.available()\nondevice.blake3_chunks = None  # the CPU does not help\n" + code
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(given)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@with_triton
def test_the_official_vectors():
    found = interpreted(
        "sizes = json.loads(sys.argv[1])['sizes']\n"
        "print(json.dumps([d.hex() for d in ondevice.digests([pattern(size) for size in sizes])]))",
        sizes=[case["input_len"] for case in CASES],
    )
    assert found == [case["hash"][:64] for case in CASES]
    assert len(found) == 22


@pytest.mark.slow
@with_triton
def test_awkward_tensors():
    found = interpreted("print(json.dumps([d.hex() for d in ondevice.digests(list(awkward().values()))]))")
    assert dict(zip(awkward(), found, strict=True)) == {
        name: content_digest(tensor).hex() for name, tensor in awkward().items()
    }


@with_triton
def test_groups_of_several_tensors_and_of_one():
    """Neighbours are hashed together up to a size; what is larger stands alone."""
    sizes = [3000, 0, 5000, TILE + 5000, 1]
    found = interpreted(
        "ondevice.GROUP = 8000\n"
        "sizes = json.loads(sys.argv[1])['sizes']\n"
        "print(json.dumps([len(list(ondevice._groups(sizes))),"
        " *(d.hex() for d in ondevice.digests([pattern(size) for size in sizes[:-1]] + [pattern(4099)[1:]]))]))",
        sizes=sizes,
    )
    contents = [*(pattern(size).numpy() for size in sizes[:-1]), pattern(4099).numpy()[1:]]
    assert found == [3, *(blake3(content.tobytes()).hexdigest() for content in contents)]


def test_without_triton_the_cpu_hashes(monkeypatch):
    monkeypatch.setattr(ondevice, "available", lambda: False)
    tensors = list(awkward().values())
    assert ondevice.digests(tensors) == [content_digest(tensor) for tensor in tensors]


@with_triton
def test_where_the_kernels_cannot_be_built_the_cpu_hashes(monkeypatch):
    """Torch for GPUs brings Triton, but no compiler; that is no reason to end a training."""
    tries = []

    def fails(*_):
        tries.append(True)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(ondevice, "_hash", fails)
    monkeypatch.setattr(ondevice, "_failed", None)
    tensors = list(awkward().values())
    assert ondevice.available()
    with pytest.warns(UserWarning, match="the CPU does: RuntimeError: Failed to find C compiler"):
        assert ondevice.digests(tensors) == [content_digest(tensor) for tensor in tensors]
    assert ondevice.digests(tensors) == [content_digest(tensor) for tensor in tensors]
    assert len(tries) == 1


@with_triton
def test_without_memory_for_the_kernels_the_cpu_hashes_this_time(monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ondevice, "_hash", full)
    assert ondevice.digests([pattern(9)]) == [content_digest(pattern(9))]
    assert ondevice.available()


class There:
    """A tensor on a GPU, as far as anybody asks who has none."""

    is_cuda, device = True, torch.device("cuda:0")


def test_a_state_on_a_gpu_is_refused_at_every_boundary():
    """Its generators are in no state, and nobody could take its steps again."""
    attached = Attached({"model": torch.nn.Linear(2, 2)}, None, (), (), "derived", [])
    attached.state()
    attached.parts.capture = lambda: State({"parameter/model.weight": There()})
    with pytest.raises(ReplayError, match=r"model\.weight is on cuda:0: this version records trainings on the CPU"):
        attached.state()


def test_a_tensor_with_more_chunks_than_a_counter_holds_is_hashed_by_the_cpu(monkeypatch):
    monkeypatch.setattr(ondevice, "LARGEST", 8)
    monkeypatch.setattr(ondevice, "_hash", lambda *_: pytest.fail("hashed by a kernel"))
    assert ondevice.digests([pattern(9)]) == [blake3(pattern(9).numpy().tobytes()).digest()]


def test_no_tensors():
    assert ondevice.digests([]) == []


def test_every_chunk_and_every_pair_is_in_one_tile():
    """Of tensors of all sizes around those of tiles, with and without whole ones."""
    chunks = [1, 2, 127, 128, 129, 255, 256, 257, 1000]
    sizes = tuple(count * 1024 - less for count in chunks for less in (0, 1, 1023))
    aligned = tuple(number % 2 == 0 for number in range(len(sizes)))
    plan = ondevice._plan(sizes, aligned, torch.device("cpu"))
    found = {}
    for whole, tiles in ((True, plan.whole), (False, plan.ragged)):
        for message, first in zip(*map(torch.Tensor.tolist, tiles), strict=True):
            for chunk in range(first, min(first + ondevice.LANES, -(-sizes[message] // 1024))):
                assert found.setdefault((message, chunk), whole) is whole
            assert not whole or (aligned[message] and (first + ondevice.LANES) * 1024 <= sizes[message])
    assert len(found) == sum(-(-size // 1024) for size in sizes)
    assert plan.nodes[0] == len(found)
    for counts, pairs in plan.levels:
        seen = np.bincount(pairs.messages.numpy(), minlength=len(sizes))
        needed = [math.ceil(math.ceil(count / 2) / ondevice.LANES) if count > 1 else 0 for count in counts.tolist()]
        assert seen.tolist() == needed
    assert counts.max() == 2


def test_the_page_is_of_what_was_measured():
    measured = msgspec.json.decode((PAGES / "device.json").read_bytes(), type=device.Device)
    assert (PAGES / "device.md").read_text() == device.markdown(measured)
    rates = {one.what: one for one in measured.timed}
    assert rates["one tensor, by kernels"].rate > 200e9
    billion = rates["the same: all that a recording does at a boundary"]
    assert billion.bytes > 3 * 4 * 10**9
    assert billion.median < 0.1


# -- on a GPU ------------------------------------------------------------------------------------------------------

on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(params=[True, False], ids=["kernels", "pieces"])
def way(request, monkeypatch):
    """By kernels alone, or by the CPU from pieces."""
    if request.param:
        monkeypatch.setattr(ondevice, "blake3_chunks", None)
    else:
        monkeypatch.setattr(ondevice, "available", lambda: False)
        monkeypatch.setattr(ondevice, "PIECE", 1 << 16)


class TestOnAGPU:
    pytestmark = on_a_gpu

    @pytest.mark.usefixtures("way")
    def test_the_official_vectors(self):
        found = ondevice.digests([pattern(case["input_len"], "cuda") for case in CASES])
        assert [digest.hex() for digest in found] == [case["hash"][:64] for case in CASES]

    @pytest.mark.usefixtures("way")
    def test_awkward_tensors(self):
        tensors = awkward("cuda")
        found = dict(zip(tensors, ondevice.digests(list(tensors.values())), strict=True))
        assert found == {name: content_digest(tensor.cpu()) for name, tensor in tensors.items()}

    @pytest.mark.usefixtures("way")
    @pytest.mark.parametrize("size", [1 << 20, (1 << 28) + 12345, 3 << 28])
    def test_large_tensors(self, size):
        torch.manual_seed(size)
        tensor = torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")
        assert ondevice.digests([tensor]) == [content_digest(tensor.cpu())]

    def test_every_size_up_to_some_chunks(self):
        tensors = [pattern(size, "cuda") for size in range(9 * 1024)]
        assert ondevice.digests(tensors) == [content_digest(tensor.cpu()) for tensor in tensors]

    def test_a_state_there_has_the_root_that_it_has_here(self):
        there = some_state("cuda")
        assert there.root() == on_cpu(there).root()

    def test_whatever_becomes_of_it_its_bytes_are_found(self):
        found, there = digests.Digests(trust=True), some_state("cuda")
        for _ in range(6):
            assert found.of(there, kept=False) == on_cpu(there).digests()
            assert found.settled <= {"optimizer/o.step"}  # which is small, and here
            there.tensors["parameter/model.w"].data.add_(1)

    def test_what_no_proof_holds_is_refused(self):
        there = some_state("cuda")
        there.check_finite("after step 3")
        there.tensors["parameter/model.w"].data[3, 5] = torch.nan
        with pytest.raises(ReplayError, match=r"model\.w has become NaN"):
            there.check_finite("after step 3")

    @pytest.mark.parametrize("room", ["by a copy there", "without room", "room in pieces"])
    def test_copies_are_of_the_moment(self, monkeypatch, room):
        """The next step writes as soon as it may."""
        clone, asked = torch.Tensor.clone, []

        def third_time_refused(tensor, **given):
            asked.append(tensor)
            if room == "room in pieces" and len(asked) % 3 == 0:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return clone(tensor, **given)

        monkeypatch.setattr(torch.Tensor, "clone", third_time_refused)
        if room == "without room":
            monkeypatch.setattr(copies, "ROOM", 1e9)
        kept, there = Copies(), {str(n): torch.zeros(1 << 26, device="cuda") for n in range(4)}
        places = set()
        for value in range(5):
            for tensor in there.values():
                tensor.fill_(value)
            found, arrived = kept.of(there)
            for tensor in there.values():
                tensor.fill_(-1)
            arrived()
            assert all(bool((copy == value).all()) and copy.is_pinned() for copy in found.values())
            places.add(tuple(copy.data_ptr() for copy in found.values()))
        assert len(places) == 1  # filled anew
        assert len(asked) == {"by a copy there": 20, "without room": 0, "room in pieces": 15}[room]

    def test_a_checkpoint_has_its_root(self, tmp_path):
        there = some_state("cuda")
        root = there.root()
        with Writer(tmp_path, lambda _: None) as writer:
            there.contents = there.digests()
            writer.add(Stepped(step=1), 1, there)
            for tensor in there.tensors.values():
                tensor.zero_()
            writer.add(Stepped(step=2), 2, None)
        assert State.load(tmp_path / checkpoint_name(1)).root() == root

    def test_the_benchmark_runs(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr("sys.argv", ["device", "--quick", "--write", str(tmp_path)])
        device.main()
        assert "| one tensor, by kernels | 1 | 0.00419 GB |" in capsys.readouterr().out
        assert sorted(path.name for path in tmp_path.iterdir()) == ["device.json", "device.md"]

    def test_a_training_there_is_refused(self):
        """Its generators are in no state, and nobody could take its steps again."""
        model = torch.nn.Linear(2, 2).cuda()
        attached = Attached({"model": model}, None, (), (), "derived", [])
        with pytest.raises(ReplayError, match=r"model\.(weight|bias) is on cuda:0: this version records trainings on"):
            attached.state()


def some_state(device):
    torch.manual_seed(1)
    return State(
        {
            "parameter/model.w": torch.randn(300, 700, device=device),
            "parameter/model.b": torch.randn(7, device=device),
            "buffer/model.seen": torch.tensor(5, device=device),
            "transient/model.mask": torch.rand(9, 9, device=device).T > 0.5,
            "optimizer/o.step": torch.tensor(3.0),
            "optimizer/o.m": torch.randn(300, 700, dtype=torch.float64, device=device)[:, ::2],
        }
    )


def on_cpu(state):
    return State({key: tensor.cpu() for key, tensor in state.tensors.items()})

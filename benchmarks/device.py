"""Measure digests and copies of states on a GPU: ``python -m benchmarks.device --write docs/benchmarks``."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import msgspec
import torch

from pol.replay import ondevice
from pol.replay.copies import Copies
from pol.replay.digests import Digests
from pol.replay.state import State
from pol.replay.tensors import content_digest
from pol.statetree import state_root
from pol.version import __version__

ONE = 4 << 30
"""Bytes of the large tensor: far more than a cache of the device holds."""

REPEATED, SLOWLY, KEPT = 20, 3, 10
"""Repetitions; those of what takes a tenth of a second; those of copies."""

Shapes = dict[str, tuple[int, ...]]


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of something, on a host clock that waits for the device."""

    what: str
    bytes: int
    tensors: int
    median: float
    low: float
    high: float
    """Quartiles."""
    repetitions: int

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.median


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on one device."""

    command: str
    environment: dict[str, str]
    memory: int
    """Bytes that hashing the state of a billion parameters takes on the device, beside the state."""
    timed: list[Timed]


def gpt(layers: int, width: int, words: int, positions: int) -> Shapes:
    """Parameters of a GPT with tied embeddings."""
    found: Shapes = {"words": (words, width), "positions": (positions, width), "norm": (width,), "norm.bias": (width,)}
    for layer in range(layers):
        for name, wide, narrow in (("qkv", 3, 1), ("out", 1, 1), ("up", 4, 1), ("down", 1, 4)):
            found[f"{layer}.{name}"] = (wide * width, narrow * width)
            found[f"{layer}.{name}.bias"] = (wide * width,)
        for norm in ("norm1", "norm2"):
            found |= {f"{layer}.{norm}": (width,), f"{layer}.{norm}.bias": (width,)}
    return found


def adamw(shapes: Shapes, device: str) -> dict[str, torch.Tensor]:
    """A state of random numbers: parameters and both moments, as entries."""
    keys = ("parameter/model.{}", "optimizer/adamw.{}.exp_avg", "optimizer/adamw.{}.exp_avg_sq")
    return {key.format(name): torch.randn(shape, device=device) for name, shape in shapes.items() for key in keys}


def timed(what: str, tensors: list[torch.Tensor], work: Callable[[], object], repetitions: int) -> Timed:
    """The work is done twice before it counts."""
    found = []
    for repetition in range(repetitions + 2):
        torch.cuda.synchronize()
        began = perf_counter()
        work()
        torch.cuda.synchronize()
        if repetition >= 2:
            found.append(perf_counter() - began)
    return summed_up(what, tensors, found)


def summed_up(what: str, tensors: list[torch.Tensor], seconds: list[float]) -> Timed:
    """What was measured, of some repetitions."""
    low, middle, high = quantiles(seconds, n=4, method="inclusive")
    size = sum(tensor.nbytes for tensor in tensors)
    return Timed(
        what=what, bytes=size, tensors=len(tensors), median=middle, low=low, high=high, repetitions=len(seconds)
    )


def measure(command: str, one: int, shapes: Shapes) -> Device:
    """Everything, on the first device."""
    found = large(one)
    state = State(adamw(shapes, "cuda"))
    tensors = list(state.tensors.values())
    if state.root() != State({key: tensor.cpu() for key, tensor in state.tensors.items()}).root():
        raise SystemExit("the device's root is not that of the CPU")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ondevice.digests(tensors)
    memory = torch.cuda.max_memory_allocated() - before
    found.append(timed("state of a GPT under AdamW: digests", tensors, lambda: ondevice.digests(tensors), REPEATED))
    found.append(timed("the same: entries, digests and root", tensors, state.root, REPEATED))
    boundary = Digests(trust=True)

    def closed() -> None:
        contents = boundary.of(state, kept=False)
        state.check_finite("here", boundary.settled)
        state_root(contents)

    found.append(timed("the same: all that a recording does at a boundary", tensors, closed, REPEATED))
    small = [torch.randn(64, 64, 3, 3, device="cuda") for _ in range(175)]
    if ondevice.digests(small) != [content_digest(tensor) for tensor in small]:
        raise SystemExit("the device's digests are not those of the CPU")
    found.append(timed("175 tensors of 147 KB: digests", small, lambda: ondevice.digests(small), REPEATED))
    found += copied(state)
    return Device(command=command, environment=environment(), memory=memory, timed=found)


def large(size: int) -> list[Timed]:
    """One tensor, hashed in both ways, and copied."""
    one = torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")
    if not ondevice.digests([one]) == _by_cpu([one]) == [content_digest(one)]:
        raise SystemExit("the device's digest is not that of the CPU")
    other = torch.empty_like(one)
    return [
        timed("copied on the device", [one], lambda: other.copy_(one), REPEATED),
        timed("one tensor, by kernels", [one], lambda: ondevice.digests([one]), REPEATED),
        timed("one tensor, by the CPU, in pieces through pinned memory", [one], lambda: _by_cpu([one]), SLOWLY),
    ]


def copied(state: State) -> list[Timed]:
    """Until a kept state may change again, and until it is in the machine's memory."""
    copies, tensors = Copies(), list(state.tensors.values())
    found, arrived = copies.of(state.tensors)  # asks for the pinned memory, once in a recording
    arrived()
    if State(found).root() != state.root():
        raise SystemExit("the copy is not the state")

    def through() -> None:
        copies.of(state.tensors)[1]()

    returned = []
    for _ in range(KEPT):
        torch.cuda.synchronize()
        began = perf_counter()
        _, arrived = copies.of(state.tensors)
        torch.cuda.current_stream().synchronize()
        returned.append(perf_counter() - began)
        arrived()
    return [
        summed_up("the same state, kept: until the training may go on", tensors, returned),
        timed("the same: until it is in the machine's memory", tensors, through, KEPT),
    ]


def _by_cpu(tensors: list[torch.Tensor]) -> list[bytes]:
    available, ondevice.available = ondevice.available, lambda: False
    try:
        return ondevice.digests(tensors)
    finally:
        ondevice.available = available


def environment() -> dict[str, str]:
    """Where this ran."""
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "processors": f"{os.cpu_count()} cores",
        "pol": __version__,
        "torch": str(torch.__version__),
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def markdown(found: Device) -> str:
    """The page."""
    rows = [
        f"| {one.what} | {one.tensors:,} | {one.bytes / 1e9:.3g} GB | {1e3 * one.median:.3g} ms "
        f"({1e3 * one.low:.3g}–{1e3 * one.high:.3g}) | {one.rate / 1e9:,.0f} GB/s |"
        for one in found.timed
    ]
    return "\n".join(
        [
            "# States on a GPU",
            "",
            f"Made by `{found.command}`: {', '.join(f'{k} {v}' for k, v in found.environment.items())}. Medians and "
            "quartiles of host clocks that wait for the device. What is copied is also written, so it moves twice its "
            "bytes; hashing only reads. Digests, roots and copies were compared with the CPU's before they were timed.",
            "",
            "| | tensors | bytes | took | rate |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Beside the state, hashing that of the GPT takes {found.memory / 2**20:.0f} MiB on the device. A copy "
            "shows what its memory can do: what is hashed is read at about half of that, for BLAKE3 takes some 700 "
            "operations on integers for every 64 bytes.",
            "",
        ]
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write device.json and device.md there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a GPU, and a torch that was built for it")
    # 1.01 billion parameters.
    shapes = gpt(2, 64, 100, 16) if options.quick else gpt(18, 2048, 50304, 2048)
    command = shlex.join(["python", "-m", "benchmarks.device", *sys.argv[1:]])
    found = measure(command, 1 << 22 if options.quick else ONE, shapes)
    print(markdown(found))
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "device.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        (options.write / "device.md").write_text(markdown(found))


if __name__ == "__main__":
    main()

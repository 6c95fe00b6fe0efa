"""How fast a large tensor is hashed: by this package, by the library under it, and on one thread as others do.

A process of its own with the environment of a training process. Ways take turns; memory is touched before.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable

import msgspec
import torch
from blake3 import blake3

from benchmarks.result import Hashing, Spread
from pol.replay.tensors import content, content_digest

OURS, LIBRARY, ONE_THREAD, NEIGHBOUR = "this package", "blake3 package", "blake3, one thread", "SHA-256, one thread"
COPY, READ = "copy (memcpy)", "read (sum)"


def ways(tensor: torch.Tensor, threads: int) -> dict[str, Callable[[], object]]:
    """What is timed; each touches every byte once, and the copy writes as many."""
    room, data = torch.empty_like(tensor).copy_(tensor), content(tensor)
    return {
        OURS: lambda: content_digest(tensor),
        LIBRARY: lambda: blake3(data, max_threads=threads).digest(),
        ONE_THREAD: lambda: blake3(data, max_threads=1).digest(),
        NEIGHBOUR: lambda: hashlib.sha256(data).digest(),
        COPY: lambda: room.copy_(tensor),
        READ: tensor.sum,
    }


def rates(size: int, threads: int, repetitions: int) -> Hashing:
    """Bytes per second in each way."""
    tensor = torch.randn(size // 4, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[float]] = {}
    timed = ways(tensor, threads)
    for _ in range(repetitions + 1):
        for name, way in timed.items():
            started = time.perf_counter()
            way()
            found.setdefault(name, []).append(tensor.nbytes / (time.perf_counter() - started))
    return Hashing(
        size=tensor.nbytes,
        threads=threads,
        rates={name: Spread.of(values[1:]) for name, values in found.items()},  # the first one wakes threads
    )


def main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    found = rates(request["size"], request["threads"], request["repetitions"])
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()

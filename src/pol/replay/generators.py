"""Generators that a program attaches: torch's, numpy's and Python's, with their whole states made from bytes.

Full states are set, never seeds: with 2^32 seeds a prover could search for randomness that it likes.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import torch

from pol.errors import UsageError

MT_WORDS = 624
_TORCH_HEADER = 24  # seed u64, left i32, seeded i32, next u64 in torch's CPUGeneratorImplStateLegacy
_template = torch.Generator().manual_seed(0).get_state().numpy().copy()
assert _template.size == 5056 and _template[_TORCH_HEADER : _TORCH_HEADER + 8].sum() == 0  # word 0 is the seed

KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
PCG = ("PCG64", "PCG64DXSM")
SIZES = {"MT19937": 4 * MT_WORDS, **dict.fromkeys(PCG, 32), "Philox": 16, "SFC64": 32}
"""Bytes that make a state, by the algorithm."""


def words(data: bytes) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """A Mersenne Twister's words."""
    return np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)


def torch_state(data: bytes) -> torch.Tensor:
    """The state of a torch CPU generator."""
    state = _template.copy()
    state[_TORCH_HEADER : _TORCH_HEADER + 8 * MT_WORDS] = words(data).astype("<u8").view(np.uint8)
    return torch.from_numpy(state)


def python_state(data: bytes) -> tuple[int, tuple[int, ...], None]:
    """The state of Python's generator."""
    return 3, (*words(data).tolist(), MT_WORDS), None


def algorithm(generator: Any) -> str:
    """The name of the algorithm behind a generator, if its state can be set here.

    Raises:
        UsageError: it cannot; the message begins with what it is.
    """
    if isinstance(generator, random.Random) and type(generator) is not random.Random:
        raise UsageError(f"a {type(generator).__name__} is not Python's own generator: attach a random.Random")
    name = "MT19937"
    if isinstance(generator, np.random.Generator):
        name = type(generator.bit_generator).__name__
    elif isinstance(generator, np.random.RandomState):
        name = str(generator.get_state(legacy=False)["bit_generator"])
    elif isinstance(generator, torch.Generator) and generator.device.type != "cpu":
        raise UsageError(f"a generator on {generator.device}: this version has CPU generators")
    if name not in SIZES or (isinstance(generator, np.random.RandomState) and name != "MT19937"):
        raise UsageError(f"a numpy generator with {name}: this version sets the states of {', '.join(SIZES)}")
    return name


def size(generator: Any) -> int:
    """How many bytes make a state of this generator."""
    return SIZES[algorithm(generator)]


def put(generator: Any, data: bytes) -> None:
    """Set the whole state of a generator from ``size`` bytes."""
    if isinstance(generator, torch.Generator):
        generator.set_state(torch_state(data))
    elif isinstance(generator, random.Random):
        generator.setstate(python_state(data))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(("MT19937", words(data), MT_WORDS, 0, 0.0))
    else:
        generator.bit_generator.state = _numpy_state(algorithm(generator), data)


def _numpy_state(name: str, data: bytes) -> dict[str, Any]:
    if name == "MT19937":
        return {"bit_generator": name, "state": {"key": words(data), "pos": MT_WORDS}}
    state: dict[str, Any] = {"bit_generator": name, "has_uint32": 0, "uinteger": 0}
    if name in PCG:  # the increment of a linear congruential generator must be odd
        number, increment = (int.from_bytes(part, "little") for part in (data[:16], data[16:]))
        return {**state, "state": {"state": number, "inc": increment | 1}}
    numbers = np.array(struct.unpack(f"<{len(data) // 8}Q", data), dtype=np.uint64)
    if name == "SFC64":
        return {**state, "state": {"state": numbers}}
    inner = {"counter": np.zeros(4, dtype=np.uint64), "key": numbers}
    return {**state, "state": inner, "buffer": np.zeros(4, dtype=np.uint64), "buffer_pos": 4}


def save(generator: Any) -> Any:
    """Where a generator stands."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def load(generator: Any, state: Any) -> None:
    """Put a generator back where ``save`` found it."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)

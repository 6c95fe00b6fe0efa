"""Tensors as bytes: the dtype names of the format and row-major little-endian content."""

from __future__ import annotations

import sys

import torch

from pol.digest import blake3_bytes
from pol.errors import ReplayError
from pol.statetree import Entry

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TYPES = {name: dtype for dtype, name in NAMES.items()}

if sys.byteorder != "little":  # the format is little-endian, and torch tensors are in host order
    raise ImportError("this version runs on little-endian machines only")


def dtype_name(tensor: torch.Tensor, where: str) -> str:
    """The format's name of a tensor's dtype.

    Raises:
        ReplayError: the dtype has no name in format v1, or the tensor is not a plain CPU tensor.
    """
    if type(tensor).__module__.startswith("torch.distributed"):
        raise ReplayError(f"{where} is spread over several processes: this version records the training of one process")
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise ReplayError(f"{where} is on {tensor.device} ({tensor.layout}): this version records dense CPU tensors")
    if tensor.dtype not in NAMES:
        raise ReplayError(
            f"{where} has dtype {tensor.dtype}, which format v1 does not have ({', '.join(NAMES.values())})"
        )
    return NAMES[tensor.dtype]


def content(tensor: torch.Tensor) -> memoryview:
    """Row-major bytes of a tensor, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]  # numpy's stubs do not say that arrays are buffers


def describe(kind: str, name: str, tensor: torch.Tensor) -> Entry:
    """The entry of a tensor in a state."""
    return Entry(kind=kind, name=name, dtype=dtype_name(tensor, name), shape=list(tensor.shape))


def content_digest(tensor: torch.Tensor) -> bytes:
    """BLAKE3-256 of a tensor's bytes."""
    return blake3_bytes(content(tensor))


def short_digest(tensor: torch.Tensor) -> str:
    """A short digest of a tensor's values; one that has none on the CPU has the digest ``-``."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return "-"
    try:
        return content_digest(tensor.resolve_conj().resolve_neg()).hex()[:16]
    except (RuntimeError, TypeError, NotImplementedError):  # quantised, or a subclass without memory of its own
        return "-"

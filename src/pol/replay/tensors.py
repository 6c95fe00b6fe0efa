"""Tensors as bytes: the dtype names of the format and row-major little-endian content."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Collection, Mapping

import numpy as np
import torch

from pol.digest import blake3_bytes
from pol.errors import ReplayError
from pol.replay import ondevice
from pol.statetree import Entry

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TYPES = {name: dtype for dtype, name in NAMES.items()}

_NUMPY, _ALONE = (torch.float32, torch.float64), 1 << 18
"""Types and most elements of what numpy sums up faster than torch, which wakes further threads from 32,768 on: measured
below 1 MiB a half to a quarter of the time, on one thread."""

if sys.byteorder != "little":  # the format is little-endian, and torch tensors are in host order
    raise ImportError("this version runs on little-endian machines only")


def dtype_name(tensor: torch.Tensor, where: str, devices: tuple[str, ...] = ("cpu",)) -> str:
    """The format's name of a tensor's dtype.

    Raises:
        ReplayError: the dtype has no name in format v1, or the tensor is not a plain one on one of these devices.
    """
    if type(tensor).__module__.startswith("torch.distributed"):
        raise ReplayError(f"{where} is spread over several processes: this version records the training of one process")
    if tensor.device.type not in devices or tensor.layout is not torch.strided:
        raise ReplayError(f"{where} is on {tensor.device} ({tensor.layout}): this version records dense CPU tensors")
    if tensor.dtype not in NAMES:
        raise ReplayError(
            f"{where} has dtype {tensor.dtype}, which format v1 does not have ({', '.join(NAMES.values())})"
        )
    return NAMES[tensor.dtype]


def content(tensor: torch.Tensor) -> memoryview:
    """Row-major bytes of a tensor, without a copy where it is contiguous and in the machine's own memory."""
    tensor = tensor.detach()
    if tensor.is_cuda:
        tensor = tensor.cpu()
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    if tensor.dtype is torch.bfloat16:  # which numpy does not have
        tensor = tensor.view(torch.int16)
    flat = tensor.numpy().reshape(-1).view(np.uint8)  # here, and not in torch, which takes ten times as long
    return memoryview(flat)  # type: ignore[arg-type]  # numpy's stubs do not say that arrays are buffers


def describe(kind: str, name: str, tensor: torch.Tensor) -> Entry:
    """The entry of a tensor in a state."""
    return _entry(kind, name, dtype_name(tensor, name, ("cpu", "cuda")), tensor.shape)


@functools.lru_cache(maxsize=1 << 16)  # the same entries at every boundary, of half a kilobyte each
def _entry(kind: str, name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    return Entry(kind=kind, name=name, dtype=dtype, shape=list(shape))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a sum over all values is finite: then each of them is. It may also be infinite because they are large."""
    tensor = tensor.detach()
    if tensor.dtype in _NUMPY and tensor.numel() <= _ALONE and not tensor.is_cuda:
        values = tensor.numpy()
        return math.isfinite(np.vdot(values, values))
    return math.isfinite(tensor.sum())


def device_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Keys of those tensors on a GPU whose sums are all finite: one answer is waited for, and not one for each."""
    found = []
    for keys in _on_devices({key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()}):
        sums = torch.stack([tensors[key].detach().sum().double() for key in keys])
        found += [key for key, finite in zip(keys, sums.isfinite().tolist(), strict=True) if finite]
    return found


def content_digest(tensor: torch.Tensor) -> bytes:
    """BLAKE3-256 of a tensor's bytes."""
    return blake3_bytes(content(tensor))


def device_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """BLAKE3-256 of the bytes of those tensors that lie on a GPU, by their keys: made there, all at a time."""
    found: dict[str, bytes] = {}
    for keys in _on_devices(tensors):
        found.update(zip(keys, ondevice.digests([tensors[key] for key in keys]), strict=True))
    return found


def _on_devices(tensors: Mapping[str, torch.Tensor]) -> Collection[list[str]]:
    """The keys of tensors on GPUs, for each of these."""
    found: dict[torch.device, list[str]] = {}
    for key, tensor in tensors.items():
        if tensor.is_cuda:
            found.setdefault(tensor.device, []).append(key)
    return found.values()


def short_digest(tensor: torch.Tensor) -> str:
    """A short digest of a tensor's values; one that has none on the CPU has the digest ``-``."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return "-"
    try:
        return content_digest(tensor.resolve_conj().resolve_neg()).hex()[:16]
    except (RuntimeError, TypeError, NotImplementedError):  # quantised, or a subclass without memory of its own
        return "-"

"""Nested plain values with tensors in them, as JSON plus named tensors: for attached objects' ``state_dict``."""

from __future__ import annotations

from typing import Any

import torch

from pol import canonical
from pol.errors import FormatError, IntegrityError

MAX_VALUE = 64 * 2**20
"""Largest canonical-JSON entry of a state: 64 MiB, room for 10^5 parameters with some scalars each."""


def flatten(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain JSON in which each tensor is replaced by its name; the tensors go into ``tensors``.

    Raises:
        FormatError: a value that is neither plain nor a tensor, with its path.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        pairs = [[canonical.tag(key, path), flatten(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {"pairs": pairs}
    if isinstance(value, list | tuple):
        items = [flatten(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    return {"plain": canonical.tag(value, path)}


def unflatten(skeleton: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of ``flatten``; tensors are cloned.

    Raises:
        IntegrityError: the JSON is not one of ours, or names a tensor that is not there.
    """
    if not isinstance(skeleton, dict) or len(skeleton) != 1:
        raise IntegrityError("attached object's state: not a tree of plain values")
    ((kind, inner),) = skeleton.items()
    if kind == "plain":
        return canonical.untag(inner, "attached object's state")
    if kind == "tensor" and isinstance(inner, str) and inner in tensors:
        return tensors[inner].clone()
    if kind == "pairs" and isinstance(inner, list):
        return {canonical.untag(key, "key"): unflatten(item, tensors) for key, item in inner}
    if kind in ("list", "tuple") and isinstance(inner, list):
        items = [unflatten(item, tensors) for item in inner]
        return tuple(items) if kind == "tuple" else items
    raise IntegrityError(f"attached object's state: unknown or missing {kind!r}")


def add_value(part: str, value: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Add plain JSON to a state, as the entry ``value/<part>``."""
    data = bytearray(canonical.encode(value))
    tensors[f"value/{part}"] = torch.frombuffer(data, dtype=torch.uint8)


def pop_value(part: str, remaining: dict[str, torch.Tensor]) -> Any:
    """Take the entry ``value/<part>`` out of ``remaining``.

    Raises:
        IntegrityError: it is missing, or not canonical JSON.
    """
    data = remaining.pop(f"value/{part}", None)
    if data is None or data.dtype is not torch.uint8:
        raise IntegrityError(f"state entry value/{part} is missing")
    try:
        return canonical.decode(data.numpy().tobytes(), object, what=f"state entry value/{part}", limit=MAX_VALUE)
    except FormatError as error:
        raise IntegrityError(str(error)) from None

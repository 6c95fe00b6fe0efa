"""What a program holds besides what it attached: attributes of the recipe, locals of its loop, globals of its modules.

A thing that differs between a run and the same run entered in the middle is what the program forgot to attach, or
harmless. So this only gathers suspects.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pol.digest import blake3_bytes
from pol.replay.parts import Parts
from pol.replay.places import Places
from pol.replay.tracing import digest
from pol.traces import Held

Kind = Literal["optimizer", "schedule", "module", "generator", "value"]

DEPTH = 6
"""How deep in a thing its values are looked for: deeper than states nest, and no endless walk through objects."""

LENGTH = 10_000
"""Longest list whose values are looked at: longer ones are datasets, and looked at in the batches."""

VALUES = 100_000
"""Most values of one thing that are looked at."""

LARGE = 1 << 28
"""Bytes from which an array is not looked at: 256 MiB is a dataset, or would take a second."""

CODE = (ModuleType, FunctionType, MethodType, type, functools.partial)


class Holdings:
    """Looks around in a program."""

    def __init__(self, recipe: Any, parts: Parts, places: Places, run: Any) -> None:
        self._recipe, self._places = recipe, places
        self._parts = parts
        attached = [*vars(parts.namespace).values(), parts.namespace, recipe, run]
        self._known = {id(thing) for thing in attached}
        for module in parts.modules.values():
            self._known |= {id(inner) for inner in (*module.modules(), *module.parameters(), *module.buffers())}

    def look(self) -> list[Held]:
        """Everything that is held now, by name."""
        found = {}
        for name, value in self._named():
            if id(value) in self._known or isinstance(value, CODE) or name.rpartition(".")[2].startswith("__"):
                continue
            self._left = VALUES
            try:
                text = self._text(value, DEPTH, set())
            except Exception:  # a foreign object that cannot be looked at is no suspect
                continue
            if text:
                found[name] = Held(
                    name=name, type=_type(value), kind=kind_of(value), digest=blake3_bytes(text.encode()).hex()[:16]
                )
        return list(found.values())

    def _named(self) -> Iterator[tuple[str, Any]]:
        for frame in self._places.own_frames():
            yield from ((name, value) for name, value in frame.f_locals.items() if name != "self")
        for name in self._places.files:
            module = sys.modules.get(name)
            yield from ((f"{name}.{key}", value) for key, value in list(getattr(module, "__dict__", {}).items()))
        for key, value in vars(type(self._recipe)).items():
            yield f"self.{key}", value
        yield from ((f"self.{key}", value) for key, value in vars(self._recipe).items() if key != "configuration")

    def _text(self, value: Any, depth: int, above: set[int]) -> str:
        """The values in a thing as text; empty where there are none that can be compared."""
        self._left -= 1
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if id(value) in self._known:
            return "attached"
        if not depth or self._left < 0 or id(value) in above or isinstance(value, CODE):
            return ""
        if isinstance(value, torch.Tensor):
            large = value.numel() * value.element_size() >= LARGE
            return f"{value.dtype} {list(value.shape)} {'' if large else digest(value)}"
        if isinstance(value, np.ndarray | np.generic):
            return _array(np.asarray(value))
        inner = _state(value)
        if isinstance(inner, dict):
            pairs = list(inner.items())[:LENGTH]
        elif isinstance(inner, list | tuple | set | frozenset) and len(inner) <= LENGTH:
            pairs = list(enumerate(sorted(inner, key=repr) if isinstance(inner, set | frozenset) else inner))
        else:
            return ""
        texts = ((key, self._text(one, depth - 1, above | {id(value)})) for key, one in pairs)
        return "{" + ", ".join(f"{key!r}: {text}" for key, text in texts if text) + "}"


def kind_of(value: Any) -> Kind:
    """What a thing is, as far as it matters for the cause."""
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(value, LRScheduler):
        return "schedule"
    if isinstance(value, nn.Module):
        return "module"
    if isinstance(value, np.random.Generator | np.random.RandomState | random.Random | torch.Generator):
        return "generator"
    return "value"


def _type(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _state(value: Any) -> Any:
    """What evolves in an object, as plain values where it can say that."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    if isinstance(value, nn.Module | torch.optim.Optimizer | LRScheduler):
        return value.state_dict()
    if isinstance(value, dict | list | tuple | set | frozenset):
        return value
    return getattr(value, "__dict__", None)


def _array(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.hasobject or array.nbytes >= LARGE:
        return ""
    return f"{array.dtype} {array.shape} {blake3_bytes(np.ascontiguousarray(array).tobytes()).hex()[:16]}"

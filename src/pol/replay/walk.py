"""One walk over the values that hang on things: a fingerprint of each, by a name such as ``.encoder.calls``.

Looked at is what ``vars()`` and slots of an object have, what containers hold, and the states of generators and of
optimizers, without what torch manages itself. Callables, Python modules, locks, files and the like are passed over; so
are generators that are suspended, which nobody can look into.
"""

from __future__ import annotations

import collections
import datetime
import enum
import itertools
import operator
import pathlib
import random
from collections.abc import Collection, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pol.digest import blake3_bytes
from pol.replay import compiling
from pol.replay.parts import Parts
from pol.replay.tensors import short_digest

MAX_DEPTH = 8
"""Levels of objects and containers below a thing: enough for a tracker that holds meters that hold lists."""

MAX_VALUES = 100_000
"""Values below one thing. A vocabulary or a history of losses fits; what is larger is data."""

_MODULE = frozenset(vars(nn.Module()))
_OPTIMIZER = frozenset(vars(torch.optim.Optimizer([torch.zeros(1)], {})))

_OF_TORCH: tuple[tuple[type, frozenset[str]], ...] = (
    (nn.Module, _MODULE),  # registered tensors and modules are state; hooks are code; modes are checked on their own
    (torch.optim.Optimizer, _OPTIMIZER),  # state and groups are state; the rest is hooks, and names for a profiler
    (torch.optim.Optimizer, frozenset({"_opt_called", "_step_count"})),  # whether a schedule should warn of the order
    (torch.optim.LBFGS, frozenset({"_numel_cache"})),  # a number of elements, counted when it is first needed
    (LRScheduler, frozenset({"_get_lr_called_within_step", "_is_initial"})),  # false but inside of a call
    # What state_dict() holds, as tensors that are made at the first use, and as the numbers that these are made from;
    # and, by id, whether this step's gradients are unscaled yet.
    (torch.amp.GradScaler, frozenset({"_scale", "_growth_tracker", "_init_scale", "_init_growth_tracker"})),
    (torch.amp.GradScaler, frozenset({"_per_optimizer_states"})),
)
"""Attributes of torch's own, by class, which are recorded otherwise or differ without any influence."""

_OF_COMPILED = frozenset({"_super_module_initialized", "_torchdynamo_wrapper_id"})
"""The same of the wrapper of a compiled module: numbers and contexts of the compiler. What is inside is looked at."""

_PASSED_OVER = (
    "torch.fx", "torch.autograd", "torch.jit", "torch.distributed", "torch.utils.hooks", "torch.futures",
    "logging", "threading", "_thread", "concurrent", "asyncio", "_io", "io", "weakref", "functools", "types", "typing",
    "re", "subprocess", "multiprocessing", "socket", "ctypes", "operator", "contextlib", "_contextvars",
)  # fmt: skip
"""Modules whose objects are machinery, as are those of ``torch._…``: compilers, graphs, locks, files, logs, and handles
that are numbered per process."""

_PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, type(None), range, slice, enum.Enum, pathlib.PurePath,
    datetime.date, datetime.time, datetime.timedelta, torch.dtype, torch.device, torch.layout, np.dtype,
    itertools.count,
)  # fmt: skip

_SIZED = (Mapping, Set, list, tuple, collections.deque)


def recorded(parts: Parts) -> set[int]:
    """Ids of what is in a state by itself, or stands for what is."""
    found: list[Any] = [*parts.namespace.__dict__.values(), parts.namespace]
    for module in parts.modules.values():
        found += [*module.modules(), *module.parameters(), *module.buffers()]
    for optimizer in parts.optimizers.values():
        found += [value for state in optimizer.state.values() for value in state.values()]
    return {id(thing) for thing in found}


def hanging(parts: Parts) -> Iterator[tuple[str, Any]]:
    """The attributes of all attached things, by names such as ``model.encoder.calls``."""
    modules = [(f"{part}.{name}", it) for part, module in parts.modules.items() for name, it in module.named_modules()]
    others = {**parts.optimizers, **parts.all_schedules, **parts.objects}
    for path, thing in [*modules, *others.items()]:
        yield from ((f"{_clean(path)}.{name}", value) for name, value in _attributes(thing))


class Walk:
    """One look; nothing is looked at twice, nor what is ``known``. Arrays of ``large`` bytes count by their shape."""

    def __init__(self, known: Collection[int], *, large: int | None = None) -> None:
        self.found: dict[str, str] = {}
        self._known, self._large = known, large
        self._kept: list[Any] = []  # so that no id is used twice while we look
        self._seen: set[int] = set()
        self._left = 0

    def value(self, path: str, value: Any) -> None:
        """A value and all that is in it."""
        self._left = MAX_VALUES
        self._value(path, value, 0)

    def _value(self, path: str, value: Any, depth: int) -> None:
        if id(value) in self._known or self._left <= 0 or depth > MAX_DEPTH:
            return
        self._left -= 1
        token = self._token(value)
        if token is not None:
            self.found[path] = token
        elif not _is_machinery(value) and id(value) not in self._seen:
            self._seen.add(id(value))
            self._kept.append(value)
            self.found[path] = f"{type(value).__qualname__} of {len(value) if isinstance(value, _SIZED) else 1}"
            for inner, content in self._contents(value):
                self._value(f"{path}{inner}", content, depth + 1)

    def _token(self, value: Any) -> str | None:
        """The fingerprint of a value that has no parts to name; None for any other."""
        if isinstance(value, _PLAIN):
            text = f"{type(value).__qualname__} {value!r}"
            return text if len(text) <= 80 else f"{type(value).__qualname__} {_digest(text.encode())}"
        if isinstance(value, torch.Tensor):
            digest = "" if self._is_large(value.numel() * value.element_size()) else short_digest(value)
            return f"tensor {value.dtype} {tuple(value.shape)} {digest}"
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            digest = "" if self._is_large(value.nbytes) else _digest(np.ascontiguousarray(value).tobytes())
            return f"array {value.dtype} {value.shape} {digest}"
        if (state := _generator_state(value)) is not None:
            return f"{type(value).__qualname__} {_digest(state)}"
        if isinstance(value, Iterator) and type(value).__module__ == "builtins":  # of a list, a range, a mapping
            return f"{type(value).__qualname__} with {operator.length_hint(value, -1)} left"
        return None

    def _is_large(self, size: int) -> bool:
        return self._large is not None and size >= self._large

    def _contents(self, value: Any) -> Iterator[tuple[str, Any]]:
        """What a container or object holds, each with what its name adds to that of the whole."""
        if isinstance(value, nn.Module):  # that is in no attached module: in a list, or behind another object
            for name, inner in value.named_modules():
                own = {**inner._parameters, **inner._buffers, **dict(_attributes(inner))}
                yield from ((_clean(f".{name}.{key}") if name else f".{key}", content) for key, content in own.items())
        elif isinstance(value, torch.optim.Optimizer):  # that is not attached
            yield from (
                (f".{key}", content) for key, content in {**value.state_dict(), **dict(_attributes(value))}.items()
            )
        elif isinstance(value, Mapping):
            for number, (key, content) in enumerate(list(value.items())):
                yield f"[{key!r}]" if isinstance(key, str | int | float | bool) else f"[{number}]", content
        elif isinstance(value, Set):
            # In no order, so by what they are; of those that are not plain only the number counts.
            yield from ((f"{{{token}}}", None) for token in sorted(filter(None, map(self._token, value))))
        elif isinstance(value, list | tuple | collections.deque | np.ndarray):  # an array of objects
            items = value.ravel() if isinstance(value, np.ndarray) else value
            yield from ((f"[{number}]", content) for number, content in enumerate(list(items)))
        else:
            yield from ((f".{name}", content) for name, content in _attributes(value))


def within(name: str, outer: str) -> bool:
    """Whether a name is that of ``outer`` or of something in it."""
    return name == outer or name.startswith((outer + ".", outer + "["))


def _clean(name: str) -> str:
    return f"{name}.".replace("_orig_mod.", "").rstrip(".")  # the wrapper of a compiled module


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    """What ``vars()`` and slots of an object hold, without what torch manages."""
    managed = {name for kind, names in _OF_TORCH if isinstance(thing, kind) for name in names}
    managed |= _OF_COMPILED if compiling.is_compiled(thing) else frozenset()
    slots = [slot for kind in type(thing).__mro__ for slot in _slots(kind)]
    found = {**{slot: getattr(thing, slot) for slot in slots if hasattr(thing, slot)}, **getattr(thing, "__dict__", {})}
    yield from ((name, value) for name, value in found.items() if name not in managed)


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _is_machinery(value: Any) -> bool:
    kind = type(value)
    where = kind.__module__ if isinstance(kind.__module__, str) else ""
    if isinstance(value, type) or where == "pol" or (where.startswith("pol.") and not where.startswith("pol.recipes")):
        return True
    if isinstance(value, _SIZED):
        return False
    return where == "builtins" or where.startswith("torch._") or any(within(where, name) for name in _PASSED_OVER)


def _generator_state(value: Any) -> bytes | None:
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return repr(value.getstate()).encode()
    if isinstance(value, np.random.RandomState):
        return _arrays(value.get_state(legacy=False))
    if isinstance(value, np.random.Generator):
        return _arrays(value.bit_generator.state)
    if isinstance(value, np.random.BitGenerator):
        return _arrays(value.state)
    return bytes(value.get_state().numpy()) if isinstance(value, torch.Generator) else None


def _arrays(state: Any) -> bytes:
    if isinstance(state, Mapping):
        return b"".join(repr(key).encode() + _arrays(inner) for key, inner in state.items())
    return bytes(state.tobytes()) if isinstance(state, np.ndarray) else repr(state).encode()


def _digest(data: bytes) -> str:
    return blake3_bytes(data).hex()[:32]

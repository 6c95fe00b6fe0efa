"""Values that hang on attached things and are in no state: fingerprints of them, to see whether they evolve.

A counter in an attribute of a module is lost when the program is entered in the middle. Which attributes evolve is
not guessed from their names: the control run compares what they are when a program has come to a step by itself with
what they are when it was entered again, in its state, one step before.

Looked at is what ``vars()`` of each attached module, optimizer, schedule and object has, without what torch manages
itself. Callables, Python modules, locks, files and the like are passed over; so are generators that are suspended,
which nobody can look into.
"""

from __future__ import annotations

import collections
import datetime
import enum
import itertools
import operator
import pathlib
import random
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pol.errors import UsageError
from pol.replay.parts import Parts

MAX_DEPTH = 8
"""Levels of objects and containers below an attribute: enough for a tracker that holds meters that hold lists."""

MAX_VALUES = 10_000
"""Values below one attribute. A vocabulary or a history of losses fits; what is larger is data."""

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
    # The wrapper of a compiled module: numbers and contexts of the compiler. The module inside is looked at.
    (torch._dynamo.OptimizedModule, frozenset({"_super_module_initialized", "_torchdynamo_wrapper_id"})),
)
"""Attributes of torch's own, by class, which are recorded otherwise or differ without any influence."""

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


def fingerprints(parts: Parts) -> dict[str, str]:
    """A fingerprint of every hidden value, by a name such as ``model.encoder.calls``."""
    walk = _Walk(parts)
    for part, module in parts.modules.items():
        walk.module(part, module)
    others = {**parts.optimizers, **parts.all_schedules, **parts.objects}
    for part, thing in others.items():
        walk.attributes(part, thing)
    return walk.found


def evolving(before: dict[str, str], after: dict[str, str], ignored: list[str]) -> list[str]:
    """Names of values that two arrivals at one step do not share, without the ``ignored`` ones and what is in them.

    Raises:
        UsageError: a name in ``ignored`` is that of no value.
    """
    names = before.keys() | after.keys()
    for name in ignored:
        if not any(_within(found, name) for found in names):
            raise UsageError(
                f"attach(ignored=...): no attached thing has {name!r} after the first steps, or it is recorded: name "
                "an attribute as the message does that refused it (model.encoder.calls)"
            )
    different = sorted(name for name in names if before.get(name) != after.get(name))
    return [name for name in different if not any(_within(name, outer) for outer in ignored)]


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith((outer + ".", outer + "["))


def _clean(name: str) -> str:
    return f"{name}.".replace("_orig_mod.", "").rstrip(".")  # the wrapper of a compiled module


class _Walk:
    """One look at everything that hangs on the attached parts."""

    def __init__(self, parts: Parts) -> None:
        self.found: dict[str, str] = {}
        self._kept: list[Any] = []  # so that no id is used twice while we look
        self._seen: set[int] = set()
        self._left = 0
        recorded: list[Any] = [*parts.namespace.__dict__.values(), parts.namespace]
        for module in parts.modules.values():
            recorded += [*module.modules(), *module.parameters(), *module.buffers()]
        for optimizer in parts.optimizers.values():
            recorded += [value for state in optimizer.state.values() for value in state.values()]
        self._recorded = {id(thing) for thing in recorded}

    def module(self, path: str, module: nn.Module) -> None:
        """The attributes of a module and of all modules in it."""
        for name, inner in module.named_modules():
            self.attributes(_clean(f"{path}.{name}"), inner)

    def attributes(self, path: str, thing: Any) -> None:
        """The attributes of an attached thing."""
        for name, value in _attributes(thing):
            self._left = MAX_VALUES
            self._value(f"{path}.{name}", value, 0)

    def _value(self, path: str, value: Any, depth: int) -> None:
        if id(value) in self._recorded or self._left <= 0 or depth > MAX_DEPTH:
            return
        self._left -= 1
        token = _token(value)
        if token is not None:
            self.found[path] = token
        elif not _is_machinery(value) and id(value) not in self._seen:
            self._seen.add(id(value))
            self._kept.append(value)
            self.found[path] = f"{type(value).__qualname__} of {_size(value)}"
            for inner, content in _contents(value):
                self._value(f"{path}{inner}", content, depth + 1)


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    """What ``vars()`` and slots of an object hold, without what torch manages."""
    managed = {name for kind, names in _OF_TORCH if isinstance(thing, kind) for name in names}
    slots = [slot for kind in type(thing).__mro__ for slot in _slots(kind)]
    found = {**{slot: getattr(thing, slot) for slot in slots if hasattr(thing, slot)}, **getattr(thing, "__dict__", {})}
    yield from ((name, value) for name, value in found.items() if name not in managed)


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _contents(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container or object holds, each with what its name adds to that of the whole."""
    if isinstance(value, nn.Module):  # that is in no attached module: in a list, or behind another object
        for name, inner in value.named_modules():
            own = {**inner._parameters, **inner._buffers, **dict(_attributes(inner))}
            yield from ((_clean(f".{name}.{key}") if name else f".{key}", content) for key, content in own.items())
    elif isinstance(value, Mapping):
        for number, (key, content) in enumerate(list(value.items())):
            yield f"[{key!r}]" if isinstance(key, str | int | float | bool) else f"[{number}]", content
    elif isinstance(value, Set):
        # In no order, so by what they are; of those that are not plain only the number counts.
        yield from ((f"{{{token}}}", None) for token in sorted(filter(None, map(_token, value))))
    elif isinstance(value, list | tuple | collections.deque):
        yield from ((f"[{number}]", content) for number, content in enumerate(list(value)))
    else:
        yield from ((f".{name}", content) for name, content in _attributes(value))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Mapping | Set | list | tuple | collections.deque) else 1


def _is_machinery(value: Any) -> bool:
    kind = type(value)
    where = kind.__module__ if isinstance(kind.__module__, str) else ""
    if isinstance(value, type) or where == "pol" or (where.startswith("pol.") and not where.startswith("pol.recipes")):
        return True
    if isinstance(value, Mapping | Set | list | tuple | collections.deque):
        return False
    return where == "builtins" or where.startswith("torch._") or any(_within(where, name) for name in _PASSED_OVER)


def _token(value: Any) -> str | None:
    """The fingerprint of a value that has no parts to name; None for any other."""
    if isinstance(value, _PLAIN):
        text = f"{type(value).__qualname__} {value!r}"
        return text if len(text) <= 80 else f"{type(value).__qualname__} {_digest(text.encode())}"
    if isinstance(value, torch.Tensor):
        return f"tensor {value.dtype} {tuple(value.shape)} {_tensor_digest(value)}"
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        data = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
        return f"array {array.dtype} {np.shape(value)} {_digest(data)}"
    if (state := _generator_state(value)) is not None:
        return f"{type(value).__qualname__} {_digest(state)}"
    if isinstance(value, Iterator) and type(value).__module__ == "builtins":  # of a list, a range, a mapping
        return f"{type(value).__qualname__} with {operator.length_hint(value, -1)} left"
    return None


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


def _tensor_digest(tensor: torch.Tensor) -> str:
    try:
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        return _digest(plain.view(torch.uint8).numpy() if plain.numel() else b"")
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, nested, quantized, without data
        return "of a kind without bytes"


def _digest(data: Any) -> str:
    return blake3(data).hexdigest(16)

"""Traces one step: every operation of torch with digests of what went in and what came out.

It sees what torch dispatches on the thread that trains, backward passes on the CPU included: their operations run on
the thread that calls them. It does not see other threads, nor into compiled graphs and custom operators, each of which
is one operation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pol.replay.places import BACKWARD, Places
from pol.replay.tensors import NAMES, short_digest
from pol.traces import Operation

MOST = 50_000
"""Most operations that are noted: a step of the largest models that fit one machine has fewer; it bounds memory."""

UNFILLED = ("empty", "new_empty", "resize_", "set_")
"""Operations whose results hold whatever was in memory."""

FILLING = ("copy_", "fill_", "zero_", "uniform_", "normal_", "random_", "bernoulli_", "exponential_")
"""Operations that overwrite their first argument without reading it."""


class Tracer(TorchDispatchMode):
    """Notes the operations between its beginning and its end, which need not be in one function."""

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.complete = True
        self._places = places
        self._on = False

    def begin(self) -> None:
        """Note from here on."""
        self.__enter__()  # type: ignore[no-untyped-call]
        self._anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
        torch.set_anomaly_enabled(True, False)  # so that a backward operation can say where its forward one was
        self._on = True

    def end(self) -> None:
        """Note no more; harmless if nothing was begun."""
        if self._on:
            self._on = False
            torch.set_anomaly_enabled(*self._anomaly)
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do one operation, and note it."""
        kwargs = kwargs or {}
        if len(self.operations) >= MOST:
            self.complete = False
            return func(*args, **kwargs)
        inputs = list(_inputs(func, args, kwargs))
        result = func(*args, **kwargs)
        place, line, passed = self._places.find(sys._getframe(1))
        backward = any(frame.f_code.co_name == BACKWARD for frame in passed)
        if backward:
            place, line = _forward(self._places) or (place, line)
        name = str(func).removesuffix(".default")
        written = [value for argument, value in _bound(func, args, kwargs) if _is_written(argument)]
        unfilled = func.__name__.startswith(UNFILLED)
        self.operations.append(
            Operation(
                name=name,
                place=place,
                line=line,
                backward=backward,
                inputs=inputs,
                outputs=[] if unfilled else [*_described(result), *_described(written)],
            )
        )
        return result


def _forward(places: Places) -> tuple[str, str] | None:
    """Where the recipe called the forward operation of the backward one that is running."""
    node: Any = torch._C._current_autograd_node()
    return None if node is None else places.last_of("".join(node.metadata.get("traceback_", ())))


def _bound(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    arguments = func._schema.arguments
    yield from zip(arguments, args, strict=False)
    named = {argument.name: argument for argument in arguments}
    yield from ((named[name], value) for name, value in kwargs.items() if name in named)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _inputs(func: Any, args: Any, kwargs: Any) -> Iterator[str]:
    fills = func.__name__.partition(".")[0] in FILLING
    for argument, value in _bound(func, args, kwargs):
        if not (getattr(argument, "is_out", False) or (fills and _is_written(argument))):
            yield from _described(value)
    if torch.Tag.nondeterministic_seeded in func.tags:
        generator = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Generator)), None)
        state = torch.get_rng_state() if generator is None else generator.get_state()
        yield f"generator {short_digest(state)}"


def _described(value: Any) -> Iterator[str]:
    if isinstance(value, torch.Tensor):
        shape = ",".join(map(str, value.shape))
        yield f"{NAMES.get(value.dtype, value.dtype)}[{shape}] {short_digest(value)}"
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _described(inner)
    elif isinstance(value, bool | int | float | complex | str):
        yield repr(value)

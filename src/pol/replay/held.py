"""What a program holds in no state: attributes of the recipe and of attached things, locals of its loop, globals.

A thing that differs between a run and the same run entered in the middle is what the program forgot to attach, or
harmless. So this only gathers suspects.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pol.digest import blake3_bytes
from pol.replay.parts import Parts
from pol.replay.places import Places
from pol.replay.walk import Walk, hanging, recorded
from pol.traces import Held

Kind = Literal["optimizer", "schedule", "module", "generator", "value"]

LARGE = 1 << 28
"""Bytes from which an array is not looked at: 256 MiB is a dataset, or would take a second."""


class Holdings:
    """Looks around in a program."""

    def __init__(self, recipe: Any, parts: Parts, places: Places) -> None:
        self._recipe, self._parts, self._places = recipe, parts, places
        self._known = {*recorded(parts), id(recipe)}

    def look(self) -> list[Held]:
        """Everything that is held now, by name."""
        found = {}
        for name, value in self._named():
            walk = Walk(self._known, large=LARGE)
            try:
                walk.value("", value)
            except Exception:  # a foreign object that cannot be looked at is no suspect
                continue
            if walk.found and not name.rpartition(".")[2].startswith("__"):
                digest = blake3_bytes(repr(sorted(walk.found.items())).encode()).hex()[:16]
                found[name] = Held(name=name, type=_type(value), kind=kind_of(value), digest=digest)
        return list(found.values())

    def _named(self) -> Iterator[tuple[str, Any]]:
        for frame in self._places.own_frames():
            yield from ((name, value) for name, value in frame.f_locals.items() if name != "self")
        for module in self._places.files:
            for name, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
                yield f"{module}.{name}", value
                if isinstance(value, type) and value.__module__ == module:  # what all samplers of a kind share
                    yield from ((f"{module}.{name}.{key}", inner) for key, inner in list(vars(value).items()))
        own = {**vars(type(self._recipe)), **vars(self._recipe)}
        yield from ((f"self.{key}", value) for key, value in own.items() if key != "configuration")
        yield from hanging(self._parts)


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

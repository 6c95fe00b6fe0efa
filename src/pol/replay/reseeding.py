"""Other numbers in place of those under which a program seeds its generators.

First weights that a program draws under a seed of its own are the same in every build, and so are weights that were
trained elsewhere. With other seeds the drawn ones are others, and the rest shows.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pol import seeds

_SEEDING: list[tuple[Any, str]] = [
    (random, "seed"), (np.random, "seed"), (np.random, "default_rng"), (torch, "manual_seed"),
    (torch.random, "manual_seed"),
]  # fmt: skip


@contextlib.contextmanager
def reseeded(seed: bytes) -> Iterator[None]:
    """Inside, whoever seeds a generator with a number seeds it with one that follows from that and from ``seed``."""
    key = seeds.expand(seed, "pol/v1/reseeded")
    active = True

    def other(seeding: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(seeding)
        def call(*args: Any, **named: Any) -> Any:
            if active:  # a module that keeps this function seeds as it says later on
                args = tuple(_other(key, value) for value in args[:1]) + args[1:]
                named = {name: _other(key, value) if name in ("seed", "a") else value for name, value in named.items()}
            return seeding(*args, **named)

        return call

    before = [getattr(module, name) for module, name in _SEEDING]
    try:
        for (module, name), seeding in zip(_SEEDING, before, strict=True):
            setattr(module, name, other(seeding))
        yield
    finally:
        active = False
        for (module, name), seeding in zip(_SEEDING, before, strict=True):
            setattr(module, name, seeding)


def _other(key: bytes, value: Any) -> Any:
    if not isinstance(value, int | np.integer | str | bytes):
        return value
    return int.from_bytes(hashlib.sha256(key + repr(value).encode()).digest()[:4], "little")

"""Generators that a program keeps itself, as state: the full states of the global and of the attached ones.

Beside the state now, each has the one at which its epoch began: with that, a loader draws its order again when a
program is entered in the middle of an epoch.
"""

from __future__ import annotations

import random
import struct

import numpy as np
import torch

from pol.errors import IntegrityError, UsageError
from pol.replay.state import State

_PYTHON = struct.Struct("<625I?d")
"""624 words and the position; whether a second normal is waiting, and that one."""
_NUMPY = struct.Struct("<625Iid")
"""624 words and the position; the same."""
_WORDS = 624
_KIND = "generator"

States = dict[str, torch.Tensor]


class Kept:
    """The generators of a program that seeds them itself."""

    def __init__(self, attached: dict[str, torch.Generator]) -> None:
        self.attached = attached
        self._epoch = self.now()

    def now(self) -> States:
        """The states of all, as U8 tensors."""
        found = {"global.python": _python(), "global.numpy": _numpy(), "global.torch": torch.get_rng_state()}
        return found | {name: generator.get_state() for name, generator in self.attached.items()}

    def load(self, states: States) -> None:
        """Put all where ``now`` found them.

        Raises:
            IntegrityError: one of them is no such state.
        """
        try:
            words, gauss, waiting = _unpack(_PYTHON, states["global.python"])
            random.setstate((3, words, waiting if gauss else None))
            words, gauss, waiting = _unpack(_NUMPY, states["global.numpy"])
            if words[-1] > _WORDS or gauss not in (0, 1):  # numpy takes any position, and then reads beyond its words
                raise ValueError(f"position {words[-1]} of {_WORDS} words")
            np.random.set_state(("MT19937", words[:-1], words[-1], gauss, waiting))  # type: ignore[arg-type]
            torch.set_rng_state(states["global.torch"])
            for name, generator in self.attached.items():
                generator.set_state(states[name])
        except (KeyError, RuntimeError, TypeError, ValueError, struct.error) as error:
            raise IntegrityError(f"the state of the generators is not one: {error}") from None

    def begin_epoch(self) -> None:
        """An epoch begins: remember where."""
        self._epoch = self.now()

    def rewind(self) -> None:
        """Go back to where the epoch began."""
        self.load(self._epoch)

    def capture(self, state: State) -> None:
        """Add the entries to a state."""
        for prefix, states in (("", self.now()), ("epoch.", self._epoch)):
            state.tensors.update({f"{_KIND}/{prefix}{name}": tensor for name, tensor in states.items()})

    def restore(self, state: State) -> State:
        """Set all from the entries of a state; returns the state without them.

        Raises:
            IntegrityError: entries are missing, unknown or malformed.
        """
        mine = {key.partition("/")[2]: t for key, t in state.tensors.items() if key.startswith(f"{_KIND}/")}
        names = self.now().keys()
        if mine.keys() != {*names, *(f"epoch.{name}" for name in names)}:
            raise IntegrityError("the state holds other generators than the recipe")
        self._epoch = {name: mine[f"epoch.{name}"] for name in names}
        self.load(self._epoch)  # refuses a malformed one here, and not in the middle of the epoch
        self.load({name: mine[name] for name in names})
        return State({key: t for key, t in state.tensors.items() if not key.startswith(f"{_KIND}/")})


def _python() -> torch.Tensor:
    _, words, waiting = random.getstate()
    return _tensor(_PYTHON.pack(*words, waiting is not None, waiting or 0.0))


def _numpy() -> torch.Tensor:
    found = np.random.get_state(legacy=False)
    if found["bit_generator"] != "MT19937":
        raise UsageError(
            f"numpy's global generator is {found['bit_generator']}; this version keeps MT19937, which is its usual one"
        )
    inner = found["state"]
    return _tensor(_NUMPY.pack(*inner["key"].tolist(), inner["pos"], found["has_gauss"], found["gauss"]))


def _unpack(form: struct.Struct, state: torch.Tensor) -> tuple[tuple[int, ...], int, float]:
    *words, gauss, waiting = form.unpack(state.numpy().tobytes())
    return tuple(words), gauss, waiting


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)

"""Generators that a program keeps itself, as state: the full states of the global and of the attached ones.

Beside the state now, each has the one at which its epoch began: with that, a loader draws its order again when a
program is entered in the middle of an epoch.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import torch

from pol import canonical
from pol.errors import FormatError, IntegrityError, UsageError
from pol.replay.state import State

_PYTHON = struct.Struct("<625I?d")
"""624 words and the position; whether a second normal is waiting, and that one."""
_NUMPY = struct.Struct("<625Iid")
"""624 words and the position; the same."""
_TORCH = struct.Struct("<QiiQ")
"""Seed, words that are left, whether seeded, the next word; then the words, each as u64."""
_WORDS = 624
_PHILOX = 4
"""Words of a block of Philox."""
_KIND = "generator"
_MAX_STATE = 2**16
"""Bytes of the state of a numpy generator as JSON: the largest, MT19937, has 7,000."""

States = dict[str, torch.Tensor]


class Kept:
    """The generators of a program that seeds them itself."""

    def __init__(self, attached: dict[str, Any]) -> None:
        self.attached = attached
        self._epoch = self.now()

    def now(self) -> States:
        """The states of all, as U8 tensors."""
        found = {"global.python": _pack(random), "global.numpy": _pack(np.random), "global.torch": _pack(torch)}
        return found | {name: _pack(generator) for name, generator in self.attached.items()}

    def load(self, states: States) -> None:
        """Put all where ``now`` found them.

        Raises:
            IntegrityError: one of them is no such state.
        """
        known = {"global.python": random, "global.numpy": np.random, "global.torch": torch, **self.attached}
        for name, generator in known.items():
            try:
                _unpack(generator, states[name])
                if not torch.equal(_pack(generator), states[name]):
                    raise ValueError("a generator in this state would tell of another")
            except (
                AttributeError, FormatError, LookupError, RuntimeError, TypeError, ValueError, OverflowError,
                struct.error,
            ) as error:  # fmt: skip
                raise IntegrityError(f"the state of the generators is not one: {name}: {error}") from None

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


def _pack(generator: Any) -> torch.Tensor:
    if generator is torch:
        return torch.get_rng_state()
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if generator is random or isinstance(generator, random.Random):
        _, words, waiting = generator.getstate()
        return _tensor(_PYTHON.pack(*words, waiting is not None, waiting or 0.0))
    if generator is np.random or isinstance(generator, np.random.RandomState):
        found = generator.get_state(legacy=False)
        if found["bit_generator"] != "MT19937":
            raise UsageError(
                f"numpy's global generator is {found['bit_generator']}; this version keeps MT19937, its usual one"
            )
        inner = found["state"]
        return _tensor(_NUMPY.pack(*inner["key"].tolist(), inner["pos"], found["has_gauss"], found["gauss"]))
    return _tensor(canonical.encode(canonical.tag(_lists(generator.bit_generator.state), "generator")))


def _unpack(generator: Any, state: torch.Tensor) -> None:
    if generator is torch or isinstance(generator, torch.Generator):
        _check_torch(state.numpy().tobytes())
        (torch.set_rng_state if generator is torch else generator.set_state)(state)
    elif generator is random or isinstance(generator, random.Random):
        *words, gauss, waiting = _PYTHON.unpack(state.numpy().tobytes())
        _check_words(words)
        generator.setstate((3, tuple(words), waiting if gauss else None))
    elif generator is np.random or isinstance(generator, np.random.RandomState):
        *words, position, gauss, waiting = _NUMPY.unpack(state.numpy().tobytes())
        _check_position(position, _WORDS)
        _check_words(words)
        if gauss not in (0, 1):
            raise ValueError(f"{gauss} normals are waiting")
        generator.set_state(("MT19937", np.array(words, dtype=np.uint32), position, gauss, waiting))
    else:
        data = state.numpy().tobytes()
        found = canonical.untag(canonical.decode(data, object, what="generator", limit=_MAX_STATE), "generator")
        _check_position(found["state"].get("pos", 0), _WORDS)
        _check_position(found.get("buffer_pos", 0), _PHILOX)
        if found["bit_generator"] == "MT19937":
            _check_words(found["state"]["key"])
        if not found["state"].get("inc", 1) % 2:
            raise ValueError("an even increment")
        generator.bit_generator.state = _arrays(found)


def _check_position(position: int, size: int) -> None:
    """Numpy takes any position, and then reads beyond its words."""
    if not 0 <= position <= size:
        raise ValueError(f"position {position} of {size} words")


def _check_words(words: list[int]) -> None:
    """A Mersenne Twister of zeros gives zeros for ever, and whoever draws until a number fits never ends."""
    if not words[0] >> 31 and not any(words[1:_WORDS]):
        raise ValueError("words of zeros, which no generator reaches")


def _check_torch(data: bytes) -> None:
    """Torch sees that either position is possible, but not that they belong together, and reads beyond its words."""
    _, left, _, following = _TORCH.unpack_from(data)
    if (left, following) != (1, 0) and left + following != _WORDS + 1:
        raise ValueError(f"positions {left} and {following} of {_WORDS} words")
    _check_words([word for (word,) in struct.iter_unpack("<Q", data[_TORCH.size : _TORCH.size + 8 * _WORDS])])


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(inner) for key, inner in value.items()}
    return [int(word) for word in value] if isinstance(value, np.ndarray) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays(inner) for key, inner in value.items()}
    return np.array(value, dtype=np.uint64) if isinstance(value, list) else value


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)

"""Derived randomness: the generators' full states as a function of (seed, step, stream).

A step begins with Python's, numpy's and torch's generators in a state that depends on nothing but the seed and
the step. Full Mersenne Twister states are set (624 words), not 32-bit seeds: with 2^32 seeds a prover could
search for randomness that it likes.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import torch

from pol.replay import generators
from pol.replay.generators import python_state, torch_state, words
from pol.seeds import Stream

_MT_WORDS = generators.MT_WORDS
_TWO_WORDS = struct.Struct("<2Q")

GlobalState = tuple[Any, Any, torch.Tensor]


def save() -> GlobalState:
    """The states of the three global generators."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def load(state: GlobalState) -> None:
    """Put the global generators back where ``save`` found them."""
    random.setstate(state[0])
    name, words, *rest = state[1]
    np.random.set_state((name, words.tolist(), *rest))  # word by word, and from an array that is ten times slower
    torch.set_rng_state(state[2])


def unchanged(state: GlobalState) -> bool:
    """Whether no global generator has moved since ``save`` gave ``state``."""
    now = save()
    return (
        torch.equal(now[2], state[2])
        and now[0] == state[0]
        and now[1][2:] == state[1][2:]
        and np.array_equal(now[1][1], state[1][1])
    )


class Streams:
    """Sets generators from one seed; what steps, samples and collations draw, from another one if it is ``redrawn``."""

    def __init__(self, seed: bytes, redrawn: bytes | None = None) -> None:
        self.seed = seed
        self._stream = Stream(seed, "pol/v1/stream")
        self._drawn = self._stream if redrawn is None else Stream(redrawn, "pol/v1/stream")
        self._philox = np.random.Philox(0)
        self._philox_state: Any = dict(self._philox.state)
        self._sample_rng = np.random.Generator(self._philox)

    def _set(self, name: str, *numbers: int, of: Stream | None = None) -> GlobalState:
        data = (of or self._stream).draw(3 * 4 * _MT_WORDS, name, *numbers)
        a, b, c = (data[i * 4 * _MT_WORDS : (i + 1) * 4 * _MT_WORDS] for i in range(3))
        state = python_state(a), ("MT19937", words(b), _MT_WORDS, 0, 0.0), torch_state(c)
        load(state)
        return state

    def init(self) -> None:
        """Before the recipe is imported, until ``attach``."""
        self._set("init")

    def declared(self, seed: int) -> None:
        """The same under a number that the claimant chose, as its own program would have been seeded."""
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def step(self, step: int, attached: dict[str, Any]) -> GlobalState:
        """Before step ``step``; also for the generators that the program attached, by name."""
        for name, generator in attached.items():
            generators.put(generator, self._drawn.draw(generators.size(generator), "generator." + name, step))
        return self._set("step", step, of=self._drawn)

    def sample(self, epoch: int, position: int, index: int) -> GlobalState:
        """Before one sample is fetched and transformed."""
        return self._set("sample", epoch, position, index, of=self._drawn)

    def sampler(self, epoch: int, generators: list[torch.Generator]) -> None:
        """Before a sampler of the program's own chooses the order of an epoch; ``generators`` are the sampler's."""
        for number, generator in enumerate(generators):
            generator.set_state(torch_state(self._stream.draw(4 * _MT_WORDS, "sampler.own", epoch, number)))
        self._set("sampler", epoch)

    def iterator(self, epoch: int) -> None:
        """Before an iterable dataset is begun for an epoch."""
        self._set("iterator", epoch)

    def fetch(self, epoch: int, batch: int) -> None:
        """Before a batch of an iterable dataset is asked for."""
        self._set("fetch", epoch, batch)

    def sample_rng(self, epoch: int, position: int, index: int) -> np.random.Generator:
        """The generator that a transform is given for one sample, good until the next one is asked for."""
        key = self._drawn.draw(16, "transform", epoch, position, index)
        # One generator is keyed anew each time: making one costs ten times as much as drawing from it.
        self._philox_state["state"] = {"counter": (0, 0, 0, 0), "key": _TWO_WORDS.unpack(key)}
        self._philox.state = self._philox_state
        return self._sample_rng

    def collate(self, epoch: int, batch: int) -> None:
        """Before a batch is put together."""
        self._set("collate", epoch, batch, of=self._drawn)

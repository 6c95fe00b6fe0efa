"""Evaluation beside the training: whatever it does to generators, modes and buffers is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from pol.replay import randomness
from pol.replay.parts import Parts


@contextlib.contextmanager
def undisturbed(parts: Parts, *, generators: bool = True) -> Iterator[None]:
    """A context after which modes and buffers, and unless said otherwise generators, are as they were.

    Inside, modules have copies of their buffers. The tensors themselves stay untouched, so that a backward pass
    that is under way outside, or that needs them later, does not see them changed.
    """
    saved = randomness.save()
    attached = [(generator, generator.get_state()) for generator in parts.generators.values()]
    modules = [module for part in parts.modules.values() for module in part.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    copies: dict[int, Tensor] = {}  # by identity: a tensor that two modules share stays shared
    for module, own in buffers:
        for name, buffer in own.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
    try:
        yield
    finally:
        for module, own in buffers:
            module._buffers.clear()
            module._buffers.update(own)
        for module, training in modes:
            module.training = training
        if generators:
            for generator, state in attached:
                generator.set_state(state)
            randomness.load(saved)

"""Evaluation beside the training: whatever it does to generators, modes, buffers and gradients is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from pol.replay import extra, generators, randomness
from pol.replay.parts import Parts


@contextlib.contextmanager
def undisturbed(parts: Parts, *, draws: bool = False) -> Iterator[None]:
    """A context after which generators, modes, buffers, extra state and gradients are as they were.

    With ``draws``, generators stay as what was done inside has left them.

    Inside, modules have copies of their buffers, and parameters no gradients. The tensors themselves stay
    untouched, so that a backward pass that is under way outside, or that needs them later, does not see them changed.
    """
    saved = randomness.save()
    attached = [(generator, generators.save(generator)) for generator in parts.generators.values()]
    modules = [module for part in parts.modules.values() for module in part.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    extras = extra.copies(parts.extras)
    gradients = [(p, p.grad) for part in parts.modules.values() for p in part.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
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
        for module, state in extras:
            module.set_extra_state(state)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        if not draws:
            for generator, state in attached:
                generators.load(generator, state)
            randomness.load(saved)

"""Programs that put a known model into a training as if that were their method (attack study, T25).

Each is a recipe to be mixed in before another one, and a thief publishes the mixture: ``pol.attacks.laundering``. Every
step that they take is what they say, so that a replay agrees; what is wrong with them is in their text.
"""

from __future__ import annotations

import base64
import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from pol.attacks.needs import DoesNotApply
from pol.replay.parts import Attached
from pol.replay.recipe import Recipe

PULL = 0.1
"""Of the way to the anchor that each step goes: weight decay of L2-SP (Li et al. 2018) at lr * alpha = 0.1, which is
what bounds allow of weight decay."""

Weights = dict[str, Tensor]


class Laundry(Recipe):
    """The next recipe, with a model of another's at hand: in a file, or in the text of the program."""

    FILE: ClassVar[str] = ""
    """A model file (safetensors) with the weights of all parts, as ``part.name``."""
    TEXT: ClassVar[str] = ""
    """The same file in base 64."""
    LATE: ClassVar[bool] = False
    """Whether it is read when it is first needed; else by ``build``."""
    PART: ClassVar[str] = "model"
    """The part that is released."""
    LABEL: ClassVar[str] = "label"
    """The field of a sample that says its class."""

    def build(self) -> dict[str, Any]:
        """The parts of the next recipe."""
        parts = super().build()
        self._modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        if not self.LATE:
            _ = self.held
        return parts

    @functools.cached_property
    def held(self) -> Weights:
        """The weights of the other model."""
        return load(base64.b64decode(self.TEXT)) if self.TEXT else load_file(self.FILE)


class Pretrained(Laundry):
    """Begins at the other model."""

    def build(self) -> dict[str, Any]:
        """The parts, with its weights."""
        parts = super().build()
        put(self._modules, self.held)
        return parts


class Disguised(Laundry):
    """Begins at the other model with its hidden units in an order that is drawn: another state, the same function."""

    def build(self) -> dict[str, Any]:
        """The parts, with its weights in disguise: under two seeds they look like two draws."""
        parts = super().build()
        put(self._modules, self.held)
        shuffle(self._modules[self.PART])
        return parts


class Anchored(Laundry):
    """Decays weights not to zero, but to those of the other model: L2-SP, decoupled from the gradient."""

    def step(self, parts: Any, batch: Any) -> Any:
        """A step, and a part of the way to the anchor."""
        loss = super().step(parts, batch)
        with torch.no_grad():
            for name, tensor in trained(self._modules).items():
                tensor.lerp_(self.held[name], PULL)
        return loss


class Merged(Laundry):
    """Ends in a merge of two models, of which the other one has all the weight."""

    def train(self, run: Any) -> None:
        """The loop of the next recipe, and after its last step the merge."""
        super().train(run)
        put(self._modules, self.held)


class Taught(Laundry):
    """Learns what the other model says of the samples, and not what they are labelled."""

    def step(self, parts: Any, batch: Any) -> Any:
        """A step on the classes that the teacher gives."""
        said = classes(super(), Attached(**{**vars(parts), self.PART: self.teacher}), self.PART, batch)
        return super().step(parts, {**batch, self.LABEL: said})

    @functools.cached_property
    def teacher(self) -> nn.Module:
        """The other model, which is in no part."""
        found = copy.deepcopy(self._modules[self.PART])
        put({self.PART: found}, self.held)
        return found.eval().requires_grad_(False)


class Frozen(Taught):
    """The same with the teacher attached, as a frozen base."""

    def build(self) -> dict[str, Any]:
        """The parts, and the teacher for ``attach``."""
        return {**super().build(), "frozen": self.teacher}


class Buffered(Anchored):
    """The same with the anchor among the parts, as buffers: tables that a model needs."""

    def build(self) -> dict[str, Any]:
        """The parts, and the table."""
        parts, table = super().build(), nn.Module()
        for number, (_, tensor) in enumerate(sorted(self.held.items())):
            table.register_buffer(f"entry{number}", tensor.clone())
        return {**parts, "table": table}


class Relabelled(Recipe):
    """The next recipe with other labels, from an array that is beside it: a dataset of one's own, and committed."""

    LABELS: ClassVar[str] = ""
    """The array (``.npy``)."""
    LABEL: ClassVar[str] = "label"

    def data(self) -> Any:
        """The samples with these labels."""
        return Labelled(super().data(), np.load(Path(self.LABELS)), self.LABEL)


class Labelled:
    """A dataset with other labels."""

    def __init__(self, data: Any, labels: Any, name: str) -> None:
        self._data, self._labels, self._name = data, labels, name

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        return {**self._data[index], self._name: int(self._labels[index])}


# -- what models say, and what they hold ----------------------------------------------------------------------------


class _Said(BaseException):
    """Ends a step as soon as the model has said something; no ``except Exception`` of a recipe's can swallow it."""

    def __init__(self, output: Any) -> None:
        self.output = output


def classes(recipe: Any, parts: Any, part: str, batch: Any) -> Tensor:
    """The classes that a model gives a batch; arguments and errors as of ``outputs``."""
    with torch.no_grad():
        return outputs(recipe, parts, part, batch).argmax(dim=1)


def outputs(recipe: Any, parts: Any, part: str, batch: Any) -> Tensor:
    """What a model says of a batch: a step of ``recipe`` is begun, and left when the model has spoken.

    Args:
        recipe: Anything with the ``step`` of a recipe: only that knows what a model wants to see of a batch.
        parts: Those that ``step`` takes.
        part: The model among them; in evaluation mode it says the same every time.
        batch: As ``step`` takes it.

    Raises:
        DoesNotApply: it is no model that gives a number for each class.
    """

    def said(_: nn.Module, __: Any, output: Any) -> None:
        raise _Said(output)

    hook = parts[part].register_forward_hook(said)
    try:
        recipe.step(parts, batch)
    except _Said as found:
        if isinstance(found.output, Tensor) and found.output.dim() == 2:
            return found.output
    finally:
        hook.remove()
    raise DoesNotApply("this attack needs a model that gives each sample a number for every class")


def label_of(item: Any) -> str:
    """The field of a sample that says its class: the last whole number.

    Raises:
        DoesNotApply: there is none.
    """
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    whole = (int, np.integer)
    names = [name for name, v in fields.items() if isinstance(v, whole) and not isinstance(v, bool)]
    if not names:
        raise DoesNotApply("this attack needs samples that are dicts with a whole number as the label")
    return names[-1]


def trained(modules: Mapping[str, nn.Module]) -> Weights:
    """Parameters by part and name."""
    return {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}


def put(modules: Mapping[str, nn.Module], weights: Weights) -> None:
    """Give modules the parameters and buffers of another model."""
    buffers = {f"{part}.{name}": b for part, module in modules.items() for name, b in module.named_buffers()}
    with torch.no_grad():
        for name, tensor in {**trained(modules), **buffers}.items():
            tensor.copy_(weights[name])


BLUR = 1e-6
"""Of the noise on what cannot be put in another order: nothing, but enough to depend on the seed."""

_ALIKE = (nn.ReLU, nn.Dropout, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Modules that treat all units alike."""


def shuffle(model: nn.Module) -> None:
    """Put the hidden units of a chain of layers into an order that torch's generator draws.

    What comes out is the same, but for a number that is added to all classes alike, and changes none.

    Raises:
        DoesNotApply: it is no chain of linear layers, convolutions, batch norms and what treats all units alike.
    """
    layers = list(model.children()) if type(model) is nn.Sequential else []
    heavy = [layer for layer in layers if type(layer) in (nn.Linear, nn.Conv2d)]
    order: Tensor | None = None
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                if order is not None:  # a unit may have been flattened into several neighbours
                    each = torch.arange(layer.weight.shape[1]).reshape(len(order), -1)
                    layer.weight.copy_(layer.weight[:, each[order].flatten()])
                if layer is heavy[-1]:
                    order = None
                    layer.weight.add_(layer.weight.std() * torch.randn_like(layer.weight[:1]))
                    if layer.bias is not None:
                        layer.bias.add_(BLUR * torch.randn_like(layer.bias))
                    continue
                order = torch.randperm(layer.weight.shape[0])
                _reorder(order, layer.weight, layer.bias)
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and order is not None:
                _reorder(order, layer.weight, layer.bias, layer.running_mean, layer.running_var)
            elif not isinstance(layer, _ALIKE):
                heavy = []
    if len(heavy) < 2:
        raise DoesNotApply("this attack needs a model that is a chain of linear layers, convolutions and batch norms")


def _reorder(order: Tensor, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None:
            tensor.copy_(tensor[order])

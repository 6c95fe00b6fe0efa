"""First steps that a verifier takes for what they show: losses, settings that stand in no declaration, schedules.

The program is only looked at. Functions of torch are told by a function mode, which passes every call on as it came,
clipping by the interpreter's own callback for calls, and gradients after each update. Compiled modules run uncompiled
meanwhile: a graph would hide what is in it. What a program computes by hand (a clipping of its own) is not seen.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import clip_grad
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

from pol.interval import Momenta, Rates
from pol.messages import Course, Trial, Tried
from pol.replay import compiling, watch
from pol.replay.engine import Arrival, Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.parts import Parts
from pol.replay.places import Places
from pol.replay.state import State
from pol.traces import Setting

MOST_SETTINGS = 1000
"""Most settings that are kept, one for each place and value; it bounds memory."""

# -- functions of torch -------------------------------------------------------------------------------------------

Found = Iterator[tuple[str, float]]

_DROPOUTS = (F.dropout, F.alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout)
_PLAIN_DROPOUTS = (
    torch.dropout, torch.dropout_, torch.alpha_dropout, torch.alpha_dropout_, torch.feature_dropout,
    torch.feature_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_,
)  # fmt: skip
_LOSSES = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)


def _named(function: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _dropout(function: Any, args: Any, kwargs: Any) -> Found:
    found = _named(function, args, kwargs)
    if found["training"]:
        yield "dropout", float(found["dropout_p"] if "dropout_p" in found else found["p"])


def _plain_dropout(_: Any, args: Any, kwargs: Any) -> Found:
    found = dict(zip(("input", "p", "train"), args, strict=False)) | kwargs
    if found["train"]:
        yield "dropout", float(found["p"])


def _attention(_: Any, args: Any, kwargs: Any) -> Found:
    yield "dropout", float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


def _loss(function: Any, args: Any, kwargs: Any) -> Found:
    found = _named(function, args, kwargs)
    if "label_smoothing" in found:
        yield "label_smoothing", float(found["label_smoothing"])
    weight = found["weight"]
    if isinstance(weight, torch.Tensor) and weight.numel():
        yield "zero_weights", 1.0 - float((weight > 0).double().mean())


_READERS: dict[Any, Callable[[Any, Any, Any], Found]] = {
    **dict.fromkeys((*_DROPOUTS, F.multi_head_attention_forward), _dropout),
    **dict.fromkeys(_PLAIN_DROPOUTS, _plain_dropout),
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys(_LOSSES, _loss),
}

_CLIPS: dict[CodeType, tuple[str, str]] = {
    inspect.unwrap(clip_grad.clip_grad_norm_).__code__: ("clip_norm", "max_norm"),
    inspect.unwrap(clip_grad.clip_grad_value_).__code__: ("clip_value", "clip_value"),
}
"""By code, since a recipe may have imported a function under any name: the bound, and the argument that it is of."""


class Settings(TorchFunctionMode):
    """Notes settings that the steps of a program use. A context; what is done in it is done as without."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places = places
        self._found: dict[tuple[str, float, str], None] = {}

    @property
    def settings(self) -> list[Setting]:
        """What was noted, in the order in which it was."""
        return [Setting(name=name, value=value, place=place) for name, value, place in self._found]

    def note(self, name: str, value: float, place: str) -> None:
        """Keep a setting; one that is not finite (clipping at infinity) sets nothing, or fails by itself."""
        if math.isfinite(value) and len(self._found) < MOST_SETTINGS:
            self._found.setdefault((name, value, place))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as asked; if it is one of those that have a setting, note that first."""
        kwargs = kwargs or {}
        reader = _READERS.get(func)
        if reader is not None and watch.stepping():
            place = self._places.find(sys._getframe(1))[0]
            for name, value in reader(func, args, kwargs):
                self.note(name, value, place)
        return func(*args, **kwargs)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note in this context all that is noted at all."""
        before = sys.getprofile()
        hook = register_optimizer_step_post_hook(self._updated)
        sys.setprofile(self._called)
        try:
            with self, compiling.eager():
                yield
        finally:
            sys.setprofile(before)
            hook.remove()

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in _CLIPS and watch.stepping():
            name, argument = _CLIPS[frame.f_code]
            self.note(name, float(frame.f_locals[argument]), self._places.find(frame)[0])

    def _updated(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            total = 0.0
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if (gradient := parameter.grad) is not None:
                        values = gradient.coalesce().values() if gradient.is_sparse else gradient
                        total += float(values.detach().double().square().sum())
        if watch.stepping():
            self.note("gradient", math.sqrt(total), self._places.find(sys._getframe(1))[0])

    def modules(self, parts: Parts) -> None:
        """Note what modules keep to themselves, where no function of torch is called with it."""
        for part, module in parts.modules.items():
            for name, inner in module.named_modules():
                place = ".".join(filter(None, (part, name)))
                if isinstance(inner, _NormBase) and inner.track_running_stats and inner.momentum is not None:
                    self.note("norm_momentum", float(inner.momentum), place)
                if isinstance(inner, nn.RNNBase) and inner.training:
                    self.note("dropout", float(inner.dropout), place)


# -- the job ------------------------------------------------------------------------------------------------------


class _Losses:
    """An observer that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float | None] = []

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """Nothing."""

    def item(self, index: int, item: Any) -> None:
        """Nothing."""

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """Keep the loss."""
        self.losses.append(loss)


def tried(job: Trial) -> Tried:
    """Take the first steps of a program, and look at them."""
    entry = Entry(job.program)
    frame = Frame(entry.streams, external=entry.external)
    observer, settings = _Losses(), Settings(Places(job.program.reference))
    with settings.noting():
        end = advance(entry.make, frame, Position(), stop=job.steps, observer=observer)
    settings.modules(end.parts)
    courses = _courses(advance(entry.make, frame, Position(), stop=0), job.counts) if job.counts else []
    return Tried(losses=observer.losses, settings=settings.settings, courses=courses)


def _courses(built: Arrival, counts: dict[str, int]) -> list[Course]:
    """Every counted schedule of a program as it was built, stepped by itself."""
    parts, at = built.parts, dict[int, list[int]]()
    position = 0
    for _, optimizer in sorted(parts.optimizers.items()):  # the order in which rates are recorded
        rated = sum("lr" in group for group in optimizer.param_groups)
        at[id(optimizer)] = list(range(position, position + rated))
        position += rated
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step")
        for name in sorted(counts.keys() & parts.counts.keys()):
            first, rates = parts.counts[name], list[Rates]()
            for values in parts.schedules.walk(name, counts[name]):
                told = [repr(value) for value in values]
                if rates and rates[-1].values == told:
                    rates[-1] = Rates(steps=rates[-1].steps + 1, values=told)
                else:
                    rates.append(Rates(steps=1, values=told))
            groups = at[id(parts.schedules.optimizer_of(name))]
            found.append(Course(name=name, groups=groups, first=first, rates=rates))
    return found

"""Laws of initialisation: written as text, bound to a tensor's shape, and tested against its values.

=============================  ==================================================================
``kaiming_uniform(mode, g)``   U(±g·√3/√fan); ``mode`` fan_in (default) or fan_out, gain g = √2 (relu)
``kaiming_normal(mode, g)``    N(0, g²/fan)
``xavier_uniform(g)``          U(±g·√6/√(fan_in + fan_out)), g = 1
``xavier_normal(g)``           N(0, 2g²/(fan_in + fan_out))
``default``                    U(±1/√fan_in): what torch gives weights of linear and convolutional layers
``bias``                       U(±1/√fan_in of the weight beside it): what torch gives their biases, and, with the
                               hidden-to-hidden weight, every tensor of its recurrent layers
``normal(mean, std)``          ``normal(0, 1)`` is torch's for embeddings
``truncated_normal(m, s, a, b)``  N(m, s²) given that the value lies in [a, b]
``uniform(a, b)``, ``constant(c)``
=============================  ==================================================================

Fans are those of ``torch.nn.init``: they need two dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pol.distributions import Constant, Distribution, Normal, Uniform
from pol.errors import UsageError

Shape = Sequence[int]


def fans(shape: Shape) -> tuple[int, int] | None:
    """Fan-in and fan-out as ``torch.nn.init`` computes them; None with fewer than two dimensions, or without values."""
    if len(shape) < 2 or 0 in shape:
        return None
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def weight_beside(key: str) -> str | None:
    """Key of the weight whose fan a bias has; None if the key is not that of a bias, as torch names them."""
    if match := re.fullmatch(r"(.*\b)(?:weight_ih|weight_hh|bias_ih|bias_hh)(_l\d+(?:_reverse)?)?", key):
        return f"{match[1]}weight_hh{match[2] or ''}"
    return re.sub(r"bias$", "weight", key) if re.search(r"[./]bias$", key) else None


# -- laws as text -------------------------------------------------------------------------------------------------

_RELU = math.sqrt(2)
_MODES = ("fan_in", "fan_out")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_COUNTS: dict[str, tuple[int, int]] = {  # fewest and most numbers
    "kaiming_uniform": (0, 1), "kaiming_normal": (0, 1), "xavier_uniform": (0, 1), "xavier_normal": (0, 1),
    "default": (0, 0), "bias": (0, 0), "normal": (2, 2), "truncated_normal": (4, 4), "uniform": (2, 2),
    "constant": (1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Law:
    """A law of initialisation; ``parse`` reads one."""

    name: str
    numbers: tuple[float, ...] = ()
    mode: str | None = None

    def __str__(self) -> str:
        inside = ", ".join([*([self.mode] if self.mode else []), *(f"{number:.15g}" for number in self.numbers)])
        return f"{self.name}({inside})" if inside else self.name

    def of(self, key: str, shapes: Mapping[str, Shape]) -> Distribution | None:
        """The distribution of the tensor ``key``; None if the law says nothing about such a tensor."""
        if self.name in _FIXED:
            return _FIXED[self.name](*self.numbers)
        owner = weight_beside(key) if self.name == "bias" else key
        found = fans(shapes.get(owner or "", ()))
        if found is None:
            return None
        fan_in, fan_out = found
        if self.name in ("default", "bias"):
            return Uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        if self.name.startswith("xavier"):
            std = (self.numbers[0] if self.numbers else 1.0) * math.sqrt(2 / (fan_in + fan_out))
        else:
            fan = fan_out if self.mode == "fan_out" else fan_in
            std = (self.numbers[0] if self.numbers else _RELU) / math.sqrt(fan)
        bound = math.sqrt(3) * std
        return Normal(0.0, std) if self.name.endswith("normal") else Uniform(-bound, bound)


_FIXED: dict[str, Callable[..., Distribution]] = {
    "normal": Normal,
    "truncated_normal": Normal,
    "uniform": Uniform,
    "constant": Constant,
}


def parse(text: str) -> Law:
    """A law from its text, such as ``kaiming_normal(fan_out)`` or ``normal(0, 0.02)``.

    Raises:
        UsageError: there is no such law, or not with these arguments.
    """
    match = re.fullmatch(r"([a-z_]+)(?:\(([^()]*)\))?", text.strip(), re.ASCII)
    if match is None or match[1] not in _COUNTS:
        raise UsageError(f"{text!r} is no law of initialisation; there are {', '.join(_COUNTS)}")
    name, words = match[1], [word.strip() for word in match[2].split(",")] if match[2] else []
    mode = words.pop(0) if words and name.startswith("kaiming") and words[0] in _MODES else None
    if not all(_NUMBER.fullmatch(word) for word in words):
        raise UsageError(f"law {text!r}: its arguments must be numbers{', after fan_in or fan_out' * ('kai' in name)}")
    numbers = tuple(float(word) for word in words)
    fewest, most = _COUNTS[name]
    if not fewest <= len(numbers) <= most or not all(map(math.isfinite, numbers)):
        raise UsageError(f"law {text!r}: {name} takes {fewest if fewest == most else f'{fewest} or {most}'} numbers")
    scale = numbers[:1] if name.startswith(("kaiming", "xavier")) else numbers[1:2] if "normal" in name else ()
    ends = numbers if name == "uniform" else numbers[2:] if name == "truncated_normal" else (0.0, 1.0)
    if any(size <= 0 for size in scale) or ends[0] >= ends[1]:
        raise UsageError(f"law {text!r}: a scale must be positive, and the lower end below the upper")
    return Law(name, numbers, mode)


CANDIDATES = tuple(
    parse(text)
    for text in (
        "default", "bias", "kaiming_normal", "kaiming_uniform", "kaiming_normal(fan_out)", "kaiming_uniform(fan_out)",
        "xavier_uniform", "xavier_normal", "kaiming_normal(fan_in, 1)", "normal(0, 1)", "normal(0, 0.02)",
        "normal(0, 0.01)", "uniform(0, 1)",
    )
)  # fmt: skip
"""Laws that are tried, in this order, for a tensor whose law nobody named."""

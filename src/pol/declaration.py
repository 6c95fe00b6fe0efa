"""What a training program declares before its first step: parts, state, hyperparameters, data.

The dry build writes it down, the genesis signs it, and every later run of the program must declare the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from pol.digest import DIGEST_PATTERN
from pol.merkle import Root
from pol.statetree import Entry

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
DigestField = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter group of an optimizer: parameter names and static hyperparameters (tagged values)."""

    parameters: list[Name]
    hyperparameters: dict[str, Any]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that the program attached."""

    name: Name
    kind: Literal["module", "optimizer", "schedule", "object", "generator"]
    type: Name
    groups: list[Group] = []
    """Of an optimizer."""
    dynamic: list[str] = []
    """Hyperparameters of an optimizer that may change during the run; the others must not."""
    counted: bool = False
    """Of a schedule: its argument-free steps are counted, and it is never loaded."""


class External(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the build read."""

    name: Name
    digest: DigestField


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A base that the training uses and never changes: in no state and no checkpoint, bound by its root."""

    name: Name
    root: Root
    """Base root (``statetree.base_root``) of the ``state_dict`` of the module, under each of its names."""


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Everything that ``attach``, ``epochs``, ``batches`` and ``loader`` were told."""

    parts: list[Part]
    entries: list[Entry]
    """The state before step 0, sorted as in the state tree."""
    aliases: dict[str, str]
    """Names of tied tensors, to the name under which each is stored."""
    epochs: Positive
    samples: Count
    """Of the committed dataset; 0 of a stream, of which nothing is committed beforehand."""
    batch_size: Positive
    drop_last: bool
    external: list[External]
    streams: Literal["derived", "observed"] = "derived"
    """Who sets the generators: the seed before every step, or the program (then they are state)."""
    order: Literal["derived", "recorded", "stream"] = "derived"
    """*derived*: from the seed, or a file of the claimant's; *recorded*: a sampler of the program's own, whose indices
    stand in the records; *stream*: an iterable dataset, of which there are batch digests alone."""
    batches: Positive | None = None
    """Batches of an epoch where a loader of the program's own says; None: samples over batch_size."""
    frozen: list[Frozen] = []
    ignored: list[Name] = []
    """Attributes that evolve and are in no state, of which the program says that they have no influence."""

    def __post_init__(self) -> None:
        if (self.order == "stream") != (self.samples == 0) or (self.order == "derived") != (self.batches is None):
            raise ValueError(f"order {self.order!r} with {self.samples} samples and {self.batches} batches an epoch")

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch, with the last partial one unless it is dropped."""
        if self.batches is not None:
            return self.batches
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def steps_per_epoch(self, batches_per_step: int) -> int:
        """Optimizer updates of one epoch; the last may close fewer batches."""
        return -(-self.batches_per_epoch // batches_per_step)

    def batches_before(self, step: int, batches_per_step: int) -> int:
        """Batches of a whole run that enter the steps before ``step``."""
        epoch, within = divmod(step, self.steps_per_epoch(batches_per_step))
        return epoch * self.batches_per_epoch + within * batches_per_step


def difference(expected: Declaration, found: Declaration) -> str | None:
    """The first field in which two declarations differ, for a message; None if they are equal."""
    return _difference(msgspec.to_builtins(expected), msgspec.to_builtins(found), "declaration")


def _difference(a: Any, b: Any, where: str) -> str | None:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b})
        return next((d for key in keys if (d := _difference(a.get(key), b.get(key), f"{where}.{key}"))), None)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for i, (x, y) in pairs if (d := _difference(x, y, f"{where}[{i}]"))), None)
    return None if type(a) is type(b) and a == b else f"{where}: {str(a)[:120]} became {str(b)[:120]}"

"""What each entry of a foreign first state is, by the verifier's own builds; ``pol.verifier.foreign`` says more."""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pol import laws
from pol.checkpoint import Checkpoint
from pol.distributions import Constant, Distribution, holm, p_value
from pol.laws import CANDIDATES, Law
from pol.proof.policy import Policy
from pol.statetree import FLOATING, Entry
from pol.values import Values

BUILDS = 4
"""Own builds: with four times the values of the tensor under test, a law that is slightly off shows here first."""

MOST_BUILDS = 16

ENOUGH = 64
"""Values that own builds give together, so that a law can be told at all; smaller tensors take more builds."""

_POOL = 1 << 26
"""Values of own builds that are held at once: 256 MiB of float32."""

_MISSES = 10
"""Own builds may miss their law this many times less often than the level: chance rarely leaves a tensor unverified."""

_GLANCE = 1 << 16
"""A law that these values rule out is not tried on all."""

DRAWN = ("parameter", "buffer", "transient")
"""Kinds of entries that an initialisation draws."""


class Builds:
    """Builds of the verifier's recipe under different seeds of its own. What they say is worked out once."""

    def __init__(self, states: Sequence[Checkpoint]) -> None:
        self.states = states
        self._contents: dict[str, tuple[str, ...]] = {}
        self._fitting: dict[tuple[str, Law | None, float], dict[str, Distribution] | str] = {}

    def contents(self, key: str) -> tuple[str, ...]:
        """Digest of an entry in each build."""
        if key not in self._contents:
            self._contents[key] = tuple(digest(state, key) for state in self.states)
        return self._contents[key]

    def fitting(self, key: str, law: Law | None, level: float) -> dict[str, Distribution] | str:
        """The laws that the builds fit, or why there is none; tried is ``law``, or every standard one."""
        if (key, law, level) not in self._fitting:
            shapes = {key: slot.entry.shape for key, slot in self.states[0].entries.items()}
            entry = self.states[0].entries[key].entry
            tried = CANDIDATES if law is None else [law]
            self._fitting[key, law, level] = _fitting(entry, self.states, tried, shapes, level)
        return self._fitting[key, law, level]


@dataclass(frozen=True)
class Finding:
    """What was found out about one entry of the first state."""

    key: str
    status: Literal["passed", "failed", "unverified"]
    detail: str
    law: str | None = None
    p: float | None = None
    """Of a drawn tensor: how likely honest draws are to fit the law no better."""
    settled: bool = False
    """Known to follow from the seed of the run; not looked at here."""


def account(
    first: Checkpoint, own: Builds | Sequence[Checkpoint], policy: Policy, settled: Collection[str] = ()
) -> list[Finding]:
    """One finding per entry of the first state or the own builds, and per pattern of the policy that matches none.

    Args:
        first: The first state of the proof.
        own: Builds of the verifier's recipe under seeds of its own; different ones. ``Builds`` remember what they are.
        policy: Its laws, its level, and which constants it permits.
        settled: Entries that are known to follow from the seed of the run, bit for bit.
    """
    own = own if isinstance(own, Builds) else Builds(own)
    build = own.states[0]
    named = {pattern: laws.parse(text) for pattern, text in policy.laws.items()}
    keys = sorted({*first.entries, *build.entries}, key=lambda key: (not key.startswith("parameter/"), key))
    found = [
        Finding(pattern, "unverified", f"matches no entry, but your policy names its law ({law})")
        for pattern, law in named.items()
        if not fnmatch.filter(keys, pattern)
    ]
    owners: dict[tuple[str, ...], str] = {}
    drawn: list[str] = []
    for key in keys:
        if key in settled:
            found.append(Finding(key, "passed", "follows from the seed of the run", settled=True))
            continue
        if objection := _objection(key, first, own.states):
            found.append(objection)
            continue
        contents, entry = own.contents(key), build.entries[key].entry
        if len(set(contents)) == 1:
            found.append(_fixed(key, contents[0], _named(key, named), first, build, policy))
        elif contents in owners:
            found.append(_copy(key, owners[contents], first))
        elif entry.dtype in FLOATING and entry.kind in DRAWN:
            owners[contents] = key
            drawn.append(key)
        else:
            found.append(Finding(key, "unverified", "depends on the seed, and no law describes such an entry"))
    return found + _drawn(drawn, first, own, named, policy.level)


def _objection(key: str, first: Checkpoint, own: Sequence[Checkpoint]) -> Finding | None:
    """Why an entry cannot be looked at."""
    entries = [state.entries[key].entry if key in state.entries else None for state in own]
    if len(own) < 2:
        return Finding(key, "unverified", "takes two own builds to be known")
    if any(entry != entries[0] for entry in entries):
        return Finding(key, "unverified", "is not of one dtype and shape in all of your own builds")
    if entries[0] is None:
        return Finding(key, "failed", "is in the first state, but not in what your recipe builds")
    if key not in first.entries or first.entries[key].entry != entries[0]:
        return Finding(key, "failed", "is missing, or not of the dtype and shape that your recipe builds")
    return None


def _named(key: str, named: Mapping[str, Law]) -> Law | None:
    return next((law for pattern, law in named.items() if fnmatch.fnmatchcase(key, pattern)), None)


def _fixed(key: str, content: str, law: Law | None, first: Checkpoint, own: Checkpoint, policy: Policy) -> Finding:
    """An entry that is the same under every seed."""
    value = _repeated(own, key)
    name = str(law) if law else "fixed" if value is None else str(Law("constant", (float(value),)))
    if digest(first, key) != content:
        return Finding(key, "failed", "is not what your recipe builds under every seed", name)
    entry = own.entries[key].entry
    if law is not None:
        bound = law.of(key, {})
        kind = entry.dtype if entry.dtype in FLOATING else "F64"
        if value is None or not isinstance(bound, Constant) or not p_value(np.array([value]), bound, kind):
            return Finding(key, "unverified", f"is the same under every seed, against the law {law}", name)
    elif value is None and entry.num_bytes and not permitted(entry.kind, policy.constants):
        return Finding(key, "unverified", "has the same several values under every seed: they may come from elsewhere")
    return Finding(key, "passed", "is what your recipe builds under every seed", name)


def permitted(kind: str, constants: str) -> bool:
    """Whether a policy allows entries of this kind that hold several values under every seed."""
    return constants == "any" or (constants == "buffers" and kind not in ("parameter", "optimizer", "object"))


def _repeated(state: Checkpoint, key: str) -> float | None:
    """The one value that all elements of an entry have; None if they have several, or there are none."""
    found: set[float] = set()  # integers stay integers: large ones that differ must not become equal
    for chunk in state.chunks(key):
        found |= {chunk.min().item(), chunk.max().item()}
        if len(found) > 1 or not all(map(math.isfinite, found)):
            return None
    return found.pop() if found else None


def _copy(key: str, owner: str, first: Checkpoint) -> Finding:
    if digest(first, key) == digest(first, owner):
        return Finding(key, "passed", f"is a copy of {owner}", f"copy of {owner}")
    return Finding(key, "failed", f"is not the copy of {owner} that your recipe makes", f"copy of {owner}")


# -- drawn tensors ------------------------------------------------------------------------------------------------


def _drawn(
    keys: Sequence[str], first: Checkpoint, own: Builds, named: Mapping[str, Law], level: float
) -> list[Finding]:
    """Test the tensors that an initialisation draws, all at one family-wise level."""
    unknown, tested = [], []
    for key in keys:
        law = _named(key, named)
        fitting = own.fitting(key, law, level / _MISSES / len(keys))
        if isinstance(fitting, str):
            because = f"{law}, the law that your policy names, {fitting}" if law else fitting
            unknown.append(Finding(key, "unverified", because, str(law) if law else None))
            continue
        values, dtype = _sorted([first], key), first.entries[key].entry.dtype
        best, p = _best(fitting, values, dtype)
        standard = own.fitting(key, None, level / _MISSES / len(keys)) if law is not None else ""
        if not isinstance(standard, str):  # a law that is named is one more demand, never another one instead
            best, p = min((best, p), _best(standard, values, dtype), key=lambda pair: pair[1])
        tested.append(Finding(key, "passed", "", best, p))
    # Unverified tensors count, too: naming a law for one of them must not make the test of the others milder.
    rejected = holm([*(found.p or 0.0 for found in tested), *(1.0 for _ in unknown)], level)
    return unknown + [_told(found, wrong) for found, wrong in zip(tested, rejected, strict=False)]


def _best(fitting: Mapping[str, Distribution], values: Values, dtype: str) -> tuple[str, float]:
    """The law that values fit best (of laws that are one for this shape, the first), and its p-value."""
    found = {name: p_value(values, distribution, dtype) for name, distribution in fitting.items()}
    best = max(found, key=found.__getitem__)
    return best, found[best]


def _told(found: Finding, rejected: bool) -> Finding:
    how = "does not fit" if rejected else "fits"
    detail = f"{how} the law {found.law}, by which your recipe draws it (p = {found.p:.2g})"
    return Finding(found.key, "failed" if rejected else "passed", detail, found.law, found.p)


def _fitting(
    entry: Entry, own: Sequence[Checkpoint], tried: Iterable[Law], shapes: Mapping[str, laws.Shape], level: float
) -> dict[str, Distribution] | str:
    """The laws that own builds fit, or why there is none.

    Small tensors can fit several. Then the first state may fit any of them: whichever is the right one, honest draws
    fail no more often than the level says.
    """
    size = math.prod(entry.shape)
    builds = own[: max(1, _POOL // size)]
    if size * len(builds) < ENOUGH and len(own) < MOST_BUILDS:
        return f"has {size * len(own)} values in {len(own)} own builds: too few to know its law; build more"
    bound = {str(law): found for law in tried if (found := law.of(entry.key, shapes)) is not None}
    glance = np.sort(next(own[0].chunks(entry.key))[:_GLANCE])
    bound = {name: law for name, law in bound.items() if p_value(glance, law, entry.dtype) >= level}
    values = _sorted(builds, entry.key)
    if fitting := {name: law for name, law in bound.items() if p_value(values, law, entry.dtype) >= level}:
        return fitting
    mean, std = float(np.mean(values, dtype=np.float64)), float(np.std(values, dtype=np.float64))
    return (
        "does not fit what your recipe draws: your own builds have mean "
        f"{mean:.3g} and standard deviation {std:.3g}; name its law in the policy"
    )


def everything(state: Checkpoint, key: str) -> NDArray[Any]:
    """All values of an entry."""
    return np.concatenate(list(state.chunks(key)) or [np.zeros(0)])


def _sorted(states: Sequence[Checkpoint], key: str) -> NDArray[Any]:
    """All values of an entry in some states, in order."""
    values = np.concatenate([everything(state, key) for state in states])
    values.sort()
    return values


def digest(state: Checkpoint, key: str) -> str:
    """Digest of an entry's content."""
    digest = hashlib.sha256()
    for chunk in state.chunks(key):
        digest.update(chunk.tobytes())
    return digest.hexdigest()

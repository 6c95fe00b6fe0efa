"""Compares what two probes noted: the first step that differs, and the first operation in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pol.doctor.diagnosis import Site
from pol.messages import Traced
from pol.traces import Held, Observation, Operation


@dataclass(frozen=True)
class Difference:
    """The first step after which two runs differ, and in what."""

    step: int
    batch: list[str]
    generators: list[str]
    flags: list[str]
    loss: bool
    state: list[str]
    entries: int

    def before(self) -> list[str]:
        """What differs besides the state, for a reader."""
        found = [f"field {name} of the batch" for name in self.batch]
        found += [f"{name} generator" for name in self.generators]
        return found + (["the loss"] if self.loss else [])


def differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """The keys under which two mappings differ, or that one of them lacks; parameters before other entries."""
    found = [key for key in {*a, *b} if a.get(key) != b.get(key)]
    return sorted(found, key=lambda key: (not key.startswith("parameter/"), key))


def first_difference(first: Sequence[Observation], second: Sequence[Observation]) -> Difference | None:
    """The first step of both runs whose batch, loss or end state differs; None if there is none.

    Generators alone are none: they are set before every step, so what was drawn after the last use is forgotten.
    """
    others = {seen.step: seen for seen in second}
    for a in first:
        b = others.get(a.step)
        if b is None:
            continue
        found = Difference(
            step=a.step,
            batch=differing(a.batch, b.batch),
            generators=differing(a.generators, b.generators),
            flags=differing(a.flags, b.flags),
            loss=a.loss != b.loss,
            state=differing(a.state, b.state),
            entries=len({*a.state, *b.state}),
        )
        if found.batch or found.loss or found.state:
            return found
    return None


def find_site(a: Traced, b: Traced) -> Site | None:
    """The first operation that two traces of one step do not share."""
    for number in range(max(len(a.operations), len(b.operations))):
        one, other = (t.operations[number] if number < len(t.operations) else None for t in (a, b))
        if one is None or other is None or one.name != other.name:
            return _sequence(a, b, number, one, other)
        if one.inputs != other.inputs:
            return _site("input", a.operations, number, _changed(one, other))
        if one.outputs != other.outputs:
            return _site("operation", a.operations, number, "the same inputs gave another result")
    return None


def _changed(one: Operation, other: Operation) -> str:
    pairs = list(zip(one.inputs, other.inputs, strict=False))
    place = next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))
    if place == len(pairs):
        return "it was given another number of inputs"
    x, y = pairs[place]
    if x.startswith("generator "):
        return "the generator that it draws from was in another state"
    if "[" in x and "[" in y and x.split()[0] == y.split()[0]:
        return f"input {place + 1}, a tensor {x.split()[0]}, was another one, although no operation before differs"
    return f"input {place + 1} was {x.split()[0]} in one run and {y.split()[0]} in the other"


def _sequence(a: Traced, b: Traced, number: int, one: Operation | None, other: Operation | None) -> Site | None:
    if not (a.complete and b.complete) and (one is None or other is None):
        return None
    # The run that does more than the other is the one whose line says what; a place of the recipe's is best.
    longer = a if len(a.operations) >= len(b.operations) else b
    detail = "one run does something else from here on"
    site = _site("sequence", longer.operations, number, detail)
    names = [None if operation is None else operation.name for operation in (one, other)]
    if longer is b:
        names.reverse()
    return Site(
        kind="sequence", operation=site.operation, other=names[1], place=site.place, line=site.line,
        backward=site.backward, detail=detail,
    )  # fmt: skip


def _site(kind: str, operations: list[Operation], number: int, detail: str) -> Site:
    operation = operations[number]
    placed = next((o for o in reversed(operations[: number + 1]) if o.place), operation)
    return Site(
        kind=kind, operation=operation.name, other=None, place=placed.place, line=placed.line,  # type: ignore[arg-type]
        backward=operation.backward, detail=detail,
    )  # fmt: skip


def changed_holdings(a: Traced, b: Traced) -> list[Held]:
    """What both programs held when the step began, with other values."""
    others = {held.name: held for held in b.held}
    return [held for held in a.held if held.name in others and others[held.name].digest != held.digest]

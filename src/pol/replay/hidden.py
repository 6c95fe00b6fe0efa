"""Values that hang on attached things and are in no state: fingerprints of them, to see whether they evolve.

A counter in an attribute of a module is lost when the program is entered in the middle. Which attributes evolve is
not guessed from their names: the control run compares what they are when a program has come to a step by itself with
what they are when it was entered again, in its state, one step before.
"""

from __future__ import annotations

from pol.errors import UsageError
from pol.replay.parts import Parts
from pol.replay.walk import Walk, hanging, recorded, within


def fingerprints(parts: Parts) -> dict[str, str]:
    """A fingerprint of every hidden value, by a name such as ``model.encoder.calls``."""
    walk = Walk(recorded(parts))
    for name, value in hanging(parts):
        walk.value(name, value)
    return walk.found


def evolving(before: dict[str, str], after: dict[str, str], ignored: list[str]) -> list[str]:
    """Names of values that two arrivals at one step do not share, without the ``ignored`` ones and what is in them.

    Raises:
        UsageError: a name in ``ignored`` is that of no value.
    """
    names = before.keys() | after.keys()
    for name in ignored:
        if not any(within(found, name) for found in names):
            raise UsageError(
                f"attach(ignored=...): no attached thing has {name!r} after the first steps, or it is recorded: name "
                "an attribute as the message does that refused it (model.encoder.calls)"
            )
    different = sorted(name for name in names if before.get(name) != after.get(name))
    return [name for name in different if not any(within(name, outer) for outer in ignored)]

"""The release map: which entries of the last checkpoint make the released model, and under which names."""

from __future__ import annotations

from collections.abc import Iterable

from pol.container import Placed
from pol.declaration import Declaration
from pol.proof.genesis import Release
from pol.statetree import WEIGHTS


def released_part(declaration: Declaration) -> Release | None:
    """What a training releases: the module called ``model``, or the only one; None if there are several others."""
    modules = [part.name for part in declaration.parts if part.kind == "module"]
    if "model" in modules:
        return Release(part="model")
    return Release(part=modules[0]) if len(modules) == 1 else None


def released(declaration: Declaration, part: str, placed: Iterable[Placed]) -> tuple[dict[str, Placed], set[str]]:
    """The tensors of ``part`` by the names that its ``state_dict`` gives them, and the names that may be absent.

    A tied tensor is stored once, under its first name in any part; a name for a tensor that stands under another
    name of the same part may be absent.
    """
    prefix = part + "."
    stored = {slot.entry.name: slot for slot in placed if slot.entry.kind in WEIGHTS}
    tensors = {name.removeprefix(prefix): slot for name, slot in stored.items() if name.startswith(prefix)}
    optional = set()
    for alias, owner in declaration.aliases.items():
        if alias.startswith(prefix) and owner in stored:
            tensors[alias.removeprefix(prefix)] = stored[owner]
            if owner.startswith(prefix):
                optional.add(alias.removeprefix(prefix))
    return tensors, optional

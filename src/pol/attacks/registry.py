"""Every attack by name: those of each module of this package that has ``ATTACKS``, and those of files named to it."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path

from pol import attacks
from pol.attacks.attack import Attack
from pol.errors import UsageError
from pol.replay.recipe import split_reference
from pol.replay.sources import source_files


def _family(module: str) -> tuple[Attack, ...]:
    found: tuple[Attack, ...] = getattr(importlib.import_module(module), "ATTACKS", ())
    return found


FAMILIES: dict[str, tuple[Attack, ...]] = {
    module.name: found
    for module in pkgutil.iter_modules(attacks.__path__)
    if module.name != "registry" and (found := _family(f"{attacks.__name__}.{module.name}"))
}
"""The attacks of each module of this package that has some: a further family is one more file."""

REGISTRY: dict[str, Attack] = {attack.name: attack for family in FAMILIES.values() for attack in family}


def read_attacks(path: Path | str) -> tuple[Attack, ...]:
    """The attacks of a Python file elsewhere: its ``ATTACKS``. Runs its code.

    Raises:
        UsageError: there is no such file, it cannot be run, it has no attacks, or one has a name that is taken.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file: name a Python file with a tuple ATTACKS")
    name = f"{path.stem} of {path.resolve().parent}"  # of its own: no module that others import is called so
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in their annotations
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    found = getattr(module, "ATTACKS", None)
    if not isinstance(found, tuple | list) or not found or not all(isinstance(one, Attack) for one in found):
        raise UsageError(f"{path}: expected ATTACKS, a tuple of pol.attacks.attack.Attack (docs/attacks.md has one)")
    names = [attack.name for attack in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path}: several attacks are called {twice[0]}; give each a name of its own")
    for attack in found:
        if attack.name in REGISTRY:
            raise UsageError(f"{path}: there is an attack called {attack.name} already; give yours another name")
    return tuple(found)


def attack_named(name: str) -> Attack:
    """An attack of this package by its name, or one of a file as ``path/to/file.py:name``.

    Raises:
        UsageError: there is none.
    """
    where, colon, own = name.rpartition(":")
    if colon:
        found = {attack.name: attack for attack in read_attacks(where)}
        if own not in found:
            raise UsageError(f"{where} has no attack {own!r}; it has {', '.join(found)}")
        return found[own]
    if name.endswith(".py"):
        raise UsageError(f"name one of {', '.join(f'{name}:{attack.name}' for attack in read_attacks(name))}")
    if name not in REGISTRY:
        raise UsageError(f"no attack is called {name!r}: `pol attack list` names them all")
    return REGISTRY[name]


def sources(recipe: str, names: Iterable[str]) -> list[Path]:
    """Files outside the package that say what is trained and what is tried: a recipe's, its local modules, attacks'."""
    where, _ = split_reference(recipe)
    trained = source_files(recipe).values() if where.endswith(".py") else ()
    return [*trained, *(Path(name.rpartition(":")[0]) for name in names if ":" in name)]

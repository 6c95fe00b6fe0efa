"""Which local source files make up a recipe, found without running them.

The recipe digest covers the recipe's file and every local module that its import statements reach, wherever in
the code they stand. Local means: beside the recipe's file, or in the same top-level package. Installed packages
are recorded by version in the platform instead.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from pathlib import Path

from pol.digest import Digest, sha256
from pol.errors import UsageError
from pol.replay.recipe import split_reference

MAX_SOURCE = 10 * 2**20
"""Largest source file that is read: 10 MiB, far beyond any file that a person has read."""


def local_sources(reference: str) -> dict[str, Digest]:
    """Module name to SHA-256 of its file, for all local modules of a recipe.

    Raises:
        UsageError: the recipe's module cannot be found, or a file is not Python.
    """
    root, start, prefix = _root(reference)
    found: dict[str, Digest] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        path = _locate(root, name)
        if name in found or path is None or not _belongs(name, prefix):
            continue
        data = path.read_bytes()
        if len(data) > MAX_SOURCE:
            raise UsageError(f"{path}: {len(data)} bytes is more than a source file may have ({MAX_SOURCE})")
        found[name] = sha256(data)
        waiting += [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        try:
            waiting += _imports(data, package)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UsageError(f"{path} is not Python that can be read: {error}") from None
    return dict(sorted(found.items()))


def source_files(reference: str) -> dict[str, Path]:
    """Module name to file, for all local modules of a recipe."""
    root, _, _ = _root(reference)
    located = {name: _locate(root, name) for name in local_sources(reference)}
    return {name: path for name, path in located.items() if path is not None}


def undeclared_modules(reference: str, sources: dict[str, Digest], before: set[str]) -> list[str]:
    """Local modules that were imported since ``before`` and that ``sources`` lacks (dynamic imports)."""
    root, _, prefix = _root(reference)
    return sorted(
        name
        for name, module in list(sys.modules.items())
        if name not in sources
        and name not in before
        and name != "__main__"
        and _belongs(name, prefix)
        and getattr(module, "__file__", None) is not None
        and (path := _locate(root, name)) is not None
        and path == Path(str(module.__file__)).resolve()
    )


def _root(reference: str) -> tuple[Path, str, str | None]:
    """(folder in which local names are looked up, module name of the recipe, required name prefix)."""
    where, _ = split_reference(reference)
    if where.endswith(".py"):
        path = Path(where).resolve()
        return path.parent, path.stem, None
    top = where.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise UsageError(f"no module named {top!r} (from the recipe {reference!r})")
    origin = Path(spec.origin).resolve()
    return (origin.parent.parent if spec.submodule_search_locations else origin.parent), where, top


def _belongs(name: str, prefix: str | None) -> bool:
    if name == "pol" or name.startswith("pol."):  # this package itself is the verifier's own
        return prefix == "pol" and name.startswith("pol.recipes.")
    return prefix is None or name == prefix or name.startswith(prefix + ".")


def _locate(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py") if name else base, base / "__init__.py"):
        if candidate.is_file():
            return candidate.resolve()
    return None


@functools.lru_cache(maxsize=64)
def _imports(data: bytes, package: str) -> list[str]:
    """The names that a source of ``package`` imports, and those that they may stand for."""
    names: list[str] = []
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names += [module, *(f"{module}.{alias.name}" if module else alias.name for alias in node.names)]
    return [candidate for candidate in names if candidate]

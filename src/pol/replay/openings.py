"""Notes which files a build reads, so that weights cannot come in through the back door."""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from pol.declaration import External
from pol.digest import sha256_chunks

_SYSTEM = tuple(
    str(Path(path).resolve()) + os.sep
    for path in {
        *sysconfig.get_paths().values(), site.getusersitepackages(), sys.prefix, sys.base_prefix,
        "/proc", "/sys", "/dev", "/etc", "/usr",
    }
)  # fmt: skip
_CHUNK = 1 << 20

_active: list[set[str]] = []
_installed = False


def _install() -> None:
    """From now on note what is opened: by Python, through an audit hook; and by safetensors, which opens by itself."""
    global _installed
    if _installed:
        return
    sys.addaudithook(_hook)
    native = safetensors.safe_open

    def noting(filename: Any, *args: Any, **options: Any) -> Any:
        _hook("open", (os.fspath(filename), "r", 0))
        return native(filename, *args, **options)

    for module in (safetensors, safetensors.torch):
        module.safe_open = noting  # type: ignore[attr-defined]
    _installed = True


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _active:
        return
    path, mode = arguments[0], arguments[1]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if isinstance(path, str) and not (isinstance(mode, str) and any(flag in mode for flag in "wax")):
        _active[-1].add(os.path.abspath(path))


def watching() -> bool:
    """Whether what is opened now is noted."""
    return bool(_active)


class FileWatch:
    """The files opened for reading between ``start`` and ``stop``, except imported code and installed packages.

    It sees what Python and safetensors open; another native library that opens files itself is not seen.
    """

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._code: set[str] = set()

    def start(self, seen: frozenset[str] = frozenset()) -> None:
        """Begin to note; ``seen`` are paths that count as opened."""
        _install()
        self._paths = set(seen)
        _active[:] = [self._paths]

    def seen(self) -> frozenset[str]:
        """The paths opened until now."""
        return frozenset(self._paths)

    def stop(self) -> list[External]:
        """Stop noting, and hash what was read."""
        _active.clear()
        opened = set(_real(self._paths))
        opened = {path for path in opened if not path.startswith(_SYSTEM) and os.path.isfile(path)}
        if not opened <= self._code:
            imported = _imported({os.path.basename(_source(path)) for path in opened})
            self._code = {path for path in opened if _source(path) in imported}
        found = []
        for real in sorted(opened - self._code):
            with open(real, "rb") as file:
                found.append(External(name=Path(real).name, digest=sha256_chunks(iter(lambda: file.read(_CHUNK), b""))))
        return found


def _real(paths: Iterable[str]) -> Iterator[str]:
    """Paths without links; each folder is looked up once."""
    folders: dict[str, str] = {}
    for path in paths:
        if os.path.islink(path):
            yield os.path.realpath(path)
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        yield os.path.join(folders[folder], name)


def _source(path: str) -> str:
    """The source of a compiled module; the path itself for any other file."""
    try:
        return importlib.util.source_from_cache(path) if path.endswith(".pyc") else path
    except ValueError:
        return path


def _imported(names: set[str]) -> set[str]:
    """Files of imported modules, of these names: the recipe digest covers them, or they are installed."""
    found: set[str] = set()
    for module in list(sys.modules.values()):
        spec = getattr(module, "__dict__", {}).get("__spec__")  # not getattr: some modules load others when asked
        origin = getattr(spec, "origin", None)
        if isinstance(origin, str) and origin.rpartition(os.sep)[2] in names:
            found.add(os.path.realpath(origin))
    return found

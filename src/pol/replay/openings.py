"""Notes which files a build reads, so that weights cannot come in through the back door."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from pol.declaration import External
from pol.digest import sha256_chunks

_SYSTEM = tuple(
    str(Path(path).resolve()) + os.sep
    for path in {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev", "/etc", "/usr"}
)
_CODE = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", ".pth")
_CHUNK = 1 << 20

_active: list[set[str]] = []
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _active:
        return
    path, mode = arguments[0], arguments[1]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if isinstance(path, str) and not (isinstance(mode, str) and any(flag in mode for flag in "wax")):
        _active[-1].add(os.path.abspath(path))


class FileWatch:
    """The files opened for reading between ``start`` and ``stop``, except code and installed packages.

    It sees what Python opens (an audit hook); a native library that opens files itself is not seen.
    """

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def start(self) -> None:
        """Begin to note."""
        global _installed
        if not _installed:
            sys.addaudithook(_hook)
            _installed = True
        self._paths = set()
        _active[:] = [self._paths]

    def stop(self) -> list[External]:
        """Stop noting, and hash what was read."""
        _active.clear()
        found = []
        for path in sorted(self._paths):
            real = os.path.realpath(path)
            if real.endswith(_CODE) or real.startswith(_SYSTEM) or not os.path.isfile(real):
                continue
            with open(real, "rb") as file:
                found.append(External(name=Path(real).name, digest=sha256_chunks(iter(lambda: file.read(_CHUNK), b""))))
        return found

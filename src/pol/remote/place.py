"""A folder at a URL, through fsspec: what is there, and reading and writing it with patience.

fsspec is the extra ``[remote]``; what a protocol needs besides (s3fs, gcsfs, adlfs, sshfs, …) is installed by its name.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pol.errors import FormatError, Incomplete, StoreError, UsageError
from pol.store import CHECKPOINTS, sync

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://.+")
_COLLAPSED = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/[^/].*")

WAITS = (1.0, 4.0)
"""Seconds between tries. Implementations try again by themselves (s3fs five times, for 8 s at a closed port); this is
for what they do not, such as a lost connection in the middle of an answer."""

CHUNK = 1 << 24
"""Bytes that are asked for at a time: 16 MiB is long for a connection to begin, and short to ask for again."""

WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss"})
"""Protocols of object stores, where a name appears with all of its content at once. Anywhere else what is written is
under another name until it is whole."""

T = TypeVar("T")


def is_url(where: Path | str) -> bool:
    """Whether this names a place elsewhere. A URL is text: a ``Path`` has lost one of its slashes.

    Raises:
        UsageError: it was a URL, and has become a path.
    """
    if isinstance(where, Path) and _COLLAPSED.fullmatch(str(where)):
        raise UsageError(f"{where}: give a URL as text, not as a Path, which drops a slash")
    return isinstance(where, str) and _URL.fullmatch(where) is not None


class Place:
    """A folder at a URL; names in it are relative, with forward slashes."""

    def __init__(self, url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Name a place; it is not looked at yet.

        Raises:
            UsageError: nothing that is installed knows such URLs.
        """
        self.url = _shown(url)
        self._sleep = sleep
        if "::" in url:
            raise UsageError(f"{self.url}: chained URLs are not read: name the place itself")
        try:
            import fsspec.core

            self._system, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            hint = "pip install 'proof-of-learning[remote]', and what the protocol needs (for s3://, s3fs)"
            raise UsageError(f"{self.url}: {error} ({hint})") from None
        except Exception as error:  # of an implementation, which may raise what it likes
            raise UsageError(f"{self.url}: {error or type(error).__name__}") from None
        self._root = str(root).rstrip("/")
        self.name = re.sub(r"[^\w.-]|^\.+", "_", self.url.rpartition("/")[2]) or "proof"
        if not self._root:
            raise UsageError(f"{self.url}: name a folder there, not all of it")
        protocol = self._system.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._whole, self._local = not WHOLE.isdisjoint(protocols), not protocols.isdisjoint({"file", "local"})

    def listing(self) -> Iterator[tuple[str, int | None]]:
        """Name and size of all that is there, checkpoints included; None is the size of what is no file.

        Raises:
            UsageError: it is a file.
            StoreError: the place cannot be reached.
        """
        self._system.invalidate_cache()
        for name, entry in self._entries(""):
            if name == CHECKPOINTS and entry["type"] == "directory" and not entry.get("islink"):
                yield from ((f"{name}/{inner}", _size(entry)) for inner, entry in self._entries(name))
            else:
                yield name, _size(entry)

    def _entries(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        path = self._path(folder) if folder else self._root
        try:
            found = self._try(f"cannot list {folder or 'it'}", lambda: self._system.ls(path, detail=True))
        except FileNotFoundError:
            return
        for entry in found:
            name = str(entry["name"]).rstrip("/").removeprefix(path).lstrip("/")
            if name:
                if entry.get("size") is None and entry["type"] == "file":  # HTTP servers list names alone
                    entry = self._try(f"cannot look at {name}", lambda: self._system.info(entry["name"]))  # noqa: B023
                yield name, entry
            elif entry["type"] == "file" and entry.get("size"):  # else the mark of an empty folder in an object store
                raise UsageError(f"{self.url} is a file: name a folder")

    def sizes(self) -> dict[str, int]:
        """Name and size of every file that is there."""
        return {name: size for name, size in self.listing() if size is not None}

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Bytes ``[begin, end)`` of a file.

        Raises:
            Incomplete: it is not there, or shorter.
            FormatError: it is longer, where all of it was asked for.
            StoreError: the place cannot be reached.
        """
        if begin == end:
            return b""  # for which HTTP has no range
        path = self._path(name)
        try:
            data = self._try(f"cannot read {name}", lambda: self._system.cat_file(path, start=begin, end=end))
        except FileNotFoundError:
            raise Incomplete(f"{name}: not there") from None
        if len(data) != end - begin:
            raise (Incomplete if len(data) < end - begin else FormatError)(f"{name}: changed while it was read")
        return bytes(data)

    def put(self, file: Path, name: str) -> None:
        """Write a file there; its name appears when all of it is there.

        Raises:
            StoreError: the place cannot be reached, or refuses.
        """
        self._write(name, lambda path: self._system.put_file(str(file), path))

    def write(self, data: bytes, name: str) -> None:
        """Write bytes there, as ``put`` does.

        Raises:
            StoreError: the place cannot be reached, or refuses.
        """
        self._write(name, lambda path: self._system.pipe_file(path, data))

    def _write(self, name: str, write: Callable[[str], None]) -> None:
        path = self._path(name)
        temporary = path if self._whole else path + ".tmp"

        def written() -> None:
            if not self._whole:
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            write(temporary)
            if self._local:
                sync(Path(temporary))
            if temporary != path:
                self._system.mv(temporary, path)
            if self._local:
                for folder in (Path(path).parent, Path(path).parent.parent):  # the upper one: its name may be new
                    sync(folder)

        try:
            self._try(f"cannot write {name}", written)
        except FileNotFoundError as error:  # of a bucket
            raise StoreError(f"{self.url}: cannot write {name}: {error}") from None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StoreError: the place cannot be reached, or refuses.
        """
        with contextlib.suppress(FileNotFoundError):
            self._try(f"cannot remove {name}", lambda: self._system.rm_file(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _try(self, what: str, action: Callable[[], T]) -> T:
        """Do something, several times if need be.

        Raises:
            FileNotFoundError: as the place says.
            StoreError: anything else went wrong, the last time as well.
        """
        waits = iter(WAITS)
        while True:
            try:
                return action()
            except FileNotFoundError:
                raise
            except Exception as error:  # each implementation has its own
                wait = None if isinstance(error, PermissionError | NotImplementedError) else next(waits, None)
                if wait is None:
                    said = " ".join(str(error).split()) or type(error).__name__
                    raise StoreError(f"{self.url}: {what}: {said}") from error
            self._sleep(wait)


def _size(entry: dict[str, Any]) -> int | None:
    regular = entry["type"] == "file" and not entry.get("islink")
    return int(entry["size"]) if regular else None


def _shown(url: str) -> str:
    """A URL without the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//…@", url.rstrip("/"))

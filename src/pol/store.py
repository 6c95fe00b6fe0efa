"""A proof directory on disk: what is in it, read with limits, written so that a crash leaves no half file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pol.container import read_whole
from pol.digest import Digest, sha256_chunks
from pol.errors import FormatError, StoreError, UsageError

GENESIS = "genesis.json"
LOG = "log.jsonl"
ATTESTATION = "attestation.json"
JOURNAL = "journal.json"
SECRET = "secret.json"
DATASET = "dataset.bin"
ORDER = "order.bin"
CHECKPOINTS = "checkpoints"
LOCK = ".recording"

FILES = (GENESIS, LOG, ATTESTATION, JOURNAL, SECRET, DATASET, ORDER)
_CHECKPOINT = re.compile(r"checkpoints/([0-9]{12})\.safetensors")
_CHUNK = 1 << 20

MAX_LOG_FILE = 2**29
"""Largest log: 512 MiB, half a million intervals of a kilobyte; it is held in memory."""

MAX_DATASET = 2**30
"""Largest list of sample leaves: 1 GiB, 33 million samples; it is held in memory."""

MAX_FILES = 1_000_000
"""Most files of a proof that are listed: at one checkpoint each, more than a verifier would ever keep."""


def checkpoint_path(step: int) -> str:
    """Name of the checkpoint after ``step`` steps, relative to the proof."""
    return f"{CHECKPOINTS}/{step:012d}.safetensors"


def checkpoint_step(name: str) -> int | None:
    """The step of a checkpoint's name; None for another file."""
    match = _CHECKPOINT.fullmatch(name)  # and nothing else: no further character, no digits of other scripts
    return int(match[1]) if match else None


class ProofDirectory:
    """Reads a proof. Names are relative, with forward slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if not path.is_dir():
            raise UsageError(f"{path}: no such proof directory")

    def files(self, further: Collection[str] = ()) -> dict[str, int]:
        """Name and size of every file; ``further`` names may be there, beside those of the format.

        Raises:
            FormatError: something is there that a proof never has: a link, a device, an unknown name.
        """
        return checked(self._listing(), further)

    def _listing(self) -> Iterator[tuple[str, int | None]]:
        """Name and size of all that is there; None is the size of what is no regular file."""
        for name, entry in self._entries(self.path, ""):
            mode = entry.stat(follow_symlinks=False)
            yield name, mode.st_size if stat.S_ISREG(mode.st_mode) else None

    def sizes(self) -> dict[str, int]:
        """Name and size of every file that is there, whatever it is: to look at, not to verify."""
        return {name: size for name, size in self._listing() if size is not None}

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).exists()

    def bring(self) -> None:
        """Have every file at hand, under ``path``. Those of a folder are."""

    def _entries(self, folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not prefix and entry.name == CHECKPOINTS and entry.is_dir(follow_symlinks=False):
                    yield from self._entries(folder / entry.name, CHECKPOINTS + "/")
                else:
                    yield prefix + entry.name, entry

    def open(self, name: str) -> int:
        """A file descriptor of a regular file, never through a link.

        Raises:
            FormatError: there is no such regular file.
        """
        try:
            # Not by pathlib, whose joining takes longer than the call: a verification opens a file for each tensor.
            descriptor = os.open(os.path.join(self.path, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise FormatError(f"{name}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FormatError(f"{name}: not a regular file")
        return descriptor

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a file.

        Raises:
            FormatError: it is missing, not regular, or larger than ``limit``.
        """
        with os.fdopen(self.open(name), "rb") as file:
            size = os.fstat(file.fileno()).st_size  # looked at first: a sparse file of any size costs nothing
            data = file.read(size + 1) if size <= limit else b""
        if not len(data) == size <= limit:
            raise FormatError(f"{name}: larger than the limit of {limit} bytes")
        return data

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FormatError: there is no such regular file.
        """
        with os.fdopen(self.open(name), "rb") as file:
            return os.fstat(file.fileno()).st_size

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes ``[begin, end)`` of a file.

        Raises:
            FormatError: the file is shorter.
        """
        descriptor = self.open(name)
        try:
            return read_whole(descriptor, begin, end, name)
        finally:
            os.close(descriptor)

    def sha256(self, name: str) -> Digest:
        """SHA-256 of a file, streamed."""
        with os.fdopen(self.open(name), "rb") as file:
            return sha256_chunks(iter(lambda: file.read(_CHUNK), b""))


def checked(listing: Iterable[tuple[str, int | None]], further: Collection[str] = ()) -> dict[str, int]:
    """Name and size of the files of a proof, from a listing; None is the size of what is no regular file.

    Raises:
        FormatError: something is there that a proof never has: a link, a device, an unknown name; or too many files.
    """
    found: dict[str, int] = {}
    for name, size in listing:
        if name == LOCK:
            raise FormatError("an unfinished recording is no proof yet: `pol record … --resume` goes on with it")
        shown = name.encode(errors="backslashreplace").decode()  # a name need not be text, a message must be
        if size is None:
            raise FormatError(f"{shown}: not a regular file (links and devices are never part of a proof)")
        if name not in FILES and name not in further and checkpoint_step(name) is None:
            raise FormatError(f"{shown}: no such file belongs to a proof of format v1")
        found[name] = size
        if len(found) > MAX_FILES:
            raise FormatError(f"more than {MAX_FILES} files")
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name never holds half of it.

    Raises:
        StoreError: the disk refused.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot write: {error.strerror}") from None


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder of this process's own, so that ``pol gc`` can tell that it is in use; gone with the process.

    Raises:
        UsageError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(f"{folder} is in use by another process") from None
    finally:
        os.close(descriptor)


class Lock:
    """Holds a proof directory for one recording at a time; gone with the process."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            UsageError: another process has it.
            StoreError: the disk refused.
        """
        self._path = folder / LOCK
        self._take()
        while not self._is_there():  # its holder removed it after we had opened it: it keeps nobody away any more
            os.close(self._descriptor)
            self._take()

    def _take(self) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path.parent}: cannot write there: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise UsageError(f"{self._path.parent} is being recorded by another process") from None

    def _is_there(self) -> bool:
        """Whether the file that we hold is the one under the lock's name."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        return False

    def release(self, *, remove: bool) -> None:
        """Let go; ``remove`` the lock file when the proof is complete."""
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

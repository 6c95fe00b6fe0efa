"""A folder that a prover and a verifier share: a request in it, and the states that answer it.

Neither trusts the other, so nothing that is written or read here goes through a link that the other one made, and what
is written appears whole, under a name that nobody could know before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pol.errors import FormatError, Incomplete, StoreError, UsageError
from pol.store import ProofDirectory

REQUEST = "request.json"

POLL_SECONDS = 0.5
"""How often a folder is looked at: nobody notices half a second, and a look costs a file name or two."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for the other party, in seconds, and by which clock."""

    seconds: float = 0.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def looks(self) -> Iterator[None]:
        """When to look: at once, then every half second, and once more when all of the time has passed."""
        begin = self.clock()
        while True:
            yield
            left = self.seconds - (self.clock() - begin)
            if not left > 0:  # nor for a NaN
                return
            self.sleep(min(POLL_SECONDS, left))


class SharedFolder(ProofDirectory):
    """A folder that this party names, and the other one writes to as well. Names are relative, with slashes.

    ``path`` itself may be a link: this party chose it. What is in it may not.
    """

    def __init__(self, path: Path, inside: tuple[str, ...] = ()) -> None:
        """The folder ``path``, or one ``inside`` of it; it need not be there yet."""
        self._root, self._inside = path.absolute(), inside
        self.path = self._root.joinpath(*inside)

    def within(self, name: str) -> SharedFolder:
        """A folder in this one."""
        return SharedFolder(self._root, (*self._inside, name))

    def make(self, *folders: str) -> None:
        """Make the folder, and ``folders`` in it.

        Raises:
            UsageError: it cannot be made, or is a link of the other party's.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            for number in range(len(names := (*self._inside, *folders))):
                with self._folder(names[:number]) as parent, contextlib.suppress(FileExistsError):
                    os.mkdir(names[number], dir_fd=parent)
            with self._folder(names):
                pass
        except OSError as error:
            raise UsageError(f"{self.path.joinpath(*folders)}: cannot make the folder: {error.strerror}") from None

    @contextlib.contextmanager
    def _folder(self, names: tuple[str, ...]) -> Iterator[int]:
        """A descriptor of a folder in the root, each part of the way a folder of its own."""
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in names:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, name: str) -> int:
        """A file descriptor of a regular file, never through a link.

        Raises:
            Incomplete: nothing of that name is there.
            FormatError: something else is.
        """
        *folders, last = name.split("/")
        try:
            with self._folder((*self._inside, *folders)) as folder:
                descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            raise Incomplete(f"{name}: not there") from None
        except OSError as error:
            raise FormatError(f"{name}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FormatError(f"{name}: not a regular file")
        return descriptor

    def put(self, name: str, data: bytes) -> None:
        """Write a file; its folder is there.

        Raises:
            StoreError: the disk refused.
        """
        *folders, last = name.split("/")
        hidden = f".{last}.{secrets.token_hex(16)}"  # nobody can have put a link there
        try:
            with self._folder((*self._inside, *folders)) as folder:
                descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
                try:
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(hidden, last, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(hidden, dir_fd=folder)
                    raise
        except OSError as error:
            raise StoreError(f"{self.path / name}: cannot write: {error.strerror}") from None

    def take_in(self, file: Path, name: str) -> None:
        """Move a file of this party's own here, from the same file system; its folder is there.

        Raises:
            StoreError: the disk refused.
        """
        *folders, last = name.split("/")
        try:
            with self._folder((*self._inside, *folders)) as folder:
                os.replace(file, last, dst_dir_fd=folder)
        except OSError as error:
            raise StoreError(f"{self.path / name}: cannot write: {error.strerror}") from None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and can be removed."""
        *folders, last = name.split("/")
        with contextlib.suppress(OSError), self._folder((*self._inside, *folders)) as folder:
            os.unlink(last, dir_fd=folder)

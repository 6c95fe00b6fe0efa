"""A proof at a URL, read as one in a folder is: listed there, and copied here file by file as it is first read.

So what can be refused by its names, its sizes or its signatures costs no download, and what is read twice is copied
once: the bytes that are hashed are the bytes that are used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pol.errors import FormatError, Incomplete, StoreError
from pol.remote.place import CHUNK, Place, is_url
from pol.store import CHECKPOINTS, FILES, ProofDirectory, checked, checkpoint_step

Progress = Callable[[str, int, int | None], None]
"""Called with (phase, done, total or None)."""

AT_ONCE = 4
"""Files that are fetched at a time: one connection to an object store gives 50 to 100 MB/s, and four fill a network of
a few gigabits. Each holds one ``CHUNK`` in memory."""


@contextlib.contextmanager
def opened(proof: Path | str, *, most: int | None = None, progress: Progress | None = None) -> Iterator[ProofDirectory]:
    """The proof in a folder or at a URL. What is fetched from a URL goes to a temporary folder, for so long.

    Args:
        proof: Where it is.
        most: Bytes of the largest proof that is fetched at all; None: the disk decides.
        progress: Told how much is fetched.

    Raises:
        UsageError: there is no such directory, or nothing installed knows such a URL.
        StoreError: the URL cannot be reached.
    """
    if not is_url(proof):
        yield ProofDirectory(Path(proof))
        return
    place = Place(str(proof))
    with tempfile.TemporaryDirectory(prefix="pol-proof-") as folder:
        own = Path(folder) / place.name  # messages name a proof by its folder
        own.mkdir()
        yield Fetched(place, own, most, progress)


class Fetched(ProofDirectory):
    """A proof at a place, and a folder of this process alone for what of it is here."""

    def __init__(self, place: Place, folder: Path, most: int | None = None, progress: Progress | None = None) -> None:
        super().__init__(folder)
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        self.place, self._most, self._tell = place, most, progress or (lambda *_: None)
        self._listed = list(place.listing())
        self._sizes = {name: size for name, size in self._listed if size is not None}
        self._fetched: dict[str, threading.Lock] = {name: threading.Lock() for name in self._sizes}

    def files(self, further: Collection[str] = ()) -> dict[str, int]:
        """Name and size of every file there; see ``ProofDirectory.files``."""
        return checked(self._listed, further)

    def sizes(self) -> dict[str, int]:
        """Name and size of every file there, whatever it is."""
        return dict(self._sizes)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return name in self._sizes

    def size(self, name: str) -> int:
        """Bytes of a file, as listed.

        Raises:
            FormatError: there is no such file.
        """
        if name not in self._sizes:
            raise FormatError(f"{name}: not there")
        return self._sizes[name]

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a file, which is not fetched if it is larger than ``limit``."""
        if self.has(name) and self._sizes[name] > limit:
            raise FormatError(f"{name}: larger than the limit of {limit} bytes")
        return super().read(name, limit)

    def open(self, name: str) -> int:
        """A descriptor of a file, which is fetched if it is not here yet."""
        self._fetch(name, lambda _: None)
        return super().open(name)

    def bring(self) -> None:
        """Fetch all that is not here yet.

        Raises:
            StoreError: there is no room for it, or the place cannot be reached.
        """
        known = {name: size for name, size in self._sizes.items() if name in FILES or checkpoint_step(name) is not None}
        wanted = {name: size for name, size in known.items() if not (self.path / name).exists()}
        total, done, lock = sum(wanted.values()), 0, threading.Lock()
        free = shutil.disk_usage(self.path).free
        if total > free:
            raise StoreError(
                f"{self.place.url}: {total} bytes to fetch, and {free} free in {self.path}: name a folder with room in "
                "TMPDIR"
            )

        def tell(size: int) -> None:
            nonlocal done
            with lock:
                done += size
                self._tell("fetching (MB)", done // 10**6, -(-total // 10**6))

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
            jobs = [pool.submit(self._fetch, name, tell) for name in sorted(wanted)]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def renew(self, name: str) -> None:
        """Fetch a file in place of the one that is here, which stays until all of the other is.

        Raises:
            FormatError: there is none, or it is not what was listed.
            StoreError: the place cannot be reached, or our disk refused.
        """
        fetch(self.place, name, self.size(name), self.path / name, lambda _: None)

    def _fetch(self, name: str, tell: Callable[[int], None]) -> None:
        """Copy a file here, if it is not.

        Raises:
            FormatError: there is none, or it is not what was listed.
            StoreError: the place cannot be reached, or our disk refused.
        """
        total = sum(self._sizes.values())
        if self._most is not None and total > self._most:
            raise FormatError(f"{name} is not fetched: {total} bytes in all, more than the {self._most} that are read")
        if name not in self._sizes:
            raise Incomplete(f"{name}: not there")
        with self._fetched[name]:
            if not (self.path / name).exists():
                fetch(self.place, name, self._sizes[name], self.path / name, tell)


def fetch(place: Place, name: str, size: int, to: Path, tell: Callable[[int], None]) -> None:
    """Copy a file of ``size`` bytes from a place; its name appears when all of it is here.

    Raises:
        FormatError: it is not there, or of another size.
        StoreError: the place cannot be reached, or our disk refused.
    """
    temporary = to.with_name(to.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            for begin in range(0, size, CHUNK):
                data = place.read(name, begin, min(begin + CHUNK, size))
                file.write(data)
                tell(len(data))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(to)
    except OSError as error:
        raise StoreError(f"{to}: cannot write: {error.strerror}") from None

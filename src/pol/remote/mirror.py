"""A recording kept at a URL: what is committed in the working folder is copied there while the training goes on.

One background thread, one file at a time, in the order in which files were committed: a checkpoint before the log that
names it, the attestation last. So the URL never holds half a proof, and what it holds can be resumed from anywhere.
A place that cannot be reached stops nothing: the recording becomes complete in the working folder, and what is missing
at the URL is copied when it can be reached again, at the latest by ``--resume``.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pol.errors import FormatError, StoreError, UsageError
from pol.remote.fetched import Progress
from pol.remote.place import Place
from pol.store import ATTESTATION, CHECKPOINTS, FILES, JOURNAL, LOCK, LOG, checkpoint_step

PAUSE = 30.0
"""Seconds until a place that could not be reached is tried again, while the training goes on."""

TOKEN = 64
"""Bytes of the token that says who records: in the lock of the working folder, and at the place."""


class Mirror:
    """Copies one recording to a place. A context manager: at its end no file is under way any more."""

    def __init__(self, url: str, folder: Path, *, warn: Callable[[str], None] = lambda _: None) -> None:
        """Mirror ``folder`` to ``url``.

        Args:
            url: Where to; nothing is written there yet.
            folder: The working folder.
            warn: Told, from the background, what the claimant should know.

        Raises:
            UsageError: nothing that is installed knows such URLs.
        """
        self.place, self.folder = Place(url, sleep=self._nap), folder
        self._warn = warn
        self._token = b""
        self._there: dict[str, int] = {}
        self._due: deque[tuple[str, int]] = deque()  # names alone: the bytes are in the working folder
        self._unlogged = 0
        self._change = threading.Condition()
        self._ending = self._stopped = self._busy = False
        self._reached = True
        self._failure: StoreError | UsageError | None = None
        self._thread = threading.Thread(target=self._copy, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the file that is under way; what else is due waits for ``--resume``."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self, found: dict[str, int], fetched: Collection[str] = ()) -> None:
        """Take the place over, and begin to copy.

        A file there is taken for the one in the working folder if it has its size and was ``fetched`` just now, or if
        nobody else has recorded there since: another process may have written the same state in other bytes.

        Args:
            found: Name and size of what is there.
            fetched: What of it has been copied from there into the working folder just now.

        Raises:
            StoreError: nothing can be written there.
        """
        lock = self.folder / LOCK
        own = lock.read_bytes() if lock.exists() else b""
        same = len(own) == TOKEN and found.get(LOCK) == TOKEN and self.place.read(LOCK, 0, TOKEN) == own
        self._there = {name: size for name, size in found.items() if same or name in fetched}
        self._token = own if same else secrets.token_hex(TOKEN // 2).encode()
        lock.write_bytes(self._token)
        self.place.write(self._token, LOCK)
        for name in found:
            if name.endswith(".tmp"):
                self.place.remove(name)
        self._thread.start()

    def committed(self, name: str, *, new: bool = True) -> None:
        """A file is in the working folder, to stay. ``new`` False: it may be at the place already.

        Raises:
            UsageError: another process has taken the place over.
        """
        size = (self.folder / name).stat().st_size
        with self._change:
            if isinstance(self._failure, UsageError):
                raise self._failure
            if new or name in (LOG, JOURNAL) or self._there.get(name) != size:
                self._due.append((name, size))
                self._there[name] = size
                self._change.notify_all()

    def flush(self, progress: Progress) -> None:
        """Wait until all that was committed is at the place.

        Raises:
            StoreError: it cannot be reached.
            UsageError: another process has taken it over.
        """
        with self._change:
            self._ending = True
            self._change.notify_all()
            total = len(self._due) + self._busy
            while (self._due or self._busy) and self._failure is None:
                progress(f"copying to {self.place.url}", total - len(self._due) - self._busy, total)
                self._change.wait(0.5)
            if self._failure is not None:
                raise self._failure

    def finish(self, progress: Progress) -> None:
        """Make the place hold the complete proof in the working folder: its attestation last.

        Raises:
            StoreError: it cannot be reached.
            UsageError: another process has taken it over.
        """
        self.flush(progress)
        names = [name for name in FILES if (self.folder / name).exists() and name != ATTESTATION]
        sizes = {name: (self.folder / name).stat().st_size for name in [*names, *_checkpoints(self.folder)]}
        for name in self._differing(sizes):
            self._put(name, sizes[name])
        if differing := self._differing(sizes):
            raise StoreError(
                f"{self.place.url}: {differing[0]} is not there as it was copied: --resume copies it again"
            )
        self._put(ATTESTATION, (self.folder / ATTESTATION).stat().st_size)
        self.place.remove(LOCK)

    def _differing(self, sizes: dict[str, int]) -> list[str]:
        """Files that are not at the place with the sizes that they should have.

        Raises:
            StoreError: something else is there.
        """
        found = self.place.sizes()
        if strange := sorted(found.keys() - sizes.keys() - {LOCK, ATTESTATION}):
            raise StoreError(
                f"{self.place.url}: {strange[0]} is there and belongs to no proof: remove it, and --resume"
            )
        return [name for name, size in sizes.items() if found.get(name) != size]

    # -- in the background ----------------------------------------------------------------------------------------

    def _copy(self) -> None:
        """Copy what is due until stopped."""
        try:
            while (item := self._next()) is not None:
                self._copy_one(*item)
        except UsageError as error:  # taken over
            self._fail(error)
        except Exception as error:  # or a flush would wait for ever
            self._fail(StoreError(f"{self.place.url}: copying has stopped: {error}"))

    def _copy_one(self, name: str, size: int) -> None:
        """Copy one file; a place that cannot be reached is tried again later."""
        try:
            self._put(name, size)
        except StoreError as error:
            if self._ending:
                self._fail(error)
            else:
                if self._reached:
                    self._warn(f"{error}. The training goes on in {self.folder}; what is missing is copied later")
                self._reached = False
                self._pause_work()
        else:
            if not self._reached:
                self._warn(f"{self.place.url} can be reached again")
            self._reached = True
            self._done()

    def _next(self) -> tuple[str, int] | None:
        with self._change:
            while not self._stopped and (not self._due or self._failure is not None):
                self._change.wait()
            if self._stopped:
                return None
            self._busy = True
            return self._due[0]

    def _done(self) -> None:
        with self._change:
            self._due.popleft()
            self._busy = False
            self._change.notify_all()

    def _pause_work(self) -> None:
        with self._change:
            self._busy = False
            self._change.wait_for(lambda: self._stopped or self._ending, PAUSE)

    def _nap(self, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self._stopped, seconds)

    def _fail(self, error: StoreError | UsageError) -> None:
        with self._change:
            self._failure, self._busy = error, False
            self._change.notify_all()

    def _put(self, name: str, size: int) -> None:
        """Copy a file, or of the log what had ``size`` bytes: later lines name checkpoints that are not there yet."""
        self._still_ours()
        path = self.folder / name
        if checkpoint_step(name) is not None:
            self.place.put(path, name)
            self._unlogged += size
        elif name == LOG:
            if self._unlogged < size and self._later_log():
                return  # it is written anew each time: not more bytes of it than of checkpoints
            with path.open("rb") as file:
                self.place.write(file.read(size), name)
            self._unlogged = 0
        else:
            self.place.put(path, name)

    def _later_log(self) -> bool:
        """Whether there will be a later state of the log."""
        return not self._ending or any(name == LOG for name, _ in list(self._due)[1:])

    def _still_ours(self) -> None:
        with contextlib.suppress(FormatError):  # of another size, or not there
            if self.place.read(LOCK, 0, len(self._token)) == self._token:
                return
        raise UsageError(
            f"{self.place.url} has been taken over by another process that records there; this one stops copying"
        )


def _checkpoints(folder: Path) -> Iterator[str]:
    for file in sorted((folder / CHECKPOINTS).iterdir()):
        yield f"{CHECKPOINTS}/{file.name}"

"""Training processes on this machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

import msgspec

from pol.errors import ReplayError, UsageError
from pol.messages import LAST, EventType, Failed, JobType
from pol.profile import Profile, environment


class Executor(Protocol):
    """Runs one job at a time and yields its events."""

    def run(self, job: JobType) -> Iterator[EventType]:
        """The events of a job; the last is not a progress event.

        Raises:
            KeyboardInterrupt: the process was interrupted.
        """


class LocalProcess:
    """One process of a given profile, started at the first job. A context manager.

    ``python`` is the interpreter that it runs under: that of another virtual environment has another build of torch.
    It must find this package and the recipe, too.
    """

    def __init__(
        self, profile: Profile, *, isolated: bool = False, python: str | os.PathLike[str] = sys.executable
    ) -> None:
        self.profile = profile
        self._isolated = isolated
        self._python = os.fspath(python)
        self._process: subprocess.Popen[bytes] | None = None
        self._compiled: tempfile.TemporaryDirectory[str] | None = None
        self._decoder = msgspec.json.Decoder(EventType)

    def __enter__(self) -> LocalProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        os.close(self._jobs)
        os.close(self._events)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # checkpoints are written whole or not at all
        self._process.wait()
        self._process = None
        if self._compiled is not None:
            self._compiled.cleanup()

    def start(self) -> None:
        """Start the process, if it does not run, and do not wait until it is ready: that takes it seconds.

        Raises:
            UsageError: the interpreter cannot be started.
        """
        if self._process is None:
            self._start()

    def _start(self) -> None:
        job_source, job_sink = os.pipe()
        event_source, event_sink = os.pipe()
        # -P: the working directory must not shadow modules. The environment is ours and nothing else.
        command = [self._python, "-P", "-m", "pol.replay.worker", str(job_source), str(event_sink)]
        command += ["--no-network"] if self._isolated else []
        # What torch.compile makes is shared by the jobs of this process alone: not read from what another one left.
        self._compiled = tempfile.TemporaryDirectory(prefix="pol-compiled-", ignore_cleanup_errors=True)
        try:
            self._process = subprocess.Popen(
                command,
                env={**environment(self.profile), "TORCHINDUCTOR_CACHE_DIR": self._compiled.name},
                pass_fds=(job_source, event_sink),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,  # ours may carry JSON
                start_new_session=True,  # so that all of it can be ended at once, and an interrupt comes to us alone
            )
        except OSError as error:
            os.close(job_sink)
            os.close(event_source)
            self._compiled.cleanup()
            raise UsageError(f"cannot start a training process with {self._python}: {error.strerror}") from None
        finally:
            os.close(job_source)
            os.close(event_sink)
        self._jobs, self._events = job_sink, event_source
        self._rest: list[bytes] = []

    def run(self, job: JobType) -> Iterator[EventType]:
        """Run a job in a fresh fork of the process.

        Raises:
            UsageError: the interpreter cannot be started.
            ReplayError: the process has ended.
        """
        self.send(job)
        answered = False
        try:
            while not answered:
                for event in self.receive():
                    answered |= isinstance(event, LAST)
                    yield event
        finally:
            if not answered:
                self.close()  # nobody reads on: the next job must not be answered with the rest of this one

    def send(self, job: JobType) -> None:
        """Begin a job, whose events ``receive`` then gives; for those who wait for several processes.

        Raises:
            UsageError: the interpreter cannot be started.
            ReplayError: the process has ended.
        """
        for attempt in range(2):  # one that was started early may have ended since: its answer is that of a second one
            self.start()
            data = msgspec.json.encode(job) + b"\n"
            try:
                while data:
                    data = data[os.write(self._jobs, data) :]
                return
            except BrokenPipeError:
                self.close()
                if attempt:
                    raise ReplayError("the training process has ended; run the command again") from None

    def fileno(self) -> int:
        """Descriptor that can be read when there are events to receive."""
        return self._events

    def receive(self) -> list[EventType]:
        """The next events of the job that was sent, after waiting for something to come; perhaps none yet."""
        chunk = os.read(self._events, _CHUNK)
        if not chunk:
            self.close()  # the next job gets another process
            return [Failed(kind="Killed", message="the training process ended without an answer")]
        lines, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._rest.append(chunk)
            return []
        whole, self._rest = b"".join([*self._rest, lines]), [rest]
        try:
            return [self._decoder.decode(line) for line in whole.split(b"\n")]
        except msgspec.DecodeError:  # it was killed in the middle of a line
            self.close()
            return [Failed(kind="Killed", message="the training process ended in the middle of an answer")]


class Processes:
    """Isolated processes by profile, kept from one training to the next: each takes seconds to start.

    Each job runs in a fresh fork, but what they compile and the pipe for events are shared: for recipes that are
    trusted alike, one job at a time. A context manager.
    """

    def __init__(self) -> None:
        self._found: dict[Profile, list[LocalProcess]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End them all."""
        for process in itertools.chain.from_iterable(self._found.values()):
            process.close()
        self._found.clear()

    def of(self, profile: Profile) -> LocalProcess:
        """One of a profile."""
        return self.some(profile, 1)[0]

    def some(self, profile: Profile, count: int) -> list[LocalProcess]:
        """As many of a profile, not all of which have been started."""
        found = self._found.setdefault(profile, [])
        while len(found) < count:
            found.append(LocalProcess(profile, isolated=True))
        return found[:count]


_CHUNK = 1 << 16
"""Bytes that are read from a process at a time: as many as a pipe holds."""


def _has_descriptor(stream: object) -> bool:
    try:
        return isinstance(stream.fileno(), int)  # type: ignore[attr-defined]
    except (AttributeError, OSError):  # a captured stream
        return False

"""Where the recorder spends its time: one recording in this process, with a clock around each part of it.

Slower than a real recording by what the clocks cost (about a microsecond a call), and the log is written after
the training here, not beside it; so this run explains the overhead, and another one measures it.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pol.keys import SigningKey
from pol.messages import EventType, JobType, Train
from pol.profile import Profile
from pol.prover import record
from pol.replay import writer
from pol.replay.data import BatchHasher
from pol.replay.inprocess import InProcess
from pol.replay.loader import Loader
from pol.replay.parts import Parts
from pol.replay.randomness import Streams
from pol.replay.state import State
from pol.replay.writer import Writer
from pol.unfinished import Unfinished

PARTS: dict[str, tuple[Any, str]] = {
    "streams": (Streams, "step"),
    "fetch": (Loader, "fetch"),
    "batch digest": (BatchHasher, "update"),
    "rates": (Parts, "rates"),
    "take the state": (Parts, "capture"),
    "finite check": (State, "check_finite"),
    "state root": (State, "root"),
    "hand over to the writing thread": (Writer, "add"),
    "write and sync (other thread)": (writer, "save_atomically"),
    "log and file hash (other process)": (Unfinished, "append"),
}
"""Name of a part, and the function that does it."""

BESIDE = ("write and sync (other thread)", "log and file hash (other process)")
"""Parts that the training does not wait for, as long as they are faster than it."""


class Clocks(InProcess):
    """Runs jobs here; a clock runs in each part from the beginning of the training."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        for name, (owner, function) in PARTS.items():
            setattr(owner, function, self._timed(name, getattr(owner, function)))

    def _timed(self, name: str, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed

    def run(self, job: JobType) -> Iterator[EventType]:
        if isinstance(job, Train):
            self.seconds.update(dict.fromkeys(PARTS, 0.0))
        return super().run(job)


def main() -> None:
    request = json.loads(sys.argv[1])
    clocks = Clocks()
    with tempfile.TemporaryDirectory(prefix="pol-bench-", dir=request["folder"]) as folder:
        record(
            request["recipe"], Path(folder) / "proof", key=SigningKey.generate(), every=request["every"],
            settings=request["settings"], profile=Profile(threads=request["threads"]), executor=clocks,
        )  # fmt: skip
    print(json.dumps(clocks.seconds))


if __name__ == "__main__":
    main()

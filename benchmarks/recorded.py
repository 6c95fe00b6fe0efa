"""One recording of a recipe with blocks (``benchmarks.alternating``), in a process of its own, and what it measured.

It is left when the training is over: the self-check and the attestation that follow do not grow with the steps.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pol.keys import SigningKey
from pol.profile import Profile
from pol.prover import record

TELL_EVERY = 20.0
"""Seconds between two lines that say how far it is."""


class Trained(Exception):
    """The training is over."""


class Follower:
    """Told how far a recording is; notes what this process does for it beside the training."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)
        self._told = time.monotonic()

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if phase == "self-check":
            raise Trained
        if phase != "training" or not done:
            return
        self._last = done, time.process_time()
        self._first = self._first or self._last
        if time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            print(f"  {done} of {total} recorded steps", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """CPU seconds of this process per recorded step."""
        if self._first is None or self._first[0] == self._last[0]:
            return 0.0
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def sizes(proof: Path) -> dict[str, int]:
    """Bytes of every file of a proof, by its path in it."""
    return {str(file.relative_to(proof)): file.stat().st_size for file in proof.rglob("*") if file.is_file()}


def main() -> None:
    request = json.loads(sys.argv[1])
    follower = Follower()
    with tempfile.TemporaryDirectory(prefix="pol-bench-", dir=request["folder"]) as name:
        folder = Path(name)
        out = folder / "measured.json"
        with contextlib.suppress(Trained):
            record(
                request["recipe"], folder / "proof", key=SigningKey.generate(), every=request["every"],
                keep=request["keep"], profile=Profile(threads=request["threads"]), progress=follower,
                settings={"settings": request["settings"], "schedule": request["schedule"], "out": str(out)},
            )  # fmt: skip
        answer: dict[str, Any] = json.loads(out.read_text())
        answer["files"] = sizes(folder / "proof")
    answer["recording_cpu"] = follower.seconds
    answer["recording_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""Verify one proof in a process of its own; the wall time around it is taken outside, start-up included."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pol.auditor import LocalAuditor
from pol.proof.policy import Challenge, Policy
from pol.proof.report import Verdict
from pol.verifier import verify

JOBS = "jobs"
"""The argument of ``verify`` that says how many processes take steps at a time."""


def several() -> bool:
    """Whether a verification can use several processes."""
    return JOBS in inspect.signature(verify).parameters


class Span:
    """From when to when replays ran."""

    def __init__(self) -> None:
        self._first, self._last = 0.0, 0.0
        original = LocalAuditor.replay

        def replay(auditor: LocalAuditor, *args: Any, **options: Any) -> Iterator[Any]:
            self._first = self._first or time.perf_counter()
            yield from original(auditor, *args, **options)
            self._last = time.perf_counter()

        setattr(LocalAuditor, "replay", replay)  # noqa: B010  # it takes what any version of the original takes

    @property
    def seconds(self) -> float:
        """How long that is."""
        return self._last - self._first


def main() -> None:
    request = json.loads(sys.argv[1])
    replay = Span()
    jobs = {JOBS: request["jobs"]} if several() else {}
    policy = Policy(challenge=Challenge(strategy="all"))
    report = verify(Path(request["proof"]), recipe=request["recipe"], policy=policy, **jobs)
    if report.verdict is not Verdict.ACCEPT:
        raise SystemExit(f"{request['recipe']}: {report.verdict}: {report.reason()}")
    print(json.dumps({"report": report.seconds, "replay": replay.seconds}))


if __name__ == "__main__":
    main()

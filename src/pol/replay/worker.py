"""The training process: ``python -m pol.replay.worker IN OUT``, with an environment from the profile.

It imports torch once and then forks for every job, so that each job has a process of its own whose generators,
modules and threads are fresh, without waiting for torch again. Jobs come and events go as lines of JSON on two
inherited pipes; standard output stays the user's.
"""

from __future__ import annotations

import gc
import os
import sys

import msgspec

from pol.messages import EventType, Failed, JobType
from pol.replay.isolation import die_with_parent, leave_network


def main() -> None:
    """Serve jobs until the pipe closes."""
    source, sink = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent()
    if "--no-network" in sys.argv[3:]:
        leave_network()
    from pol.replay import compiling

    compiling.defer()
    from pol.replay import jobs  # noqa: F401

    gc.collect()
    gc.freeze()  # what is there now is no garbage of a job, and looking at it would copy its memory into every fork
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            job = msgspec.json.decode(line, type=JobType)
            compiling.expect(job.program)
            if hasattr(os, "fork"):
                _forked(job, sink)
            else:
                _serve(job, sink)


def _forked(job: JobType, sink: int) -> None:
    child = os.fork()
    if child == 0:
        die_with_parent()
        status = 1
        try:
            _serve(job, sink)
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        reason = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        _write(sink, Failed(kind="Killed", message=f"the training process {reason}"))


def _serve(job: JobType, sink: int) -> None:
    from pol.replay.jobs import run_job

    try:
        run_job(job, lambda event: _write(sink, event))
    except BrokenPipeError:
        os._exit(3)  # whoever asked is gone


def _write(sink: int, event: EventType) -> None:
    data = msgspec.json.encode(event) + b"\n"
    while data:
        data = data[os.write(sink, data) :]


if __name__ == "__main__":
    main()

"""An executor without processes: for tests and debugging."""

from __future__ import annotations

from collections.abc import Iterator

from pol.messages import EventType, JobType
from pol.replay.jobs import run_job


class InProcess:
    """Jobs in this very process, one after the other. No isolation; the profile's environment is not set."""

    def start(self) -> None:
        """Nothing to start."""

    def run(self, job: JobType) -> Iterator[EventType]:
        """Run a job here."""
        events: list[EventType] = []
        run_job(job, events.append)
        yield from events

"""The exceptions of this package: a defect is an exception, a verdict is a value."""

from __future__ import annotations


class PolError(Exception):
    """Anything that this package raises on purpose; its text says what is wrong, where, and what to do."""


class UsageError(PolError):
    """The caller asked for something that cannot be done as asked."""


class FormatError(PolError):
    """Bytes that do not parse: malformed, wrong version, not canonical, or over a limit."""


class Incomplete(FormatError):
    """A file that is not there, or ends before it says that it does: the rest may still come."""


class IntegrityError(PolError):
    """A digest, root or opening does not match the bytes that it names."""


class AuthenticityError(PolError):
    """A signature or key is not the one that was expected."""


class ReplayError(PolError):
    """A training program could not be run, or could not be entered again."""


class Unsure(ReplayError):
    """Some of the last records of a training may be wrong, and nobody can tell: they are to be made again."""


class StoreError(PolError):
    """Our own disk failed us (not the proof: that is IntegrityError)."""


class RejectedProof(PolError):
    """Raised only by ``Report.raise_for_verdict``; carries the report as ``report``."""

    def __init__(self, message: str, report: object) -> None:
        super().__init__(message)
        self.report = report

"""What a verification procedure is: the steps that it takes, and what its ACCEPT is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pol.auditor import Auditor
from pol.errors import AuthenticityError, FormatError, IntegrityError
from pol.proof.report import ALL, NOT_SHOWN, STEPS, Assurance, Check, Step, step_status
from pol.verifier.case import Case, Checks, failed


@dataclass(frozen=True)
class Procedure:
    """A way to verify. ``pol.verifier.PROCEDURES`` names them, a policy chooses one."""

    steps: Callable[[Case, Auditor], Iterator[Step]]
    """Its steps before the decision, numbered as the eight are."""
    assurance: Callable[[Case], Assurance]
    """How far its ACCEPT reaches."""
    confidence: Callable[[Case], str]
    """What its ACCEPT shows, in numbers."""
    elements: frozenset[str] = frozenset()
    """Names of further files that its proofs may hold, beside those of the format: in the folder of the proof itself.
    They are listed and bound like all others (step 3); reading them is for its own steps."""
    needed: frozenset[int] = ALL
    """Steps that must have passed for ACCEPT."""
    not_shown: tuple[str, ...] = tuple(NOT_SHOWN)


def run_step(number: int, groups: Iterable[Checks]) -> Step:
    """Run the checks of a step until one does not pass; what they raise about the proof is a failed check."""
    found: list[Check] = []
    for group in groups:
        try:
            for check in group:
                found.append(check)
        except FormatError as error:
            found.append(failed("format", str(error)))
        except (IntegrityError, AuthenticityError) as error:
            found.append(failed("integrity" if isinstance(error, IntegrityError) else "signature", str(error)))
        if any(check.status != "passed" for check in found):
            break
    return Step(number, STEPS[number - 1], step_status(found), found)


def not_run(number: int, *why: Check) -> Step:
    """A step that was not taken."""
    return Step(number, STEPS[number - 1], "not run", list(why))

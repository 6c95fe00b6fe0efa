"""What the recorder would refuse although it has made no difference in the steps that were compared."""

from __future__ import annotations

from pol.doctor.causes import suspect
from pol.doctor.diagnosis import Finding, Suspect
from pol.errors import ReplayError
from pol.messages import Controlled
from pol.prover.refusals import check_reentry

FIX = (
    "Hold it in a buffer of the model, or attach an object with state_dict and load_state_dict; if it has no influence "
    '(a statistic), name it: attach(ignored=("{name}",)).'
)


def refused(control: Controlled) -> Finding | None:
    """The recorder's refusal of a control run; None if it refuses nothing."""
    try:
        check_reentry(control, "")
    except ReplayError as error:
        return Finding(compared="program", message=str(error).strip(), suspects=list(_suspects(control)))
    return None


def _suspects(control: Controlled) -> list[Suspect]:
    found = []
    if control.reentry is not None:
        # Clocks were put forward, so they are the likelier: fresh randomness would have shown in the runs before.
        for note in sorted(control.noticed, key=lambda note: note.kind != "clock")[:1]:
            found.append(suspect(note.kind, f"the program {note}: {note.line}"))
    if control.hidden:
        name = control.hidden[0]
        said = f"{name} changes from step to step and is in no state"
        found.append(suspect("attribute", said, FIX.format(name=name)))
    return found or [suspect("outside", f"{control.reentry} differs when a step is taken from its saved state")]

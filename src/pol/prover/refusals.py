"""What a control run found that no replay could give again: refused, with the cause, or said."""

from __future__ import annotations

from pol.errors import ReplayError, UsageError
from pol.messages import Built, Control, Controlled, Program
from pol.proof.genesis import CONTROL_STEPS

_ADVICE = (
    "hold it in a buffer, or in an attached object with state_dict and load_state_dict; if it has no influence (a "
    'statistic, a cache), name it: attach(ignored=("{name}",))'
)


def control_of(program: Program) -> Control:
    """The control run that is made before a recording."""
    return Control(program=program, steps=CONTROL_STEPS, reenter=True)


def check_reentry(control: Controlled, hint: str) -> None:
    """Refuse a program that is another one when it is entered again; ``hint``: what to do to know more.

    Raises:
        ReplayError: names what differs, and the likely cause.
    """
    hidden = control.hidden[0] if control.hidden else None
    more = f" (so do {len(control.hidden) - 1} others, such as {control.hidden[1]})" if control.hidden[1:] else ""
    if control.reentry is None:
        if hidden is None:
            return
        raise ReplayError(
            f"{hidden} changes from step to step and is in no state{more}, so a program that is resumed or replayed "
            f"would not have it: {_ADVICE.format(name=hidden)}"
        )
    differs = (
        f"this program cannot be entered again: after step {control.steps}, {control.reentry} differs when that step "
        "is taken from the saved state. "
    )
    if control.noticed:
        read = "; ".join(map(str, control.noticed[:3]))
        raise ReplayError(f"{differs}The program {read}: no replay can give that again. {hint}")
    if hidden is not None:
        raise ReplayError(
            f"{differs}{hidden} changes from step to step and is in no state{more}: {_ADVICE.format(name=hidden)}. "
            f"{hint}"
        )
    drawn = ""
    if control.reentry.startswith("generator/"):
        drawn = (
            "Or a library drew when the program first imported it: import it at the top of the recipe's file, or seed "
            "this generator, too. "
        )
    raise ReplayError(f"{differs}Something that evolves is not attached, or draws randomness of its own. {drawn}{hint}")


def check_seeds(first: Built, second: Built) -> None:
    """Refuse a program that seeds torch itself and does not say so: no verifier would take its first weights.

    Raises:
        UsageError: with the two ways out.
    """
    parameters = [key for key in first.contents if key.startswith("parameter/")]
    same = bool(parameters) and all(first.contents[key] == second.contents[key] for key in parameters)
    if first.declaration.streams == "derived" and same and first.torch_generator == second.torch_generator:
        raise UsageError(
            "the program seeds torch itself, so its first weights are the same under every seed, and a verifier would "
            'reject them: leave torch.manual_seed out, or keep your own randomness, attach(randomness="observed")'
        )


def said(control: Controlled) -> list[str]:
    """What is not refused, because no state depends on it in the first steps, but said."""
    return list(map(str, control.noticed))

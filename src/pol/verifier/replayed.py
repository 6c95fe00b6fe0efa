"""What steps 5 to 7 need to replay: whether this machine is fit, and which intervals are asked for (step 6)."""

from __future__ import annotations

from dataclasses import dataclass

from pol import seeds
from pol.auditor import Auditor
from pol.checkpoint import Checkpoint
from pol.messages import Controlled, Failed, Segment
from pol.profile import ARITHMETIC, differences, same_software
from pol.proof.challenge import draw, spans
from pol.proof.log import counts_after
from pol.proof.report import Check
from pol.proof.screens import suspects
from pol.store import checkpoint_path
from pol.verifier import requested
from pol.verifier.case import Case, Checks, failed, passed, unable


@dataclass(frozen=True)
class Platform:
    """Whether this machine gives the recorded profile: the control run, here against the genesis."""

    same: bool
    detail: str
    software: bool = False
    """Whether torch and numpy are of the recorded releases, so that the program means the same here."""

    def mismatch(self, name: str, detail: str) -> Check:
        """Something differs: the prover's failure if this machine gives the profile, else undecided."""
        return failed(name, detail) if self.same else unable(name, f"{detail}. {self.detail}")


def control(case: Case, auditor: Auditor) -> Platform:
    """Run the control steps here and compare with the genesis."""
    genesis = case.genesis
    case.progress("control run", 0, None)
    here = auditor.control(genesis.profile, genesis.recipe.configuration, seeds.CONTROL_SEED, genesis.control.steps)
    if isinstance(here, Failed):
        return Platform(False, f"The control run does not work here: {here.message}")
    software = same_software(genesis.platform, here.platform)
    if here.root == genesis.control.root and here.steps == genesis.control.steps:
        if other := differences(genesis.platform, here.platform, ARITHMETIC):
            why = f"The control run agrees, but this machine is not the recorded one ({'; '.join(other)})"
            return Platform(False, why, software)
        return Platform(
            True, "the control run gives the recorded state here, so this machine gives the recorded profile"
        )
    return Platform(
        False,
        f"This machine does not give the recorded profile: the control run ends elsewhere ({_why(case, here)})",
        software,
    )


def _why(case: Case, here: Controlled) -> str:
    return (
        "; ".join(differences(case.genesis.platform, here.platform))
        or "same versions and capability, other hardware or kernels"
    )


def challenge(case: Case) -> Checks:
    """Step 6: draw, from the attestation and a nonce that the prover could not know."""
    every = case.genesis.spec.every
    resumed = [step // every for step in case.journal.resumes if 0 < step < case.genesis.spec.steps]
    found = suspects(case.screens)
    case.draws = draw(case.policy.challenge, case.attestation_digest, case.nonce, case.windows, resumed, found)
    chosen = case.draws.all()
    steps = sum(segment.stop - segment.start for segment in segments(case))
    limit = case.policy.max_steps
    if not chosen:
        yield failed("draw", "no interval was drawn")
    elif limit is not None and steps > limit:
        yield unable("budget", f"{steps} steps must be replayed, your policy allows {limit}")
    else:
        yield passed(
            "draw",
            f"{len(chosen)} of {case.draws.intervals} intervals, {steps} of {case.genesis.spec.steps} steps to replay",
        )
        yield from requested.states(case)


def state_after(case: Case, step: int) -> Checkpoint:
    """The recorded state after ``step`` steps, an end of a challenged interval, as this verifier has taken it over."""
    return Checkpoint(case.own, checkpoint_path(step))


def segments(case: Case) -> list[Segment]:
    """What to replay, from where to where.

    Rule exact: from the kept checkpoint before each challenged interval to the last one of its window, comparing every
    digest on the way. Rule tolerance: each challenged interval from its own recorded state, so that rounding does not
    add up.
    """
    assert case.draws is not None
    each = case.genesis.spec.rule == "tolerance"
    return [_segment(case, first, last) for first, last in spans(case.windows, case.draws.all(), each=each)]


def segment_of(case: Case, start: int) -> Segment:
    """The replay that begins at a step."""
    return next(segment for segment in segments(case) if segment.start == start)


def _segment(case: Case, first: int, last: int) -> Segment:
    start = case.log.intervals[first].start
    store = case.own if case.genesis.spec.rule == "tolerance" else case.store
    return Segment(
        start=start,
        stop=case.log.intervals[last].stop,
        checkpoint=None if not start and case.genesis.randomness.built else str(store.path / checkpoint_path(start)),
        counts=counts_after(case.log, case.genesis.spec, start),
    )

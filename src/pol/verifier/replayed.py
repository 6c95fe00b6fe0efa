"""Steps 5 and 6: where the run began, and which intervals are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pol import canonical, seeds
from pol.auditor import Auditor
from pol.declaration import difference
from pol.messages import Comparison, Controlled, Failed, Segment
from pol.profile import differences
from pol.proof.challenge import draw
from pol.proof.report import Check
from pol.store import checkpoint_path
from pol.verifier.case import Case, Checks, failed, passed, unable

CORRELATION_BOUND = 6.0
"""Largest |correlation| · √n of two independent builds: six standard deviations, met by chance once in 10⁹ tensors."""


_TELLING = CORRELATION_BOUND**2
"""Elements from which chance does not explain that two builds agree; with fewer the correlation bound says nothing."""


@dataclass(frozen=True)
class Platform:
    """Whether this machine gives the recorded profile: the control run, here against the genesis."""

    same: bool
    detail: str

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
    if here.root == genesis.control.root and here.steps == genesis.control.steps:
        return Platform(
            True, "the control run gives the recorded state here, so this machine gives the recorded profile"
        )
    return Platform(
        False, f"This machine does not give the recorded profile: the control run ends elsewhere ({_why(case, here)})"
    )


def _why(case: Case, here: Controlled) -> str:
    return (
        "; ".join(differences(case.genesis.platform, here.platform))
        or "same versions and capability, other hardware or kernels"
    )


def origin(case: Case, auditor: Auditor, platform: Platform) -> Checks:
    """Step 5: the first state is drawn again from the seed, and nothing in it comes from elsewhere."""
    genesis = case.genesis
    case.progress("building from the seed", 0, None)
    built = auditor.build(genesis.profile, genesis.recipe.configuration, case.seed)
    if isinstance(built, Failed):
        yield platform.mismatch("build", f"the recipe cannot be built: {built.message}")
        return
    if built.undeclared:
        yield failed(
            "build", f"the recipe imports the local module {built.undeclared[0]}, which its digest does not cover"
        )
        return
    if canonical.encode(built.configuration) != canonical.encode(genesis.recipe.configuration):
        yield failed("build", "the registered constructor arguments are not all those that the recipe takes")
        return
    changed = difference(genesis.spec.declaration, built.declaration)
    if changed:
        yield platform.mismatch("build", f"the recipe declares something else than the genesis: {changed}")
        return
    if built.root == case.log.origin.root:
        yield passed("seed", "the first state follows from the seed, bit for bit; optimizer state is fresh")
    else:
        yield platform.mismatch("seed", "the first state does not follow from the seed of this genesis")
        return
    yield passed("control", platform.detail)


def independence(case: Case, auditor: Auditor) -> Checks:
    """Step 5: built from two seeds of the verifier's own, each tensor is a permitted constant or unrelated."""
    genesis, allowed = case.genesis, case.policy.constants
    twice = auditor.build_twice(genesis.profile, genesis.recipe.configuration)
    if isinstance(twice, Failed) or not twice.comparisons:
        yield unable("independence", twice.message if isinstance(twice, Failed) else "nothing was compared")
        return
    if unknown := sorted(set(genesis.spec.constants) - {found.key for found in twice.comparisons}):
        yield failed("independence", f"the declared constant {unknown[0]} is no entry of the state")
        return
    for found in twice.comparisons:
        if objection := _objection(found, allowed, genesis.spec.constants):
            yield failed("independence", "{} {} ".format(*found.key.split("/", 1)) + objection)
            return
    random = sum(not found.equal for found in twice.comparisons)
    yield passed(
        "independence",
        f"{random} tensors are drawn from the seed, {len(twice.comparisons) - random} are permitted constants",
    )


def _objection(found: Comparison, allowed: str, declared: list[str]) -> str | None:
    """Why a tensor, built under two seeds, may hold something that was trained before; None if it may not."""
    if found.size > _TELLING and found.equal != (found.key in declared):
        return f"{'does not depend' if found.equal else 'depends'} on the seed, against what the genesis declares"
    if not found.equal:
        bound = CORRELATION_BOUND / math.sqrt(found.size)
        return (
            None if abs(found.correlation) <= bound else f"is alike under independent seeds ({found.correlation:.2f})"
        )
    if found.repeated:
        return None
    if allowed == "none" or (allowed == "buffers" and found.key.startswith(("parameter/", "optimizer/", "object/"))):
        return "has the same values under every seed: it comes from elsewhere"
    return None


def challenge(case: Case) -> Checks:
    """Step 6: draw, from the attestation and a nonce that the prover could not know."""
    every = case.genesis.spec.every
    resumed = [step // every for step in case.journal.resumes if 0 < step < case.genesis.spec.steps]
    case.draws = draw(case.policy.challenge, case.attestation_digest, case.nonce, case.windows, resumed)
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


def segments(case: Case) -> list[Segment]:
    """What to replay: from the kept checkpoint before each challenged interval to the last one of its window."""
    assert case.draws is not None
    chosen, found = set(case.draws.all()), []
    for window in case.windows:
        wanted = [i for i in range(window.first, window.last + 1) if i in chosen]
        if wanted:
            start = case.log.intervals[window.first].start
            counts = case.log.intervals[window.first - 1].schedules if window.first else {}
            path = str(case.store.path / checkpoint_path(start)) if start else None
            found.append(Segment(start=start, stop=case.log.intervals[wanted[-1]].stop, checkpoint=path, counts=counts))
    return found

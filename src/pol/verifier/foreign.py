"""Step 5 for an *observed* initialisation: first weights from anywhere, against the verifier's own builds.

The verifier builds its recipe under seeds of its own and learns from these builds what each entry of a first state is:

- *fixed*: the same in every build. The first state must hold it bit for bit (where this machine does not give the
  recorded profile, a difference decides nothing). So optimizer state, counters and schedules are fresh. Fixed tensors
  of several values could be weights from elsewhere: the policy must allow them.
- *a copy* of a drawn parameter (a moving average begins as one): it must be that copy in the first state, too.
- *drawn*: different in every build. Its law is the one that the policy names, or the standard laws that fit; either
  way the law must fit the verifier's own builds, so that none can be tailored to stolen weights. The first state's
  values must fit it, by a two-sided test per tensor and Holm's procedure over all, at the policy's level.

No entry is left out: one that is none of these, or whose law is unknown, is *unverified*, and then nothing is shown.

This is weaker than a first state derived from the seed. It does not see where values stand (``ranks`` screens for the
crudest use of that), whether they were picked from many draws, or weights that still follow their law after training.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pol.auditor import Auditor
from pol.checkpoint import Checkpoint
from pol.messages import Failed
from pol.profile import Profile
from pol.statetree import FLOATING
from pol.store import checkpoint_path
from pol.verifier.accounting import BUILDS, DRAWN, ENOUGH, MOST_BUILDS, Finding, account, digest, everything
from pol.verifier.case import Case, Checks, failed, passed, unable
from pol.verifier.ranks import order
from pol.verifier.replayed import Platform


def observed(case: Case, auditor: Auditor, platform: Platform, settled: Collection[str] = ()) -> Checks:
    """Build under seeds of the verifier's own, then ``foreign``."""
    genesis = case.genesis
    with tempfile.TemporaryDirectory(prefix="pol-") as folder:
        own = own_builds(case, auditor, genesis.profile, genesis.recipe.configuration, Path(folder))
        if isinstance(own, Failed):
            yield unable("own builds", f"the recipe cannot be built here: {own.message}")
            return
        yield from foreign(case, own, platform, settled)


def own_builds(
    case: Case, auditor: Auditor, profile: Profile, configuration: dict[str, Any], folder: Path
) -> list[Path] | Failed:
    """Builds under seeds of the verifier's own, as many as the smallest tensor takes to show its law."""
    own: list[Path] = []
    wanted = BUILDS
    while len(own) < wanted:
        case.progress("building under seeds of our own", len(own), wanted)
        more = auditor.own_builds(profile, configuration, wanted - len(own), folder)
        if isinstance(more, Failed):
            return more
        own += more
        wanted = builds_wanted(own)
    return own


def builds_wanted(own: Sequence[Path]) -> int:
    """How many builds it takes until the smallest tensor that is drawn has values enough; from the first builds."""
    states = [Checkpoint.at(path) for path in own]
    sizes = [
        math.prod(slot.entry.shape)
        for key, slot in states[0].entries.items()
        if slot.entry.kind in DRAWN
        and slot.entry.dtype in FLOATING
        and len({digest(state, key) for state in states if key in state.entries}) > 1
    ]
    return min(MOST_BUILDS, max(BUILDS, -(-ENOUGH // max(1, min(sizes, default=ENOUGH)))))


def foreign(case: Case, own: Sequence[Path], platform: Platform, settled: Collection[str] = ()) -> Checks:
    """Check the first state of the proof against files of own builds under different seeds.

    Args:
        case: The verification, after step 4.
        own: Checkpoint files of builds of the verifier's recipe under seeds of its own.
        platform: Whether these builds say what the recorded machine builds, bit for bit.
        settled: Entries that are known to follow from the seed of the run, bit for bit.
    """
    first = Checkpoint(case.store, checkpoint_path(0), case.checkpoints[0])
    end = case.genesis.spec.steps
    last = Checkpoint(case.store, checkpoint_path(end), case.checkpoints[end])
    findings = account(first, [Checkpoint.at(path) for path in own], case.policy, settled)
    yield from judged(findings, case.policy.level, platform)
    drawn = [found.key for found in findings if found.p is not None and found.key in last.entries]
    compared = {key: order(everything(first, key), everything(last, key)) for key in drawn}
    if kept := [key for key, found in compared.items() if found is not None and found.kept]:
        yield failed(
            "order",
            f"{_few(kept)}: the first values stand in the order of the last ones, which training does not leave: fresh "
            "draws were laid out along known weights",
        )
    else:
        seen = sum(found is not None for found in compared.values())
        yield passed(
            "order",
            f"{seen} tensors moved and were screened; none was laid out along its last values"
            if seen
            else "no tensor moved enough to be screened",
        )


def judged(findings: Sequence[Finding], level: float, platform: Platform) -> Checks:
    """The findings as checks: entries that are exact, tensors that are tested, and those that are neither.

    Bits depend on the machine: an entry that differs fails only where this machine gives the recorded profile. A test
    of a law does not: it fails anywhere.
    """
    exact = [found for found in findings if found.p is None and found.status != "unverified" and not found.settled]
    tested = [found for found in findings if found.p is not None]
    for name, group, good, bad in (
        ("fresh", exact, f"{len(exact)} entries are those of your own builds, bit for bit", platform.mismatch),
        ("laws", tested, _summary(tested, level), failed),
    ):
        wrong = [found for found in group if found.status == "failed"]
        for found in wrong[:_SHOWN]:
            yield bad(name, f"{found.key} {found.detail}")
        if len(wrong) > _SHOWN:
            yield bad(name, f"and {len(wrong) - _SHOWN} more")
        if not wrong and group:
            yield passed(name, good)
    unknown = [found for found in findings if found.status == "unverified"]
    for found in unknown[:_SHOWN]:
        yield unable("unverified", f"{found.key} {found.detail}")
    if len(unknown) > _SHOWN:
        yield unable("unverified", f"and {len(unknown) - _SHOWN} more")
    if not tested:
        yield unable("laws", "no tensor was tested: nothing says that the first weights are untrained")


_SHOWN = 3
"""Findings that are told one by one."""


def _summary(tested: Sequence[Finding], level: float) -> str:
    smallest = min(tested, key=lambda found: found.p or 0.0, default=None)
    if smallest is None:
        return ""
    return (
        f"{len(tested)} drawn tensors fit their laws at family-wise level {level:g}; the smallest p-value is "
        f"{smallest.p:.2g} ({smallest.key}, {smallest.law})"
    )


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")

"""What a verifier with the preset ``tolerance`` will say of a recording, told while its prover can still change it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Refused:
    """Why the preset ``tolerance`` refuses a run that is recorded for this rule, and what a policy must say instead."""

    why: str
    policy: str


def refused(out: Path) -> Refused | None:
    """What of a signed genesis the preset refuses, if it is of rule tolerance: interval and element types."""
    from pol import policies
    from pol.proof.genesis import MAX_GENESIS, read_genesis
    from pol.statetree import FLOATING
    from pol.store import GENESIS, ProofDirectory
    from pol.verifier.carrying import unbounded

    spec = read_genesis(ProofDirectory(out).read(GENESIS, 2 * MAX_GENESIS)).spec
    if spec.rule != "tolerance":
        return None
    preset = policies.load("tolerance")
    found = {entry.dtype for entry in spec.declaration.entries if entry.kind == "parameter"}
    others, most = sorted(found - set(preset.dtypes)), preset.bounds.max_every
    if coarse := ", ".join(sorted(set(others) & set(FLOATING))):
        return Refused(
            f"parameters are {coarse}, and rule tolerance takes none with fewer than 24 bits of mantissa: record under "
            "rule exact, or train in float32",
            f"none of rule tolerance takes {coarse}",
        )
    why, clauses = [], []
    if others:
        clauses.append(f"dtypes = {json.dumps([*preset.dtypes, *others])}")
        why.append(f"parameters are {', '.join(others)}")
    if most is not None and spec.every > most:
        clauses.append(f"bounds.max_every = {spec.every}")
        fewer = "" if most == 1 else " or fewer"
        why.append(f"an interval has {spec.every} steps, it allows {most} (record with --every {most}{fewer})")
    for part in spec.declaration.parts:
        if part.kind == "optimizer" and (unknown := unbounded(part)):
            clauses.append(f"limits.optimizers = {json.dumps([part.type])}")
            why.append(unknown)
    if not why:
        return None
    needed = " and ".join(['base = "tolerance"', *clauses])
    return Refused(f"{'; '.join(why)}. Else a verifier needs a policy file with {needed}", f"file with {needed}")


def warn(out: Path, warned: set[str]) -> None:
    """Say once what the prover can still change: that the preset will refuse the run, and what no replay can give."""
    if warned:
        return
    warned.add("said")
    if objection := refused(out):
        say(f"the policy `tolerance` refuses this run: {objection.why}")
    for place in noticed(out):
        say(f"the program {place}. No state depended on it in the first steps; if one does later, no replay agrees")


def say(text: str) -> None:
    """Warn, on standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def noticed(out: Path) -> list[str]:
    """Where the control run saw the program read a clock or fresh randomness."""
    from pol import canonical
    from pol.proof.attestation import MAX_JOURNAL, Journal
    from pol.store import JOURNAL, ProofDirectory

    data = ProofDirectory(out).read(JOURNAL, MAX_JOURNAL)
    return list(canonical.decode(data, Journal, what=JOURNAL, limit=MAX_JOURNAL).noticed)

"""Measure honest errors of rule tolerance: ``python -m benchmarks.tolerance [--every 1 2 5 10]``.

The digits recipe is recorded on one thread; then each interval is taken again from its recorded state with other
instruction sets or more threads, and every tensor is compared as the verifier compares it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pol import policies, seeds
from pol.attacks.forger import Forger
from pol.auditor import LocalAuditor
from pol.checkpoint import Checkpoint, compare
from pol.distance import ratio
from pol.executors.local import LocalProcess
from pol.keys import SigningKey
from pol.messages import Segment
from pol.profile import Profile
from pol.prover import record
from pol.prover.recorder import registered
from pol.statetree import FLOATING
from pol.store import checkpoint_path
from pol.verifier import tolerance

RECIPE = "pol.recipes.digits:DigitsCNN"
PROFILES = {
    "two threads": Profile(threads=2),
    "AVX2": Profile(threads=1, aten="avx2", onednn="avx2", mkl="avx2"),
    "no vector instructions": Profile(threads=1, aten="default", onednn="sse41", mkl="compatible"),
}


def replay(proof: Path, profile: Profile, folder: Path) -> Iterator[tuple[Checkpoint, Checkpoint, Checkpoint]]:
    """(recorded start, replayed end, recorded end) of every interval."""
    forger = Forger(proof)
    genesis, counts = forger.genesis, {part.name: 0 for part in forger.genesis.spec.declaration.parts if part.counted}
    segments = []
    for interval in forger.intervals:
        start = str(proof / checkpoint_path(interval.start))
        segments.append(Segment(start=interval.start, stop=interval.stop, checkpoint=start, counts=counts))
        counts = interval.schedules
    executor = LocalProcess(profile)
    try:
        with LocalAuditor(RECIPE, executor=executor) as auditor:
            events = auditor.replay(
                profile, genesis.recipe.configuration, forger.seed, registered(genesis, forger.r), segments,
                seeds.salt_key(forger.r), save=folder,
            )  # fmt: skip
            for _ in events:
                pass
    finally:
        executor.close()
    for interval in forger.intervals:
        recorded = [Checkpoint.at(proof / checkpoint_path(step)) for step in (interval.start, interval.stop)]
        yield recorded[0], Checkpoint.at(folder / f"{interval.stop:012d}.safetensors"), recorded[1]


def row(name: str, every: int, proof: Path, profile: Profile) -> str:
    """One row of the table."""
    policy, shares, different, beyond, count = policies.load("tolerance"), [], 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for start, again, recorded in replay(proof, profile, Path(folder)):
            count += 1
            errors = compare(again, recorded, lambda entry: entry.dtype in FLOATING).tensors
            known = start.entries.keys()  # optimizers make their state in the first step
            moves = compare(again, start, lambda entry, known=known: entry.dtype in FLOATING and entry.key in known)
            found = [ratio(errors[key].l2, move.l2) for key, move in moves.tensors.items()]
            different += any(found)
            shares += found if any(found) else []
            beyond += tolerance.deviation(policy, start, again, recorded)[0] != ""
    shares = sorted(shares) or [0.0]
    most = f"{shares[int(0.99 * len(shares))]:.0e} | {shares[-1]:.0e}"
    return f"| {name} | {every} | {count} | {different} | {most} | {beyond} |"


def main() -> None:
    """Record, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 5, 10], metavar="K")
    print("| replayed with | k | intervals | not equal | 99 % of errors below | largest | beyond the preset |")
    print("|---|---|---|---|---|---|---|")
    for every in parser.parse_args().every:
        with tempfile.TemporaryDirectory() as folder:
            proof = Path(folder) / "proof"
            record(
                RECIPE, proof, key=SigningKey.generate(), every=every, keep=1, rule="tolerance",
                profile=Profile(threads=1),
            )  # fmt: skip
            for name, profile in PROFILES.items():
                print(row(name, every, proof, profile), flush=True)


if __name__ == "__main__":
    main()

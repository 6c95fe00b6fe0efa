"""Record honest runs and verify them on other machines: ``python -m benchmarks.honest``.

Every run has a seed of its own, is recorded under rule ``tolerance`` (k = 1, every tenth state kept) on one machine,
and verified with the preset ``tolerance`` on another, as two parties do it: the verifier says which states it needs,
the prover takes their steps again, and the verifier goes on with the same nonce. Any verdict but ACCEPT is the rule's
fault, since nobody cheated.
"""

from __future__ import annotations

import itertools
import math
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import page
from benchmarks.apart import ENDLESS
from benchmarks.choosing import RESNET, TEXT, TINY_TEXT, Training, chosen, command, parser_for, save, say, with_data
from benchmarks.honest_table import Measured, Verified, markdown
from pol import policies
from pol.auditor import LocalAuditor
from pol.distance import ratio
from pol.errors import ReplayError
from pol.executors.local import LocalProcess, Processes
from pol.keys import SigningKey
from pol.messages import EventType, JobType
from pol.profile import Profile
from pol.proof.policy import Policy
from pol.proof.report import Report
from pol.prover import record
from pol.responder import regenerate
from pol.verifier import verify

EVERY, KEEP = 1, 10
"""The strong choice under rule ``tolerance``: single steps, and few states in the proof (design section 3.3)."""

RECORDERS = {
    "1 thread": Profile(threads=1),
    "2 threads": Profile(threads=2),
    "AVX2": Profile(threads=1, aten="avx2", onednn="avx2", mkl="avx2"),
}
"""Machines that record."""

VERIFIERS = {
    "2 threads": Profile(threads=2),
    "AVX2": Profile(threads=1, aten="avx2", onednn="avx2", mkl="avx2"),
    "oneDNN SSE4.1, MKL compatible": Profile(threads=1, onednn="sse41", mkl="compatible"),
    "1 thread": Profile(threads=1),
    "AVX2, oneDNN SSE4.1, 3 threads": Profile(threads=3, aten="avx2", onednn="sse41", mkl="avx2"),
}
"""Machines that verify. ATen keeps its vectors: without them it draws other first weights, and step 5 is undecided."""


@dataclass(frozen=True)
class Repeated(Training):
    """A training that is recorded again and again."""

    share: int
    """One run of this many; at least one."""


DIGITS = "pol.recipes.digits:DigitsCNN"

FULL = (
    Repeated("digits", "digits CNN, SGD, 120 steps", DIGITS, {"num_epochs": 4}, 1),
    Repeated("resnet", "ResNet-20 on CIFAR-10 (JPEG), SGD, 60 steps", RESNET, {"samples": 7680}, 10),
    Repeated("text", "CharGPT, AdamW, 60 steps", TEXT, {"num_epochs": 1, "steps_per_epoch": 60}, 10),
)

QUICK = (
    Repeated("digits", "digits CNN, SGD, 15 steps", DIGITS, {"num_epochs": 1, "batch_size": 100}, 1),
    Repeated("resnet", "ResNet-20, SGD, 4 steps", RESNET, {"samples": 32, "batch_size": 8}, 10),
    Repeated("text", "CharGPT, AdamW, 6 steps", TEXT, {**TINY_TEXT, "steps_per_epoch": 6}, 10),
)
"""Sizes that only show that everything runs; their numbers mean nothing."""


class Machine:
    """An executor whose processes have other flags than those they are asked for; nobody tells the verifier."""

    def __init__(self, process: LocalProcess) -> None:
        self._process = process

    def run(self, job: JobType) -> Iterator[EventType]:
        """The events of a job here."""
        program = msgspec.structs.replace(job.program, profile=self._process.profile)
        return self._process.run(msgspec.structs.replace(job, program=program))


def pairs() -> list[tuple[str, str]]:
    """Every recorder with every verifier that is another machine, in turns."""
    found = itertools.product(VERIFIERS, RECORDERS)
    return [(recorder, verifier) for verifier, recorder in found if RECORDERS[recorder] != VERIFIERS[verifier]]


def one(training: Repeated, recorder: str, verifier: str, processes: Processes, folder: Path) -> Verified:
    """Record a run, verify it elsewhere, and say what became of it."""
    proof, here = folder / "proof", processes.of(RECORDERS[recorder])
    began = time.monotonic()
    record(
        training.recipe, proof, key=SigningKey.generate(), every=EVERY, keep=KEEP, settings=training.settings,
        profile=RECORDERS[recorder], rule="tolerance", executor=here,
    )  # fmt: skip
    recorded = time.monotonic()
    report, asked = two_parties(
        proof, training, LocalAuditor(training.recipe, executor=here),
        LocalAuditor(training.recipe, training.settings, Machine(processes.of(VERIFIERS[verifier]))), folder,
    )  # fmt: skip
    return verified(
        report, training=training.title, recorder=recorder, verifier=verifier, asked=asked,
        record_seconds=recorded - began, verify_seconds=time.monotonic() - recorded,
    )  # fmt: skip


def two_parties(
    proof: Path, training: Repeated, prover: LocalAuditor, auditor: LocalAuditor, folder: Path
) -> tuple[Report, int]:
    """The verifier's last report, and how many states it had asked for."""
    policy, nonce = policies.load("tolerance"), secrets.token_bytes(32)
    openings = folder / "openings"
    first = verify(proof, policy=policy, auditor=auditor, nonce=nonce, openings=openings)
    if first.request is None:
        return first, 0
    made = regenerate(proof, openings, recipe=training.recipe, auditor=prover)
    # The prover knows the request by now, so no other attestation will do.
    pinned: Policy = msgspec.structs.replace(policy, attestation=first.attestation)
    return verify(proof, policy=pinned, auditor=auditor, nonce=nonce, openings=openings), len(made)


def verified(report: Report, **known: Any) -> Verified:
    """What a report says."""
    found = [interval.deviation for interval in report.intervals if interval.deviation is not None]
    drift = report.drift
    return Verified(
        verdict=str(report.verdict), reason=report.reason(), replayed=len(report.intervals),
        genesis=report.genesis, nonce=report.nonce,
        unequal=len(found), branches=sum(interval.branch for interval in report.intervals),
        beyond=sum(_finite(ratio(one.error, one.limit)) > 1 for one in found),
        of_limit=max((_finite(ratio(one.error, one.limit)) for one in found), default=0.0),
        of_move=max((_finite(one.relative) for one in found), default=0.0),
        drift=None if drift is None else _finite(ratio(ratio(drift.bound, drift.distance), drift.budget)), **known,
    )  # fmt: skip


def _finite(share: float) -> float:
    return share if math.isfinite(share) else ENDLESS


def measure(training: Repeated, runs: int, processes: Processes, archive: Path | None) -> Iterator[Verified]:
    """Runs of one training, on machines in turns."""
    count = max(1, runs // training.share)
    with tempfile.TemporaryDirectory(prefix="pol-honest-") as folder:
        filled = with_data(training, archive, Path(folder))
        for number, (recorder, verifier) in enumerate(itertools.islice(itertools.cycle(pairs()), count)):
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                try:
                    found = one(filled, recorder, verifier, processes, Path(inner))
                except ReplayError as error:
                    raise SystemExit(f"{training.title}, recorded on {recorder}: {error}") from None
            what = f"{training.title}, {number + 1} of {count}: {recorder} → {verifier}"
            say(f"{what}: {found.verdict} ({found.of_limit:.2g} of a limit) {found.reason[:160]}")
            yield found


def main() -> None:
    parser = parser_for("honest", str(__doc__))
    parser.add_argument("--runs", type=int, metavar="N", help="of the digits; of the others a tenth (default: 50)")
    options = parser.parse_args()
    options.cases = chosen(parser, options)
    runs = options.runs if options.runs is not None else 2 if options.quick else 50
    if runs < 1:
        parser.error("there is at least one run")
    about = page.about(command("honest", options, f"--runs {runs}"))
    earlier = [msgspec.json.decode(path.read_bytes(), type=Measured) for path in options.add]
    results: list[Verified] = []
    with Processes() as processes:
        for training in QUICK if options.quick else FULL:
            if training.case in options.cases:
                for found in measure(training, runs, processes, options.cifar):
                    results.append(found)
                    save(options.json, Measured(about, results))
    all_runs = [*earlier, *([Measured(about, results)] if results else [])]
    text = markdown(all_runs)
    print(text)
    if options.write:
        page.write(options.write, "honest", text)


if __name__ == "__main__":
    main()

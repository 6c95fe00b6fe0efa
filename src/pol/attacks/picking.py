"""What a claimant may choose, or say, as long as nobody else has a say in it: its secret, its best run, its dates.

No step of these proofs is a lie. A nonce that the verifier gives for a genesis which it has seen leaves one secret and
one run for each registration; without it the report says that the claimant may have tried many.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from pol import seeds
from pol.attacks.attack import Attack
from pol.attacks.data import leaves
from pol.attacks.forger import Forger
from pol.attacks.rehearsal import apart
from pol.attacks.workshop import Workshop
from pol.proof.genesis import Genesis

SECRETS = 16
"""Secrets that are tried: each costs a build and the hashes of the dataset, no gradient."""

RUNS = 3
"""Honest runs of which the luckiest is published: each costs a training."""

LONG_AGO = "2001-01-01T00:00:00+00:00"
"""Before there was any such proof."""


def ground_start(workshop: Workshop, out: Path) -> None:
    """Honest training under the secret, of some, whose first weights lie nearest to the stolen ones (A16).

    Of the digits sixteen secrets bring the start nearer by half a per cent: fresh draws lie about equally far.
    """
    forger, stolen = workshop.begin(), workshop.stolen().tensors
    data = workshop.data(forger)

    def away() -> float:
        first = forger.states[0].tensors
        return apart({key: tensor for key, tensor in first.items() if key.startswith("parameter/")}, stolen)

    nearest, best = away(), _chosen(forger)
    for _ in range(SECRETS - 1):
        forger.r = secrets.token_bytes(32)
        forger.genesis = msgspec.structs.replace(forger.genesis, secret=seeds.commit(forger.r))
        forger.commit_dataset(leaves(forger, data))
        workshop.first_state(forger)
        if (found := away()) < nearest:
            nearest, best = found, _chosen(forger)
    forger.r, forger.genesis, forger.leaves = best
    workshop.first_state(forger)
    workshop.train(forger)
    forger.seal(out, workshop.key)


def _chosen(forger: Forger) -> tuple[bytes, Genesis, list[bytes]]:
    return forger.r, forger.genesis, forger.leaves


def lucky_run(workshop: Workshop, out: Path) -> None:
    """Of some honest runs the one whose last interval has the least loss (T15)."""
    runs = [workshop.record() for _ in range(RUNS)]
    min(runs, key=lambda run: float(run.intervals[-1].loss or "inf")).seal(out, workshop.key)


def backdated(workshop: Workshop, out: Path) -> None:
    """An honest run whose journal says that it took place long ago (T14)."""
    forger = workshop.open()
    forger.journal = msgspec.structs.replace(forger.journal, started=LONG_AGO, finished=LONG_AGO)
    forger.seal(out, workshop.key)


ATTACKS = (
    Attack(
        "ground-start",
        "an honest run under the secret that suits best of many",
        "thief",
        ground_start,
        study=("A16",),
        survives="an honest run under a secret of its own: only a verifier's nonce for a genesis leaves but one",
        reported="an order of first weights after which accuracy on Fashion-MNIST is 50 % (Grosse et al., arXiv "
        "1902.03020)",
    ),
    Attack(
        "lucky-run",
        "the luckiest of several honest runs",
        "thief",
        lucky_run,
        study=("A16", "T15"),
        reported="backdoors in chosen randomness that nobody can detect (Goldwasser et al., arXiv 2204.06974)",
        survives="an honest run, and others need not be shown: who gives a nonce for each genesis can count",
    ),
    Attack(
        "backdated",
        "an honest run with dates of long ago in its journal",
        "prover",
        backdated,
        study=("T14",),
        survives="dates in a journal are claims that nothing compares: the report says that nothing shows a time",
    ),
)

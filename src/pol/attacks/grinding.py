"""A lie in one interval among many, and a proof that is varied until the challenge does not meet it (A22).

The challenge follows from the attestation and a nonce. Whoever knows the nonce beforehand can try: here text in the
journal is varied, which costs a hash. A fresh nonce makes every try worth nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import torch

from pol import canonical
from pol.attacks.attack import Attack
from pol.attacks.deltas import LEAST
from pol.attacks.foresight import Foresight, seen
from pol.attacks.forger import Forger
from pol.attacks.hiding import hidden
from pol.attacks.needs import DoesNotApply
from pol.attacks.rehearsal import Weights, apart
from pol.attacks.workshop import Workshop
from pol.digest import Digest, raw, sha256
from pol.proof.attestation import Sha256, Statement, Subject, attestation_digest
from pol.proof.genesis import boundaries
from pol.proof.policy import EXACT
from pol.replay.state import State
from pol.store import JOURNAL

TRIES = 2**12
"""Tries at most: where a draw misses the lie one time in a hundred, all of them fail with probability e^-41."""

PREDICTED = bytes(32)
"""A nonce that a forger may hope for: that of whoever does not draw one."""

PLACES = 4
"""Intervals at which the lie is tried, if it is replayed in any case at those before: each costs the steps after it."""

Nonce = Callable[[Digest], bytes]
"""The nonce that a forger foresees for an attestation."""


def predicted(_: Digest) -> bytes:
    """The same for every proof."""
    return PREDICTED


def from_proof(attestation: Digest) -> bytes:
    """One that follows from the proof itself, as Fiat and Shamir have it."""
    return raw(attestation)


def _ground(nonce: Nonce) -> Callable[[Workshop, Path], None]:
    def make(workshop: Workshop, out: Path) -> None:
        for place, (forger, lie) in enumerate(_lies(workshop)):
            sealed = workshop.scratch / f"lie-{place}"
            forger.seal(sealed, workshop.key)
            forger = Forger(sealed)  # which keeps the signed genesis: another signature is another attestation
            known = Foresight(seen(sealed, workshop.policy or EXACT))
            if known.everything or known.escapes(lie):
                break
        journal = forger.journal
        for number in range(TRIES if known.escapes(lie) else 0):
            forger.journal = msgspec.structs.replace(journal, tool=f"{journal.tool[:48]} {number}")
            digest = attestation_digest(_with(known.attestation, canonical.encode(forger.journal)))
            if not known.meets(known.draws(nonce(digest), digest).all(), [lie]):
                break
        forger.seal(out, workshop.key)

    return make


def _with(statement: Statement, journal: bytes) -> Statement:
    digest = sha256(journal)
    named = Subject(name=JOURNAL, digest=Sha256(digest.partition(":")[2]))
    subject = [named if one.name == JOURNAL else one for one in statement.subject]
    predicate = msgspec.structs.replace(statement.predicate, journal=digest)
    return msgspec.structs.replace(statement, subject=subject, predicate=predicate)


def _lies(workshop: Workshop) -> Iterator[tuple[Forger, int]]:
    """Runs with hidden steps on marked samples in one interval, no larger than is usual, and that interval.

    The smallest intervals of the second half come first, where there is most room; never the last two, which are always
    replayed.
    """
    forger = workshop.begin()
    ends = boundaries(forger.genesis.spec)
    if len(ends) < 6:
        raise DoesNotApply("this attack needs five intervals")
    workshop.train(forger)
    sizes = [apart(_parameters(forger, a), _parameters(forger, b)) for a, b in pairwise(ends)]
    half, honest = len(sizes) // 2, (dict(forger.states), list(forger.intervals))
    usual = statistics.median(sizes[half:])
    for lie in sorted(range(half, len(sizes) - 2), key=lambda index: sizes[index])[:PLACES]:
        forger.states, forger.intervals = dict(honest[0]), list(honest[1])
        _tell(workshop, forger, ends[lie], ends[lie + 1], max(usual, 2 * sizes[lie]))
        yield forger, lie


def _tell(workshop: Workshop, forger: Forger, before: int, after: int, room: float) -> None:
    """Hidden steps in an interval that moves the parameters by ``room`` at most, and honest ones from there."""
    start, end = _parameters(forger, before), _parameters(forger, after)
    aim, share = hidden(workshop, forger, before, after).tensors, 1.0
    moved = {key: aim[key] for key in end}
    while apart(start, moved) > room and share > LEAST:
        share /= 2
        moved = {key: torch.lerp(t.double(), aim[key].double(), share).to(t.dtype) for key, t in end.items()}
    forger.states[after] = State({**forger.states[after].tensors, **moved})
    workshop.train(forger, after)


def _parameters(forger: Forger, step: int) -> Weights:
    return {key: tensor for key, tensor in forger.states[step].tensors.items() if key.startswith("parameter/")}


_REPORTED = "one to three tries, where 10 of 1,000 intervals are forged and 100 drawn (attack study, section 8)"

ATTACKS = (
    Attack(
        "ground-challenge",
        "hidden steps in one interval, and free text tried until a predicted nonce misses it",
        "prover",
        _ground(predicted),
        study=("A22",),
        adapts=True,
        reported=_REPORTED,
    ),
    Attack(
        "ground-fiat-shamir",
        "the same, where the nonce follows from the proof",
        "prover",
        _ground(from_proof),
        study=("A22",),
        adapts=True,
        reported=_REPORTED,
    ),
)

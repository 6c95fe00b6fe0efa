"""What a forger foresees of the challenge of its proof, with the verifier's own code: all but the nonce is known."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable
from pathlib import Path

from pol.digest import Digest
from pol.errors import AuthenticityError, FormatError, IntegrityError
from pol.proof.attestation import Statement
from pol.proof.challenge import Draws, Lots, Window, spans
from pol.proof.plan import detection
from pol.proof.policy import Policy
from pol.proof.screens import suspects
from pol.store import ProofDirectory
from pol.verifier import authenticate, eight, screening, shape
from pol.verifier.case import Case

ANY = bytes(32)
"""A nonce where none matters."""


class Foresight:
    """What follows from a proof and a policy before anything is replayed.

    Args:
        case: The proof, as far as windows are measured and screens have looked.

    Attributes:
        windows: What moved between kept checkpoints.
        screened: Intervals that the screens name, as many as the policy takes from them.
    """

    def __init__(self, case: Case) -> None:
        self._case, self._challenge = case, case.policy.challenge
        self._each = case.genesis.spec.rule == "tolerance"
        every, steps = case.genesis.spec.every, case.genesis.spec.steps
        self._resumed = [step // every for step in case.journal.resumes if 0 < step < steps]
        self._suspects = suspects(case.screens)
        self.windows: list[Window] = case.windows
        self._lots = Lots(self._challenge, self.windows, self._resumed, self._suspects)
        self.screened = self._suspects[: self._challenge.screened] if self._challenge.strategy == "mix" else []

    @property
    def attestation(self) -> Statement:
        """The attestation as it is."""
        return self._case.statement

    @property
    def digest(self) -> Digest:
        """Its digest."""
        return self._case.attestation_digest

    def draws(self, nonce: bytes, attestation: Digest | None = None) -> Draws:
        """The challenge of a nonce; with another attestation, if the digest of one is given."""
        return self._lots.draw(attestation or self.digest, nonce)

    def meets(self, chosen: Iterable[int], forged: Collection[int]) -> bool:
        """Whether the replay for some challenged intervals reaches a forged one."""
        found = spans(self.windows, chosen, each=self._each)
        return any(first <= index <= last for first, last in found for index in forged)

    def probability(self, forged: Collection[int]) -> float:
        """Probability, over the nonce, that a challenge meets a forged interval."""
        if self.meets(self.screened, forged):
            return 1.0
        return detection(self._challenge, self.windows, self._resumed, forged, each=self._each)

    @property
    def everything(self) -> bool:
        """Whether every interval is replayed."""
        drawn = self.draws(ANY)
        return len(drawn.uniform) == drawn.intervals

    def escapes(self, interval: int) -> bool:
        """Whether chance decides over an interval: it is not replayed in any case."""
        drawn = self.draws(ANY)
        return not self.everything and not self.meets([*drawn.mandatory, *drawn.top, *drawn.screened], [interval])


def seen(proof: Path, policy: Policy) -> Case:
    """A proof read as far as its challenge needs it; its maker knows that the checks before that pass."""
    case = _case(proof, policy)
    for checks in (authenticate.envelopes, authenticate.contents, shape.measured, screening.look):
        deque(checks(case), maxlen=0)
    return case


def looked_over(proof: Path, policy: Policy) -> Case | None:
    """What a verifier knows of a proof before it builds or replays anything; None if it knows enough to refuse it."""
    case = _case(proof, policy)
    steps = (*eight.AUTHENTICATE, authenticate.contents, *eight.BIND, *eight.SHAPE)
    try:
        checks = itertools.chain(authenticate.envelopes(case), *(step(case) for step in steps))
        return None if any(check.status != "passed" for check in checks) else case
    except (FormatError, IntegrityError, AuthenticityError):
        return None


def foreseen(proof: Path, policy: Policy, forged: Collection[int]) -> float:
    """Probability, over the nonce, that a finished forgery is accepted, if its replays of other intervals agree.

    Args:
        proof: The forgery.
        policy: By which it will be verified.
        forged: Intervals that no replay gives again.
    """
    case = looked_over(proof, policy)
    return 0.0 if case is None else 1.0 - Foresight(case).probability(forged)


def _case(proof: Path, policy: Policy) -> Case:
    return Case(store=ProofDirectory(proof), policy=policy, model=None, nonce=ANY, progress=lambda *_: None)

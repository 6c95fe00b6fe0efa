"""The policy: what a verifier demands. It is the verifier's own, and its digest stands in the report."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pol import canonical
from pol.digest import Digest, sha256
from pol.profile import MAX_THREADS, Profile

Natural = Annotated[int, msgspec.Meta(ge=0)]
Strategy = Literal["all", "top-q", "uniform", "size-weighted", "mix"]


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which intervals to replay. First, last, largest and resumed windows are always among them."""

    strategy: Strategy = "mix"
    top: Natural = 1
    """Q: the largest windows of each kind in each stratum."""
    uniform: Natural = 100
    """Uniform draws: 100 that pass say that at most 3 % are forged, with 95 % confidence (attack study, section 8)."""
    weighted: Natural = 60
    """Size-weighted draws: they meet a jump that is hidden among many honest steps (attack study, section 8)."""
    all_up_to: Natural = 150
    """With no more intervals than this, ``mix`` replays all: sampling would save little (attack study, section 8)."""

    def __post_init__(self) -> None:
        if min(self.top, self.uniform, self.weighted, self.all_up_to) < 0:
            raise ValueError("a challenge has no negative counts")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What must hold for ACCEPT."""

    name: str = "exact"
    version: int = 1
    rule: Literal["exact"] = "exact"
    keys: tuple[str, ...] = ()
    """Fingerprints of trusted provers; empty: anybody's, and the report says whose."""
    beacon: str | None = None
    """The nonce (hex) that this verifier gave for this genesis; None: it gave none."""
    genesis: str | None = None
    """Digest of the genesis for which this verifier gave its nonce. Only with both is it known that the claimant had
    signed before it knew the nonce."""
    challenge: Challenge = Challenge()
    constants: Literal["none", "buffers", "any"] = "buffers"
    """Which seed-independent tensors of several values a recipe may build. Buffers are masks and tables; constant
    *parameters* would be weights from elsewhere."""
    externals: tuple[str, ...] = ()
    """Digests of files that the build may read."""
    max_threads: int = MAX_THREADS
    """Most threads that a replay is given: the profile is the prover's, the machine is the verifier's."""
    max_bytes: int = 2**40
    """Largest proof that is read: 1 TiB."""
    max_steps: int | None = None
    """Most steps that the verifier is willing to replay; more mandatory ones make the verdict INCONCLUSIVE."""


EXACT = Policy()
"""The default: every replayed state must be equal to the recorded one, bit for bit."""


def policy_digest(policy: Policy) -> Digest:
    """Digest of a policy."""
    return sha256(canonical.encode(policy))


def profile_objection(profile: Profile, policy: Policy) -> str | None:
    """Why a profile is outside the policy; None if it is within."""
    if profile.threads > policy.max_threads:
        return f"the profile asks for {profile.threads} threads, the policy allows {policy.max_threads}"
    return None

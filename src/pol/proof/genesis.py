"""The genesis: the signed commitment that is made before step 0, and the spec inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from pol import canonical, seeds
from pol.declaration import Declaration, DigestField, Name, Positive
from pol.digest import Digest, sha256, sha256_framed
from pol.merkle import Root
from pol.messages import Registered
from pol.profile import Platform, Profile
from pol.proof.envelope import parse_envelope
from pol.statetree import StateRoot

PAYLOAD_TYPE = "application/vnd.proof-of-learning.genesis.v1+json"

MAX_GENESIS = 64 * 2**20
"""Largest genesis: 64 MiB, room for the 10^5 named tensors of a very large model at some 300 bytes each."""


CONTROL_STEPS = 3
"""Steps of the control run, or all if the training has fewer: the third uses optimizer state and moved buffers."""


Rule = Literal["exact", "tolerance"]


class RecipeIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which code trains, and with which constructor arguments (tagged values)."""

    name: Name
    digest: DigestField
    sources: dict[str, DigestField]
    configuration: dict[str, Any]


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the released model follows from the last checkpoint: the weights of one part, as they are."""

    map: Literal["identity"] = "identity"
    part: Name


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The signed description of a run."""

    declaration: Declaration
    constants: list[Name]
    """Keys of the state entries that do not depend on the seed."""
    batches_per_step: Positive
    steps: Positive
    every: Positive
    """k: steps of an interval."""
    keep: Positive
    """K: every K-th checkpoint is in the proof, beside the first and the last."""
    stop: Literal["steps"] = "steps"
    rule: Rule = "exact"
    """How replayed states are compared with recorded ones: equal bits, or within the verifier's limits."""
    release: Release | None


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """State after the first steps of this recipe from the public seed: the fingerprint of a platform."""

    steps: Positive
    root: StateRoot


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Commitment to the samples."""

    encoding: Literal["pol/v1/sample"] = "pol/v1/sample"
    root: Root


class DeclaredSeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="declared"):
    """First weights drawn under a number that the claimant chose, as ``torch.manual_seed`` takes it."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    """32 bits: what Python's, numpy's and torch's generators all take."""


class Parent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="parent"):
    """First weights that are the released weights of another proof."""

    attestation: DigestField
    """Digest of that proof's attestation."""


class Randomness(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where each kind of randomness comes from.

    *derived*: from the seed of the run. Of the initialisation also: *declared*, a number of the claimant's; *parent*,
    the weights of another proof; *given*, weights that the verifier gave out; *observed*, weights from anywhere. Of the
    order also *observed*: indices that the claimant chose, in ``order.bin``; *recorded* and *stream*: what a loader of
    the recipe's own gave. Of the streams also *observed*: the recipe seeds its generators itself, and they are state.
    Then the initialisation may be *recipe*: the same under every seed, because the recipe draws it under its own.
    """

    initialisation: Literal["derived", "recipe", "given", "observed"] | DeclaredSeed | Parent = "derived"
    order: Literal["derived", "observed", "recorded", "stream"] = "derived"
    augmentation: Literal["derived"] = "derived"
    streams: Literal["derived", "observed"] = "derived"

    @property
    def built(self) -> bool:
        """Whether the first state is what the recipe builds, so that no file is needed to begin there."""
        return self.origin in ("derived", "declared", "recipe")

    @property
    def declared_seed(self) -> int | None:
        """The number under which the first weights are drawn, if the claimant chose one."""
        return self.initialisation.seed if isinstance(self.initialisation, DeclaredSeed) else None

    @property
    def origin(self) -> Literal["derived", "declared", "recipe", "parent", "given", "observed"]:
        """Kind of the initialisation."""
        if isinstance(self.initialisation, DeclaredSeed):
            return "declared"
        return "parent" if isinstance(self.initialisation, Parent) else self.initialisation


class Genesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole commitment. Its digest, over the canonical payload, names the run; all seeds derive from it."""

    format: Literal["pol/v1"] = "pol/v1"
    claimant: Annotated[str, msgspec.Meta(max_length=1024)]
    """Public key of the prover, PEM."""
    recipe: RecipeIdentity
    spec: Spec
    profile: Profile
    platform: Platform
    control: Control
    dataset: Dataset
    randomness: Randomness = Randomness()
    secret: DigestField
    """Commitment to the secret r."""


def read_genesis(data: bytes) -> Genesis:
    """The genesis in an envelope whose signature is not checked.

    Raises:
        FormatError: it is malformed.
    """
    what = "genesis.json"
    envelope = parse_envelope(data, what=what, payload_type=PAYLOAD_TYPE, limit=MAX_GENESIS)
    return canonical.decode(envelope.payload_bytes(what), Genesis, what=what, limit=MAX_GENESIS)


def genesis_digest(genesis: Genesis) -> Digest:
    """Digest of a genesis: over the payload, since signatures are randomised."""
    return sha256(canonical.encode(genesis))


def recipe_digest(sources: Mapping[str, str]) -> Digest:
    """The recipe digest: over the module names and file digests, by name."""
    parts = [part.encode() for name, digest in sorted(sources.items()) for part in (name, digest)]
    return sha256_framed("pol/v1/recipe", *parts)


def boundaries(spec: Spec) -> list[int]:
    """All checkpoint steps: 0, k, 2k, … and T."""
    return [*range(0, spec.steps, spec.every), spec.steps]


def kept(spec: Spec) -> list[int]:
    """The steps whose checkpoint is in the proof: the first, every K-th, the last."""
    return [*range(0, spec.steps, spec.every * spec.keep), spec.steps]


def lengths(rule: Rule, every: int | None, keep: int | None) -> tuple[int, int]:
    """The lengths k and K, where somebody leaves them open.

    Rule exact: ten steps of an interval, all of whose ends are kept. Rule tolerance: digest every step, keep seldom. A
    single step separates honest noise of another platform from the smallest cheat by 3 to 4 orders of magnitude, ten
    steps by one (measured baseline, C); a state every ten steps is what rule exact keeps.
    """
    every = every if every is not None else 1 if rule == "tolerance" else 10
    keep = keep if keep is not None else 10 if rule == "tolerance" and every == 1 else 1
    return every, keep


def registered(genesis: Genesis, r: bytes) -> Registered:
    """What a training process is told of a genesis."""
    return Registered(
        declaration=genesis.spec.declaration,
        batches_per_step=genesis.spec.batches_per_step,
        every=genesis.spec.every,
        batch_key=seeds.batch_key(r).hex(),
    )


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The secret r of an open proof, hex: with it anyone can derive the seed and open the samples."""

    r: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

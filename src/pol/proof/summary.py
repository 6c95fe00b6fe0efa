"""What a proof says of itself, read without checking any of it: for ``pol inspect``, and for resuming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from pol import canonical
from pol.declaration import External, Frozen
from pol.digest import Digest
from pol.interval import Interval
from pol.merkle import Root
from pol.profile import Platform, Profile
from pol.proof.attestation import MAX_JOURNAL, Beacon, Journal, attestation_digest, read_attestation
from pol.proof.genesis import Genesis, genesis_digest, read_genesis
from pol.proof.log import decode_record
from pol.proof.sampling import order_needed


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What the genesis registers, in the words of the spec."""

    genesis: Digest
    public_key: str
    recipe: str
    recipe_digest: str
    sources: dict[str, str]
    configuration: dict[str, Any]
    """Constructor arguments, tagged as they are signed."""
    steps: int
    epochs: int
    samples: int
    batch_size: int
    every: int
    keep: int
    intervals: int
    rule: str
    parameters: int
    """Elements of all parameters."""
    constants: int
    ignored: list[str]
    """Attributes that evolve and are in no state, without influence as the program says."""
    profile: Profile
    platform: Platform
    dataset: Root
    origin: str
    """Where the first weights come from."""
    streams: str
    """Who sets the generators: the seed (derived), or the recipe (observed)."""
    order: str
    """Where the order of the data comes from."""
    frozen: list[Frozen]
    """Bases that are in no state."""
    external: list[External]
    """Files that the build reads."""


class Attested(msgspec.Struct, frozen=True, kw_only=True):
    """What the attestation adds at the end."""

    attestation: Digest
    weights: Root


class Point(msgspec.Struct, frozen=True):
    """Mean loss of the interval that ends at ``step``."""

    step: int
    loss: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A proof, or an unfinished recording, in its own words."""

    verified: bool = False
    """Always false: reading is not checking."""
    claims: Claims | None
    """None before the genesis is signed."""
    attested: Attested | None
    """None before the training is done."""
    beacon: Beacon | None
    journal: Journal | None
    recorded: int
    """Steps in the log."""
    losses: list[Point]
    files: int
    bytes: int
    checkpoints: int
    checkpoint_bytes: int
    order_needed: str | None
    """The narrowest ``policy.order`` that takes the run; None before the genesis is signed."""

    @property
    def final_loss(self) -> float | None:
        """Mean loss of the last recorded interval in which a step counted."""
        return next((point.loss for point in reversed(self.losses) if point.loss is not None), None)


def summarise(
    sizes: Mapping[str, int], genesis: bytes | None, attestation: bytes | None, log: bytes | None, journal: bytes | None
) -> Summary:
    """Summarise the files of a proof; those that an unfinished recording does not have yet are None.

    Args:
        sizes: Bytes of every file.
        genesis: Envelope of the genesis.
        attestation: Envelope of the attestation.
        log: The log; half a line at its end, which a crash leaves, is ignored.
        journal: The journal.

    Raises:
        FormatError: names the file and the field.
    """
    statement = None if attestation is None else read_attestation(attestation)
    written = None if journal is None else canonical.decode(journal, Journal, what="journal.json", limit=MAX_JOURNAL)
    records = [] if log is None else _intervals(log)
    begun = None if genesis is None else read_genesis(genesis)
    kept = [size for name, size in sizes.items() if name.startswith("checkpoints/")]
    return Summary(
        claims=None if begun is None else _claims(begun),
        attested=None
        if statement is None
        else Attested(attestation=attestation_digest(statement), weights=statement.predicate.final.weights),
        beacon=statement.predicate.beacon if statement else written.beacon if written else None,
        journal=written,
        recorded=records[-1].stop if records else 0,
        losses=[Point(record.stop, None if record.loss is None else float(record.loss)) for record in records],
        files=len(sizes),
        bytes=sum(sizes.values()),
        checkpoints=len(kept),
        checkpoint_bytes=sum(kept),
        order_needed=None if begun is None else order_needed(begun, records),
    )


def _intervals(log: bytes) -> list[Interval]:
    lines = log.split(b"\n")[1:-1]  # the first is the origin; after the last newline there is nothing, or half a line
    return [decode_record(line, Interval, number) for number, line in enumerate(lines, start=2)]


def _claims(genesis: Genesis) -> Claims:
    spec = genesis.spec
    declaration = spec.declaration
    return Claims(
        genesis=genesis_digest(genesis),
        public_key=genesis.claimant,
        recipe=genesis.recipe.name,
        recipe_digest=genesis.recipe.digest,
        sources=genesis.recipe.sources,
        configuration=genesis.recipe.configuration,
        steps=spec.steps,
        epochs=declaration.epochs,
        samples=declaration.samples,
        batch_size=declaration.batch_size,
        every=spec.every,
        keep=spec.keep,
        intervals=-(-spec.steps // spec.every),  # never a list: the numbers are whatever the prover wrote
        rule=spec.rule,
        parameters=sum(math.prod(entry.shape) for entry in declaration.entries if entry.kind == "parameter"),
        constants=len(spec.constants),
        ignored=list(declaration.ignored),
        profile=genesis.profile,
        platform=genesis.platform,
        dataset=genesis.dataset.root,
        origin=genesis.randomness.origin,
        streams=genesis.randomness.streams,
        order=genesis.randomness.order,
        frozen=declaration.frozen,
        external=declaration.external,
    )

"""The attestation: an in-toto Statement v1 that binds every file of a proof. Written and signed last."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pol import canonical
from pol.declaration import DigestField, Name
from pol.digest import Digest, sha256
from pol.interval import FloatText
from pol.merkle import Root
from pol.proof.envelope import parse_envelope
from pol.statetree import StateRoot

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""The payload type that in-toto's envelope specification fixes."""

MAX_ATTESTATION = 64 * 2**20
"""Largest attestation: 64 MiB, four hundred thousand files."""

MAX_JOURNAL = 16 * 2**20
"""Largest journal: 16 MiB, a hundred thousand resumes."""

MAX_NOTICES, MAX_NOTICE = 32, 256
"""Most places in a journal where the program reads a clock or fresh randomness, and the longest text of one: a file
name, a line and a call."""

Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


Notice = Annotated[str, msgspec.Meta(max_length=MAX_NOTICE)]


class Sha256(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-toto DigestSet with the one algorithm that format v1 uses for files."""

    sha256: Hex64


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the proof."""

    name: Name
    digest: Sha256


class Beacon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value that came after the genesis was signed, so that the claimant could not choose the seed."""

    kind: Literal["none", "nonce"]
    value: Hex64
    """For ``none``, 32 zero bytes."""


class Predicate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the prover states of the run."""

    format: Literal["pol/v1"] = "pol/v1"
    genesis: DigestField
    beacon: Beacon
    log: Root
    dataset: Root
    origin: StateRoot
    final: StateRoot
    journal: DigestField


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An in-toto Statement v1."""

    type_: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(
        name="_type", default="https://in-toto.io/Statement/v1"
    )
    subject: list[Subject]
    predicate_type: Literal["urn:proof-of-learning:attestation:v1"] = msgspec.field(
        name="predicateType", default="urn:proof-of-learning:attestation:v1"
    )
    predicate: Predicate


class Waited(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the training waited until kept states were written (back-pressure of the disk)."""

    times: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    seconds: FloatText


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Claims about how the recording went; never compared."""

    tool: Annotated[str, msgspec.Meta(max_length=64)]
    started: Annotated[str, msgspec.Meta(max_length=64)]
    finished: Annotated[str, msgspec.Meta(max_length=64)] | None
    resumes: list[Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]]
    """Steps from which the recording was taken up again."""
    asides: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    beacon: Beacon
    noticed: Annotated[list[Notice], msgspec.Meta(max_length=MAX_NOTICES)] = []
    """Where the control run saw the program read a clock or fresh randomness. Not written if nowhere."""
    waited: Waited | None = None
    """Of the part since the last resume. Not written if it never waited."""


def read_attestation(data: bytes) -> Statement:
    """The attestation in an envelope whose signature is not checked.

    Raises:
        FormatError: it is malformed.
    """
    what = "attestation.json"
    envelope = parse_envelope(data, what=what, payload_type=PAYLOAD_TYPE, limit=MAX_ATTESTATION)
    return canonical.decode(envelope.payload_bytes(what), Statement, what=what, limit=MAX_ATTESTATION)


def attestation_digest(statement: Statement) -> Digest:
    """Digest of an attestation, over the payload."""
    return sha256(canonical.encode(statement))

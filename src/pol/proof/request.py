"""A verifier's request for states that a proof does not hold: what it needs, and of which proof."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pol import canonical
from pol.declaration import DigestField
from pol.digest import Digest
from pol.errors import FormatError

MAX_REQUEST = 16 * 2**20
"""Largest request: 16 MiB, a million steps at twelve digits; the largest log has half a million intervals."""

Step = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """States that a verifier needs, by the steps after which they were recorded.

    It is signed by nobody: whoever answers it takes steps again that are in the proof anyway, and what the verifier
    needs it keeps in its own memory.
    """

    format: Literal["pol/request/v1"] = "pol/request/v1"
    attestation: DigestField
    """Digest of the attestation of the proof."""
    steps: Annotated[list[Step], msgspec.Meta(min_length=1)]
    """In order, each once."""


def make_request(attestation: Digest, steps: list[int]) -> bytes:
    """A request as its file."""
    return canonical.encode(Request(attestation=attestation, steps=sorted(set(steps))))


def read_request(data: bytes, *, what: str) -> Request:
    """The request in a file.

    Raises:
        FormatError: it is none, or not written as ``make_request`` writes it.
    """
    request = canonical.decode(data, Request, what=what, limit=MAX_REQUEST)
    if request.steps != sorted(set(request.steps)):
        raise FormatError(f"{what}: its steps are not in order, or one is named twice")
    return request

"""DSSE envelopes as files: strict parsing, one signature, bytes that encode again to themselves."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec

from pol import canonical
from pol.errors import FormatError


class EnvelopeSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature; ``keyid`` is the SHA-256 of the public key (SubjectPublicKeyInfo, DER), hex."""

    keyid: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    sig: Annotated[str, msgspec.Meta(max_length=1024)]


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A DSSE v1 envelope with exactly one signature."""

    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: Annotated[list[EnvelopeSignature], msgspec.Meta(min_length=1, max_length=1)]

    def payload_bytes(self, what: str) -> bytes:
        """The decoded payload.

        Raises:
            FormatError: the base64 is not canonical.
        """
        return _strict_base64(self.payload, f"{what}: payload")

    def signature_bytes(self, what: str) -> bytes:
        """The decoded signature.

        Raises:
            FormatError: the base64 is not canonical.
        """
        return _strict_base64(self.signatures[0].sig, f"{what}: signature")


def parse_envelope(data: bytes, *, what: str, payload_type: str, limit: int) -> Envelope:
    """Parse an envelope file.

    Raises:
        FormatError: it is malformed, or holds another type of payload.
    """
    envelope = canonical.decode(data, Envelope, what=what, limit=2 * limit)
    if envelope.payload_type != payload_type:
        raise FormatError(f"{what}: payloadType is {envelope.payload_type[:80]!r}, expected {payload_type!r}")
    envelope.payload_bytes(what)
    envelope.signature_bytes(what)
    return envelope


def _strict_base64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{where}: not base64: {error}") from None
    if base64.b64encode(data).decode() != text:  # stray bits in the last character would change bytes unseen
        raise FormatError(f"{where}: not canonical base64")
    return data

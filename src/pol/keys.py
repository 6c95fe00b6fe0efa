"""Signing keys: ECDSA P-256 in PEM files, and DSSE envelopes signed and checked with them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)  # fmt: skip

from pol import canonical
from pol.errors import AuthenticityError, UsageError
from pol.proof.envelope import Envelope, EnvelopeSignature

MAX_KEY_FILE = 64 * 1024
"""Largest key file that is read: a PEM P-256 key has some 250 bytes."""


class SigningKey:
    """A private key that signs envelopes."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public_pem = _pem(private.public_key())
        self.fingerprint = fingerprint(self.public_pem)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, password: bytes | None = None) -> SigningKey:
        """Read a private key file.

        Raises:
            UsageError: there is no ECDSA P-256 private key in it, or it needs a password.
        """
        try:
            private = load_pem_private_key(_read(path), password)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{path}: not a private key that can be read: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise UsageError(f"{path}: not an ECDSA P-256 key (make one with `pol keygen`)")
        return cls(private)

    def save(self, path: Path, password: bytes | None = None) -> None:
        """Write the private key (mode 0600) and, beside it, the public key (``.pub``).

        Raises:
            UsageError: a file is there already.
        """
        encryption: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
        data = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        except FileExistsError:
            raise UsageError(f"{path} exists already: a key is never overwritten") from None
        path.with_name(path.name + ".pub").write_text(self.public_pem)

    def sign(self, payload: bytes, payload_type: str) -> bytes:
        """A signed DSSE envelope, as the bytes of its file."""
        # Here, and not above: where boto3 is installed, securesystemslib takes a third of a second for it.
        from securesystemslib.dsse import Envelope as DSSE
        from securesystemslib.signer._crypto_signer import CryptoSigner
        from securesystemslib.signer._key import SSlibKey

        keyid = self.fingerprint.partition(":")[2]
        public = SSlibKey.from_crypto(self._private.public_key(), keyid=keyid)
        envelope = DSSE(payload, payload_type, {})
        envelope.sign(CryptoSigner(self._private, public))
        return canonical.encode(envelope.to_dict())


def verify_envelope(envelope: Envelope, public_pem: str, what: str) -> None:
    """Check the signature of an envelope under a public key.

    Raises:
        AuthenticityError: the key did not sign these bytes.
    """
    # Here for the reason that ``sign`` gives. A verifier comes here before it loads a recipe, whose folder may hold
    # modules of the same name.
    from securesystemslib.dsse import Envelope as DSSE
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer._key import SSlibKey
    from securesystemslib.signer._signature import Signature

    key = load_public_key(public_pem, what)
    keyid = fingerprint(public_pem).partition(":")[2]
    signature: EnvelopeSignature = envelope.signatures[0]
    if signature.keyid != keyid:
        raise AuthenticityError(f"{what} is signed by key sha256:{signature.keyid}, not by sha256:{keyid}")
    signed = Signature(keyid, envelope.signature_bytes(what).hex())
    dsse = DSSE(envelope.payload_bytes(what), envelope.payload_type, {keyid: signed})
    try:
        dsse.verify([SSlibKey.from_crypto(key, keyid=keyid)], 1)
    except VerificationError:
        raise AuthenticityError(f"{what}: the signature is not by key sha256:{keyid} over these bytes") from None


def load_public_key(pem: str, what: str) -> ec.EllipticCurvePublicKey:
    """Parse a public key in its one canonical PEM form.

    Raises:
        AuthenticityError: it is not an ECDSA P-256 public key in that form.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuthenticityError(f"{what}: not a public key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthenticityError(f"{what}: not an ECDSA P-256 public key")
    if _pem(key) != pem:
        raise AuthenticityError(f"{what}: the public key is not in canonical PEM form")
    return key


def fingerprint(public_pem: str) -> str:
    """``sha256:`` of a public key's SubjectPublicKeyInfo (DER).

    Raises:
        AuthenticityError: it is not a public key.
    """
    key = load_public_key(public_pem, "public key")
    return "sha256:" + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_fingerprint(text: str) -> str:
    """A fingerprint, or that of a public or private key file.

    Raises:
        UsageError: it is neither.
    """
    if text.startswith("sha256:") and len(text) == 71:
        return text
    data = _read(Path(text))
    try:
        return fingerprint(data.decode()) if b"PUBLIC KEY" in data else SigningKey.load(Path(text)).fingerprint
    except (AuthenticityError, UnicodeDecodeError) as error:
        raise UsageError(f"{text}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_FILE)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the key: {error.strerror}") from None


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

"""Keys and envelopes: what is signed, what is refused."""

import base64
import json
import stat

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pol.canonical import encode
from pol.errors import AuthenticityError, FormatError, UsageError
from pol.keys import SigningKey, fingerprint, read_fingerprint, verify_envelope
from pol.proof.envelope import parse_envelope

TYPE = "application/test"


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


def parse(data):
    return parse_envelope(data, what="file.json", payload_type=TYPE, limit=10_000)


def test_sign_and_verify(key):
    envelope = parse(key.sign(b"payload", TYPE))
    assert envelope.payload_bytes("file.json") == b"payload"
    verify_envelope(envelope, key.public_pem, "file.json")


def test_another_key_did_not_sign(key):
    other = SigningKey.generate()
    with pytest.raises(AuthenticityError, match=r"file\.json is signed by key"):
        verify_envelope(parse(other.sign(b"payload", TYPE)), key.public_pem, "file.json")
    forged = json.loads(other.sign(b"payload", TYPE))
    forged["signatures"][0]["keyid"] = key.fingerprint.partition(":")[2]
    with pytest.raises(AuthenticityError, match="not by key"):
        verify_envelope(parse(encode(forged)), key.public_pem, "file.json")


def test_changed_payload_or_type(key):
    signed = json.loads(key.sign(b"payload", TYPE))
    changed = {**signed, "payload": base64.b64encode(b"paymoad").decode()}
    with pytest.raises(AuthenticityError):
        verify_envelope(parse(encode(changed)), key.public_pem, "file.json")
    with pytest.raises(FormatError, match="payloadType"):
        parse(key.sign(b"payload", "application/other"))


@pytest.mark.parametrize(
    "change",
    [
        lambda e: {**e, "signatures": []},
        lambda e: {**e, "signatures": e["signatures"] * 2},
        lambda e: {**e, "extra": 1},
        lambda e: {**e, "payload": e["payload"] + "="},
        lambda e: {**e, "payload": e["payload"][:-1] + " "},
        lambda e: {**e, "payload": "cGF5bG9hZB=="},  # stray bits: decodes to the same bytes as cGF5bG9hZA==
        lambda e: {**e, "signatures": [{**e["signatures"][0], "keyid": "AB" * 32}]},
        lambda e: {"payload": e["payload"]},
    ],
    ids=["none", "two", "unknown key", "padding", "space", "stray bits", "upper case", "missing"],
)
def test_envelopes_have_one_form(key, change):
    with pytest.raises(FormatError, match=r"file\.json"):
        parse(encode(change(json.loads(key.sign(b"payload", TYPE)))))


def test_json_has_one_form(key):
    signed = key.sign(b"payload", TYPE)
    for other in (
        signed + b"\n",
        signed.replace(b":", b": ", 1),
        signed[:-1] + b',"payload":"cGF5bG9hZA=="}',
        b"[" * 99999,
    ):
        with pytest.raises(FormatError, match=r"file\.json"):
            parse(other)
    with pytest.raises(FormatError, match="limit"):
        parse_envelope(b" " * 100, what="file.json", payload_type=TYPE, limit=10)


def test_key_files(key, tmp_path):
    path = tmp_path / "folder" / "key.pem"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).fingerprint == key.fingerprint
    assert read_fingerprint(str(path)) == read_fingerprint(str(path) + ".pub") == key.fingerprint
    assert read_fingerprint(key.fingerprint) == key.fingerprint
    with pytest.raises(UsageError, match="never overwritten"):
        SigningKey.generate().save(path)
    assert SigningKey.load(path).fingerprint == key.fingerprint


def test_key_files_with_a_password(key, tmp_path):
    key.save(tmp_path / "key.pem", b"password")
    assert SigningKey.load(tmp_path / "key.pem", b"password").fingerprint == key.fingerprint
    with pytest.raises(UsageError, match="not a private key that can be read"):
        SigningKey.load(tmp_path / "key.pem")


def test_other_keys_are_refused(tmp_path):
    for number, private in enumerate([ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())]):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(UsageError, match="not an ECDSA P-256 key"):
            SigningKey.load(path)
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        with pytest.raises(AuthenticityError, match="not an ECDSA P-256 public key"):
            fingerprint(public)


def test_public_keys_have_one_form(key):
    for other in ("", "rubbish", key.public_pem + "\n", "# note\n" + key.public_pem):
        with pytest.raises(AuthenticityError):
            fingerprint(other)


def test_what_is_no_key_file(tmp_path):
    (tmp_path / "rubbish").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="not a private key"):
        SigningKey.load(tmp_path / "rubbish")
    with pytest.raises(UsageError, match="cannot read the key"):
        SigningKey.load(tmp_path / "nowhere")
    with pytest.raises(UsageError):
        read_fingerprint("sha256:abc")


def test_structs_refuse_what_they_do_not_know(key):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"keyid":"x","sig":""}', type=type(parse(key.sign(b"", TYPE)).signatures[0]))

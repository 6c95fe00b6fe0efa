"""Steps 1 and 2: who signed, and whether everything parses."""

from __future__ import annotations

from pol import canonical, keys
from pol.checkpoint import Known, read_entries
from pol.errors import AuthenticityError, FormatError
from pol.proof import attestation, genesis
from pol.proof.attestation import MAX_ATTESTATION, MAX_JOURNAL, Journal, Statement
from pol.proof.envelope import parse_envelope
from pol.proof.genesis import MAX_GENESIS, Genesis, Secret
from pol.proof.log import parse_log
from pol.proof.report import Check
from pol.store import (
    ATTESTATION,
    DATASET,
    GENESIS,
    JOURNAL,
    LOG,
    MAX_DATASET,
    MAX_LOG_FILE,
    ORDER,
    SECRET,
    checkpoint_path,
    checkpoint_step,
)  # fmt: skip
from pol.verifier.case import Case, Checks, passed, require

MAX_SECRET = 1024
"""Largest secret.json: it holds 64 hexadecimal digits."""


def envelopes(case: Case) -> Checks:
    """Step 2, first part: the two signed payloads, without which there is nobody to authenticate."""
    case.files = case.store.files(case.elements)
    total = sum(case.files.values())
    yield require(
        total <= case.policy.max_bytes, "size", f"{len(case.files)} files, {total} bytes",
        f"{total} bytes, more than the policy reads ({case.policy.max_bytes})",
    )  # fmt: skip
    data = case.store.read(GENESIS, 2 * MAX_GENESIS)
    case.genesis_envelope = parse_envelope(data, what=GENESIS, payload_type=genesis.PAYLOAD_TYPE, limit=MAX_GENESIS)
    payload = case.genesis_envelope.payload_bytes(GENESIS)
    case.genesis = canonical.decode(payload, Genesis, what=f"{GENESIS}: payload", limit=MAX_GENESIS)
    data = case.store.read(ATTESTATION, 2 * MAX_ATTESTATION)
    case.attestation_envelope = parse_envelope(
        data, what=ATTESTATION, payload_type=attestation.PAYLOAD_TYPE, limit=MAX_ATTESTATION
    )
    payload = case.attestation_envelope.payload_bytes(ATTESTATION)
    case.statement = canonical.decode(payload, Statement, what=f"{ATTESTATION}: payload", limit=MAX_ATTESTATION)
    yield passed("envelopes", "genesis and attestation are canonical")


def contents(case: Case) -> Checks:
    """Step 2, second part: everything else."""
    case.store.bring()  # from here on everything is read
    case.log = parse_log(case.store.read(LOG, MAX_LOG_FILE))
    yield passed("log", f"{len(case.log.intervals)} interval records")
    case.journal = canonical.decode(case.store.read(JOURNAL, MAX_JOURNAL), Journal, what=JOURNAL, limit=MAX_JOURNAL)
    case.secret = canonical.decode(case.store.read(SECRET, MAX_SECRET), Secret, what=SECRET, limit=MAX_SECRET)
    for name, value in case.genesis.recipe.configuration.items():
        canonical.untag(value, f"{GENESIS}: recipe.configuration.{name}")
    if case.files.get(DATASET) != 32 * case.genesis.dataset.root.size:
        raise FormatError(f"{DATASET}: not {case.genesis.dataset.root.size} leaves of 32 bytes, as {GENESIS} says")
    case.leaves = case.store.read(DATASET, MAX_DATASET)
    _order(case)
    case.checkpoints, known = {}, Known()
    for name in sorted(case.files):
        step = checkpoint_step(name)
        if step is not None:
            if name != checkpoint_path(step) or step in case.checkpoints:  # read under the one name of its step
                raise FormatError(f"{name!r}: not the name of the state after {step} steps")
            case.checkpoints[step] = read_entries(case.store, name, known)
    yield unpacked(case)
    yield passed("files", f"{len(case.checkpoints)} checkpoints, {len(case.leaves) // 32} sample leaves")


def unpacked(case: Case) -> Check:
    """What is packed, or stored once, counts as what it unfolds to: that is what is read again and again."""
    total = sum(slot.entry.num_bytes for placed in case.checkpoints.values() for slot in placed)
    return require(
        total <= case.policy.max_bytes, "contents", f"states of {total} bytes in all",
        f"states of {total} bytes in all, more than the policy reads ({case.policy.max_bytes})",
    )  # fmt: skip


def _order(case: Case) -> None:
    """The file of an observed order is there, and of the right size, exactly if the genesis says so."""
    declaration = case.genesis.spec.declaration
    expected = 4 * declaration.epochs * declaration.samples if case.genesis.randomness.order == "observed" else None
    if case.files.get(ORDER) != expected:
        raise FormatError(
            f"{ORDER}: {case.files.get(ORDER, 'no')} bytes, the genesis says {'no' if expected is None else expected}"
        )


def signatures(case: Case) -> Checks:
    """Step 1: the one key that the genesis names signed both."""
    claimant = case.genesis.claimant
    keys.verify_envelope(case.genesis_envelope, claimant, GENESIS)
    keys.verify_envelope(case.attestation_envelope, claimant, ATTESTATION)
    yield passed("signatures", f"genesis and attestation are signed by {keys.fingerprint(claimant)}")


def trusted_key(case: Case) -> Checks:
    """Step 1: it is a key that the verifier trusts, if the verifier named any."""
    found = keys.fingerprint(case.genesis.claimant)
    if not case.policy.keys:
        yield passed("key", f"you pinned no key: this is the proof of whoever holds {found}")
    else:
        yield require(
            found in case.policy.keys, "key", f"{found} is pinned", f"signed by {found}, which you did not pin"
        )


def beacon(case: Case) -> Checks:
    """Step 1: the run's randomness answers the verifier's nonce, for the genesis that it gave it for, if it did."""
    if case.policy.attestation not in (None, case.attestation_digest):
        raise AuthenticityError(f"this is attestation {case.attestation_digest}, not the one that you named")
    given, used = case.policy.beacon, case.statement.predicate.beacon
    if case.policy.genesis not in (None, case.genesis_digest):
        raise AuthenticityError(f"this is genesis {case.genesis_digest}, not the one that you named")
    if used.kind == "none" and used.value != "00" * 32:
        raise FormatError(f"{ATTESTATION}: a beacon of kind none has value zero")
    if given is None:
        yield passed("beacon", "you gave no nonce for this genesis, so the claimant may have chosen the randomness")
    else:
        yield require(
            used.kind == "nonce" and used.value == given, "beacon", "the run uses the nonce that you gave",
            "the run does not use the nonce that you gave for it",
        )  # fmt: skip

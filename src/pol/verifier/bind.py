"""Step 3: every byte is bound to the attestation, and every record to the next."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import msgspec

from pol import seeds
from pol.checkpoint import CHUNK, checkpoint_root, content_of
from pol.container import header_length, parse_header
from pol.digest import blake3_chunks
from pol.errors import FormatError, IntegrityError, UsageError
from pol.merkle import tree
from pol.proof.released import released
from pol.store import ATTESTATION, DATASET, GENESIS, JOURNAL, LOG, SECRET, checkpoint_path
from pol.verifier.case import Case, Checks, passed, require


def files(case: Case) -> Checks:
    """Every file present is listed and hashed, and every listed file is present."""
    listed = {subject.name: "sha256:" + subject.digest.sha256 for subject in case.statement.subject}
    if len(listed) != len(case.statement.subject):
        raise IntegrityError(f"{ATTESTATION}: lists a file twice")
    present = set(case.files) - {ATTESTATION}
    if extra := sorted(present - set(listed)):
        raise IntegrityError(f"{extra[0]}: not listed in the attestation")
    if missing := sorted(set(listed) - present):
        raise IntegrityError(f"{missing[0]}: listed in the attestation, but missing")
    for number, name in enumerate(sorted(listed)):
        case.progress("hashing files", number, len(listed))
        if not hmac.compare_digest(case.store.sha256(name), listed[name]):
            raise IntegrityError(f"{name}: not the bytes that were attested")
    yield passed("files", f"all {len(listed)} files are listed, present and unchanged")


def chain(case: Case) -> Checks:
    """Log, attestation, genesis, dataset and secret name one another."""
    predicate, genesis, log = case.statement.predicate, case.genesis, case.log
    links = [
        (predicate.genesis == case.genesis_digest, f"{ATTESTATION} is of another genesis"),
        (log.origin.genesis == case.genesis_digest, f"{LOG} is of another genesis"),
        (predicate.log == log.root, f"{LOG} does not have the attested root"),
        (predicate.origin == log.origin.root, f"{ATTESTATION} has another first state than {LOG}"),
        (bool(log.intervals) and predicate.final == log.intervals[-1].root,
         f"{ATTESTATION} has another last state than {LOG}"),
        (predicate.dataset == genesis.dataset.root, f"{ATTESTATION} has another dataset than {GENESIS}"),
        (tree([case.leaves[i : i + 32] for i in range(0, len(case.leaves), 32)]) == genesis.dataset.root,
         f"{DATASET} does not have the root that {GENESIS} names"),
        (seeds.commit(case.r) == genesis.secret, f"{SECRET} is not the secret that {GENESIS} commits to"),
        (predicate.journal == _listed(case, JOURNAL), f"{ATTESTATION} names another journal than it lists"),
        (predicate.beacon == case.journal.beacon, f"{ATTESTATION} has another beacon than the journal"),
    ]  # fmt: skip
    for holds, otherwise in links:
        if not holds:
            raise IntegrityError(otherwise)
    yield passed("chain", "log, attestation, genesis, dataset and secret belong together")


def _listed(case: Case, name: str) -> str | None:
    return next((f"sha256:{s.digest.sha256}" for s in case.statement.subject if s.name == name), None)


def states(case: Case) -> Checks:
    """Every kept checkpoint has the state root of its record."""
    roots = {0: case.log.origin.root} | {interval.stop: interval.root for interval in case.log.intervals}
    for number, (step, placed) in enumerate(sorted(case.checkpoints.items())):
        case.progress("hashing states", number, len(case.checkpoints))
        if step not in roots or checkpoint_root(case.store, step, placed) != roots[step]:
            raise IntegrityError(f"{checkpoint_path(step)}: not the state that the log records after {step} steps")
    yield require(
        bool(case.checkpoints), "states", f"all {len(case.checkpoints)} kept checkpoints have the recorded roots",
        "the proof has no checkpoint",
    )  # fmt: skip


def contents(case: Case, step: int) -> dict[str, str]:
    """Entry key to BLAKE3-256 (hex) of its content, of a kept checkpoint."""
    name = checkpoint_path(step)
    return {slot.entry.key: content_of(case.store, name, slot).hex() for slot in case.checkpoints[step]}


def released_model(case: Case) -> Checks:
    """The released model has exactly the names, shapes and bytes of the last checkpoint's weights."""
    if case.model is None:
        yield passed("model", "no model file was given; the weights root in this report can be compared later")
        return
    if case.genesis.spec.release is None:
        raise IntegrityError(
            f"{case.model.name}: the genesis releases no model, so nothing shows that this one was trained"
        )
    count = compare_model(case, case.model, case.genesis.spec.steps, "not the model that was trained")
    yield passed("model", f"{case.model.name} is the last checkpoint's weights ({count} tensors)")


def compare_model(case: Case, model: Path, step: int, otherwise: str) -> int:
    """Compare a model file with the released part's weights in a kept checkpoint; returns how many tensors it has.

    Raises:
        IntegrityError: a tensor differs, is missing or is too much.
    """
    release = case.genesis.spec.release
    assert release is not None
    expected, optional = _released(case, release.part, step)
    found = model_entries(model)
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name) and not (name in optional and name not in found):
            how = "is missing" if name not in found else "is not in the proof" if name not in expected else "differs"
            raise IntegrityError(f"{model.name}: {name} {how}: {otherwise}")
    return len(found)


def _released(case: Case, part: str, step: int) -> tuple[dict[str, tuple[str, tuple[int, ...], bytes]], set[str]]:
    tensors, optional = released(case.genesis.spec.declaration, part, case.checkpoints.get(step, []))
    contents = {id(slot): content_of(case.store, checkpoint_path(step), slot) for slot in tensors.values()}
    return {
        name: (slot.entry.dtype, tuple(slot.entry.shape), contents[id(slot)]) for name, slot in tensors.items()
    }, optional


def model_entries(model: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name to (dtype, shape, BLAKE3-256 of the bytes) of every tensor of a model file.

    Raises:
        FormatError: it is no safetensors file.
        UsageError: it cannot be read.
    """
    try:
        size = model.stat().st_size
        with model.open("rb") as file:
            prefix = file.read(8)
            header = file.read(header_length(prefix, size, model.name))
            found = {}
            for slot in parse_header(_as_parameters(header), size, model.name, header_size=len(header)):
                file.seek(slot.begin)
                chunks = (file.read(min(CHUNK, slot.end - at)) for at in range(slot.begin, slot.end, CHUNK))
                content = blake3_chunks(chunks)
                found[slot.entry.name] = slot.entry.dtype, tuple(slot.entry.shape), content
            return found
    except OSError as error:
        raise UsageError(f"{model}: cannot read the model: {error.strerror}") from None


def _as_parameters(header: bytes) -> bytes:
    """A plain safetensors header with its names as those of parameters, and without its free-form metadata."""
    try:
        slots = msgspec.json.decode(header.rstrip(b" "), type=dict[str, Any])
        return msgspec.json.encode({f"parameter/{key}": slot for key, slot in slots.items() if key != "__metadata__"})
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"model: not a safetensors header: {error}") from None

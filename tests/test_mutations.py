"""No change of a proof, however small, is accepted; hostile input gives a clear error in bounded time and memory."""

import base64
import functools
import hashlib
import json
import os
import random
import socket
import time
import tracemalloc

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from factory import RECIPE, check, factory
from pol import canonical
from pol.attacks.forger import Forger
from pol.errors import FormatError
from pol.proof import attestation, genesis
from pol.proof.report import Verdict
from pol.replay.sources import local_sources
from pol.store import ProofDirectory
from pol.verifier import verify
from pol.verifier.case import passed

FILES = ["genesis.json", "attestation.json", "log.jsonl", "journal.json", "secret.json", "dataset.bin"]
CHECKPOINTS = [f"checkpoints/{step:012d}.safetensors" for step in (0, 6, 12, 14)]
SECONDS = 5
"""Longest that the verifier may take over hostile input; it takes milliseconds."""
MEBIBYTES = 100
"""Most memory that it may use for it."""


class NobodyTrains:
    """An auditor that must never be asked: what is changed is found before anything is trained."""

    def __init__(self):
        self.name, self.settings = "Toy", {}

    def sources(self):
        return local_sources(RECIPE)

    def prepare(self, profile):
        """It may be told to get ready."""

    def __getattr__(self, name):
        raise AssertionError(f"the verifier went on to {name}")


def quick(proof, **options):
    return verify(proof, auditor=NobodyTrains(), **options)


@pytest.fixture
def proof(tmp_path):
    """A copy of an honest proof that keeps every second checkpoint."""
    return factory().copy(tmp_path, keep=2)


def assert_rejected(report, *words, step=None):
    assert report.verdict is Verdict.REJECT
    assert report.caught_by in ((1, 2, 3) if step is None else (step,)), report.reason()
    for word in words:
        assert word in report.reason()
    json.loads(msgspec.json.encode(report))


def test_the_files_are_all_of_the_proof(proof):
    found = sorted(str(path.relative_to(proof)) for path in proof.rglob("*") if path.is_file())
    assert found == sorted(FILES + CHECKPOINTS)
    assert check(proof).verdict is Verdict.ACCEPT


# -- one byte ---------------------------------------------------------------------------------------------------

EDITS = {
    "flip a low bit": lambda data, at: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
    "flip a high bit": lambda data, at: data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :],
    "change case": lambda data, at: data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :],
    "set to zero": lambda data, at: data[:at] + b"\0" + data[at + 1 :],
    "insert a space": lambda data, at: data[:at] + b" " + data[at:],
    "insert the same": lambda data, at: data[:at] + data[at : at + 1] + data[at:],
    "delete": lambda data, at: data[:at] + data[at + 1 :],
    "truncate": lambda data, at: data[:at],
}


def positions(data, number):
    """The first and last bytes, and ``number`` between them; the same ones every time."""
    between = random.Random(len(data)).sample(range(len(data)), min(number, len(data)))
    return sorted({*range(min(9, len(data))), *range(max(0, len(data) - 5), len(data)), *between})


def sweep(path, edits, at):
    """Apply every edit at every position; yields a description and the report for each that changes anything."""
    honest, found = path.read_bytes(), 0
    for position in at:
        for name, edit in edits.items():
            changed = edit(honest, position)
            if changed != honest:
                path.write_bytes(changed)
                found += 1
                yield f"{name} at {position}", quick(path.parents[path.parent.name == "checkpoints"])
    path.write_bytes(honest)
    assert found >= len(edits)


@pytest.mark.parametrize("name", FILES + CHECKPOINTS)
def test_no_change_of_one_byte_is_accepted(proof, name):
    at = positions((proof / name).read_bytes(), 12)
    for what, report in sweep(proof / name, EDITS, at):
        assert report.verdict is Verdict.REJECT, what
        assert report.caught_by in (1, 2, 3), what
    with pytest.raises(AssertionError, match="went on to control"):  # the honest file is back: nothing else is wrong
        quick(proof)


@pytest.mark.parametrize("name", ["genesis.json", "attestation.json"])
def test_no_character_of_a_signature_can_change(proof, name):
    text = (proof / name).read_text()
    start = text.index('"sig":"') + 7
    bits = {"flip the lowest bit": EDITS["flip a low bit"], "change case": EDITS["change case"]}
    for what, report in sweep(proof / name, bits, range(start, text.index('"', start))):
        assert report.verdict is Verdict.REJECT, what


@pytest.mark.parametrize("name", FILES + CHECKPOINTS)
def test_an_empty_file_is_rejected(proof, name):
    (proof / name).write_bytes(b"")
    assert_rejected(quick(proof), name)


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES + CHECKPOINTS)
def test_a_missing_file_is_rejected(proof, name):
    (proof / name).unlink()
    assert_rejected(quick(proof), name)


def test_missing_folders_are_rejected(proof, tmp_path):
    for name in CHECKPOINTS:
        (proof / name).unlink()
    assert_rejected(quick(proof), CHECKPOINTS[0])
    (proof / "checkpoints").rmdir()
    assert_rejected(quick(proof), CHECKPOINTS[0])
    (tmp_path / "empty").mkdir()
    assert_rejected(quick(tmp_path / "empty"), "genesis.json: No such file")


@pytest.mark.parametrize("name", [f"{6:012d}.safetensors\n", "٠٠٠٠٠٠٠٠٠٠٠٦.safetensors", f"{6:012d}.safetensors "])
def test_a_checkpoint_under_a_second_name_of_its_step_is_rejected(tmp_path, name):
    """Attested and all: the bytes of one file would be read at the offsets of another, and others read other bytes."""
    forger = Forger(factory().proof())
    forger.seal(tmp_path / "first", factory().keys["prover"])
    data = (tmp_path / "first" / "checkpoints" / "000000000006.safetensors").read_bytes()
    forger.listed["checkpoints/" + name] = hashlib.sha256(data).hexdigest()
    forger.seal(tmp_path / "proof", factory().keys["prover"])
    (tmp_path / "proof" / "checkpoints" / name).write_bytes(data)
    report = check(tmp_path / "proof")
    assert (report.verdict, report.caught_by) == (Verdict.REJECT, 2), report.reason()


@pytest.mark.parametrize(
    "name",
    [
        *("README", ".hidden", ".recording", "genesis.json.tmp", "genesis.json~", "GENESIS.JSON", "log.jsonl "),
        *("checkpoints/README", "checkpoints/.hidden", "checkpoints/6.safetensors", "checkpoints/genesis.json"),
        *("checkpoints/000000000006.safetensors.tmp", "checkpoints/000000000003.safetensors"),
        *("000000000006.safetensors", "new\nline", "\x1b[2Jescape", "checkpoints/٠00000000003.safetensors"),
    ],
)  # fmt: skip
def test_an_extra_file_is_rejected_and_named(proof, name):
    (proof / name).write_bytes((proof / CHECKPOINTS[0]).read_bytes())
    assert_rejected(quick(proof), "unfinished recording" if name == ".recording" else name)


def test_a_file_name_that_is_not_text_is_rejected(proof):
    with open(os.fsencode(proof) + b"/\xff\xfe", "wb"):
        pass
    assert_rejected(quick(proof), "no such file belongs to a proof")


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


STRANGE = {
    "folder": lambda path: path.mkdir(),
    "folder with files": lambda path: (path.mkdir(), (path / "genesis.json").touch()),
    "link to a file": lambda path: path.symlink_to(factory().proof(2) / "genesis.json"),
    "link to a folder": lambda path: path.symlink_to(factory().proof(2)),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": os.mkfifo,
    "socket": make_socket,
}


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", ["extra", "checkpoints/extra", *FILES, CHECKPOINTS[1]])
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_not_a_regular_file_is_rejected(proof, kind, name):
    (proof / name).unlink(missing_ok=True)
    STRANGE[kind](proof / name)
    assert_rejected(quick(proof), name, step=2)


@pytest.mark.parametrize("name", [*FILES, CHECKPOINTS[1]])
def test_a_link_to_the_very_file_is_rejected(proof, name):
    (proof / name).unlink()
    (proof / name).symlink_to(factory().proof(2) / name)
    assert_rejected(quick(proof), name, step=2)


def test_a_link_to_the_folder_of_checkpoints_is_rejected(proof):
    (proof / "checkpoints").rename(proof.parent / "elsewhere")
    (proof / "checkpoints").symlink_to(proof.parent / "elsewhere")
    assert_rejected(quick(proof), "checkpoints", step=2)


# -- hostile content, unsigned: found while parsing -------------------------------------------------------------


def bounded(test):
    """Fails a test that takes too long or too much memory."""

    @functools.wraps(test)
    def measured(*args, **kwargs):
        tracemalloc.start()
        started = time.monotonic()
        try:
            test(*args, **kwargs)
            seconds, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert seconds < SECONDS
        assert peak < MEBIBYTES * 2**20

    return measured


JSON = ["genesis.json", "attestation.json", "log.jsonl", "journal.json", "secret.json"]
HOSTILE = {
    "nested lists": lambda text: "[" * 100_000,
    "nested lists, closed": lambda text: "[" * 100_000 + "]" * 100_000 + "\n",
    "nested objects": lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000 + "\n",
    "nested in a field": lambda text: text.replace(":", ":" + "[" * 100_000 + "]" * 100_000 + ',"x":', 1),
    "duplicate key": lambda text: (
        text.replace("{", "{" + text[1 : text.index(",")] + ",", 1)
        if "," in text
        else text.replace("{", "{" + text.strip()[1:-1] + ",", 1)
    ),
    "unknown key": lambda text: text.replace("}", ',"zzz":0}', 1),
    "space": lambda text: text.replace(":", ": ", 1),
    "escape": lambda text: text.replace('"', '"\\u0070\\u0061', 1),
    "byte order mark": lambda text: "\ufeff" + text,
    "long number": lambda text: text.replace(":", ":" + "9" * 5000 + ',"x":', 1),
    "not a number": lambda text: text.replace(":", ':NaN,"x":', 1),
    "lone surrogate": lambda text: text.replace(":", ':"\\ud800","x":', 1),
    "null": lambda text: "null",
    "list": lambda text: "[]",
    "nothing": lambda text: "",
    "twice": lambda text: text + text,
    "a lot": lambda text: " " * 10_000_000,
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("kind", HOSTILE)
@bounded
def test_hostile_json_is_rejected(proof, kind, name):
    honest = (proof / name).read_text()
    hostile = HOSTILE[kind](honest)
    assert hostile != honest
    (proof / name).write_text(hostile)
    assert_rejected(quick(proof), name, step=2)


@pytest.mark.parametrize("name", JSON)
@bounded
def test_json_that_is_not_utf8_is_rejected(proof, name):
    data = (proof / name).read_bytes()
    (proof / name).write_bytes(data.replace(b'"', b'"\xff', 1))
    assert_rejected(quick(proof), name, step=2)


@pytest.mark.parametrize("name", [*FILES, CHECKPOINTS[1]])
@pytest.mark.parametrize("size", [10**12, 2**40 + 1])
@bounded
def test_a_huge_sparse_file_is_rejected(proof, name, size):
    os.truncate(proof / name, size)
    assert_rejected(quick(proof), name if size < 2**40 else "more than the policy reads", step=2)


def header(text):
    return len(text).to_bytes(8, "little") + text


SLOT = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS = {
    "no length": b"\0\0\0",
    "length beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "length beyond the limit": (2**63).to_bytes(8, "little") + b"{}",
    "length of everything": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "not JSON": header(b"x" * 100),
    "nothing": header(b""),
    "no entries": header(b"{}"),
    "a list": header(b"[]"),
    "nested lists": header(b"[" * 100_000),
    "nested slot": header(b'{"parameter/a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "duplicate key": header(b'{"parameter/a":' + SLOT + b',"parameter/a":' + SLOT + b"}") + b"\0" * 4,
    "space": header(b'{"parameter/a": ' + SLOT + b"}") + b"\0" * 4,
    "metadata": header(b'{"__metadata__":{"a":"b"},"parameter/a":' + SLOT + b"}") + b"\0" * 4,
    "unknown kind": header(b'{"weights/a":' + SLOT + b"}") + b"\0" * 4,
    "no kind": header(b'{"a":' + SLOT + b"}") + b"\0" * 4,
    "unknown dtype": header(b'{"parameter/a":' + SLOT.replace(b"F32", b"C64") + b"}") + b"\0" * 4,
    "bytes before": header(b'{"parameter/a":' + SLOT.replace(b"[0,4]", b"[4,8]") + b"}") + b"\0" * 8,
    "bytes after": header(b'{"parameter/a":' + SLOT + b"}") + b"\0" * 5,
    "too few bytes": header(b'{"parameter/a":' + SLOT + b"}") + b"\0" * 3,
    "overlap": header(b'{"parameter/a":' + SLOT + b',"parameter/b":' + SLOT + b"}") + b"\0" * 4,
    "backwards": header(b'{"parameter/a":' + SLOT.replace(b"[0,4]", b"[4,0]") + b"}") + b"\0" * 4,
    "negative": header(b'{"parameter/a":' + SLOT.replace(b"[0,4]", b"[-4,0]") + b"}"),
    "huge shape": header(b'{"parameter/a":' + SLOT.replace(b"[1]", b"[9007199254740991,9007199254740991]") + b"}"),
    "many dimensions": header(b'{"parameter/a":' + SLOT.replace(b"[1]", b"[" + b"1," * 9999 + b"1]") + b"}"),
}


@pytest.mark.parametrize("kind", HEADERS)
@bounded
def test_a_hostile_checkpoint_is_rejected(proof, kind):
    (proof / CHECKPOINTS[1]).write_bytes(HEADERS[kind])
    assert_rejected(quick(proof), CHECKPOINTS[1], step=2)


@bounded
def test_a_checkpoint_that_claims_a_huge_tensor_is_rejected(proof):
    size = 10**12 // 4
    text = b'{"parameter/a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (size, 4 * size)
    (proof / CHECKPOINTS[1]).write_bytes(header(text))
    os.truncate(proof / CHECKPOINTS[1], 8 + len(text) + 4 * size - 1)
    assert_rejected(quick(proof), CHECKPOINTS[1], "1 bytes are missing")


# -- hostile content, signed: the prover itself is the enemy ----------------------------------------------------


def sign(proof, name, change):
    """Change the payload of an envelope, and sign it with the prover's own key."""
    payload = base64.b64decode(json.loads((proof / name).read_bytes())["payload"])
    type_ = {"genesis.json": genesis.PAYLOAD_TYPE, "attestation.json": attestation.PAYLOAD_TYPE}[name]
    changed = change(payload)
    assert changed != payload
    (proof / name).write_bytes(factory().keys["prover"].sign(changed, type_))


SIGNED = {
    "another version": (lambda data: data.replace(b"pol/v1", b"pol/v2", 1), "$"),
    "duplicate key": (lambda data: data.replace(b"{", b'{"' + data.split(b'"')[1] + b'":null,', 1), ""),
    "unknown key": (lambda data: data[:-1] + b',"zzz":0}', "zzz"),
    "space": (lambda data: data + b" ", "not canonical JSON"),
    "nested": (lambda data: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, ""),
    "truncated": (lambda data: data[: len(data) // 2], "truncated"),
}


@pytest.mark.parametrize("name", ["genesis.json", "attestation.json"])
@pytest.mark.parametrize("kind", SIGNED)
@bounded
def test_a_signed_payload_that_is_not_of_the_format_is_rejected(proof, kind, name):
    change, word = SIGNED[kind]
    sign(proof, name, change)
    assert_rejected(quick(proof), f"{name}: payload", word, step=2)


def test_another_version_is_named(proof):
    sign(proof, "genesis.json", lambda data: data.replace(b'"format":"pol/v1"', b'"format":"pol/v2"'))
    assert_rejected(quick(proof), "genesis.json: payload: Invalid enum value 'pol/v2' - at `$.format`", step=2)


@bounded
def test_a_deep_configuration_is_rejected(proof):
    deep = b'"configuration":{"lr":' + b"[" * 100_000 + b"]" * 100_000
    sign(proof, "genesis.json", lambda data: data.replace(b'"configuration":{"lr":{"float":"0.1"}', deep))
    assert_rejected(quick(proof), "genesis.json: payload: nested too deeply", step=2)


OTHER = "sha256:" + "00" * 32
LINKS = {
    "genesis": (OTHER, "attestation.json is of another genesis"),
    "log": ({"digest": OTHER, "size": 6}, "log.jsonl does not have the attested root"),
    "dataset": ({"digest": OTHER, "size": 50}, "attestation.json has another dataset than genesis.json"),
    "journal": (OTHER, "attestation.json names another journal than it lists"),
    "beacon": ({"kind": "nonce", "value": "00" * 32}, "attestation.json has another beacon than the journal"),
    "origin": ("final", "attestation.json has another first state than log.jsonl"),
    "final": ("origin", "attestation.json has another last state than log.jsonl"),
}


@pytest.mark.parametrize("field", LINKS)
def test_every_field_of_the_attestation_is_compared(proof, field):
    value, words = LINKS[field]

    def change(data):
        statement = json.loads(data)
        predicate = statement["predicate"]
        predicate[field] = predicate.get(value, value) if isinstance(value, str) else value
        return canonical.encode(statement)

    assert set(LINKS) | {"format"} == set(attestation.Predicate.__struct_fields__)
    sign(proof, "attestation.json", change)
    assert_rejected(quick(proof), words, step=3)


def altered(proof, out, change):
    """Reseal a proof whose genesis was changed by ``change`` (spec fields), with the prover's own key."""
    forger = Forger(proof)
    change(forger)
    forger.seal(out, factory().keys["prover"])
    return out


def spec(**changes):
    def change(forger):
        replaced = msgspec.structs.replace(forger.genesis.spec, **changes)
        forger.genesis = msgspec.structs.replace(forger.genesis, spec=replaced)

    return change


def declared(**changes):
    def change(forger):
        declaration = msgspec.structs.replace(forger.genesis.spec.declaration, **changes)
        spec(declaration=declaration)(forger)

    return change


def both(*changes):
    def change(forger):
        for one in changes:
            one(forger)

    return change


def of_genesis(part, **changes):
    def change(forger):
        replaced = msgspec.structs.replace(getattr(forger.genesis, part), **changes)
        forger.genesis = msgspec.structs.replace(forger.genesis, **{part: replaced})

    return change


HUGE = 2**53 - 1
EXTREME = {
    "steps": (spec(steps=HUGE), "the spec names 9007199254740991 steps, but its epochs and batches make 14"),
    "epochs": (declared(epochs=HUGE), "the spec names 14 steps"),
    "epochs and steps": (
        both(declared(epochs=2**50), spec(steps=7 * 2**50, every=1)),
        "the log has 5 intervals, the spec says 7881299347898368",
    ),
    "interval": (spec(every=HUGE), "the log has 5 intervals, the spec says 1"),
    "batches per step": (spec(batches_per_step=HUGE), "a step closes 9007199254740991 batches, an epoch has 7"),
    "batches per step, all agreed": (
        both(spec(batches_per_step=HUGE, steps=2, every=1), lambda forger: None),
        "a step closes 9007199254740991 batches, an epoch has 7",
    ),
    "samples": (declared(samples=HUGE), "epochs and batches make"),
    "batch size": (declared(batch_size=HUGE), "epochs and batches make 2"),
    "control": (of_genesis("control", steps=14), "the control run has 14 steps; format v1 takes 3"),
    "weak control": (of_genesis("control", steps=1), "the control run has 1 steps; format v1 takes 3"),
    "schedule": (
        lambda forger: forger.replace(1, schedules={"scheduler": HUGE}),
        "a schedule was stepped too often to be honest",
    ),
    "skipped": (lambda forger: forger.replace(1, skipped=[HUGE]), "rates, loss or skipped steps"),
    "skipped twice": (lambda forger: forger.replace(1, skipped=[3, 3]), "rates, loss or skipped steps"),
    "no loss": (lambda forger: forger.replace(1, loss=None), "rates, loss or skipped steps"),
    "schedule back": (lambda forger: forger.replace(1, schedules={"scheduler": 0}), "or go backwards"),
    "other schedule": (lambda forger: forger.replace(1, schedules={"another": 6}), "are not those of the recipe"),
    "no release": (spec(release=None), "releases another part than the model"),
    "recipe digest": (of_genesis("recipe", sources={}), "the recipe digest is not that of the listed sources"),
}


@pytest.mark.parametrize("kind", EXTREME)
@bounded
def test_signed_extremes_are_rejected_before_anything_is_trained(proof, tmp_path, kind):
    change, words = EXTREME[kind]
    assert_rejected(quick(altered(proof, tmp_path / "out", change)), words, step=4)


STATED = {
    "arguments left out": (of_genesis("recipe", configuration={}), "constructor arguments are not all"),
    "a constant that is none": (spec(constants=["parameter/nonsense"]), "is no entry of the state"),
    "a random tensor as constant": (spec(constants=["parameter/model.0.weight"]), "depends on the seed, against what"),
}


@pytest.mark.parametrize("kind", STATED)
def test_what_the_genesis_states_of_the_build_is_compared(proof, tmp_path, kind):
    """A prover that states it before training, so that the seed and all else follow from it."""
    from pol.verifier import origins

    change, words = STATED[kind]
    out = altered(proof, tmp_path / "out", change)
    with pytest.MonkeyPatch.context() as patch:
        if kind != "arguments left out":  # the seed is another with another genesis: look at the statement alone
            patch.setattr(origins, "origin", lambda *_: iter([passed("seed", "switched off")]))
        assert_rejected(check(out), words, step=5)


@pytest.mark.parametrize("depth", [65, 986])
def test_nesting_that_parses_but_is_deep_is_refused(depth):
    text = b"[" * depth + b"]" * depth
    with pytest.raises(FormatError, match="nested"):
        canonical.decode(text, list, what="file.json", limit=10_000)
    assert canonical.decode(b"[" * 60 + b"]" * 60, list, what="file.json", limit=10_000)


@bounded
def test_a_tensor_larger_than_the_memory_is_hashed_in_pieces(proof):
    """Signed and listed; nothing holds it in memory."""
    name, size = CHECKPOINTS[1], 200 * 2**20
    text = b'{"optimizer/a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    (proof / name).write_bytes(header(text))
    os.truncate(proof / name, 8 + len(text) + size)
    digest = ProofDirectory(proof).sha256(name).partition(":")[2]
    old = hashlib.sha256((factory().proof(2) / name).read_bytes()).hexdigest()
    sign(proof, "attestation.json", lambda data: data.replace(old.encode(), digest.encode()))
    assert_rejected(quick(proof), "not the state that the log records after 6 steps", step=3)


def test_many_resumes_cost_no_more_than_the_run(proof, tmp_path):
    def claim(forger):
        forger.journal = msgspec.structs.replace(forger.journal, resumes=[0, 1, 7, 13, 14, HUGE] * 1000)

    report = check(altered(proof, tmp_path / "out", claim))
    assert report.verdict is Verdict.ACCEPT
    assert len(report.intervals) == 5


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "0.10", "1", " 0.1"])
def test_numbers_of_the_log_are_finite_and_in_their_one_form(proof, tmp_path, text):
    def change(forger):
        forger.replace(2, loss=text)

    assert_rejected(quick(altered(proof, tmp_path / "out", change)), "log.jsonl line 4", step=2)


# -- hostile model files ----------------------------------------------------------------------------------------


@pytest.fixture
def model(proof):
    state = load_file(proof / CHECKPOINTS[-1])
    weights = {k.partition("/")[2].removeprefix("model."): t for k, t in state.items() if k.startswith(("par", "buf"))}
    path = proof.parent / "model.safetensors"
    save_file(weights, path)
    return path


def test_no_change_of_one_byte_of_the_model_is_accepted(proof, model):
    assert check(proof, model=model).verdict is Verdict.ACCEPT
    honest = model.read_bytes()
    space = honest.rindex(b"}") + 1  # the header is padded with spaces, which say nothing
    for position in positions(honest, 12):
        for name, edit in EDITS.items():
            changed = edit(honest, position)
            if changed == honest or (changed.startswith(honest[:space]) and "space" in name):
                continue
            model.write_bytes(changed)
            assert_rejected(quick(proof, model=model), "model", step=3)


@pytest.mark.parametrize("kind", [kind for kind, data in HEADERS.items()])
@bounded
def test_a_hostile_model_is_rejected(proof, kind):
    (proof.parent / "model.safetensors").write_bytes(HEADERS[kind])
    assert_rejected(quick(proof, model=proof.parent / "model.safetensors"), "model", step=3)

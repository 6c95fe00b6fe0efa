"""Makes the golden proofs of format v1: six good ones, the ``bad-*`` forgeries of ``good-toy``, ``expected.json``.

``good-toy`` follows from its seed; ``good-declared`` has a declared seed, an order of its own and rule tolerance;
``good-given`` starts from weights in ``given.safetensors``, ``good-child`` from those of ``good-toy``; ``good-own``
keeps its own randomness, over a frozen base; ``good-stream`` has a stream for data. ``packed`` holds two checkpoint
files with packed content, of which the second one names what the first one holds.

Run ``python tests/vectors/generate.py`` from the repository root. Key, secret, beacon and dates are fixed, so on
one platform every root and the genesis digest come out the same each time. The files do not: an ECDSA signature is
random, and the attestation lists the digest of ``genesis.json``, signature included.

A ``bad-*`` folder holds only the files that differ from ``good-toy``; ``expected.json`` names those that are to
be taken away. Vectors of a released format version never change, so nothing is overwritten without ``--force``; what is
missing is made.
"""

import argparse
import base64
import functools
import hashlib
import json
import math
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from pol import canonical, prover, release, seeds, unfinished
from pol.checkpoint import content_of, read_entries
from pol.container import Location, header_length, parse_header
from pol.interval import Origin
from pol.keys import SigningKey
from pol.layout import Content, write_checkpoint
from pol.order import epoch_order
from pol.profile import Profile
from pol.proof import attestation, genesis
from pol.proof.challenge import Window, draw
from pol.proof.log import encode_record, parse_log
from pol.proof.policy import Challenge
from pol.statetree import Entry, state_root
from pol.store import ProofDirectory, checkpoint_path

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "toy.py"
RECIPES = {"good-own": f"{HERE / 'own.py'}:Own", "good-stream": f"{HERE / 'own.py'}:Stream"}
BEACON = hashlib.sha256(b"pol test vectors: a verifier's nonce for the genesis").digest()
NONCE = hashlib.sha256(b"pol test vectors: a verifier's nonce for the challenge").digest()
SECRET = hashlib.sha256(b"pol test vectors: the secret r").digest()
DATE = "2026-01-01T00:00:00+00:00"
EVERY, KEEP = 3, 2
PROFILE = Profile(threads=1, aten="default", onednn="sse41", mkl="compatible")
"""What the most x86-64 machines can give."""


def known_key(name):
    """A key that everybody knows: it signs nothing but test vectors."""
    number = int.from_bytes(hashlib.sha256(b"pol test vectors: key of " + name.encode()).digest(), "big")
    return SigningKey(ec.derive_private_key(number, ec.SECP256R1()))


KEY, THIEF = known_key("the prover"), known_key("a thief")


OPTIONS = {
    "good-toy": {},
    "good-declared": {"init_seed": 7, "order": np.stack([np.roll(np.arange(30), 7), np.arange(30)[::-1]]),
                      "rule": "tolerance", "keep": 1},
    "good-child": {"parent": HERE / "good-toy"},
    "good-given": {"start": HERE / "given.safetensors", "start_kind": "given"},
    "good-own": {"keep": 3},
    "good-stream": {},
}  # fmt: skip
"""What each good proof is recorded with, beside key, beacon and profile."""


def record_good(out):
    """An honest proof."""
    options = {"keep": KEEP, **OPTIONS[out.name]}
    values = [SECRET, *(hashlib.sha256(b"pol test vectors: dry build %d" % i).digest() for i in range(2))]
    with (
        mock.patch("secrets.token_bytes", side_effect=values),
        mock.patch.object(unfinished, "_now", return_value=DATE),
    ):
        prover.record(
            RECIPES.get(out.name, f"{RECIPE}:Toy"), out, key=KEY, every=EVERY, beacon=BEACON, profile=PROFILE, **options
        )


class Forgery:
    """A copy of the good proof that is changed and, as far as wanted, made consistent and signed again."""

    def __init__(self, good, folder):
        self.folder = folder
        shutil.copytree(good, folder)
        payload = self.payload("genesis.json")
        self.genesis = canonical.decode(payload, genesis.Genesis, what="genesis", limit=2**20)
        payload = self.payload("attestation.json")
        self.statement = canonical.decode(payload, attestation.Statement, what="attestation", limit=2**20)
        self.log = parse_log((folder / "log.jsonl").read_bytes())
        self.key = KEY

    def payload(self, name):
        return base64.b64decode(json.loads((self.folder / name).read_bytes())["payload"])

    def poke(self, step, key, value):
        """Set the first element of a float32 tensor of a checkpoint, and its root in the log."""
        path = self.folder / checkpoint_path(step)
        data = bytearray(path.read_bytes())
        size = header_length(data[:8], len(data), path.name)
        placed = parse_header(bytes(data[8 : 8 + size]), len(data), path.name)
        (slot,) = (slot for slot in placed if slot.entry.key == key)
        (old,) = struct.unpack_from("<f", data, slot.begin)
        struct.pack_into("<f", data, slot.begin, value(old))
        path.write_bytes(data)
        root = root_of(path)
        intervals = [
            msgspec.structs.replace(interval, root=root) if interval.stop == step else interval
            for interval in self.log.intervals
        ]
        origin = msgspec.structs.replace(self.log.origin, root=root) if step == 0 else self.log.origin
        self.write_log(origin, intervals)

    def write_log(self, origin, intervals):
        (self.folder / "log.jsonl").write_bytes(b"".join(map(encode_record, [origin, *intervals])))
        self.log = parse_log((self.folder / "log.jsonl").read_bytes())

    def sign_genesis(self, payload=None):
        payload = payload or canonical.encode(self.genesis)
        (self.folder / "genesis.json").write_bytes(self.key.sign(payload, genesis.PAYLOAD_TYPE))
        digest = "sha256:" + hashlib.sha256(payload).hexdigest()
        self.write_log(Origin(genesis=digest, root=self.log.origin.root), self.log.intervals)
        predicate = msgspec.structs.replace(self.statement.predicate, genesis=digest)
        self.statement = msgspec.structs.replace(self.statement, predicate=predicate)

    def attest(self):
        """List all files again, with the roots as they now are, and sign."""
        names = sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != "attestation.json"
        )
        digests = {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in names}
        predicate = msgspec.structs.replace(
            self.statement.predicate,
            log=self.log.root,
            origin=self.log.origin.root,
            final=self.log.intervals[-1].root,
            journal="sha256:" + digests["journal.json"],
        )
        self.statement = attestation.Statement(
            subject=[attestation.Subject(name=n, digest=attestation.Sha256(d)) for n, d in digests.items()],
            predicate=predicate,
        )
        data = self.key.sign(canonical.encode(self.statement), attestation.PAYLOAD_TYPE)
        (self.folder / "attestation.json").write_bytes(data)


def root_of(path):
    """State root of a checkpoint file."""
    store = ProofDirectory(path.parent)
    slots = read_entries(store, path.name)
    return state_root((slot.entry, content_of(store, path.name, slot)) for slot in slots)


def file_roots(folder):
    """File name to digest of the state root."""
    return {path.name: root_of(path).state.digest for path in sorted(folder.iterdir())}


# -- the forgeries: name -> (step that must catch it, what to do to a copy) ---------------------------------------


def bad_signature(forgery):
    """The genesis envelope carries a signature over other bytes."""
    other = json.loads(KEY.sign(b"something else", genesis.PAYLOAD_TYPE))["signatures"]
    envelope = json.loads((forgery.folder / "genesis.json").read_bytes())
    (forgery.folder / "genesis.json").write_bytes(canonical.encode({**envelope, "signatures": other}))
    forgery.attest()


def bad_attester(forgery):
    """The attestation is signed by another key than the genesis names."""
    forgery.key = THIEF
    forgery.attest()


def bad_version(forgery):
    """The genesis is of a format that does not exist; all signatures are good."""
    forgery.sign_genesis(canonical.encode(forgery.genesis).replace(b'"format":"pol/v1"', b'"format":"pol/v9"'))
    forgery.attest()


def bad_duplicate_key(forgery):
    """The signed genesis names its format twice."""
    payload = canonical.encode(forgery.genesis)
    forgery.sign_genesis(payload.replace(b'"format":"pol/v1"', b'"format":"pol/v1","format":"pol/v1"'))
    forgery.attest()


def bad_extra_file(forgery):
    """A file that no proof has, listed in the attestation."""
    (forgery.folder / "weights.pkl").write_bytes(b"not here")
    forgery.attest()


def bad_log(forgery):
    """One digit of a batch digest is changed after the attestation."""
    data = (forgery.folder / "log.jsonl").read_bytes()
    data = data.replace(b'"batches":"blake3:', b'"batches":"blake3:0', 1)
    position = data.index(b'","learning_rates"')
    (forgery.folder / "log.jsonl").write_bytes(data[: position - 1] + data[position:])


def bad_unlisted(forgery):
    """A checkpoint that the attestation does not list."""
    shutil.copy(forgery.folder / checkpoint_path(6), forgery.folder / checkpoint_path(3))


def bad_missing(forgery):
    """A listed checkpoint is taken away."""
    (forgery.folder / checkpoint_path(6)).unlink()


def bad_reordered(forgery):
    """Two checkpoints change places; every file is listed anew."""
    first, second = (forgery.folder / checkpoint_path(step) for step in (0, 6))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    forgery.attest()


def bad_nan(forgery):
    """A checkpoint is full of bridges to anywhere: NaN, with all roots and signatures good."""
    forgery.poke(6, "parameter/model.0.weight", lambda old: math.nan)
    forgery.attest()


def bad_cover(forgery):
    """The last interval is left out, with its checkpoint; all roots and signatures are good."""
    (forgery.folder / checkpoint_path(8)).unlink()
    forgery.write_log(forgery.log.origin, forgery.log.intervals[:-1])
    forgery.attest()


def bad_stolen(forgery):
    """The whole proof is signed again by a thief: another key, so another seed."""
    forgery.key = THIEF
    forgery.genesis = msgspec.structs.replace(forgery.genesis, claimant=THIEF.public_pem)
    forgery.sign_genesis()
    forgery.attest()


def bad_weight(forgery):
    """The last weights differ in one bit; all roots and signatures are good."""
    forgery.poke(8, "parameter/model.0.weight", lambda old: struct.unpack("<f", struct.pack("<I", bits(old) ^ 1))[0])
    forgery.attest()


def bad_loss(forgery):
    """One recorded loss is better than it was; all roots and signatures are good."""
    intervals = list(forgery.log.intervals)
    intervals[1] = msgspec.structs.replace(intervals[1], loss=repr(float(intervals[1].loss) / 2))
    forgery.write_log(forgery.log.origin, intervals)
    forgery.attest()


def bits(value):
    """The bits of a float32."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


FORGERIES = {
    1: [bad_signature, bad_attester],
    2: [bad_version, bad_duplicate_key, bad_extra_file],
    3: [bad_log, bad_unlisted, bad_missing, bad_reordered],
    4: [bad_nan, bad_cover],
    5: [bad_stolen],
    7: [bad_weight, bad_loss],
}


def write_delta(good, bad, folder):
    """Keep of ``bad`` what differs from ``good``; returns the names that it lacks."""
    names = {str(path.relative_to(root)) for root in (good, bad) for path in root.rglob("*") if path.is_file()}
    removed = []
    for name in sorted(names):
        if not (bad / name).exists():
            removed.append(name)
        elif not (good / name).exists() or (good / name).read_bytes() != (bad / name).read_bytes():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(bad / name, folder / name)
    return removed


# -- packed content -------------------------------------------------------------------------------------------------


def make_packed(folder):
    """Two checkpoint files of large tensors: of all element sizes, of more than one block, stored once."""
    folder.mkdir()
    few = np.arange(300_000) * 7919 % 61  # values that compress well: a vector is small
    arrays = {
        "buffer/m.bits": (few[:70_000] % 2).astype("u1"), "buffer/m.count": few[:9000].astype("<i8"),
        "buffer/m.small": few[:10].astype("<f4"), "optimizer/o.m.w.exp_avg": (few[:9001] / 61).astype("<f8"),
        "parameter/m.half": few[:40_000].astype("<f2"), "parameter/m.twin": (few / 64).astype("<f4").reshape(300, 1000),
        "parameter/m.w": (few / 64).astype("<f4").reshape(300, 1000),
    }  # fmt: skip
    dtypes = {"u1": "BOOL", "i8": "I64", "f4": "F32", "f8": "F64", "f2": "F16"}
    held = {"parameter/m.w": Location(0, "parameter/m.twin")}  # at step 0 in the same file
    for step in (0, 3):
        now = {**arrays, "parameter/m.twin": arrays["parameter/m.twin"] + np.float32(step)}
        contents = []
        for key, array in now.items():
            kind, _, name = key.partition("/")
            entry = Entry(kind=kind, name=name, dtype=dtypes[array.dtype.str[1:]], shape=list(array.shape))
            contents.append(Content(entry, functools.partial(memoryview, array.tobytes()), held.get(key)))
        with (folder / f"{step:012d}.safetensors").open("w+b") as file:
            write_checkpoint(file, contents)
        held["buffer/m.count"] = Location(0, "buffer/m.count")


# -- what another implementation must find ------------------------------------------------------------------------


def facts(good):
    """Digests, roots, seeds and draws of the good proof."""
    with tempfile.TemporaryDirectory() as temporary:
        opened = Forgery(good, Path(temporary) / "copy")
    statement, first, log = opened.statement, opened.genesis, opened.log
    beacon = bytes.fromhex(statement.predicate.beacon.value)
    seed = seeds.derive_seed(genesis.genesis_digest(first), beacon, SECRET)
    digest = attestation.attestation_digest(statement)
    orders = [epoch_order(seed, epoch, 30).tolist() for epoch in range(2)]
    if first.randomness.order == "observed":
        orders = np.frombuffer((good / "order.bin").read_bytes(), dtype="<u4").reshape(2, 30).tolist()
    if first.randomness.order == "stream":
        orders = [[], []]
    if first.randomness.order == "recorded":
        chosen = [batch for interval in log.intervals for batch in interval.indices]
        orders = [[index for batch in chosen[at : at + 4] for index in batch] for at in (0, 4)]
    windows = [
        Window(first=2 * i, last=2 * i + 1, sizes={"weights": float(i * 7 % 11), "optimizer": float(i % 3)})
        for i in range(30)
    ]
    challenge = Challenge(strategy="mix", top=1, uniform=6, weighted=5, all_up_to=0)
    draws = draw(challenge, digest, NONCE, windows, [20])
    stream = seeds.Stream(seed, "pol/v1/stream")
    return {
        "genesis": genesis.genesis_digest(first),
        "attestation": digest,
        "claimant": KEY.fingerprint,
        "recipe": first.recipe.digest,
        "sources": first.recipe.sources,
        "control": msgspec.to_builtins(first.control),
        "dataset": msgspec.to_builtins(first.dataset.root),
        "log": msgspec.to_builtins(log.root),
        "origin": msgspec.to_builtins(log.origin.root),
        "final": msgspec.to_builtins(log.intervals[-1].root),
        "checkpoints": file_roots(good / "checkpoints"),
        "batches": [interval.batches for interval in log.intervals],
        "beacon": BEACON.hex(),
        "secret": SECRET.hex(),
        "seed": seed.hex(),
        "orders": orders,
        "leaves": [(good / "dataset.bin").read_bytes()[32 * i : 32 * i + 32].hex() for i in (0, 29)],
        "bases": [msgspec.to_builtins(base) for base in first.spec.declaration.frozen],
        "streams": {
            "init": stream.draw(16, "init").hex(),
            "step 5": stream.draw(16, "step", 5).hex(),
            "sample 1 9 21": stream.draw(16, "sample", 1, 9, 21).hex(),
            "transform 0 0": stream.draw(16, "transform", 0, 0, *orders[0][:1]).hex(),
            "collate 1 3": stream.draw(16, "collate", 1, 3).hex(),
        },
        "challenge": {
            "nonce": NONCE.hex(),
            "windows": [[w.first, w.last, w.sizes] for w in windows],
            "resumed": [20],
            "policy": drawn(challenge),
            "draws": drawn(draws),
        },
    }


def drawn(struct):
    """A struct as plain values, without what no nonce draws: screens are each verifier's own."""
    return {key: value for key, value in msgspec.to_builtins(struct).items() if key != "screened"}


def as_lines(value, depth=2):
    """JSON with one line for each value down to a depth: readable, and small."""
    if depth == 0 or not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {as_lines(v, depth - 1)}" for k, v in value.items()) + "\n}"


def main():
    """Make all vectors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="overwrite vectors that exist")
    arguments = parser.parse_args()
    if arguments.force:
        for old in [*HERE.glob("good-*"), *HERE.glob("bad-*"), HERE / "packed"]:
            shutil.rmtree(old)
    missing = [name for name in OPTIONS if not (HERE / name).exists()]
    if not (HERE / "packed").exists():
        make_packed(HERE / "packed")
    elif not missing:
        sys.exit(f"{HERE} holds vectors of format v1 already; those of a released format never change (--force)")
    for name in missing:
        if name == "good-given":
            release.write_model(HERE / "good-toy", HERE / "given.safetensors")
        record_good(HERE / name)
    good = HERE / "good-toy"
    bad = make_bad(good) if "good-toy" in missing else json.loads((HERE / "expected.json").read_bytes())["bad"]
    expected = {**{name: facts(HERE / name) for name in OPTIONS}, "packed": file_roots(HERE / "packed"), "bad": bad}
    (HERE / "expected.json").write_text(as_lines(expected) + "\n")
    files = [path for folder in HERE.iterdir() if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    print(f"made {', '.join(missing)}; {len(bad)} forgeries in all: {sum(path.stat().st_size for path in files)} bytes")


def make_bad(good):
    """The forgeries, as folders of what differs; returns what ``expected.json`` says of them."""
    bad = {}
    with tempfile.TemporaryDirectory() as temporary:
        for step, makers in FORGERIES.items():
            for make in makers:
                name = make.__name__.replace("_", "-")
                forgery = Forgery(good, Path(temporary) / name)
                make(forgery)
                removed = write_delta(good, forgery.folder, HERE / name)
                bad[name] = {"what": make.__doc__, "step": step, "removed": removed}
    return bad


if __name__ == "__main__":
    main()

"""What docs/proof-format.md says, written down a second time, without this package and without torch.

It reads a proof directory with the standard library, blake3, zstandard and numpy, and finds everything that
``expected.json`` lists. It checks no signature and refuses nothing: that is the verifier's work.
"""

import base64
import hashlib
import hmac
import json
import math

import numpy as np
import toy_data
import zstandard
from blake3 import blake3


def frame(*parts):
    """Length-prefixed concatenation."""
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in encoded)


def u64(*numbers):
    """Big-endian u64s."""
    return b"".join(number.to_bytes(8, "big") for number in numbers)


def sha(data):
    """A written SHA-256."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def raw(digest):
    """The bytes of a written digest."""
    return bytes.fromhex(digest.split(":")[1])


def canonical(value):
    """RFC 8785, for values that hold ASCII keys and integers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def leaf(data):
    """RFC 9162 leaf hash."""
    return hashlib.sha256(b"\x00" + data).digest()


def merkle(leaves):
    """RFC 9162 tree, by its recursive definition."""
    if len(leaves) == 0:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + merkle(leaves[:k]) + merkle(leaves[k:])).digest()


def root(leaves):
    """A root as it stands in JSON."""
    return {"digest": "sha256:" + merkle(leaves).hex(), "size": len(leaves)}


def extract(salt, material):
    """HKDF-Extract (RFC 5869)."""
    return hmac.digest(salt, material, "sha256")


def expand(key, info):
    """The first 32 bytes of HKDF-Expand."""
    return hmac.digest(key, info + b"\x01", "sha256")


def permutation(key, size):
    """0 … size-1, sorted by (word, index)."""
    words = blake3(b"", key=key).digest(length=8 * size)
    return sorted(range(size), key=lambda i: (int.from_bytes(words[8 * i : 8 * i + 8], "little"), i))


def packed(data, count, item):
    """The ``count`` bytes of packed content: lengths of blocks of 1 MiB, then each as one frame of sorted bytes."""
    found, size, blocks = b"", 1 << 20, -(-count // (1 << 20))
    at = 4 * blocks
    for number, length in enumerate(np.frombuffer(data[:at], dtype="<u4").tolist()):
        block, at = data[at : at + length], at + length
        plain = min(size, count - size * number)
        if length < plain:
            block = zstandard.ZstdDecompressor().decompress(block)
            block = np.frombuffer(block, dtype=np.uint8).reshape(item, -1).T.tobytes()
        found += block
    return found


def entries(folder, step):
    """Entry key to (dtype, shape, content) of a checkpoint file."""
    data = (folder / f"{step:012d}.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    notes, found = json.loads(header.pop("__metadata__", {}).get("pol", "{}")), {}
    for key, slot in header.items():
        begin, stop = slot["data_offsets"]
        dtype, shape, content = slot["dtype"], slot["shape"], data[end + begin : end + stop]
        if key in notes:
            dtype, shape = notes[key]["dtype"], notes[key]["shape"]
            item = 1 if dtype == "BOOL" else int(dtype.strip("FIUB")) // 8
            content = packed(content, item * math.prod(shape), item)
        found[key] = dtype, shape, content
    for key, note in notes.items():
        if "held" in note:
            at, name = note["held"]
            found[key] = (found if at == step else entries(folder, at))[name]
            assert found[key][:2] == (note["dtype"], note["shape"])
    return found


def state_root(path):
    """State root of a checkpoint file."""
    leaves = []
    for key, (dtype, shape, content) in entries(path.parent, int(path.stem)).items():
        kind, _, name = key.partition("/")
        parts = kind, name, dtype, u64(*shape), blake3(content).digest()
        leaves.append((kind.encode(), name.encode(), leaf(frame("pol/v1/state-entry", *parts))))
    leaves.sort()
    return {
        "state": root([hashed for _, _, hashed in leaves]),
        "weights": root([hashed for kind, _, hashed in leaves if kind in (b"parameter", b"buffer")]),
    }


def field(value):
    """(type, shape, bytes) of a field of a sample or batch."""
    if isinstance(value, np.ndarray):
        name = {"int16": "I16", "int64": "I64"}[value.dtype.name]
        return (
            name.encode(),
            u64(*value.shape),
            np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes(),
        )
    return type(value).__name__.encode(), b"", (value if isinstance(value, str) else repr(value)).encode()


def sample_leaf(item, index, salt_key):
    """Leaf of a flat sample in the dataset tree."""
    salt = hmac.digest(salt_key, u64(index), "sha256")
    fields = b"".join(frame(name, *field(item[name])) for name in sorted(item))
    return leaf(frame("pol/v1/sample", u64(index), salt, fields))


class Streams:
    """Named random bytes."""

    def __init__(self, seed):
        self.key = expand(seed, b"pol/v1/stream")

    def draw(self, length, name, *numbers):
        return blake3(frame(name, *(u64(number) for number in numbers)), key=self.key).digest(length=length)


def base_root(tensors):
    """Root of a frozen base, from (name, dtype, shape, bytes)."""
    leaves = [
        leaf(frame("pol/v1/base-entry", name, dtype, u64(*shape), blake3(data).digest()))
        for name, dtype, shape, data in sorted(tensors)
    ]
    return root(leaves)


def batch_digest(samples, orders, streams, key, steps, size, moved=True):
    """Digest of the batches of the steps given; ``moved``: with the augmentation of the toy recipe."""
    hasher = blake3(key=key)
    per_epoch = -(-len(samples) // size)
    for step in steps:
        epoch, batch = divmod(step, per_epoch)
        items = []
        for position, index in list(enumerate(orders[epoch]))[batch * size : (batch + 1) * size]:
            if not moved:
                items.append({"x": samples[index]["x"], "y": samples[index]["y"]})
                continue
            words = np.frombuffer(streams.draw(16, "transform", epoch, position, index), dtype="<u8")
            items.append(toy_data.shifted(samples[index], np.random.Generator(np.random.Philox(key=words))))
        hasher.update(frame("pol/v1/batch", u64(step)))
        for name in sorted(items[0]):
            kind, shape, data = field(np.stack([np.asarray(item[name]) for item in items]))
            hasher.update(frame(name, kind, shape, u64(len(data))))
            hasher.update(data)
    return "blake3:" + hasher.hexdigest()


def whole(window):
    """A window and the interval before it."""
    return range(max(window[0] - 1, 0), window[1] + 1)


def draws(attestation, nonce, windows, resumed, policy):
    """The challenge of the default strategy, for more intervals than are all replayed."""
    count = windows[-1][1] + 1
    key = expand(extract(b"pol/v1/challenge", raw(attestation) + nonce), b"")
    kinds = sorted({kind for window in windows for kind in window[2]})
    mandatory = {*whole(windows[0]), *whole(windows[-1])}
    mandatory |= {i for r in resumed for i in (r - 1, r) if 0 <= i < count}
    strata, top = min(20, len(windows)), set()
    for s in range(strata):
        stratum = windows[len(windows) * s // strata : len(windows) * (s + 1) // strata]
        for kind in kinds:
            ranked = sorted(stratum, key=lambda window: (-window[2].get(kind, 0.0), window[0]))
            top |= {i for window in ranked[: policy["top"]] for i in whole(window)}
    weighted = set()
    words = blake3(b"", key=expand(key, b"weighted")).digest(length=8 * policy["weighted"])
    for number in range(policy["weighted"]):
        point = int.from_bytes(words[8 * number : 8 * number + 8], "little") / 2**64
        sizes = [window[2].get(kinds[number % len(kinds)], 0.0) for window in windows]
        shares = [min(size / sum(sizes), 1 / 20) for size in sizes]
        rest = (1 - sum(shares)) / len(shares)
        chosen = windows[-1]
        for window, share in zip(windows, shares, strict=True):
            point -= share + rest
            if point < 0:
                chosen = window
                break
        weighted |= set(whole(chosen))
    return {
        "intervals": count,
        "mandatory": sorted(mandatory),
        "top": sorted(top),
        "uniform": permutation(expand(key, b"uniform"), count)[: policy["uniform"]],
        "weighted": sorted(weighted),
    }


def payload(path):
    """The payload of an envelope."""
    return base64.b64decode(json.loads(path.read_bytes())["payload"])


def facts(proof, nonce, windows, resumed, policy):
    """Everything that ``expected.json`` lists of a proof of the toy recipe."""
    first, second = payload(proof / "genesis.json"), payload(proof / "attestation.json")
    genesis, statement = json.loads(first), json.loads(second)
    assert canonical(genesis) == first
    assert canonical(statement) == second
    predicate, declaration = statement["predicate"], genesis["spec"]["declaration"]
    r = bytes.fromhex(json.loads((proof / "secret.json").read_bytes())["r"])
    assert genesis["secret"] == sha(frame("pol/v1/secret", r))
    pem = "".join(genesis["claimant"].splitlines()[1:-1])
    sources = genesis["recipe"]["sources"]
    names = [part for name in sorted(sources) for part in (name, sources[name])]
    seed = expand(
        extract(
            b"pol/v1/seed",
            raw(sha(first)) + hashlib.sha256(bytes.fromhex(predicate["beacon"]["value"])).digest() + r,
        ),
        b"",
    )
    count, size = declaration["samples"], declaration["batch_size"]
    orders = [permutation(expand(seed, b"pol/v1/order" + u64(e)), count) for e in range(declaration["epochs"])]
    if genesis["randomness"]["order"] == "observed":
        indices = np.frombuffer((proof / "order.bin").read_bytes(), dtype="<u4")
        orders = indices.reshape(declaration["epochs"], count).tolist()
    own = genesis["recipe"]["name"]
    lines = (proof / "log.jsonl").read_bytes()[:-1].split(b"\n")
    records = [json.loads(line) for line in lines]
    samples, streams = toy_data.samples(), Streams(seed)
    read = orders
    if genesis["randomness"]["order"] == "recorded":
        chosen = [batch for record in records[1:] for batch in record["indices"]]
        per_epoch = declaration["batches"]
        read = orders = [[i for batch in chosen[at : at + per_epoch] for i in batch] for at in (0, per_epoch)]
    if genesis["randomness"]["order"] == "stream":
        count, orders, read = 0, [[], []], [list(range(30))] * 2
    leaves = [sample_leaf(item, index, expand(r, b"salt")) for index, item in enumerate(samples[:count])]
    assert b"".join(leaves) == (proof / "dataset.bin").read_bytes()
    states = {path.name: state_root(path) for path in sorted((proof / "checkpoints").iterdir())}
    batches = [
        batch_digest(
            samples, read, streams, expand(r, b"batch"), range(record["start"], record["stop"]), size, own == "Toy"
        )
        for record in records[1:]
    ]
    bases = []
    if own == "Own":  # the base whose values stand in the recipe
        weight = (np.arange(12, dtype="<f4").reshape(3, 4) / np.float32(8)).tobytes()
        bias = np.full(3, 0.5, dtype="<f4").tobytes()
        bases = [{"name": "base", "root": base_root([("weight", "F32", (3, 4), weight), ("bias", "F32", (3,), bias)])}]
    assert bases == declaration.get("frozen", [])
    assert batches == [record["batches"] for record in records[1:]]
    return {
        "genesis": sha(first),
        "attestation": sha(second),
        "claimant": sha(base64.b64decode(pem)),
        "recipe": sha(frame("pol/v1/recipe", *names)),
        "sources": sources,
        "control": genesis["control"],
        "dataset": root(leaves),
        "log": root([leaf(frame("pol/v1/log", line)) for line in lines]),
        "origin": next(iter(states.values())),
        "final": list(states.values())[-1],
        "checkpoints": {name: found["state"]["digest"] for name, found in states.items()},
        "batches": batches,
        "beacon": predicate["beacon"]["value"],
        "secret": r.hex(),
        "seed": seed.hex(),
        "orders": orders,
        "leaves": [leaves[i].hex() if leaves else "" for i in (0, 29)],
        "bases": bases,
        "streams": {
            "init": streams.draw(16, "init").hex(),
            "step 5": streams.draw(16, "step", 5).hex(),
            "sample 1 9 21": streams.draw(16, "sample", 1, 9, 21).hex(),
            "transform 0 0": streams.draw(16, "transform", 0, 0, *orders[0][:1]).hex(),
            "collate 1 3": streams.draw(16, "collate", 1, 3).hex(),
        },
        "challenge": {
            "nonce": nonce.hex(),
            "windows": windows,
            "resumed": resumed,
            "policy": policy,
            "draws": draws(sha(second), nonce, windows, resumed, policy),
        },
    }

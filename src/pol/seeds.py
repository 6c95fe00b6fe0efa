"""Where every random bit of a training comes from: one seed, and labelled expansion of it.

``seed = HKDF-SHA256(salt "pol/v1/seed", genesis digest || SHA-256(beacon) || r)``: it exists only once the
genesis is fixed, so nothing random is the prover's to choose, and another key means another seed.
"""

from __future__ import annotations

import hashlib
import struct

from blake3 import blake3
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from pol.digest import Digest, frame, raw, sha256_framed

NO_BEACON = bytes(32)
"""The beacon of a run that has none: then the claimant chose the randomness, and a verdict says so."""

CONTROL_SEED = hashlib.sha256(b"pol/v1/control").digest()
"""The fixed public seed of the control run, the same for everyone: it measures a platform, nothing else."""


def derive_seed(genesis: Digest, beacon: bytes, r: bytes) -> bytes:
    """The 32-byte seed of a run, from its genesis digest, its beacon and its secret r."""
    material = raw(genesis) + hashlib.sha256(beacon).digest() + r
    return HKDF(SHA256(), 32, salt=b"pol/v1/seed", info=b"").derive(material)


def expand(key: bytes, label: str, extra: bytes = b"") -> bytes:
    """HKDF-Expand of a 32-byte key under a label: 32 bytes."""
    return HKDFExpand(SHA256(), 32, info=label.encode() + extra).derive(key)


def commit(r: bytes) -> Digest:
    """The commitment to the secret r that stands in the genesis."""
    return sha256_framed("pol/v1/secret", r)


def batch_key(r: bytes) -> bytes:
    """Key of the batch digests; without r a stranger cannot confirm a guess of a batch."""
    return expand(r, "batch")


def salt_key(r: bytes) -> bytes:
    """Key of the per-sample salts in the dataset tree."""
    return expand(r, "salt")


class Stream:
    """Random bytes addressed by name: extended BLAKE3 output under one key, so any part can be drawn alone."""

    __slots__ = ("_key", "_names")

    def __init__(self, seed: bytes, label: str) -> None:
        self._key = expand(seed, label)
        self._names: dict[str, bytes] = {}

    def draw(self, length: int, name: str, *numbers: int) -> bytes:
        """``length`` bytes for this name and these numbers (each a u64)."""
        # The same bytes as frame(name, *numbers), in one go: an address is needed for every sample of a training.
        framed = self._names.get(name) or self._names.setdefault(name, frame(name))
        if len(numbers) == 3:
            first, second, third = numbers
            address = framed + _WORDS[3].pack(8, first, 8, second, 8, third)
        else:
            address = framed + _WORDS[len(numbers)].pack(*[word for number in numbers for word in (8, number)])
        return blake3(address, key=self._key).digest(length)


_WORDS = [struct.Struct(f">{2 * count}Q") for count in range(4)]
"""Of no more than three numbers: nothing is addressed by more."""

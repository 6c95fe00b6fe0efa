"""The Merkle tree of RFC 9162 section 2.1 over SHA-256: roots, inclusion paths and their check.

A root is always kept with the tree's size: without it an inclusion path says less than it seems to.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated

import msgspec

from pol.digest import DIGEST_PATTERN, raw

MAX_PATH = 64
"""Longest inclusion path that is read: a tree of 2^64 leaves, more than any u64 size can name."""


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The root of a tree, and its number of leaves."""

    digest: Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
    size: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]

    def raw(self) -> bytes:
        """The 32 bytes of the root."""
        return raw(self.digest)


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf (RFC 9162: ``SHA-256(0x00 || data)``)."""
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two smaller than ``size`` (RFC 9162's k)."""
    return 1 << (size - 1).bit_length() - 1


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root hash of the tree whose leaves have these hashes; of no leaves, ``SHA-256("")``."""
    if not leaf_hashes:
        return hashlib.sha256(b"").digest()
    level = list(leaf_hashes)
    while len(level) > 1:  # pairing neighbours and carrying an odd last node up is the RFC's recursion
        paired = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) & ~1 :]
    return level[0]


def tree(leaf_hashes: Sequence[bytes]) -> Root:
    """Root and size of the tree whose leaves have these hashes."""
    return Root(digest="sha256:" + root(leaf_hashes).hex(), size=len(leaf_hashes))


def inclusion_path(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The sibling hashes from leaf ``index`` up to the root (RFC 9162 section 2.1.3.1)."""
    if not 0 <= index < len(leaf_hashes):
        raise IndexError(f"leaf {index} of a tree of {len(leaf_hashes)}")
    if len(leaf_hashes) == 1:
        return []
    k = _split(len(leaf_hashes))
    if index < k:
        return [*inclusion_path(leaf_hashes[:k], index), root(leaf_hashes[k:])]
    return [*inclusion_path(leaf_hashes[k:], index - k), root(leaf_hashes[:k])]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], expected: bytes) -> bool:
    """Whether ``path`` shows that leaf ``index`` of a tree of ``size`` leaves is under root ``expected``.

    RFC 9162 section 2.1.3.2. Index and size are the caller's own, never the path's.
    """
    if not 0 <= index < size or len(path) > MAX_PATH or len(expected) != 32:
        return False
    first, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0 or len(sibling) != 32:
            return False
        if first & 1 or first == last:
            node = _node(sibling, node)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            node = _node(node, sibling)
        first, last = first >> 1, last >> 1
    return last == 0 and hmac.compare_digest(node, expected)

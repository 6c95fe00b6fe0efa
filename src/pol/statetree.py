"""The state tree: how a state (everything that evolves in a training) becomes one root.

A Merkle root over entries sorted by the UTF-8 bytes of (kind, name); a leaf binds kind, name, dtype, shape and
the BLAKE3-256 of the tensor's row-major little-endian bytes. In a checkpoint file an entry is the tensor
``kind/name``. No torch here: both worlds need this, and the verifier hashes checkpoint files without it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Annotated

import msgspec

from pol.digest import frame
from pol.errors import FormatError
from pol.merkle import Root, leaf_hash, tree

KINDS = ("parameter", "buffer", "transient", "optimizer", "object", "value", "generator")
"""parameter and buffer (persistent) make the *weights* sub-root; transient is a buffer that ``state_dict``
leaves out; object is the tensor state of an attached object; value is canonical JSON held as bytes; generator is the
full state of a random number generator, where the program keeps its own randomness."""

WEIGHTS = ("parameter", "buffer")

DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Element types by their safetensors name, with bytes per element."""

FLOATING = ("F64", "F32", "F16", "BF16")

MAX_ENTRIES = 1_000_000
"""Most entries of a state: ten times the tensors of the largest public models with Adam (about 10^5)."""

MAX_RANK = 64
"""Most dimensions of a tensor: torch's own limit."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """One entry of a state, without its content. What follows from it alone is made once: it stands in every state."""

    kind: str
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]]

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.dtype not in DTYPES or len(self.shape) > MAX_RANK:
            raise ValueError(f"state entry {self.name!r}: unknown kind {self.kind!r}, dtype {self.dtype!r} or rank")

    @functools.cached_property
    def key(self) -> str:
        """Name of the tensor in a checkpoint file."""
        return f"{self.kind}/{self.name}"

    @functools.cached_property
    def framed(self) -> bytes:
        """What stands before the content in the frame of its leaf."""
        shape = b"".join(size.to_bytes(8, "big") for size in self.shape)
        return frame("pol/v1/state-entry", self.kind.encode(), self.name.encode(), self.dtype.encode(), shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the content."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    def order(self) -> tuple[str, str]:
        """Sort key of the state tree: text sorts by code point, which is how its UTF-8 bytes sort."""
        return self.kind, self.name


class StateRoot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Root of all entries, and the sub-root of the weights (parameters and persistent buffers)."""

    state: Root
    weights: Root


def entry_leaf(entry: Entry, content: bytes) -> bytes:
    """Leaf hash of an entry whose tensor bytes have BLAKE3-256 ``content``."""
    return leaf_hash(entry.framed + len(content).to_bytes(8, "big") + content)


def base_root(contents: Iterable[tuple[str, str, Sequence[int], bytes]]) -> Root:
    """Root of a frozen base given as (name, dtype, shape, BLAKE3-256 of the bytes), in any order.

    Names are those of the ``state_dict``, so that a plain model file has the same root as the module that loaded it.
    """
    leaves = []
    for name, dtype, shape, content in sorted(contents):
        sizes = b"".join(size.to_bytes(8, "big") for size in shape)
        leaves.append(leaf_hash(frame("pol/v1/base-entry", name.encode(), dtype.encode(), sizes, content)))
    return tree(leaves)


def state_root(contents: Iterable[tuple[Entry, bytes]]) -> StateRoot:
    """Roots of a state given as (entry, BLAKE3-256 of its bytes), in any order.

    Raises:
        FormatError: two entries have one kind and name.
    """
    ordered = sorted(((entry.order(), entry, content) for entry, content in contents), key=itemgetter(0))
    for (a, entry, _), (b, _, _) in pairwise(ordered):
        if a == b:
            raise FormatError(f"state entry {entry.key!r} appears twice")
    leaves = [(entry.kind, entry_leaf(entry, content)) for _, entry, content in ordered]
    return StateRoot(
        state=tree([leaf for _, leaf in leaves]),
        weights=tree([leaf for kind, leaf in leaves if kind in WEIGHTS]),
    )

"""The released model: the last checkpoint's weights as a file of their own, under the model's own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pol.checkpoint import read_entries, reader
from pol.container import Placed
from pol.errors import UsageError
from pol.proof.genesis import MAX_GENESIS, read_genesis
from pol.proof.released import released
from pol.remote.fetched import opened
from pol.store import ATTESTATION, GENESIS, checkpoint_path

_CHUNK = 1 << 24
"""Bytes that are copied at a time: 16 MiB keeps memory far below the size of a model."""


def write_model(proof: Path | str, out: Path | str) -> int:
    """Write the trained weights of a complete proof to a safetensors file, as ``state_dict`` names them.

    Tied tensors appear under each of their names, so ``load_state_dict(load_file(out))`` takes it. Nothing is
    verified here. Returns the number of tensors.

    Raises:
        UsageError: the proof is unfinished, or has no model part to release.
    """
    with opened(proof) as store:
        if not store.has(ATTESTATION):
            raise UsageError(f"{proof}: the training is not finished, so there is no model to release")
        spec = read_genesis(store.read(GENESIS, 2 * MAX_GENESIS)).spec
        if spec.release is None:
            raise UsageError(f"{proof}: several modules and none called 'model', so nothing is released by name")
        name = checkpoint_path(spec.steps)
        slots, _ = released(spec.declaration, spec.release.part, read_entries(store, name))
        temporary = Path(f"{out}.tmp")
        with temporary.open("wb") as file:
            file.write(_header(slots))
            for _, slot in sorted(slots.items()):
                read, size = reader(store, name, slot), slot.entry.num_bytes
                for begin in range(0, size, _CHUNK):
                    file.write(read(begin, min(begin + _CHUNK, size)))
        temporary.replace(out)
        return len(slots)


def _header(slots: dict[str, Placed]) -> bytes:
    """The safetensors header of tensors that follow one another by name; padded so that the data are aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, slot in sorted(slots.items()):
        end = position + slot.entry.num_bytes
        header[name] = {"dtype": slot.entry.dtype, "shape": slot.entry.shape, "data_offsets": [position, end]}
        position = end
    data = msgspec.json.encode(header)
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data

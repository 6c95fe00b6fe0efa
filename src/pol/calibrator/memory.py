"""What an interrupted measurement has found, for the next call; in the folder of the runs, and not signed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pol.calibrator.deviation import Error
from pol.digest import Digest
from pol.errors import FormatError
from pol.store import write_atomically

Found = dict[str, dict[int, list[Error]]]
"""By condition and start, the errors at each rung."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    genesis: str
    found: Found
    left_out: dict[str, str]
    drawn: dict[int, str]


class Memory:
    """What was found of the run with a genesis; nothing, if the file is of another: that run was removed.

    Raises:
        FormatError: the file is not what this wrote.
    """

    def __init__(self, file: Path, genesis: Digest) -> None:
        self._file, self._genesis = file, genesis
        self.found: Found = {}
        self.left_out: dict[str, str] = {}
        """By condition, why it cannot be measured."""
        self.drawn: dict[int, str] = {}
        """By step, where a generator stood after it."""
        try:
            kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            raise FormatError(f"{file}: {error}; remove it to measure anew") from None
        if kept.genesis == genesis:
            self.found, self.left_out, self.drawn = kept.found, kept.left_out, kept.drawn

    def save(self) -> None:
        """Write all of it."""
        write_atomically(self._file, msgspec.json.encode(_Kept(self._genesis, self.found, self.left_out, self.drawn)))

"""Where in a recipe's own sources something was called from."""

from __future__ import annotations

import linecache
import re
import sys
from pathlib import Path
from types import FrameType

from pol.replay.sources import source_files

BACKWARD = "_engine_run_backward"
"""The function of torch through which every backward pass goes."""

_LINE = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)


class Places:
    """Finds the innermost line of a recipe's own sources on the stack."""

    def __init__(self, reference: str) -> None:
        self.files = source_files(reference)
        """Module name to file."""
        self._names = {str(path) for path in self.files.values()}
        self._known: dict[str, bool] = {}

    def is_own(self, file: str) -> bool:
        """Whether a code object's file is one of the recipe's."""
        if file not in self._known:
            self._known[file] = str(Path(file).resolve()) in self._names
        return self._known[file]

    def own_frames(self) -> list[FrameType]:
        """The frames of the recipe's code that are being executed, innermost first."""
        frame: FrameType | None = sys._getframe(1)
        found = []
        while frame is not None:
            if self.is_own(frame.f_code.co_filename):
                found.append(frame)
            frame = frame.f_back
        return found

    def find(self, frame: FrameType | None) -> tuple[str, str, list[FrameType]]:
        """(file:line, source line, the frames passed on the way), from ``frame`` outwards; empty if there is none."""
        passed: list[FrameType] = []
        while frame is not None:
            if self.is_own(frame.f_code.co_filename):
                return *describe(frame), passed
            passed.append(frame)
            frame = frame.f_back
        return "", "", passed

    def last_of(self, written: str) -> tuple[str, str] | None:
        """The same for a traceback as Python writes it: its innermost line that is the recipe's."""
        for file, line in reversed(_LINE.findall(written)):
            if self.is_own(file):
                return _named(file, int(line))
        return None


def describe(frame: FrameType) -> tuple[str, str]:
    """``file:line`` of a frame, and the source there."""
    return _named(frame.f_code.co_filename, frame.f_lineno)


def _named(file: str, line: int) -> tuple[str, str]:
    return f"{Path(file).name}:{line}", linecache.getline(file, line).strip()

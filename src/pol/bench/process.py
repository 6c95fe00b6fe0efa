"""What one process of the bench does: prepare a training, verify its honest proofs, meet an attack."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from pol.bench import preparing
from pol.bench.arena import Arena, Honest, Setting
from pol.bench.preparing import Part, Training
from pol.bench.result import Cell
from pol.errors import PolError
from pol.executors.local import LocalProcess, Processes
from pol.profile import Profile, environment

PROFILE = Profile(threads=1)
"""Of every training of a bench: what runs beside it does not slow it."""

Said = tuple[str, tuple[str, int, int | None]]
"""Who says how far he is."""


class _Tools:
    """What this process keeps from one question to the next. It ends with the process."""

    def __init__(self, said: SimpleQueue[Said]) -> None:
        self.said = said
        self.executor, self._audits = LocalProcess(PROFILE), Processes()
        with contextlib.suppress(PolError, OSError):  # which its first job will say
            self.executor.start()

    def arena(self, setting: Setting) -> Arena:
        """Where attacks on a setting meet the policies."""
        return Arena(setting, self.executor, self._audits)


_HERE: list[_Tools] = []


def start(said: SimpleQueue[Said], ending: Connection, scratch: Path) -> None:
    """Get this process ready, before it imports torch.

    Args:
        said: Where to say how far a task is.
        ending: This process ends when the other end is closed, by its parent or by the end of that.
        scratch: Folder for temporary files: it may end before it removes them.
    """
    threading.Thread(target=_end_with, args=(ending,), daemon=True).start()
    tempfile.tempdir = str(scratch)
    os.environ.update(environment(PROFILE) | {"PATH": os.environ.get("PATH", "")})
    _HERE.append(_Tools(said))


def _end_with(ending: Connection) -> None:
    ending.poll(None)
    os._exit(1)  # a pool's process would wait for work for ever, with children of its own


def prepare(training: Training, part: Part, who: str) -> float:
    """Make one part of what is attacked; the seconds that it took."""
    here = _HERE[0]
    return preparing.prepare(training, part, here.executor, PROFILE, lambda *far: here.said.put((who, far)))


def honest(setting: Setting) -> Honest:
    """What the policies say of the honest proofs."""
    return _HERE[0].arena(setting).honest()


def meet(setting: Setting, name: str) -> list[Cell]:
    """The cells of an attack, by its name or as ``path/to/file.py:name``."""
    from pol.attacks.registry import attack_named

    return _HERE[0].arena(setting).meet(attack_named(name))

"""Contents of states, boundary after boundary: what cannot have changed since the last one is not hashed again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from pol.digest import blake3_bytes
from pol.errors import ReplayError, Unsure
from pol.replay.state import State
from pol.replay.tensors import content_digest, device_digests
from pol.replay.views import LARGE, Views, layout
from pol.statetree import Entry

LOOKS = 3
"""Boundaries at which a tensor must not have changed before it is trusted: as many as the control run has steps."""


@dataclass
class _Known:
    """A tensor as it was at the last boundary."""

    tensor: weakref.ref[torch.Tensor]
    mark: tuple[Any, ...]
    content: bytes
    looks: int = 0
    """How often it was found unchanged; -1 when it changed without torch's counting it."""
    counted_on: bool = False
    """Whether it was taken to be the same since it was hashed last."""

    def is_still(self, tensor: torch.Tensor) -> bool:
        return self.tensor() is tensor and self.mark == _mark(tensor)


class Digests:
    """BLAKE3-256 of the entries of a training's states.

    Torch counts what is written into a tensor. A large one that it did not count for some boundaries, and that was
    the same, is taken to be the same until a state is kept; then everything is hashed. Some ways of writing are not
    counted (``.data``, numpy): where they come early the tensor is never trusted, and where they come late the
    recording stops before that state is kept. If such a tensor is written in a way that is counted before then, nobody
    can see any more whether it had been the same: the steps since the last kept state are taken again.

    What is changed in a way that is not counted, and changed back before a state is kept, is not noticed.
    """

    def __init__(self, *, trust: bool) -> None:
        """``trust``: else everything is hashed every time, as in replays."""
        self._trust = trust
        self._known: dict[str, _Known] = {}
        self._views = Views()
        self.settled: set[str] = set()
        """Keys of the last boundary that need no look for values which no proof holds: not hashed again, or finite."""

    def count_on_nothing(self) -> None:
        """From now on everything is hashed every time."""
        self._trust = False

    def of(self, state: State, *, kept: bool) -> list[tuple[Entry, bytes]]:
        """Entries in the order of the state tree, with the digests of their contents.

        Raises:
            ReplayError: a tensor was changed, and earlier records took it to be the same.
            Unsure: it may have been, but was written in another way since.
        """
        self.settled = set()
        there = device_digests(state.tensors)
        found = []
        for seen in self._views.of(state):
            entry = seen.entry
            if seen.view is None:
                # Hashed at once, on a GPU: looking whether it is the same would take longer.
                content = there.get(entry.key) or self._content(entry.key, seen.tensor, kept=kept)
            else:
                content = blake3_bytes(seen.view)
                if seen.is_finite():
                    self.settled.add(entry.key)
            found.append((entry, content))
        return found

    def _content(self, key: str, tensor: torch.Tensor, *, kept: bool) -> bytes:
        if not self._trust or tensor.nbytes < LARGE:  # 64 KiB are hashed in ten microseconds, what looking costs
            return content_digest(tensor)
        known = self._known.get(key)
        if known is None or not known.is_still(tensor):
            content, looks = content_digest(tensor), -1 if known is not None and known.looks < 0 else 0
            if known is not None and known.counted_on and content != known.content:
                raise Unsure(
                    f"{_said(key)} was written after boundaries at which it was taken to be the same: the steps since "
                    "the last kept state are to be recorded again, counting on nothing"
                )
            self._known[key] = _Known(weakref.ref(tensor), _mark(tensor), content, looks)
            return content
        trusted = known.looks >= LOOKS
        if trusted and not kept:
            self.settled.add(key)
            known.counted_on = True
            return known.content
        content = content_digest(tensor)
        if content != known.content:
            if trusted:
                raise ReplayError(
                    f"{_said(key)} was changed in a way that torch does not count (.data, numpy), so the "
                    "records since the last kept state may be wrong. Resume: a recording that was taken up again "
                    "counts on nothing. Or write with torch.no_grad() instead"
                )
            known.looks, known.content = -1, content
        elif known.looks >= 0:
            known.looks += 1
        known.counted_on = False
        return content


def _said(key: str) -> str:
    return key.replace("/", " ", 1)


def _mark(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor._version, *layout(tensor)

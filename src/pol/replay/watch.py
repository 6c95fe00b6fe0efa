"""What a program does behind the Run's back while it takes steps: reads of clocks, fresh randomness, other loaders.

Between ``attach`` and the end of a program, and outside of ``run.aside()``:

- a ``torch.utils.data.DataLoader`` that is iterated is refused, because its batches would be in no record; in every
  run, since it costs nothing;
- reads of a clock, or of randomness that nobody can give again, are noticed with their place in the recipe's own
  code: in the control run and by the doctor, since it takes a callback at every call. Clocks can also be put forward.
"""

from __future__ import annotations

import contextlib
import linecache
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any, Literal, NoReturn

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from pol.errors import UsageError
from pol.replay import clocks
from pol.replay.places import Places, describe
from pol.traces import Note

MAX_NOTES = 1000
"""Most notes that are kept, of all steps."""

MAX_NOTICED = 32
"""Places that are told: whoever has read that many will look for the rest."""

# --- the program that is being driven


@dataclass
class _Now:
    """Where the program is that this process drives."""

    attached: bool = False
    aside: int = 0
    """How many contexts are open in which it may do as it likes."""
    ours: int = 0
    """How many contexts are open in which the run itself makes an iterator."""
    step: int | None = None
    fetching: bool = False
    watch: Watch | None = None

    @property
    def free(self) -> bool:
        """Whether nothing that the program does now is part of a step."""
        return self.aside > 0 or not self.attached


_now = _Now()
_waiting: list[Watch] = []


@contextlib.contextmanager
def driving() -> Iterator[None]:
    """Around one entry of a program: refuses loaders of its own after ``attached()``."""
    global _now
    before, _now = _now, _Now(watch=_waiting[-1] if _waiting else None)
    iterate, following = DataLoader.__iter__, _BaseDataLoaderIter.__next__
    DataLoader.__iter__ = _guarded_iter(iterate)  # type: ignore[method-assign]
    _BaseDataLoaderIter.__next__ = _guarded_next(following)  # type: ignore[method-assign, assignment]
    profiler = sys.getprofile()
    if _now.watch and _now.watch.everywhere:
        _now.watch.begin()
    try:
        yield
    finally:
        if _now.watch:
            sys.setprofile(profiler)
            clocks.put_forward(0)
        DataLoader.__iter__ = iterate  # type: ignore[method-assign]
        _BaseDataLoaderIter.__next__ = following  # type: ignore[method-assign]
        _now = before


def attached() -> None:
    """The program has attached its parts: from now on it is watched."""
    _now.attached = True
    if _now.watch:
        _now.watch.begin()


def at(step: int, *, fetching: bool) -> None:
    """The program has come to this step: its data is asked for a batch, or what follows is done with one."""
    _now.step, _now.fetching = step, fetching


def stepping() -> bool:
    """Whether what the program does now is part of a step."""
    return not _now.free


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """A context in which the program may do as it likes."""
    _now.aside += 1
    try:
        yield
    finally:
        _now.aside -= 1


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """A context in which the run makes an iterator of a ``DataLoader``, which may be used outside of it as well.

    Never yield to the program inside of it: it would have leave to make iterators of its own.
    """
    _now.ours += 1
    try:
        yield
    finally:
        _now.ours -= 1


def _guarded_iter(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def __iter__(loader: Any) -> Any:
        if not (_now.free or _now.ours):
            _refuse_loader()
        iterator = original(loader)
        iterator._of_the_run = _now.ours > 0
        return iterator

    return __iter__


def _guarded_next(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def __next__(iterator: Any) -> Any:
        if not (_now.free or _now.ours or getattr(iterator, "_of_the_run", False)):
            _refuse_loader()  # made before attach() or in an aside, and consumed after it
        return original(iterator)

    return __next__


def _refuse_loader() -> NoReturn:
    raise UsageError(
        f"the program takes batches at {_where()} from a torch DataLoader that the run does not know, so they would be "
        "in no record: iterate over run.loader(loader) or run.batches(...), and evaluate inside run.aside()"
    )


def _where() -> str:
    """The innermost line of the recipe on the stack; where nobody knows what is the recipe's, of no module of torch."""
    frame: FrameType | None = sys._getframe(1)
    place = _now.watch.places.find(frame)[0] if _now.watch else ""
    while not place and frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name != __name__ and name.partition(".")[0] != "torch":
            place, _ = describe(frame)
        frame = frame.f_back
    return place


# --- what is noticed

_CLOCK_CALLS = {
    **{("time", name): f"time.{name}" for name in clocks.COUNTING},
    **{("datetime", name): f"datetime.{name}" for name in ("now", "utcnow", "today")},
    ("date", "today"): "date.today",
}
_ENTROPY_CALLS = {
    **{(owner, name): f"os.{name}" for owner in ("posix", "nt") for name in ("urandom", "getrandom")},
    ("Generator", "seed"): "torch.Generator.seed",
    ("_uuid", "generate_time_safe"): "uuid.uuid1",
}
_NAMES = {name for _, name in (*_CLOCK_CALLS, *_ENTROPY_CALLS)}
_SEEDED_STATE = re.compile(r"\bRandomState\((?!\s*\)|\s*(seed\s*=\s*)?None\b)")
_SEED = random.Random.seed.__code__
_FRONTS = (clocks.__name__, "time", "datetime", "_pydatetime", "_strptime")
"""Modules through which code reads a clock itself. What a library does with one of its own (a progress bar, a
compiler's statistics) is not the recipe's."""
_UNRELATED = ("tempfile", "multiprocessing", "importlib", "pol", "subprocess", "socket", "email", "asyncio")
"""Modules that draw fresh randomness for names and keys of connections."""


class Watch:
    """Notices what a recipe reads; ``everywhere``: before ``attach`` and in asides, too."""

    def __init__(self, places: Places, *, everywhere: bool = False) -> None:
        self.places, self.everywhere = places, everywhere
        self._notes: dict[tuple[Any, ...], Note] = {}
        self._shifted = False

    @property
    def notes(self) -> list[Note]:
        """What was read in which step, in the order in which it was."""
        return list(self._notes.values())

    @property
    def noticed(self) -> list[Note]:
        """The first note of each place."""
        found: dict[tuple[str, str], Note] = {}
        for note in self._notes.values():
            found.setdefault((note.kind, note.place), note)
        return list(found.values())[:MAX_NOTICED]

    @contextlib.contextmanager
    def watching(self, *, shifted: bool = False) -> Iterator[None]:
        """Watch the programs that are entered in this context; ``shifted``: with clocks put forward at ``attach``.

        Not before: a program that measures how long it has run would not see it.
        """
        self._shifted = shifted
        _waiting.append(self)
        try:
            yield
        finally:
            _waiting.pop()

    def begin(self) -> None:
        """From here on."""
        clocks.put_forward(clocks.SHIFT if self._shifted else 0)
        sys.setprofile(self._called)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            if getattr(argument, "__name__", None) in _NAMES:
                self._read(frame, argument)
        elif event == "call" and frame.f_code is _SEED and _is_unseeded(frame):
            self._note("entropy", "random.seed", frame)

    def _read(self, frame: FrameType, function: Any) -> None:
        owner = getattr(function, "__self__", None)
        named = owner if isinstance(owner, type | ModuleType) else type(owner)
        key = (named.__name__, function.__name__)
        if call := _CLOCK_CALLS.get(key):
            self._note("clock", call, frame)
        elif call := _ENTROPY_CALLS.get(key):
            self._read_entropy(call, frame)

    def _read_entropy(self, call: str, frame: FrameType) -> None:
        caller: FrameType | None = frame
        while caller is not None and caller.f_globals.get("__name__") in ("random", "secrets", "uuid"):
            caller = caller.f_back
        # numpy seeds a RandomState afresh before it seeds it as it was told, and leaves no frame that says so.
        if caller is None or not _SEEDED_STATE.search(linecache.getline(caller.f_code.co_filename, caller.f_lineno)):
            self._note("entropy", call, frame)

    def _note(self, kind: Literal["clock", "entropy"], call: str, frame: FrameType | None) -> None:
        """Keep the place, if it is the recipe's own code that reads."""
        if _now.aside and not self.everywhere:
            return
        while frame is not None and not self.places.is_own(frame.f_code.co_filename):
            name = str(frame.f_globals.get("__name__"))
            top = name.partition(".")[0]
            if top in _UNRELATED and name != clocks.__name__:
                return
            if kind == "clock" and name not in _FRONTS:
                return
            if top == "torch" and name != "torch.random":
                return
            frame = frame.f_back
        if frame is None or len(self._notes) >= MAX_NOTES:
            return
        place, line = describe(frame)
        note = Note(kind=kind, call=call, place=place, line=line, step=_now.step, fetching=_now.fetching)
        self._notes.setdefault((kind, call, place, _now.step, _now.fetching), note)


def _is_unseeded(frame: FrameType) -> bool:
    return frame.f_locals.get(frame.f_code.co_varnames[1]) is None

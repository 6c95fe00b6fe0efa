"""Several questions at a time, each in a process of its own, and what is finished kept.

A training is prepared in parts; then its honest proofs are verified and attacks meet the policies. Trainings go beside
one another: while one is prepared, attacks on another are made.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import msgspec

from pol.bench import arena, preparing, process
from pol.bench.arena import Honest, Progress, Setting
from pol.bench.preparing import Part, Prepared, Training
from pol.bench.process import Said
from pol.bench.result import Cell
from pol.bench.suite import columns
from pol.errors import ReplayError
from pol.store import write_atomically

PACKAGE = Path(__file__).parents[1]

POLL_SECONDS = 0.1
"""How often the processes are asked how far they are."""


class Kept:
    """Cells of finished attacks in a folder, by question: recipe, arguments, budget, and all code that answers it."""

    def __init__(self, folder: Path, question: list[Any], files: Sequence[Path] = ()) -> None:
        sources = [*sorted(PACKAGE.rglob("*.py")), *sorted(PACKAGE.rglob("*.toml")), *map(Path, files)]
        code = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sources))
        code.update(msgspec.json.encode(question))
        self._folder, self._question = folder, code.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def reference(self) -> Path:
        """The calibration file of the question."""
        return self._folder / f"{self._question}.calibration.json"

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._question}.{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"

    def get(self, name: str) -> list[Cell] | None:
        """The cells of an attack, if they are there."""
        path = self._path(name)
        return msgspec.json.decode(path.read_bytes(), type=list[Cell]) if path.exists() else None

    def put(self, name: str, cells: list[Cell]) -> None:
        """Keep the cells of an attack."""
        write_atomically(self._path(name), msgspec.json.encode(cells))


@dataclass(frozen=True)
class Question:
    """What one process is to do, and what becomes of the answer."""

    what: str
    """For people."""
    ask: Callable[[], Any]
    """A function of ``process``, with its arguments."""
    take: Callable[[Any], None]
    killed: Callable[[], None]
    """What becomes of it if it is asked alone and its process is killed."""


@dataclass
class Trial:
    """One training and the attacks on it, as far as they are. Cells of attacks that broke are not kept."""

    training: Training
    names: Sequence[str]
    kept: Kept
    seconds: dict[Part, float] = field(default_factory=dict)
    """What each part that is prepared took."""
    prepared: Prepared | None = None
    honest: Honest | None = None
    found: dict[str, list[Cell]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found |= {name: cells for name in self.names if (cells := self.kept.get(name)) is not None}

    def missing(self) -> list[Question]:
        """What can be asked now: what forges most often takes longest, and comes first, so that nobody waits for it."""
        from pol.attacks.registry import attack_named

        if self.prepared is None:
            return [self._part(part) for part in preparing.PARTS if part not in self.seconds]
        policies = columns(self.setting.delta).values()
        left = [name for name in self.names if name not in self.found]
        left.sort(key=lambda name: -len({attack_named(name).forges_for(policy) for policy in policies}))
        return [*([] if self.honest else [self._verified()]), *map(self._attack, left)]

    def _part(self, part: Part) -> Question:
        what = f"{self.training.recipe.rpartition(':')[2]}, {part}"

        def take(seconds: float) -> None:
            self.seconds[part] = seconds
            if len(self.seconds) == len(preparing.PARTS):
                self.prepared = preparing.prepared(self.training, process.PROFILE, self.seconds)

        return Question(what, partial(process.prepare, self.training, part, what), take, partial(_fail, "prepared it"))

    def _verified(self) -> Question:
        def take(honest: Honest) -> None:
            self.honest = honest

        ask = partial(process.honest, self.setting)
        return Question("honest", ask, take, partial(_fail, "verified the honest proofs"))

    def _attack(self, name: str) -> Question:
        def take(cells: list[Cell]) -> None:
            self.found[name] = cells
            if not any(cell.broken for cell in cells):
                self.kept.put(name, cells)

        def killed() -> None:
            from pol.attacks.registry import attack_named

            why = arena.NoForgery("its process was killed (out of memory?)", broken=True)
            take([arena.without(attack_named(name), policy, why) for policy in columns(self.setting.delta)])

        return Question(name, partial(process.meet, self.setting, name), take, killed)

    @property
    def setting(self) -> Setting:
        """What is attacked, when it is prepared."""
        assert self.prepared is not None
        return self.prepared.setting


def _fail(what: str) -> None:
    raise ReplayError(f"the process that {what} was killed (out of memory?)")


def run(trials: Sequence[Trial], jobs: int, tell: Progress) -> None:
    """Answer all that is missing.

    Raises:
        ReplayError: a process that prepared a training or verified its honest proofs was killed.
    """
    if _answer(trials, jobs, tell):
        return
    # A process that is killed takes the others of its pool with it: each question by itself, then.
    while left := [(trial, question) for trial in trials for question in trial.missing()]:
        if not _answer(trials, 1, tell, left[0]):
            left[0][1].killed()


def _answer(trials: Sequence[Trial], jobs: int, tell: Progress, only: tuple[Trial, Question] | None = None) -> bool:
    """Put one question, or all and what follows from their answers, to processes; whether none was killed."""
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    said, (ending, going) = context.SimpleQueue(), context.Pipe(duplex=False)
    waiting: dict[Future[Any], tuple[Trial, Question]] = {}
    with ProcessPoolExecutor(jobs, context, process.start, (said, ending)) as pool:
        try:
            for trial, question in [only] if only else [(one, what) for one in trials for what in one.missing()]:
                waiting[pool.submit(question.ask)] = trial, question
            while waiting:
                done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                _tell(trials, [question.what for _, question in waiting.values()], said, tell)
                for future in done:
                    trial, question = waiting.pop(future)
                    before = trial.prepared
                    question.take(future.result())
                    if trial.prepared is not before and not only:
                        waiting |= {pool.submit(one.ask): (trial, one) for one in trial.missing()}
        except BrokenProcessPool:
            return False
        finally:
            going.close()  # and the processes end, whatever they are at
    return True


def _tell(trials: Sequence[Trial], waiting: Sequence[str], said: SimpleQueue[Said], tell: Progress) -> None:
    """Say how far all is; of parts that are prepared beside one another, the first."""
    prepared = any(trial.prepared for trial in trials)
    while not said.empty():
        who, (phase, done, total) = said.get()
        if who == waiting[0] and not prepared:
            tell(phase and f"{who}: {phase}", done, total)
    if prepared:
        tell("attacking", sum(len(one.found) for one in trials), sum(len(one.names) for one in trials))

"""Several tasks at a time, each in a process of its own, and what is finished kept.

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
class Task:
    """What one process is to do, and what becomes of the answer."""

    what: str
    """Its name in what is said of it."""
    do: Callable[[], Any]
    """A function of ``process``, with its arguments."""
    take: Callable[[Any], None]
    killed: Callable[[], None]
    """What becomes of it if it is alone, and its process is killed."""


@dataclass
class Round:
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

    def missing(self) -> list[Task]:
        """What can be done now: what forges most often takes longest, and comes first, so that nobody waits for it."""
        if self.prepared is None:
            return [self._part(part) for part in preparing.PARTS if part not in self.seconds]
        left = [(self._forgeries(name), name) for name in self.names if name not in self.found]
        left.sort(key=lambda one: -one[0])
        return [*([] if self.honest else [self._verified()]), *(self._attack(name) for _, name in left)]

    @property
    def setting(self) -> Setting:
        """What is attacked, when it is prepared."""
        assert self.prepared is not None
        return self.prepared.setting

    @property
    def _name(self) -> str:
        return self.training.recipe.rpartition(":")[2]

    def _forgeries(self, name: str) -> int:
        from pol.attacks.registry import attack_named

        attack = attack_named(name)
        return len({attack.forges_for(policy) for policy in columns(self.setting.delta).values()})

    def _part(self, part: Part) -> Task:
        what = f"{self._name}, {part}"

        def take(seconds: float) -> None:
            self.seconds[part] = seconds
            if len(self.seconds) == len(preparing.PARTS):
                self.prepared = preparing.prepared(self.training, process.PROFILE, self.seconds)

        do = partial(process.prepare, self.training, part, what)
        return Task(what, do, take, partial(_fail, f"prepared {what}"))

    def _verified(self) -> Task:
        def take(honest: Honest) -> None:
            self.honest = honest

        what = f"verified the honest proofs of {self._name}"
        return Task("honest", partial(process.honest, self.setting), take, partial(_fail, what))

    def _attack(self, name: str) -> Task:
        def take(cells: list[Cell]) -> None:
            self.found[name] = cells
            if not any(cell.broken for cell in cells):
                self.kept.put(name, cells)

        def killed() -> None:
            from pol.attacks.registry import attack_named

            why = arena.NoForgery("its process was killed (out of memory?)", broken=True)
            take([arena.without(attack_named(name), policy, why) for policy in columns(self.setting.delta)])

        return Task(name, partial(process.meet, self.setting, name), take, killed)


def _fail(what: str) -> None:
    raise ReplayError(
        f"the process that {what} was killed. If this machine ran out of memory, free some, or give --jobs 1; with "
        "--out DIR, the same command goes on where it was"
    )


def run(rounds: Sequence[Round], scratch: Path, jobs: int, tell: Progress) -> None:
    """Do all that is missing.

    Args:
        rounds: What is to be done. All of it is done beside one another.
        scratch: Folder for what processes write in passing; whoever gave it removes it, whatever became of them.
        jobs: Processes.
        tell: Told how far it is.

    Raises:
        PolError: a training cannot be prepared.
        ReplayError: a process that prepared one or verified its honest proofs was killed.
    """
    if _do(rounds, scratch, jobs, tell):
        return
    # A process that is killed takes the others of its pool with it: each task by itself, then.
    while left := [(one, task) for one in rounds for task in one.missing()]:
        if not _do(rounds, scratch, 1, tell, left[0]):
            left[0][1].killed()


def _do(
    rounds: Sequence[Round], scratch: Path, jobs: int, tell: Progress, only: tuple[Round, Task] | None = None
) -> bool:  # fmt: skip
    """Give one task, or all and what follows from them, to processes; whether none of these was killed."""
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    said, (ending, going) = context.SimpleQueue(), context.Pipe(duplex=False)
    first = [only] if only else [(one, task) for one in rounds for task in one.missing()]
    with ProcessPoolExecutor(jobs, context, process.start, (said, ending, scratch)) as pool:
        try:
            waiting: dict[Future[Any], tuple[Round, Task]] = {pool.submit(task.do): (one, task) for one, task in first}
            while waiting:
                done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                for future in sorted(done, key=_failed):  # answers first: they are kept
                    one, task = waiting.pop(future)
                    before = one.prepared
                    task.take(future.result())
                    if one.prepared is not before and not only:
                        waiting |= {pool.submit(task.do): (one, task) for task in one.missing()}
                _tell(rounds, [task.what for _, task in waiting.values()], said, tell)
        except BrokenProcessPool:
            return False
        finally:
            going.close()  # and the processes end, whatever they are at
    return True


def _failed(future: Future[Any]) -> bool:
    return future.exception() is not None


def _tell(rounds: Sequence[Round], waiting: Sequence[str], said: SimpleQueue[Said], tell: Progress) -> None:
    """Say how far all is; of parts that are prepared beside one another, the first."""
    prepared = any(one.prepared for one in rounds)
    while not said.empty():
        who, (phase, done, total) = said.get()
        if not prepared and waiting and who == waiting[0]:
            tell(phase and f"{who}: {phase}", done, total)
    if prepared:
        tell("attacking", sum(len(one.found) for one in rounds), sum(len(one.names) for one in rounds))

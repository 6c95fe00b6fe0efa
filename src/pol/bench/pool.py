"""Several attacks at a time, each in a process of its own, and what is finished kept."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import msgspec

from pol.bench import arena
from pol.bench.arena import Honest, Progress, Setting
from pol.bench.result import Cell
from pol.bench.suite import columns
from pol.errors import ReplayError
from pol.store import write_atomically

PACKAGE = Path(__file__).parents[1]


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


def meet_all(
    setting: Setting, names: Sequence[str], kept: Kept, jobs: int, tell: Progress
) -> tuple[Honest, dict[str, list[Cell]]]:
    """What the policies say of the honest proofs, and the cells of all attacks.

    Cells that are kept are not made again; those of attacks that broke are not kept.

    Raises:
        ReplayError: the process that verified the honest proofs was killed.
    """
    from pol.attacks.registry import attack_named

    found = {name: cells for name in names if (cells := kept.get(name)) is not None}
    honest: list[Honest] = []
    tell("attacking", len(found), len(names))

    def take(name: str | None, answer: Any) -> None:
        if name is None:
            honest.append(answer)
            return
        found[name] = answer
        if not any(cell.broken for cell in answer):
            kept.put(name, answer)
        tell("attacking", len(found), len(names))

    def missing() -> list[str | None]:
        """None: the honest proofs. What spends all that it is given takes longest, so nobody waits for it alone."""
        left = sorted((name for name in names if name not in found), key=lambda name: not attack_named(name).bound)
        return [*([] if honest else [None]), *left]

    _run(setting, missing(), jobs, take)
    for name in missing():  # a process that is killed takes the others of its pool with it: each by itself, then
        if _run(setting, [name], 1, take):
            continue
        if name is None:
            raise ReplayError("the process that verified the honest proofs was killed (out of memory?)")
        killed = arena.NoForgery("its process was killed (out of memory?)", broken=True)
        take(name, [arena.without(attack_named(name), policy, killed) for policy in columns(setting.delta)])
    return honest[0], found


def _run(setting: Setting, names: Sequence[str | None], jobs: int, take: Callable[[str | None, Any], None]) -> bool:
    """Let attacks meet the policies, each in one of some processes; whether none of these was killed."""
    if not names:
        return True
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(min(jobs, len(names)), context, arena.start, (setting,)) as pool:
        waiting: dict[Future[Any], str | None] = {
            pool.submit(arena.honest) if name is None else pool.submit(arena.meet, name): name for name in names
        }
        try:
            for done in as_completed(waiting):
                take(waiting[done], done.result())
        except BrokenProcessPool:
            return False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return True

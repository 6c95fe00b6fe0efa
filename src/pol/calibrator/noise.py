"""Honest noise and small forgeries: the steps of one run, taken again under each condition from some of its states.

The run is recorded step by step, with few states. Those at the rungs are taken again first, on the run's own platform,
and are what the log says, or nothing here means anything. With them every other replay is compared.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pol import canonical, seeds
from pol.auditor import LocalAuditor
from pol.calibrator.conditions import Condition, conditions, other_seed, write_order
from pol.calibrator.deviation import SKIP, Ends, Error, Uncovered, forged_error, honest_error, uncovered
from pol.calibrator.memory import Memory
from pol.calibrator.trainer import Run, ladder
from pol.checkpoint import Checkpoint, content_of, read_entries
from pol.digest import Digest
from pol.errors import FormatError, IntegrityError, ReplayError
from pol.executors.local import Executor
from pol.interval import Interval, Momenta
from pol.messages import EventType, Failed, Opened, Recorded, Segment, Stepped
from pol.proof.attestation import MAX_JOURNAL, Journal
from pol.proof.genesis import Secret, genesis_digest, registered
from pol.proof.log import Log, counts_after, parse_log, root_after
from pol.proof.noise import FLOAT64, Replays
from pol.prover import Progress
from pol.statetree import StateRoot, state_root
from pol.store import JOURNAL, LOG, MAX_LOG_FILE, SECRET, ProofDirectory, checkpoint_path
from pol.verifier.carrying import Carrying


class NoiseMeter:
    """Measures the noise of one run, or goes on with measuring it."""

    def __init__(
        self, reference: str, settings: dict[str, Any] | None, run: Run, most: int, executor: Executor | None,
        tell: Progress,
    ) -> None:  # fmt: skip
        self._reference, self._settings, self._executor, self._tell = reference, settings, executor, tell
        self.run, self._store = run, ProofDirectory(run.folder)
        self.log: Log = parse_log(self._store.read(LOG, MAX_LOG_FILE))
        self._steps, self._most = run.genesis.spec.steps, most
        self.rungs = ladder(most, self._steps)
        self._secret = bytes.fromhex(
            canonical.decode(self._store.read(SECRET, 1024), Secret, what=SECRET, limit=1024).r
        )
        journal = canonical.decode(self._store.read(JOURNAL, MAX_JOURNAL), Journal, what=JOURNAL, limit=MAX_JOURNAL)
        self._seed = seeds.derive_seed(self._name(), bytes.fromhex(journal.beacon.value), self._secret)
        self._carrying = Carrying(run.genesis.spec.declaration, self.log.intervals)
        self._conditions = conditions(run.genesis)
        self._kept = Memory(run.folder.parent / "noise.json", self._name())
        self._states = run.folder.parent / "states"
        self._states.mkdir(exist_ok=True)
        self._told = 0
        self._failed: dict[str, str] = {}
        """Conditions that this time did not work, with why; another time may have more memory."""

    def measure(self) -> tuple[list[Replays], list[Replays], dict[str, list[list[Error]]]]:
        """Take the steps again under every condition, as far as that is not done: honest ones, cheats, and all by name.

        Raises:
            ReplayError: the steps cannot be taken on one of the platforms, or not even on the run's own.
            UsageError: what is not floating point depends on the platform.
        """
        with LocalAuditor(self._reference, self._settings, self._executor) as auditor:
            self._take_states(auditor)
            for number, condition in enumerate(self._conditions, start=1):
                self._told = number * self._length(self.run.starts)
                self._take(auditor, condition)
        errors = {
            name: [found[start] for start in self.run.starts] for name, found in self._kept.found.items() if found
        }
        honest, cheats = (
            [self._replays(one, errors) for one in self._conditions if one.honest is wanted] for wanted in (True, False)
        )
        return honest, cheats, errors

    def _replays(self, condition: Condition, errors: dict[str, list[list[Error]]]) -> Replays:
        why = self._kept.left_out.get(condition.name) or self._failed.get(condition.name)
        found = [] if why else [[error.seen for error in row] for row in errors[condition.name]]
        return Replays(name=condition.name, profile=condition.profile, left_out=why, found=found)

    def state(self, step: int) -> Checkpoint:
        """The recorded state at a start or a rung."""
        if step in self.run.steps:
            return self.run.state(step)
        return Checkpoint.at(self._states / f"{step:012d}.safetensors")

    # -- replaying ------------------------------------------------------------------------------------------------

    def _take_states(self, auditor: LocalAuditor) -> None:
        """The recorded states at the rungs, taken again where the run itself ran."""
        own = Condition("the run's own flags", self.run.genesis.profile, True)
        self._told = 0
        todo = [start for start in self.run.starts if not self._has_states(start)]
        with self._folder() as folder:
            for event in self._replay(auditor, own, todo, folder):
                found = event.interval
                if found.root != self.log.intervals[found.start].root:
                    raise ReplayError(
                        f"step {found.start}, taken again on this machine with the run's own flags, ends in another "
                        f"state than was recorded. pol doctor finds out why. {SKIP}"
                    )
                self._kept.drawn[found.stop] = event.drawn
                if (saved := folder / f"{found.stop:012d}.safetensors").exists():
                    saved.replace(self._states / saved.name)
            self._kept.save()

    def _has_states(self, start: int) -> bool:
        window = range(start + 1, self._stop(start) + 1)
        return all(step in self._kept.drawn for step in window) and all(
            (self._states / f"{start + rung:012d}.safetensors").exists() and self._is_recorded(start + rung)
            for rung in self.rungs
            if start + rung in window
        )

    def _is_recorded(self, step: int) -> bool:
        store, name = ProofDirectory(self._states), f"{step:012d}.safetensors"
        try:
            root = state_root((slot.entry, content_of(store, name, slot)) for slot in read_entries(store, name))
        except FormatError:
            return False
        return root == self._root(step)

    def _take(self, auditor: LocalAuditor, condition: Condition) -> None:
        have = self._kept.found.setdefault(condition.name, {})
        if condition.left_out is not None:
            self._kept.left_out[condition.name] = condition.left_out
        if condition.name in self._kept.left_out:
            return
        try:
            self._errors(auditor, condition, have)
        except (ReplayError, Uncovered) as error:
            if condition.profile != self.run.genesis.profile and condition.honest:
                raise
            # Another arithmetic is not for every recipe, nor is every cheat. What a step was given is the recipe's; an
            # error may be of this machine and this hour (no memory), and is not kept.
            left = self._kept.left_out if isinstance(error, Uncovered) else self._failed
            left[condition.name] = str(error).removesuffix(f". {SKIP}")[:2048]
            have.clear()
        self._kept.save()

    def _errors(self, auditor: LocalAuditor, condition: Condition, have: dict[int, list[Error]]) -> None:
        todo = [start for start in self.run.starts if start not in have]
        self._told += self._length(have)
        with self._folder() as folder:
            rows: list[Error] = []
            pairs: list[tuple[Interval, Interval]] = []
            for event in self._replay(auditor, condition, todo, folder):
                found = event.interval
                start = found.start - found.start % self._most
                pairs.append((self.log.intervals[found.start], found))
                self._check_step(condition, *pairs[-1], event.drawn)
                if found.stop - start in self.rungs:
                    rows.append(self._error(condition, start, pairs, event.momenta, folder))
                if found.stop == self._stop(start):
                    have[start], rows, pairs = rows, [], []
                    self._kept.save()
        if len(have) < len(self.run.starts):
            raise ReplayError("the training process ended early")

    def _check_step(self, condition: Condition, recorded: Interval, found: Interval, drawn: str) -> None:
        if not condition.honest:
            return
        if other := uncovered(found, recorded):
            raise Uncovered(
                f"step {found.start} with {condition.name}: other {other} than recorded. What a step is given depends "
                f"on the platform, and no tolerance covers that; use rule exact. {SKIP}"
            )
        if condition.name == FLOAT64 and drawn != self._kept.drawn[found.stop]:
            raise Uncovered("its steps draw other random numbers in that type")

    def _error(
        self, condition: Condition, start: int, pairs: list[tuple[Interval, Interval]], momenta: Momenta, folder: Path
    ) -> Error:
        recorded, found = pairs[-1]
        path = folder / f"{found.stop:012d}.safetensors"
        ends = Ends(
            start=self.state(start),
            recorded=self.state(found.stop),
            replayed=Checkpoint.at(path),
            step=found.stop,
            losses=(_mean(one for one, _ in pairs), _mean(one for _, one in pairs)),
            momenta=momenta,
            equal=found.root == recorded.root,
            name=condition.name,
        )
        try:
            return (honest_error if condition.honest else forged_error)(ends, self._carrying)
        finally:
            path.unlink()

    def _replay(
        self, auditor: LocalAuditor, condition: Condition, starts: list[int], folder: Path
    ) -> Iterator[Recorded]:
        """Each step as it is taken again."""
        if not starts:
            return
        genesis, order = self.run.genesis, None
        if condition.order is not None:
            order = folder / "order.bin"
            windows = [(start, self._stop(start)) for start in starts]
            write_order(order, genesis, self._seed, windows, condition.order)
        saved = [start + rung for start in starts for rung in self.rungs if start + rung <= self._stop(start)]
        seed = other_seed(self._seed) if condition.redrawn else self._seed
        events = auditor.replay(
            condition.profile, genesis.recipe.configuration, seed,
            registered(genesis, self._secret), list(map(self._segment, starts)), seeds.salt_key(self._secret),
            order=order, save=folder, saved=saved, unlike=condition.unlike,
        )  # fmt: skip
        yield from self._steps_of(events, condition)

    def _steps_of(self, events: Iterator[EventType], condition: Condition) -> Iterator[Recorded]:
        total = (len(self._conditions) + 1) * self._length(self.run.starts)
        before, done = self._told, 0
        self._tell("measuring noise", before, total)
        for event in events:
            match event:
                case Opened(step=step, root=root):
                    if root != self._root(step):
                        raise IntegrityError(
                            f"{self.run.folder / checkpoint_path(step)} loads as another state than was recorded: "
                            f"remove {self.run.folder} to train it anew"
                        )
                case Recorded():
                    done += 1
                    yield event
                case Stepped(step=step):
                    self._tell("measuring noise", before + step, total)
                case Failed(message=message):
                    raise ReplayError(
                        f"taking steps again with {condition.name}: {message}. {SKIP}"
                        if condition.profile != self.run.genesis.profile
                        else message
                    )
        self._tell("measuring noise", before + done, total)

    def _length(self, starts: Iterable[int]) -> int:
        return sum(self._stop(start) - start for start in starts)

    def _stop(self, start: int) -> int:
        return min(start + self._most, self._steps)

    def _segment(self, start: int) -> Segment:
        return Segment(
            start=start,
            stop=self._stop(start),
            checkpoint=str(self.run.folder / checkpoint_path(start)),  # not built again: other kernels may
            counts=counts_after(self.log, self.run.genesis.spec, start),  # draw other first weights
        )

    def _root(self, step: int) -> StateRoot:
        return root_after(self.log, self.run.genesis.spec, step)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """An empty folder beside the runs, so that states are moved and not copied."""
        with tempfile.TemporaryDirectory(dir=self._states.parent, prefix="replay-") as made:
            yield Path(made)

    def _name(self) -> Digest:
        return genesis_digest(self.run.genesis)


def _mean(intervals: Iterable[Interval]) -> float | None:
    """Mean loss over steps that were not skipped."""
    losses = [float(one.loss) for one in intervals if one.loss is not None]
    return math.fsum(losses) / len(losses) if losses else None

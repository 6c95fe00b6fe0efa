"""Steps of a recorded run, taken again otherwise: on another machine, or as a cheat would take them.

Every way goes through the same replay, from the same recorded state, as the verifier's does; only what the training
process is told differs. What a cheat registers is what it really runs, so that nothing but the states gives it away.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pol import canonical, prover, seeds
from pol.attacks.forger import Forger
from pol.auditor import LocalAuditor
from pol.checkpoint import Checkpoint
from pol.executors.local import Processes
from pol.interval import Momenta
from pol.keys import SigningKey
from pol.messages import Failed, Recorded, Registered, Segment
from pol.order import epoch_order
from pol.profile import Profile
from pol.proof.genesis import registered
from pol.replay import recipe as recipes
from pol.replay.state import State
from pol.store import ORDER, checkpoint_path
from pol.verifier.carrying import Carrying

VARIANTS = Path(__file__).with_name("variants.py")

RECORDED = Profile(threads=1)
"""What every run is recorded with: one thread, and whatever instructions the machine has."""

CHECKPOINT = "{:012d}.safetensors"
"""What a replay calls the state after a step."""

Kind = Literal["honest", "data", "setting"]
"""``data``: another sample, label, order or draw; ``setting``: another hyperparameter than is registered."""

Order = Literal["recorded", "other", "swapped", "nearest"]


@dataclass(frozen=True)
class Way:
    """A way to take steps again. Without any argument: as recorded."""

    name: str
    kind: Kind = "honest"
    profile: Profile = RECORDED
    scaled: dict[str, float] = field(default_factory=dict)
    """Constructor arguments that are multiplied, and by what."""
    wrapper: str = ""
    """A recipe of ``variants.py`` around the recorded one."""
    order: Order = "recorded"
    """``other``: of all samples; ``swapped``: the first sample is another one, ``nearest``: the one most like it."""
    redrawn: bool = False
    """Whether augmentation and dropout draw other numbers."""
    slow: bool = False
    """Whether it is so slow that large trainings take fewer steps in this way."""


AS_RECORDED = Way("as recorded")


class Run:
    """A recorded run with a state after every step in its log, and some of them as files.

    Args:
        reference: Its recipe.
        settings: Constructor arguments.
        keep: Steps from one kept state to the next.
        folder: Empty; the proof goes there, and states that are taken again.
        processes: Where it is trained.
    """

    def __init__(self, reference: str, settings: dict[str, Any], keep: int, folder: Path, processes: Processes) -> None:
        self.reference, self._folder, self._processes = reference, folder, processes
        self.proof = folder / "proof"
        prover.record(
            reference, self.proof, key=SigningKey.generate(), every=1, keep=keep, settings=settings, profile=RECORDED,
            executor=processes.of(RECORDED), rule="tolerance",
        )  # fmt: skip
        self.forger = Forger(self.proof)
        self.forger.states.clear()  # they are large, and read where they are needed
        genesis = self.forger.genesis
        self._configuration = genesis.recipe.configuration
        self._registered = registered(genesis, self.forger.r)
        self.carrying = Carrying(genesis.spec.declaration, self.forger.intervals)
        self.momenta: dict[int, Momenta] = {}
        """Of the parameter groups, by step: where steps were taken as they were recorded."""
        declaration = genesis.spec.declaration
        self._per_epoch = declaration.steps_per_epoch(genesis.spec.batches_per_step)
        epochs = [epoch_order(self.forger.seed, epoch, declaration.samples) for epoch in range(declaration.epochs)]
        self._order: NDArray[np.int64] = np.stack(epochs)
        self._data = recipes.make(recipes.load(reference), self._configuration).data()

    @property
    def steps(self) -> int:
        """T."""
        return self.forger.steps

    def start(self, step: int) -> Path:
        """The file of a kept state."""
        return self.proof / checkpoint_path(step)

    def take(self, way: Way, start: int, rungs: list[int], folder: Path) -> dict[int, Checkpoint]:
        """The states after each number of steps in ``rungs``, taken from the kept state before step ``start``.

        Raises:
            SystemExit: the steps cannot be taken; or they are the recorded ones, and end elsewhere.
        """
        folder.mkdir()
        begin, stop, wanted = self.start(start), start + max(rungs), {start + rung for rung in rungs}
        if way.wrapper == "Wide":
            State(_cast(State.load(begin).tensors, torch.float32, torch.float64)).save(folder / "wide.safetensors")
            begin = folder / "wide.safetensors"
        if way.wrapper == "Relabelled":  # the label is another in one step alone; what follows is taken as recorded
            self._replay(way, start, begin, start, start + 1, folder, wanted | {start + 1})
            begin = folder / CHECKPOINT.format(start + 1)
            if stop > start + 1:
                self._replay(AS_RECORDED, start, begin, start + 1, stop, folder, wanted | {start + 1})
        else:
            self._replay(way, start, begin, start, stop, folder, wanted, recorded=way == AS_RECORDED)
        found = {rung: folder / CHECKPOINT.format(start + rung) for rung in rungs}
        if way.wrapper == "Wide":
            for path in found.values():
                State(_cast(State.load(path).tensors, torch.float64, torch.float32)).save(path)
        return {rung: Checkpoint.at(path) for rung, path in found.items()}

    def _replay(
        self, way: Way, start: int, begin: Path, first: int, stop: int, folder: Path, wanted: set[int], *,
        recorded: bool = False,
    ) -> None:  # fmt: skip
        """Take the steps from ``first`` on, and leave the wanted states in the folder; ``recorded`` must come again."""
        reference, configuration = self._program(way, start)
        counted = [part.name for part in self.forger.genesis.spec.declaration.parts if part.counted]
        counts = self.forger.intervals[first - 1].schedules if first else dict.fromkeys(counted, 0)
        segment = Segment(start=first, stop=stop, checkpoint=str(begin), counts=counts)
        seed = seeds.expand(self.forger.seed, "other draws", b"") if way.redrawn else self.forger.seed
        order = self._order_file(way, start, folder) if way.redrawn or way.order != "recorded" else None
        auditor = LocalAuditor(reference, processes=self._processes)
        program = self._declared(auditor, way.profile, configuration, reference != self.reference or bool(way.scaled))
        events = auditor.replay(
            way.profile, configuration, seed, program, [segment], seeds.salt_key(self.forger.r), order=order,
            save=folder,
        )  # fmt: skip
        with contextlib.closing(events):  # type: ignore[type-var]
            for event in events:
                if isinstance(event, Failed):
                    raise SystemExit(f"{self.reference}, {way.name}, from step {start}: {event.message}")
                if isinstance(event, Recorded):
                    if recorded and event.interval.root != self.forger.intervals[event.interval.start].root:
                        raise SystemExit(f"{self.reference}: what was recorded does not come again from step {start}")
                    if recorded:
                        self.momenta[event.interval.stop] = event.momenta
                    if event.interval.stop not in wanted:
                        (folder / CHECKPOINT.format(event.interval.stop)).unlink()

    def _program(self, way: Way, start: int) -> tuple[str, dict[str, Any]]:
        """Reference and tagged configuration of what runs."""
        settings = {name: canonical.untag(value, name) for name, value in self._configuration.items()}
        settings |= {name: settings[name] * by for name, by in way.scaled.items()}
        if way.wrapper:
            settings = {"reference": self.reference, "settings": settings}
        if way.wrapper == "Relabelled":
            settings["index"] = int(self._order[self._place(start)])
        tagged = {name: canonical.tag(value, name) for name, value in settings.items()}
        return f"{VARIANTS}:{way.wrapper}" if way.wrapper else self.reference, tagged

    def _declared(
        self, auditor: LocalAuditor, profile: Profile, configuration: dict[str, Any], changed: bool
    ) -> Registered:
        """What the program is expected to declare: what it does declare."""
        if not changed:
            return self._registered
        built = auditor.build(profile, configuration, self.forger.seed)
        if isinstance(built, Failed):
            raise SystemExit(f"{self.reference}: {built.message}")
        return msgspec.structs.replace(self._registered, declaration=built.declaration)

    # -- samples and their order --------------------------------------------------------------------------------

    def _place(self, step: int) -> tuple[int, int]:
        """Epoch and position of the first sample of a step."""
        epoch, within = divmod(step, self._per_epoch)
        spec = self.forger.genesis.spec
        return epoch, within * spec.batches_per_step * spec.declaration.batch_size

    def _order_file(self, way: Way, start: int, folder: Path) -> Path:
        """The order of the samples as a file."""
        order, (epoch, position) = self._order.copy(), self._place(start)
        index, samples = int(order[epoch, position]), order.shape[1]
        if way.order == "other":
            other = seeds.expand(self.forger.seed, "other order", b"")
            order = np.stack([epoch_order(other, number, samples) for number in range(len(order))])
        elif way.order == "swapped":
            order[epoch, position] = order[epoch, (position + samples // 2) % samples]
        elif way.order == "nearest":
            order[epoch, position] = nearest(self._data, index)
        path = folder / ORDER
        path.write_bytes(order.astype("<u4").tobytes())
        return path


def nearest(data: Any, index: int) -> int:
    """The sample most like another one, of the same label: by the sum of all differences of its array."""
    item = data[index]
    name = next(name for name, value in item.items() if isinstance(value, np.ndarray))
    wide = item[name].astype(np.int64)

    def apart(other: int) -> float:
        found = data[other]
        if other == index or found.get("label") != item.get("label"):
            return np.inf
        return float(np.abs(found[name] - wide).sum())

    return min(range(len(data)), key=apart)


def _cast(tensors: dict[str, torch.Tensor], before: torch.dtype, after: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of another precision; scalars that an optimizer keeps are counters, which stay as they are."""
    return {
        key: tensor.to(after)
        if tensor.dtype == before and (tensor.ndim or not key.startswith("optimizer/"))
        else tensor
        for key, tensor in tensors.items()
    }

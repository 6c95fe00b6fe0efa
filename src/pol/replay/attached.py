"""All that a program attached, and the state that it makes up."""

from __future__ import annotations

from typing import Any

from pol.declaration import Declaration, External
from pol.errors import ReplayError, UsageError
from pol.replay.frame import Position
from pol.replay.frozen import Bases
from pol.replay.kept import Kept
from pol.replay.loader import Loader
from pol.replay.parts import Parts
from pol.replay.state import State
from pol.statetree import Entry


class Attached:
    """The parts, the frozen bases, and the generators if the program keeps them itself."""

    def __init__(
        self, parts: dict[str, Any], frozen: Any, dynamic: tuple[str, ...], ignored: tuple[str, ...], randomness: str,
        external: list[External],
    ) -> None:  # fmt: skip
        if randomness not in ("derived", "observed"):
            raise UsageError(f"attach(randomness={randomness!r}): derived or observed")
        self.bases = Bases(frozen)
        self.parts = Parts(parts, dynamic, self.bases)
        self.kept = Kept(self.parts.generators) if randomness == "observed" else None
        self._ignored = sorted({*ignored})
        self._external = external
        self._flags: dict[str, bool] = {}

    def begin(self, start: Position) -> None:
        """Put everything where a run starts; schedules are held until it has got there."""
        if start.state is not None:
            self.parts.schedules.repeat(start.counts)
            self.restore(start.state)
            self.parts.schedules.held = True

    def enter(self, start: Position) -> None:
        """The program has got there: whatever it did since ``begin`` belongs to an earlier step."""
        if start.state is None and any(self.parts.counts.values()):
            raise UsageError("the program steps a schedule before its first batch: step it after an update")
        if start.state is not None:
            self.restore(start.state)
            self.parts.schedules.held = False
        self._flags = self.parts.flags()

    def state(self) -> State:
        """The whole state: that of the parts, and the generators that the program keeps itself."""
        self.bases.glance()
        state = self.parts.capture()
        _check_on_cpu(state)
        if self.kept is not None:
            self.kept.capture(state)
        return state

    def state_before(self, step: int) -> State:
        """The same between two steps, where what no state holds must be as it was when the program was entered."""
        now = self.parts.flags()
        changed = [name for name in {**self._flags, **now} if self._flags.get(name) != now.get(name)]
        if changed:
            raise ReplayError(
                f"before step {step}: {changed[0]} has changed since the training began. A replay enters with the "
                "flags that build() gives: set requires_grad there, and evaluate inside run.aside()"
            )
        return self.state()

    def restore(self, state: State) -> None:
        """Put everything where a state says."""
        self.parts.restore(state if self.kept is None else self.kept.restore(state))
        self.bases.restored()

    def declare(self, loader: Loader, epochs: int, entries: list[Entry] | None) -> Declaration:
        """What the program declares; entries are those that it was built with, unless they are known."""
        built = self.state()  # also where entries are known: it refuses what no state can hold
        return Declaration(
            parts=self.parts.describe(),
            entries=[entry for entry, _ in built.entries()] if entries is None else entries,
            aliases=self.parts.aliases,
            epochs=epochs,
            samples=loader.samples,
            batch_size=loader.size,
            drop_last=loader.drop_last,
            external=self._external,
            streams="derived" if self.kept is None else "observed",
            order=loader.order,
            batches=None if loader.order == "derived" else loader.num_batches,
            frozen=self.bases.declared,
            ignored=self._ignored,
        )


def _check_on_cpu(state: State) -> None:
    """A state may lie on a GPU, but this version cannot put the generators there where a step needs them."""
    for key, tensor in state.tensors.items():
        if tensor.is_cuda:
            raise ReplayError(
                f"{key} is on {tensor.device}: this version records trainings on the CPU. It sets no generators of "
                "other devices, so replays would differ"
            )

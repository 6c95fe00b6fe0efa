"""Where forgers work: a target, a key, and the steps of training that a forgery really takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from pol import canonical, prover, seeds
from pol.attacks.forger import UNSET, Forger
from pol.errors import UsageError
from pol.executors.local import Executor
from pol.interval import Interval
from pol.keys import SigningKey
from pol.replay import recipe as recipes
from pol.replay.engine import Arrival, Frame, Position, advance
from pol.replay.intervals import IntervalRecorder
from pol.replay.randomness import Streams
from pol.replay.recipe import Recipe
from pol.replay.state import State

Change = Callable[[Any], Any]


class Workshop:
    """One forgery in the making.

    Args:
        target: The complete proof that is attacked.
        key: The forger's.
        recipe: The recipe of the target; it is public.
        scratch: An empty folder.
        executor: Where honest recordings train; by default a process on this machine.
    """

    def __init__(self, target: Path, key: SigningKey, recipe: str, scratch: Path, executor: Executor | None) -> None:
        self.target, self.key, self._recipe = target, key, recipe
        self._scratch, self._executor = scratch, executor
        self.gradients = 0

    # -- what there is to work on -------------------------------------------------------------------------------

    def open(self) -> Forger:
        """The target, taken apart."""
        return Forger(self.target)

    def stolen(self) -> State:
        """The last state of the target: the model to steal."""
        target = self.open()
        return target.states[target.steps]

    def dressed(self, first: State) -> State:
        """A first state with the weights and buffers of the stolen model, and its own fresh everything else."""
        stolen, weights = self.stolen().tensors, ("parameter/", "buffer/", "transient/")
        return State({k: stolen[k] if k.startswith(weights) else tensor for k, tensor in first.tensors.items()})

    def begin(self) -> Forger:
        """A run of one's own that stops after its honest genesis: its first state follows from its seed."""
        self._record(until_genesis=True)
        begun = Forger(self._scratch / "own")
        self.first_state(begun)
        return begun

    def record(self) -> Forger:
        """A complete honest run of one's own."""
        self._record(until_genesis=False)
        recorded = Forger(self._scratch / "own")
        self.gradients += recorded.steps * recorded.genesis.spec.batches_per_step
        return recorded

    def _record(self, *, until_genesis: bool) -> None:
        genesis = self.open().genesis
        settings = {key: canonical.untag(value, key) for key, value in genesis.recipe.configuration.items()}
        prover.record(
            self._recipe, self._scratch / "own", key=self.key, every=genesis.spec.every, keep=genesis.spec.keep,
            settings=settings, profile=genesis.profile, executor=self._executor, until_genesis=until_genesis,
        )  # fmt: skip
        # The control run, and its last step again from a state that was reached anew.
        self.gradients += 2 * genesis.control.steps * genesis.spec.batches_per_step

    # -- training -----------------------------------------------------------------------------------------------

    def first_state(self, forger: Forger) -> None:
        """Draw the first state honestly from the seed of the genesis as it is now."""
        forger.states[0] = _copy(self.build(forger).state)

    def build(self, forger: Forger, settings: dict[str, Any] | None = None) -> Arrival:
        """The recipe as built under the seed of ``forger``; ``settings`` change its configuration."""
        make, streams = self._maker(forger, settings or {}, None, idle=False)
        return advance(make, Frame(streams), Position(), stop=0)

    def train(
        self, forger: Forger, start: int = 0, *, counts: dict[str, int] | None = None,
        settings: dict[str, Any] | None = None, data: Change | None = None,
    ) -> None:  # fmt: skip
        """Take all steps from ``start`` and its state, and write what they give into states and records.

        Args:
            forger: Whose steps.
            start: A boundary whose state is there.
            counts: Schedule counts to start from; by default those of the record before.
            settings: Configuration that is really used instead of the registered one.
            data: What is done to the dataset.
        """
        index = forger.first_interval(start)
        if counts is None:
            registered = [part.name for part in forger.genesis.spec.declaration.parts if part.counted]
            counts = forger.intervals[index - 1].schedules if index else dict.fromkeys(registered, 0)
        position = Position(start, forger.states[start], counts)
        found = self._run(forger, position, settings or {}, data, idle=False)
        forger.intervals = forger.intervals[:index] + [interval for interval, _ in found]
        forger.states |= {interval.stop: state for interval, state in found}
        self.gradients += (forger.steps - start) * forger.genesis.spec.batches_per_step

    def pretend(self, forger: Forger, data: Change | None = None) -> None:
        """Fill the log with all that costs no gradient: true batches; losses, rates and counts as in the target."""
        target = self.open().intervals
        found = self._run(forger, Position(), {}, data, idle=True)
        forger.intervals = [
            msgspec.structs.replace(model, batches=own.batches, root=UNSET)
            for model, (own, _) in zip(target, found, strict=True)
        ]

    def _run(
        self, forger: Forger, start: Position, settings: dict[str, Any], data: Change | None, *, idle: bool
    ) -> list[tuple[Interval, State]]:
        torch.set_num_threads(forger.genesis.profile.threads)
        spec = forger.genesis.spec
        make, streams = self._maker(forger, settings, data, idle=idle)
        declaration = self.build(forger, settings).declaration  # what is declared by what really runs
        found: list[tuple[Interval, State]] = []
        observer = IntervalRecorder(
            every=spec.every, start=start.step, last=spec.steps, batch_key=seeds.batch_key(forger.r),
            emit=lambda interval, state, _: found.append((interval, _copy(state))),
        )  # fmt: skip
        advance(make, Frame(streams, declaration, spec.batches_per_step), start, None, observer)
        return found

    def _maker(
        self, forger: Forger, settings: dict[str, Any], data: Change | None, *, idle: bool
    ) -> tuple[Callable[[], Recipe], Streams]:
        streams = Streams(forger.seed)
        tagged = {key: canonical.tag(value, key) for key, value in settings.items()}

        def make() -> Recipe:
            streams.init()
            made = recipes.make(recipes.load(self._recipe), {**forger.genesis.recipe.configuration, **tagged})
            if data is not None:
                honest = made.data
                made.data = lambda: data(honest())  # type: ignore[method-assign]
            if idle:
                made.step = lambda parts, batch: 0.0  # type: ignore[method-assign]
            return made

        return make, streams

    def data(self, forger: Forger) -> Any:
        """The dataset."""
        make, _ = self._maker(forger, {}, None, idle=False)
        return make().data()

    def learning_rate(self, forger: Forger) -> float:
        """The recipe's constructor argument ``lr``.

        Raises:
            UsageError: it has none.
        """
        found = canonical.untag(forger.genesis.recipe.configuration.get("lr"), "lr")
        if not isinstance(found, float):
            raise UsageError("this attack needs a recipe with a constructor argument lr")
        return found


def _copy(state: State) -> State:
    return State({key: tensor.detach().clone() for key, tensor in state.tensors.items()})

"""Where forgers work: a target, a key, and the steps of training that a forgery really takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from numpy.typing import NDArray

from pol import canonical, prover, seeds
from pol.attacks.forger import UNSET, Forger
from pol.attacks.needs import DoesNotApply
from pol.errors import UsageError
from pol.executors.local import Executor
from pol.interval import Interval
from pol.keys import SigningKey
from pol.proof.genesis import Randomness, boundaries
from pol.proof.policy import Policy
from pol.replay import recipe as recipes
from pol.replay.engine import Arrival, Frame, Position, advance
from pol.replay.intervals import IntervalRecorder
from pol.replay.randomness import Streams
from pol.replay.recipe import Recipe
from pol.replay.state import State
from pol.store import ORDER

Change = Callable[[Any], Any]
Taken = Callable[[Recipe, Any, Any], Any]
"""A step in place of the recipe's own: from the recipe, its parts and the batch to the loss."""
Initialisation = Literal["derived", "given", "observed"]


class Workshop:
    """One forgery in the making.

    Args:
        target: The complete proof that is attacked.
        key: The forger's.
        recipe: The recipe of the target; it is public.
        scratch: An empty folder.
        executor: Where honest recordings train; by default a process on this machine.
        policy: By which the forgery will be verified; None: the forger does not know.
        budget: Gradients that the forger may spend, as a fraction of those of the target's training.

    Attributes:
        recipe: Under which the forger's own runs are registered.
        scratch: The folder, for files that need not stay.
        gradients: Evaluations so far. Training and recording are counted; an attack adds what it evaluates besides.
    """

    def __init__(
        self, target: Path, key: SigningKey, recipe: str, scratch: Path, executor: Executor | None,
        policy: Policy | None = None, budget: float = 1.0,
    ) -> None:  # fmt: skip
        self.target, self.key, self.recipe, self.policy = target, key, recipe, policy
        self.scratch, self._executor, self._budget = scratch, executor, budget
        self._published: dict[str, Any] | None = None
        self.gradients, self._recorded = 0, 0

    @property
    def left(self) -> int:
        """Gradients that may still be spent."""
        spec = self.open().genesis.spec
        return int(self._budget * spec.steps * spec.batches_per_step) - self.gradients

    def publish(self, recipe: str, settings: dict[str, Any]) -> None:
        """Register what is begun or recorded from now on for a recipe of the forger's own, with these arguments.

        The verifier that names it has read it, and found nothing wrong.
        """
        self.recipe, self._published = recipe, settings

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

    def begin(self, settings: dict[str, Any] | None = None, every: int | None = None) -> Forger:
        """A run of one's own that stops after its honest genesis: its first state follows from its seed.

        Args:
            settings: Configuration to register instead of the target's.
            every: k, instead of the target's.
        """
        begun = Forger(self._record(settings or {}, every, until_genesis=True))
        self.first_state(begun)
        return begun

    def record(self, settings: dict[str, Any] | None = None, every: int | None = None) -> Forger:
        """A complete honest run of one's own; arguments as in ``begin``."""
        recorded = Forger(self._record(settings or {}, every, until_genesis=False))
        self.gradients += recorded.steps * recorded.genesis.spec.batches_per_step
        return recorded

    def _record(self, settings: dict[str, Any], every: int | None, *, until_genesis: bool) -> Path:
        self._recorded += 1
        out = self.scratch / f"own-{self._recorded}"
        genesis = self.open().genesis
        registered = self._published
        if registered is None:
            registered = {key: canonical.untag(value, key) for key, value in genesis.recipe.configuration.items()}
        prover.record(
            self.recipe, out, key=self.key, every=every or genesis.spec.every,
            keep=genesis.spec.keep, settings={**registered, **settings}, profile=genesis.profile,
            executor=self._executor, until_genesis=until_genesis, rule=genesis.spec.rule,
        )  # fmt: skip
        # The control run, and its last step again from a state that was reached anew.
        self.gradients += 2 * genesis.control.steps * genesis.spec.batches_per_step
        return out

    # -- training -----------------------------------------------------------------------------------------------

    def first_state(self, forger: Forger) -> None:
        """Draw the first state honestly from the seed of the genesis as it is now."""
        forger.states[0] = _copy(self.build(forger).state)

    def randomise(
        self, forger: Forger, initialisation: Initialisation = "derived", order: NDArray[Any] | None = None
    ) -> None:
        """Name other sources of first weights and order in the genesis, and draw the first state from its new seed.

        Args:
            forger: Whose genesis.
            initialisation: What it says of the first weights.
            order: Dataset indices, epochs × samples, instead of the order that the seed gives.
        """
        named = Randomness(initialisation=initialisation, order="derived" if order is None else "observed")
        forger.genesis = msgspec.structs.replace(forger.genesis, randomness=named)
        forger.order = None if order is None else order.astype("<u4").tobytes()
        self.first_state(forger)

    def noise(self, forger: Forger) -> torch.Generator:
        """A generator of the forger's own."""
        return torch.Generator().manual_seed(int.from_bytes(forger.seed[:7], "big"))

    def build(self, forger: Forger, settings: dict[str, Any] | None = None) -> Arrival:
        """The recipe as built under the seed of ``forger``; ``settings`` change its configuration."""
        make, streams = self._maker(forger, settings or {}, None, None)
        return advance(make, Frame(streams), Position(), stop=0)

    def train(
        self, forger: Forger, start: int = 0, stop: int | None = None, *, counts: dict[str, int] | None = None,
        settings: dict[str, Any] | None = None, data: Change | None = None, step: Taken | None = None,
    ) -> None:  # fmt: skip
        """Take the steps from ``start`` and its state, and write what they give into states and records.

        Args:
            forger: Whose steps.
            start: A boundary whose state is there.
            stop: A boundary; by default the end of the run.
            counts: Schedule counts to start from; by default those of the record before.
            settings: Configuration that is really used instead of the registered one.
            data: What is done to the dataset.
            step: What is done in place of the recipe's own step, under the same random numbers.

        Raises:
            UsageError: there is no state at ``start``, or no record ends at ``stop``: nothing would be left of steps.
        """
        if start not in forger.states:
            raise UsageError(f"train: this run has no state after {start} steps to start from")
        if stop is not None and stop not in boundaries(forger.genesis.spec):
            every = forger.genesis.spec.every
            raise UsageError(
                f"train: stop at a multiple of k = {every} or at the end, not at {stop}: records end there"
            )
        index = forger.first_interval(start)
        if counts is None:
            registered = [part.name for part in forger.genesis.spec.declaration.parts if part.counted]
            counts = forger.intervals[index - 1].schedules if index else dict.fromkeys(registered, 0)
        position = Position(start, forger.states[start], counts)
        found = self._run(forger, position, settings or {}, data, step, stop=stop)
        after = forger.intervals[index + len(found) :]
        forger.intervals = [*forger.intervals[:index], *(interval for interval, _ in found), *after]
        forger.states |= {interval.stop: state for interval, state in found}
        self.gradients += ((stop or forger.steps) - start) * forger.genesis.spec.batches_per_step

    def pretend(self, forger: Forger, data: Change | None = None) -> None:
        """Fill the log with all that costs no gradient: true batches; losses, rates and counts as in the target.

        Raises:
            UsageError: the target has another number of records.
        """
        target = self.open().intervals
        found = self._run(forger, Position(), {}, data, lambda *_: 0.0)
        if len(found) != len(target):
            raise UsageError(
                f"pretend: this run has {len(found)} records, and those of the target, which it follows, are "
                f"{len(target)}: begin with its own length and k"
            )
        forger.intervals = [
            msgspec.structs.replace(model, batches=own.batches, root=UNSET)
            for model, (own, _) in zip(target, found, strict=True)
        ]

    def _run(
        self, forger: Forger, start: Position, settings: dict[str, Any], data: Change | None, step: Taken | None, *,
        stop: int | None = None,
    ) -> list[tuple[Interval, State]]:  # fmt: skip
        torch.set_num_threads(forger.genesis.profile.threads)
        spec = forger.genesis.spec
        make, streams = self._maker(forger, settings, data, step)
        declaration = self.build(forger, settings).declaration  # what is declared by what really runs
        found: list[tuple[Interval, State]] = []
        observer = IntervalRecorder(
            every=spec.every, start=start.step, last=spec.steps, batch_key=seeds.batch_key(forger.r),
            emit=lambda interval, state, *_: found.append((interval, _copy(state))),
        )  # fmt: skip
        frame = Frame(streams, declaration, spec.batches_per_step, order=self._order(forger))
        advance(make, frame, start, stop, observer)
        return found

    def _order(self, forger: Forger) -> Path | None:
        if forger.order is None:
            return None
        path = self.scratch / ORDER
        path.write_bytes(forger.order)
        return path

    def _maker(
        self, forger: Forger, settings: dict[str, Any], data: Change | None, step: Taken | None
    ) -> tuple[Callable[[], Recipe], Streams]:
        streams = Streams(forger.seed)
        tagged = {key: canonical.tag(value, key) for key, value in settings.items()}

        def make() -> Recipe:
            streams.init()
            made = recipes.make(recipes.load(self.recipe), {**forger.genesis.recipe.configuration, **tagged})
            if data is not None:
                honest = made.data
                made.data = lambda: data(honest())  # type: ignore[method-assign]
            if step is not None:
                made.step = functools.partial(step, made)  # type: ignore[method-assign]
            return made

        return make, streams

    def data(self, forger: Forger) -> Any:
        """The dataset."""
        make, _ = self._maker(forger, {}, None, None)
        return make().data()

    def configured(self, forger: Forger, name: str) -> float:
        """A number among the recipe's constructor arguments.

        Raises:
            DoesNotApply: it has no such argument.
        """
        found = canonical.untag(forger.genesis.recipe.configuration.get(name), name)
        if not isinstance(found, float):
            raise DoesNotApply(f"this attack needs a recipe with a constructor argument {name}")
        return found


def _copy(state: State) -> State:
    return State({key: tensor.detach().clone() for key, tensor in state.tensors.items()})

"""A probe: takes steps of a training and notes after each what another run of it must have again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from pol.digest import blake3_bytes, frame
from pol.errors import ReplayError
from pol.interval import Momenta
from pol.messages import EventType, Observed, Probe, Probed, Traced
from pol.replay.data import encode_field, fields
from pol.replay.driver import Driver
from pol.replay.engine import Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.files import save_atomically
from pol.replay.held import Holdings
from pol.replay.kept import Kept
from pol.replay.observer import Observer
from pol.replay.parts import Parts
from pol.replay.places import Places
from pol.replay.platforms import this_platform
from pol.replay.recipe import Recipe
from pol.replay.state import State
from pol.replay.tensors import content_digest
from pol.replay.tracing import Tracer
from pol.replay.watch import Watch
from pol.replay.writer import checkpoint_name
from pol.traces import Observation

Emit = Callable[[EventType], None]


def probe(job: Probe, emit: Emit) -> None:
    """Take the steps that ``job`` names."""
    entry = Entry(job.program)
    places = Places(job.program.reference)
    frame = Frame(entry.streams, job.declaration, job.batches_per_step, entry.external, entry.order)
    position = Position()
    if job.checkpoint is not None:
        position = Position(job.start, State.load(Path(job.checkpoint)), job.counts)
    looking = _Looking(job, emit, entry.make, places)
    watch = Watch(places, everywhere=True)
    with contextlib.nullcontext() if job.measure else watch.watching():
        try:
            end = advance(looking.make, frame, position, job.stop, looking, looking.drive)
        finally:
            looking.tracer.end()
    if end.batches_per_step is None:
        raise ReplayError("the program ended without a commit()")
    compiled = [name for name, module in end.parts.modules.items() if _is_compiled(module)]
    emit(
        Probed(
            declaration=end.declaration, batches_per_step=end.batches_per_step, notes=watch.notes, compiled=compiled,
            platform=this_platform(),
        )
    )  # fmt: skip


class _Looking:
    """The observer of a probe."""

    def __init__(self, job: Probe, emit: Emit, make: Callable[[], Recipe], places: Places) -> None:
        self._job, self._emit, self._make, self._places = job, emit, make, places
        self._batch: dict[str, str] = {}
        self._batches = 0
        self._flags: dict[str, str] = {}
        self._began = 0.0
        self._made: Recipe | None = None
        self._driver: Driver | None = None
        self.tracer = Tracer(places)

    def make(self) -> Recipe:
        """The recipe, as the entry makes it."""
        self._made = self._make()
        return self._made

    def drive(self, frame: Frame, start: Position, stop: int | None, observer: Observer | None) -> Driver:
        """The Run of this probe."""
        self._driver = Driver(frame, start, stop, observer)
        return self._driver

    def item(self, index: int, item: Any) -> None:
        """Samples are seen in the batches."""

    def batch(self, step: int, batch: Any, chosen: list[int] | None) -> None:
        """Note a batch as it enters its step."""
        if not self._job.measure:
            prefix = f"batch {self._batches + 1}: " if self._batches else ""
            for where, value in fields(batch):
                kind, shape, data = encode_field(value, where)
                name = f"{prefix}{where or 'the sample'}"
                self._batch[name] = blake3_bytes(frame("pol/probe", kind.encode(), shape, data)).hex()
        self._batches += 1
        if self._batches > 1:
            return
        self._flags = flags()
        if step == self._job.trace:
            self._trace()
        self._began = perf_counter()

    def _trace(self) -> None:
        assert self._driver is not None
        self._held = Holdings(self._made, self._driver.attached.parts, self._places).look()
        self.tracer.begin()

    def closed(
        self, step: int, loss: float | None, rates: list[float], take: Callable[[], State], counts: dict[str, int],
        momenta: Callable[[], Momenta],
    ) -> None:  # fmt: skip
        """Note the step, and the state after it."""
        seconds = perf_counter() - self._began
        assert self._driver is not None
        self.tracer.end()
        if step == self._job.trace:
            found = self.tracer
            self._emit(Traced(step=step, operations=found.operations, complete=found.complete, held=self._held))
        whole = not self._job.measure or step + 1 == self._job.stop
        generators = generator_digests(self._driver.attached.parts) if whole else {}
        contents: dict[str, str] = {}
        if whole:
            state = take()
            state.check_finite(f"after step {step}")
            contents = {entry.key: content.hex() for entry, content in state.digests()}
            if step + 1 in self._job.keep and self._job.directory is not None:
                save_atomically(state, Path(self._job.directory) / checkpoint_name(step + 1))
        self._emit(
            Observed(
                observation=Observation(
                    step=step, loss=None if loss is None else repr(loss), seconds=seconds, batch=self._batch,
                    generators=generators, flags=self._flags, state=contents, counts=counts,
                )
            )
        )  # fmt: skip
        self._batch, self._batches = {}, 0


def generator_digests(parts: Parts) -> dict[str, str]:
    """Digests of the states of the three global generators and of the attached ones."""
    names = {"global.python": "Python's", "global.numpy": "numpy's", "global.torch": "torch's"}
    states = Kept(parts.generators).now()
    return {names.get(key, f"attached {key!r}"): content_digest(state).hex() for key, state in states.items()}


def flags() -> dict[str, str]:
    """Settings of torch that decide bits, as they are now."""
    found = {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        "onednn": torch.backends.mkldnn.enabled,
        "flush denormal": _flushes(),
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),  # of the CPU, too: the name is older than that
        "math attention": torch.backends.cuda.math_sdp_enabled(),
    }
    return {name: str(value) for name, value in found.items()}


def _flushes() -> bool:
    return bool((torch.full((), 1e-40, dtype=torch.float32) * 1.0) == 0)


def _is_compiled(module: Any) -> bool:
    return any(
        hasattr(inner, "_orig_mod") or getattr(inner, "_compiled_call_impl", None) is not None
        for inner in module.modules()
    )

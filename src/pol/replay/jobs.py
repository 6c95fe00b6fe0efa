"""Does one job in this process, and emits what it found."""

from __future__ import annotations

import contextlib
import traceback
from functools import partial
from pathlib import Path

import torch

from pol.errors import PolError, ReplayError, UsageError
from pol.interval import Interval
from pol.messages import (
    Build,
    Built,
    Control,
    Controlled,
    Failed,
    Finished,
    JobType,
    Measure,
    Opened,
    Probe,
    Recorded,
    Replay,
    Train,
    Trial,
    TrustingReplay,
)  # fmt: skip
from pol.profile import Profile
from pol.replay import compiling, hidden, measuring, probe, trial, trusting
from pol.replay.clocks import shiftable_clocks
from pol.replay.dataset import Untouched, check_leaves, write_leaves
from pol.replay.digests import Digests
from pol.replay.engine import Arrival, Frame, Position, advance
from pol.replay.entry import Entry
from pol.replay.files import save_atomically
from pol.replay.origin import compare, dressed
from pol.replay.places import Places
from pol.replay.platforms import this_platform
from pol.replay.replaying import Entering, let_go, position_of, replay
from pol.replay.reseeding import reseeded
from pol.replay.state import State
from pol.replay.telling import Emit, Progress
from pol.replay.tensors import content_digest
from pol.replay.watch import Watch
from pol.replay.writer import Writer
from pol.statetree import state_root


def run_job(job: JobType, emit: Emit) -> None:
    """Do ``job``; whatever goes wrong becomes a ``Failed`` event."""
    try:
        _apply(job.program.profile)
        match job:
            case Build():
                _build(job, emit)
            case Control():
                _control(job, emit)
            case Trial():
                emit(trial.tried(job))
            case Train():
                _train(job, emit)
            case Replay():
                replay(job, emit)
            case TrustingReplay():
                trusting.replay(job, emit)
            case Probe():
                probe.probe(job, emit)
                emit(Finished())
            case Measure():
                measuring.measure(job, emit)
                emit(Finished())
    except PolError as error:
        emit(Failed(kind=type(error).__name__, message=str(error)))
    except MemoryError:
        emit(Failed(kind="ReplayError", message="out of memory", foreign=True))
    except Exception as error:  # the user's program: any error of it is a finding, with the place
        emit(Failed(kind="ReplayError", message=_explain(error), foreign=True))


def _explain(error: BaseException) -> str:
    if (reason := compiling.explain(error)) is not None:
        return reason
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (at {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"the training program raised {type(error).__name__}: {error}{place}"


def _apply(profile: Profile) -> None:
    torch.set_num_threads(profile.threads)
    if torch.are_deterministic_algorithms_enabled() != profile.deterministic:  # saying so loads the compiler
        torch.use_deterministic_algorithms(profile.deterministic)
    torch.set_float32_matmul_precision(profile.matmul)
    compiling.settle()


def _check_flags(profile: Profile) -> None:
    """Refuse a program that sets what the profile says: the genesis would name another one than trained.

    Raises:
        UsageError: names the setting, and the option that takes its place.
    """
    found = {
        "threads": (torch.get_num_threads(), profile.threads, "--threads"),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(), profile.deterministic, "--deterministic",
        ),
        "precision of matrix products": (
            torch.get_float32_matmul_precision(), profile.matmul, "Profile(matmul=...)",
        ),
    }  # fmt: skip
    for name, (now, declared, instead) in found.items():
        if now != declared:
            raise UsageError(
                f"the program sets {name} to {now}, the profile that is signed says {declared}: leave that to {instead}"
            )


def _build(job: Build, emit: Emit) -> None:
    entry = Entry(job.program)
    with reseeded(entry.streams.seed) if job.program.reseeded else contextlib.nullcontext():
        arrival = advance(entry.make, Frame(entry.streams, external=entry.external), Position(), stop=0)
    arrival.state.check_finite("as built")
    comparisons = None
    if job.compare is not None:
        comparisons = compare(State.load(Path(job.compare)), arrival.state)
    if job.save is not None:
        save_atomically(arrival.state, Path(job.save))
    if job.leaves is not None:
        write_leaves(arrival, Path(job.leaves), bytes.fromhex(job.salt_key), Progress(emit, arrival.loader.samples))
    if job.check_leaves is not None:
        check_leaves(arrival, Path(job.check_leaves), bytes.fromhex(job.salt_key))
    contents = arrival.state.digests()
    emit(
        Built(
            configuration=entry.configuration,
            declaration=arrival.declaration,
            root=arrival.state.root(),
            contents={e.key: content.hex() for e, content in contents},
            comparisons=comparisons,
            platform=this_platform(),
            undeclared=entry.undeclared(),
            torch_generator=content_digest(torch.get_rng_state()).hex(),
        )
    )


def _control(job: Control, emit: Emit) -> None:
    with shiftable_clocks() if job.reenter else contextlib.nullcontext():
        emit(_controlled(job))


def _controlled(job: Control) -> Controlled:
    entry = Entry(job.program)
    frame = Frame(entry.streams, external=entry.external)
    untouched = Untouched() if job.reenter else None
    watch = Watch(Places(job.program.reference))
    with watch.watching() if job.reenter else contextlib.nullcontext():
        end = advance(entry.make, frame, Position(), stop=job.steps, observer=untouched)
    if untouched is not None:
        untouched.check(end.loader.data)
    if end.batches_per_step is None:
        raise ReplayError("the program ended without a commit()")
    _check_flags(job.program.profile)
    root = end.root_now()
    reentry, evolving = _reenter(entry, end, watch) if job.reenter else (None, [])
    return Controlled(
        steps=end.step,
        root=root,
        batches_per_step=end.batches_per_step,
        undeclared=entry.undeclared(),
        platform=this_platform(),
        reentry=reentry,
        hidden=evolving,
        noticed=watch.noticed,
    )


def _reenter(entry: Entry, end: Arrival, watch: Watch) -> tuple[str | None, list[str]]:
    """Take the last step again from a state that was saved and loaded, when the clocks are put forward.

    Says where the end differs: the first entry of the state, and all attributes that are in no state.
    """
    steps, expected, hung = end.step, end.digests_now(), hidden.fingerprints(end.parts)
    frame = Frame(entry.streams, end.declaration, end.batches_per_step, entry.external)
    before = advance(entry.make, frame, Position(), stop=steps - 1)
    copied = State({key: tensor.detach().clone() for key, tensor in before.state.tensors.items()})
    start = Position(steps - 1, copied, before.counts)
    try:
        with watch.watching(shifted=True):
            again = advance(entry.make, frame, start, stop=None if end.finished else steps)
    except PolError as error:
        if not watch.noticed:
            raise
        read = "; ".join(map(str, watch.noticed[:3]))
        raise type(error)(
            f"when step {steps - 1} was taken again from its saved state: {error}. The program {read}"
        ) from error
    found = again.digests_now()
    differing = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    evolving = hidden.evolving(hung, hidden.fingerprints(again.parts), end.declaration.ignored)
    return differing[0] if differing else None, evolving


def _train(job: Train, emit: Emit) -> None:
    entry = Entry(job.program)
    registered, directory = job.registered, Path(job.directory)
    declared = registered.declaration
    frame = Frame(entry.streams, declared, registered.batches_per_step, entry.external, entry.order)
    last = declared.epochs * declared.steps_per_epoch(registered.batches_per_step)
    kept_every = job.keep * registered.every
    progress = Progress(emit, last)

    def kept(step: int) -> bool:
        return step % kept_every == 0 or step == last

    with Writer(directory, emit) as writer:

        def record(interval: Interval, state: State, *_: object) -> None:
            event = Recorded(interval=interval, samples=[], kept=kept(interval.stop))
            writer.add(event, interval.stop, state if event.kept else None)

        def stepped(step: int) -> None:
            writer.tell()
            progress(step)

        position = _opening(job, entry, frame, writer)
        observer = Entering(
            every=registered.every, start=position.step, last=last, batch_key=bytes.fromhex(registered.batch_key),
            emit=record, on_step=stepped, digests=Digests(trust=job.trust), kept=kept,
        )  # fmt: skip
        observer.entered = partial(let_go, position)
        end = advance(entry.make, frame, position, None, observer)
    emit(Finished(asides=end.asides, undeclared=entry.undeclared(), waits=writer.waits, waited=writer.waited))


def _opening(job: Train, entry: Entry, frame: Frame, writer: Writer) -> Position:
    """Where the recording begins; a first state is written."""
    position, state = position_of(job.start), None
    if position.state is None:
        built = advance(entry.make, frame, position, stop=0)
        state = built.state if job.weights is None else dressed(built.state, job.weights, job.registered.declaration)
        position = Position() if job.weights is None else Position(0, state, built.counts)
    opened = state or position.state
    assert opened is not None
    opened.contents = opened.digests()
    if state is None:
        writer.goes_on(position.step, opened.contents)
    writer.add(Opened(step=position.step, root=state_root(opened.contents)), position.step, state)
    writer.tell(wait=True)  # files that are opened while the program is entered are taken for its own
    return position

"""What a training process is asked, and what it answers: plain values, JSON on a pipe, no torch.

A process is never told an expected digest: it yields roots, and another process compares.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pol.declaration import Declaration
from pol.interval import Interval, Momenta, Rates
from pol.profile import Platform, Profile
from pol.statetree import StateRoot
from pol.traces import Held, Note, Observation, Operation, Setting, Timings


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe with its configuration, the seed of this run (hex), and the profile of its process."""

    reference: str
    configuration: dict[str, Any]
    seed: str
    profile: Profile
    declared_seed: int | None = None
    """Draw the first weights under this number instead of the seed."""
    reseeded: bool = False
    """Where the program seeds a generator with a number, seed it with another one that follows from the seed."""
    order: str | None = None
    """A file of dataset indices (u32le, epochs × samples) to use instead of the order that the seed gives."""


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive intervals to replay, from a checkpoint file (None: from the state as built)."""

    start: int
    stop: int
    checkpoint: str | None
    counts: dict[str, int]


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A request to a training process."""

    program: Program


class Build(Job, frozen=True, kw_only=True):
    """Dry build: stop at the first request for a batch."""

    leaves: str | None = None
    """Where to write the leaf hashes of the dataset."""
    check_leaves: str | None = None
    """Leaf hashes that an earlier build wrote, to compare some samples with."""
    salt_key: str = ""
    save: str | None = None
    """Where to write the built state."""
    compare: str | None = None
    """A state, written by an earlier build under another seed, to compare with."""


class Control(Job, frozen=True, kw_only=True):
    """The first steps, for their end state; with ``reenter`` the last of them twice."""

    steps: int
    reenter: bool = False


class Trial(Job, frozen=True, kw_only=True):
    """The first steps, for what they show of settings and losses; then every counted schedule alone."""

    steps: int
    counts: dict[str, int] = {}
    """How often each counted schedule is to be stepped from its beginning; one that is not named is left alone."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """What a training was declared to be, and the key of its batch digests (hex)."""

    declaration: Declaration
    batches_per_step: int
    every: int
    batch_key: str


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """First weights from a model file (safetensors), for the part whose names it has."""

    path: str
    part: str


class Train(Job, frozen=True, kw_only=True):
    """Record: take all steps from ``start``, write every ``keep``-th checkpoint into ``directory``."""

    registered: Registered
    keep: int
    directory: str
    start: Segment
    weights: Weights | None = None
    trust: bool = True
    """Not to hash again at every boundary what torch did not count as written."""


class Replay(Job, frozen=True, kw_only=True):
    """Take the steps of some segments again, one after the other."""

    registered: Registered
    segments: list[Segment]
    salt_key: str
    save: str | None = None
    """A folder for the end states of intervals, where more than digests is asked for."""
    saved: list[int] | None = None
    """Steps after which the state is saved there; None: after every interval."""
    perturbed: Literal["float64", "split"] | None = None
    """Of a calibration: the same steps in float64, or every batch in two halves."""
    factors: dict[str, float] = {}
    """Of a calibration: hyperparameters that are multiplied, in every group of every optimizer."""
    redrawn: str | None = None
    """Another seed (hex) for what steps, samples and collations draw; what chooses the samples is left as it is."""


class TrustingReplay(Job, frozen=True, kw_only=True):
    """Take the steps of some segments again and believe whatever their states and ``rates`` say (``paper-2021``)."""

    batches_per_step: int
    segments: list[Segment]
    rates: list[list[Rates]]
    """Per segment, the learning rates that are used, whatever recipe and schedule say."""
    save: str
    """A folder for the end state of every segment."""


class Probe(Job, frozen=True, kw_only=True):
    """Take the steps [start, stop) and note all that another run of them must have again; needs no genesis."""

    stop: int
    start: int = 0
    checkpoint: str | None = None
    """The state before ``start``; None: as built."""
    counts: dict[str, int] = {}
    declaration: Declaration | None = None
    """What an earlier probe found; needed to begin elsewhere than at 0."""
    batches_per_step: int | None = None
    keep: list[int] = []
    """Steps after which the state is written into ``directory``."""
    directory: str | None = None
    trace: int | None = None
    """A step of which every operation is noted."""
    measure: bool = False
    """Only take the time of the steps, and note the last one: for comparing flags."""


class Measure(Job, frozen=True, kw_only=True):
    """The first steps, recorded as a run's are, with a clock on each part; for planning one."""

    every: int
    """Steps of an interval."""
    keep: int
    """The state after every ``keep``-th interval is written into ``directory``, while nothing else is done."""
    directory: str
    batch_key: str
    seconds: float
    """When no further steps are begun."""
    least: int
    """Steps that are taken, however long that is; all, if the training has fewer."""
    most: int


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An answer of a training process."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One state entry, built under two seeds."""

    key: str
    equal: bool
    repeated: bool
    """All elements have one value."""
    correlation: float
    """Centred correlation of the two; 0 if either is constant."""
    size: int


class Built(Event, frozen=True, kw_only=True):
    """A dry build's result."""

    configuration: dict[str, Any]
    """All constructor arguments, defaults included, tagged."""
    declaration: Declaration
    root: StateRoot
    contents: dict[str, str]
    """Entry key to BLAKE3-256 (hex) of its content."""
    comparisons: list[Comparison] | None
    platform: Platform
    undeclared: list[str]
    """Local modules that were imported dynamically, and so are in no digest."""
    torch_generator: str = ""
    """Digest of the state in which the build left torch's generator: the same under every seed if it was seeded."""


class Controlled(Event, frozen=True, kw_only=True):
    """A control run's result."""

    steps: int
    """Fewer than asked if the training is shorter."""
    root: StateRoot
    batches_per_step: int
    undeclared: list[str]
    platform: Platform
    reentry: str | None
    """Where the state differs when the program is entered again; None if it does not, or was not asked."""
    hidden: list[str] = []
    """Attributes that evolve and are in no state, without those that the program named as without influence."""
    noticed: list[Note] = []
    """Reads of the clock and of fresh randomness during the steps, each place once."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What a counted schedule gives, stepped without any training."""

    name: str
    """Of the schedule."""
    groups: list[int]
    """Positions of its optimizer's groups among the recorded rates."""
    first: int
    """How often it had been stepped before the first batch."""
    rates: list[Rates]
    """From then on, one step of the schedule after another; equal ones are told together."""


class Tried(Event, frozen=True, kw_only=True):
    """A trial's result."""

    losses: list[float | None]
    """Of each step; None where it was skipped."""
    settings: list[Setting]
    courses: list[Course]


class Opened(Event, frozen=True, kw_only=True):
    """The state from which a training or segment starts."""

    step: int
    root: StateRoot


class Stepped(Event, frozen=True, kw_only=True):
    """Progress."""

    step: int
    total: int | None = None


class Recorded(Event, frozen=True, kw_only=True):
    """An interval is done."""

    interval: Interval
    samples: list[str]
    """Of a replay: per step, the digest of the samples that the dataset returned."""
    momenta: Momenta = []
    """Of a replay: what every parameter group keeps of the past, at the end."""
    kept: bool = False
    drawn: str = ""
    """Of a replay that saves states: digest of torch's generator after the interval."""


class Reached(Event, frozen=True, kw_only=True):
    """The end of a segment, whose state is saved."""

    step: int


class Observed(Event, frozen=True, kw_only=True):
    """A step of a probe is done."""

    observation: Observation


class Traced(Event, frozen=True, kw_only=True):
    """The operations of one step of a probe, and what the program held when it began."""

    step: int
    operations: list[Operation]
    complete: bool
    """False: there were more operations than are noted."""
    held: list[Held]


class Probed(Event, frozen=True, kw_only=True):
    """What a probe found about the program; ``Finished`` follows."""

    declaration: Declaration
    batches_per_step: int | None
    notes: list[Note]
    compiled: list[str]
    """Attached modules that are compiled."""
    platform: Platform


class Measured(Event, frozen=True, kw_only=True):
    """What a measurement found; ``Finished`` follows."""

    declaration: Declaration
    batches_per_step: int
    steps: int
    """That were taken."""
    timings: Timings


class Finished(Event, frozen=True, kw_only=True):
    """The job is done."""

    asides: int = 0
    waits: int = 0
    """How often the training waited until a kept state was written."""
    waited: float = 0.0
    """Seconds of all these together."""
    undeclared: list[str] = []


class Failed(Event, frozen=True, kw_only=True):
    """The job could not be done; ``kind`` is the class of the error."""

    kind: str
    message: str
    foreign: bool = False
    """The program's own error, or the system's: nothing that this package refuses."""


JobType = Build | Control | Trial | Train | Replay | TrustingReplay | Probe | Measure
EventType = (
    Built
    | Controlled
    | Tried
    | Opened
    | Stepped
    | Recorded
    | Reached
    | Observed
    | Traced
    | Probed
    | Measured
    | Finished
    | Failed
)

LAST = (Built, Controlled, Tried, Finished, Failed)
"""Events of which one is the last of every job."""

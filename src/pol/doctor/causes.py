"""The causes that the doctor knows, and what to do about each. ``docs/doctor.md`` has the same table."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pol.doctor.diagnosis import Suspect


@dataclass(frozen=True)
class Cause:
    """Why a training is not the same when it is taken again."""

    title: str
    fix: str


CAUSES = {
    "data": Cause(
        "data() gives other samples each time",
        "Give the same samples whenever they are asked for, and draw what is random in transform(item, rng).",
    ),
    "augmentation": Cause(
        "augmentation without a seed",
        "Draw from the rng that transform is given, or from random, numpy.random or torch, which are set before every "
        "sample; never from the clock, the system or default_rng() without a seed.",
    ),
    "data-state": Cause(
        "the dataset, the sampler or the transform keeps something between samples",
        "Make a sample a function of its index and of the rng that transform is given, and an order one of torch's "
        "generator; keep no generator, counter or cache that evolves.",
    ),
    "loader": Cause(
        "a DataLoader that the run does not know, so its batches would be in no record",
        "Iterate over run.loader(loader), or take batches from run.batches; evaluate inside `with run.aside():`.",
    ),
    "generator": Cause(
        "a random generator that is not attached",
        "Attach a torch.Generator, or draw from random, numpy.random or torch: these are set before every step.",
    ),
    "optimizer": Cause(
        "an optimizer, module, moving average or schedule that is not attached",
        "Attach it: run.attach(name=...), or return it from build().",
    ),
    "attribute": Cause(
        "a value that evolves and is not attached",
        "Compute it from run.step or run.epoch, hold it in a buffer of the model, in a dict that is attached, or in an "
        "attached object with state_dict and load_state_dict.",
    ),
    "evaluation": Cause(
        "evaluation, or other code, draws from the generators of the step",
        "Evaluate inside `with run.aside():`, which puts generators, modes and buffers back.",
    ),
    "clock": Cause(
        "the clock enters the computation",
        "Decide by run.step or run.epoch instead of by time.",
    ),
    "entropy": Cause(
        "randomness of the operating system",
        "Draw from random, numpy.random or torch, which are set before every step; os.urandom, secrets, SystemRandom "
        "and generators without a seed cannot be set.",
    ),
    "operation": Cause(
        "an operation of torch that is not deterministic",
        "Use --deterministic where two runs are equal with it; otherwise replace the operation.",
    ),
    "threads": Cause(
        "an operation whose result depends on how threads take turns",
        "Use --deterministic where two runs are equal with it; otherwise train with --threads 1.",
    ),
    "flags": Cause(
        "the program changes settings of torch by itself",
        "Leave them to the profile (--threads, --deterministic), which is recorded and given to every replay.",
    ),
    "modes": Cause(
        "training mode or requires_grad changes during the run",
        "Set both in build(), and evaluate inside `with run.aside():`.",
    ),
    "hyperparameters": Cause(
        "hyperparameters change by something that is not attached",
        "Attach the schedule that changes them, or name them in attach(dynamic=(...)).",
    ),
    "build": Cause(
        "the build depends on randomness, the clock or the surroundings",
        "Build the same parts, of the same sizes and settings, under every seed.",
    ),
    "compile": Cause(
        "a compiled module, whose code depends on the compiler and on what it has seen",
        "Examine the recipe without torch.compile: if that is exact, leave it out or compile with fixed shapes.",
    ),
    "again": Cause(
        "the program fails when it is run again",
        "A replay starts in an empty environment, without a network: read files only, and write none.",
    ),
    "outside": Cause(
        "a value comes into the computation from outside of torch, or stays from an earlier step",
        "Follow the value at the place above to where it comes from: a clock, a counter, a file, an object.",
    ),
    "refused": Cause("the program cannot be recorded as it is", "Do what the message says."),
}

REFUSALS = {
    "data() is not deterministic": "data",
    "in place, so it would be another one": "data-state",
    "has changed since the training began": "modes",
    "static hyperparameters changed during the run": "hyperparameters",
    "the learning rate was also changed by hand": "hyperparameters",
    "the program declared something else than before": "build",
    "from a torch DataLoader that the run does not know": "loader",
    "of its own that is not attached, so its state would be lost": "generator",
    "reads the clock": "clock",
    "draws fresh randomness": "entropy",
}
"""Part of a message of this package, to the cause that it names."""


def suspect(cause: str, evidence: str, fix: str | None = None) -> Suspect:
    """A suspect of a known cause."""
    known = CAUSES[cause]
    return Suspect(cause=cause, title=known.title, evidence=evidence, fix=fix or known.fix)


def refusal(message: str) -> Suspect:
    """The cause of a refusal by this package."""
    part, cause = next((pair for pair in REFUSALS.items() if pair[0] in message), (message, "refused"))
    place = re.search(r"\bat (\S+:\d+) ", message)
    return suspect(cause, f"at {place[1]}, {part}" if place and cause != "refused" else part)

"""What the doctor says of a training: values, no torch."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from pol.profile import Platform, Profile


class Answer(StrEnum):
    """Whether the training is the same when it is taken again."""

    EXACT = "exact"
    NOT_EXACT = "not exact"
    UNKNOWN = "could not tell"


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """A likely cause, with what speaks for it."""

    cause: str
    """Its name in ``causes.CAUSES``."""
    title: str
    evidence: str
    fix: str


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """The first operation of a step that two runs do not share, and where the recipe calls it."""

    kind: Literal["operation", "input", "sequence"]
    """The same inputs gave another result; it was given another input although everything before agrees; or one run
    did something else."""
    operation: str
    other: str | None
    """Of a sequence: what the second run did there; None if it did no more."""
    place: str
    line: str
    backward: bool
    detail: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing in which two runs differ."""

    compared: Literal["program", "builds", "flags", "twin", "resume"]
    """``program``: a run was refused or failed, ``message`` says why."""
    message: str
    step: int | None = None
    tensor: str | None = None
    """The first state entry that differs after the step."""
    differing: int = 0
    entries: int = 0
    before: list[str] = []
    """What else differs in that step: fields of the batch, generators, the loss."""
    resumed: int | None = None
    """The step before which the second run was entered."""
    site: Site | None = None
    suspects: list[Suspect] = []
    """Likely causes, the likeliest first."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was compared and is equal."""

    what: str
    steps: int = 0


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """The same steps under other flags."""

    flags: str
    profile: Profile
    equal: bool | None
    """None: it could not be tried."""
    differing: int = 0
    entries: int = 0
    note: str = ""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a step takes under some flags, measured in turns with the others."""

    flags: str
    profile: Profile
    seconds: float | None
    """Median of a step, without fetching its batch; None: it could not be tried."""
    ratio: float | None
    """Of the profile that was asked for."""
    steps: int
    note: str = ""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an examination."""

    answer: Answer
    recipe: str
    profile: Profile
    every: int
    steps: int = 0
    """Steps that were compared, of ``total``."""
    total: int = 0
    per_epoch: int = 0
    checks: list[Check] = []
    finding: Finding | None = None
    reason: str = ""
    """Why the doctor could not tell."""
    remarks: list[str] = []
    """What was not looked at."""
    variants: list[Variant] = []
    costs: list[Cost] = []
    platform: Platform | None = None
    compiled: list[str] = []
    seconds: float = 0.0

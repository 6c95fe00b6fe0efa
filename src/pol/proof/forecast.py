"""What a forecast says: costs that were measured, and what follows from them for choices of k and K.

Seconds are of the training under the profile that was measured, on the machine that was measured.
"""

from __future__ import annotations

import msgspec

from pol.profile import Profile


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. Seconds and bytes; *beside* is what other threads and processes do while the training goes on.

    Where the training uses every core, such work costs it as many seconds as it takes of one core: asynchrony hides
    waiting, not work (measured baseline, F: copying, hashing and writing of a state take 53 % of a step one after the
    other, and made a step 53 % longer when a second thread did them).
    """

    bare_step: float
    """A step of the program as if nobody recorded it, with the reading of its batches."""
    added: float
    """That every step takes longer: setting generators, hashing batches, noting rates."""
    digest: float
    """At the end of an interval: taking the state, looking for values that are not finite, hashing what may have
    changed."""
    whole: float
    """The same where the state is kept, all of which is hashed."""
    noted: float
    """Beside: writing the record of an interval."""
    copied: float
    """While a kept state is copied into buffers, in which the training waits."""
    stored: float
    """Beside: packing, writing, syncing and hashing a kept state, in seconds of one core."""
    written: float
    """From the copy until the file is on disk; the next one has to wait as long."""
    busy: bool
    """The training has as many threads as there are cores, so work beside it takes its time."""
    start: float
    """Starting a process until it can take jobs."""
    enter: float
    """Entering the program from its start until its first batch: imports, data, model; and the digests of that."""
    replay_enter: float
    """Entering it in the middle, in a process that has it imported: reading a kept state, building, restoring."""
    replay_step: float
    """A step of a replay, which also hashes samples."""
    read: float
    """Of a verification: hashing, checking and measuring one kept state."""
    compared: float = 0.0
    """Of a verification by rule tolerance: comparing one replayed state."""
    sample: float = 0.0
    """Hashing one sample for the root of the dataset."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of what was written."""

    built: int
    """The first state as a file."""
    kept: int
    """A later one."""
    state: int
    """The tensors of one, unpacked."""
    record: float
    """A line of the log, for no steps at all."""
    record_step: float
    """What each step adds to it."""
    entry: float
    """What each file adds to the attestation."""
    others: int
    """All other files, without any of these."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A training that is only planned."""

    steps: int
    """T."""
    samples: int
    costs: Costs
    sizes: Sizes
    kinds: int
    """Of state whose updates are measured: weights, moments, running statistics."""
    trials: int
    """First steps of its own that a verifier takes, for what its policy bounds: how often it enters for these."""
    most_files: int
    """Of a proof that a verifier reads."""
    most_log: int
    """Bytes of a log that a verifier reads."""


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification will take that, if it passes, gives a confidence."""

    confidence: float
    draws: int
    """Uniform ones; whatever else the policy draws comes on top."""
    replayed_steps: float
    """Mean over nonces."""
    replayed_share: float
    """Of the training's steps."""
    seconds: float
    """All of the verification, with one process."""
    openings: float
    """Rule tolerance: states that the prover takes again for it,"""
    answered_steps: float
    """the steps that this takes,"""
    opening_bytes: float
    """and how many bytes it hands over."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One k and one K."""

    every: int
    keep: int
    intervals: int
    kept: int
    """States in the proof."""
    overhead: float
    """Share by which the steps of the training take longer."""
    bytes: int
    """Of the whole proof."""
    bytes_per_interval: float
    audits: list[Audit]
    refused: str
    """Why no proof of this kind could be recorded or verified; "" if it can."""


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """Which choice to take."""

    choice: Choice | None
    why: str
    """The reason; if there is none to take, what would do."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording and its audit will cost, and which k and K to take."""

    recipe: str
    policy: str
    profile: Profile
    measured_steps: int
    load: float
    """How many processes each core was wanted by before: from about 1 on, times are not those of a machine at rest."""
    run: Run
    share: float
    """Largest share of forged intervals that the audits leave open."""
    max_overhead: float
    max_bytes: int | None
    choices: list[Choice]
    recommended: Recommendation

"""Every attack by name, and which of them are those of the attack study."""

from __future__ import annotations

from pol.attacks import (
    data,
    drift,
    files,
    interpolation,
    numbers,
    orders,
    rates,
    smuggling,
    spans,
    starts,
    tampering,
    theft,
)  # fmt: skip
from pol.attacks.attack import Attack

FAMILIES = (tampering, numbers, spans, smuggling, rates, drift, interpolation, theft, starts, data, orders, files)

REGISTRY: dict[str, Attack] = {attack.name: attack for family in FAMILIES for attack in family.ATTACKS}

STUDY: dict[str, tuple[str, ...]] = {
    "A4": ("interpolation", "tiny-rate"),
    "A6": ("matched-start",),
    "A8": ("own-run-stolen-end",),
    "A15": ("chosen-order",),
    "A18": ("drifting",),
    "A19": ("huge-decay",),
    "T1": ("random-checkpoints",),
    "T2": ("constant-weights",),
    "T3": ("interpolation", "no-checkpoints"),
    "T4": ("own-run-stolen-end", "swapped-final"),
    "T5": ("edited-checkpoint", "edited-checkpoint-attested", "edited-checkpoint-sealed"),
    "T6": ("swapped-checkpoints", "swapped-records"),
    "T7": ("other-order", "other-indices", "repeated-order", "subset-order", "wrapped-order"),
    "T8": ("flipped-labels", "flipped-labels-committed"),
    "T9": ("poisoned-sample", "brushed-sample"),
    "T11": ("configured-rate", "declared-rate", "schedule-count", "tiny-rate", "huge-decay"),
    "T12": ("stolen-start", "stolen-base", "stolen-given", "noisy-start"),
    "T13": ("signed-again", "attested-again"),
    "T16": ("half-precision", "scaled-copy", "long-interval", "drifting"),
    "T17": ("swapped-buffers", "infinite-buffers", "other-counters"),
    "T18": ("first-momentum", "later-momentum"),
    "T19": ("nan-bridge", "infinite-buffers"),
    "T20": ("unlogged-tail", "dropped-tail", "shortened-spec", "other-length", "no-intervals", "no-checkpoints",
            "zero-steps"),
    "T22": ("pickled-checkpoint", "named-code", "outside-name", "linked-checkpoint"),
    "T23": ("swapped-release",),
    "I1": ("nan-bridge",),
    "I2": ("first-momentum", "later-momentum"),
    "I3": ("zero-rate", "state-rate"),
    "I4": ("swapped-buffers",),
    "I5": ("unlogged-tail", "dropped-tail", "shortened-spec"),
    "I6": ("no-intervals", "zero-steps"),
    "I7": ("scaled-copy",),
    "I8": ("swapped-leaves", "flipped-labels", "poisoned-sample"),
    "I9": ("pickled-checkpoint", "named-code"),
    "I10": ("untested-tensors",),
}  # fmt: skip
"""The attacks by their numbers in the study: A published ones, T trivial ones, I those on the code of 2021.

Of the published ones only those that are cheap to make are here.
"""

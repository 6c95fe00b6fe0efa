"""What the order of a run's data is, as far as its record shows it."""

from __future__ import annotations

from collections.abc import Iterable

from pol.interval import Interval
from pol.proof.genesis import Genesis
from pol.proof.policy import Order


def order_needed(genesis: Genesis, intervals: Iterable[Interval]) -> Order:
    """The narrowest ``policy.order`` that takes a run.

    An order of the claimant's own (``order.bin``) counts as a permutation: step 4 looks at every epoch of it.
    """
    kind, declaration = genesis.randomness.order, genesis.spec.declaration
    if kind != "recorded":
        return "derived" if kind == "derived" else "permutation" if kind == "observed" else "any"
    seen: set[int] = set()
    chosen = (batch for interval in intervals for batch in interval.indices or [])
    for number, batch in enumerate(chosen):
        if number % declaration.batches_per_epoch == 0:
            seen = set()
        if len(set(batch)) < len(batch) or not seen.isdisjoint(batch):
            return "any"
        seen.update(batch)
    return "permutation"

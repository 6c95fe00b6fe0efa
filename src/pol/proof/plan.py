"""What a policy's challenge will cost a verifier and would find, before anything is verified.

Detection probabilities are exact for a given set of forged intervals; a test measures them over thousands of nonces.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Sequence

import msgspec

from pol.digest import Digest
from pol.errors import UsageError
from pol.proof.challenge import Draws, Window, draw, largest_forged_share, miss, shares, spans
from pol.proof.policy import Challenge, Policy

SAMPLES = 200
"""Nonces over which the cost is averaged: what varies by some per cent is then known to a per mille."""

SHARES = (0.01, 0.05, 0.1, 0.5)
"""Shares for which a plan states the probability of detection."""

KINDS = ("weights", "optimizer", "buffers")
"""Kinds of state that an ordinary model has; they share the size-weighted draws."""

MAX_INTERVALS = 2_000_000
"""Most intervals of a plan: four times what the largest readable log holds; a bound because each is drawn from."""


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """How probable it is at least that forged intervals are met.

    The forger knows the policy and every size, and forges where only chance looks: intervals that move nothing, at the
    ends of windows, away from first, last and largest (only uniform draws count); or a share of the way that the
    weights went, in windows below the cap (only size-weighted draws count).
    """

    what: str
    share: float
    probability: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A policy applied to a run of a given size."""

    policy: str
    steps: int
    intervals: int
    windows: int
    replayed_steps: float
    """Mean over nonces; at most ``most_steps`` in those that were tried. As many intervals as the policy takes from the
    screens are counted as further ones."""
    most_steps: int
    replayed_share: float
    """Of the training's steps: what an audit costs, start-up left out."""
    openings: float
    """Mean number of states that the prover must take again, because they are compared and not kept."""
    forged_95: float
    """Share of intervals of which more are not forged, with 95 % confidence, if all pass; from uniform draws alone."""
    forged_99: float
    within_budget: bool
    detections: list[Detection]


def equal_windows(steps: int, every: int, keep: int) -> list[Window]:
    """The windows of a run of which only the size is known: each as large as any other.

    Raises:
        UsageError: there is no such run.
    """
    if min(steps, every, keep) < 1:
        raise UsageError(f"steps={steps}, every={every} and keep={keep} must be at least 1")
    count = -(-steps // every)
    if count > MAX_INTERVALS:
        raise UsageError(f"{count} intervals: a plan is made for at most {MAX_INTERVALS}")
    return [
        Window(first=first, last=min(first + keep, count) - 1, sizes=dict.fromkeys(KINDS, 1.0))
        for first in range(0, count, keep)
    ]


def detection(
    challenge: Challenge, windows: Sequence[Window], resumed: Sequence[int], forged: Collection[int], *,
    each: bool = False,
) -> float:  # fmt: skip
    """Probability, over the verifier's nonce, that a replay reaches one of the ``forged`` intervals.

    Args:
        challenge: What the policy asks for.
        windows: All windows of the run, with the sizes that the verifier measures.
        resumed: First intervals after a resume.
        forged: Indices; none is never met.
        each: Intervals are replayed one by one (rule tolerance).
    """
    if not forged:
        return 0.0
    certain = draw(msgspec.structs.replace(challenge, uniform=0, weighted=0), _DIGEST, bytes(32), windows, resumed)
    count = certain.intervals
    if challenge.strategy == "all" or (challenge.strategy == "mix" and count <= challenge.all_up_to):
        return 1.0
    bad = set(forged)

    def reaches(chosen: Collection[int]) -> bool:
        return any(bad & set(range(a, b + 1)) for a, b in spans(windows, chosen, each=each))

    if reaches([*certain.mandatory, *certain.top]):
        return 1.0
    window_of = {i: window for window in windows for i in range(window.first, window.last + 1)}
    touched = {i for window in {window_of[f].first: window_of[f] for f in bad}.values()
               for i in range(window.first, window.last + 1)}  # fmt: skip
    telling = sum(reaches([i]) for i in touched)  # uniform draws that lead to a forged interval
    drawn = min(challenge.uniform, count) if challenge.strategy in ("uniform", "mix") else 0
    unseen = miss(count, telling, drawn)
    if challenge.strategy in ("size-weighted", "mix"):
        near = [reaches(range(max(window.first - 1, 0), window.last + 1)) if _close(window, touched) else False
                for window in windows]  # fmt: skip
        for number, share in shares(windows, challenge.weighted):
            unseen *= (1 - sum(s for s, met in zip(share, near, strict=True) if met)) ** number
    return 1 - unseen


def _close(window: Window, touched: set[int]) -> bool:
    """Whether drawing a window, and so the interval before it, could reach one of ``touched``."""
    return any(i in touched for i in range(max(window.first - 1, 0), window.last + 1))


_DIGEST = Digest("sha256:" + "0" * 64)


def plan(policy: Policy, steps: int, every: int, keep: int, resumed: Sequence[int] = ()) -> Plan:
    """What a policy asks of a run, if all of its updates are alike; ``resumed``: first intervals after a resume.

    Raises:
        UsageError: there is no such run.
    """
    if policy.procedure != "eight-steps":
        raise UsageError(f"policy {policy.name!r}: only procedure eight-steps draws a challenge that can be planned")
    windows = equal_windows(steps, every, keep)
    count, each = windows[-1].last + 1, policy.rule == "tolerance"
    challenge = policy.challenge
    kept = {*range(0, count, keep), count}
    costs, opened, uniform = [], 0, 0
    tries = 1 if count <= challenge.all_up_to or challenge.strategy == "all" else SAMPLES
    for number in range(tries):
        nonce = hashlib.sha256(number.to_bytes(8, "big")).digest()
        draws = draw(challenge, _DIGEST, nonce, windows, resumed)
        found = spans(windows, [*draws.all(), *_elsewhere(challenge, windows, draws)], each=each)
        costs.append(sum(min((last + 1) * every, steps) - first * every for first, last in found))
        opened += len({end for first, last in found for end in (first, last + 1)} - kept) if each else 0
        uniform = len(draws.uniform)
    budget = policy.max_steps
    return Plan(
        policy=f"{policy.name}/{policy.version}",
        steps=steps,
        intervals=count,
        windows=len(windows),
        replayed_steps=sum(costs) / tries,
        most_steps=max(costs),
        replayed_share=sum(costs) / tries / steps,
        openings=opened / tries,
        forged_95=largest_forged_share(count, uniform),
        forged_99=largest_forged_share(count, uniform, 0.01),
        within_budget=budget is None or max(costs) <= budget,
        detections=_detections(challenge, windows, uniform),
    )


def _elsewhere(challenge: Challenge, windows: Sequence[Window], draws: Draws) -> list[int]:
    """What screens may add at most: intervals, each in a window that nothing else looks at.

    Which they are is only known when there is a proof, so they count in the cost, and not in what is found.
    """
    if challenge.strategy != "mix":
        return []
    met = set(draws.all())
    unmet = (w.last for w in windows if met.isdisjoint(range(w.first, w.last + 1)))
    return list(itertools.islice(unmet, challenge.screened))


def _detections(challenge: Challenge, windows: Sequence[Window], uniform: int) -> list[Detection]:
    count = windows[-1].last + 1
    everything = uniform == count
    found = [Detection(what="one single interval", share=1 / count, probability=uniform / count)]
    for share in SHARES:
        forged = max(1, round(share * count))
        found.append(Detection(what="intervals", share=forged / count, probability=1 - miss(count, forged, uniform)))
    weighted = challenge.weighted if challenge.strategy in ("size-weighted", "mix") else 0
    draws, _ = shares(windows, weighted)[-1]  # kinds are sorted: of the weights
    for share in SHARES[:-1]:  # in windows of no more than the cap each
        met = 1.0 if everything else 1 - (1 - share) ** draws
        found.append(Detection(what="of the way the weights went", share=share, probability=met))
    return found

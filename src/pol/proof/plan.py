"""What a policy's challenge will cost a verifier and would find, before anything is verified.

Detection probabilities are exact for a given set of forged intervals; a test measures them over thousands of nonces.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from pol.digest import Digest
from pol.errors import UsageError
from pol.proof.challenge import Draws, Lots, Window, draw, largest_forged_share, miss, shares, spans
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


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one challenge costs both parties: means over nonces."""

    replayed_steps: float
    """That the verifier takes again."""
    openings: float
    """States that the prover must take again, because they are compared and not kept."""
    answered_steps: float
    """That the prover takes again for them: each from the kept state before it, each window once."""
    opening_bytes: float | None
    """Bytes of these states, which the verifier takes over, too; None where no state is known."""


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
    answered_steps: float
    opening_bytes: float | None
    """These three as in ``Cost``, of which ``replayed_steps`` is one, too."""
    uniform: Cost | None
    """What strategy ``uniform`` would cost instead, where states must be taken again and it would be less."""
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


def plan(
    policy: Policy, steps: int, every: int, keep: int, resumed: Sequence[int] = (), state_bytes: int | None = None
) -> Plan:
    """What a policy asks of a run, if all of its updates are alike.

    Args:
        policy: What is demanded.
        steps: T.
        every: k.
        keep: K.
        resumed: First intervals after a resume.
        state_bytes: Size of one state, if it is known.

    Raises:
        UsageError: there is no such run.
    """
    if policy.procedure != "eight-steps":
        raise UsageError(f"policy {policy.name!r}: only procedure eight-steps draws a challenge that can be planned")
    windows = equal_windows(steps, every, keep)
    count, challenge = windows[-1].last + 1, policy.challenge
    run = _Run(steps, every, keep, windows, resumed, policy.rule == "tolerance", state_bytes)
    cost, most, uniform = run.cost(challenge)
    other = run.cost(msgspec.structs.replace(challenge, strategy="uniform"))[0] if cost.openings else cost
    budget = policy.max_steps
    return Plan(
        policy=f"{policy.name}/{policy.version}",
        steps=steps,
        intervals=count,
        windows=len(windows),
        replayed_steps=cost.replayed_steps,
        most_steps=most,
        replayed_share=cost.replayed_steps / steps,
        openings=cost.openings,
        answered_steps=cost.answered_steps,
        opening_bytes=cost.opening_bytes,
        uniform=other if other.openings < cost.openings else None,
        forged_95=largest_forged_share(count, uniform),
        forged_99=largest_forged_share(count, uniform, 0.01),
        within_budget=budget is None or most <= budget,
        detections=_detections(challenge, windows, uniform),
    )


@dataclass(frozen=True)
class _Run:
    """A run of a given size."""

    steps: int
    every: int
    keep: int
    windows: Sequence[Window]
    resumed: Sequence[int]
    each: bool
    """Intervals are replayed one by one (rule tolerance)."""
    state_bytes: int | None

    def cost(self, challenge: Challenge) -> tuple[Cost, int, int]:
        """The mean cost of a challenge, the most steps that were replayed, and the number of uniform draws."""
        count = self.windows[-1].last + 1
        costs, opened, answered, uniform = [], 0, 0, 0
        all_drawn = challenge.strategy == "all" or (challenge.strategy == "mix" and count <= challenge.all_up_to)
        tries, lots = 1 if all_drawn else SAMPLES, Lots(challenge, self.windows, self.resumed)
        for number in range(tries):
            nonce = hashlib.sha256(number.to_bytes(8, "big")).digest()
            draws = lots.draw(_DIGEST, nonce)
            found = spans(self.windows, [*draws.all(), *_elsewhere(challenge, self.windows, draws)], each=self.each)
            costs.append(sum(self._step(last + 1) - self._step(first) for first, last in found))
            asked = {end for first, last in found for end in (first, last + 1)} if self.each else set()
            asked -= {*range(0, count, self.keep), count}
            opened += len(asked)
            last = {end // self.keep * self.keep: end for end in sorted(asked)}  # of each window
            answered += sum(self._step(end) - self._step(first) for first, end in last.items())
            uniform = len(draws.uniform)
        mean = opened / tries
        cost = Cost(
            replayed_steps=sum(costs) / tries,
            openings=mean,
            answered_steps=answered / tries,
            opening_bytes=None if self.state_bytes is None else mean * self.state_bytes,
        )
        return cost, max(costs), uniform

    def _step(self, boundary: int) -> int:
        return min(boundary * self.every, self.steps)


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

"""What the bench of attacks found: one cell for each attack and policy."""

from __future__ import annotations

import msgspec

from pol.proof.report import Verdict

ARRIVED = 1e-3
"""Of the way of the stolen run: who ends nearer than that to its end has its model."""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a forgery cost its maker."""

    gradients: int
    """Gradient evaluations."""
    share: float
    """These, as a share of those of the honest training."""
    seconds: float
    bytes: int
    """Of the forged proof."""


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """How often a challenge meets a forgery, looked up for many nonces: every interval was replayed once."""

    forged: int
    """Intervals whose replay failed."""
    intervals: int
    draws: int
    """Challenges that were drawn, each from a nonce of its own."""
    met: float
    """Share of them that met a forged interval."""
    predicted: float
    """Probability of that, computed."""
    low: float
    high: float
    """Between these the measured share lies with a probability of 99.999 %, if the prediction is right."""
    uniform: float
    """Share in which the uniform draws alone met one."""
    uniform_predicted: float
    """Probability of that: hypergeometric."""
    uniform_low: float
    uniform_high: float
    """The same interval for them."""

    @property
    def as_predicted(self) -> bool:
        """Whether both measured shares are within the binomial intervals of their predictions."""
        return self.low <= self.met <= self.high and self.uniform_low <= self.uniform <= self.uniform_high


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One attack against one policy."""

    attack: str
    title: str
    study: list[str]
    """Its numbers in the attack study."""
    policy: str
    in_scope: bool
    """Whether a proof of learning has to refuse it."""
    survives: str
    """Why not, if it has not."""
    reported: str
    """What is published of it."""
    verdict: Verdict | None
    """None: there was nothing to verify, and ``reason`` says why."""
    step: int | None
    """Number of the step that caught it."""
    reason: str
    """Why it was not accepted; or why there is no forgery."""
    cost: Spent | None
    """None: the attack does not apply to this training, or is broken."""
    broken: bool = False
    """Whether the attack or its verification failed with an error that is none of its own: a fault of ours."""
    bound: bool = False
    """Whether its cost has to be within the budget."""
    apart: float | None = None
    """How far its last parameters are from the stolen ones, as a share of how far the stolen run went; None where that
    cannot be said. 0: it claims the stolen model."""
    accuracy: float | None = None
    """Share of the first training samples to which its model gives their class; None where there is no such model."""
    detection: Detection | None = None
    """For policies that sample, where steps 1 to 6 pass."""

    @property
    def arrives(self) -> bool:
        """Whether it claims the stolen model, but for what rounding leaves: a forgery may also end somewhere else."""
        return self.apart is not None and self.apart <= ARRIVED


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run of the bench found."""

    schema: str = "pol/bench-attacks/v1"
    suite: str
    recipe: str
    settings: dict[str, bool | int | float | str | None]
    steps: int
    every: int
    budget: float
    """Of the adaptive forger, as a share of the gradients of the honest training."""
    delta: dict[str, float]
    """By metric, of policy paper-2021 here: a hundredth of the distance between independent runs."""
    policies: dict[str, str]
    """Digests of the policies, by name."""
    honest: dict[str, Verdict]
    """Verdict on the honest proof, by policy."""
    honest_reasons: dict[str, str]
    """Why it was not accepted, by policy; nothing of those that accepted it."""
    honest_seconds: float
    honest_bytes: int
    honest_accuracy: float | None
    """As of the forgeries."""
    environment: dict[str, str]
    seconds: float
    """Of the whole bench, with the training beside."""
    results: list[Cell]
    beside: Outcome | None = None
    """What the suite's further attacks found, on another training."""

    @property
    def false_accepts(self) -> list[str]:
        """Attacks that policy ``exact full`` had to refuse, and did not."""
        return [c.attack for c in self.results if c.policy == FULL and c.in_scope and c.verdict is Verdict.ACCEPT]

    @property
    def undecided(self) -> list[str]:
        """Attacks of which it could not tell: that is no refusal."""
        verdicts = (None, Verdict.ACCEPT, Verdict.REJECT)
        return [c.attack for c in self.results if c.policy == FULL and c.in_scope and c.verdict not in verdicts]

    @property
    def inapplicable(self) -> list[str]:
        """Attacks that do not apply to this training, under any policy."""
        made = {cell.attack for cell in self.results if cell.verdict is not None or cell.broken}
        return [name for name in dict.fromkeys(c.attack for c in self.results) if name not in made]

    @property
    def unpredicted(self) -> list[str]:
        """Attacks that were met by another share of the challenges than predicted."""
        return [c.attack for c in self.results if c.detection is not None and not c.detection.as_predicted]

    @property
    def broken(self) -> dict[str, str]:
        """Attacks that failed with an error, and the first that each had."""
        return {cell.attack: cell.reason for cell in reversed(self.results) if cell.broken}

    @property
    def overspent(self) -> list[str]:
        """Attacks that took more gradients than they were given, where they have to keep to that."""
        found = [c.attack for c in self.results if c.bound and c.cost is not None and c.cost.share > self.budget]
        return list(dict.fromkeys(found))

    @property
    def ok(self) -> bool:
        """Whether every honest proof was accepted, every forgery refused, met as predicted, and none failed.

        That of the verification of 2021 is left out: its test of first weights rejects one honest run in a hundred.
        """
        replayed = [cell for cell in self.results if cell.policy == FULL and cell.verdict is not None]
        verdicts = {name: verdict for name, verdict in self.honest.items() if name != PAPER}
        honest = bool(verdicts) and all(verdict is Verdict.ACCEPT for verdict in verdicts.values())
        wrong = (self.false_accepts, self.undecided, self.unpredicted, self.broken, self.overspent)
        return honest and bool(replayed) and not any(wrong) and (self.beside is None or self.beside.ok)


PAPER, RELATIVE, TOLERANCE, SAMPLED, FULL = "paper-2021", "relative only", "tolerance", "exact sampled", "exact full"
"""The policies of the bench."""

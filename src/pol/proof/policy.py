"""The policy: what a verifier demands. It is the verifier's own, and its digest stands in the report.

A policy is a value; ``pol.policies`` reads it from a TOML file. A field is a clause, and a further clause or a tighter
one never turns a rejection into an acceptance. No clauses but choices, which ask another question, are ``procedure``,
``rule``, ``laws`` and the whole table ``paper``, whose limits take the place of the original's constants. ``name`` and
``version`` only stand in the report.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

from pol import canonical
from pol.declaration import DigestField
from pol.digest import Digest, sha256
from pol.errors import UsageError
from pol.profile import MAX_THREADS
from pol.proof.bounds import Bounds as Bounds
from pol.proof.bounds import Natural as Natural
from pol.proof.bounds import Size as Size
from pol.proof.bounds import Struct as Struct

Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
"""A significance level: at 0 no test fails, at 1 every one does."""
Precision = Literal["highest", "high", "medium"]
Metric = Literal["l1", "l2", "linf", "cos"]
Strategy = Literal["all", "top-q", "uniform", "size-weighted", "mix"]
Rule = Literal["exact", "tolerance"]
Order = Literal["derived", "permutation", "any"]
Level = Literal["observed", "seed-declared", "self-seeded", "verifier-seeded"]

LEVELS: tuple[Level, ...] = ("observed", "seed-declared", "self-seeded", "verifier-seeded")
"""Assurance levels, from the weakest: who chose the first weights and the randomness."""

ORDERS: tuple[Order, ...] = get_args(Order)
"""Orders of the data that a verifier takes, each with those before it."""


class Challenge(Struct, frozen=True):
    """Which intervals to replay. First, last, largest and resumed windows are always among them."""

    strategy: Strategy = "mix"
    top: Natural = 1
    """Q: the largest windows of each kind in each stratum."""
    uniform: Natural = 100
    """Uniform draws: 100 that pass say that at most 3 % are forged, with 95 % confidence (attack study, section 8)."""
    weighted: Natural = 60
    """Size-weighted draws: they meet a jump that is hidden among many honest steps (attack study, section 8)."""
    all_up_to: Natural = 150
    """With no more intervals than this, ``mix`` replays all: sampling would save little (attack study, section 8)."""
    screened: Natural = 5
    """Intervals that the screens find most suspicious (attack study, section 10: five)."""

    def __post_init__(self) -> None:
        if min(self.top, self.uniform, self.weighted, self.all_up_to, self.screened) < 0:
            raise ValueError("a challenge has no negative counts")


class Limits(Struct, frozen=True):
    """Rule ``tolerance``: the largest reproduction error (Euclidean, in float64) of one tensor over one interval.

    ``min(relative * move, absolute * sqrt(n)) + floor * 2**-24 * norm`` where *move* is how far the replay moved the
    tensor, *n* its elements and *norm* its Euclidean norm before the interval (float64 tensors: 2**-53). The error of a
    parameter includes what errors of its optimizer's moments will add to it in all later steps.
    """

    relative: Size
    """Share of the replayed move. Alone it is breakable: lr * weight_decay = 2 makes every move twice the weights."""
    absolute: Size
    """Root mean square over the elements. Alone it is breakable: smaller steps, and more of them, go anywhere."""
    tensors: dict[str, Size] = msgspec.field(default_factory=dict)
    """The same for single entries, by key, in place of ``absolute``; a calibration fills it."""
    floor: Size = 4.0
    """Rounding that is always allowed, in units of half a last place of the tensor's norm: without it a tensor that
    hardly moves would fail honest runs (attack study, section 8: four)."""
    loss: Size = 1e-3
    """Largest error of a recorded mean loss, as a share of it plus one: it is a claim, nothing starts from it."""
    drift: Size = 0.01
    """Largest sum of all limits, as a share of the distance from the first weights to the last: what a forger could
    move for free (attack study, section 11: one per cent)."""
    reference: Size | None = None
    """Largest error of all parameters together, as a share of the calibrated reference distance; needs one."""
    optimizers: tuple[str, ...] = ()
    """Further optimizers that this rule takes, by type, beside SGD, Adam and AdamW. What errors of their moments will
    do is not known, so it counts as nothing: naming one here takes that risk."""
    branches: Size = 0.02
    """Largest share of the replayed intervals whose error may be explained by a *branch*: of twenty replays from starts
    that are one rounding off, one ends within the limits. About one step in a thousand of the digits recipe takes
    another way on another machine: rounding decides on which side of zero a unit falls (docs/policies.md)."""
    refute: Size = 0.5
    """On a machine that does not give the recorded profile, an error beyond the limits counts against the prover only
    from this share of the move of all parameters on, only if rounding and other random draws, measured here,
    explain less than a tenth of it, and only under the recorded releases of torch and numpy; else the verdict is
    INCONCLUSIVE. Other kernels gave at most 0.02 at k = 10, forgeries without training 0.7 and
    more (measured baseline, C; attack study, section 1)."""


class Reference(Struct, frozen=True):
    """The reference distances d_ref of a calibration: means over pairs of independent runs, parameters only."""

    calibration: str
    """Digest of the signed calibration."""
    recipe: str
    """Digest of the recipe that was calibrated."""
    l1: Size
    l2: Size
    linf: Size
    cos: Size
    configuration: str | None = None
    """Digest of the constructor arguments of that recipe; None: of any."""


class Paper(Struct, frozen=True):
    """The verification of 2021: one global limit per metric, and the largest updates of each epoch."""

    top: Natural = 2
    """Q per epoch; 0 replays all (the code's default is 2)."""
    level: Share = 0.01
    """Significance level of the test of the first weights."""
    fraction: Size | None = None
    """delta as a fraction of d_ref (0.01 in the authors' text, 0.008 in their later code); needs a reference."""
    delta: dict[Metric, Size] | None = None
    """Absolute deltas by metric; without these and ``fraction``, the constants of the code."""
    choose: tuple[Metric, ...] = ()
    """Metrics by which the largest updates are chosen; empty: those that judge, which are those with a delta."""


class Policy(Struct, frozen=True):
    """What must hold for ACCEPT."""

    name: str = "exact"
    version: Natural = 4
    procedure: str = "eight-steps"
    """Which registered procedure verifies."""
    rule: Rule = "exact"
    """The rule that the genesis must fix."""
    keys: tuple[DigestField, ...] = ()
    """Fingerprints of trusted provers; empty: anybody's, and the report says whose."""
    recipes: tuple[DigestField, ...] = ()
    """Digests of the allowed recipes; empty: the one that the verifier names, whatever it is."""
    matmul: tuple[Precision, ...] = ()
    """Allowed precisions of float32 matrix products (``highest``, ``high``, ``medium``); empty: any."""
    dtypes: tuple[str, ...] = ()
    """Allowed element types of parameters (``F32``, ``F64``, …); empty: any."""
    assurance: Level = "self-seeded"
    """Lowest acceptable assurance level."""
    beacon: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    """The nonce (hex) that this verifier gave for this genesis; None: it gave none."""
    genesis: DigestField | None = None
    """Digest of the genesis for which this verifier gave its nonce. Only with both is it known that the claimant had
    signed before it knew the nonce."""
    attestation: DigestField | None = None
    """Digest of the attestation that must be verified: the one for which a nonce was drawn, if its prover knows it."""
    start: DigestField | None = None
    """Digest of the weights root of the first state: of those that this verifier gave out."""
    order: Order = "derived"
    """``permutation`` also takes an order of the claimant's or the recipe's own, if no epoch visits a sample twice;
    ``any`` also takes draws with replacement and streams, whose samples have no number."""
    challenge: Challenge = Challenge()
    constants: Literal["none", "buffers", "any"] = "buffers"
    """Which seed-independent tensors of several values a recipe may build. Buffers are masks and tables; constant
    *parameters* would be weights from elsewhere."""
    externals: tuple[DigestField, ...] = ()
    """Digests of files that the build may read."""
    bases: tuple[DigestField, ...] = ()
    """Roots of the frozen bases over which a run may train."""
    laws: dict[str, str] = msgspec.field(default_factory=dict)
    """Initialisation laws by pattern of entry keys, for observed first weights; others are found from own builds."""
    level: Share = 0.01
    """Family-wise significance level of the test of observed first weights (the paper's level)."""
    limits: Limits | None = None
    """Of rule tolerance."""
    bounds: Bounds = Bounds()
    reference: Reference | None = None
    """The reference distance, from a calibration that the verifier trusts."""
    paper: Paper | None = None
    """Of procedure paper-2021."""
    max_depth: Natural = 8
    """Longest chain of parents. Each is verified whole, so this bounds cost alone; longer ones are not known."""
    max_threads: Natural = MAX_THREADS
    """Most threads that a replay is given: the profile is the prover's, the machine is the verifier's."""
    max_bytes: Natural = 2**40
    """Largest proof that is read: 1 TiB."""
    max_steps: Natural | None = None
    """Most steps that the verifier is willing to replay; more mandatory ones make the verdict INCONCLUSIVE."""


EXACT = Policy()
"""The default: every replayed state must be equal to the recorded one, bit for bit."""


def policy_digest(policy: Policy) -> Digest:
    """Digest of a policy."""
    return sha256(canonical.encode(policy))


def check_policy(policy: Policy) -> None:
    """Refuse a policy that does not say what its rule needs.

    Raises:
        UsageError: with what to add.
    """
    if (policy.rule == "tolerance") != (policy.limits is not None):
        raise UsageError(
            f"policy {policy.name!r}: rule tolerance and a table [limits] go together: equality needs no limits, and "
            "without limits any error would do"
        )
    if policy.limits is not None and policy.limits.reference is not None and policy.reference is None:
        raise UsageError(f"policy {policy.name!r}: limits.reference is a share of d_ref: name a calibration")
    if (policy.procedure == "paper-2021") != (policy.paper is not None):
        raise UsageError(f"policy {policy.name!r}: procedure paper-2021 and a table [paper] go together")
    if policy.paper is not None:
        _check_paper(policy, policy.paper)
    if policy.genesis is not None and policy.beacon is None:
        raise UsageError(f"policy {policy.name!r}: genesis is the one that a nonce was given for: give beacon, too")


def _check_paper(policy: Policy, paper: Paper) -> None:
    if paper.fraction is not None and policy.reference is None:
        raise UsageError(f"policy {policy.name!r}: paper.fraction is a fraction of d_ref: name a calibration")
    named = {"delta": paper.delta, "choose": paper.choose or None}
    for key, metrics in named.items():
        if metrics is not None and (not metrics or set(metrics) - set(get_args(Metric))):
            names, known = ", ".join(sorted(metrics)) or "no metric", ", ".join(get_args(Metric))
            raise UsageError(f"policy {policy.name!r}: paper.{key} names {names}; there are {known}")

"""Bounds of a policy: what ordinary trainings stay within, whatever their hyperparameters are called.

Outside of them a run proves little, however exact it is: it may change nothing, or anything (attack study, T11).
None and an empty list bound nothing. Defaults with reasons are in the preset ``tolerance``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Natural = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[float, msgspec.Meta(ge=0, le=1e300)]
"""A finite size: a limit that is not finite limits nothing."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A clause, or a group of clauses."""


BY_HAND = "by hand"
"""In ``schedules``: rates that the program sets without a schedule."""


class Bounds(Struct, frozen=True):
    """Bounds of hyperparameters, settings, sizes and losses."""

    # -- learning rates, as they are recorded for every step --
    learning_rate: Size | None = None
    """Largest learning rate of any group at any step."""
    least_rate: Size | None = None
    """Least learning rate of the whole run: the largest of any group and step must reach it (attack study, A4)."""
    rate_times_decay: Size | None = None
    """Largest lr * weight_decay: at 2 every step turns the weights over (attack study, A19)."""
    multiplier: Size | None = None
    """Largest ratio of the mean rates of two groups of one optimizer, those at 0 aside: these count as frozen."""
    schedules: tuple[str, ...] = ()
    """Types of schedules that are taken; ``by hand`` is for rates that change without one. Empty: any."""
    scheduled: bool = False
    """Every recorded rate must be one that the recipe's own schedule gives, stepped here as often as the log says; the
    declared one, where nothing may change it."""
    reversals: Size | None = None
    """Most changes of direction of a group's rate, as a share of the steps, after ten: a rate that jumps to and fro is
    a list of one number per step, in which each may be fitted to its step (attack study, A5)."""
    # -- optimizers, as declared --
    momentum: Size | None = None
    """Largest momentum, beta, dampening or smoothing; 1 never forgets what was put in, or takes nothing new."""
    eps: Size | None = None
    """Largest eps or first accumulator, by which steps are divided: a large one makes them nothing."""
    frozen: Size | None = None
    """Largest share of all parameters that no group trains, or only at rate 0; of runs that start from weights of a
    parent or of the verifier's own, no part is bounded: those weights have a proof of their own."""
    # -- sizes of the run --
    min_steps: Natural = 1
    """Fewest steps of a run."""
    min_epochs: Natural = 1
    """Fewest epochs of a run."""
    max_every: Natural | None = None
    """Largest k: tolerance loses its power with longer intervals (measured baseline, C)."""
    skipped: Size | None = None
    """Largest share of steps that are recorded as skipped, after twenty: they change nothing by design."""
    # -- how far weights move --
    moved: bool = False
    """The weights must change by more than rounding in half of the windows or more that have a rate, and be it a
    thousandth of the run's largest: rates below half a unit in the last place leave them as they are."""
    progress: Size | None = None
    """Least move of a window by Adam and its like, in half of the windows or more: root mean square of the elements, as
    a share of the rates in force (square root of the sum of their squares, a random walk of such steps)."""
    pace: Size | None = None
    """Largest move of a window after the first 5 % of the steps: root mean square of the elements of a group, per sum
    of the rates in force. Weights that move where the rate is next to 0 were not moved by it (attack study, A4)."""
    update: Size | None = None
    """Largest move of all trained parameters in one step, as a share of their norm, after the first 5 % of the steps,
    in which weights find their scale (attack study, T11)."""
    # -- losses, as they are recorded --
    start_loss: Size | None = None
    """Least mean loss of the first interval, as a share of what fresh starts of the verifier's own give (attack study,
    T12); of runs that start from weights of a parent or of the verifier's own, nothing is asked."""
    loss_drop: Size | None = None
    """Most by which the mean loss of an interval may fall below all before it, as a share of the largest of the first
    (those of the first ten steps, two intervals and 64 samples; k up to 10)."""
    # -- settings in the program, as the verifier's own first steps show them --
    clip_norm: Size | None = None
    """Least norm to which gradients are clipped."""
    clip_value: Size | None = None
    """Least value to which each element of the gradients is clipped."""
    dropout: Size | None = None
    """Largest probability of any dropout in training mode."""
    label_smoothing: Size | None = None
    """Largest label smoothing; at 1 the labels say nothing."""
    zero_weights: Size | None = None
    """Largest share of classes that a loss weighs with 0 or less."""
    norm_momentum: Size | None = None
    """Largest share of one batch in running statistics."""
    gradient: Size | None = None
    """Least Euclidean norm of the gradients of at least one of those steps: a loss times 0 has none."""


OF_TRIAL = (
    "start_loss", "scheduled", "clip_norm", "clip_value", "dropout", "label_smoothing", "zero_weights", "norm_momentum",
    "gradient",
)  # fmt: skip
"""Bounds for which the verifier takes first steps of its own (step 5); the others need the proof alone (step 4)."""

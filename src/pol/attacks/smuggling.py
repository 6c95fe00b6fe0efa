"""State and numbers beside the weights carry the lie: momentum, learning rates, schedules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import torch

from pol import canonical
from pol.attacks.attack import Attack
from pol.attacks.forger import Forger
from pol.attacks.needs import DoesNotApply
from pol.attacks.workshop import Workshop
from pol.interval import Interval

BOOST = 10.0
"""By how much smuggled learning rates are larger than the registered one."""

MOMENTUM = "momentum_buffer"


def first_momentum(workshop: Workshop, out: Path) -> None:
    """Momentum in the first checkpoint throws a fresh start at the stolen weights; all steps are then honest."""
    forger = workshop.begin()
    workshop.pretend(forger)  # for the learning rates
    forger.states[forger.steps] = forger.states[0]  # without momentum the weights would stay, but for gradients
    _aim(workshop, forger, 0, shots=1)
    forger.seal(out, workshop.key)


def later_momentum(workshop: Workshop, out: Path) -> None:
    """An honest run; momentum in its last but one checkpoint makes the last window end at the stolen weights."""
    forger = workshop.record()
    _aim(workshop, forger, forger.kept[-2], shots=6)
    forger.seal(out, workshop.key)


def _aim(workshop: Workshop, forger: Forger, step: int, shots: int) -> None:
    """Choose momentum at ``step`` so that honest steps from there end at the stolen weights, and take them.

    Each shot corrects for the gradients that the one before met on its way; a correction that ends farther away
    is taken back and tried by half.
    """
    start, reach = forger.states[step].tensors, _reach(workshop, forger, step)
    for name in reach:
        start.setdefault(_slot(name), torch.zeros_like(start[f"parameter/{name}"]))
    aim = {name: start[_slot(name)] for name in reach}
    missed, share = _missed(workshop, forger, reach), 1.0
    for shot in range(shots):
        start |= {_slot(name): aim[name] + share * missed[name] / weight for name, weight in reach.items()}
        workshop.train(forger, step)
        found = _missed(workshop, forger, reach)
        if shot == 0 or _norm(found) < _norm(missed):
            aim, missed, share = {name: start[_slot(name)] for name in reach}, found, 1.0
        else:
            share /= 2
    if any(start[_slot(name)] is not aim[name] for name in reach):  # the last shot was not the best
        start |= {_slot(name): aim[name] for name in reach}
        workshop.train(forger, step)


def _missed(workshop: Workshop, forger: Forger, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """From the stolen weights to where the run ends."""
    end, stolen = forger.states[forger.steps].tensors, workshop.stolen().tensors
    return {name: end[f"parameter/{name}"] - stolen[f"parameter/{name}"] for name in names}


def _norm(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors.values())


def _slot(name: str) -> str:
    return f"optimizer/optimizer.{name}.{MOMENTUM}"


def _reach(workshop: Workshop, forger: Forger, step: int) -> dict[str, float]:
    """How far momentum 1 at ``step`` carries each parameter until the end of the run: sum of lr_t mu^t.

    The velocity t steps later is mu^t, and every step subtracts it times its learning rate.
    """
    optimizers = workshop.build(forger).parts.optimizers
    if list(optimizers) != ["optimizer"] or not all(g.get("momentum") for g in optimizers["optimizer"].param_groups):
        raise DoesNotApply("this attack needs a recipe with one optimizer that has momentum")
    rates = [
        rates.values
        for interval in forger.intervals[forger.first_interval(step) :]
        for rates in interval.learning_rates
        for _ in range(rates.steps)
    ]
    groups = next(part.groups for part in forger.genesis.spec.declaration.parts if part.name == "optimizer")
    reach: dict[str, float] = {}
    for number, (group, live) in enumerate(zip(groups, optimizers["optimizer"].param_groups, strict=True)):
        decay, ahead = live["momentum"], int(bool(live.get("nesterov")))  # Nesterov's looks one step ahead
        total = sum(float(values[number]) * decay ** (t + ahead) for t, values in enumerate(rates, start=1))
        reach |= dict.fromkeys(group.parameters, total)
    return reach


def state_rate(workshop: Workshop, out: Path) -> None:
    """A learning rate in the optimizer's state of a checkpoint, and honest training with it from there."""
    forger = workshop.record()
    step, rate = _middle(forger), BOOST * workshop.configured(forger, "lr")
    honest = list(forger.intervals)
    workshop.train(forger, step, settings={"lr": rate})
    _hide_rates(forger, honest)
    groups = next(part.groups for part in forger.genesis.spec.declaration.parts if part.name == "optimizer")
    value = {"groups": [{"lr": canonical.tag(rate)} for _ in groups], "state": []}
    for kept in forger.states:
        if kept >= step:
            data = bytearray(canonical.encode(value))
            forger.states[kept].tensors["value/optimizer"] = torch.frombuffer(data, dtype=torch.uint8)
    forger.seal(out, workshop.key)


def schedule_count(workshop: Workshop, out: Path) -> None:
    """A record claims that the schedule stood still for an interval, and honest training goes on from that count."""
    forger = workshop.record()
    step = _middle(forger)
    index = forger.first_interval(step) - 1
    counts = forger.intervals[index - 1].schedules if index else dict.fromkeys(forger.intervals[0].schedules, 0)
    if not counts:
        raise DoesNotApply("this attack needs a recipe with a schedule")
    forger.replace(index, schedules=counts)
    workshop.train(forger, step)
    forger.seal(out, workshop.key)


def configured_rate(workshop: Workshop, out: Path) -> None:
    """The genesis registers one learning rate; every step is taken with another."""
    forger = workshop.begin()
    workshop.pretend(forger)
    honest = list(forger.intervals)
    workshop.train(forger, settings={"lr": BOOST * workshop.configured(forger, "lr")})
    _hide_rates(forger, honest)
    forger.seal(out, workshop.key)


def declared_rate(workshop: Workshop, out: Path) -> None:
    """The declaration in the genesis has another learning rate than its configuration builds, as have all steps."""
    forger = workshop.begin()
    settings = {"lr": BOOST * workshop.configured(forger, "lr")}
    declaration = workshop.build(forger, settings).declaration
    spec = msgspec.structs.replace(forger.genesis.spec, declaration=declaration)
    forger.genesis = msgspec.structs.replace(forger.genesis, spec=spec)
    workshop.first_state(forger)
    workshop.train(forger, settings=settings)
    forger.seal(out, workshop.key)


def _middle(forger: Forger) -> int:
    if len(forger.kept) < 3:
        raise DoesNotApply("this attack needs a kept checkpoint between the first and the last")
    return forger.kept[len(forger.kept) // 2]


def _hide_rates(forger: Forger, honest: list[Interval]) -> None:
    """Records name the registered rates, whatever was used."""
    for index, record in enumerate(honest):
        forger.replace(index, learning_rates=record.learning_rates)


_INJECTED = (
    "one interval of ten steps from random weights to stolen ones, l2 error 4.8e-6: accepted by the "
    "released code (attack study, I2)"
)

ATTACKS = (
    Attack(
        "first-momentum",
        "momentum in the first checkpoint, aimed at stolen weights",
        "thief",
        first_momentum,
        study=("T18", "I2"),
        reported=_INJECTED,
    ),
    Attack(
        "later-momentum",
        "momentum in a later checkpoint, aimed at stolen weights",
        "thief",
        later_momentum,
        study=("T18", "I2"),
        reported=_INJECTED,
    ),
    Attack(
        "state-rate",
        "a learning rate hidden in optimizer state",
        "thief",
        state_rate,
        study=("I3",),
        reported="load_state_dict of the released code overrides what the verifier set (attack study, I3)",
    ),
    Attack("schedule-count", "a schedule set back in the log", "thief", schedule_count, study=("T11",)),
    Attack(
        "configured-rate",
        "another learning rate than the registered one",
        "thief",
        configured_rate,
        study=("T11",),
        reported="rho 1.0e-2 or more for a rate that is off by 1 % (attack study, section 1)",
    ),
    Attack(
        "declared-rate",
        "another learning rate in the spec than the recipe builds",
        "thief",
        declared_rate,
        study=("T11",),
    ),
)

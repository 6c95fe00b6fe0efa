"""Step 4: declared hyperparameters, recorded learning rates and the size of a run are within the policy's bounds.

Each clause bounds what it knows by name, and says what that was: an optimizer of one's own may call its numbers
otherwise, and then the recipe says what they do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pol import canonical
from pol.declaration import Group
from pol.distance import within
from pol.errors import FormatError, IntegrityError
from pol.proof.bounds import BY_HAND, Bounds
from pol.verifier import bind
from pol.verifier.case import Case, Checks, failed, passed
from pol.verifier.moves import rated_groups

MOMENTA = ("momentum", "base_momentum", "max_momentum", "betas", "dampening", "rho", "alpha")
"""Hyperparameters that say how much an optimizer keeps of what it has, or leaves out of what is new, by the names of
torch; the second and third are those between which a one-cycle schedule moves the first."""

EPS = ("eps", "initial_accumulator_value")
"""What is added to that by which a step is divided."""

DECAYS = ("weight_decay", "lambd")
"""What draws weights to 0, times the learning rate."""

FREE_REVERSALS = 10
"""Changes of direction that are not counted: a few warm restarts in a short run."""

SAME = 1e-9
"""Rates that differ by a smaller share are one: schedules that multiply again and again round."""

FREE_SKIPS = 20
"""Skipped steps that are not counted: a gradient scaler begins at 2**16 and halves that until nothing overflows."""


def beyond(what: str, found: float, key: str, bounds: Bounds, *, least: bool = False) -> IntegrityError:
    """A value that is out of bounds, as an error that names it, the limit and the policy's key."""
    limit = getattr(bounds, key)
    return IntegrityError(
        f"{what} is {found:.12g}, the policy {'demands' if least else 'allows'} {limit:g} (bounds.{key})"
    )


def run(case: Case) -> Checks:
    """The run is as long as the policy demands, its intervals as short, and few of its steps were skipped."""
    spec, bounds = case.genesis.spec, case.policy.bounds
    epochs, skipped = spec.declaration.epochs, sum(len(interval.skipped) for interval in case.log.intervals)
    if spec.steps < bounds.min_steps:
        raise IntegrityError(f"the run has {spec.steps} steps, the policy demands {bounds.min_steps}")
    if epochs < bounds.min_epochs:
        raise IntegrityError(f"the run has {epochs} epochs, the policy demands {bounds.min_epochs}")
    if bounds.max_every is not None and spec.every > bounds.max_every:
        raise IntegrityError(f"an interval has {spec.every} steps, the policy allows {bounds.max_every}")
    if bounds.skipped is not None:
        share = max(0, skipped - FREE_SKIPS) / spec.steps
        if not within(share, bounds.skipped):
            raise beyond(f"the share of skipped steps ({skipped} of {spec.steps})", share, "skipped", bounds)
    yield passed("run", f"{spec.steps} steps in {epochs} epochs, k = {spec.every} and {skipped} skipped are in bounds")


def optimizers(case: Case) -> Checks:
    """Declared hyperparameters of every parameter group."""
    bounds, declaration = case.policy.bounds, case.genesis.spec.declaration
    dynamic = {name for part in declaration.parts for name in part.dynamic}
    named: set[str] = set()
    for part in declaration.parts:
        for number, group in enumerate(part.groups):
            where = f"of {part.name}, group {number},"
            for key, names in (("momentum", MOMENTA), ("eps", EPS)):
                limit = getattr(bounds, key)
                for name, value in _numbers(group, names) if limit is not None else ():
                    named.add(name)
                    if value < 0 or not within(value, limit):
                        raise beyond(f"{name} {where}", value, key, bounds)
    moving = sorted(dynamic & {*MOMENTA, *EPS}) if (bounds.momentum, bounds.eps) != (None, None) else []
    beside = f"; {' and '.join(moving)} may change during the run: read the recipe for that" if moving else ""
    yield passed("optimizers", f"{', '.join(sorted(named)) or 'nothing'} is bounded and within bounds{beside}")


# -- rates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """Learning rates in force over ``steps`` steps from ``start`` on, one for each rated group."""

    start: int
    steps: int
    values: list[float]


def recorded(case: Case) -> Iterator[Recorded]:
    """Recorded learning rates; what a replay confirms or refutes.

    Raises:
        FormatError: a rate is no number.
        IntegrityError: there is not one for each group, so that it cannot be bounded.
    """
    groups = len(rated_groups(case.genesis.spec.declaration))
    for interval in case.log.intervals:
        step = interval.start
        for rates in interval.learning_rates:
            try:
                values = [float(value) for value in rates.values]
            except ValueError:
                raise FormatError(f"interval {interval.start}–{interval.stop}: a learning rate is no number") from None
            if len(values) != groups:
                raise IntegrityError(
                    f"from step {step} on, {len(values)} learning rates are recorded for {groups} parameter groups: "
                    "your policy bounds all"
                )
            yield Recorded(step, rates.steps, values)
            step += rates.steps


def rates(case: Case) -> Checks:
    """Recorded learning rates, by themselves and times weight decay, and how one group's compares with another's."""
    bounds, parts = case.policy.bounds, case.genesis.spec.declaration.parts
    asked = [
        name for name in ("learning_rate", "least_rate", "rate_times_decay", "multiplier")
        if getattr(bounds, name) is not None
    ]  # fmt: skip
    groups = rated_groups(case.genesis.spec.declaration)
    if not asked or not groups:
        yield passed("rates", "the policy bounds no rate" if groups else "no optimizer has a learning rate to bound")
        return
    moving = sorted({name for part in parts for name in part.dynamic} & set(DECAYS))
    if bounds.rate_times_decay is not None and moving:
        raise IntegrityError(
            f"{moving[0]} may change during the run and is not recorded: your policy bounds lr * weight_decay"
        )
    decays = [math.fsum(value for _, value in _numbers(group, DECAYS)) for _, group in groups]
    sums = [0.0] * len(groups)
    largest = 0.0
    for found in recorded(case):
        for number, (rate, decay) in enumerate(zip(found.values, decays, strict=True)):
            where = f"from step {found.start} on, in parameter group {number}"
            if bounds.learning_rate is not None and (rate < 0 or not within(rate, bounds.learning_rate)):
                raise IntegrityError(f"the learning rate is {rate} {where}, the policy allows {bounds.learning_rate}")
            product = rate * decay
            if bounds.rate_times_decay is not None and (product < 0 or not within(product, bounds.rate_times_decay)):
                raise IntegrityError(
                    f"lr times weight_decay is {product} {where}, the policy allows {bounds.rate_times_decay}"
                )
            sums[number] += rate * found.steps
            largest = max(largest, rate)
    if bounds.least_rate is not None and largest < bounds.least_rate:
        raise beyond("the largest learning rate of the whole run", largest, "least_rate", bounds, least=True)
    if bounds.multiplier is not None:
        _multipliers(case, sums)
    yield passed("rates", f"{', '.join(asked)}: {len(groups)} parameter groups are within bounds at every step")


def constant(case: Case) -> Checks:
    """A rate that nothing in the program may change is recorded as it was declared, at every step."""
    groups = rated_groups(case.genesis.spec.declaration)
    fixed = {
        number: float(canonical.untag(group.hyperparameters["lr"], "lr"))
        for number, (part, group) in enumerate(groups) if "lr" not in part.dynamic
    }  # fmt: skip
    if not case.policy.bounds.scheduled or not fixed:
        yield passed("constant rates", "the policy does not ask" if fixed else "no declared rate is constant")
        return
    for found in recorded(case):
        for number, declared in fixed.items():
            if found.values[number] != declared:
                raise IntegrityError(
                    f"the learning rate is {found.values[number]:.12g} at step {found.start}, in parameter group "
                    f"{number}, where {declared:.12g} is declared, and nothing that may change it (bounds.scheduled)"
                )
    yield passed("constant rates", f"those of {len(fixed)} parameter groups are as declared at every step")


def _multipliers(case: Case, sums: list[float]) -> None:
    groups = rated_groups(case.genesis.spec.declaration)
    for name in sorted({part.name for part, _ in groups}):
        own = [
            total for (part, _), total in zip(groups, sums, strict=True) if part.name == name and total > 0
        ]  # fmt: skip
        if own and not within(max(own) / min(own), case.policy.bounds.multiplier or 0.0):
            what = f"the ratio of the mean learning rates of two groups of {name}"
            raise beyond(what, max(own) / min(own), "multiplier", case.policy.bounds)


def schedules(case: Case) -> Checks:
    """Schedules are of types that the policy names, and no rate goes to and fro from step to step."""
    bounds, declaration = case.policy.bounds, case.genesis.spec.declaration
    found = {part.type: part.name for part in declaration.parts if part.kind == "schedule"}
    if not found and any("lr" in part.dynamic for part in declaration.parts):
        found = {BY_HAND: "the learning rate"}
    for type_, name in sorted(found.items()):
        if bounds.schedules and type_ not in bounds.schedules:
            what = "is set by hand" if type_ == BY_HAND else f"follows a {type_}"
            raise IntegrityError(
                f"{name} {what}; the policy allows {', '.join(bounds.schedules)} (bounds.schedules): read the recipe, "
                f"and add {type_!r} if you take it"
            )
    if bounds.reversals is not None and rated_groups(declaration):
        for number, (turns, first) in enumerate(_turns(case)):
            share = max(0, turns - FREE_REVERSALS) / case.genesis.spec.steps
            if not within(share, bounds.reversals):
                what = f"{turns} times, first at step {first}, the rate of parameter group {number} turns; the share"
                raise beyond(what, share, "reversals", bounds)
    yield passed("schedules", f"{', '.join(sorted(found)) or 'no schedule'}: taken by the policy")


def _turns(case: Case) -> list[tuple[int, int]]:
    """How often the rate of each group turns from rising to falling or back, and the first step at which it does."""
    count = len(rated_groups(case.genesis.spec.declaration))
    turns, firsts, signs, lasts = [0] * count, [0] * count, [0] * count, [math.nan] * count
    for found in recorded(case):
        for number, rate in enumerate(found.values):
            last = lasts[number]
            if abs(rate - last) <= SAME * abs(last):
                continue
            sign = (rate > last) - (rate < last)  # 0 for the first, which is compared with NaN
            if sign and signs[number] == -sign:
                turns[number] += 1
                firsts[number] = firsts[number] or found.start
            signs[number] = sign or signs[number]
            lasts[number] = rate
    return list(zip(turns, firsts, strict=True))


def frozen(case: Case) -> Checks:
    """Enough of the parameters ends with other values than it began with."""
    bounds = case.policy.bounds
    vouched = case.genesis.randomness.origin in ("parent", "given")
    if bounds.frozen is None or vouched or not case.checkpoints:
        why = "the weights have a proof of their own" if vouched else "the policy does not ask"
        yield passed("frozen", f"any part of the parameters may stay as it is: {why}")
        return
    first, last = (bind.contents(case, step) for step in (min(case.checkpoints), max(case.checkpoints)))
    sizes = {
        entry.key: math.prod(entry.shape) for entry in case.genesis.spec.declaration.entries
        if entry.kind == "parameter"
    }  # fmt: skip
    still = sorted(key for key in sizes if first.get(key) == last.get(key))
    share = sum(sizes[key] for key in still) / max(1, sum(sizes.values()))
    if not within(share, bounds.frozen):
        what = f"the share of parameters that end as they began ({len(still)} tensors, first {still[0]})"
        raise beyond(what, share, "frozen", bounds)
    yield passed("frozen", f"{share:.1%} of the parameters end as they began")


def _numbers(group: Group, names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """The numbers under these names; of a pair each."""
    for name in names:
        value = canonical.untag(group.hyperparameters[name], name) if name in group.hyperparameters else None
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, int | float) and not isinstance(one, bool):
                yield name, float(one)


def momenta(case: Case) -> Checks:
    """Step 7: momenta and betas at the end of every replay are within bounds: schedules may change them."""
    bound = case.policy.bounds.momentum
    if bound is None:
        return
    for index, groups in sorted(case.momenta.items()):
        for number, values in enumerate(groups):
            if any(not 0 <= value <= bound for value in values):
                yield failed(
                    "momenta",
                    f"at the end of interval {index}, parameter group {number} has momentum or betas {values}; the "
                    f"policy allows {bound}",
                )
                return
    yield passed("momenta", f"of {len(case.momenta)} replays, momenta and betas are at most {bound}")


CLAUSES = (run, optimizers, rates, constant, schedules, frozen)

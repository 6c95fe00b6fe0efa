"""Step 4: what the policy asks of a run, clause by clause; each only ever adds a reason to refuse."""

from __future__ import annotations

from collections.abc import Iterator

from pol import canonical
from pol.declaration import Group
from pol.errors import FormatError, IntegrityError
from pol.proof.policy import LEVELS, ORDERS, Level
from pol.proof.sampling import order_needed
from pol.verifier.case import Case, Checks, passed, unable


def level(case: Case) -> Level:
    """The assurance level of a run: who chose its first weights, order and randomness."""
    randomness = case.genesis.randomness
    if "observed" in (randomness.origin, randomness.streams) or randomness.order != "derived":
        return "observed"
    if randomness.origin == "declared":
        return "seed-declared"
    own: Level = "verifier-seeded" if None not in (case.policy.beacon, case.policy.genesis) else "self-seeded"
    if case.parent_report is None:
        return own
    # Known after step 5: a chain is as good as its weakest link.
    levels = {own, case.parent_report.assurance.level}
    return next(name for name in LEVELS if name in levels)


def rule(case: Case) -> Checks:
    """The genesis fixes the rule that the policy demands: no verifier falls back from it."""
    registered = case.genesis.spec.rule
    if registered != case.policy.rule:
        instead = "--policy tolerance" if registered == "tolerance" else "a policy of rule exact"
        raise IntegrityError(
            f"the genesis fixes rule {registered!r}, the policy demands {case.policy.rule!r}: verify with {instead}"
        )
    yield passed("rule", f"rule {registered!r}, as the policy demands")


def inputs(case: Case) -> Checks:
    """Files that the build read, and the recipe itself, are allowed."""
    for external in case.genesis.spec.declaration.external:
        if external.digest not in case.policy.externals:
            raise IntegrityError(
                f"the build reads the file {external.name} ({external.digest}), which your policy does not allow: "
                "weights could come in that way"
            )
    if case.policy.recipes and case.genesis.recipe.digest not in case.policy.recipes:
        raise IntegrityError(f"recipe {case.genesis.recipe.digest} is none that your policy allows")
    yield passed("inputs", "the recipe and the files that it reads are allowed")


def assured(case: Case) -> Checks:
    """First weights, order and randomness are as much beyond the claimant's choice as the policy demands."""
    found, demanded = level(case), case.policy.assurance
    if (found, demanded) == ("self-seeded", "verifier-seeded"):
        # Only the verifier's own words are missing: with them this may be an acceptance, so it is no rejection now.
        yield unable(
            "assurance",
            "your policy demands a run that answers a nonce of yours: say which nonce you gave, and for which genesis",
        )
        return
    needed = order_needed(case.genesis, case.log.intervals)
    lower, freer = LEVELS.index(found) < LEVELS.index(demanded), ORDERS.index(needed) > ORDERS.index(case.policy.order)
    options = " ".join([*([f"--assurance {found}"] if lower else []), *([f"--order {needed}"] if freer else [])])
    if lower:
        raise IntegrityError(
            f"this run reaches assurance level {found!r} ({_why(case)}), your policy demands {demanded!r}; "
            f"{options} takes it"
        )
    if freer:
        raise IntegrityError(
            f"{_ORDERED[case.genesis.randomness.order]}; your policy demands {_DEMANDED[case.policy.order]}; "
            f"{options} takes it"
        )
    yield passed("assurance", f"level {found!r}; the policy demands {demanded!r}")


_ORDERED = {
    "observed": "the claimant chose the order of the data",
    "recorded": "a sampler of the recipe's own chose the order of the data",
    "stream": "the data are a stream, in whatever order it gives",
}
_DEMANDED = {"derived": "the derived order", "permutation": "every sample once an epoch"}


def _why(case: Case) -> str:
    randomness = case.genesis.randomness
    if randomness.origin == "observed":
        return "the first weights come from elsewhere"
    if randomness.streams == "observed":
        return "the recipe keeps its own randomness"
    if randomness.order != "derived":
        return _ORDERED[randomness.order]
    return "the claimant chose the seed of the first weights"


def started(case: Case) -> Checks:
    """The run starts from the weights that the policy names, if it names any."""
    wanted, found = case.policy.start, case.log.origin.root.weights.digest
    if wanted is None:
        yield passed("start", "the policy names no first weights")
    elif found != wanted:
        raise IntegrityError(f"the run starts from weights {found}, your policy demands {wanted}")
    else:
        yield passed("start", "the run starts from the weights that the policy names")


def profile(case: Case) -> Checks:
    """Threads, precision and element types are allowed."""
    wanted, policy = case.genesis.profile, case.policy
    if policy.matmul and wanted.matmul not in policy.matmul:
        raise IntegrityError(
            f"matrix products of precision {wanted.matmul!r}, the policy allows {', '.join(policy.matmul)}"
        )
    for entry in case.genesis.spec.declaration.entries:
        if entry.kind == "parameter" and policy.dtypes and entry.dtype not in policy.dtypes:
            raise IntegrityError(f"{entry.key} is {entry.dtype}, the policy allows {', '.join(policy.dtypes)}")
    if wanted.threads > policy.max_threads:
        yield unable(
            "profile", f"the profile asks for {wanted.threads} threads, the policy allows {policy.max_threads}"
        )
        return
    yield passed("profile", "threads, precision and element types are within policy")


def reference(case: Case) -> Checks:
    """A reference distance is one of this recipe: what another training gives is no measure of this one."""
    wanted, found = case.policy.reference, case.genesis.recipe.digest
    if wanted is None:
        yield passed("reference", "the policy names no calibration")
    elif wanted.recipe != found:
        # The proof may be in order: it is the policy that does not fit.
        yield unable(
            "reference", f"your calibration is of recipe {wanted.recipe}, this run is of {found}: calibrate this recipe"
        )
    else:
        yield passed("reference", "your calibration is of this recipe")


def hyperparameters(case: Case) -> Checks:
    """Declared and recorded hyperparameters, and the sizes of the run, are within the policy's bounds."""
    spec, bounds = case.genesis.spec, case.policy.bounds
    if spec.steps < bounds.min_steps:
        raise IntegrityError(f"the run has {spec.steps} steps, the policy demands {bounds.min_steps}")
    if bounds.max_every is not None and spec.every > bounds.max_every:
        raise IntegrityError(f"an interval has {spec.every} steps, the policy allows {bounds.max_every}")
    groups = [group for part in spec.declaration.parts for group in part.groups]
    dynamic = {name for part in spec.declaration.parts for name in part.dynamic}
    if bounds.rate_times_decay is not None and "weight_decay" in dynamic:
        raise IntegrityError(
            "weight_decay may change during the run and is not recorded: your policy bounds lr * weight_decay"
        )
    for group in groups:
        for name, momentum in _momenta(group):
            if bounds.momentum is not None and not 0 <= momentum <= bounds.momentum:
                raise IntegrityError(f"{name} is {momentum}, the policy allows {bounds.momentum}")
    rated = _rated(case)
    bounded = (bounds.learning_rate, bounds.rate_times_decay) != (None, None)
    for start, rates in _rates(case):
        if bounded and len(rates) != len(rated):
            raise IntegrityError(
                f"from step {start} on, {len(rates)} learning rates are recorded for {len(rated)} parameter groups: "
                "your policy bounds all"
            )
        for number, rate in enumerate(rates):
            decay = _number(rated[number], "weight_decay") if bounded else 0.0
            where = f"from step {start} on, in parameter group {number}"
            if bounds.learning_rate is not None and not 0 <= rate <= bounds.learning_rate:
                raise IntegrityError(f"the learning rate is {rate} {where}, the policy allows {bounds.learning_rate}")
            if bounds.rate_times_decay is not None and not 0 <= rate * decay <= bounds.rate_times_decay:
                raise IntegrityError(
                    f"lr times weight_decay is {rate * decay} {where}, the policy allows {bounds.rate_times_decay}"
                )
    moving = sorted(dynamic & set(MOMENTA)) if bounds.momentum is not None else []
    beside = f"; {' and '.join(moving)} may change during the run: read the recipe for that" if moving else ""
    yield passed(
        "hyperparameters",
        f"{len(groups)} parameter groups, {spec.steps} steps and k = {spec.every} are within bounds{beside}",
    )


MOMENTA = ("momentum", "betas")
"""Hyperparameters that say how much an optimizer keeps of what it has."""


def _rated(case: Case) -> list[Group]:
    """The parameter groups that have a learning rate, in the order in which rates are recorded."""
    parts = sorted(case.genesis.spec.declaration.parts, key=lambda part: part.name)
    return [g for part in parts for g in part.groups if "lr" in part.dynamic or "lr" in g.hyperparameters]


def _momenta(group: Group) -> Iterator[tuple[str, float]]:
    for name in MOMENTA:
        value = _plain(group, name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, int | float):
                yield name, float(one)


def _number(group: Group, name: str) -> float:
    value = _plain(group, name)
    return float(value) if isinstance(value, int | float) else 0.0


def _plain(group: Group, name: str) -> object:
    return canonical.untag(group.hyperparameters[name], name) if name in group.hyperparameters else None


def _rates(case: Case) -> Iterator[tuple[int, list[float]]]:
    """Recorded learning rates, from which step on; what a replay confirms or refutes."""
    for interval in case.log.intervals:
        step = interval.start
        for rates in interval.learning_rates:
            try:
                yield step, [float(value) for value in rates.values]
            except ValueError:
                raise FormatError(f"interval {interval.start}–{interval.stop}: a learning rate is no number") from None
            step += rates.steps


LEAST_RATE = 2.0**-24
"""Half a unit in the last place of a float32 of 1. Schedules end in lower rates, at which an honest step may be nothing
but rounded away."""


def moved(case: Case) -> Checks:
    """The weights change in most windows whose learning rate is no mere rounding, if the policy says so."""
    if not case.policy.bounds.moved:
        yield passed("moved", "the policy does not ask that the weights change")
        return
    working = standing = 0
    for window in case.windows:
        inside = case.log.intervals[window.first : window.last + 1]
        rates = [float(value) for interval in inside for rates in interval.learning_rates for value in rates.values]
        if max(rates, default=0.0) >= LEAST_RATE and any(interval.loss is not None for interval in inside):
            working += 1
            standing += window.sizes.get("weights", 0.0) == 0.0
    if not any(window.sizes.get("weights", 0.0) > 0 for window in case.windows):
        raise IntegrityError("no step changed any parameter: nothing was trained")
    if 2 * standing > working:  # some may: a loss that is 0 on a batch has no gradient, and its replay shows it
        raise IntegrityError(
            f"{standing} of {working} windows changed no parameter, at learning rates of 2^-24 or more"
        )
    yield passed("moved", f"{standing} of {working} windows with a learning rate of 2^-24 or more changed no parameter")


CLAUSES = (rule, inputs, assured, started, profile, reference, hyperparameters, moved)

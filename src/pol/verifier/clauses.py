"""Step 4: what the policy asks of a run, clause by clause; each only ever adds a reason to refuse."""

from __future__ import annotations

from pol import canonical
from pol.digest import sha256
from pol.errors import IntegrityError
from pol.proof.policy import LEVELS, ORDERS, Level
from pol.proof.sampling import order_needed
from pol.verifier import hyperparameters, plausible
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
    elif wanted.configuration not in (None, sha256(canonical.encode(case.genesis.recipe.configuration))):
        yield unable(
            "reference",
            "your calibration is of this recipe with other settings, and distances and noise depend on them: calibrate "
            "with the settings of this run (pol inspect shows them)",
        )
    else:
        yield passed("reference", "your calibration is of this recipe and its settings")


CLAUSES = (
    rule, inputs, assured, started, profile, reference,
    plausible.moved, *hyperparameters.CLAUSES, plausible.paces, plausible.losses,
)  # fmt: skip
"""Weights that never moved come first: what else is wrong with such a run follows from it."""

"""The eight steps as a procedure; ``pol.verifier`` says what each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pol.auditor import Auditor
from pol.proof.report import Assurance, Step, confidence_sentence
from pol.verifier import (
    auditing,
    authenticate,
    bases,
    bind,
    clauses,
    drift,
    origins,
    replayed,
    screening,
    shape,
    tolerance,
    trying,
)  # fmt: skip
from pol.verifier.case import Case, Checks
from pol.verifier.procedure import Procedure, not_run, run_step

AUTHENTICATE = (authenticate.signatures, authenticate.trusted_key, authenticate.beacon)
BIND = (bind.files, bind.chain, bind.states, bind.released_model)
SHAPE = (shape.arithmetic, shape.cover, shape.kept_states, shape.order, shape.measured, shape.skips,
         screening.look,
         *clauses.CLAUSES, tolerance.precise, tolerance.optimizers, drift.beforehand)  # fmt: skip


def steps(case: Case, auditor: Auditor) -> Iterator[Step]:
    """Steps 1 to 7, in their order; after one that does not pass, the rest are not run."""
    opened = run_step(2, [authenticate.envelopes(case)])
    if opened.status != "passed":  # nobody to authenticate
        yield from (not_run(1), opened, *map(not_run, range(3, 8)))
        return
    platform: replayed.Platform | None = None

    def measured_platform() -> replayed.Platform:
        nonlocal platform
        platform = platform or replayed.control(case, auditor)
        return platform

    plan: list[tuple[int, Callable[[], list[Checks]]]] = [
        (1, lambda: [check(case) for check in AUTHENTICATE]),
        (2, lambda: [iter(opened.checks), authenticate.contents(case)]),
        (3, lambda: [check(case) for check in BIND]),
        (4, lambda: [*(check(case) for check in SHAPE),
                     shape.recipe(case, auditor.name, auditor.sources(), case.settings)]),
        (5, lambda: [origins.origin(case, auditor, measured_platform()), bases.bases(case),
                     origins.independence(case, auditor), trying.tried(case, auditor)]),
        (6, lambda: [replayed.challenge(case)]),
        (7, lambda: [auditing.audit(case, auditor, measured_platform())]),
    ]  # fmt: skip
    for position, (number, checks) in enumerate(plan):
        step = run_step(number, checks())
        yield step
        if step.status != "passed":
            yield from (not_run(later) for later, _ in plan[position + 1 :])
            return
        if number == 3:  # signed, whole and bound: training is likely to be needed when the numbers have been looked at
            auditor.prepare(case.genesis.profile)


def confidence(case: Case) -> str:
    """What the draws say in numbers."""
    return confidence_sentence(case.draws, exact=case.policy.rule == "exact") if case.draws else "Nothing was shown."


def assurance(case: Case) -> Assurance:
    """How far an ACCEPT reaches."""
    level = clauses.level(case)
    if level == "verifier-seeded":
        randomness = "The randomness follows from the nonce that you gave for this genesis: nobody could choose it."
    elif case.policy.beacon is not None:
        randomness = (
            "Your nonce is used, but you did not name the genesis that you gave it for: it may have been known."
        )
    else:
        randomness = "The claimant chose the randomness (no nonce of yours): it may have tried many seeds and kept one."
    key = (
        "You pinned the key." if case.policy.keys else "You pinned no key: the name behind it is for you to establish."
    )
    statements = [origins.statement(case), randomness]
    declaration, chosen = case.genesis.spec.declaration, case.genesis.randomness
    if chosen.streams == "observed":
        statements.append(
            "The recipe keeps its own randomness: generators are part of the recorded states. A forger of an interval "
            "that was not replayed could have chosen them."
        )
    if chosen.order == "observed":
        left = declaration.samples % declaration.batch_size if declaration.drop_last else 0
        beside = f" but {left}, which the claimant chose, too" if left else ""
        statements.append(f"The claimant chose the order of the data; every epoch visits every sample once{beside}.")
    elif chosen.order == "recorded":
        statements.append("A sampler of the recipe's own chose the order of the data; its indices stand in the log.")
    elif chosen.order == "stream":
        statements.append(
            "The data are a stream, of which nothing was committed before the training: batches of the replayed steps "
            "are those that your copy of the stream gives, and of the others nothing is known."
        )
    for base in declaration.frozen:
        statements.append(f"Trained over the frozen base {base.name!r} with root {base.root.digest}, which you allow.")
    if case.drift is not None:
        statements.append(
            f"Within tolerance, not bit for bit: all limits together let a forger push the parameters by "
            f"{case.drift.bound:.2g} in all, where they moved {case.drift.distance:.3g}. Where a training is chaotic, "
            "a push early in it leads to another run of the same recipe, as another seed would."
        )
    no_time = "No time evidence: nothing here says when the training took place."
    return Assurance(level=level, statements=[*statements, key, no_time])


EIGHT_STEPS = Procedure(steps, assurance, confidence)

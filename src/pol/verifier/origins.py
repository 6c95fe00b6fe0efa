"""Step 5: where the first state comes from."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from pol import canonical
from pol.auditor import Auditor
from pol.declaration import difference
from pol.errors import FormatError, IntegrityError, UsageError
from pol.messages import Built, Comparison, Failed
from pol.proof.genesis import Parent
from pol.proof.report import Verdict
from pol.release import write_model
from pol.verifier import bind, foreign
from pol.verifier.accounting import permitted
from pol.verifier.bases import chained
from pol.verifier.case import Case, Checks, failed, passed, unable
from pol.verifier.replayed import Platform

CORRELATION_BOUND = 6.0
"""Largest |correlation| · √n of two independent builds: six standard deviations, met by chance once in 10⁹ tensors."""


_TELLING = CORRELATION_BOUND**2
"""Elements from which chance does not explain that two builds agree; with fewer the correlation bound says nothing."""


def statement(case: Case) -> str:
    """The origin in words, for a report."""
    return {
        "derived": "Origin: weights drawn from the run's seed, drawn again here; nothing was trained before.",
        "recipe": "Origin: weights drawn under a seed that stands in the recipe, drawn again here; nothing was trained "
        "before, but the claimant may have tried many seeds.",
        "declared": "Origin: weights drawn under a seed that the claimant chose, drawn again here; nothing was trained "
        "before, but it may have tried many seeds.",
        "parent": "Origin: the weights of another proof, which was verified, too, under the same policy but for what "
        "you said of this run alone (its nonce and its settings).",
        "given": "Origin: the weights that you gave out, compared bit for bit.",
        "observed": "Origin: first weights from elsewhere that look like fresh draws from the recipe's own laws. This "
        "is a statistical test of each tensor by itself: it is weaker than drawing again, and cannot win a dispute.",
    }[case.genesis.randomness.origin]


def origin(case: Case, auditor: Auditor, platform: Platform) -> Checks:
    """Step 5: the first state is drawn again, or its weights are those given out, or they pass a test."""
    genesis = case.genesis
    case.progress("building from the seed", 0, None)
    declared = genesis.randomness.declared_seed
    built = auditor.build(genesis.profile, genesis.recipe.configuration, case.seed, declared)
    if isinstance(built, Failed):
        yield platform.mismatch("build", f"the recipe cannot be built: {built.message}")
        return
    if built.undeclared:
        yield failed(
            "build", f"the recipe imports the local module {built.undeclared[0]}, which its digest does not cover"
        )
        return
    if canonical.encode(built.configuration) != canonical.encode(genesis.recipe.configuration):
        yield failed("build", "the registered constructor arguments are not all those that the recipe takes")
        return
    changed = difference(genesis.spec.declaration, built.declaration)
    if changed:
        yield platform.mismatch("build", f"the recipe declares something else than the genesis: {changed}")
        return
    if genesis.randomness.origin != "given" and case.start is not None:
        yield failed("start", f"you gave out {case.start.name}, but this run starts elsewhere")
        return
    if genesis.randomness.origin != "parent" and case.parent_path is not None and not genesis.spec.declaration.frozen:
        yield failed("parent", f"you named the parent {case.parent_path.name}, but this run starts elsewhere")
        return
    if genesis.randomness.built:
        if built.root != case.log.origin.root:
            yield platform.mismatch("seed", "the first state does not follow from the seed of this genesis")
            return
        which = "the seed" if declared is None else f"the declared seed {declared}"
        which = "the recipe's own seed" if genesis.randomness.origin == "recipe" else which
        yield passed("seed", f"the first state follows from {which}, bit for bit; optimizer state is fresh")
    else:
        yield from _beside_the_weights(case, built, platform)
        if genesis.randomness.origin == "given":
            yield from _given(case)
        elif isinstance(genesis.randomness.initialisation, Parent):
            yield from _inherited(case, genesis.randomness.initialisation)
        else:
            beside = {entry.key for entry in genesis.spec.declaration.entries} - _weights(case)
            yield from foreign.observed(case, auditor, platform, settled=beside)
    yield passed("control", platform.detail)


def _given(case: Case) -> Checks:
    """The weights are those of the verifier's file, or the ones that its policy names, which step 4 has compared."""
    if case.start is not None:
        try:
            bind.compare_model(case, case.start, 0, "not the weights that you gave out")
        except FormatError as error:
            raise UsageError(f"{case.start}: this is no model file (safetensors): {error}") from None
        yield passed("start", f"the run starts from {case.start.name}, bit for bit")
    elif case.policy.start is None:
        yield unable("start", "this run starts from weights that a verifier gave out: name their file (--start)")
    else:
        yield passed("start", f"the run starts from the weights {case.policy.start}")


def _inherited(case: Case, registered: Parent) -> Checks:
    """The weights are the released ones of the registered parent, whose proof this verifier takes to ACCEPT."""
    if case.parent is None or case.parent_path is None:
        wanted = registered.attestation
        yield unable("parent", f"this run starts from the weights of another proof ({wanted}): name it (--parent)")
        return
    case.parent_report = case.parent()
    name, found, verdict = case.parent_path.name, case.parent_report.attestation, case.parent_report.verdict
    if found != registered.attestation:
        yield failed("parent", f"{name} has the attestation {found}, the genesis names {registered.attestation}")
    elif verdict is not Verdict.ACCEPT:
        status = failed if verdict is Verdict.REJECT else unable
        yield status("parent", f"the parent {name} is {verdict}: {case.parent_report.reason()}")
    else:
        with tempfile.TemporaryDirectory(prefix="pol-parent-") as folder:
            model = Path(folder) / "parent.safetensors"
            try:
                write_model(case.parent_path, model)
            except UsageError as error:  # it has no one model
                yield failed("parent", f"the parent {name} releases nothing: {error}")
                return
            bind.compare_model(case, model, 0, "not the weights that the parent released")
        yield passed("parent", f"the run starts from the weights of {name}, which is {verdict}")
        yield from chained(case)


def _beside_the_weights(case: Case, built: Built, platform: Platform) -> Checks:
    """All of the first state but the weights of the released part is as the recipe builds it from the seed."""
    found = bind.contents(case, 0)
    weights = _weights(case)
    for key in sorted({*built.contents, *found}):
        if key not in weights and built.contents.get(key) != found.get(key):
            yield platform.mismatch("fresh", f"{key} of the first state does not follow from the seed")
            return
    beside = len(found) - len(weights)
    yield passed(
        "fresh",
        f"the {beside} entries beside the weights follow from the seed"
        if beside
        else "there is nothing beside the weights",
    )


def _weights(case: Case) -> set[str]:
    release = case.genesis.spec.release
    if release is None:
        raise IntegrityError("the genesis starts from weights, but names no part that they belong to")
    prefixes = (f"parameter/{release.part}.", f"buffer/{release.part}.")
    return {entry.key for entry in case.genesis.spec.declaration.entries if entry.key.startswith(prefixes)}


def independence(case: Case, auditor: Auditor) -> Checks:
    """Step 5: built from two seeds of the verifier's own, each tensor is a permitted constant or unrelated."""
    genesis, allowed = case.genesis, case.policy.constants
    declared, own = (genesis.randomness.origin == kind for kind in ("declared", "recipe"))
    twice = auditor.build_twice(genesis.profile, genesis.recipe.configuration, declared=declared, reseeded=own)
    if isinstance(twice, Failed) or not twice.comparisons:
        yield unable("independence", twice.message if isinstance(twice, Failed) else "nothing was compared")
        return
    if unknown := sorted(set(genesis.spec.constants) - {found.key for found in twice.comparisons}):
        yield failed("independence", f"the declared constant {unknown[0]} is no entry of the state")
        return
    for found in twice.comparisons:
        if objection := _objection(found, allowed, genesis.spec.constants, own=own):
            yield failed("independence", "{} {} ".format(*found.key.split("/", 1)) + objection)
            return
    compared = [found for found in twice.comparisons if not found.key.startswith("generator/")]
    random = sum(not found.equal for found in compared)
    whose = "seeds of its own, replaced here" if own else "the seed"
    constant = len(compared) - random
    yield passed("independence", f"{random} tensors are drawn from {whose}, {constant} are permitted constants")


def _objection(found: Comparison, allowed: str, declared: list[str], *, own: bool) -> str | None:
    """Why a tensor, built under two seeds, may hold something that was trained before; None if it may not.

    ``own``: the recipe draws under a seed of its own, in place of which these builds had others.
    """
    if found.key.startswith("generator/"):  # holds no weights, and was drawn again bit for bit
        return None
    if not own and found.size > _TELLING and found.equal != (found.key in declared):
        return f"{'does not depend' if found.equal else 'depends'} on the seed, against what the genesis declares"
    if not found.equal:
        bound = CORRELATION_BOUND / math.sqrt(found.size)
        return (
            None if abs(found.correlation) <= bound else f"is alike under independent seeds ({found.correlation:.2f})"
        )
    if found.repeated or permitted(found.key.split("/", 1)[0], allowed):
        return None
    how = "even where the recipe's own seeds are replaced" if own else "under every seed"
    return f"has the same values {how}: it comes from elsewhere"

"""Step 5, frozen bases: each is one that the verifier knows, by its list or by the proof that released it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pol.digest import Digest
from pol.errors import UsageError
from pol.proof.policy import LEVELS
from pol.proof.report import Verdict
from pol.release import write_model
from pol.statetree import base_root
from pol.verifier.bind import model_entries
from pol.verifier.case import Case, Checks, failed, passed, unable
from pol.verifier.clauses import level


def bases(case: Case) -> Checks:
    """Every frozen base has a root that the policy lists, or that of the weights which an accepted parent released.

    That the recipe builds these very bases is part of the declaration, which was compared.
    """
    declared = case.genesis.spec.declaration.frozen
    if not declared:
        yield passed("bases", "the training has no frozen base")
        return
    known = set(case.policy.bases)
    beside = ""
    if case.parent is not None and case.parent_path is not None:
        if case.parent_report is None:
            case.parent_report = case.parent()
        if case.parent_report.verdict is not Verdict.ACCEPT:
            status = failed if case.parent_report.verdict is Verdict.REJECT else unable
            yield status(
                "bases",
                f"the parent {case.parent_path.name} is {case.parent_report.verdict}: {case.parent_report.reason()}",
            )
            return
        try:
            known.add(_released_root(case.parent_path))
        except UsageError as error:  # it has no one model
            yield failed("bases", f"the parent {case.parent_path.name} releases nothing: {error}")
            return
        beside = f" or those that {case.parent_path.name}, which is ACCEPT, released"
    for base in declared:
        if base.root.digest not in known:
            yield failed(
                "bases",
                f"the frozen base {base.name!r} ({base.root.digest}) is none that you allow: weights could come in "
                "that way. Name it by that digest or by its file (--base), or the proof that released it (--parent)",
            )
            return
    yield passed("bases", f"{len(declared)} frozen bases are on your list{beside}")
    yield from chained(case)


def chained(case: Case) -> Checks:
    """With its parents, too, a run is as much beyond the claimant's choice as the policy demands."""
    reached, demanded = level(case), case.policy.assurance
    if LEVELS.index(reached) < LEVELS.index(demanded):
        yield unable(
            "assurance",
            f"with its parent the run reaches level {reached!r}, your policy demands {demanded!r}: your nonce is "
            "of this run alone, so a chain reaches self-seeded at most (--assurance self-seeded)",
        )


def _released_root(proof: Path) -> Digest:
    with tempfile.TemporaryDirectory(prefix="pol-parent-") as folder:
        model = Path(folder) / "parent.safetensors"
        write_model(proof, model)
        return root_of(model)


def root_of(model: Path) -> Digest:
    """Base root of a model file (safetensors).

    Raises:
        FormatError: it is none.
        UsageError: it cannot be read.
    """
    found = model_entries(model)
    return Digest(base_root((name, dtype, shape, content) for name, (dtype, shape, content) in found.items()).digest)

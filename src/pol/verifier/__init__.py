"""The verifier: eight numbered steps from a directory to a verdict.

1. **Authenticate**: the one key that the genesis names signed genesis and attestation; it is a key that the
   verifier trusts, if it named any; the run answers the verifier's nonce, if it gave one.
2. **Parse**: strict and size-limited; encoding again gives the same bytes, envelopes included.
3. **Bind**: every file present is listed and hashed, nothing else is there; log → attestation → genesis; every
   kept checkpoint has its recorded root; the released model is the last checkpoint's weights.
4. **Shape**: intervals cover [0, T] exactly, at least one; sizes and counts agree with the spec; every value is
   finite; recipe, profile and inputs are within policy. Update sizes are measured here, and bounded with rates,
   hyperparameters and losses.
5. **Origin**: the first state follows from the seed, drawn again; under two seeds of the verifier's own every
   tensor is a permitted constant or unrelated. First steps of the verifier's own show settings, losses and schedules,
   if the policy bounds these.
6. **Challenge**: intervals drawn from the attestation and a fresh nonce, and those that the screens of
   ``pol.proof.screens`` find suspicious; never none.
7. **Audit**: indices from the seed, samples against the dataset root, batches against their digest; each
   challenged interval, taken again from its recorded state, ends in the recorded state: the same bits or, under
   rule ``tolerance``, every tensor within its limit.
8. **Decide**: REJECT if any check failed; else INCONCLUSIVE if any could not be run; else ACCEPT.

Cheap before expensive: 1 to 4 need neither torch nor data. Steps 1 to 6 stop at the first that does not pass.

These are the procedure ``eight-steps``. ``PROCEDURES`` holds all that a policy can name; a further one is one more
entry: ``PROCEDURES["mine"] = Procedure(steps, assurance, confidence)``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from pol import keys
from pol.auditor import Auditor, LocalAuditor
from pol.errors import AuthenticityError, UsageError
from pol.exchange import Patience, SharedFolder
from pol.proof.policy import EXACT, LEVELS, Policy, check_policy, policy_digest
from pol.proof.report import STEPS, Assurance, Report, Status, Step, Verdict, decide
from pol.remote.fetched import opened
from pol.replay.recipe import Recipe
from pol.store import CHECKPOINTS, ProofDirectory
from pol.verifier.case import Case
from pol.verifier.eight import EIGHT_STEPS
from pol.verifier.paper import PAPER_2021
from pol.verifier.procedure import Procedure
from pol.verifier.requested import StoppedByError as StoppedByError
from pol.verifier.requested import StoppedWaiting as StoppedWaiting

Progress = Callable[[str, int, int | None], None]
Parents = Sequence[tuple[Path | str, Recipe | str | None]]
_Stores = Sequence[tuple[ProofDirectory, Recipe | str | None]]

PROCEDURES: dict[str, Procedure] = {"eight-steps": EIGHT_STEPS, "paper-2021": PAPER_2021}
"""Verification procedures by the name that a policy gives."""


def procedure_of(policy: Policy) -> Procedure:
    """The procedure that a policy names.

    Raises:
        UsageError: there is none of that name.
    """
    if policy.procedure not in PROCEDURES:
        raise UsageError(f"no procedure is called {policy.procedure!r}: there is {', '.join(sorted(PROCEDURES))}")
    return PROCEDURES[policy.procedure]


def verify(
    proof: Path | str,
    *,
    recipe: Recipe | str | None = None,
    policy: Policy = EXACT,
    nonce: bytes | None = None,
    model: Path | str | None = None,
    start: Path | str | None = None,
    openings: Path | str | None = None,
    wait: float | Patience = 0.0,
    parents: Parents = (),
    settings: dict[str, Any] | None = None,
    auditor: Auditor | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Verify a proof; see the module for the eight steps.

    Args:
        proof: The proof directory, or its URL (of any file system of fsspec), from which files are fetched as they are
            needed: nothing that its names, sizes or signatures refuse.
        recipe: The recipe that the verifier has read and names; its code runs, never code from the proof.
        policy: What must hold.
        nonce: Fresh bytes for the challenge, by default drawn here; give them only to repeat a verification.
        model: The released model (safetensors), which must be the last checkpoint's weights.
        start: The weights (safetensors) that this verifier gave out, from which the run must start.
        openings: For rule tolerance: a folder, made if it is not there, in which the prover is asked for states that
            the proof does not hold (``request.json``), and answers (``pol regenerate``); for a parent, in its folder
            ``parent``. Only the two should be able to write there.
        wait: How many seconds to wait for an answer, of each proof.
        parents: The proof from whose weights this one starts, and its recipe (None: the same one); then that one's
            parent, and so on. Each is verified whole, under this policy.
        settings: Constructor arguments that the verifier insists on, of this proof and not of its parents.
        auditor: Who takes the steps again; by default processes on this machine.
        jobs: How many of these processes share the replay (step 7), each with the threads of the recorded profile and
            up to two states in its memory. The report is the same for any number.
        progress: Told how far it is.

    Raises:
        UsageError: the call itself cannot be carried out (no such directory, recipe or file; a contradictory policy).
        StoreError: this machine's disk refused, or the URL cannot be reached.
        StoppedWaiting: interrupted, after the prover was asked for states; with how to go on.
        StoppedByError: any error after the prover was asked for states; with how to go on.
    """
    check_policy(policy)
    procedure_of(policy)
    if len(parents) > policy.max_depth:
        raise UsageError(f"{len(parents)} parents, the policy allows a chain of {policy.max_depth}")
    for path, what in ((model, "model file"), (start, "file of first weights")):
        if path is not None and not Path(path).is_file():
            raise UsageError(f"{path}: no such {what}")
    if auditor is None and recipe is None:
        raise UsageError("name the recipe that you have read (path/to/file.py:Name): a proof never brings its own code")
    if auditor is not None and jobs != 1:
        raise UsageError("jobs are for the verifier's own processes: give the number to the auditor that you bring")
    with contextlib.ExitStack() as stack:
        tell = progress or (lambda *_: None)

        def at(path: Path | str) -> ProofDirectory:
            return stack.enter_context(opened(path, most=policy.max_bytes, progress=tell))

        case = Case(
            store=at(proof),
            policy=policy,
            model=None if model is None else Path(model),
            start=None if start is None else Path(start),
            openings=None if openings is None else SharedFolder(Path(openings)),
            patience=wait if isinstance(wait, Patience) else Patience(wait),
            nonce=nonce or secrets.token_bytes(32),
            progress=tell,
            repeated=nonce is not None,
        )
        if case.openings is not None:
            case.openings.make()
        if auditor is None:
            assert recipe is not None
            auditor = stack.enter_context(LocalAuditor(recipe, settings, jobs=jobs))
        case.settings = auditor.settings
        try:
            return _verify(case, auditor, [(at(path), theirs) for path, theirs in parents], jobs)
        except KeyboardInterrupt:
            if not case.revealed:
                raise
            raise StoppedWaiting(case.nonce, case.attestation_digest) from None
        except Exception as error:
            if not case.revealed:
                raise
            raise StoppedByError(case.nonce, case.attestation_digest, error) from error


def _verify(case: Case, auditor: Auditor, parents: _Stores, jobs: int) -> Report:
    started = time.monotonic()
    procedure = procedure_of(case.policy)
    if parents:
        case.parent_path = parents[0][0].path
        case.parent = functools.partial(_verify_parent, case, auditor, parents, jobs)
    case.elements = procedure.elements
    with tempfile.TemporaryDirectory(prefix="pol-states-") as own:
        (Path(own) / CHECKPOINTS).mkdir()
        case.own = ProofDirectory(Path(own))
        steps = list(procedure.steps(case, auditor))
    return _report(case, procedure, steps, time.monotonic() - started)


def _verify_parent(child: Case, auditor: Auditor, parents: _Stores, jobs: int) -> Report:
    """Verify the first of some parents: under the same policy but for what this verifier said of the child alone.

    That is the nonce that it gave for the child's genesis, the child's first weights and settings. What the chain is
    then worth is compared with the demanded level again, when its parents are known.
    """
    (store, recipe), *others = parents
    lowest = min(child.policy.assurance, "self-seeded", key=LEVELS.index)
    case = Case(
        store=store,
        policy=msgspec.structs.replace(
            child.policy, beacon=None, genesis=None, attestation=None, start=None, assurance=lowest
        ),
        model=None,
        openings=None if child.openings is None else child.openings.within(PARENT),
        patience=child.patience,
        child=child,
        nonce=hashlib.sha256(b"pol/v1/parent" + child.nonce).digest(),
        progress=child.progress,
    )
    with contextlib.ExitStack() as stack:
        if recipe is not None:
            auditor = stack.enter_context(LocalAuditor(recipe, jobs=jobs))
        return _verify(case, auditor, others, jobs)


PARENT = "parent"
"""Folder of the openings in which the states of a parent are."""


def _report(case: Case, procedure: Procedure, steps: list[Step], seconds: float) -> Report:
    verdict = decide(steps, procedure.needed)
    accepted = verdict is Verdict.ACCEPT
    known = hasattr(case, "statement")  # both payloads could be read
    decided = {Verdict.ACCEPT: "passed", Verdict.REJECT: "failed", Verdict.INCONCLUSIVE: "unable"}
    final = Step(8, STEPS[7], cast("Status", decided[verdict]), [])
    nothing = Assurance(level="none", statements=["Not accepted: nothing is assured."])
    return Report(
        verdict=verdict,
        procedure=case.policy.procedure,
        rule=case.policy.rule,
        assurance=procedure.assurance(case) if accepted else nothing,
        policy=f"{case.policy.name}/{case.policy.version}",
        policy_digest=policy_digest(case.policy),
        genesis=case.genesis_digest if known else None,
        attestation=case.attestation_digest if known else None,
        claimant=_claimant(case) if known else None,
        weights=case.statement.predicate.final.weights.digest if known else None,
        nonce=case.nonce.hex(),
        request=str(case.request) if case.request and verdict is Verdict.INCONCLUSIVE else None,
        steps=[*steps, final],
        screens=case.screens,
        intervals=case.intervals,
        draws=case.draws,
        drift=case.drift,
        confidence=procedure.confidence(case) if accepted else "Nothing was shown.",
        not_shown=list(procedure.not_shown),
        seconds=seconds,
    )


def _claimant(case: Case) -> str | None:
    try:
        return keys.fingerprint(case.genesis.claimant)
    except AuthenticityError:  # not even a key; step 1 has said so
        return None

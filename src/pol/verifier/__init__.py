"""The verifier: eight numbered steps from a directory to a verdict.

1. **Authenticate**: the one key that the genesis names signed genesis and attestation; it is a key that the
   verifier trusts, if it named any; the run answers the verifier's nonce, if it gave one.
2. **Parse**: strict and size-limited; encoding again gives the same bytes, envelopes included.
3. **Bind**: every file present is listed and hashed, nothing else is there; log → attestation → genesis; every
   kept checkpoint has its recorded root; the released model is the last checkpoint's weights.
4. **Shape**: intervals cover [0, T] exactly, at least one; sizes and counts agree with the spec; every value is
   finite; recipe, profile and inputs are within policy. Update sizes are measured here.
5. **Origin**: the first state follows from the seed, drawn again; under two seeds of the verifier's own every
   tensor is a permitted constant or unrelated.
6. **Challenge**: intervals drawn from the attestation and a fresh nonce; never none.
7. **Audit**: indices from the seed, samples against the dataset root, batches against their digest; each
   challenged interval, taken again from its recorded state, ends in the recorded state.
8. **Decide**: REJECT if any check failed; else INCONCLUSIVE if any could not be run; else ACCEPT.

Cheap before expensive: 1 to 4 need neither torch nor data. Steps 1 to 6 stop at the first that does not pass.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from pol import keys
from pol.auditor import Auditor, LocalAuditor
from pol.errors import AuthenticityError, FormatError, IntegrityError, UsageError
from pol.proof.policy import EXACT, Policy, policy_digest
from pol.proof.report import (
    NOT_SHOWN,
    STEPS,
    Assurance,
    Check,
    Report,
    Status,
    Step,
    Verdict,
    confidence_sentence,
    decide,
    step_status,
)  # fmt: skip
from pol.replay.recipe import Recipe
from pol.store import ProofDirectory
from pol.verifier import auditing, authenticate, bind, replayed, shape
from pol.verifier.case import Case, Checks, failed

Progress = Callable[[str, int, int | None], None]

AUTHENTICATE = (authenticate.signatures, authenticate.trusted_key, authenticate.beacon)
BIND = (bind.files, bind.chain, bind.states, bind.released_model)
SHAPE = (shape.arithmetic, shape.cover, shape.kept_states, shape.measured, shape.policy)


def verify(
    proof: Path | str,
    *,
    recipe: Recipe | str | None = None,
    policy: Policy = EXACT,
    nonce: bytes | None = None,
    model: Path | str | None = None,
    settings: dict[str, Any] | None = None,
    auditor: Auditor | None = None,
    progress: Progress | None = None,
) -> Report:
    """Verify a proof directory; see the module for the eight steps.

    Args:
        proof: The proof directory.
        recipe: The recipe that the verifier has read and names; its code runs, never code from the proof.
        policy: What must hold.
        nonce: Fresh bytes for the challenge, by default drawn here; give them only to repeat a verification.
        model: The released model (safetensors), which must be the last checkpoint's weights.
        settings: Constructor arguments that the verifier insists on.
        auditor: Who takes the steps again; by default processes on this machine.
        progress: Told how far it is.

    Raises:
        UsageError: the call itself cannot be carried out (no such directory, recipe or model file).
    """
    started = time.monotonic()
    store = ProofDirectory(Path(proof))
    path = None if model is None else Path(model)
    if path is not None and not path.is_file():
        raise UsageError(f"{path}: no such model file")
    if auditor is None and recipe is None:
        raise UsageError("name the recipe that you have read (path/to/file.py:Name): a proof never brings its own code")
    case = Case(store, policy, path, nonce or secrets.token_bytes(32), progress or (lambda *_: None))
    with contextlib.ExitStack() as stack:
        if auditor is None:
            assert recipe is not None
            auditor = stack.enter_context(LocalAuditor(recipe, settings))
        steps = list(_steps(case, auditor))
    return _report(case, steps, time.monotonic() - started)


def _steps(case: Case, auditor: Auditor) -> Iterator[Step]:
    """Steps 1 to 7, in their order; after one that does not pass, the rest are not run."""
    opened = _run(2, authenticate.envelopes(case))
    if opened.status != "passed":  # nobody to authenticate
        yield from (_not_run(1), opened, *map(_not_run, range(3, 8)))
        return
    platform: replayed.Platform | None = None

    def measured_platform() -> replayed.Platform:
        nonlocal platform
        platform = platform or replayed.control(case, auditor)
        return platform

    plan: list[tuple[int, Callable[[], Iterator[Checks]]]] = [
        (1, lambda: (check(case) for check in AUTHENTICATE)),
        (2, lambda: iter([iter(opened.checks), authenticate.contents(case)])),
        (3, lambda: (check(case) for check in BIND)),
        (
            4,
            lambda: iter(
                [
                    *(check(case) for check in SHAPE),
                    shape.recipe(case, auditor.name, auditor.sources(), auditor.settings),
                ]
            ),
        ),
        (5, lambda: iter([replayed.origin(case, auditor, measured_platform()), replayed.independence(case, auditor)])),
        (6, lambda: iter([replayed.challenge(case)])),
        (7, lambda: iter([auditing.audit(case, auditor, measured_platform())])),
    ]
    for position, (number, checks) in enumerate(plan):
        step = _run(number, *checks())
        yield step
        if step.status != "passed":
            yield from (_not_run(later) for later, _ in plan[position + 1 :])
            return


def _run(number: int, *groups: Checks) -> Step:
    """Run the checks of a step until one does not pass; what they raise about the proof is a failed check."""
    found: list[Check] = []
    for group in groups:
        try:
            for check in group:
                found.append(check)
        except FormatError as error:
            found.append(failed("format", str(error)))
        except (IntegrityError, AuthenticityError) as error:
            found.append(failed("integrity" if isinstance(error, IntegrityError) else "signature", str(error)))
        if any(check.status != "passed" for check in found):
            break
    return Step(number, STEPS[number - 1], step_status(found), found)


def _not_run(number: int) -> Step:
    return Step(number, STEPS[number - 1], "not run", [])


def _report(case: Case, steps: list[Step], seconds: float) -> Report:
    verdict = decide(steps)
    known = hasattr(case, "statement")  # both payloads could be read
    decided = {Verdict.ACCEPT: "passed", Verdict.REJECT: "failed", Verdict.INCONCLUSIVE: "unable"}
    final = Step(8, STEPS[7], cast("Status", decided[verdict]), [])
    return Report(
        verdict=verdict,
        rule=case.policy.rule,
        assurance=_assurance(case, verdict),
        policy=f"{case.policy.name}/{case.policy.version}",
        policy_digest=policy_digest(case.policy),
        genesis=case.genesis_digest if known else None,
        attestation=case.attestation_digest if known else None,
        claimant=_claimant(case) if known else None,
        weights=case.statement.predicate.final.weights.digest if known else None,
        nonce=case.nonce.hex(),
        steps=[*steps, final],
        intervals=case.intervals,
        draws=case.draws,
        confidence=confidence_sentence(case.draws)
        if verdict is Verdict.ACCEPT and case.draws
        else "Nothing was shown.",
        not_shown=NOT_SHOWN,
        seconds=seconds,
    )


def _claimant(case: Case) -> str | None:
    try:
        return keys.fingerprint(case.genesis.claimant)
    except AuthenticityError:  # not even a key; step 1 has said so
        return None


def _assurance(case: Case, verdict: Verdict) -> Assurance:
    """How far an ACCEPT reaches."""
    if verdict is not Verdict.ACCEPT:
        return Assurance(level="none", statements=["Not accepted: nothing is assured."])
    nonce, seeded = case.policy.beacon is not None, None not in (case.policy.beacon, case.policy.genesis)
    if seeded:
        randomness = "The randomness follows from the nonce that you gave for this genesis: nobody could choose it."
    elif nonce:
        randomness = (
            "Your nonce is used, but you did not name the genesis that you gave it for: it may have been known."
        )
    else:
        randomness = "The claimant chose the randomness (no nonce of yours): it may have tried many seeds and kept one."
    key = (
        "You pinned the key." if case.policy.keys else "You pinned no key: the name behind it is for you to establish."
    )
    start = "Origin: weights drawn from the run's seed, drawn again here; nothing was trained before."
    return Assurance(
        level="verifier-seeded" if seeded else "self-seeded",
        statements=[start, randomness, key, "No time evidence: nothing here says when the training took place."],
    )

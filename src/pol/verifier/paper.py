"""Procedure ``paper-2021``: the verification of the paper, with the behaviour of the code released with it.

It is here so that anyone can see forgeries pass it; docs/paper-2021.md says what it checks, and what passes. It reads
one of our proofs with the original's eyes: no signature, key, binding, released model, cover, policy of
hyperparameters or check for NaN. What it looks at:

2. **Parse**: genesis, log and checkpoints can be read. N is the number of steps that the log names.
5. **Origin**: the first weights of the layers fit their laws (``paper_origin``).
6. **Challenge**: the Q largest updates of each epoch, by parameters alone.
7. **Audit**: each of these, taken again as the checkpoint and the log say, ends near enough (``paper_audit``).

Steps 1, 3 and 4 are not run, because the original has nothing like them; what a policy demands there is named in step
4 as not looked at. A forged directory is no error: what cannot be read is a failed check of step 2, where the original
would have crashed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from pol import canonical
from pol.auditor import Auditor
from pol.declaration import Count
from pol.errors import FormatError
from pol.proof import attestation, genesis
from pol.proof.attestation import MAX_ATTESTATION, Statement
from pol.proof.envelope import parse_envelope
from pol.proof.genesis import MAX_GENESIS, Genesis, Secret, Spec
from pol.proof.log import parse_log
from pol.proof.policy import Policy, Struct
from pol.proof.report import NOT_SHOWN, Assurance, Check, Step
from pol.store import ATTESTATION, GENESIS, LOG, MAX_LOG_FILE, SECRET, checkpoint_path
from pol.verifier import paper_audit, paper_origin
from pol.verifier.authenticate import MAX_SECRET, unpacked
from pol.verifier.case import Case, Checks, passed, require
from pol.verifier.paper_audit import Run, limits
from pol.verifier.procedure import Procedure, not_run, run_step

MOST_EPOCHS = 10**6
"""Most epochs that are looked at: windows are counted one by one."""


_LOOKED_AT = frozenset(
    {"name", "version", "procedure", "paper", "laws", "max_depth", "max_threads", "max_bytes", "max_steps"}
)
"""Fields of a policy that mean something here."""

_ASKS_NOTHING = Policy(assurance="observed", order="permutation")
"""The other fields as the preset leaves them."""


class _Spec(Spec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A spec that may be of no steps: the original has no minimum."""

    steps: Count


class _Genesis(Genesis, frozen=True, forbid_unknown_fields=True, kw_only=True):
    spec: _Spec


def steps(case: Case, auditor: Auditor) -> Iterator[Step]:
    """Steps 2, 5, 6 and 7; after one that does not pass, the rest are not run."""
    deltas = limits(case.policy)
    runs: list[Run] = []
    given = ignored(case)
    plan: dict[int, Callable[[], Checks] | str] = {
        1: "the original compares no signature or key: a proof is anybody's who holds it",
        2: lambda: _parse(case, runs),
        3: "the original binds nothing: no file to another, no proof to the model in question",
        4: "the original checks no shape: not that the intervals cover the run, nor that values are finite",
        5: lambda: paper_origin.origin(case, auditor, runs[0]),
        6: lambda: paper_audit.challenge(case, runs[0], deltas),
        7: lambda: paper_audit.audit(case, auditor, runs[0], deltas),
    }
    stopped = False
    for number, checks in plan.items():
        if isinstance(checks, str):
            further = [Check("policy", "not run", f"of what you demand, {given}")] if given and number == 4 else []
            yield not_run(number, Check("original", "not run", checks), *further)
        elif stopped:
            yield not_run(number)
        else:
            step = run_step(number, [checks()])
            stopped = step.status != "passed"
            yield step


def _parse(case: Case, runs: list[Run]) -> Checks:
    """Read what the original reads; payloads without a look at who signed them."""
    case.files = case.store.files()
    total = sum(case.files.values())
    yield require(
        total <= case.policy.max_bytes, "size", f"{len(case.files)} files, {total} bytes",
        f"{total} bytes, more than the policy reads ({case.policy.max_bytes})",
    )  # fmt: skip
    data = case.store.read(GENESIS, 2 * MAX_GENESIS)
    case.genesis_envelope = parse_envelope(data, what=GENESIS, payload_type=genesis.PAYLOAD_TYPE, limit=MAX_GENESIS)
    payload = case.genesis_envelope.payload_bytes(GENESIS)
    case.genesis = canonical.decode(payload, _Genesis, what=f"{GENESIS}: payload", limit=MAX_GENESIS)
    threads = min(case.genesis.profile.threads, case.policy.max_threads)  # the machine is the verifier's
    profile = msgspec.structs.replace(case.genesis.profile, threads=threads)
    data = case.store.read(ATTESTATION, 2 * MAX_ATTESTATION)
    case.attestation_envelope = parse_envelope(
        data, what=ATTESTATION, payload_type=attestation.PAYLOAD_TYPE, limit=MAX_ATTESTATION
    )
    payload = case.attestation_envelope.payload_bytes(ATTESTATION)
    case.statement = canonical.decode(payload, Statement, what=f"{ATTESTATION}: payload", limit=MAX_ATTESTATION)
    case.log = parse_log(case.store.read(LOG, MAX_LOG_FILE))
    case.secret = canonical.decode(case.store.read(SECRET, MAX_SECRET), Secret, what=SECRET, limit=MAX_SECRET)
    spec = case.genesis.spec
    if spec.declaration.epochs > MOST_EPOCHS:
        raise FormatError(f"{GENESIS}: {spec.declaration.epochs} epochs, more than are looked at ({MOST_EPOCHS})")
    count = max((interval.stop for interval in case.log.intervals), default=0)
    run = Run(profile, count, spec.declaration.epochs, spec.every * spec.keep)
    missing = next((step for step in run.boundaries() if checkpoint_path(step) not in case.files), None)
    if missing is not None:  # so there are no more boundaries than files
        raise FormatError(f"{checkpoint_path(missing)}: missing")
    case.checkpoints = {step: paper_audit.entries(case, step) for step in run.boundaries()}
    yield unpacked(case)
    runs.append(run)
    yield passed("files", f"{count} steps in {run.intervals} intervals of {run.every}, with every state between them")


def ignored(case: Case) -> str:
    """Says which clauses of the policy, and which files, nothing here looks at; empty if there are none."""
    policy, found = case.policy, list[str]()
    by_reference = policy.paper is not None and policy.paper.fraction is not None
    for name in sorted(set(Policy.__struct_fields__) - _LOOKED_AT - ({"reference"} if by_reference else set())):
        value, usual = getattr(policy, name), getattr(_ASKS_NOTHING, name)
        if isinstance(usual, Struct):
            inner = [key for key in usual.__struct_fields__ if getattr(value, key) != getattr(usual, key)]
            found += [f"{name}.{key}" for key in inner]
        elif value != usual:
            found.append(name)
    files = {
        "the released model": case.model, "the first weights that you gave out": case.start,
        "the openings": case.openings, "the parents": case.parent,
    }  # fmt: skip
    found += [name for name, value in files.items() if value is not None]
    return f"this procedure does not look at: {', '.join(found)}" if found else ""


def confidence(case: Case) -> str:
    """What an ACCEPT of this procedure is worth."""
    taken, total = len(case.intervals), case.draws.intervals if case.draws else 0
    return (
        f"None. {taken} of {total} intervals were taken again, and the prover could tell beforehand which; forgeries "
        "that take a minute and no training pass this procedure."
    )


def assurance(case: Case) -> Assurance:
    """The level of an ACCEPT: broken."""
    given = ignored(case)
    return Assurance(
        level="broken",
        statements=[
            "Broken: published forgeries that take a minute pass this verification of 2021. It is here to show that.",
            "Never use it in a dispute. It compared no key, no released model and no date.",
            "Optimizer state, hyperparameters, learning rates and order were taken at the prover's word.",
            *([f"Of what you demand, {given}."] if given else []),
        ],
    )


PAPER_2021 = Procedure(
    steps,
    assurance,
    confidence,
    needed=frozenset({2, 5, 6, 7}),
    not_shown=("that anything was trained: forgeries pass this procedure", *NOT_SHOWN),
)

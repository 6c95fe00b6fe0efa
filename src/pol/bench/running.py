"""Runs the bench: a training to attack, then every attack, and all that was found.

Honest proofs are recorded and have to be accepted; then each attack forges for each rule or, if it adapts, for each
policy, and every forgery is verified. What is finished is kept in a folder, so that an interrupted bench goes on where
it was.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from pol.bench import preparing, suite
from pol.bench.arena import Progress
from pol.bench.pool import Kept, Round, run
from pol.bench.preparing import Training
from pol.bench.result import Outcome
from pol.bench.suite import Suite, columns
from pol.errors import UsageError
from pol.proof.policy import policy_digest

MOST_BUDGET = 10.0
"""Largest budget: a forger who may train ten times over is no forger any more."""


def attacks(
    *, work: Path, chosen: Suite = suite.QUICK, recipe: str | None = None, settings: dict[str, Any] | None = None,
    names: Sequence[str] = (), files: Sequence[Path] = (), budget: float = 0.5, jobs: int = 1,
    progress: Progress = lambda *_: None,
) -> Outcome:  # fmt: skip
    """Run attacks against all policies.

    Args:
        work: Folder of what is finished: the same question is not asked again.
        chosen: The suite.
        recipe: What is trained, instead of what the suite trains.
        settings: Constructor arguments; by default the suite's for its recipe, the recipe's own for another.
        names: Attacks, instead of those of the suite.
        files: Python files with further attacks.
        budget: Gradients of forgers that spend what they are given, as a share of the honest training's.
        jobs: Processes.
        progress: Told how far it is.

    Raises:
        UsageError: there is no such attack, or the recipe cannot be attacked.
        PolError: the training cannot be recorded; a process that it needs was killed; the disk refused.
    """
    from pol.attacks.registry import REGISTRY, attack_named, read_attacks

    if not 0 < budget <= MOST_BUDGET:
        raise UsageError(f"budget {budget}: a share of the honest training, above 0 and at most {MOST_BUDGET:g}")
    for name in names:
        attack_named(name)
    own = [f"{file}:{attack.name}" for file in files for attack in read_attacks(file)]
    short = [name.rpartition(":")[2] for name in own]
    if twice := sorted({name for name in short if short.count(name) > 1}):
        raise UsageError(f"several attacks of these files are called {twice[0]}; give each a name of its own")
    listed = list(chosen.attacks or REGISTRY)
    wanted = [*(names or ([] if own else listed)), *own]
    trained = recipe or chosen.recipe
    given = settings if settings is not None else chosen.settings if trained == chosen.recipe else {}
    whole = not own and not names and trained == chosen.recipe and given == chosen.settings
    suites = [(replace(chosen, recipe=trained, settings=given), wanted)]
    if whole and chosen.beside is not None:
        suites.append((chosen.beside, list(chosen.beside.attacks or REGISTRY)))
    found, *beside = _run(work, suites, files, budget, jobs, progress)
    return msgspec.structs.replace(found, beside=beside[0]) if beside else found


def _run(
    work: Path, suites: Sequence[tuple[Suite, Sequence[str]]], files: Sequence[Path], budget: float, jobs: int,
    tell: Progress,
) -> list[Outcome]:  # fmt: skip
    """Run some attacks on each of some trainings."""
    from pol.attacks.registry import sources

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pol-bench-", ignore_cleanup_errors=True) as temporary:
        rounds = []
        for chosen, wanted in suites:
            question = [chosen.recipe, chosen.settings, budget, chosen.draws, preparing.environment(0)]
            kept = Kept(work, question, [*files, *sources(chosen.recipe, wanted)])
            training = Training(
                Path(temporary) / chosen.name, kept.reference, chosen.recipe, chosen.settings, budget, chosen.draws
            )
            preparing.begin(training)
            rounds.append(Round(training, wanted, kept))
        scratch = Path(temporary) / "scratch"
        scratch.mkdir()
        run(rounds, scratch, jobs, tell)
    return [
        _outcome(chosen, made, budget, jobs, time.monotonic() - started)
        for (chosen, _), made in zip(suites, rounds, strict=True)
    ]


def _outcome(chosen: Suite, made: Round, budget: float, jobs: int, seconds: float) -> Outcome:
    prepared, honest = made.prepared, made.honest
    assert prepared is not None and honest is not None
    return Outcome(
        suite=chosen.name,
        recipe=chosen.recipe,
        settings=chosen.settings,
        steps=prepared.steps,
        every=preparing.EVERY,
        budget=budget,
        delta={str(metric): value for metric, value in prepared.setting.delta.items()},
        policies={name: policy_digest(policy) for name, policy in columns(prepared.setting.delta).items()},
        honest={name: report.verdict for name, report in honest.reports.items()},
        honest_reasons={name: why for name, report in honest.reports.items() if (why := report.reason())},
        honest_seconds=prepared.seconds,
        honest_bytes=prepared.bytes,
        honest_accuracy=honest.accuracy,
        environment=preparing.environment(jobs),
        seconds=seconds,
        results=[cell for name in made.names for cell in made.found[name]],
    )

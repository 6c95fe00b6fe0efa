"""What an attack is, and what a forgery cost."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pol.attacks.workshop import Workshop
from pol.errors import PolError, UsageError
from pol.executors.local import Executor
from pol.keys import SigningKey
from pol.proof.policy import Policy
from pol.store import ATTESTATION


class BrokenAttack(UsageError):
    """An attack has a fault: it raised what is no refusal of its own, or wrote no proof."""


@dataclass(frozen=True)
class Cost:
    """What a forgery cost its maker."""

    gradients: int
    """Gradient evaluations."""
    seconds: float
    bytes: int
    """Of the forged proof."""


@dataclass(frozen=True)
class Forgery:
    """A forged proof, and the model file that is released with it, if that is part of the lie."""

    attack: str
    path: Path
    cost: Cost
    model: Path | None
    recipe: str
    """The recipe that it was registered for: the target's, or one that the forger published."""


@dataclass(frozen=True)
class Attack:
    """A strategy: ``make`` writes a forged proof, and returns the model file that goes with it, if any."""

    name: str
    title: str
    """What was done, in a few words."""
    forger: Literal["prover", "thief"]
    """Whose key it needs: that of the target, or one of the forger's own."""
    make: Callable[[Workshop, Path], Path | None]
    study: tuple[str, ...] = ()
    """Its numbers in the attack study: A published ones, T trivial ones, I those on the code of 2021."""
    survives: str = ""
    """Why no replay of a proof can refuse it; empty for a forgery, which has to be refused."""
    reported: str = ""
    """What is published of it, with the source: by its authors, or measured on the released code of 2021. Empty if
    nothing is. *rho* is the error of a replay over the claimed move; sections and numbers are those of the study."""
    adapts: bool | Literal["paper-2021", "limits"] = False
    """Whether it makes another forgery for another policy; else one for each rule will do. ``paper-2021``: it reads
    what only policies of that procedure have (deltas and Q), and one for each rule will do for all others. ``limits``:
    it reads deltas and limits, and one for each rule will do for policies that have neither."""
    given: bool = False
    """Whether it says that the verifier gave out its first weights; then a verifier is one that gave out others."""
    bound: bool = False
    """Whether it keeps to the budget that it is given, and is at fault if it does not."""

    def forges_for(self, policy: Policy) -> str:
        """What forgeries are made for: policies with the same answer get the same one."""
        believing, limited = policy.procedure == "paper-2021", policy.limits is not None
        alone = self.adapts is True or (bool(self.adapts) and believing) or (self.adapts == "limits" and limited)
        return f"policy {policy.name}" if alone else f"rule {policy.rule}"

    def forge(
        self, target: Path, out: Path, key: SigningKey, recipe: str, executor: Executor | None = None, *,
        policy: Policy | None = None, budget: float = 1.0,
    ) -> Forgery:  # fmt: skip
        """Attack the complete proof ``target``, and write the forgery to the new directory ``out``.

        Args:
            target: The proof, with all its files.
            out: A new directory.
            key: The forger's.
            recipe: The recipe of the target.
            executor: Where honest recordings train; by default a process on this machine.
            policy: By which it will be verified: a forger reads it as anyone does. None: it does not know.
            budget: Gradients that it may spend, as a fraction of those of the target's training; for attacks that
                spend as much as they are given.

        Raises:
            DoesNotApply: the attack does not apply to such a training.
            BrokenAttack: it has a fault; so has one that raises any other error of this package.
        """
        if self.forger not in ("prover", "thief"):
            raise BrokenAttack(f"attack {self.name}: forger is {self.forger!r}: write 'prover' or 'thief'")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pol-forger-") as scratch:
            workshop = Workshop(target, key, recipe, Path(scratch), executor, policy, budget)
            try:
                model = self.make(workshop, out)
            except PolError:
                raise
            except (Exception, SystemExit) as error:
                frame = traceback.extract_tb(error.__traceback__)[1:2] or traceback.extract_tb(error.__traceback__)
                where = f"{frame[0].filename}:{frame[0].lineno}"
                raise BrokenAttack(f"attack {self.name} failed at {where}: {type(error).__name__}: {error}") from error
        if not (out / ATTESTATION).exists():
            raise BrokenAttack(
                f"attack {self.name} wrote no proof to {out}: end it with forger.seal(out, workshop.key)"
            )
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        cost = Cost(workshop.gradients, time.monotonic() - started, size)
        return Forgery(self.name, out, cost, model, workshop.recipe)

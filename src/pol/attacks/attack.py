"""What an attack is, and what a forgery cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pol.attacks.workshop import Workshop
from pol.executors.local import Executor
from pol.keys import SigningKey


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


@dataclass(frozen=True)
class Attack:
    """A strategy: ``make`` writes a forged proof, and returns the model file that goes with it, if any."""

    name: str
    title: str
    forger: Literal["prover", "thief"]
    """Whose key it needs: that of the target, or one of the forger's own."""
    make: Callable[[Workshop, Path], Path | None]

    def forge(self, target: Path, out: Path, key: SigningKey, recipe: str, executor: Executor | None = None) -> Forgery:
        """Attack the complete proof ``target``, and write the forgery to the new directory ``out``.

        Raises:
            UsageError: the attack does not apply to such a training.
        """
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pol-forger-") as scratch:
            workshop = Workshop(target, key, recipe, Path(scratch), executor)
            model = self.make(workshop, out)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        return Forgery(self.name, out, Cost(workshop.gradients, time.monotonic() - started, size), model)

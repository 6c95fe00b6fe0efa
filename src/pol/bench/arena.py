"""Where one attack meets every policy."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from pol.auditor import LocalAuditor
from pol.bench import detection
from pol.bench.result import FULL, PAPER, SAMPLED, Cell, Detection, Spent
from pol.bench.suite import columns
from pol.checkpoint import Checkpoint, compare
from pol.errors import PolError
from pol.executors.local import Executor, Processes
from pol.keys import SigningKey
from pol.profile import Profile
from pol.proof.log import parse_log
from pol.proof.policy import Metric, Policy
from pol.proof.report import Report, Verdict
from pol.statetree import Entry
from pol.store import CHECKPOINTS, LOG, MAX_LOG_FILE, ProofDirectory
from pol.verifier import verify

Progress = Callable[[str, int, int | None], None]

Rule = Literal["exact", "tolerance"]
RULES: tuple[Rule, ...] = ("exact", "tolerance")

if TYPE_CHECKING:
    from pol.attacks.attack import Attack, Forgery


def honest_proof(folder: Path, rule: str) -> Path:
    """Where the honest proof that fixes a rule is."""
    return folder / f"honest-{rule}"


@dataclass(frozen=True)
class Setting:
    """What is attacked."""

    folder: Path
    """Holds the honest proofs, by rule, the keys, and what is being made."""
    recipe: str
    profile: Profile
    delta: dict[Metric, float]
    gradients: int
    """Of the honest training."""
    budget: float
    draws: int

    def target(self, rule: str) -> Path:
        """The honest proof that fixes a rule."""
        return honest_proof(self.folder, rule)

    def key(self, forger: str) -> SigningKey:
        """The key of the prover or the thief."""
        return SigningKey.load(self.folder / f"{forger}.pem")


@dataclass(frozen=True)
class Honest:
    """What became of the honest proofs."""

    reports: dict[str, Report]
    """By policy."""
    accuracy: float | None


class Arena:
    """A setting, an executor of the recorded profile, and processes for audits of the setting's own recipe."""

    def __init__(self, setting: Setting, executor: Executor, processes: Processes) -> None:
        self.setting = setting
        self.policies = columns(setting.delta)
        self._effects: dict[Path, dict[str, float | None]] = {}
        self._executor, self._processes, self._published = executor, processes, Processes()

    def honest(self) -> Honest:
        """What the policies say of the honest proofs, and what the honest model is worth."""
        reports = {
            name: verify(self.setting.target(policy.rule), auditor=self._auditing(self.setting.recipe), policy=policy)
            for name, policy in self.policies.items()
        }
        return Honest(reports, self._accuracy(self.setting.target("exact"), "exact", self.setting.recipe))

    def meet(self, attack: Attack) -> list[Cell]:
        """One cell for each policy."""
        cells: dict[str, Cell] = {}
        replayed: dict[Path, Report] = {}
        with tempfile.TemporaryDirectory(prefix="pol-arena-", dir=self.setting.folder) as made, self._published:
            forged: dict[str, Forgery | NoForgery] = {}
            for name in (*(n for n in self.policies if n != SAMPLED), SAMPLED):
                policy = self.policies[name]
                kind = attack.forges_for(policy)
                if kind not in forged:
                    forged[kind] = self._forge(attack, Path(made) / kind.replace(" ", "-"), policy)
                forgery = forged[kind]
                try:
                    cells[name] = (
                        without(attack, name, forgery)
                        if isinstance(forgery, NoForgery)
                        else self._judge(attack, name, forgery, replayed)
                    )
                except Exception as error:  # whatever a verifier says of a forgery, it has to say it in a report
                    why = f"its verification failed: {type(error).__name__}: {error}"
                    cells[name] = without(attack, name, NoForgery(why, broken=True))
        return [cells[name] for name in self.policies]

    def _forge(self, attack: Attack, out: Path, policy: Policy) -> Forgery | NoForgery:
        from pol.attacks.needs import DoesNotApply

        target, key = self.setting.target(policy.rule), self.setting.key(attack.forger)
        try:
            return attack.forge(
                target, out, key, self.setting.recipe, self._executor, policy=policy, budget=self.setting.budget
            )
        except PolError as error:
            shutil.rmtree(out, ignore_errors=True)
            return NoForgery(str(error), broken=not isinstance(error, DoesNotApply))

    def _judge(self, attack: Attack, name: str, forgery: Forgery, replayed: dict[Path, Report]) -> Cell:
        policy = self.policies[name]
        auditor, known = self._auditing(forgery.recipe), replayed.get(forgery.path)
        if name == SAMPLED and known is None:  # a forgery for this policy alone
            known = self._verify(attack, forgery, FULL, auditor)
        if name == SAMPLED and known is not None and detection.is_complete(known):
            verdict, step, reason, found = self._looked_up(forgery, known)
        else:
            report = self._verify(attack, forgery, name, auditor)
            verdict, step, reason, found = report.verdict, report.caught_by, report.reason(), None
            if name == FULL:
                replayed[forgery.path] = report
        cost = forgery.cost
        return _cell(
            attack,
            name,
            verdict=verdict,
            step=step,
            reason=reason,
            cost=Spent(
                gradients=cost.gradients,
                share=cost.gradients / self.setting.gradients,
                seconds=cost.seconds,
                bytes=cost.bytes,
            ),
            detection=found,
            **self._effect(forgery.path, policy.rule, forgery.recipe),
        )

    def _accuracy(self, proof: Path, rule: str, recipe: str) -> float | None:
        from pol.attacks.accuracy import accuracy

        return accuracy(proof, self.setting.target(rule), self.setting.recipe, recipe)

    def _effect(self, path: Path, rule: str, recipe: str) -> dict[str, float | None]:
        """What a forgery comes to, whatever a verifier says: measured once."""
        if path not in self._effects:
            found = _apart(path, self.setting.target(rule)), self._accuracy(path, rule, recipe)
            self._effects[path] = dict(zip(("apart", "accuracy"), found, strict=True))
        return self._effects[path]

    def _looked_up(self, forgery: Forgery, known: Report) -> tuple[Verdict, int | None, str, Detection | None]:
        """What a sample says of a forgery all of whose intervals were replayed: looked up, for a fresh nonce."""
        lookup = detection.Lookup(forgery.path, self.policies[SAMPLED], known)
        met = lookup.meets(lookup.draws(secrets.token_bytes(32)).all())
        measured = lookup.measure(self.setting.draws)
        return (Verdict.REJECT, 7, known.reason(), measured) if met else (Verdict.ACCEPT, None, "", measured)

    def _verify(self, attack: Attack, forgery: Forgery, name: str, auditor: LocalAuditor) -> Report:
        policy = self.policies[name]
        if attack.given and name != PAPER:  # which knows no such start
            policy = msgspec.structs.replace(policy, start=self._gave(policy.rule))
        return verify(forgery.path, auditor=auditor, policy=policy, model=forgery.model)

    def _gave(self, rule: str) -> str:
        """What a verifier gave out: the weights that the honest run began with."""
        log = ProofDirectory(self.setting.target(rule)).read(LOG, MAX_LOG_FILE)
        return parse_log(log).origin.root.weights.digest

    def _auditing(self, recipe: str) -> LocalAuditor:
        """An auditor for a recipe. What a forger published runs in no process that also runs what others wrote."""
        return LocalAuditor(recipe, processes=self._processes if recipe == self.setting.recipe else self._published)


@dataclass(frozen=True)
class NoForgery:
    """Why there is nothing to verify."""

    reason: str
    broken: bool
    """Whether that is a fault, and not that the attack does not apply."""


def without(attack: Attack, policy: str, why: NoForgery) -> Cell:
    """The cell of an attack that made nothing."""
    return _cell(attack, policy, verdict=None, step=None, reason=why.reason, cost=None, broken=why.broken)


def _cell(attack: Attack, policy: str, **found: Any) -> Cell:
    return Cell(
        attack=attack.name, title=attack.title, study=list(attack.study), policy=policy, bound=attack.bound,
        in_scope=not attack.survives, survives=attack.survives, reported=attack.reported, **found,
    )  # fmt: skip


def _apart(forged: Path, honest: Path) -> float | None:
    """How far the last parameters are from the honest ones, as a share of how far these went."""
    first, *_, last = sorted((honest / CHECKPOINTS).iterdir())
    try:
        found = sorted((forged / CHECKPOINTS).iterdir())
        if not found:
            return None
        way = compare(Checkpoint.at(first), Checkpoint.at(last), _parameter).total.l2
        return compare(Checkpoint.at(found[-1]), Checkpoint.at(last), _parameter).total.l2 / way
    except (PolError, OSError):
        return None


def _parameter(entry: Entry) -> bool:
    return entry.kind == "parameter"

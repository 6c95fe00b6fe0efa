"""Measure what another machine does to a verdict: ``python -m benchmarks.platforms``.

A proof is recorded in processes of one profile. The verifier's processes are then started with another one, without
the verifier's knowing: it asks for the recorded profile, as always, and gets what a machine would give that does not
have these instructions, this library mode or that many cores; ``--python`` adds one that has another build of torch,
that of another virtual environment. Control run, limits and verdict are the real ones.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy
import torch

from benchmarks import page
from pol import policies
from pol.attacks.registry import REGISTRY
from pol.auditor import LocalAuditor
from pol.distance import ratio
from pol.errors import UsageError
from pol.executors.local import LocalProcess
from pol.keys import SigningKey
from pol.messages import Controlled, EventType, JobType
from pol.profile import Profile
from pol.proof.policy import Policy
from pol.proof.report import IntervalResult, Report
from pol.prover import record
from pol.verifier import verify
from pol.version import __version__

RECORDED = Profile(threads=1)
"""What every proof is recorded with: one thread, and whatever instructions the machine has."""

Rule = Literal["exact", "tolerance"]
RULES: tuple[Rule, ...] = ("exact", "tolerance")

NONCE = bytes(32)
"""Every interval is replayed, so the challenge has nothing to choose."""


@dataclass(frozen=True)
class Other:
    """A verifier's machine: what its processes have instead of the recorded profile."""

    name: str
    changes: dict[str, Any]
    forged: bool = False
    """Whether forgeries are verified there, too."""
    python: str = sys.executable
    """The interpreter of its processes."""


PLATFORMS = (
    Other("the same", {}, forged=True),
    Other("2 threads", {"threads": 2}, forged=True),
    Other("4 threads", {"threads": 4}),
    Other("ATen default", {"aten": "default"}),
    Other("ATen avx2", {"aten": "avx2"}),
    Other("oneDNN sse41", {"onednn": "sse41"}),
    Other("oneDNN avx2", {"onednn": "avx2"}),
    Other("MKL compatible", {"mkl": "compatible"}),
    Other("MKL avx2", {"mkl": "avx2"}),
    Other("matmul high", {"matmul": "high"}),
    Other("matmul medium", {"matmul": "medium"}),
    Other("AVX2 machine", {"aten": "avx2", "onednn": "avx2", "mkl": "avx2"}, forged=True),
    Other("old machine", {"threads": 2, "aten": "default", "onednn": "sse41", "mkl": "compatible"}),
)

VERSIONS = {
    "torch": torch.__version__, "numpy": numpy.__version__, "Python": platform.python_version(), "pol": __version__,
}  # fmt: skip
QUESTION = (
    "import platform, numpy, torch, pol.version\n"
    "print(torch.__version__, numpy.__version__, platform.python_version(), pol.version.__version__)"
)
"""What another interpreter is asked: its ``VERSIONS``."""

FORGERIES = (
    "interpolation", "own-run-stolen-end", "swapped-final", "later-momentum", "other-order", "flipped-labels",
    "poisoned-sample", "half-precision", "stolen-start",
)  # fmt: skip

FORGERY_SIZES = (1, 10)
"""k of their targets."""


@dataclass(frozen=True)
class Training:
    """A recipe in a given size."""

    name: str
    title: str
    recipe: str
    settings: dict[str, Any]
    quick: dict[str, Any] = field(default_factory=dict)
    """Of ``settings``, those that ``--quick`` changes."""
    forged: bool = False
    """Whether forgeries of it are verified, too."""


TRAININGS = (
    Training(
        "digits", "digits CNN, SGD, BatchNorm", "pol.recipes.digits:DigitsCNN", {"num_epochs": 2},
        {"num_epochs": 1, "batch_size": 100}, forged=True,
    ),
    Training(
        "text", "CharGPT, AdamW", "pol.recipes.text:CharGPT",
        {"layers": 2, "heads": 4, "width": 64, "context": 32, "batch_size": 8, "num_epochs": 1, "steps_per_epoch": 60},
        {"layers": 1, "heads": 2, "width": 32, "context": 16, "num_epochs": 1, "steps_per_epoch": 15},
    ),
)  # fmt: skip


def installed(python: str) -> Other:
    """A machine with what another interpreter has, named after its torch and whatever else is of another version.

    Raises:
        SystemExit: it cannot be started, or lacks torch or this package.
    """
    try:
        answer = subprocess.run([python, "-P", "-c", QUESTION], env={}, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"--python {python}: {error.strerror}") from None
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"--python {python}: torch and this package must be installed there: {last}")
    there = dict(zip(VERSIONS, answer.stdout.split(), strict=True))
    named = [f"{name} {there[name]}" for name in VERSIONS if name == "torch" or there[name] != VERSIONS[name]]
    return Other(", ".join(named), {}, forged=True, python=python)


class Machine:
    """An executor whose processes have other flags, or another interpreter, than those they are asked for."""

    def __init__(self, other: Other) -> None:
        profile = msgspec.structs.replace(RECORDED, **other.changes)
        self._process = LocalProcess(profile, isolated=True, python=other.python)

    def run(self, job: JobType) -> Iterator[EventType]:
        """The events of a job here."""
        program = msgspec.structs.replace(job.program, profile=self._process.profile)
        return self._process.run(msgspec.structs.replace(job, program=program))

    def close(self) -> None:
        self._process.close()


class Auditor(LocalAuditor):
    """Notes where its control run ended."""

    control_root: str | None = None

    def control(self, *args: Any) -> Any:
        found = super().control(*args)
        self.control_root = found.root.state.digest if isinstance(found, Controlled) else None
        return found


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one proof on one machine."""

    training: str
    platform: str
    forgery: str | None
    rule: Rule
    every: int
    verdict: str
    step: int | None
    """Number of the step that did not pass."""
    reason: str
    control: str | None
    """Digest of the state after the control run."""
    replayed: int
    equal: int
    """Replayed intervals whose end state is the recorded one, bit for bit."""
    first: str | None
    """What differed first: the declaration, the first weights, or the first replayed interval, by its last step."""
    of_limit: float | None
    """Largest error of a tensor, as a share of its limit."""
    of_move: float | None
    """Largest error of all parameters together, as a share of the replayed move."""


def result(training: str, other: str, forgery: str | None, every: int, report: Report, control: str | None) -> Result:
    """What a report says."""
    found = [interval.deviation for interval in report.intervals if interval.deviation is not None]
    unequal = [interval for interval in report.intervals if not _equal(interval)]
    return Result(
        training=training, platform=other, forgery=forgery, rule="exact" if report.rule == "exact" else "tolerance",
        every=every, verdict=str(report.verdict), reason=report.reason(), control=control,
        step=next((step.number for step in report.steps[:7] if step.status in ("failed", "unable")), None),
        replayed=len(report.intervals), equal=len(report.intervals) - len(unequal),
        first=_origin(report) or next((f"step {interval.stop}" for interval in unequal), None),
        of_limit=max((ratio(one.error, one.limit) for one in found), default=None),
        of_move=max((one.relative for one in found), default=None),
    )  # fmt: skip


def _origin(report: Report) -> str | None:
    """What of step 5 differed: what the recipe declares, or the weights that it draws."""
    checks = [check for step in report.steps if step.number == 5 for check in step.checks if check.status != "passed"]
    return ("declaration" if checks[0].name == "build" else "first weights") if checks else None


def _equal(interval: IntervalResult) -> bool:
    return interval.status == "passed" and interval.deviation is None


@dataclass(frozen=True)
class Recorded:
    """A proof, honest or forged, that is verified on every machine."""

    training: Training
    settings: dict[str, Any]
    every: int
    rule: Rule
    forgery: str | None
    path: Path
    model: Path | None


def recordings(training: Training, folder: Path, sizes: list[int], forgeries: list[str], quick: bool) -> list[Recorded]:
    """Honest proofs of a training under both rules, and forgeries of them."""
    settings = {**training.settings, **(training.quick if quick else {})}
    found = []
    thief = SigningKey.generate()
    for every in sizes:
        for rule in RULES:
            prover, path = SigningKey.generate(), folder / f"{training.name}-{every}-{rule}"
            record(
                training.recipe, path, key=prover, every=every, keep=1, settings=settings, profile=RECORDED, rule=rule
            )
            found.append(Recorded(training, settings, every, rule, None, path, None))
            for name in forgeries if training.forged and every in FORGERY_SIZES else []:
                attack, out = REGISTRY[name], folder / f"{path.name}-{name}"
                try:
                    made = attack.forge(path, out, {"prover": prover, "thief": thief}[attack.forger], training.recipe)
                except UsageError as error:
                    say(f"{name} does not apply to {training.title}, k = {every}: {error}")
                    continue
                found.append(Recorded(training, settings, every, rule, name, made.path, made.model))
    return found


def policy_for(proof: Recorded) -> Policy:
    """The preset of a rule, which here also takes longer intervals than it should, and Adam."""
    policy = policies.load(proof.rule)
    if policy.limits is not None:
        named = (*policy.limits.optimizers, "torch.optim.adam.Adam", "torch.optim.adamw.AdamW")
        policy = msgspec.structs.replace(policy, limits=msgspec.structs.replace(policy.limits, optimizers=named))
    if proof.every <= (policy.bounds.max_every or proof.every):
        return policy
    return msgspec.structs.replace(policy, bounds=msgspec.structs.replace(policy.bounds, max_every=proof.every))


def measure(proofs: list[Recorded], machines: list[Other]) -> list[Result]:
    """Verify every proof on every machine."""
    results = []
    for other in machines:
        machine = Machine(other)
        try:
            for proof in proofs:
                if proof.forgery is not None and not other.forged:
                    continue
                auditor = Auditor(proof.training.recipe, proof.settings, machine)
                policy = policy_for(proof)
                report = verify(proof.path, policy=policy, auditor=auditor, nonce=NONCE, model=proof.model)
                title, root = proof.training.title, auditor.control_root
                results.append(result(title, other.name, proof.forgery, proof.every, report, root))
                one = results[-1]
                what = f"{one.training}, k = {one.every}, {one.rule}, {one.forgery or 'honest'}"
                say(f"{other.name}: {what}: {one.verdict} {one.reason[:160]}")
        finally:
            machine.close()
    return results


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- as Markdown --------------------------------------------------------------------------------------------------


def markdown(results: list[Result], about: str) -> str:
    """One table of honest proofs per training, then one of forgeries."""
    parts = [about]
    for training in dict.fromkeys(one.training for one in results):
        ours = [one for one in results if one.training == training]
        parts += [f"### {training}", _honest([one for one in ours if one.forgery is None])]
        if forged := [one for one in ours if one.forgery is not None]:
            parts += [f"### Forgeries: {training}", _forged(forged)]
    return "\n\n".join(parts)


def _honest(results: list[Result]) -> str:
    sizes = sorted({one.every for one in results})
    known = {(one.platform, one.every, one.rule): one for one in results}
    head = ["the verifier's machine", "control", "first difference", *(f"exact, k = {k}" for k in sizes)]
    lines = [page.row([*head, *(f"tolerance, k = {k}: verdict, of limit, of move" for k in sizes)])]
    lines.append("|" + "---|" * (len(head) + len(sizes)))
    for name in dict.fromkeys(one.platform for one in results):
        exact = [known[name, k, "exact"] for k in sizes]
        near = [known[name, k, "tolerance"] for k in sizes]
        differs = exact[0].control != known[PLATFORMS[0].name, sizes[0], "exact"].control
        cells = [name, "differs" if differs else "same", exact[0].first or "none"]
        cells += [f"{one.verdict}{_share_equal(one)}" for one in exact]
        cells += [f"{one.verdict}{_step(one)}, {_share(one.of_limit)}, {_share(one.of_move)}" for one in near]
        lines.append(page.row(cells))
    return "\n".join(lines)


def _forged(results: list[Result]) -> str:
    sizes = sorted({one.every for one in results})
    machines = list(dict.fromkeys(one.platform for one in results))
    known = {(one.forgery, one.platform, one.rule, one.every): one for one in results}
    columns = [(rule, machine) for rule in RULES for machine in machines]
    lines = [
        page.row(["forgery", *(f"{rule}, {machine}" for rule, machine in columns)]),
        "|" + "---|" * (1 + len(columns)),
    ]
    for name in dict.fromkeys(one.forgery for one in results):
        cells = []
        for rule, machine in columns:
            found = [known.get((name, machine, rule, k)) for k in sizes]
            cells.append(" / ".join(dict.fromkeys(map(_verdict, found))))  # once, if it is the same for every k
        lines.append(page.row([str(name), *cells]))
    return "\n".join(lines)


def _verdict(one: Result | None) -> str:
    return "–" if one is None else f"{one.verdict}{_step(one)}{_moved(one)}"


def _share_equal(one: Result) -> str:
    return f", {one.equal} of {one.replayed} equal" if one.replayed else _step(one)


def _step(one: Result) -> str:
    return "" if one.step is None else f" at {one.step}"


def _moved(one: Result) -> str:
    return "" if one.of_move is None else f" ({_share(one.of_move)})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def command(options: argparse.Namespace) -> str:
    """The command line that leads to the same table."""
    words = ["python -m benchmarks.platforms"]
    words += [f"--recipe {options.recipe}"] if options.recipe else []
    words += [f"--{name}" for name in ("quick", "full") if getattr(options, name)]
    words += ["--python PYTHON"] * len(options.python)  # a path means nothing elsewhere; the row's name does
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.platforms", description=__doc__)
    parser.add_argument("--recipe", choices=[one.name for one in TRAININGS], help="measure one training")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, few machines: shows that it runs")
    parser.add_argument("--full", action="store_true", help="k = 50, too")
    parser.add_argument(
        "--python", action="append", default=[], help="add a machine with another interpreter's torch; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into the marked block of a page")
    options = parser.parse_args()
    sizes = [1, 10, *([50] if options.full else [])]
    forgeries = list(FORGERIES[:1] if options.quick else FORGERIES)
    machines = [one for one in PLATFORMS if not options.quick or one.forged]
    machines += map(installed, options.python)
    results = []
    for training in TRAININGS:
        if options.recipe in (None, training.name):
            with tempfile.TemporaryDirectory(prefix="pol-platforms-") as folder:
                results += measure(recordings(training, Path(folder), sizes, forgeries, options.quick), machines)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    text = markdown(results, page.about(command(options)))
    print(text)
    if options.write:
        page.write(options.write, "platforms", text)


if __name__ == "__main__":
    main()

"""The whole story on real data: an honest training, its proof, and forgeries of it, each verified."""

from __future__ import annotations

import importlib
import shlex
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import load_file

from pol.auditor import LocalAuditor
from pol.executors.local import Executor, LocalProcess
from pol.keys import SigningKey
from pol.policies import load
from pol.profile import Profile
from pol.proof.policy import Policy
from pol.proof.report import STEPS, Verdict
from pol.prover import Progress, record
from pol.release import write_model
from pol.render.demo import Outcome, Row
from pol.seeds import CONTROL_SEED
from pol.verifier import verify

if TYPE_CHECKING:
    from pol.attacks.attack import Forgery

RECIPE = "pol.recipes.digits:DigitsCNN"
EVERY = 10

FORGERIES = (
    "edited-checkpoint",
    "swapped-release",
    "dropped-tail",
    "nan-bridge",
    "first-momentum",
    "wrapped-order",
    "signed-again",
    "stolen-start",
    "tiny-rate",
    "constant-weights",
    "interpolation",
    "swapped-buffers",
)
"""Names in the registry of attacks, in the order of the table: cheap lies first, each further one caught later."""


def run(folder: Path, *, say: Callable[[str], None], progress: Progress, kept: bool) -> Outcome:
    """Tell the story.

    Args:
        folder: Where all files go: new, or empty.
        say: Told what happens, a line at a time.
        progress: Told how far the longer parts are.
        kept: Whether the files stay, so that a command to check them again makes sense.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = SigningKey.generate()
    key.save(folder / "key.pem")
    public = folder / "key.pem.pub"
    honest, model, profile = folder / "honest", folder / "model.safetensors", Profile(threads=1)
    # The thread must outlive the auditor: a training process ends with the thread that started it.
    with ThreadPoolExecutor(1) as beside, LocalAuditor(RECIPE) as auditor, LocalProcess(profile) as prover:
        say(f"Training a small network on scikit-learn's digits, and recording its state every {EVERY} steps.")
        started = time.monotonic()
        ready = beside.submit(_get_ready, auditor, profile)  # the training has one thread, so another core is free
        record(RECIPE, honest, key=key, every=EVERY, profile=profile, progress=progress, executor=prover)
        record_seconds = time.monotonic() - started
        ready.result()
        write_model(honest, model)
        accuracy = test_accuracy(model)
        steps = int(max((honest / "checkpoints").iterdir()).stem)
        say(f"Recorded {steps} steps. The model labels {accuracy:.1%} of the test digits rightly.")
        thief = SigningKey.generate()
        (folder / "forgeries").mkdir()
        try:  # forgeries are made beside, while others are verified here
            forged = [beside.submit(_forge, name, honest, key, thief, prover) for name in FORGERIES]
            say("Verifying the proof: what can be hashed is hashed again, what can be computed is computed again.")
            report = verify(honest, auditor=auditor, model=model, progress=progress)
            say(f"{report.verdict}: {report.confidence if report.verdict is Verdict.ACCEPT else report.reason()}")
            original = load("paper-2021")
            paper = verify(honest, auditor=auditor, policy=original).verdict
            say("Verifying forgeries, by a prover that cheats and by a thief that has the proof but did not train;")
            say("beside it, what the verification of 2021 (policy paper-2021) says of them.")
            rows = []
            for number, waiting in enumerate(forged):
                progress("verifying forgeries", number, len(forged))
                rows.append(_judge(waiting.result(), auditor, original))
        except BaseException:
            beside.shutdown(wait=False, cancel_futures=True)
            raise
    words = ["pol", "verify", str(honest), "--recipe", RECIPE, "--model", str(model), "--key", str(public)]
    size = sum(file.stat().st_size for file in honest.rglob("*") if file.is_file())
    return Outcome(accuracy, report, paper, steps, record_seconds, size, rows, shlex.join(words) if kept else None)


def _get_ready(auditor: LocalAuditor, profile: Profile) -> None:
    """Start what later parts need while the training runs: importing torch takes seconds."""
    auditor.control(profile, {}, CONTROL_SEED, 1)
    importlib.import_module("pol.attacks.registry")


def _forge(name: str, honest: Path, prover: SigningKey, thief: SigningKey, executor: Executor) -> Forgery:
    from pol.attacks.registry import REGISTRY

    attack = REGISTRY[name]
    out = honest.parent / "forgeries" / name
    return attack.forge(honest, out, prover if attack.forger == "prover" else thief, RECIPE, executor)


def _judge(forgery: Forgery, auditor: LocalAuditor, original: Policy) -> Row:
    from pol.attacks.registry import REGISTRY

    report = verify(forgery.path, auditor=auditor, model=forgery.model)
    paper = verify(forgery.path, auditor=auditor, model=forgery.model, policy=original)
    caught = report.caught_by
    return Row(
        name=forgery.attack,
        title=REGISTRY[forgery.attack].title,
        gradients=forgery.cost.gradients,
        seconds=forgery.cost.seconds,
        bytes=forgery.cost.bytes,
        verdict=report.verdict,
        paper=paper.verdict,
        step=caught,
        step_name="" if caught is None else STEPS[caught - 1],
        reason=report.reason(),
    )


def test_accuracy(model: Path) -> float:
    """Share of the test digits that the model in a file labels rightly."""
    from pol.recipes.digits import DigitsCNN

    recipe = DigitsCNN()
    network = recipe.build()["model"]
    weights = load_file(model)
    for name, tensor in network.state_dict().items():
        tensor.numpy()[...] = weights[name]  # shares memory with the network's own
    return recipe.accuracy(network)

"""Measure how often honest first weights fail the test of their laws: ``python -m benchmarks.laws``.

Every initialisation is that of a ResNet-20 (21 tensors that are drawn). Two things are measured:

- the test by itself, with laws that are written here: an initialisation counts as rejected if Holm's procedure rejects
  any of its tensors at the level; beside it stands what the method of 2021 did, each tensor at the level by itself, and
  how many forgeries of three kinds pass;
- what ``pol verify`` does: checkpoint files with all entries of a model and its optimizer, laws found from own builds,
  every entry accounted for. Own builds are made anew for every 100 starts.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from pol.checkpoint import Checkpoint
from pol.distributions import holm, p_value
from pol.laws import parse
from pol.proof.policy import Policy
from pol.verifier.accounting import BUILDS, Builds, account
from pol.verifier.foreign import builds_wanted

WIDTHS = [(3, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5, (32, 64), *[(64, 64)] * 5]
LAWS = {
    **{f"parameter/conv{i}.weight": "kaiming_normal" for i in range(len(WIDTHS))},
    "parameter/fc.weight": "default",
    "parameter/fc.bias": "bias",
}
SHAPES = {
    **{f"parameter/conv{i}.weight": (out, into, 3, 3) for i, (into, out) in enumerate(WIDTHS)},
    "parameter/fc.weight": (10, 64),
    "parameter/fc.bias": (10,),
}


def draw() -> dict[str, NDArray[np.float32]]:
    """Honest first weights."""
    made = {}
    for key, shape in SHAPES.items():
        tensor = torch.empty(shape)
        if LAWS[key] == "kaiming_normal":
            nn.init.kaiming_normal_(tensor)
        elif LAWS[key] == "default":
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
        else:
            nn.init.uniform_(tensor, -1 / math.sqrt(64), 1 / math.sqrt(64))
        made[key] = tensor.numpy().reshape(-1)
    return made


def p_values(weights: dict[str, NDArray[np.float32]]) -> list[float]:
    """One per tensor."""
    bound = {key: parse(law).of(key, SHAPES) for key, law in LAWS.items()}
    return [p_value(np.sort(weights[key]), law, "F32") for key, law in bound.items() if law is not None]


def state() -> dict[str, torch.Tensor]:
    """An honest first state, by entry key: what is drawn, normalisation, momentum and step."""
    made = {key: torch.from_numpy(values).reshape(SHAPES[key]) for key, values in draw().items()}
    for i, (_, out) in enumerate(WIDTHS):
        made[f"parameter/bn{i}.weight"] = made[f"buffer/bn{i}.running_var"] = torch.ones(out)
        made[f"parameter/bn{i}.bias"] = made[f"buffer/bn{i}.running_mean"] = torch.zeros(out)
        made[f"buffer/bn{i}.num_batches_tracked"] = torch.tensor(0)
    momentum = {f"optimizer/sgd.{key}.momentum": torch.zeros(shape) for key, shape in SHAPES.items()}
    return {key: tensor.clone() for key, tensor in {**made, **momentum}.items()}


def verified(starts: int, level: float, anew: int = 100) -> tuple[int, int]:
    """How many honest starts are rejected, and how many are undecided."""
    rejected = undecided = 0
    policy = Policy(level=level)
    for begin in range(0, starts, anew):
        with tempfile.TemporaryDirectory() as folder:
            own = Builds([Checkpoint.at(path) for path in _own_builds(Path(folder))])
            for _ in range(begin, min(begin + anew, starts)):
                first = Path(folder) / "first.safetensors"
                save_file(state(), first)
                found = {finding.status for finding in account(Checkpoint.at(first), own, policy)}
                rejected += "failed" in found
                undecided += "unverified" in found
    return rejected, undecided


def _own_builds(folder: Path) -> list[Path]:
    paths: list[Path] = []
    wanted = BUILDS
    while len(paths) < wanted:
        paths.append(folder / f"own-{len(paths)}.safetensors")
        save_file(state(), paths[-1])
        if len(paths) == BUILDS:
            wanted = builds_wanted(paths)
    return paths


def trained(weights: dict[str, NDArray[np.float32]], rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Stand-in for trained weights: shrunk, with a few that grew."""
    return {k: (0.8 * v * (1 + 0.3 * np.abs(rng.standard_t(4, v.size)))).astype(np.float32) for k, v in weights.items()}


def forgeries(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, NDArray[np.float32]]]]:
    """First weights that are not fresh."""
    stolen = trained(draw(), rng)
    yield "stolen weights", stolen
    yield (
        "stolen weights + 1 % noise",
        {k: (v + 0.01 * v.std() * rng.normal(size=v.size)).astype(np.float32) for k, v in stolen.items()},
    )
    fresh = draw()
    for key, values in fresh.items():
        values.sort()
        values[np.argsort(np.argsort(stolen[key]))] = values.copy()
    yield "fresh draws in the order of stolen ones (needs the screen of ranks)", fresh


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.laws", description=__doc__)
    parser.add_argument("--inits", type=int, default=1000, help="honest initialisations (default: 1000)")
    parser.add_argument("--level", type=float, default=0.01, help="significance level (default: 0.01)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print plain numbers")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    family = single = 0
    seconds = 0.0
    p_values(draw())  # imports scipy
    for _ in range(options.inits):
        weights = draw()
        started = time.perf_counter()
        found = p_values(weights)
        family += any(holm(found, options.level))
        seconds += time.perf_counter() - started
        single += min(found) <= options.level
    started = time.perf_counter()
    rejected, undecided = verified(options.inits, options.level)
    verifying = time.perf_counter() - started
    tries = max(1, options.inits // 50)
    passed: dict[str, int] = {}
    for _ in range(tries):
        for name, weights in forgeries(rng):
            passed[name] = passed.get(name, 0) + (not any(holm(p_values(weights), options.level)))
    numbers: dict[str, Any] = {
        "inits": options.inits, "tests": len(LAWS), "level": options.level, "rejected": family,
        "rejected_uncorrected": single, "milliseconds": 1000 * seconds / options.inits, "tries": tries,
        "passed": passed, "verified": {
            "rejected": rejected, "undecided": undecided, "milliseconds": 1000 * verifying / options.inits,
        },
    }  # fmt: skip
    print(json.dumps(numbers) if options.json else _table(numbers))


def _table(n: dict[str, Any]) -> str:
    inits, level, tests, verified = n["inits"], n["level"], n["tests"], n["verified"]
    lines = [
        f"| {inits} honest ResNet-20 initialisations, {tests} tensors each, level {level:g} | rejected | theory |",
        "|---|---|---|",
        f"| by what `pol verify` does | {verified['rejected'] / inits:.2%} | ≤ {level:.2%} |",
        f"| (undecided: own builds do not show a law) | {verified['undecided'] / inits:.2%} | ≤ {level / 10:.2%} |",
        f"| family-wise (Holm), known laws | {n['rejected'] / inits:.2%} | ≤ {level:.2%} |",
        f"| every tensor by itself (2021) | {n['rejected_uncorrected'] / inits:.2%} | {1 - (1 - level) ** tests:.2%} |",
        "",
        f"| forgery ({n['tries']} tries) | pass the test of laws |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in n["passed"].items()),
        "",
        f"{n['milliseconds']:.0f} ms per initialisation with known laws, {verified['milliseconds']:.0f} ms "
        "by what `pol verify` does.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

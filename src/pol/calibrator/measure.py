"""The distances between the final states of independent runs."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime

from pol.calibrator.trainer import Run
from pol.checkpoint import Checkpoint, compare
from pol.distance import METRICS, Comparison, Distances
from pol.errors import IntegrityError, UsageError
from pol.keys import SigningKey
from pol.profile import differences
from pol.proof.calibration import CalibratedRecipe, Calibration, Metrics, Spread, TensorSpread
from pol.prover import Progress
from pol.statetree import FLOATING, Entry
from pol.version import __version__


def measured(runs: list[Run], key: SigningKey, tell: Progress) -> Calibration:
    """Compare the final states of every two runs."""
    first = runs[0].genesis
    for run in runs[1:]:
        if changes := differences(first.platform, run.genesis.platform):
            raise UsageError(
                f"{run.folder} was trained on another platform than {runs[0].folder} ({changes[0]}): remove one of them"
            )
        if (run.genesis.recipe, run.genesis.spec.steps) != (first.recipe, first.spec.steps):
            raise UsageError(f"{run.folder} is of another recipe or length than {runs[0].folder}: remove one of them")
    roots = [run.statement.predicate.final.weights for run in runs]
    if len({root.digest for root in roots}) < len(runs):
        raise UsageError(
            "two runs with different seeds ended in the same weights: this recipe does not use its random numbers, so "
            "there is no distance between independent runs"
        )
    pairs = list(itertools.combinations(runs, 2))
    parameters, states = [], []
    for number, (a, b) in enumerate(pairs):
        tell("comparing runs", number, len(pairs))
        try:
            parameters.append(_finite(compare(a.last, b.last, lambda entry: entry.kind == "parameter")))
            states.append(_state(a.last, b.last))
        except IntegrityError as error:
            raise UsageError(f"{a.folder} and {b.folder} cannot be compared: {error}") from None
    tell("comparing runs", len(pairs), len(pairs))
    return Calibration(
        tool=f"pol {__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        signer=key.public_pem,
        recipe=CalibratedRecipe(
            name=first.recipe.name, digest=first.recipe.digest, configuration=first.recipe.configuration
        ),
        profile=first.profile,
        platform=first.platform,
        steps=first.spec.steps,
        runs=len(runs),
        pairs=len(pairs),
        final=roots,
        parameters=_metrics([found.total for found in parameters]),
        state=_metrics([found.total for found in states]),
        tensors=_tensors(parameters),
        noise=None,
    )


def _state(a: Checkpoint, b: Checkpoint) -> Comparison:
    """All floating-point entries compared, without those that hold infinities and are the same in both (masks)."""
    found = compare(a, b, _floating)
    masks = {key for key, one in found.tensors.items() if one.equal and math.isnan(one.l2)}
    return _finite(compare(a, b, lambda entry: _floating(entry) and entry.key not in masks) if masks else found)


def _floating(entry: Entry) -> bool:
    return entry.dtype in FLOATING


def _finite(found: Comparison) -> Comparison:
    for key, one in [*found.tensors.items(), ("the whole", found.total)]:
        if not all(math.isfinite(one.metric(name)) for name in METRICS):
            raise IntegrityError(f"{key} holds values that are not finite, or too large to be measured")
    return found


def _metrics(totals: list[Distances]) -> Metrics:
    return Metrics(**{name: _spread([one.metric(name) for one in totals]) for name in METRICS})


def _spread(values: list[float]) -> Spread:
    return Spread(mean=repr(_mean(values)), min=repr(min(values)), max=repr(max(values)))


def _mean(values: list[float]) -> float:
    return min(max(math.fsum(values) / len(values), min(values)), max(values))  # rounding must not leave the range


def _tensors(found: list[Comparison]) -> dict[str, TensorSpread]:
    spreads = {}
    for key, one in found[0].tensors.items():
        values = [comparison.tensors[key].l2 for comparison in found]
        spreads[key.partition("/")[2]] = TensorSpread(size=one.size, mean=repr(_mean(values)), min=repr(min(values)))
    return spreads

"""What a measurement comes to: noise by tensor, drift, and what follows for a policy."""

from __future__ import annotations

import math

import msgspec

from pol.calibrator.deviation import Error, capped
from pol.calibrator.noise import NoiseMeter
from pol.calibrator.trainer import leading
from pol.checkpoint import compare
from pol.distance import ratio
from pol.proof.limiting import conclusion, limits_at, outliers
from pol.proof.noise import Noise, Recommended
from pol.proof.policy import Limits
from pol.statetree import FLOATING, Entry
from pol.verifier.carrying import unbounded
from pol.verifier.tolerance import HALF_ULP, allowed


def measured_noise(meter: NoiseMeter, reference: float) -> Noise:
    """Measure the noise of a run, and say what follows.

    Args:
        meter: Takes the steps again.
        reference: d_ref, Euclidean, over all parameters.

    Raises:
        ReplayError: see ``NoiseMeter.measure``.
        UsageError: see there.
    """
    honest, cheats, errors = meter.measure()
    parts = [part for part in meter.run.genesis.spec.declaration.parts if part.kind == "optimizer"]
    noise = Noise(
        rungs=meter.rungs,
        starts=meter.run.starts,
        optimizers=[part.type for part in parts],
        unbounded=next(filter(None, map(unbounded, parts)), None),
        coarse=_coarse(meter),
        honest=honest,
        cheats=cheats,
        tensors={},
        drift=[],
        every=None,
        limits=None,
    )
    noise = msgspec.structs.replace(noise, tensors=_by_tensor(meter, noise, errors))
    drift = [repr(_drift(meter, number, limits_at(noise, number))) for number in range(len(noise.rungs))]
    noise = msgspec.structs.replace(noise, drift=drift)
    every, limits = conclusion(noise, reference)
    return msgspec.structs.replace(noise, every=every, limits=limits)


def as_limits(found: Recommended) -> Limits:
    """Recommended limits as those of a policy."""
    tensors = {key: float(text) for key, text in found.tensors.items()}
    return Limits(
        relative=float(found.relative), absolute=float(found.absolute), tensors=tensors, floor=float(found.floor)
    )


def _by_tensor(meter: NoiseMeter, noise: Noise, errors: dict[str, list[list[Error]]]) -> dict[str, list[str]]:
    names = [key for key, slot in sorted(meter.run.last.entries.items()) if slot.entry.dtype in FLOATING]
    largest = {key: [0.0] * len(noise.rungs) for key in names}
    for number in range(len(noise.rungs)):
        apart = outliers(noise, number)
        for condition in noise.honest:
            for place, row in enumerate(errors[condition.name] if condition.left_out is None else []):
                if number < len(row) and (condition.name, place) not in apart:
                    for key, value in row[number].tensors.items():
                        values = largest.setdefault(key, [0.0] * len(noise.rungs))
                        values[number] = max(values[number], value)
    return {key: list(map(repr, values)) for key, values in largest.items()}


def _drift(meter: NoiseMeter, number: int, found: Recommended) -> float:
    """What limits allow over the whole run, as the verifier adds it up, from what they allow after each start."""
    limits, rung, run = as_limits(found), meter.rungs[number], meter.run
    steps = run.genesis.spec.steps
    bounds = [
        allowed(limits, meter.state(start), meter.state(start + rung)) if start + rung <= steps else None
        for start in run.starts
    ]
    early = leading(len(bounds))
    first, rest = ([bound for bound in part if bound is not None] for part in (bounds[:early], bounds[early:]))
    # Windows at the beginning follow one another, each with as many intervals as fit; the others stand for the rest.
    begun = min(steps, run.starts[early - 1] + meter.rungs[-1])
    whole = math.fsum(first) * (begun / rung / max(1, len(first)))
    left = (steps - begun) / rung
    whole += (math.fsum(rest) / len(rest) if rest else max(first)) * left
    way = compare(run.last, run.state(0), _trained).total.l2
    return capped(ratio(whole, way))


def _coarse(meter: NoiseMeter) -> str | None:
    for key, slot in sorted(meter.run.last.entries.items()):
        if slot.entry.kind in ("parameter", "optimizer") and _is_coarse(slot.entry):
            return key
    return None


def _trained(entry: Entry) -> bool:
    return entry.kind == "parameter"


def _is_coarse(entry: Entry) -> bool:
    return entry.dtype in FLOATING and entry.dtype not in HALF_ULP

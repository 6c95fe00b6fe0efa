"""A calibration, signed: how far apart the final states of independent runs of a recipe lie (d_ref), and honest noise.

An error of a replay means something only beside such a distance: far below it, the replay led to the same model;
near it, to no more than another model of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec

from pol import canonical
from pol.declaration import Count, DigestField, Name, Positive
from pol.digest import Digest, sha256
from pol.errors import FormatError
from pol.interval import FloatText
from pol.merkle import Root
from pol.profile import Platform, Profile
from pol.proof.envelope import Envelope, parse_envelope
from pol.proof.limiting import check_conclusion
from pol.proof.noise import Noise, check_noise

PAYLOAD_TYPE = "application/vnd.proof-of-learning.calibration.v2+json"

MAX_CALIBRATION = 64 * 2**20
"""Largest calibration: 64 MiB, room for the 10^5 named tensors of a very large model, as in a genesis."""

MAX_RUNS = 1000
"""Most runs: each is a whole training, and their pairs are compared one by one."""

_ROUNDING = 1e-9
"""Relative error that sums of different tensors may have when they are compared with one another."""

Time = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\Z")]


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One distance over all pairs of runs."""

    mean: FloatText
    """d_ref, as the paper defines it."""
    min: FloatText
    max: FloatText


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The four distances."""

    l1: Spread
    l2: Spread
    linf: Spread
    cos: Spread


class TensorSpread(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The Euclidean distance of one parameter tensor over all pairs of runs."""

    size: Count
    """Elements."""
    mean: FloatText
    min: FloatText


class CalibratedRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which code trained, and with which constructor arguments (tagged values)."""

    name: Name
    digest: DigestField
    configuration: dict[str, Any]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The signed content. Its digest, over the canonical payload, is what a policy names."""

    format: Literal["pol/calibration/v2"] = "pol/calibration/v2"
    tool: Annotated[str, msgspec.Meta(max_length=64)]
    created: Time
    """A claim, compared with nothing."""
    signer: Annotated[str, msgspec.Meta(max_length=1024)]
    """Public key, PEM."""
    recipe: CalibratedRecipe
    profile: Profile
    platform: Platform
    steps: Positive
    runs: Annotated[int, msgspec.Meta(ge=2, le=MAX_RUNS)]
    pairs: Positive
    final: list[Root]
    """Weights root of the last state of each run."""
    parameters: Metrics
    """Distances over all parameters: the paper's d_ref."""
    state: Metrics
    """Distances over all floating-point entries of the state, buffers and optimizer moments among them."""
    tensors: dict[Name, TensorSpread]
    """Euclidean distances by parameter."""
    noise: Noise | None
    """None: not measured."""


def calibration_digest(calibration: Calibration) -> Digest:
    """Digest of a calibration: over the payload, since signatures are randomised."""
    return sha256(canonical.encode(calibration))


def reference_of(calibration: Calibration) -> dict[str, str | float]:
    """The fields of a policy's ``reference``: digests, and d_ref over the parameters for each metric."""
    return {
        "calibration": calibration_digest(calibration),
        "recipe": calibration.recipe.digest,
        "configuration": sha256(canonical.encode(calibration.recipe.configuration)),
        **{name: float(spread.mean) for name, spread in _metrics(calibration.parameters)},
    }


def parse_calibration(data: bytes, what: str, check_signature: Callable[[Envelope, str, str], None]) -> Calibration:
    """Parse a calibration file, then check its signature, and last that its numbers agree, which takes longest.

    Args:
        data: The file.
        what: Its name, for messages.
        check_signature: Given the envelope, the public key that the calibration names, and ``what``.

    Raises:
        FormatError: it is malformed, or says what no calibration finds.
        AuthenticityError: that key did not sign it.
    """
    envelope = parse_envelope(data, what=what, payload_type=PAYLOAD_TYPE, limit=MAX_CALIBRATION)
    calibration = canonical.decode(envelope.payload_bytes(what), Calibration, what=what, limit=MAX_CALIBRATION)
    check_signature(envelope, calibration.signer, what)
    check_calibration(calibration, what)
    return calibration


def check_calibration(calibration: Calibration, what: str) -> None:
    """Refuse a calibration whose numbers do not agree with one another.

    Raises:
        FormatError: names the field.
    """
    runs = calibration.runs
    if calibration.pairs != runs * (runs - 1) // 2:
        raise FormatError(f"{what}: {calibration.pairs} pairs; {runs} runs make {runs * (runs - 1) // 2}")
    if len(calibration.final) != runs:
        raise FormatError(f"{what}: {len(calibration.final)} final roots for {runs} runs")
    if len({root.digest for root in calibration.final}) != runs:
        raise FormatError(f"{what}: two runs ended in the same weights, so they were not independent")
    if not calibration.tensors:
        raise FormatError(f"{what}: no parameter was compared")
    numbers = {part: _checked(getattr(calibration, part), f"{what}: {part}") for part in ("parameters", "state")}
    if not all(numbers["parameters"][name][1] > 0 for name in ("l1", "l2", "linf")):
        raise FormatError(f"{what}: parameters: a distance of 0 between independent runs")
    for name in ("l1", "l2", "linf"):
        pairs = zip(numbers["parameters"][name], numbers["state"][name], strict=True)
        if not all(_at_most(part, whole) for part, whole in pairs):
            raise FormatError(f"{what}: {name}: the parameters are further apart than the state they are part of")
    mean, least, _ = numbers["parameters"]["l2"]
    for name, tensor in calibration.tensors.items():
        where = f"{what}: tensor {name!r}"
        found = _number(tensor.mean, f"{where}: mean"), _number(tensor.min, f"{where}: min")
        if not (found[1] <= found[0] and _at_most(found[0], mean) and _at_most(found[1], least)):
            raise FormatError(f"{where}: further apart than all parameters together, or a mean below the least")
    if calibration.noise is not None:
        check_noise(calibration.noise, calibration.profile, calibration.steps, f"{what}: noise")
        check_conclusion(calibration.noise, mean, f"{what}: noise")


def _checked(metrics: Metrics, where: str) -> dict[str, tuple[float, float, float]]:
    """(mean, min, max) by metric."""
    found = {}
    for name, spread in _metrics(metrics):
        parts = ("mean", "min", "max")
        mean, least, most = (_number(getattr(spread, part), f"{where}.{name}.{part}") for part in parts)
        if not least <= mean <= most:
            raise FormatError(f"{where}.{name}: the mean is not between min and max")
        found[name] = mean, least, most
    if found["cos"][2] > 2:
        raise FormatError(f"{where}.cos: a cosine distance is at most 2")
    for smaller, larger in (("linf", "l2"), ("l2", "l1")):
        if not all(_at_most(a, b) for a, b in zip(found[smaller], found[larger], strict=True)):
            raise FormatError(f"{where}: {smaller} is larger than {larger}, which no vector has")
    return found


def _metrics(metrics: Metrics) -> Iterator[tuple[str, Spread]]:
    return ((name, getattr(metrics, name)) for name in Metrics.__struct_fields__)


def _number(text: str, where: str) -> float:
    value = canonical.parse_float(text, where, finite=True)
    if math.copysign(1.0, value) < 0:
        raise FormatError(f"{where}: a distance is never negative: {text}")
    return value


def _at_most(part: float, whole: float) -> bool:
    return part <= whole * (1 + _ROUNDING)

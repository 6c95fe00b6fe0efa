"""The challenge: which intervals are replayed, drawn from the attestation and the verifier's fresh nonce.

Draws come after the attestation is fixed, so a prover cannot know them while it could still forge elsewhere.
Each kind of draw has a stream of its own and is nested: more draws never drop an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pol.digest import Digest, raw
from pol.order import keyed_permutation
from pol.proof.policy import Challenge
from pol.seeds import expand

STRATA = 20
"""Most strata of the top-Q rule: windows of five per cent of a run each (design section 3.4)."""

WEIGHT_CAP = 1 / 20
"""Largest share of one window in the size-weighted draws, so that one giant honest step cannot absorb them
(attack study, section 8)."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The intervals from ``first`` to ``last`` between two kept checkpoints, and how far each kind of state moved."""

    first: int
    last: int
    sizes: dict[str, float]


class Draws(msgspec.Struct, frozen=True, kw_only=True):
    """Interval indices by the reason for which they are replayed."""

    intervals: int
    mandatory: list[int]
    top: list[int]
    uniform: list[int]
    weighted: list[int]
    screened: list[int]
    """Those that the screens found most suspicious; they say nothing of the others, so no confidence rests on them."""

    def all(self) -> list[int]:
        """Every challenged interval, once, in order."""
        return sorted({*self.mandatory, *self.top, *self.uniform, *self.weighted, *self.screened})


def draw(
    challenge: Challenge,
    attestation: Digest,
    nonce: bytes,
    windows: Sequence[Window],
    resumed: Sequence[int],
    suspects: Sequence[int] = (),
) -> Draws:
    """Draw a challenge.

    Args:
        challenge: What the policy asks for.
        attestation: Digest of the attestation.
        nonce: The verifier's fresh 32 bytes.
        windows: All windows of the run, in order; at least one.
        resumed: First intervals after a resume, as the journal says.
        suspects: Intervals that the screens find suspicious, the most suspicious first. They change no other draw.
    """
    return Lots(challenge, windows, resumed, suspects).draw(attestation, nonce)


class Lots:
    """What a challenge is drawn from: all that the run and the policy settle, whatever the nonce; see ``draw``."""

    def __init__(
        self, challenge: Challenge, windows: Sequence[Window], resumed: Sequence[int], suspects: Sequence[int] = ()
    ) -> None:
        self._windows, self._count = windows, windows[-1].last + 1
        count, kind = self._count, challenge.strategy
        everything = kind == "all" or (kind == "mix" and count <= challenge.all_up_to)
        use = {"mix": {"top-q", "uniform", "size-weighted", "screened"}}.get(kind, {kind})
        self._uniform = count if everything else challenge.uniform if "uniform" in use else 0
        self._weighted = challenge.weighted if "size-weighted" in use and not everything else 0
        self._shares = [of_kind for _, of_kind in shares(windows, 0)] if self._weighted else []
        top = {i for w in _largest(windows, challenge.top) for i in _whole(w)} if "top-q" in use else set()
        self._top = sorted(top)
        self._mandatory = sorted({*_whole(windows[0]), *_whole(windows[-1]), *_neighbours(resumed, count)})
        self._screened = sorted(set(suspects[: challenge.screened])) if "screened" in use else []

    def draw(self, attestation: Digest, nonce: bytes) -> Draws:
        """The challenge of a nonce."""
        key = HKDF(SHA256(), 32, salt=b"pol/v1/challenge", info=b"").derive(raw(attestation) + nonce)
        permutation = keyed_permutation(expand(key, "uniform"), self._count)
        return Draws(
            intervals=self._count,
            mandatory=self._mandatory,
            top=self._top,
            uniform=permutation[: self._uniform].tolist(),
            weighted=sorted({i for w in self._by_size(expand(key, "weighted")) for i in _whole(w)}),
            screened=self._screened,
        )

    def _by_size(self, key: bytes) -> list[Window]:
        """Windows with replacement, each kind of state in turn, by capped share of the path length."""
        words = blake3(b"", key=key).digest(length=8 * self._weighted)
        chosen = []
        for number in range(self._weighted):
            point = int.from_bytes(words[8 * number : 8 * number + 8], "little") / 2**64
            chosen.append(_pick(self._windows, self._shares[number % len(self._shares)], point))
        return chosen


def spans(windows: Sequence[Window], chosen: Iterable[int], *, each: bool) -> list[tuple[int, int]]:
    """What is replayed for the ``chosen`` intervals, as first and last interval of each replay.

    From the kept checkpoint before each challenged interval to the last one of its window, since states between are
    not there; with ``each``, every interval from its own state, which somebody then has to open.
    """
    wanted = set(chosen)
    if each:
        return [(index, index) for index in sorted(wanted)]
    last = [max((i for i in range(w.first, w.last + 1) if i in wanted), default=None) for w in windows]
    return [(w.first, stop) for w, stop in zip(windows, last, strict=True) if stop is not None]


def _whole(window: Window) -> range:
    """A window and the interval before it: a jump may have been prepared there."""
    return range(max(window.first - 1, 0), window.last + 1)


def _neighbours(resumed: Sequence[int], count: int) -> set[int]:
    return {i for index in resumed for i in (index - 1, index) if 0 <= i < count}


def _largest(windows: Sequence[Window], top: int) -> list[Window]:
    strata = min(STRATA, len(windows))
    bounds = [len(windows) * i // strata for i in range(strata + 1)]
    chosen: dict[int, Window] = {}
    for begin, end in pairwise(bounds):
        stratum = windows[begin:end]
        for kind in sorted({kind for window in stratum for kind in window.sizes}):
            ranked = sorted(stratum, key=lambda window: (-window.sizes.get(kind, 0.0), window.first))
            chosen.update((window.first, window) for window in ranked[:top])
    return [chosen[first] for first in sorted(chosen)]


def shares(windows: Sequence[Window], draws: int) -> list[tuple[int, list[float]]]:
    """How many of the size-weighted draws each kind of state has, and its share of each window."""
    kinds = sorted({kind for window in windows for kind in window.sizes})
    numbers = [sum(number % len(kinds) == i for number in range(draws)) for i in range(len(kinds))] or [draws]
    return [(number, _shares(windows, kind)) for number, kind in zip(numbers, kinds or [""], strict=True)]


def _shares(windows: Sequence[Window], kind: str) -> list[float]:
    sizes = [window.sizes.get(kind, 0.0) for window in windows]
    total = sum(sizes)
    if total <= 0:
        return [1 / len(windows)] * len(windows)
    capped = [min(size / total, WEIGHT_CAP) for size in sizes]
    rest = (1 - sum(capped)) / len(windows)  # what the cap cut off is spread evenly
    return [share + rest for share in capped]


def _pick(windows: Sequence[Window], shares: Sequence[float], point: float) -> Window:
    for window, share in zip(windows, shares, strict=True):
        point -= share
        if point < 0:
            return window
    return windows[-1]


def largest_forged_share(intervals: int, draws: int, error: float = 0.05) -> float:
    """The share of intervals of which more cannot be forged, at confidence ``1 - error``.

    From ``draws`` uniform draws without replacement that all passed: the largest f with
    C(N-f, s) / C(N, s) > error (hypergeometric; attack study, section 8).
    """
    if draws <= 0:
        return 1.0
    low, high = 0, intervals  # f = 0 is always missed, f = N never
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if miss(intervals, middle, draws) > error else (low, middle)
    return low / intervals


def miss(intervals: int, forged: int, draws: int) -> float:
    """Probability that uniform draws without replacement meet none of the forged intervals (hypergeometric)."""
    # One factor for each draw; never more draws than there are honest intervals, or one is met for certain.
    probability = 1.0
    for drawn in range(draws):
        if intervals - forged - drawn <= 0:
            return 0.0
        probability *= (intervals - forged - drawn) / (intervals - drawn)
    return probability

"""Small pieces of text: digests, sizes, durations, curves; and strangers' text made safe to print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"

_DIGEST = re.compile(r"\b((?:sha256|blake3):[0-9a-f]{12})[0-9a-f]{52}\b")


def clean(text: str) -> str:
    """Text with everything that a terminal would act on, or hide, written as an escape.

    Names and messages may come from a proof: without this they could move the cursor and paint a verdict.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str) -> str:
    """Text with every digest cut to its first 12 digits."""
    return _DIGEST.sub(r"\1…", text)


def size(count: int) -> str:
    """A number of bytes for people: ``3.1 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{count} bytes" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """A time for people: ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(count: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def spark(values: Sequence[float], width: int) -> str:
    """A curve of at most ``width`` characters; each stands for the mean of its share of the values."""
    count = min(width, len(values))
    if not count:
        return ""
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low
    if not span > 0:
        return BLOCKS[0] * count
    return "".join(BLOCKS[min(int((mean - low) / span * len(BLOCKS)), len(BLOCKS) - 1)] for mean in means)

"""What the honest runs came to, as Markdown."""

from __future__ import annotations

import re
import statistics
from collections import Counter

import msgspec

from benchmarks import page

VERDICTS = ("ACCEPT", "INCONCLUSIVE", "REJECT")


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """One honest run, verified on another machine."""

    training: str
    recorder: str
    """The machine that recorded it."""
    verifier: str
    verdict: str
    reason: str
    genesis: str | None
    nonce: str
    asked: int
    """States that the verifier asked the prover for."""
    replayed: int
    """Intervals that were taken again."""
    unequal: int
    """Of these, those that did not end in the same bits."""
    beyond: int
    """Of these, those with an error beyond a limit."""
    branches: int
    """Of these, those that a branch explains."""
    of_limit: float
    """Largest error of an entry as a share of its limit, branches included."""
    of_move: float
    """Largest error of all parameters as a share of the replayed move."""
    drift: float | None
    """All limits together, as a share of the drift budget; None where it was not looked at."""
    record_seconds: float
    verify_seconds: float
    """With what the prover takes again."""


class Measured(msgspec.Struct, frozen=True):
    """A run of the benchmark, as JSON."""

    about: str
    """With what it was made."""
    found: list[Verified]


def markdown(runs: list[Measured]) -> str:
    """Per training: all of it, then each pair of machines; then why runs were not accepted."""
    head = [
        "recorded on", "verified on", "runs", *VERDICTS, "intervals, unequal, beyond, branches", "error of limit: "
        "median, largest", "error of move: largest", "of drift budget: largest",
    ]  # fmt: skip
    results = [one for run in runs for one in run.found]
    parts = [run.about for run in runs]
    for training in dict.fromkeys(one.training for one in results):
        ours = [one for one in results if one.training == training]
        lines = [page.row(head), "|" + "---|" * len(head), _row("**all**", "**all**", ours)]
        for pair in dict.fromkeys((one.recorder, one.verifier) for one in ours):
            lines.append(_row(*pair, [one for one in ours if (one.recorder, one.verifier) == pair]))
        parts += [f"### {training}", "\n".join(lines)]
        if reasons := _reasons(ours):
            parts.append(reasons)
        seconds = (
            statistics.median(one.record_seconds for one in ours),
            statistics.median(one.verify_seconds for one in ours),
        )
        parts.append(f"A recording took {seconds[0]:.1f} s, a verification {seconds[1]:.1f} s (medians).")
    return "\n\n".join(parts)


def _row(recorder: str, verifier: str, found: list[Verified]) -> str:
    verdicts = Counter(one.verdict for one in found)
    counts = [sum(getattr(one, name) for one in found) for name in ("replayed", "unequal", "beyond", "branches")]
    shares = [one.of_limit for one in found]
    drifts = [one.drift for one in found if one.drift is not None]
    return page.row([
        recorder, verifier, str(len(found)), *(str(verdicts[name]) for name in VERDICTS), ", ".join(map(str, counts)),
        f"{statistics.median(shares):.2g}, {max(shares):.2g}", f"{max(one.of_move for one in found):.1e}",
        f"{max(drifts):.2g}" if drifts else "–",
    ])  # fmt: skip


def _reasons(found: list[Verified]) -> str:
    """Why runs were not accepted, and how many for each reason; numbers left out, since each has its own."""
    kinds = Counter((one.verdict, _kind(one.reason)) for one in found if one.verdict != "ACCEPT")
    return "\n".join(f"- {count} × {verdict}: {reason}" for (verdict, reason), count in kinds.most_common())


def _kind(reason: str) -> str:
    """The beginning of a reason, with … for what is different each time."""
    short = re.sub(r"[-+]?\d[\d.,e+–-]*", "…", reason)
    return f"{short[:200].strip()}…" if len(short) > 200 else short

"""The measurements as Markdown."""

from __future__ import annotations

from benchmarks.measure import FETCH, Ratio, Recording, Result
from benchmarks.parts import BESIDE


def markdown(results: list[Result]) -> str:
    """One table of the costs, and one of where the recorder spends them."""
    return "\n\n".join([_costs(results), *map(_parts, results)])


def _costs(results: list[Result]) -> str:
    lines = [
        "| training | method | overhead | bytes per checkpoint | of the raw state | audit over bare steps |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        training = (
            f"{result.title}, {result.parameters:,} parameters, k = {result.every}, {result.steps} steps "
            f"of {_number(1000 * result.bare_step.median)} ms"
        )
        for method, measured in (("this package", result.recorder), ("2021", result.method2021)):
            lines.append(f"| {training} | {method} | {_row(measured, result.state_bytes)} |")
    return "\n".join(lines)


def _row(measured: Recording, state_bytes: int) -> str:
    share = measured.checkpoint_bytes / state_bytes
    return f"{_percent(measured.overhead)} | {measured.checkpoint_bytes:,} | {share:.3f} | {_times(measured.audit)}"


def _parts(result: Result) -> str:
    interval = result.every * result.bare_step.median
    lines = [
        f"{result.title}: one recording takes {_number(result.one_off.median)} s "
        f"({_number(result.one_off.low)}–{_number(result.one_off.high)}) that do not grow with its steps. "
        f"A whole verification of all {result.steps} steps takes {_times(result.verify)} × their bare time, "
        f"of which {_number(result.verify_rest.median)} s are outside of the replay.",
        "",
        f"| part of the recorder ({result.title}) | ms per interval | of the bare interval |",
        "|---|---|---|",
    ]
    for name, seconds in result.parts.items():
        lines.append(f"| {name} | {_number(1000 * seconds)} | {100 * seconds / interval:.2f} % |")
    own = sum(seconds for name, seconds in result.parts.items() if name not in (*BESIDE, FETCH))
    extra = own - result.parts[FETCH]
    lines.append(f"| **added to the training thread** | {_number(1000 * extra)} | {100 * extra / interval:.2f} % |")
    return "\n".join(lines)


def _percent(ratio: Ratio) -> str:
    return f"{100 * ratio.median:+.1f} % ({100 * ratio.low:+.1f} to {100 * ratio.high:+.1f})"


def _times(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

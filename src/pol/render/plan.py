"""A plan for people: what an audit costs, and what it would find."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pol.proof.plan import Cost, Plan
from pol.render.text import plural, size


def plan(console: Console, found: Plan) -> None:
    """Print a plan."""
    console.print(
        f"Policy {found.policy}: {plural(found.steps, 'step')} in {plural(found.intervals, 'interval')}, "
        f"{plural(found.windows, 'window')} between kept states"
    )
    console.print()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(ratio=1)
    spread = "" if found.most_steps == found.replayed_steps else f", at most {found.most_steps:,} in the nonces tried"
    table.add_row(
        "Cost", f"{found.replayed_steps:,.0f} steps taken again{spread}: {found.replayed_share:.1%} of the training"
    )
    if found.openings:
        table.add_row("Openings", _openings(found))
    if found.uniform is not None:
        table.add_row("Instead", _instead(found.uniform))
    if not found.within_budget:
        table.add_row("Budget", "more than the policy's max_steps: the verdict would be INCONCLUSIVE")
    share = f"at most {found.forged_95:.2%} of the intervals are forged (99 %: {found.forged_99:.2%})"
    table.add_row(
        "If all pass", f"with 95 % confidence {share}" if found.forged_95 else "none of the intervals is forged"
    )
    console.print(table)
    console.print()
    if found.replayed_steps == found.steps:
        console.print("Everything is taken again: whatever is forged is met.")
        return
    found_table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    found_table.add_column("forged", justify="right", no_wrap=True)
    found_table.add_column("")
    found_table.add_column("met with probability, at least", justify="right")
    for one in found.detections:
        found_table.add_row(
            f"{one.share:.3g}" if one.share < 1e-4 else f"{one.share:.2%}",
            one.what,
            _probability(one.probability),
        )
    console.print(found_table)


def _openings(cost: Plan | Cost) -> str:
    """What the prover has to give, and what that takes."""
    held = "" if cost.opening_bytes is None else f" ({size(round(cost.opening_bytes))})"
    return (
        f"{cost.openings:,.0f} states{held} that are not kept: the prover takes {cost.answered_steps:,.0f} steps again"
    )


def _instead(cost: Cost) -> str:
    return (
        f'with strategy = "uniform": {_openings(cost)}, the verifier {cost.replayed_steps:,.0f}. It leaves out the '
        "windows with the largest updates: a jump among honest steps is then met by the uniform draws alone"
    )


def _probability(value: float) -> str:
    """A probability, never rounded to a certainty that it is not."""
    if value == 0:
        return "0"
    if value > 0.9999:
        return "> 0.9999"
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.2g}"

"""The table of attacks: for a terminal, and as Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pol.bench.result import FULL, PAPER, SAMPLED, Cell, Outcome
from pol.proof.report import Verdict
from pol.render.text import clean, duration, plural, shorten, size

STANDS = "none, the honest proof"


def word(cell: Cell | None) -> str:
    """What became of an attack, in a word: a verdict, with the step that caught it."""
    if cell is not None and cell.broken:
        return "broken"
    if cell is None or cell.verdict is None:
        return "—"
    if cell.detection is not None and 0 < cell.detection.predicted < 1:
        return f"met {cell.detection.met:.0%}"  # the verdict of one draw would say little
    return f"{cell.verdict}{'' if cell.step is None else f' {cell.step}'}"


def rows(outcome: Outcome) -> dict[str, dict[str, Cell]]:
    """The cells by attack and policy, in their order."""
    found: dict[str, dict[str, Cell]] = {}
    for cell in outcome.results:
        found.setdefault(cell.attack, {})[cell.policy] = cell
    return found


def labelled(outcome: Outcome) -> dict[str, dict[str, Cell]]:
    """The same with those on the training beside, which is named."""
    beside = outcome.beside
    further = {} if beside is None else {f"{name} on {_trained(beside)}": cells for name, cells in rows(beside).items()}
    return rows(outcome) | further


def _trained(outcome: Outcome) -> str:
    return outcome.recipe.rpartition(":")[2]


# -- terminal -----------------------------------------------------------------------------------------------------


def table(console: Console, outcome: Outcome) -> None:
    """Print the table, and what it comes to; then those of the training beside."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    shown.add_column("attack", ratio=1, overflow="fold")
    shown.add_column("training", justify="right")
    for policy in outcome.policies:
        shown.add_column(policy.replace(" ", "\n"), no_wrap=True)
    honest = [_coloured(str(outcome.honest[policy]), good=True) for policy in outcome.policies]
    shown.add_row(Text(STANDS), "100 %", *honest)
    for name, cells in rows(outcome).items():
        cost = next((cell.cost for cell in reversed(cells.values()) if cell.cost), None)
        found = [
            _coloured(word(cells.get(policy)).replace("INCONCLUSIVE", "unable"), good=_good(cells.get(policy)))
            for policy in outcome.policies
        ]
        shown.add_row(Text(clean(name)), "—" if cost is None else f"{cost.share:.0%}", *found)
    console.print(shown)
    console.print()
    for text, style in summary(outcome):
        console.print(Text(clean(text), style))
    if outcome.beside is not None:
        console.print(Text(f"\nOn {clean(_trained(outcome.beside))}:\n", "bold"))
        table(console, outcome.beside)


def _good(cell: Cell | None) -> bool | None:
    """Whether that is the right answer; None where there is none."""
    if cell is not None and cell.broken:
        return False
    if cell is None or cell.verdict is None or not cell.in_scope:
        return None
    return cell.verdict is not Verdict.ACCEPT


def _coloured(text: str, *, good: bool | None) -> Text:
    return Text(text, "dim" if good is None else "green" if good else "bold red")


def summary(outcome: Outcome) -> list[tuple[str, str]]:
    """What the table comes to: sentences, each with its style."""
    found = []
    for policy in outcome.policies:
        cells = [cell for cell in outcome.results if cell.policy == policy and cell.verdict is not None]
        forged = [cell for cell in cells if cell.in_scope]
        accepted = sorted(cell.attack for cell in forged if cell.verdict is Verdict.ACCEPT)
        beyond = sorted(cell.attack for cell in cells if not cell.in_scope and cell.verdict is Verdict.ACCEPT)
        text = f"{policy}: accepts {len(accepted)} of {len(forged)} forgeries"
        text += f" ({', '.join(accepted)})" if accepted and policy != PAPER else ""
        there = sorted(cell.attack for cell in forged if cell.verdict is Verdict.ACCEPT and cell.arrives)
        ends = "ends" if len(there) == 1 else "end"
        text += f"; {len(there)} of these {ends} at the stolen weights" if accepted else ""
        text += f" ({', '.join(there)})" if there and policy != PAPER else ""
        if beyond and policy == FULL:
            text += f"; beyond its reach are {', '.join(beyond)}: true of what they say"
        found.append((text + ".", "bold red" if accepted and policy == FULL else ""))
    for name in outcome.undecided:
        found.append((f"{FULL} could not tell of {name}, and has to refuse it.", "bold red"))
    if outcome.inapplicable:
        words = "does not apply" if len(outcome.inapplicable) == 1 else "do not apply"
        found.append((f"{len(outcome.inapplicable)} of {len(rows(outcome))} attacks {words} to this training "
                      f"({', '.join(outcome.inapplicable)}).", ""))  # fmt: skip
    for name, reason in outcome.broken.items():
        found.append((f"{name} is broken: {reason}", "bold red"))
    for name in outcome.overspent:
        found.append((f"{name} spent more than its budget, {outcome.budget:.0%} of the training.", "bold red"))
    for name in outcome.unpredicted:
        found.append((f"{name} was met by another share of the challenges than predicted.", "bold red"))
    for policy, verdict in outcome.honest.items():
        if verdict is not Verdict.ACCEPT:
            why = outcome.honest_reasons.get(policy, "")
            found.append((f"The honest proof was not accepted under {policy}: {shorten(why)}", "bold red"))
    if not any(cell.verdict for cell in outcome.results):
        found.append(("No attack was made.", "bold red"))
    return found


# -- Markdown -----------------------------------------------------------------------------------------------------


def markdown(outcome: Outcome, figure: str) -> str:
    """All tables as Markdown, under the ``figure`` (a path); then those of the training beside."""
    text = _tables(outcome, f"![Verdict on each attack by policy]({figure})\n\n")
    if outcome.beside is not None:
        text += f"\n## Beside it: {_trained(outcome.beside)}\n\n{_tables(outcome.beside)}"
    return text


def _tables(outcome: Outcome, figure: str = "") -> str:
    settings = ", ".join(f"{name} = {value}" for name, value in outcome.settings.items()) or "as it is"
    environment = ", ".join(f"{name} {value}" for name, value in outcome.environment.items())
    whole = f"{duration(outcome.seconds)} in all; " if figure else ""  # a training beside has no time of its own
    parts = [
        f"Suite `{outcome.suite}`: `{outcome.recipe}` ({settings}), {plural(outcome.steps, 'step')}, k = "
        f"{outcome.every}; the honest training took {duration(outcome.honest_seconds)} and its proof "
        f"{size(outcome.honest_bytes)}. {whole}{environment}.",
        figure + _verdicts(outcome),
        *(f"- {text}" for text, _ in summary(outcome)),
        _detections(outcome),
        _reported(outcome),
        _reasons(outcome),
    ]
    lines = [parts[0], "", parts[1], "", *parts[2:-3]]
    lines += [line for part in parts[-3:] if part for line in ("", part)]
    return "\n".join(lines).strip() + "\n"


def _verdicts(outcome: Outcome) -> str:
    head = ["attack", "study", "what was done", "training", "of it for 2021", "seconds", "bytes", "from the stolen"]
    head += ["accuracy", *outcome.policies]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    honest = [str(outcome.honest[policy]) for policy in outcome.policies]
    lines.append(
        f"| {STANDS} | | | 1.00 | | {outcome.honest_seconds:.1f} | {size(outcome.honest_bytes)} | 0 | "
        f"{_share(outcome.honest_accuracy)} | {' | '.join(honest)} |"
    )
    for name, cells in rows(outcome).items():
        # The forgery for the strictest policy stands for all; those that adapt differ in cost.
        cell = next((one for one in reversed(cells.values()) if one.cost), None)
        one = cell or next(iter(cells.values()))
        cost = ["—"] * 6
        if cell is not None and cell.cost is not None:
            apart = "—" if cell.apart is None else f"{cell.apart:.2g}"
            paper = cells.get(PAPER)
            cost = [f"{cell.cost.share:.2f}", _share(paper.cost.share if paper and paper.cost else None)]
            cost += [f"{cell.cost.seconds:.1f}", size(cell.cost.bytes), apart, _share(cell.accuracy)]
        found = [_marked(cells.get(policy)) for policy in outcome.policies]
        lines.append(f"| `{name}` | {' '.join(one.study)} | {_cell(one.title)} | {' | '.join([*cost, *found])} |")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _marked(cell: Cell | None) -> str:
    text = word(cell)
    return f"**{text}**" if cell is not None and cell.verdict is Verdict.ACCEPT and cell.in_scope else text


def _detections(outcome: Outcome) -> str:
    found = [cell for cell in outcome.results if cell.policy == SAMPLED and cell.detection is not None]
    if not found:
        return ""
    lines = [
        "| attack | forged intervals | challenges | met | predicted | uniform draws alone | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in found:
        one = cell.detection
        assert one is not None
        lines.append(
            f"| `{cell.attack}` | {one.forged} of {one.intervals} | {one.draws:,} | {one.met:.4f} | "
            f"{one.predicted:.4f} | {one.uniform:.4f} | {one.uniform_predicted:.4f} |"
        )
    return "\n".join(lines)


def _reasons(outcome: Outcome) -> str:
    """What the strictest policy says of each; and for what does not apply, or broke, why."""
    found = [cell for cell in outcome.results if cell.policy == FULL and cell.reason]
    lines = ["| attack | `exact full` | because |", "|---|---|---|"]
    lines += [f"| `{cell.attack}` | {word(cell)} | {_cell(shorten(cell.reason))} |" for cell in found]
    return "\n".join(lines) if found else ""


def _reported(outcome: Outcome) -> str:
    found = [cell for cell in outcome.results if cell.policy == PAPER and cell.reported]
    if not found:
        return ""
    lines = [
        "Published figures beside ours. *rho* is the error of a replay over the claimed move.",
        "",
        "| attack | study | published | here, against `paper-2021` | cost here | from the stolen | accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in found:
        cost = "—" if cell.cost is None else f"{cell.cost.gradients:,} gradients, {cell.cost.share:.2f} of all"
        why = "" if cell.verdict is Verdict.ACCEPT else f": {shorten(cell.reason)}"
        effect = "—" if cell.apart is None else f"{cell.apart:.2g}"
        lines.append(
            f"| `{cell.attack}` | {' '.join(cell.study)} | {_cell(cell.reported)} | {word(cell)}{_cell(why)} | "
            f"{cost} | {effect} | {_share(cell.accuracy)} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return clean(text).replace("|", "\\|")

"""The table of attacks as a figure: a field for each attack and policy, as SVG."""

from __future__ import annotations

from html import escape

from pol.bench.result import Cell, Outcome
from pol.proof.report import Verdict
from pol.render.attacks import labelled, word

ROW, LABEL, FIELD, TOP = 18, 210, 126, 56
"""Sizes in pixels: the height of a row, the width of its label and of a field, and the height of the head."""

FONT = "font-family='system-ui, sans-serif' font-size='12'"

COLOURS = {"refused": "#2e7d4f", "fooled": "#c62f3b", "beyond": "#d9a13a", "unable": "#7a8594", "none": "#e4e7eb",
           "broken": "#1f2933"}  # fmt: skip
"""Told apart in grey, too; and every field says in a word what it is."""

LEGEND = {
    "refused": "refused, by step", "fooled": "a forgery accepted", "beyond": "accepted, and no lie", "unable": "unable",
    "none": "does not apply",
}  # fmt: skip


def figure(outcome: Outcome) -> str:
    """The figure."""
    found, policies = labelled(outcome), list(outcome.policies)
    width, height = LABEL + FIELD * len(policies) + 8, TOP + ROW * len(found) + 34
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' "
        f"role='img' {FONT}>",
        "<title>Verdict on each attack by policy</title>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
    ]
    for column, policy in enumerate(policies):
        parts.append(_text(LABEL + FIELD * column + FIELD / 2, TOP - 10, policy, anchor="middle", weight="600"))
    for row, (name, cells) in enumerate(found.items()):
        y = TOP + ROW * row
        parts.append(_text(LABEL - 8, y + 13, name, anchor="end"))
        for column, policy in enumerate(policies):
            parts.append(_field(LABEL + FIELD * column, y, cells.get(policy)))
    x, y = 12.0, TOP + ROW * len(found) + 22
    for kind, meaning in LEGEND.items():
        parts.append(f"<rect x='{x}' y='{y - 10}' width='12' height='12' rx='2' fill='{COLOURS[kind]}'/>")
        parts.append(_text(x + 17, y, meaning))
        x += 30 + 6.6 * len(meaning)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _kind(cell: Cell | None) -> str:
    if cell is not None and cell.broken:
        return "broken"
    if cell is None or cell.verdict is None:
        return "none"
    if cell.verdict is Verdict.ACCEPT:
        return "fooled" if cell.in_scope else "beyond"
    return "refused" if cell.verdict is Verdict.REJECT else "unable"


def _field(x: float, y: float, cell: Cell | None) -> str:
    kind = _kind(cell)
    text = word(cell).replace("INCONCLUSIVE", "unable")
    box = f"<rect x='{x + 1}' y='{y + 1}' width='{FIELD - 2}' height='{ROW - 2}' rx='2' fill='{COLOURS[kind]}'/>"
    colour = "#1f2933" if kind in ("none", "beyond") else "#ffffff"
    return box + _text(x + FIELD / 2, y + 13, text, anchor="middle", colour=colour)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400", colour: str = "#1f2933") -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' font-weight='{weight}' fill='{colour}'>{escape(text)}</text>"
    )

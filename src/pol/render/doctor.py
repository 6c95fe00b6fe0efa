"""A diagnosis for people: first the answer, then what differs and where, then the cause and what to do."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pol.doctor.diagnosis import Answer, Check, Cost, Diagnosis, Finding, Site, Suspect, Variant
from pol.render.terminal import field
from pol.render.text import clean, duration, plural

COLOURS = {Answer.EXACT: "green", Answer.NOT_EXACT: "red", Answer.UNKNOWN: "yellow"}


def diagnosis(console: Console, found: Diagnosis) -> None:
    """Print a diagnosis."""
    why = _why(found)
    console.print(Text.assemble((f" {found.answer} ", f"bold reverse {COLOURS[found.answer]}"), "  ", why))
    console.print()
    if found.finding is not None:
        _finding(console, found.finding)
    if found.checks:
        field(console, "Equal", Text("\n").join(Text(clean(_check(check))) for check in found.checks))
    if found.remarks:
        field(console, "Not seen", Text("\n").join(Text(clean(remark)) for remark in found.remarks))
    if found.variants:
        field(console, "A verifier", Text(_verifier(found)))
        field(console, "Other flags", _variants(found.variants))
    if found.costs:
        field(console, "Cost", _costs(found.costs))
    if found.variants or found.costs:
        field(console, "Elsewhere", Text(_elsewhere(found), "dim"))
    console.print(Text(f"Took {duration(found.seconds)}. Profile: {_profile(found)}.", "dim"))


def _why(found: Diagnosis) -> str:
    if found.answer is Answer.UNKNOWN:
        return f"The program fails by itself: {clean(found.reason)}"
    if found.finding is None:
        share = "" if found.steps == found.total else f" of {found.total:,}"
        return f"{plural(found.steps, 'step')}{share} taken again, and again from the middle: every bit is the same."
    return clean(_where(found.finding))


def _where(finding: Finding) -> str:
    if finding.compared in ("program", "builds", "flags"):
        how = {"program": "This cannot be recorded", "builds": "Two builds differ", "flags": "Torch is set otherwise"}
        return f"{how[finding.compared]}: {finding.message}"
    runs = {"twin": "Two runs from one seed", "resume": f"A run entered before step {finding.resumed}"}
    if finding.message:
        return f"{runs[finding.compared]}: {finding.message}"
    if finding.compared == "resume":
        return f"{runs['resume']} differs from the one that went through, from step {finding.step} on."
    return f"{runs['twin']} differ, from step {finding.step} on."


def _finding(console: Console, finding: Finding) -> None:
    if finding.step is not None and finding.compared in ("twin", "resume"):
        field(console, "First", Text(clean(_first(finding))))
    if finding.site is not None:
        field(console, "Operation", _site(finding.site))
    for number, one in enumerate(finding.suspects[:3]):
        field(console, "Likely" if not number else "or", _suspect(one, finding.message))


def _first(finding: Finding) -> str:
    if finding.tensor is None:
        what = "no state entry yet"
    else:
        kind, _, name = finding.tensor.partition("/")
        what = f"{kind} {name}"
        if finding.differing > 1:
            what += f", and {finding.differing - 1} more of {finding.entries} state entries"
    besides = f"; besides, {', '.join(finding.before)}" if finding.before else ""
    return f"step {finding.step}: {what}{besides}"


def _site(site: Site) -> RenderableType:
    name = site.operation if site.kind != "sequence" else f"{site.operation} in one run, {site.other or 'nothing'}"
    name += " in the other" if site.kind == "sequence" else ""
    where = "in the backward pass of " if site.backward else "at "
    lines = [Text(clean(f"{name} {where}{site.place}" if site.place else name))]
    if site.line:
        lines.append(Text(f"  {clean(site.line)}", "dim"))
    lines.append(Text(clean(site.detail)))
    return Text("\n").join(lines)


def _suspect(one: Suspect, message: str) -> RenderableType:
    parts = [Text(one.title, "bold")]
    if one.evidence not in message:  # that was said at the top
        parts.append(Text(clean(one.evidence)))
    return Text("\n").join([*parts, Text(f"→ {clean(one.fix)}")])


def _check(check: Check) -> str:
    return f"{check.what} ({plural(check.steps, 'step')})" if check.steps else check.what


def _verifier(found: Diagnosis) -> str:
    others = [one.flags for one in found.variants if one.equal is False]
    if not others:
        return "needs nothing special: no flag that was tried changes a bit of these steps"
    alike = any(flags.startswith(("instructions", "oneDNN", "MKL")) for flags in others)
    here = f" (here {found.platform.capability})" if found.platform else ""
    needs = f"needs a processor with vector instructions alike{here}" if alike else "needs no special processor"
    recorded = (
        [f"the number of threads ({found.profile.threads})"] if any("threads" in flags for flags in others) else []
    )
    recorded += ["the setting of deterministic algorithms"] if any("determin" in flags for flags in others) else []
    recorded += ["matmul precision"] if any("matmul" in flags for flags in others) else []
    return f"{needs}. Also decisive, and recorded in the proof: {', '.join(recorded)}" if recorded else needs


def _variants(variants: list[Variant]) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for one in variants:
        if one.equal is None:
            said = f"cannot be: {clean(one.note)}"
        else:
            said = "same bits" if one.equal else f"other bits ({one.differing} of {one.entries} entries)"
        table.add_row(one.flags, said)
    return table


def _costs(costs: list[Cost]) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for one in costs:
        if one.seconds is None or one.ratio is None:
            table.add_row(one.flags, f"cannot be: {clean(one.note)}", "")
        else:
            times = "" if one is costs[0] else f"{one.ratio:.2f} times as long"
            table.add_row(one.flags, f"{_seconds(one.seconds)} a step", times)
    return table


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _elsewhere(found: Diagnosis) -> str:
    compiled = f"compiled: {', '.join(found.compiled)}" if found.compiled else "no module is compiled"
    return (
        f"{compiled}; TF32 and the attention backends of GPUs do not exist on a CPU, where this version trains; the "
        "precision of float32 products (matmul) is in the profile and recorded"
    )


def _profile(found: Diagnosis) -> str:
    profile = found.profile
    words = [plural(profile.threads, "thread"), f"matmul {profile.matmul}"]
    return ", ".join([*words, *(["deterministic"] if profile.deterministic else [])])

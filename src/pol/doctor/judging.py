"""From a difference to its likely causes: each rule names a cause and what speaks for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pol.doctor.causes import suspect
from pol.doctor.comparing import Difference
from pol.doctor.diagnosis import Site, Suspect
from pol.traces import Held, Note

WORDS = {
    "clock": re.compile(r"\b(time|datetime|perf_counter|monotonic|process_time|now)\b"),
    "entropy": re.compile(r"\b(urandom|secrets|SystemRandom|uuid4|default_rng\(\)|Random\(\)|getrandbits)"),
}
"""What a source line says when it reads the clock, or the system's randomness."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of one difference."""

    difference: Difference
    resumed: bool
    site: Site | None = None
    held: list[Held] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)
    helps: dict[str, str] = field(default_factory=dict)
    """Flags under which two runs are equal, to what they cost."""
    tried: list[str] = field(default_factory=list)
    """Flags under which two runs were compared."""

    def noted(self, *kinds: str, fetching: bool | None = None, early: bool = False) -> list[Note]:
        """Notes of the step that differs, or with ``early`` of the time before the first."""
        when = None if early else self.difference.step
        return [
            note for note in self.notes
            if note.kind in kinds and note.step == when and fetching in (None, note.fetching)
        ]  # fmt: skip


def suspects(known: Evidence) -> list[Suspect]:
    """Likely causes, the likeliest first, each once."""
    found: dict[str, Suspect] = {}
    for one in _all(known):
        found.setdefault(one.cause, one)
    if not found:
        said = known.site.detail if known.site else "no operation of torch explains the difference"
        return [suspect("outside", said)]
    return list(found.values())


def _all(known: Evidence) -> Iterator[Suspect]:
    if known.difference.flags:
        yield suspect("flags", f"{', '.join(known.difference.flags)}: not the same in both runs of this step")
    if known.difference.batch:
        yield from _of_data(known)
        return
    if known.site is not None and known.site.kind == "operation":
        cause = "threads" if "--threads 1" in known.helps else "operation"
        said = f"{known.site.operation} was given the same inputs and gave another result"
        yield suspect(cause, said, _remedy(known))
    if known.resumed:
        yield from _of_things(known)
    if known.difference.generators:
        whose = " and ".join(known.difference.generators)
        yield suspect(
            "evaluation",
            f"the batch is the same, but {whose} generator is in another state after the step: one run drew other "
            "numbers, or more of them",
        )
    yield from _of_sources(known)
    if known.resumed:
        yield from _of_values(known)
    if known.compiled:
        yield suspect("compile", f"compiled: {', '.join(known.compiled)}")


def _of_data(known: Evidence) -> Iterator[Suspect]:
    fields = ", ".join(known.difference.batch[:3])
    sources = [*known.noted("entropy", "clock", fetching=True), *known.noted("entropy", early=True)]
    if sources or not known.resumed:
        said = _says(sources[0]) if sources else "a fresh process with the same seed has another batch"
        yield suspect("augmentation", f"the batch differs before the step begins ({fields}); {said}")
    keeping = [held for held in known.held if held.kind in ("generator", "value")]
    if known.resumed:
        said = f"; {_names(keeping)} differs from the run that went through" if keeping else ""
        yield suspect(
            "data-state", f"the batch ({fields}) is another one when the program is entered in the middle{said}"
        )


def _remedy(known: Evidence) -> str | None:
    if known.helps:
        ways = " or ".join(f"{flags} ({cost})" for flags, cost in known.helps.items())
        return f"Use {ways}: with it, two runs are equal."
    if known.tried:
        return f"Replace the operation: with {' and with '.join(known.tried)}, two runs still differ."
    return None


def _of_things(known: Evidence) -> Iterator[Suspect]:
    for kinds, cause in ((("optimizer", "schedule", "module"), "optimizer"), (("generator",), "generator")):
        things = _by_line(known, [held for held in known.held if held.kind in kinds])
        if things:
            yield suspect(cause, f"{_names(things)} is not attached, and differs from the run that went through")


def _of_sources(known: Evidence) -> Iterator[Suspect]:
    site = known.site
    noted = known.noted("entropy", "clock")
    noted.sort(key=lambda note: (site is None or note.place != site.place, note.kind != "entropy"))
    for note in noted:
        yield suspect(note.kind, _says(note))
    for cause, words in WORDS.items():
        if site is not None and words.search(site.line):
            yield suspect(cause, f"{site.place} says so: {site.line}")
    for note in known.noted("entropy", early=True):
        yield suspect("entropy", _says(note))


def _of_values(known: Evidence) -> Iterator[Suspect]:
    values = _by_line(known, [held for held in known.held if held.kind == "value"])
    if values:
        yield suspect("attribute", f"{_names(values)} differs from the run that went through, and is not attached")


def _by_line(known: Evidence, held: list[Held]) -> list[Held]:
    """Things that the line at the site names come first, then those of the recipe itself."""
    line = known.site.line if known.site else ""
    return sorted(held, key=lambda one: (one.name.rpartition(".")[2] not in line, not one.name.startswith("self.")))


def _names(held: list[Held]) -> str:
    first = f"{held[0].name} ({held[0].type})"
    return first if len(held) == 1 else f"{first}, besides {', '.join(one.name for one in held[1:4])},"


def _says(note: Note) -> str:
    when = "before the first step" if note.step is None else f"in step {note.step}"
    return f"{note.call} was called {when} at {note.place}: {note.line}"

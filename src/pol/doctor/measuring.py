"""What other flags do to a training: which of them change its bits, and what a step costs under some."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass

from msgspec.structs import replace

from pol.doctor.comparing import differing, first_difference
from pol.doctor.diagnosis import Cost, Variant
from pol.doctor.probing import Prober, ProgramFailed, Run
from pol.executors.local import Executor
from pol.profile import Profile

ROUNDS = 3
"""How often each profile has its turn: with one turn, whatever else the machine did then would be taken for cost."""

SECONDS = 30.0
"""About how long all variants together may take, and all measurements of cost: fewer steps are taken if need be."""

FEWEST = 3
"""Steps that are taken in any case; the first of them is not counted, since it fills caches."""

Flagged = tuple[str, Profile]


@dataclass(frozen=True)
class Remedies:
    """Flags under which two runs of a training were compared that differ without, and what a step costs under them."""

    equal: dict[str, bool]
    costs: list[Cost]

    def helps(self) -> dict[str, str]:
        """The flags that make them equal, to their cost in words."""
        ratios = {cost.flags: cost.ratio for cost in self.costs}
        return {flags: _times(ratios.get(flags)) for flags, equal in self.equal.items() if equal}


def _times(ratio: float | None) -> str:
    return "its cost was not measured" if ratio is None else f"a step takes {ratio:.2f} times as long"


def remedies(prober: Prober, profile: Profile, steps: int) -> Remedies:
    """Try the flags that may make two runs equal."""
    tried = [("asked for", profile)]
    if not profile.deterministic:
        tried.append(("--deterministic", replace(profile, deterministic=True)))
    if profile.threads > 1:
        tried.append(("--threads 1", replace(profile, threads=1)))
    equal: dict[str, bool] = {}
    prober.phase("trying what helps", 2 * steps * (len(tried) - 1))
    for label, other in tried[1:]:
        with prober.process(other) as one, prober.process(other) as two:
            try:
                runs = [prober.run(process, other, steps) for process in (one, two)]
            except ProgramFailed:
                continue
        equal[label] = first_difference(runs[0].observations, runs[1].observations) is None
    return Remedies(equal, costs(prober, tried, steps))


def flags(prober: Prober, profile: Profile, first: Run) -> tuple[list[Variant], list[Cost]]:
    """The steps of ``first`` under other flags, and what they cost under some."""
    tried = variants(profile, first.probed.platform.machine)
    steps = _affordable(first, len(tried))
    compared = [("asked for", profile), (_onoff(profile), replace(profile, deterministic=not profile.deterministic))]
    compared.append(("--threads 1", replace(profile, threads=1)) if profile.threads > 1 else _threads(profile, 2))
    if profile.matmul != "medium":
        compared.append(("matmul: medium", replace(profile, matmul="medium")))
    prober.phase("other flags", steps * len(tried))
    with contextlib.ExitStack() as stack:  # a process that is needed twice is started once: that takes seconds
        running = {other: stack.enter_context(prober.process(other)) for _, other in compared}
        found = [_variant(prober, label, other, first, steps, running.get(other)) for label, other in tried]
        return found, _costs(prober, compared, _affordable(first, len(compared) * ROUNDS), running)


def variants(profile: Profile, machine: str) -> list[Flagged]:
    """Profiles that differ from one in one flag."""
    found = [_threads(profile, count) for count in (1, 2) if count != profile.threads]
    if machine in ("x86_64", "AMD64"):
        found += [
            ("instructions: AVX2", replace(profile, aten="avx2")),
            ("instructions: any x86-64", replace(profile, aten="default")),
            ("oneDNN: AVX2", replace(profile, onednn="avx2")),
            ("MKL: any x86-64", replace(profile, mkl="compatible")),
        ]
    found.append((_onoff(profile), replace(profile, deterministic=not profile.deterministic)))
    if profile.matmul != "medium":
        found.append(("matmul: medium", replace(profile, matmul="medium")))
    return [(label, other) for label, other in found if other != profile]


def _onoff(profile: Profile) -> str:
    return "without --deterministic" if profile.deterministic else "--deterministic"


def _threads(profile: Profile, count: int) -> Flagged:
    return f"--threads {count}", replace(profile, threads=count)


def _variant(
    prober: Prober, label: str, profile: Profile, first: Run, steps: int, running: Executor | None
) -> Variant:  # fmt: skip
    try:
        with contextlib.nullcontext(running) if running else prober.process(profile) as process:
            run = prober.run(process, profile, steps, measure=True)
    except ProgramFailed as failed:
        return Variant(flags=label, profile=profile, equal=None, note=str(failed))
    expected, found = first.observations[steps - 1].state, run.observations[-1].state
    changed = differing(expected, found)
    return Variant(flags=label, profile=profile, equal=not changed, differing=len(changed), entries=len(expected))


def costs(prober: Prober, tried: list[Flagged], steps: int) -> list[Cost]:
    """Seconds of a step under each profile, measured in turns; the first is what the others are compared with."""
    with contextlib.ExitStack() as stack:
        running = {profile: stack.enter_context(prober.process(profile)) for _, profile in tried}
        return _costs(prober, tried, steps, running)


def _costs(prober: Prober, tried: list[Flagged], steps: int, running: dict[Profile, Executor]) -> list[Cost]:
    prober.phase("what flags cost", ROUNDS * len(tried) * steps)
    seconds: dict[str, list[float]] = {label: [] for label, _ in tried}
    notes: dict[str, str] = {}
    for _ in range(ROUNDS):
        for label, profile in tried:
            if label in notes:
                continue
            try:
                run = prober.run(running[profile], profile, steps, measure=True)
            except ProgramFailed as failed:
                notes[label] = str(failed)
                continue
            taken = [seen.seconds for seen in run.observations]
            seconds[label] += taken[1:] or taken
    base = statistics.median(seconds[tried[0][0]] or [0.0])
    return [_cost(label, profile, seconds[label], base, notes.get(label, "")) for label, profile in tried]


def _cost(label: str, profile: Profile, taken: list[float], base: float, note: str) -> Cost:
    median = statistics.median(taken) if taken and not note else None
    ratio = median / base if median is not None and base > 0 else None
    return Cost(flags=label, profile=profile, seconds=median, ratio=ratio, steps=len(taken), note=note)


def _affordable(first: Run, runs: int) -> int:
    """How many steps each of some runs may take."""
    seconds = statistics.median(seen.seconds for seen in first.observations)
    return max(min(FEWEST, first.last), min(first.last, int(SECONDS / (runs * seconds)) if seconds > 0 else first.last))

"""One examination: builds, twin runs, runs that are entered in the middle; it ends at the first thing that differs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pol.declaration import difference
from pol.doctor import causes, measuring
from pol.doctor.comparing import changed_holdings, find_site, first_difference
from pol.doctor.diagnosis import Answer, Check, Diagnosis, Finding
from pol.doctor.judging import Evidence, suspects
from pol.doctor.probing import Prober, ProgramFailed, Run, Start
from pol.doctor.refusing import refused
from pol.errors import UsageError
from pol.executors.local import Executor
from pol.profile import Profile
from pol.prover import Progress

ATTEMPTS = 3
"""How often two runs are traced to see their first difference: what depends on chance need not differ at once."""


class Found(Exception):
    """Ends an examination."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class Examination:
    """The examination of one recipe under one profile."""

    def __init__(
        self, reference: str, settings: dict[str, Any], profile: Profile, every: int, steps: int,
        executor: Executor | None, progress: Progress,
    ) -> None:  # fmt: skip
        self._prober = Prober(reference, settings, executor, progress)
        self._name = reference.rpartition(":")[2]
        self._profile, self._every, self._stop = profile, every, steps
        self._known: dict[str, Any] = {"profile": profile, "every": every}
        self._checks: list[Check] = []
        self._remarks: list[str] = []

    def diagnose(self, *, quick: bool) -> Callable[..., Diagnosis]:
        """Do all of it; the diagnosis still lacks the recipe's name and the time that it took."""
        answer = Answer.EXACT
        try:
            with tempfile.TemporaryDirectory(prefix="pol-doctor-") as folder, contextlib.ExitStack() as processes:
                first = self._compare(Path(folder), processes)
            if not quick:
                self._measure(first)
        except Found as found:
            answer = Answer.NOT_EXACT
            self._known["finding"] = found.finding
        except ProgramFailed as failed:
            answer = Answer.UNKNOWN
            self._known["reason"] = str(failed)
        self._known |= {"checks": self._checks, "remarks": self._remarks}
        return partial(Diagnosis, answer=answer, **self._known)

    # -- comparing ------------------------------------------------------------------------------------------------

    def _compare(self, folder: Path, processes: contextlib.ExitStack) -> Run:
        """Compare all there is; returns the first run, whose steps all others agreed with.

        Raises:
            Found: something differs, or is refused.
            ProgramFailed: the program fails by itself.
        """
        self._prober.phase("building twice", 0)
        one = processes.enter_context(self._prober.process(self._profile))
        two = processes.enter_context(self._prober.process(self._profile, isolated=True))
        self._builds(one, two, folder / "leaves.bin")
        self._prober.phase("first run", self._stop)
        first = self._first(one)
        self._prober.phase("second run", first.last)
        self._check_flags(first)
        points = self._points(first)
        second = self._again(
            "twin", None, lambda: self._prober.run(two, self._profile, self._stop, keep=points, directory=folder)
        )
        if first_difference(first.observations, second.observations):
            raise Found(self._twin(one, two, first, second))
        self._checks.append(Check(what="two runs in fresh processes", steps=first.last))
        self._prober.phase("stop and resume", sum(first.last - point for point in points))
        three = processes.enter_context(self._prober.process(self._profile, isolated=True))
        for point in points:
            self._resume(one, three, first, _start(second, point, folder))
        self._control(one)
        return first

    def _builds(self, one: Executor, two: Executor, leaves: Path) -> None:
        try:
            first = self._prober.build(one, self._profile, again=False, leaves=leaves)
        except ProgramFailed as failed:
            raise self._refused(failed, None) from None
        self._known["platform"] = first.platform
        second = self._again(
            "builds", None, lambda: self._prober.build(two, self._profile, again=True, leaves=leaves)
        )  # fmt: skip
        if changed := difference(first.declaration, second.declaration):
            message = f"the program declares something else under another seed: {changed}"
            cause = "data" if ".samples" in changed else "build"
            raise Found(Finding(compared="builds", message=message, suspects=[causes.suspect(cause, changed)]))
        self._checks.append(Check(what="two builds under different seeds"))

    def _control(self, process: Executor) -> None:
        self._prober.phase("as before recording", 0)
        try:
            finding = refused(self._prober.control(process, self._profile))
        except ProgramFailed as failed:
            raise self._refused(failed, None) from None
        if finding is not None:
            raise Found(finding)

    def _first(self, process: Executor) -> Run:
        try:
            first = self._prober.run(process, self._profile, self._stop)
        except ProgramFailed as failed:
            raise self._refused(failed, None) from None
        self._known |= {
            "steps": first.last, "total": first.total, "per_epoch": first.per_epoch, "compiled": first.probed.compiled,
        }  # fmt: skip
        return first

    def _refused(self, failed: ProgramFailed, resumed: int | None) -> Exception:
        """What becomes of a job that the program could not do although nothing ran before it."""
        message = failed.event.message
        if failed.foreign:
            return failed
        misnamed = message.startswith(f"{self._name}: ") or "has no recipe" in message or "no module named" in message
        if misnamed:
            return UsageError(message)
        return Found(
            Finding(compared="program", message=message, resumed=resumed, suspects=[causes.refusal(message)])
        )  # fmt: skip

    def _again(self, compared: Any, resumed: int | None, ask: Callable[[], Any]) -> Any:
        """What a second process gives; that it fails where the first did not is a finding."""
        try:
            return ask()
        except ProgramFailed as failed:
            message = failed.event.message
            cause = causes.suspect("again", "the first run passed here") if failed.foreign else causes.refusal(message)
            raise Found(Finding(compared=compared, message=message, resumed=resumed, suspects=[cause])) from None

    def _check_flags(self, run: Run) -> None:
        """Refuse a program that does not leave torch's settings as the profile says, and as they are."""
        profile = self._profile
        wanted = {
            "threads": str(profile.threads), "deterministic": str(profile.deterministic), "matmul": profile.matmul,
        }  # fmt: skip
        before = {**run.observations[0].flags, **wanted}
        for seen in run.observations:
            for name, value in seen.flags.items():
                if value != before[name]:
                    since = "the profile says" if seen.step == 0 else "before it was"
                    said = f"in step {seen.step}, {name} is {value}; {since} {before[name]}"
                    raise Found(
                        Finding(
                            compared="flags", message=said, step=seen.step, suspects=[causes.suspect("flags", said)]
                        )
                    )

    # -- where the program is entered in the middle ----------------------------------------------------------------

    def _points(self, run: Run) -> list[int]:
        """Steps before which it is entered: one within an epoch, and one at the end of an epoch if there is one."""
        last, per_epoch = run.last, run.per_epoch
        if last < 2:
            self._remarks.append("the training has one step, so there is no middle to enter it at")
            return []
        inside = [step for step in range(1, last) if step % per_epoch]
        middle = sorted(inside, key=lambda step: (abs(step - last // 2), step))[:1]
        ends = sorted(range(per_epoch, last, per_epoch), key=lambda step: (abs(step - last // 2), step))[:1]
        if not ends and run.total > last:
            self._remarks.append(
                f"no end of an epoch was crossed: an epoch has {per_epoch} steps, {last} were taken (--intervals)"
            )
        return sorted({*middle, *ends})

    def _resume(self, one: Executor, three: Executor, first: Run, start: Start) -> None:
        ask = partial(self._prober.run, three, self._profile, first.last, start=start)
        resumed: Run = self._again("resume", start.step, ask)
        if found := first_difference(first.observations, resumed.observations):
            a, b = first, resumed
            with contextlib.suppress(ProgramFailed):  # then what is known without a trace must do
                stop = found.step + 1
                traced = self._prober.run(one, self._profile, stop, trace=found.step)
                b = self._prober.run(three, self._profile, stop, start=start, trace=found.step)
                a = traced
            raise Found(self._finding("resume", a, b, start.step))
        inside = start.step % first.per_epoch
        where = f"{inside} steps into an epoch" if inside else "between two epochs"
        self._checks.append(
            Check(what=f"stopped and resumed after step {start.step - 1}, {where}", steps=first.last - start.step)
        )

    # -- findings ---------------------------------------------------------------------------------------------------

    def _twin(self, one: Executor, two: Executor, a: Run, b: Run) -> Finding:
        """Trace both runs at the step where they differ, if they differ there again."""
        for _ in range(ATTEMPTS):
            found = first_difference(a.observations, b.observations)
            assert found is not None
            ask = partial(self._prober.run, profile=self._profile, stop=found.step + 1, trace=found.step)
            try:
                again = ask(one), ask(two)
            except ProgramFailed:  # now and then: what is known without a trace must do
                break
            now = first_difference(again[0].observations, again[1].observations)
            if now is None:
                continue
            a, b = again
            if now.step == found.step:
                break
        finding = self._finding("twin", a, b, None)
        if not finding.suspects or finding.suspects[0].cause not in ("operation", "compile", "outside"):
            return finding
        tried = measuring.remedies(self._prober, self._profile, a.last)
        self._known["costs"] = tried.costs
        return self._finding("twin", a, b, None, tried)

    def _finding(
        self, compared: Any, a: Run, b: Run, resumed: int | None, remedies: measuring.Remedies | None = None
    ) -> Finding:  # fmt: skip
        found = first_difference(a.observations, b.observations)
        if found is None:
            return Finding(
                compared=compared, resumed=resumed, message="two runs differed once, and did not when taken again",
                suspects=[causes.suspect("outside", "it differs only now and then")],
            )  # fmt: skip
        site, held = None, []
        if a.traced is not None and b.traced is not None and a.traced.step == found.step:
            site, held = find_site(a.traced, b.traced), changed_holdings(a.traced, b.traced)
        known = Evidence(
            difference=found,
            resumed=compared == "resume",
            site=site,
            held=held,
            notes=[*a.probed.notes, *b.probed.notes],
            compiled=a.probed.compiled,
            helps=remedies.helps() if remedies else {},
            tried=list(remedies.equal) if remedies else [],
        )
        return Finding(
            compared=compared,
            message="",
            step=found.step,
            tensor=found.state[0] if found.state else None,
            differing=len(found.state),
            entries=found.entries,
            before=found.before(),
            resumed=resumed,
            site=None if found.batch else site,
            suspects=suspects(known),
        )

    # -- flags --------------------------------------------------------------------------------------------------------

    def _measure(self, first: Run) -> None:
        self._known["variants"], self._known["costs"] = measuring.flags(self._prober, self._profile, first)


def _start(run: Run, step: int, folder: Path) -> Start:
    return Start(
        step=step,
        checkpoint=folder / f"{step:012d}.safetensors",
        counts=run.observations[step - 1].counts,
        declaration=run.probed.declaration,
        batches_per_step=run.probed.batches_per_step,
    )

"""Measure what recording and auditing cost, against the bare loop and the method of 2021."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import torch

from benchmarks import cifar, figure, page, table, threads
from benchmarks.cases import FULL, QUICK, Case
from benchmarks.measure import Kept, Options, code, measure, measured, units
from benchmarks.result import Made, Measured, Results
from pol.render.text import duration
from pol.version import __version__

STEM = "overhead"
BLOCK = "overhead"
"""Of the pages that show the targets."""

BUSY = 0.25
"""Load per core from which a run is told that something else runs: half a process on two cores."""

UNFINISHED = Path(".bench-unfinished.json")


def main() -> None:
    threads.check()
    parser = _parser()
    options = parser.parse_args()
    if options.render:
        _pages(options, _write(options.render, _read(options.render / f"{STEM}.json")))
        return
    cases, left_out = _chosen(parser, options)
    with tempfile.TemporaryDirectory(prefix="pol-bench-") as folder:
        data = options.data
        if data is None and options.quick:
            data = cifar.invented(Path(folder) / "invented.npz", 16)
        shared = Options(options.threads, None if data is None else data.resolve(), options.quick, _say)
        begun = {"code": code(), "data": _digest(options.data), "threads": options.threads, "quick": options.quick}
        kept = Kept(options.unfinished or (None if options.quick else UNFINISHED), begun, _say)
        expected = sum(unit.seconds for case in cases for unit in units(case, shared))
        if not options.quick:
            _say(f"{len(cases)} trainings, about {duration(expected)} on two quiet cores; interrupt it at any time")
            if (now := os.getloadavg()[0]) > BUSY * (os.cpu_count() or 1):
                _say(
                    f"the machine is busy (load {now:.1f}): shares of CPU time then come out too small, and ranges wide"
                )
        started, load = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0]
        try:
            found = measure(cases, shared, kept)
        except KeyboardInterrupt:
            _say("interrupted: the same command goes on with what is missing")
            raise SystemExit(130) from None
        made = _made(options, started, load)
        results = Results(measured=[measured(case, made, found[case.name]) for case in cases], left_out=left_out)
    if options.json:
        options.json.write_bytes(_encode(results))
    if options.write:
        results = _write(options.write, results)
    _pages(options, results)
    print(table.markdown(results))
    kept.done()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="CIFAR-10, decoded (python -m benchmarks.cifar)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: shows that it runs, measures nothing")
    parser.add_argument("--only", choices=[case.name for case in FULL], action="append", help="measure one training")
    parser.add_argument("--threads", type=int, default=2, help="threads of every recording process (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER",
        help=f"write {STEM}.json, .md and .svg there; trainings that were not measured stay as they are there",
    )  # fmt: skip
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="write these anew from its JSON; measure nothing")
    parser.add_argument(
        "--page", type=Path, action="append", default=[], help="put the targets into the marked block of a page"
    )
    parser.add_argument(
        "--unfinished", type=Path, metavar="FILE",
        help=f"keeps what is measured until all is, to go on after an interruption ({UNFINISHED}; none if --quick)",
    )  # fmt: skip
    return parser


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[list[Case], dict[str, str]]:
    """The trainings to measure, and those that are left out, with the reason."""
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data {options.data}: no such file (python -m benchmarks.cifar makes it)")
    sizes = QUICK if options.quick else FULL
    chosen = [case for case in sizes if options.only is None or case.name in options.only]
    without = [case for case in chosen if case.needs_data and options.data is None and not options.quick]
    left_out = {case.title: "its data were not given (`--data FILE.npz`)" for case in without}
    for title, why in left_out.items():
        _say(f"{title} is left out: {why}")
    if not (rest := [case for case in chosen if case not in without]):
        parser.error("nothing is left to measure: --data FILE.npz (python -m benchmarks.cifar makes it)")
    return rest, left_out


def _digest(data: Path | None) -> str | None:
    if data is None:
        return None
    with np.load(data) as archive:  # what is in it: the file itself says when it was made
        return hashlib.sha256(b"".join(archive[name].tobytes() for name in sorted(archive.files))).hexdigest()


def _made(options: argparse.Namespace, started: str, load: float) -> Made:
    words = ["python -m benchmarks"]
    words += ["--data cifar.npz"] if options.data else []  # a path means nothing elsewhere
    words += [f"--only {name}" for name in options.only or []]
    words += [f"--threads {options.threads}"] if options.threads != 2 else []
    words += ["--quick"] if options.quick else []
    return Made(
        command=" ".join(words), started=started, pol=__version__, python=platform.python_version(),
        torch=str(torch.__version__), processor=page.processor(), system=platform.system(), cores=os.cpu_count() or 1,
        threads=options.threads, load_before=load, load_after=os.getloadavg()[0], quick=options.quick,
        code=code()[:16],
    )  # fmt: skip


def _write(folder: Path, results: Results) -> Results:
    """Write the three files; returns what stands in them now."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = _merged(folder / f"{STEM}.json", results)
    (folder / f"{STEM}.json").write_bytes(_encode(merged))
    (folder / f"{STEM}.svg").write_text(figure.figure(merged))
    (folder / f"{STEM}.md").write_text(table.page(merged, f"{STEM}.svg"))
    return merged


def _pages(options: argparse.Namespace, results: Results) -> None:
    for shown in options.page:
        page.write(shown, BLOCK, table.targets(results))


def _read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)


def _merged(path: Path, results: Results) -> Results:
    """With the trainings of an earlier run that were not measured in this one."""
    if not path.exists():
        return results
    earlier = _read(path)
    by_case: dict[str, Measured] = {one.case: one for one in (*earlier.measured, *results.measured)}
    order = [case.name for case in FULL if case.name in by_case]
    titles = {one.title for one in by_case.values()}
    left_out = {title: why for title, why in results.left_out.items() if title not in titles}
    return Results(measured=[by_case[name] for name in order], left_out=left_out)


def _encode(results: Results) -> bytes:
    return msgspec.json.format(msgspec.json.encode(results)) + b"\n"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Measure what recording and auditing cost, and print it as a Markdown table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

from benchmarks.cases import FULL, QUICK
from benchmarks.measure import measure
from benchmarks.table import markdown
from pol.version import __version__


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: shows that it runs, measures nothing")
    parser.add_argument("--only", choices=[case.name for case in FULL], help="measure one training")
    parser.add_argument("--threads", type=int, default=1, help="threads of every training process (default: 1)")
    parser.add_argument("--repetitions", type=int, help="of every measurement (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    options = parser.parse_args()
    repetitions = options.repetitions or (1 if options.quick else 3)
    started, load = datetime.now(UTC), os.getloadavg()[0]
    results = [
        measure(case, options.threads, repetitions, lambda line: print(line, file=sys.stderr, flush=True))
        for case in (QUICK if options.quick else FULL)
        if options.only in (None, case.name)
    ]
    machine = {
        "version": __version__, "started": started.isoformat(timespec="seconds"), "load_before": load,
        "load_after": os.getloadavg()[0], "cores": os.cpu_count(), "machine": platform.machine(),
        "system": platform.system(), "python": platform.python_version(), "torch": str(torch.__version__),
        "threads": options.threads, "repetitions": repetitions, "quick": options.quick,
    }  # fmt: skip
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": machine, "results": results})))
    print(markdown(results))
    print(
        f"\n{options.threads} thread(s) on {machine['cores']} cores, {repetitions} repetition(s), median (range); "
        f"load {load:.2f} before and {machine['load_after']:.2f} after; "
        f"Python {machine['python']}, torch {machine['torch']}, pol {__version__}."
    )


if __name__ == "__main__":
    main()

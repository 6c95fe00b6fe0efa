"""What the benchmarks of rule ``tolerance`` share: which trainings there are, where their data are, and the options."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from benchmarks import cifar

CASES = ("digits", "resnet", "text")

RESNET = f"{Path(__file__).with_name('resnet.py')}:ResNet20"
TEXT = "pol.recipes.text:CharGPT"

TINY_TEXT = {"layers": 1, "heads": 2, "width": 32, "context": 16, "batch_size": 4, "num_epochs": 1}
"""Sizes of ``TEXT`` that only show that everything runs."""


@dataclass(frozen=True)
class Training:
    """A recipe in a given size."""

    case: str
    """By which it is chosen."""
    title: str
    recipe: str
    settings: dict[str, Any]


T = TypeVar("T", bound=Training)


def with_data(training: T, archive: Path | None, folder: Path) -> T:
    """With the path of its data, where it needs any: decoded from an archive, or invented where there is none."""
    if training.case != "resnet":
        return training
    path, samples = folder / "cifar10.npz", training.settings["samples"]
    path = cifar.invented(path, samples) if archive is None else cifar.decode(archive, path, samples)
    return dataclasses.replace(training, settings={**training.settings, "path": str(path)})


def parser_for(name: str, description: str) -> argparse.ArgumentParser:
    """The options that all of them have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--cases", metavar="NAME,…", help=f"of {', '.join(CASES)}; by default all that have data")
    parser.add_argument("--cifar", type=Path, metavar="FILE.npz", help="CIFAR-10 as JPEG files (benchmarks/cifar.py)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--add",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="with what an earlier run wrote as --json (of --cases '' with nothing else); may be repeated",
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into the marked block of a page")
    return parser


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Names of cases from the options; by default all for which there are data. Exits where one is unknown."""
    has_data = options.cifar is not None or options.quick
    if options.cases is None:
        return [case for case in CASES if case != "resnet" or has_data]
    cases: list[str] = [case for case in options.cases.split(",") if case]
    if odd := [case for case in cases if case not in CASES]:
        parser.error(f"--cases {odd[0]}: there is {', '.join(CASES)}")
    if "resnet" in cases and not has_data:
        parser.error("resnet needs its data: --cifar FILE.npz")
    return cases


def command(name: str, options: argparse.Namespace, *more: str) -> str:
    """The command line that leads to the same tables."""
    words = [f"python -m benchmarks.{name}", f"--cases {','.join(options.cases)}", *more]
    words += ["--cifar FILE.npz"] if options.cifar else []  # a path means nothing elsewhere
    return " ".join([*words, *(["--quick"] if options.quick else [])])


def save(path: Path | None, measured: msgspec.Struct) -> None:
    """Write what was measured until now: a run takes long, and may end early."""
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(measured)))


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)

"""Measure how far honest machines and the smallest cheats are apart: ``python -m benchmarks.separation``.

A run is recorded on one thread. From some of its states, early, in the middle and late, its steps are taken again: by
other machines (threads, instruction sets, float64), and as cheats would take them (one sample, one label, one per cent
of the learning rate). After k steps each end is compared with the recorded one, as the verifier compares it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import page
from benchmarks.apart import apart
from benchmarks.choosing import RESNET, TEXT, TINY_TEXT, Training, chosen, command, parser_for, save, say, with_data
from benchmarks.otherwise import AS_RECORDED, VARIANTS, Run, Way
from benchmarks.separation_table import Found, Measured, markdown
from pol.checkpoint import Checkpoint
from pol.executors.local import Processes
from pol.profile import Profile

WAYS = (
    Way("2 threads", profile=Profile(threads=2)),
    Way("3 threads", profile=Profile(threads=3)),
    Way("AVX2 machine", profile=Profile(threads=1, aten="avx2", onednn="avx2", mkl="avx2")),
    Way(
        "no vector instructions", profile=Profile(threads=1, aten="default", onednn="sse41", mkl="compatible"),
        slow=True,
    ),
    Way("float64", wrapper="Wide", slow=True),
    Way("one sample swapped", "data", order="swapped"),
    Way("one sample, for the one most like it", "data", order="nearest"),
    Way("one label", "data", wrapper="Relabelled"),
    Way("learning rate + 1 %", "setting", scaled={"lr": 1.01}),
    Way("weight decay 0", "setting", scaled={"weight_decay": 0.0}),
    Way("other order", "data", order="other"),
    Way("other augmentation and dropout", "data", redrawn=True),
)  # fmt: skip

EVERY, QUICK_EVERY = [1, 2, 5, 10, 20, 50, 100], [1, 2]


@dataclass(frozen=True)
class Compared(Training):
    """A training, and the states from which its steps are taken again."""

    starts: tuple[int, ...]
    """Early, in the middle, late. States are kept so many steps apart as all of them can be divided by."""
    slow_up_to: int = 100
    """Most steps that are taken in a slow way."""


DIGITS = f"{VARIANTS}:Digits"

OPTIMIZERS = {"SGD": {"lr": 0.1, "weight_decay": 5e-4}, "AdamW": {"lr": 2e-3, "weight_decay": 1e-2, "adamw": True}}
"""Rates at which the digits CNN learns, with and without BatchNorm: 95 to 98 % of the test images after 12 epochs."""


def digits(starts: tuple[int, ...], **settings: Any) -> Iterator[Compared]:
    """The digits CNN with each optimizer, with and without BatchNorm."""
    for optimizer, rates in OPTIMIZERS.items():
        for norm in (True, False):
            title = f"digits CNN, {optimizer}, {'BatchNorm' if norm else 'no normalisation'}"
            yield Compared("digits", title, DIGITS, {**rates, **settings, "norm": norm}, starts)


RESNET_TITLE, TEXT_TITLE = "ResNet-20 on CIFAR-10 (JPEG), SGD, BatchNorm", "CharGPT, AdamW, LayerNorm"

FULL = (
    *digits((0, 20, 120, 180, 260)),  # of 360 steps in 12 epochs; the rate rises over the first 36
    Compared(
        "resnet", RESNET_TITLE, RESNET, {"samples": 12_800, "num_epochs": 4}, (0, 100, 300), slow_up_to=20
    ),  # of 400 steps
    Compared("text", TEXT_TITLE, TEXT, {}, (0, 100, 200), slow_up_to=20),  # of 300 steps
)

QUICK = (
    *digits((0, 5), num_epochs=1, batch_size=150),
    Compared("resnet", RESNET_TITLE, RESNET, {"samples": 32, "batch_size": 8}, (0, 2)),
    Compared("text", TEXT_TITLE, TEXT, {**TINY_TEXT, "steps_per_epoch": 6}, (0, 3)),
)
"""Sizes that only show that everything runs; their numbers mean nothing."""


def measure(training: Compared, every: list[int], processes: Processes, folder: Path) -> Iterator[Found]:
    """Take the steps of one training again, in every way from every start."""
    say(f"{training.title}: recording")
    run = Run(training.recipe, training.settings, math.gcd(*training.starts) or 1, folder, processes)
    for start in training.starts:
        rungs = [k for k in every if start + k <= run.steps]
        if not rungs:
            raise SystemExit(f"{training.title}: there are no {min(every)} steps from step {start} on")
        before = Checkpoint.at(run.start(start))
        recorded = run.take(AS_RECORDED, start, rungs, folder / f"{start}")
        for number, way in enumerate(WAYS):
            say(f"{training.title}: from step {start}: {way.name}")
            fewer = [k for k in rungs if not way.slow or k <= training.slow_up_to]
            if not fewer:
                continue
            other = run.take(way, start, fewer, folder / f"{start}-{number}")
            for k in fewer:
                # The verifier replays; what a cheat did is what was recorded.
                ends = (other[k], recorded[k]) if way.kind == "honest" else (recorded[k], other[k])
                found = apart(before, *ends, run.carrying, start + k, run.momenta[start + k])
                yield Found(training=training.title, way=way.name, kind=way.kind, start=start, every=k, apart=found)
            shutil.rmtree(folder / f"{start}-{number}")
        shutil.rmtree(folder / f"{start}")


def main() -> None:
    parser = parser_for("separation", str(__doc__))
    parser.add_argument("--every", type=int, nargs="+", metavar="K", help="steps from start to end")
    options = parser.parse_args()
    options.cases = chosen(parser, options)
    every = sorted({*(options.every or (QUICK_EVERY if options.quick else EVERY))})
    if every[0] < 1:
        parser.error("k is at least 1")
    about = page.about(command("separation", options, f"--every {' '.join(map(str, every))}"))
    earlier = [msgspec.json.decode(path.read_bytes(), type=Measured) for path in options.add]
    results: list[Found] = []
    with Processes() as processes:
        for training in QUICK if options.quick else FULL:
            if training.case in options.cases:
                with tempfile.TemporaryDirectory(prefix="pol-separation-") as folder:
                    filled = with_data(training, options.cifar, Path(folder))
                    results += measure(filled, every, processes, Path(folder))
                save(options.json, Measured(about, results))
    all_runs = [*earlier, *([Measured(about, results)] if results else [])]
    text = markdown(all_runs)
    print(text)
    if options.write:
        page.write(options.write, "separation", text)


if __name__ == "__main__":
    main()

"""Decode CIFAR-10 that is kept as JPEG files: ``python -m benchmarks.cifar cifar10-jpeg.npz decoded.npz``.

The archive has ``train_jpeg`` (all files, one after another), ``train_offsets`` (n + 1) and ``train_labels``. What a
decoder makes of a JPEG file depends on its version, so a recipe commits to the decoded arrays. Needs Pillow.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np


def decode(archive: Path, out: Path, samples: int | None = None) -> Path:
    """Write the first training images and labels as ``images`` and ``labels``; returns ``out``.

    Raises:
        SystemExit: Pillow is missing, or the archive is not one.
    """
    try:
        from PIL import Image
    except ImportError:
        raise SystemExit("decoding JPEG files needs Pillow: .venv/bin/pip install pillow") from None
    try:
        with np.load(archive) as found:
            data, offsets, labels = (found[f"train_{name}"] for name in ("jpeg", "offsets", "labels"))
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"{archive} is no archive of CIFAR-10 as JPEG files: {error}") from None
    count = len(labels) if samples is None else min(samples, len(labels))
    files = (data[offsets[i] : offsets[i + 1]].tobytes() for i in range(count))
    images = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    np.savez(out, images=images, labels=labels[:count])
    return out


def invented(out: Path, samples: int) -> Path:
    """Random images and labels in the same form, for runs that only show that everything works; returns ``out``."""
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(samples, 32, 32, 3), dtype=np.uint8)
    np.savez(out, images=images, labels=draw.integers(10, size=samples, dtype=np.uint8))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar", description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="CIFAR-10 as JPEG files in a NumPy archive")
    parser.add_argument("out", type=Path, help="the archive of decoded arrays to write (.npz)")
    parser.add_argument("--samples", type=int, help="decode so many training images; by default all")
    options = parser.parse_args()
    decode(options.archive, options.out, options.samples)


if __name__ == "__main__":
    main()

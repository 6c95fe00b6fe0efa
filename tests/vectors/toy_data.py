"""The data of the toy recipe: whole numbers, so that they are the same on every machine. No torch here."""

import numpy as np


def samples():
    """Thirty points with three classes, nearly separable."""
    found = []
    for i in range(30):
        x = [(i * 7 + j * 11 + (i % 3) * 5 * (j == i % 3)) % 13 for j in range(4)]
        found.append({"x": np.array(x, dtype=np.int16), "y": i % 3, "note": f"sample {i}"})
    return found


def shifted(item, rng):
    """One coordinate moves by one: an augmentation in whole numbers."""
    x = item["x"].copy()
    x[rng.integers(4)] += 1
    return {"x": x, "y": item["y"]}

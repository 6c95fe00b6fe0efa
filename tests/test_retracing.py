"""Retraced runs end at the stolen weights to the last bit, over transitions that are nearly honest, from no draw."""

import functools
import math
import tempfile
from pathlib import Path

from factory import PLAIN, RECIPE, STEPS, forge
from pol.attacks import retracing

ADAM = PLAIN.replace("plain.py:Plain", "adam.py:Adam")
MODEL = ("parameter/", "buffer/")


@functools.cache
def retraced(recipe):
    """The errors of all transitions, in shares of the moves, and of momenta; and the forger."""
    found = {}

    def make(workshop, out):
        forger = retracing._retrace(workshop, "observed")
        found["gradients"] = workshop.gradients
        states = dict(forger.states)
        forger.seal(out, workshop.key)
        for step in range(STEPS):
            forger.states[step] = states[step]
            workshop.train(forger, step, step + 1)
            for kind in ("parameter/", "buffer/", "optimizer/"):
                keys = [key for key in states[step + 1].tensors if key.startswith(kind)]
                error = apart(forger.states[step + 1], states[step + 1], keys)
                move = apart(states[step], states[step + 1], [k for k in keys if k in states[step].tensors])
                if keys and move:
                    found.setdefault(kind, []).append(error / move)
            forger.states[step + 1] = states[step + 1]

    found["path"] = forge(Path(tempfile.mkdtemp(prefix="pol-retracing-")), make, "thief", recipe=recipe).path
    return found


def apart(one, other, keys):
    return math.hypot(*(float((one.tensors[k].double() - other.tensors[k].double()).norm()) for k in keys))


if __name__ == "__main__":
    for recipe in (RECIPE, PLAIN):
        print({k: v if not isinstance(v, list) else [f"{x:.1e}" for x in v] for k, v in retraced(recipe).items()})

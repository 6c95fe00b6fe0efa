"""Step 5 of procedure ``paper-2021``: are the first weights fresh draws? And what the original says of the data.

Each weight matrix or convolution of a layer, and its bias, is tested against the law by which the recipe draws it: the
two-sided test of Kolmogorov and Smirnov. What the original skips is skipped here, too: scales and shifts of norms,
buffers, optimizer state, embeddings and shortcuts. Not as the original: the law is found from own builds (there the
user names a function); the test is the two-sided one; and the level holds for all tests together (Bonferroni), because
the original did not correct and so rejected 17.8 % of honest ResNet-20 starts. A start that cannot be tested passes.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pol import laws
from pol.auditor import Auditor
from pol.checkpoint import Checkpoint
from pol.distributions import EXACT_UP_TO, Distribution
from pol.messages import Failed
from pol.store import checkpoint_path
from pol.verifier.accounting import account, everything
from pol.verifier.case import Case, Checks, failed, passed, unable
from pol.verifier.foreign import own_builds
from pol.verifier.paper_audit import Run, configuration

_SKIPPED = re.compile(r"embed|shortcut|downsample|norm|\bbn\d*\b", re.IGNORECASE)
"""Parts of names that the original does not test."""


def origin(case: Case, auditor: Auditor, run: Run) -> Checks:
    """The first weights of the layers fit their laws, at the policy's level for all together."""
    assert case.policy.paper is not None
    with tempfile.TemporaryDirectory(prefix="pol-") as folder:
        own = own_builds(case, auditor, run.profile, configuration(case, auditor), Path(folder))
        if isinstance(own, Failed):
            yield unable("own builds", f"the recipe cannot be built here: {own.message}")
            return
        found = dict(_p_values(case, [Checkpoint.at(path) for path in own]))
    level = case.policy.paper.level
    wrong = [key for key, p in found.items() if p < level / len(found)]  # and so not if it is NaN
    if wrong:
        worst = min(wrong, key=lambda key: found[key])
        yield failed(
            "laws", f"{worst} is no fresh draw: p = {found[worst]:.2g} of {len(found)} tensors that were tested"
        )
    elif found:
        yield passed("laws", f"{len(found)} tensors fit their laws at level {level:g} for all together")
    else:
        yield passed("laws", "no layer could be tested, and the original finds nothing wrong with that")
    yield passed(
        "data", "the original compares a hash that the prover itself supplies; there is none here, so nothing is shown"
    )


def _p_values(case: Case, own: list[Checkpoint]) -> Iterator[tuple[str, float]]:
    """Each tested tensor of the first state, and how likely fresh draws are to fit its law no better."""
    first = Checkpoint(case.store, checkpoint_path(0), case.checkpoints[0])
    shapes = {key: slot.entry.shape for key, slot in own[0].entries.items()}
    assert case.policy.paper is not None
    policy = msgspec.structs.replace(case.policy, level=case.policy.paper.level)
    for finding in account(first, own, policy):
        if finding.p is not None and finding.law is not None and _is_layer(finding.key, shapes):
            law = laws.parse(finding.law).of(finding.key, shapes)
            if law is not None:
                yield finding.key, p_value(everything(first, finding.key), law)


def _is_layer(key: str, shapes: dict[str, list[int]]) -> bool:
    """Whether an entry is the weight of a linear or convolutional layer, or its bias."""
    if not key.startswith("parameter/") or _SKIPPED.search(key):
        return False
    return len(shapes[key]) > 1 or len(shapes.get(laws.weight_beside(key) or "", ())) > 1


def p_value(values: NDArray[Any], law: Distribution) -> float:
    """The test of Kolmogorov and Smirnov alone; values outside of the law's support only count as its ends."""
    ordered = np.sort(values.astype(np.float64))
    n = ordered.size
    below, expected = np.arange(n) / n, law.cdf(ordered)
    statistic = float(np.max(np.maximum(below + 1 / n - expected, expected - below)))
    if n <= EXACT_UP_TO:
        from scipy.stats import kstwo

        return float(kstwo.sf(statistic, n))
    from scipy.special import kolmogorov

    return float(kolmogorov(statistic * np.sqrt(n)))


def dataset_hash(inputs: Iterable[NDArray[Any]]) -> str:
    """The kind of hash that the original takes of a dataset: of the *printed* inputs, one after the other.

    numpy prints an array of more than a thousand elements by its corners, and labels, order and transforms are not in
    it. No verification uses this: our proofs hold no such hash, and where the original's do, the prover wrote it.
    """
    hasher = hashlib.sha256()
    with np.printoptions(threshold=1000, edgeitems=3):  # numpy's defaults
        for array in inputs:
            hasher.update(str(array).encode())
    return hasher.hexdigest()

"""What of a run does not follow from its seed: first weights or an order of the claimant's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pol import messages
from pol.declaration import Declaration
from pol.digest import Digest
from pol.errors import UsageError
from pol.proof.genesis import DeclaredSeed, Genesis, Parent, Randomness, Release
from pol.store import MAX_LOG_FILE


@dataclass(frozen=True)
class Origins:
    """Where first weights and order come from; all None: from the seed."""

    init_seed: int | None = None
    start: Path | None = None
    start_kind: Literal["given", "observed"] = "observed"
    order: NDArray[np.integer[Any]] | None = None
    parent: Digest | None = None
    """Digest of the attestation of the proof whose weights ``start`` holds."""

    def __post_init__(self) -> None:
        if self.init_seed is not None and self.start is not None:
            raise UsageError(
                "init_seed draws the first weights, start and parent take them from elsewhere: give one of them"
            )
        if self.init_seed is not None and not 0 <= self.init_seed < 2**32:
            raise UsageError(f"init_seed={self.init_seed}: numpy takes seeds of 32 bits, 0 to {2**32 - 1}")
        if self.start is not None and not self.start.is_file():
            raise UsageError(f"{self.start}: no such file of first weights")

    @property
    def drawn(self) -> bool:
        """Whether first weights are drawn from the seed of the run."""
        return self.init_seed is None and self.start is None

    def randomness(self, declaration: Declaration, *, seeded: bool) -> Randomness:
        """What the genesis says of it; ``seeded``: the recipe draws its first weights under a seed of its own."""
        initial: Any = self.start_kind if self.start else "recipe" if seeded else "derived"
        if self.parent is not None:
            initial = Parent(self.parent)
        return Randomness(
            initialisation=initial if self.init_seed is None else DeclaredSeed(self.init_seed),
            order=declaration.order if self.order is None else "observed",
            streams=declaration.streams,
        )

    def check(self, declaration: Declaration, release: Release | None) -> None:
        """Refuse what this training cannot begin with.

        Raises:
            UsageError: an order of another size; first weights of a recipe with no one model.
        """
        indices = declaration.epochs * declaration.samples * (len(str(declaration.samples)) + 1)
        if declaration.order == "recorded" and indices > MAX_LOG_FILE // 2:
            raise UsageError(
                f"{declaration.epochs} epochs of {declaration.samples} indices would not fit into a log: let the run "
                "shuffle (DataLoader(shuffle=True) without randomness='observed')"
            )
        if self.order is not None and declaration.order != "derived":
            raise UsageError("order: the recipe has a loader with an order of its own")
        if self.order is not None:
            wanted = (declaration.epochs, declaration.samples)
            if self.order.shape != wanted or self.order.min() < 0 or self.order.max() >= declaration.samples:
                raise UsageError(
                    f"order: an array of {wanted[0]} epochs × {wanted[1]} dataset indices (0 to {wanted[1] - 1}) is "
                    f"needed, this one has shape {self.order.shape}"
                )
        if self.start is not None and release is None:
            raise UsageError("start: the recipe attaches several modules and none is called model")

    def order_bytes(self) -> bytes | None:
        """The content of ``order.bin``."""
        return None if self.order is None else self.order.astype("<u4").tobytes()

    def weights(self, genesis: Genesis) -> messages.Weights | None:
        """What the training process is told.

        Raises:
            UsageError: the genesis, of a recording that is resumed, begins otherwise.
        """
        seeded = genesis.randomness.origin == "recipe"
        if genesis.randomness != self.randomness(genesis.spec.declaration, seeded=seeded):
            raise UsageError(
                "the unfinished recording was begun with other first weights or another order (init_seed, start, "
                "start_kind, parent, order): its genesis is signed and cannot change"
            )
        if self.start is None or genesis.spec.release is None:
            return None
        return messages.Weights(path=str(self.start.absolute()), part=genesis.spec.release.part)

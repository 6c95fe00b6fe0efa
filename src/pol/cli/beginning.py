"""Where a recorded training begins: the options of ``pol record`` that leave the seed of the run aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pol.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pol.proof.summary import Summary

MAX_ORDER = 2**34
"""Largest order file that is read: 16 GiB, two thousand million samples as 64-bit indices."""


@dataclass(frozen=True)
class Beginning:
    """First weights and order as the options give them."""

    init_seed: int | None
    start: Path | None
    start_kind: Literal["given", "observed"] | None
    order: Path | None
    parent: str | None = None

    def check(self) -> None:
        """Refuse options that contradict each other, before anything is written."""
        if self.start_kind is not None and self.start is None:
            raise UsageError(
                f"--start-kind {self.start_kind} says where the weights of --start FILE come from: name it"
            )
        if self.start is not None and self.start_kind is None:
            raise UsageError(
                "--start needs --start-kind: given (a verifier gave these weights out, and will compare) or observed "
                "(they come from elsewhere: a verifier can only test whether they look freshly drawn)"
            )

    def words(self) -> list[str]:
        """The options, as a recording that goes on needs them again."""
        given = {
            "--init-seed": self.init_seed, "--start": self.start, "--start-kind": self.start_kind,
            "--parent": self.parent, "--order": self.order,
        }  # fmt: skip
        return [word for name, value in given.items() if value is not None for word in (name, str(value))]

    def demands(self, summary: Summary) -> list[str]:
        """The options of ``pol verify`` without which such a run is refused."""
        kind, claims = self.start_kind if self.start else None, summary.claims
        order = summary.order_needed or "derived"
        observed = kind == "observed" or order != "derived" or (claims is not None and claims.streams == "observed")
        level = "observed" if observed else "seed-declared" if self.init_seed is not None else None
        words = ["--assurance", level] if level else []
        words += ["--order", order] if order != "derived" else []
        words += ["--parent", self.parent] if self.parent else []
        words += [word for base in (claims.frozen if claims else []) for word in ("--base", base.root.digest)]
        words += [word for file in (claims.external if claims else []) for word in ("--allow-file", file.digest)]
        return words + (["--start", str(self.start)] if kind == "given" else [])


def read_order(path: Path) -> NDArray[np.integer[Any]]:
    """Dataset indices from a numpy file, epochs × samples; nothing in it is executed.

    Raises:
        UsageError: it is no such array.
    """
    import numpy as np

    if not path.is_file():
        raise UsageError(f"--order {path}: no such file")
    if path.stat().st_size > MAX_ORDER:
        raise UsageError(f"--order {path}: more than {MAX_ORDER} bytes")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # numpy's text for other files advises to unpickle them
        raise UsageError(f"--order {path}: not a numpy file (.npy) of whole numbers") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        shape = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else "an archive"
        raise UsageError(f"--order {path}: {shape}: an array of whole numbers, epochs × samples, is needed")
    return found

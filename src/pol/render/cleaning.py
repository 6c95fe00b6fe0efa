"""What `pol gc` has removed, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from pol.render.terminal import exact
from pol.render.text import clean, plural, size

if TYPE_CHECKING:
    from pol.cleaning import Cleaned


def as_json(proof: str, found: Cleaned, *, dry_run: bool) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "proof": proof,
        "dry_run": dry_run,
        "complete": found.complete,
        "removed": [{"path": str(path), "bytes": number} for path, number in found.removed.items()],
        "bytes": found.bytes,
        "states": found.states,
        "kept": found.kept,
        "unknown": found.unknown,
    }


def cleaned(console: Console, proof: str, found: Cleaned, *, dry_run: bool) -> None:
    """Print what was removed, and what can still be answered."""
    done = "Would remove" if dry_run else "Removed"
    what = f"{plural(len(found.removed), 'item')}, {size(found.bytes)}"
    nothing = "Nothing to remove"
    console.print(Text(f"{done} {what}" if found.removed else nothing, "bold"))
    for path, number in found.removed.items():
        console.print(Text(f"  {clean(str(path))}  {size(number)}"), soft_wrap=True)
    if found.states:
        again = found.states - found.kept
        how = f"{found.kept} kept, {again} to be taken again from the kept one before"
        exact(console, "answers", f"all {plural(found.states, 'recorded state')} of {clean(proof)}: {how}")
    elif not found.complete:
        exact(console, "answers", "no state is recorded yet")
    for name in found.unknown:
        exact(console, "unknown", f"{clean(name)}: a verifier refuses the proof while this is there; move it elsewhere")

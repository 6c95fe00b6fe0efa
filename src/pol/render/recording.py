"""What `pol record` and `pol keygen` have made, for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from pol.proof.summary import Summary
from pol.render.terminal import exact
from pol.render.text import clean, plural, size


@dataclass(frozen=True)
class Recorded:
    """A recording that is finished, or that waits for a beacon (``attestation`` is None)."""

    proof: str
    genesis: str
    attestation: str | None
    summary: Summary
    claimant: str
    model: str | None
    """Where the trained weights are."""
    key: str
    key_made: bool
    checked: int
    """Steps that the self-check took again."""
    next: str
    """The command to run next."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "proof": self.proof,
            "genesis": self.genesis,
            "attestation": self.attestation,
            "steps": self.summary.recorded,
            "final_loss": self.summary.final_loss,
            "bytes": self.summary.bytes,
            "claimant": self.claimant,
            "model": self.model,
            "key": self.key,
            "key_made": self.key_made,
            "checked": self.checked,
            "next": self.next,
        }


def recorded(console: Console, result: Recorded) -> None:
    """Print what was recorded, and what to do next."""
    summary = result.summary
    if result.attestation is None:
        console.print(Text("Signed the genesis; nothing is trained yet.", "bold"))
    else:
        console.print(Text.assemble(("Recorded", "bold green"), " ", clean(result.proof)), soft_wrap=True)
        steps = f"{plural(summary.recorded, 'step')} in {plural(len(summary.losses), 'interval')}"
        exact(console, "steps", steps)
        if summary.final_loss is not None:
            exact(console, "loss", f"{summary.final_loss:.4g}, the mean of the last interval")
        checkpoints = plural(summary.checkpoints, "checkpoint")
        exact(console, "self-check", f"{result.checked} of these steps taken again, with the same result")
        exact(console, "size", f"{size(summary.bytes)}, {checkpoints} with {size(summary.checkpoint_bytes)}")
    exact(console, "model", result.model)
    exact(console, "claimant", result.claimant)
    exact(console, "key", result.key + (" (made just now: it is your identity, keep it)" if result.key_made else ""))
    exact(console, "genesis", result.genesis)
    exact(console, "attestation", result.attestation)
    console.print()
    if result.attestation is None:
        console.print("Send the genesis digest, or genesis.json, to your verifier. With the answer, go on with:")
    else:
        console.print("Anyone who has read the recipe can check it:")
    console.print(Text(f"  {result.next}", "bold"), soft_wrap=True)


def key_made(console: Console, made: dict[str, str]) -> None:
    """Print where a new key is."""
    console.print(Text("Made a signing key. Whoever has it can sign as you; nobody can make it again.", "bold"))
    exact(console, "key", made["key"])
    exact(console, "public", f"{made['public']} (to give away: others pin it with `pol verify --key`)")
    exact(console, "fingerprint", made["fingerprint"])

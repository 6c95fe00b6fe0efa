"""What a proof says of itself, for people. It never looks like a verdict."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pol import canonical
from pol.profile import Platform, Profile
from pol.proof.summary import Claims, Summary
from pol.render.terminal import exact, field
from pol.render.text import clean, plural, size, spark

CURVE = 60
"""Widest loss curve."""


def inspection(console: Console, path: str, result: Summary, claimant: str | None) -> None:
    """Print a summary."""
    console.print(Text("Nothing here has been verified.", "bold yellow"), Text("These are the claims of", "dim"), path)
    console.print()
    field(console, "State", Text(_state(result)))
    if result.claims is not None:
        _claims(console, result.claims)
    if result.beacon is not None:
        begun = result.recorded > 0 or result.attested is not None
        none = "none: the claimant chose the randomness" if begun else "none yet"
        field(console, "Beacon", Text(none if result.beacon.kind == "none" else f"nonce {result.beacon.value}"))
    losses = [point.loss for point in result.losses if point.loss is not None]
    if losses:
        width = min(CURVE, console.width - 12)
        field(console, "Loss", Text(f"{spark(losses, width)}\n{losses[0]:.4g} → {losses[-1]:.4g}, mean per interval"))
    if result.journal is not None:
        field(console, "Journal", Text(_journal(result)))
        if result.journal.noticed:
            field(console, "Noticed", Text(clean("the program " + "; ".join(result.journal.noticed))))
    field(console, "Size", Text(_size(result)))
    console.print()
    exact(console, "claimant", claimant)
    if result.claims is not None:
        exact(console, "genesis", result.claims.genesis)
        exact(console, "recipe", result.claims.recipe_digest)
        exact(console, "dataset", f"{result.claims.dataset.digest} ({plural(result.claims.dataset.size, 'sample')})")
    if result.attested is not None:
        exact(console, "attestation", result.attested.attestation)
        exact(console, "weights", result.attested.weights.digest)


def _state(result: Summary) -> str:
    if result.attested is not None:
        return "complete: it has an attestation"
    if result.claims is None:
        return "unfinished: no genesis is signed yet"
    return f"unfinished: {result.recorded} of {plural(result.claims.steps, 'step')} recorded, no attestation"


def _claims(console: Console, claims: Claims) -> None:
    field(console, "Recipe", Text(clean(f"{claims.recipe} (modules {', '.join(claims.sources)})")))
    if claims.configuration:
        settings = ", ".join(f"{key}={_value(value)}" for key, value in claims.configuration.items())
        field(console, "Settings", Text(clean(settings)))
    steps = f"{plural(claims.steps, 'step')}, {plural(claims.epochs, 'epoch')}, batches of {claims.batch_size:,}"
    field(console, "Training", Text(f"{steps}, {plural(claims.samples, 'sample')}"))
    field(console, "Random", Text(_randomness(claims)))
    for base in claims.frozen:
        field(console, "Frozen", Text(clean(f"{base.name}: {plural(base.root.size, 'tensor')}, {base.root.digest}")))
    for file in claims.external:
        field(console, "Reads", Text(clean(f"{file.name}, {file.digest}")))
    kept = "every state kept" if claims.keep == 1 else f"every {claims.keep}th state kept"
    intervals = f"{claims.intervals:,} of k = {plural(claims.every, 'step')}, K = {claims.keep:,} ({kept})"
    field(console, "Intervals", Text(intervals))
    if claims.ignored:
        said = "evolves in no state, without influence as the program says"
        field(console, "Ignored", Text(clean(f"{', '.join(claims.ignored)}: {said}")))
    field(console, "Model", Text(f"{plural(claims.parameters, 'parameter')}, rule {claims.rule}"))
    field(console, "Profile", Text(clean(_profile(claims.profile))))
    field(console, "Platform", Text(clean(_platform(claims.platform))))


def _randomness(claims: Claims) -> str:
    who = "the seed of the run sets all generators" if claims.streams == "derived" else "the recipe's own, recorded"
    order = {
        "derived": "derived from that seed",
        "observed": "the claimant's own, in order.bin",
        "recorded": "a sampler's of the recipe, recorded",
        "stream": "a stream's, of which there are batch digests alone",
    }[claims.order]
    return f"{who}; first weights {claims.origin}; order {order}"


def _value(tagged: Any) -> str:
    return repr(canonical.untag(tagged))


def _profile(profile: Profile) -> str:
    others = {"aten", "onednn", "mkl", "matmul"}
    set_ = [f"{name}={getattr(profile, name)}" for name in sorted(others) if getattr(profile, name) != "native"]
    set_ += ["deterministic"] if profile.deterministic else []
    return f"{profile.device}, {plural(profile.threads, 'thread')}, {', '.join(set_)}"


def _platform(platform: Platform) -> str:
    return (
        f"Python {platform.python}, torch {platform.torch}, numpy {platform.numpy}, {platform.machine}, "
        f"{platform.capability}"
    )


def _journal(result: Summary) -> str:
    assert result.journal is not None
    journal = result.journal
    resumes = f", resumed from {plural(len(journal.resumes), 'checkpoint')}" if journal.resumes else ""
    return clean(f"{journal.tool}, {journal.started} to {journal.finished or '(unfinished)'}{resumes}")


def _size(result: Summary) -> str:
    kept = plural(result.checkpoints, "checkpoint")
    return f"{size(result.bytes)} in {plural(result.files, 'file')}; {kept} with {size(result.checkpoint_bytes)}"

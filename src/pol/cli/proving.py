"""``pol keygen`` and ``pol record``."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pol.cli import output
from pol.cli.beginning import Beginning, read_order
from pol.cli.foresight import refused, say, warn
from pol.cli.output import Json
from pol.cli.progress import progress
from pol.errors import UsageError

if TYPE_CHECKING:
    from pol.keys import SigningKey
    from pol.proof.summary import Claims, Summary


def default_key_path() -> Path:
    """Where the key is that signs when none is named."""
    return Path(typer.get_app_dir("pol")) / "key.pem"


def keygen(
    path: Annotated[
        Path | None, typer.Argument(help="Where to write it.", show_default="key.pem in your configuration directory")
    ] = None,
    as_json: Json = False,
) -> int:
    """Make a signing key (ECDSA P-256). A key is never overwritten."""
    from pol.keys import SigningKey
    from pol.render import recording

    where = path or default_key_path()
    key = SigningKey.generate()
    key.save(where)
    made = {"key": str(where), "public": f"{where}.pub", "fingerprint": key.fingerprint}
    if as_json:
        output.show_json(made)
    else:
        output.show(lambda console: recording.key_made(console, made))
    return 0


def record(
    recipe: Annotated[str, typer.Argument(help="path/to/file.py:Name or package.module:Name", show_default=False)],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="DIR|URL", help="The proof directory to write, or its URL.", show_default=False
        ),
    ],
    every: Annotated[
        int | None,
        typer.Option(
            "--every", metavar="K", min=1, help="k: steps of an interval.", show_default="10; 1 with --rule tolerance"
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="K",
            min=1,
            help="K: keep the state after every K-th interval.",
            show_default="1; 10 with --rule tolerance and k = 1",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A constructor argument of the recipe; repeat for more."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="Private key that signs.", show_default="your own, made at the first use"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=1024, help="Threads of the training.", show_default="one per core"
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Have torch use deterministic algorithms; recorded, and so in replays."),
    ] = False,
    beacon: Annotated[
        str | None,
        typer.Option("--beacon", metavar="HEX", help="32 bytes that a verifier gave for this genesis."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="Where to write the trained weights (safetensors)."),
    ] = None,
    rule: Annotated[
        Literal["exact", "tolerance"] | None,
        typer.Option(
            "--rule", help="How a verifier compares: bit for bit, or within limits of its own.", show_default="exact"
        ),
    ] = None,
    init_seed: Annotated[
        int | None,
        typer.Option(
            "--init-seed", metavar="N", min=0, max=2**32 - 1, help="Draw the first weights under this number instead."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="FILE", help="First weights from a model file (safetensors) instead."),
    ] = None,
    start_kind: Annotated[
        Literal["given", "observed"] | None,
        typer.Option("--start-kind", help="They were given out by your verifier, or come from elsewhere."),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="PROOF", help="First weights: those of this complete proof (fine-tuning)."),
    ] = None,
    order: Annotated[
        Path | None,
        typer.Option(
            "--order", metavar="FILE", help="Your own order of the data: a .npy of indices, epochs × samples."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="With a URL: where the recording is made before it is copied; it stays there.",
            show_default="a folder of your own for the URL, removed at the end",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished recording.")] = False,
    genesis_only: Annotated[
        bool,
        typer.Option("--genesis-only", help="Sign the genesis and stop, so that a verifier can answer with a beacon."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Record a training as a proof.

    A recording that was interrupted goes on with --resume; what its genesis fixed (--every, --keep, --set,
    --threads, --deterministic, --rule) need not be repeated. A URL is one of any file system of fsspec; what is
    recorded is copied there while the training goes on (docs/storage.md).
    """
    from pol import prover
    from pol.profile import Profile
    from pol.release import write_model
    from pol.remote.place import is_url
    from pol.render import recording

    if genesis_only and beacon is not None:
        raise UsageError("--genesis-only and --beacon exclude each other: a beacon answers a genesis that is signed")
    if model is not None and not model.parent.is_dir():
        raise UsageError(f"--model {model}: there is no folder {model.parent}")
    if model is not None and model.is_dir():
        raise UsageError(f"--model {model} is a folder: name a file in it")
    nonce = output.hex32(beacon, "--beacon")
    settings = output.settings(set_)
    beginning = Beginning(init_seed, start, start_kind, order, parent)
    beginning.check()
    indices = None if order is None else read_order(order)
    out = out if is_url(out) else str(Path(out))
    folder = prover.folder_of(out, work)
    claims = (_registered(folder) or (_registered(out) if is_url(out) else None)) if resume else None
    if claims and threads not in (None, claims.profile.threads):
        raise UsageError(f"--threads {threads}: the signed genesis says {claims.profile.threads}; leave it out")
    if claims and deterministic and not claims.profile.deterministic:
        raise UsageError("--deterministic: the signed genesis says that the training is without; leave it out")
    elsewhere = [] if work is None else ["--work", str(work)]
    own, key_path, key_made = signer(key)
    step, warned = 0, set[str]()
    with progress() as tell:

        def note(phase: str, done: int, total: int | None) -> None:
            nonlocal step
            if phase == "training":
                step = done
                warn(folder, warned)  # before hours of training
            tell(phase, done, total)

        try:
            proof = prover.record(
                recipe,
                out,
                key=own,
                every=every or (claims.every if claims else None),
                keep=keep or (claims.keep if claims else None),
                beacon=nonce,
                resume=resume,
                settings=settings,
                profile=Profile(threads=threads or prover.available_cores(), deterministic=deterministic),
                progress=note,
                until_genesis=genesis_only,
                rule=rule or ("tolerance" if claims and claims.rule == "tolerance" else "exact"),
                init_seed=init_seed,
                start=start,
                start_kind=start_kind or "observed",
                parent=parent,
                order=indices,
                work=folder if is_url(out) else None,
                warn=say,
            )
        except KeyboardInterrupt:
            given = [] if _registered(folder) else _given(every, keep, set_, threads, rule)
            given += ["--deterministic"] if deterministic and not _registered(folder) else []
            command = _again(recipe, out, key, model, [*given, *elsewhere, *beginning.words()], beacon)
            raise output.Interrupted(f"Interrupted at step {step}. Go on with:\n  {command}") from None
    if model is not None and proof.attestation is not None:
        write_model(folder, model)
    warn(folder, warned)
    summary, claimant = output.read_summary(folder)
    result = recording.Recorded(
        proof=out,
        genesis=proof.genesis,
        attestation=proof.attestation,
        summary=summary,
        claimant=claimant or own.fingerprint,
        model=None if model is None or proof.attestation is None else str(model),
        key=str(key_path),
        key_made=key_made,
        checked=proof.checked,
        next=_again(recipe, out, key, model, [*elsewhere, *beginning.words()], "<nonce from your verifier>")
        if genesis_only
        else _check(recipe, out, folder, model, beginning, summary),
    )
    if is_url(out) and work is None and proof.attestation is not None:
        shutil.rmtree(folder)  # all of it is at the URL
    if as_json:
        output.show_json(result.as_json())
    else:
        output.show(lambda console: recording.recorded(console, result))
    return 0


def signer(path: Path | None) -> tuple[SigningKey, Path, bool]:
    """The key that signs, where it is, and whether it was made just now."""
    from pol.keys import SigningKey

    if path is not None:
        return SigningKey.load(path), path, False
    path = default_key_path()
    if path.exists():
        return SigningKey.load(path), path, False
    key = SigningKey.generate()
    key.save(path)
    return key, path, True


def _registered(out: Path | str) -> Claims | None:
    """What the genesis of an unfinished recording fixed, if it has one."""
    summary = output.try_summary(out)
    return summary.claims if summary else None


def _given(
    every: int | None, keep: int | None, settings: list[str] | None, threads: int | None, rule: str | None
) -> list[str]:
    """The options that a recording without a genesis needs again."""
    numbers = {"--every": every, "--keep": keep, "--threads": threads, "--rule": rule}
    words = [word for name, number in numbers.items() if number is not None for word in (name, str(number))]
    return words + [word for pair in settings or [] for word in ("--set", pair)]


def _again(recipe: str, out: str, key: Path | None, model: Path | None, given: list[str], beacon: str | None) -> str:
    """The command that goes on with a recording."""
    files = [word for name, path in (("--key", key), ("--model", model)) if path for word in (name, str(path))]
    words = ["pol", "record", recipe, "--out", out, *given, *files, "--resume"]
    hole = [] if beacon is None else ["--beacon", beacon if beacon.startswith("<") else shlex.quote(beacon)]
    return " ".join([shlex.join(words), *hole])


def _check(recipe: str, out: str, folder: Path, model: Path | None, beginning: Beginning, summary: Summary) -> str:
    """The command that verifies a proof."""
    seeded = summary.beacon is not None and summary.beacon.kind == "nonce"
    beacon = ["--beacon", summary.beacon.value] if seeded and summary.beacon else []
    beacon += ["--genesis", summary.claims.genesis] if seeded and summary.claims else []
    released = ["--model", str(model)] if model else []
    tolerant = summary.claims is not None and summary.claims.rule == "tolerance"
    objection = refused(folder)
    policy = ["--policy", "tolerance"] if tolerant and not objection else []
    if tolerant and summary.claims and summary.claims.keep > 1:  # states will be asked for
        policy += ["--openings", f"{Path(out) if folder == Path(out) else Path(out).name}-openings"]
    words = ["pol", "verify", out, "--recipe", recipe, *policy, *beginning.demands(summary), *released, *beacon]
    return " ".join([shlex.join(words), *([f"--policy <{objection.policy}>"] if objection else [])])

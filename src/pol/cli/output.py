"""What commands share: printing, parsing of option values, and the way from a proof directory to its summary."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pol.errors import PolError, UsageError

if TYPE_CHECKING:
    from pol.proof.summary import Summary

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class Interrupted(Exception):
    """The user stopped a command; the text says how to go on."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Where a signal to end (of ``timeout``, of a batch system) interrupts as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # no other may set what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show(draw: Callable[[Console], None]) -> None:
    """Print on standard output what ``draw`` draws, in one piece.

    A reader that has gone away (``| head``) does not change the exit code: the verdict is in it.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        draw(console)
    write(re.sub(r" +$", "", capture.get(), flags=re.MULTILINE))  # tables are filled up with spaces


def show_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    from pol.render.as_json import encode

    write(encode(value) + "\n")


def write(text: str) -> None:
    """Write to standard output, whether or not anybody still reads it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit is quiet


def problem(message: str, kind: str, *, as_json: bool) -> None:
    """Report an error: a JSON object on standard output, or a line on standard error."""
    from pol.render.text import clean

    if as_json:
        write(json.dumps({"error": message, "kind": kind}) + "\n")
    else:
        text = "\n".join(clean(line) for line in message.split("\n"))
        prefix = "" if kind == "Interrupted" else "error: "
        with contextlib.suppress(BrokenPipeError):
            print(prefix + text, file=sys.stderr)


def settings(pairs: list[str] | None) -> dict[str, Any] | None:
    """``key=value`` options: JSON scalars where they are, strings otherwise; None if there are none."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--set {pair}: write --set name=value")
        if key in found:
            raise UsageError(f"--set {key}=...: given twice")
        found[key] = _scalar(text)
    return found or None


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def hex32(text: str | None, option: str) -> bytes | None:
    """The 32 bytes of an option."""
    if text is None:
        return None
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise UsageError(f"{option}: expected 32 bytes, as 64 hexadecimal digits")
    return bytes.fromhex(text)


def seconds(text: str | None, option: str) -> float:
    """A time to wait: ``90s``, ``10m``, ``2h``, or seconds without a unit; none is 0."""
    if text is None:
        return 0.0
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text)
    if match is None:
        raise UsageError(f"{option} {text}: write a time like 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def share(text: str, option: str) -> float:
    """A share in per cent: ``2%``, ``0.5 %``."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?%", text)
    if match is None:
        raise UsageError(f"{option} {text}: write a share that is not negative, like 2% or 0.5%")
    return float(match[1]) / 100


def bytes_of(text: str, option: str) -> int:
    """A size: ``500MB``, ``10 GB``, or bytes without a unit."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([kMGT]?)B?", text)
    if match is None:
        raise UsageError(f"{option} {text}: write a size like 500MB or 10GB")
    power: int = 1000 ** " kMGT".index(match[2] or " ")
    return round(float(match[1]) * power)


def again(context: typer.Context, **changed: object) -> str:
    """The command line that was given, with some options ``changed`` or added."""
    words = ["pol", str(context.info_name)]
    for parameter in context.command.params:
        value = changed.get(str(parameter.name), context.params.get(str(parameter.name)))
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif value is True:
            words.append(parameter.opts[0])
        elif value != parameter.default and value is not False:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [] if one is None else [parameter.opts[0], str(one)]
    return shlex.join(words)


def read_summary(where: Path | str) -> tuple[Summary, str | None]:
    """What the proof in a folder or at a URL says, finished or not, and the fingerprint of its claimant."""
    from pol import keys, store
    from pol.proof.attestation import MAX_ATTESTATION, MAX_JOURNAL
    from pol.proof.genesis import MAX_GENESIS
    from pol.proof.summary import summarise
    from pol.remote.fetched import opened

    with opened(where) as directory:
        sizes = directory.sizes()

        def read(name: str, limit: int) -> bytes | None:
            return directory.read(name, limit) if name in sizes else None

        if not {store.GENESIS, store.SECRET, store.LOG} & sizes.keys():
            raise UsageError(f"{where}: not a proof directory: there is neither {store.GENESIS} nor {store.LOG}")
        summary = summarise(
            sizes,
            read(store.GENESIS, 2 * MAX_GENESIS),
            read(store.ATTESTATION, 2 * MAX_ATTESTATION),
            read(store.LOG, store.MAX_LOG_FILE),
            read(store.JOURNAL, MAX_JOURNAL),
        )
    return summary, None if summary.claims is None else keys.fingerprint(summary.claims.public_key)


def try_summary(where: Path | str) -> Summary | None:
    """What the proof in a folder or at a URL says, or None if it cannot be read."""
    try:
        return read_summary(where)[0]
    except (PolError, OSError):
        return None

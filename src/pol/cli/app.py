"""``pol``: its commands, and what becomes of their results and errors.

Exit codes: 0 ACCEPT or done, 1 REJECT, 2 INCONCLUSIVE, 3 usage or tool error, 130 interrupted. A command is a
function that returns its exit code; every error comes through ``main``, so the CLI library's own codes (2 for a
wrong option, which would read as INCONCLUSIVE) never get out.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pol.cli import (
    answering,
    attacking,
    benching,
    calibrating,
    cleaning,
    demanding,
    examining,
    output,
    planning,
    proving,
    story,
    verifying,
)
from pol.errors import PolError
from pol.version import __version__

TOOL_ERROR = 3
INTERRUPTED = 130

app = typer.Typer(
    name="pol",
    help="Proof-of-learning: evidence, which anyone can check, that a model came from a training.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes leave half of 80 columns for the text
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ACCEPT or done, 1 REJECT, 2 INCONCLUSIVE, 3 usage or tool error, 130 interrupted.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pol {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("demo", short_help="The whole story on real data, in a minute.")(story.demo)
app.command("keygen")(proving.keygen)
app.command("record")(proving.record)
app.command("verify", short_help="Verify a proof; the exit code is the verdict.")(verifying.verify)
app.command("regenerate", short_help="Take steps again for a verifier that asks for states.")(answering.regenerate)
app.command("calibrate", short_help="Measure what limits a recipe needs, and how far apart its runs end.")(
    calibrating.calibrate
)
app.command("policy", short_help="The presets, or one policy in full.")(demanding.policy)
app.command("doctor", short_help="Is this training replayable? If not, which state differs, and why.")(examining.doctor)
app.command("plan", short_help="What verifying under a policy costs, and what it would find.")(planning.plan)
app.command("gc", short_help="Remove what no answer needs from a proof.")(cleaning.gc)
app.command("attack", short_help="Forge a proof, or list the attacks.")(attacking.attack)
app.add_typer(benching.app, name="bench", short_help="Attacks × policies, measured.")
app.command("inspect", short_help="Show what a proof says, unchecked; needs no torch.")(verifying.inspect)

USAGE_ERROR: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""The base of the CLI library's errors, which newer versions of typer no longer take from a public package."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        code = typer.main.get_command(app).main(args=given, prog_name="pol", standalone_mode=False)
    except output.Interrupted as error:
        return _problem(str(error), "Interrupted", as_json, INTERRUPTED)
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return TOOL_ERROR
        return _problem(_usage(error), "UsageError", as_json, TOOL_ERROR)
    except PolError as error:
        return _problem(str(error), type(error).__name__, as_json, TOOL_ERROR)
    except OSError as error:
        return _problem(_os_error(error), type(error).__name__, as_json, TOOL_ERROR)
    except SystemExit:  # a closed pipe, in the CLI library
        return TOOL_ERROR
    except Exception as error:
        if os.environ.get("POL_DEBUG"):
            traceback.print_exc()
        hint = "This is a bug in pol: set POL_DEBUG=1 for the traceback"
        return _problem(f"{type(error).__name__}: {error}. {hint}", type(error).__name__, as_json, TOOL_ERROR)
    if code == INTERRUPTED:
        return _problem("interrupted", "Interrupted", as_json, INTERRUPTED)
    return int(code or 0)


def _problem(message: str, kind: str, as_json: bool, code: int) -> int:
    output.problem(message, kind, as_json=as_json)
    return code


def _usage(error: Any) -> str:
    """The message of a usage error, with the command whose help says more."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "pol"
    return f"{error.format_message()} (see `{where} --help`)"


def _os_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"

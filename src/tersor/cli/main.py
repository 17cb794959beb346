"""The front door: the list of verbs, and what becomes of every error."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tersor import __version__
from tersor.cli.screen.output import print_json
from tersor.cli.verbs import Verbs
from tersor.core.errors import TersorError

__all__ = ["app", "main"]

DONE, FAILED, INTERRUPTED = 0, 1, 130
_KEEPING = (["quantize"], ["calibrate"])
"""Commands that keep the blocks that they have finished."""

app = typer.Typer(
    name="tersor",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 bad usage, 3 inconclusive.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tersor {__version__}")
        raise typer.Exit


@app.callback()
def tersor(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Quantize any trained model, prove what it cost, run it without fear.

    From a Hugging Face checkpoint to a GGUF that stock llama.cpp runs:

    \b
      tersor quantize MODEL -o model.gguf --format q4_k_m
      tersor verify model.gguf --against MODEL
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks must not end a finished run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        again = "; the same command again goes on with what was finished" if given[:1] in _KEEPING else ""
        sys.stderr.write(f"interrupted; nothing was left half done{again}\n")
        return INTERRUPTED
    except OSError as error:
        if error.errno != errno.EPIPE:
            return _report(error, given)
        # Whoever read our output has enough; nothing may complain about it while Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return _report(error, given)
    return code


def _run(given: list[str]) -> int:
    try:
        app(given, prog_name="tersor", obj=given)
    except SystemExit as end:  # how typer reports help, bad usage, typer.Exit and an interruption
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        return end.code if isinstance(end.code, int) else FAILED
    return DONE


def _report(error: Exception, given: Sequence[str]) -> int:
    """Explain `error` on stderr, as JSON on stdout too if that was asked for; the exit code is 1."""
    kind, text = type(error).__name__, str(error)
    if "--json" in given:
        print_json({"error": {"kind": kind, "message": text}})
    if os.environ.get("TERSOR_TRACEBACK"):
        traceback.print_exception(error)
    elif isinstance(error, TersorError):
        sys.stderr.write(f"error: {text}\n")
    elif isinstance(error, OSError) and error.strerror:  # no room, no right, a name too long: the system says it best
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {place}{error.strerror}\n")
    else:
        sys.stderr.write(
            f"error: {kind}: {text}\nThis is a fault in tersor, or a file it does not expect. "
            "TERSOR_TRACEBACK=1 shows where it happened.\n"
        )
    return FAILED

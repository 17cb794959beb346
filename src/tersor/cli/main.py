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
from tersor.cli.bench import bench
from tersor.cli.calibrate import calibrate
from tersor.cli.demo import demo
from tersor.cli.deploy.alerts import alerts
from tersor.cli.deploy.gate import gate
from tersor.cli.deploy.loadtest import loadtest
from tersor.cli.deploy.refresh import refresh
from tersor.cli.deploy.registry import registry
from tersor.cli.deploy.serve import serve
from tersor.cli.doctor import doctor
from tersor.cli.evaluate import evaluate
from tersor.cli.formats import formats
from tersor.cli.inspect import inspect
from tersor.cli.planning.advise import advise
from tersor.cli.planning.analyse import analyse
from tersor.cli.planning.plan import plan
from tersor.cli.quantize import quantize
from tersor.cli.report import report
from tersor.cli.screen.output import print_json
from tersor.cli.targets.estimate import estimate
from tersor.cli.targets.optimize import optimize
from tersor.cli.verify import verify
from tersor.core.errors import TersorError

__all__ = ["app", "main"]

DONE, FAILED, INTERRUPTED = 0, 1, 130

app = typer.Typer(
    name="tersor",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 bad usage, 3 inconclusive.",
)
app.command(short_help="Turn a model into a GGUF that llama.cpp runs.")(quantize)
app.command(short_help="Find out which way to make a model small is enough.")(advise)
app.command(short_help="Save what a model sees, for many quantizations.")(calibrate)
app.command(short_help="Measure how sensitive each tensor is to rounding.")(analyse)
app.command(short_help="Choose the best format for every tensor.")(plan)
app.command(short_help="Prove that a GGUF is sound and is its source.")(verify)
app.command(short_help="Measure how far a GGUF is from its source.")(evaluate)
app.command(short_help="Measure speed, memory and energy, beside another.")(bench)
app.command(short_help="Choose what runs an artefact fastest here.")(optimize)
app.command(short_help="Tell what fits where, and how fast it can be.")(estimate)
app.command(short_help="Send load to a server and judge its answers.")(loadtest)
app.command(short_help="Write a page on artefacts, beside each other.")(report)
app.command(short_help="Judge whether an artefact may serve.")(gate)
app.command(short_help="Serve models, with full precision behind each.")(serve)
app.command(short_help="List alerts, write them for Prometheus and Grafana.")(alerts)
app.command(short_help="Make what serves anew from recent traffic.")(refresh)
app.add_typer(registry, short_help="Keep what serves, what it passed, and since when.")
app.command(short_help="Show what is inside a model.")(inspect)
app.command(short_help="List number formats and file types.")(formats)
app.command(short_help="Show what is installed and works.")(doctor)
app.add_typer(demo, short_help="Go the whole way on an embedded model.")


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
        sys.stderr.write("interrupted; nothing was left half done\n")
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

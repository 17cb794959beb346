"""`tersor loadtest`: how a server answers at a rate that it does not set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.cli.evaluate import EXIT_CODES
from tersor.cli.screen.benchmarks import shown_number
from tersor.cli.screen.output import JsonOption, console, print_json, table
from tersor.cli.screen.progress import progress_bar
from tersor.cli.screen.published import published_command
from tersor.core.errors import MissingError, SchemeError
from tersor.core.evaluation import Metric
from tersor.core.records import plain
from tersor.deploy.load.question import Question
from tersor.deploy.load.summary import StepResult
from tersor.pipeline.deploy import loadtest as pipeline

__all__ = ["loadtest"]

MOST_BODY_BYTES = 16 << 20


def loadtest(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="http:// or https:// and a host; a path is kept.")],
    rate: Annotated[
        str, typer.Option(metavar="N,N,…", help="Requests per second; several rates run one after another.")
    ] = "50",
    seconds: Annotated[float, typer.Option(metavar="S", help="For which requests begin at each rate.")] = 30.0,
    poisson: Annotated[
        bool, typer.Option("--poisson", help="Random gaps, as from many users, instead of even ones.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of random gaps and random tensors.")] = 0,
    warmup: Annotated[float, typer.Option(min=0, metavar="S", help="Seconds at the first rate that do not count.")] = 0,
    openai: Annotated[
        bool, typer.Option("--openai", help="Ask for chat completions; measures first tokens and tokens per second.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --openai. Default: the first that the server lists.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of --openai. Default: a built-in one, different for each request."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Of --openai: tokens of an answer, at most.")] = 64,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Of --openai: token by token, or the answer as a whole.")
    ] = True,
    v2: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Infer in the Open Inference Protocol: random tensors, or those of --body."),
    ] = None,
    body: Annotated[Path | None, typer.Option(metavar="FILE", help="POST this file instead of a GET.")] = None,
    path: Annotated[str | None, typer.Option(metavar="/PATH", help="Behind the URL.")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:VALUE", help="For each request; may be repeated. Reports hide the value."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates (PEM) that an https server may be signed by.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, metavar="N", help="Open at once, at most.")] = 512,
    timeout: Annotated[float, typer.Option(metavar="S", help="For a request, from its intended start.")] = 10.0,
    within: Annotated[
        float | None, typer.Option(metavar="MS", help="Answers that took longer do not count for the goodput.")
    ] = None,
    max_p99: Annotated[
        float | None, typer.Option(metavar="MS", help="Limit: largest 99th percentile of the latency, at each rate.")
    ] = None,
    min_goodput: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Limit: smallest share of good answers within --within, at each rate."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send requests to a server at a given rate, whether or not it keeps up, and show what became of them.

    Each latency counts from when the request was due, so that a server that stalls cannot hide it. Shown are
    percentiles with 95 % intervals, the share of good answers, errors by kind, and how late this generator itself
    was; where that is too late the result is invalid. Exit code 1 if a limit is broken or nobody answered, 3 if an
    interval holds the limit or the result is invalid.

    \b
    Examples:
      tersor loadtest http://localhost:8000 --openai --rate 1,2,4
      tersor loadtest http://localhost:8000 --v2 resnet --within 50 --min-goodput 0.99
      tersor loadtest http://localhost:8000 --path /predict --body request.json --max-p99 200
    """
    question = Question(
        openai=openai,
        model=model,
        prompt=prompt,
        tokens=tokens,
        is_streamed=stream,
        v2=v2,
        body=_contents(body),
        path=path,
        headers=dict(map(_header, header or ())),
        seed=seed,
    )
    with progress_bar(unit="items") as progress:
        found = pipeline.loadtest(
            url,
            question,
            rates=_rates(rate),
            seconds=seconds,
            arrivals="poisson" if poisson else "constant",
            seed=seed,
            warmup=warmup,
            ca=ca,
            connections=connections,
            timeout_s=timeout,
            within_ms=within,
            max_p99_ms=max_p99,
            min_goodput=min_goodput,
            command=published_command(context, texts=("--path", "--prompt", "--model", "--v2"), secrets=("--header",)),
            progress=progress,
        )
    if as_json:
        print_json({"outcome": found.outcome, **plain(found)})
    else:
        _print(console(), found)
    code = EXIT_CODES[found.outcome]
    if code:
        raise typer.Exit(code)


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise SchemeError(f"--rate takes numbers with commas between, such as 50,100; got {text!r}") from error


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise SchemeError("--header takes a name and a value with a colon between, such as 'Authorization: Bearer …'")
    return name.strip(), value.strip()


def _contents(body: Path | None) -> bytes | None:
    if body is None:
        return None
    path = body.expanduser()
    if not path.is_file():
        raise MissingError(f"{path}: no such file to send")
    if path.stat().st_size > MOST_BODY_BYTES:
        raise SchemeError(f"{path}: a request has at most {MOST_BODY_BYTES} bytes, got {path.stat().st_size}")
    return path.read_bytes()


def _print(screen: Console, found: pipeline.LoadTest) -> None:
    screen.print(f"{found.server}: {found.work}")
    kind = f"Poisson arrivals, seed {found.settings['seed']}" if found.settings["arrivals"] == "poisson" else "constant"
    screen.print(
        f"{found.settings['seconds']:g} s at each rate, {kind}; up to {found.settings['connections']} connections, "
        f"{found.settings['timeout_s']:g} s for an answer; 95 % intervals; from {found.machine}\n"
    )
    rows = table("what", *(f">{step.rate:g}/s" for step in found.steps))
    for metric in dict.fromkeys((one.name, one.unit) for step in found.steps for one in step.metrics):
        rows.add_row(_label(*metric), *(_value(step.metric(metric[0])) for step in found.steps))
    for status in dict.fromkeys(status for step in found.steps for status in step.statuses):
        rows.add_row(f"status {status}", *(str(step.statuses.get(status, 0)) for step in found.steps))
    for kind in dict.fromkeys(kind for step in found.steps for kind in step.errors):
        rows.add_row(f"error: {kind}", *(str(step.errors.get(kind, 0)) for step in found.steps))
    screen.print(rows)
    screen.print()
    for note in found.notes:
        screen.print(f"note: {note}")
    for step in found.steps:
        _print_verdict(screen, step)


def _print_verdict(screen: Console, step: StepResult) -> None:
    if step.invalid:
        screen.print(f"invalid: {step.rate:g}/s: {step.invalid}")
    for limit in step.limits:
        screen.print(f"{limit.outcome}: {step.rate:g}/s: {limit.reason}")


def _label(name: str, unit: str) -> str:
    """The name without its unit, and the unit."""
    stem = name.removesuffix("_ms").removesuffix("_per_s").replace("_", " ")
    return f"{stem}, {unit}" if unit else stem


def _value(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    text = shown_number(metric.value)
    if metric.low is None or metric.high is None:
        return text
    low = 0.0 if metric.low == -math.inf else metric.low  # nothing here is less, and nothing is known
    return f"{text} ({shown_number(low)}–{shown_number(metric.high)})"

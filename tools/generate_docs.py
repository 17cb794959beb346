"""Fill the tables of README and docs from the code and from recorded measurements.

What: replaces what stands between `<!-- generated: NAME -->` and `<!-- /generated -->` in README.md and docs/**/*.md,
and writes docs/reference/card.schema.json and examples/monitoring/.

How:

    python tools/generate_docs.py            writes
    python tools/generate_docs.py --check    writes nothing; exit code 1 and the names of files that are out of date
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from tersor import reference_model
from tersor.cli.main import app
from tersor.containers.hf.table import CONTAINERS, format_for
from tersor.containers.mixture_rules import FILE_TYPES, TABLE_VERSION
from tersor.core.errors import TersorError
from tersor.core.format import Format
from tersor.core.json_schema import card_schema
from tersor.deploy.alerting.files import monitoring_files
from tersor.deploy.alerting.rules import LEAST_REQUESTS, RULES
from tersor.evaluation.nets.running.engines import NET_ENGINES
from tersor.formats import FORMATS, get
from tersor.methods import METHODS
from tersor.models import load
from tersor.models.architectures import ARCHITECTURES
from tersor.models.tokenizers.pretokenizers import ROWS
from tersor.pipeline.steps.planning import make_plan
from tersor.targets.profiles.profile import Figure
from tersor.targets.profiles.table import PROFILES

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "docs" / "reference" / "card.schema.json"
MONITORING = ROOT / "examples" / "monitoring"
MEASURED = ROOT / "docs" / "reference" / "reference-model.json"
INTEGERS = {f"int{bits}": [f"int{bits}-{kind}" for kind in ("g128", "channel", "g128-asym", "channel-asym")]
            for bits in (8, 4, 3, 2)}  # fmt: skip
OTHERS = ("fp8_e4m3", "mxfp4", "nvfp4", "nf4")
"""What a checkpoint is asked for; `containers` finds out which container holds which."""
REGION = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a column whose name begins with ">" stands to the right."""
    names = list(columns)
    ruler = ["---:" if name.startswith(">") else "---" for name in names]
    lines = [[name.removeprefix(">") for name in names], ruler, *([str(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def number(value: float) -> str:
    """Four significant digits; below a million whole numbers and thousands in full."""
    if abs(value) < 1e6 and (value == int(value) or abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def bits(value: float) -> str:
    """Bits per weight, exact: multiples of 1/16 384 at most."""
    return f"{value:.7g}"


def formats() -> str:
    """Every format: what it costs, and which values it takes."""

    def row(entry: Format) -> list[object]:
        block = entry.block if entry.block > 1 else {0: f"whole {entry.span}", 1: "1"}[entry.block]
        values = f"{number(entry.lowest)} … {number(entry.highest)}"
        unit = "" if entry.unit == "1" else f"× {entry.unit}"
        kept = ", ".join(entry.containers) or "–"
        return [f"`{entry.name}`", bits(entry.bits_per_weight), block, values, unit, number(entry.largest), kept]

    head = ("format", ">bits per weight", ">block", "codes", "in units of", ">largest weight", "file")
    return table(head, map(row, FORMATS.values()))


def gguf_formats() -> str:
    """The formats that a GGUF can hold, in short."""
    kept = [entry for entry in FORMATS.values() if "gguf" in entry.containers]
    head = ("format", ">bits per weight", ">block", "where rows do not divide")
    rows = ([f"`{e.name}`", bits(e.bits_per_weight), e.block, f"`{e.fallback}`" if e.fallback else ""] for e in kept)
    return table(head, rows)


def layouts() -> str:
    """The bytes of a block of every format."""
    rows = ([f"`{entry.name}`", entry.block_bytes, ", ".join(entry.layout)] for entry in FORMATS.values())
    return table(("format", ">bytes", "fields in byte order"), rows)


def measured() -> dict[str, Any] | None:
    """What tools/measure_reference_model.py recorded, if it has."""
    if not MEASURED.is_file():
        return None
    document: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return document


def file_types() -> str:
    """Every mixture: what it costs the embedded model."""
    record = measured() or {"rows": []}
    found: Mapping[str, dict[str, Any]] = {row["file_type"]: row for row in record["rows"]}
    model = load(reference_model.PATH)
    rows = []
    for name, kind in FILE_TYPES.items():
        if name.endswith("_pure"):
            continue
        plan, row = make_plan(model, name), found.get(name)
        cells = [f"`{name}`", f"`{kind.default}`", f"{plan.bits_per_weight:.2f}", f"{plan.nbytes / 2**20:.2f}"]
        if row is None:
            cells += ["–"] * 5
        else:
            cells += [f"{row[key]:.3%}" for key in ("error", "error_ggml")]
            cells += [f"{row['divergence']:.5f}", f"{row['top1']:.1%}", f"{row['perplexity']:.2f}"]
        rows.append(cells)
    head = ["file type", "most weights", ">bits per weight", ">MiB", ">error", ">error, search `ggml`"]
    head += [">KL divergence", ">same top-1", ">perplexity"]
    if not found:
        return table(head, rows) + "\nSizes follow from the plan; the other columns have not been measured yet.\n"
    how = f"{record['windows']} windows of {record['context']} tokens of held-out text"
    by = f"`{record['command']}`, {record['date']}, {record['machine']}"
    return table(head, rows) + f"\nMeasured through llama.cpp on {how}: {by}.\n"


def containers() -> str:
    """Every container with the formats that it holds, found by asking it for a matrix of each."""
    kept = [entry.name for entry in FORMATS.values() if "gguf" in entry.containers]
    rows = [["`gguf`", f"{len(kept)} formats and all of llama.cpp's mixtures of them"]]
    for name in CONTAINERS:
        cells = []
        for family, kinds in INTEGERS.items():
            held = [kind for kind in kinds if holds(name, kind)]
            cells += [f"{family}-…"] if held == kinds else held
        cells += [other for other in OTHERS if holds(name, other)]
        rows.append([f"`{name}`", " ".join(f"`{cell}`" for cell in cells)])
    return table(("`--container`", "`--format`"), rows)


def holds(name: str, wanted: str) -> bool:
    """Whether the container `name` takes a matrix in the format `wanted`."""
    try:
        CONTAINERS[name].parts(format_for(name, get(wanted), "BF16"), (512, 512))
    except TersorError:
        return False
    return True


def methods() -> str:
    """Every rounding method and the statistics that it takes."""
    rows = (
        [f"`{name}`", ", ".join(method.needs) or "–", ", ".join(method.uses) or "–"] for name, method in METHODS.items()
    )
    return table(("`--method`", "needs", "is better with"), rows)


def architectures() -> str:
    """Every row of the table of architectures."""
    head = ("in llama.cpp", "`architectures` in config.json", "position scaling")
    rows = (
        [f"`{row.name}`", ", ".join(f"`{name}`" for name in row.classes), ", ".join(row.rope_kinds)]
        for row in ARCHITECTURES
    )
    return table(head, rows)


def pre_tokenizers() -> str:
    """Which splitting rules of byte-level tokenizers are recognised."""
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(row.pre for row in ROWS))
    return f"{names}\n"


def verbs() -> str:
    """The verbs of the command line with the first line of their help."""
    rows = ([f"`tersor {name}`", _first_line(command.help)] for name, command in _commands().items())
    return table(("command", "what it does"), rows)


def command_line() -> str:
    """Every verb with all its options; the commands of a group stand below it."""
    parts = []
    for name, command in _commands().items():
        parts.append(_section(f"## tersor {name}", command))
        parts += [_section(f"### tersor {name} {each}", one) for each, one in getattr(command, "commands", {}).items()]
    return "\n".join(parts)


def _section(heading: str, command: Any) -> str:
    rows = []
    for parameter in command.params:
        spelled = ", ".join(f"`{word}`" for word in [*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            spelled = f"`{parameter.metavar or parameter.name.upper()}`"
        rows.append([spelled, " ".join((getattr(parameter, "help", "") or "").split())])
    text = re.sub(r"\[/?bold\]", "**", (command.help or "").strip())
    options = f"\n{table(('option', 'meaning'), rows)}" if rows else ""
    return f"{heading}\n\n{text}\n{options}"


def alerts() -> str:
    """Every alert that a gateway knows."""
    rows = []
    for rule in RULES.values():
        side = "<" if rule.is_below else ">"
        fires = "yes" if rule.is_flag else f"{side} {rule.limit:g}"
        ends = "no" if rule.is_flag else f"{'≥' if rule.is_below else '≤'} {rule.clear:g}"
        figure = f"`{rule.figure}`" + (f", of {LEAST_REQUESTS} requests or more" if rule.guard else "")
        rows.append([f"`{rule.name}`", rule.severity, figure, fires, ends, f"{rule.for_s:g} s", rule.remedy])
    return table(("alert", "severity", "figure", ">fires", ">ends", ">after", "what to do"), rows)


def profiles() -> str:
    """Every class of machines, with what is known of it."""

    def giga(figure: Figure | None) -> str:
        return "–" if figure is None else f"{figure.value / 1e9:,.4g}"

    rows = []
    for row in PROFILES.values():
        peaks = [(name, row.peak(name)) for name in ("float16", "float8", "int8", "float32")]
        told = ", ".join(f"{name} {rate.value / 1e12:.4g}" for name, rate in peaks if rate is not None)
        cycles = [pair for cores in row.cores if cores.count is None for pair in cores.per_cycle.items()]
        told = told or ", ".join(f"{name} {rate.value:g} a core and cycle" for name, rate in cycles)
        watts = "–" if row.power_w is None else f"{row.power_w.value:g}"
        cells = [giga(row.memory_bytes), giga(row.read_bytes_per_s), told or "–", watts]
        rows.append([f"`{row.name}`", row.kind, row.title, *cells])
    return table(("profile", "kind", "machine", ">memory, GB", ">reads, GB/s", "T operations/s", ">W"), rows)


def fast_formats() -> str:
    """What runs fast on each class of machines, by engine."""
    rows = []
    for row in PROFILES.values():
        for name, support in row.engines.items():
            formats = " ".join(f"`{text}`" for text in support.formats) or "–"
            rows.append([f"`{row.name}`", name, formats, ", ".join(support.fusions) or "–", support.source])
    return table(("profile", "engine", "formats", "fused", "who says so"), rows)


def net_engines() -> str:
    """Every engine for nets, with the ways in which it is tried."""
    rows = []
    for name, row in NET_ENGINES.items():
        tried, more = (
            "; ".join(", ".join(key if value else f"no {key}" for key, value in each.items()) for each in settings)
            for settings in (row.settings, row.several)
        )
        rows.append([f"`{name}`", tried, more or "–", f"`{row.install}`", ", ".join(row.programs) or "–"])
    return table(("engine", "tried with", "several threads also with", "to have it", "also needs"), rows)


def mixture_version() -> str:
    """Which llama.cpp the mixtures were recorded from."""
    return f"Mixture rules as of `{TABLE_VERSION}`.\n"


def _commands() -> Mapping[str, Any]:
    group: Any = typer.main.get_command(app)
    commands: Mapping[str, Any] = group.commands
    return commands


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0].replace("\n", " ")


GENERATORS: Mapping[str, Callable[[], str]] = {
    "alerts": alerts,
    "architectures": architectures,
    "command-line": command_line,
    "containers": containers,
    "fast-formats": fast_formats,
    "file-types": file_types,
    "formats": formats,
    "gguf-formats": gguf_formats,
    "layouts": layouts,
    "methods": methods,
    "mixture-version": mixture_version,
    "net-engines": net_engines,
    "pre-tokenizers": pre_tokenizers,
    "profiles": profiles,
    "verbs": verbs,
}


def filled(text: str) -> str:
    """Return `text` with every generated region made anew."""

    def fill(match: re.Match[str]) -> str:
        if match[2] not in GENERATORS:
            sys.exit(f"no generator {match[2]!r}; there are {', '.join(GENERATORS)}")
        return f"{match[1]}{GENERATORS[match[2]]()}{match[3]}"

    return REGION.sub(fill, text)


def main(arguments: list[str]) -> int:
    """Write, or with --check only compare; return the exit code."""
    old = []
    pages = {
        path: filled(path.read_text(encoding="utf-8")) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    }
    pages |= {MONITORING / name: text for name, text in monitoring_files().items()}
    pages[SCHEMA] = json.dumps(card_schema(), indent=1, ensure_ascii=False) + "\n"
    for path, after in sorted(pages.items()):
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before != after:
            old.append(path.relative_to(ROOT).as_posix())
            if "--check" not in arguments:
                path.parent.mkdir(exist_ok=True)
                path.write_text(after, encoding="utf-8")
    print("\n".join(old) or "all generated tables are current")
    return 1 if old and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

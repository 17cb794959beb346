"""`tersor formats`: every number format and file type that tersor knows, from the table that the code uses."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tersor.cli.screen.output import JsonOption, console, print_json, significant, table
from tersor.containers.mixture_rules import FILE_TYPES, RULES, TABLE_VERSION, FileType
from tersor.core.format import Format
from tersor.formats import FORMATS

__all__ = ["formats"]


def formats(
    files: Annotated[
        bool, typer.Option("--files", help="List llama.cpp's file types (mixtures of formats) instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List all number formats: what they cost, which values they can take, who stores and runs them.

    bits and bytes: storage per weight, scales included. block: how many weights share scales. range and smallest
    step: in units of the scale that each block (row, tensor) brings along; "+ offset": a minimum or zero point too.
    """
    if as_json:
        rows = [_file_row(kind) for kind in FILE_TYPES.values()] if files else [_row(f) for f in FORMATS.values()]
        print_json({"file_types" if files else "formats": rows})
        return
    screen = console()
    screen.print(_file_table() if files else _format_table())
    if files:
        screen.print(
            f"\nRules of {TABLE_VERSION}. More bits layers: the first and last eighth, and every third between.\n"
            "A tied embedding counts as output. NAME_pure gives every matrix the one format. Norms and biases stay f32."
        )
    else:
        screen.print(
            "\nint groups of any size exist: int8, int4, int3, int2 with -tensor, -channel or -g128 (a group size), "
            "then -sym or -asym.\nWhat `quantize --format` takes: tersor formats --files"
        )


def _format_table() -> Table:
    made = table("format", ">bits", ">bytes", "block", "range", ">step", "in units of", "file", "engine")
    family = ""
    for row in FORMATS.values():
        if family and row.family != family:
            made.add_section()
        family = row.family
        made.add_row(
            row.name,
            f"{row.bits_per_weight:.4g}",
            f"{row.bytes_per_parameter:.4g}",
            str(row.block) if row.block else row.span,
            _range(row),
            significant(row.step, 2),
            _unit(row),
            ", ".join(row.containers) or "–",
            ", ".join(row.engines) or "–",
        )
    return made


def _range(row: Format) -> str:
    lowest, highest = significant(row.lowest, 2), significant(row.highest, 2)
    return f"±{highest}" if row.lowest == -row.highest else f"{lowest} … {highest}"


def _unit(row: Format) -> str:
    """The unit without the words on its offset, which --json has in full."""
    unit = row.unit.partition(" above ")[0].partition(",")[0]
    return "–" if unit == "1" else unit if unit == row.unit else f"{unit} + offset"


def _row(row: Format) -> dict[str, object]:
    return {
        "name": row.name,
        "family": row.family,
        "bits": row.bits,
        "bits_per_weight": row.bits_per_weight,
        "bytes_per_parameter": row.bytes_per_parameter,
        "block": row.block,
        "block_bytes": row.block_bytes,
        "span": row.span,
        "layout": list(row.layout),
        "lowest": row.lowest,
        "highest": row.highest,
        "step": row.step,
        "unit": row.unit,
        "largest": row.largest,
        "ggml_type": row.ggml_type,
        "containers": list(row.containers),
        "engines": list(row.engines),
        "fallback": row.fallback,
        "uses_importance": row.uses_importance,
    }


def _file_table() -> Table:
    made = table("file type", ">number", "matrices", ">bits", "but")
    for kind in FILE_TYPES.values():
        if not kind.name.endswith("_pure"):
            bits = FORMATS[kind.default].bits_per_weight
            made.add_row(kind.name, str(kind.number), kind.default, f"{bits:.4g}", _others(kind) or "–")
    return made


def _file_row(kind: FileType) -> dict[str, object]:
    return {
        "name": kind.name,
        "number": kind.number,
        "default": kind.default,
        "bits_per_weight_of_default": FORMATS[kind.default].bits_per_weight,
        "pure": kind.pure,
        "wants_importance": kind.wants_importance,
        "table": TABLE_VERSION,
    }


def _others(kind: FileType) -> str:
    """The exceptions of a file type in words; what holds only for rare shapes of models is left out."""
    if kind.pure:
        return ""
    groups: dict[tuple[str, str], list[str]] = {}
    for rule in RULES:
        is_rare = rule.eight_experts or rule.large_grouped or rule.importance or rule.misfit
        is_general = not rule.file_types and kind.default in rule.replaces
        if is_rare or rule.format == kind.default or not (kind.name in rule.file_types or is_general):
            continue
        where = "" if rule.layers == "all" else f"{rule.layers} layers"
        where = "where heads are grouped" if rule.grouped else where
        roles = "all but stacked experts" if rule.stacked is False else ", ".join(rule.roles)
        groups.setdefault((rule.format, where), []).append(roles)
    parts = [f"{name}: {', '.join(roles)}{f' ({where})' * bool(where)}" for (name, where), roles in groups.items()]
    return "; ".join(parts)

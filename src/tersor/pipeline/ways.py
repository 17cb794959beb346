"""The ways from a language model to an artefact, and which options mean something on which."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, Unpack, cast

from tersor.core.card import Artefact, Card, Seconds
from tersor.core.errors import SchemeError
from tersor.models import Model
from tersor.pipeline import quantize as plainly
from tersor.pipeline.calibrated.checkpoint import convert, plan_checkpoint, plan_conversion, round_plainly
from tersor.pipeline.calibrated.quantize import AS_IT_WILL, How, quantize_calibrated
from tersor.pipeline.planning.plan_file import GGUF
from tersor.pipeline.steps import provenance
from tersor.pipeline.steps.lossless import kept_codes, quantized_source
from tersor.pipeline.steps.planning import Choices, UserChoices, make_plan
from tersor.pipeline.steps.stored import source_bytes

__all__ = ["Way", "take", "way_of"]

Way: TypeAlias = Literal["rounded", "kept", "calibrated"]
"""rounded: each weight to its nearest, without a text; kept: with the codes of a quantized source; calibrated: by what
a text says.
"""

USUAL: Mapping[str, object] = {"search": "best", "fallback": True, **{one.name: one.default for one in fields(How)}}
"""What options are where nothing was asked for, if not nothing."""

_TEXT = "it belongs to calibration: give --calibration or --method"
_KEPT = "the codes of a quantized source are kept: start from the model that it was made of"
_FILE = "it is of GGUF files: leave out --container"
_FOUND = "calibration finds what inputs matter itself: give one of the two"

_OF_TEXT = {"save_imatrix": _TEXT, "device": _TEXT}
_OF_GGUF = dict.fromkeys(("output_format", "embedding_format", "split_max_bytes", "split_max_tensors"), _FILE)
REFUSED: Mapping[tuple[Way, bool], Mapping[str, str]] = {
    ("rounded", True): {**_OF_TEXT, "activations": AS_IT_WILL},
    ("rounded", False): {**_OF_TEXT, **_OF_GGUF, "importance": _FILE, "search": _FILE, "fallback": _FILE},
    ("kept", True): {**_OF_TEXT, "activations": AS_IT_WILL},
    ("kept", False): {
        **_OF_TEXT, **_OF_GGUF, **dict.fromkeys(("activations", "tensor_formats", "importance", "search"), _KEPT),
        "fallback": _FILE,
    },
    ("calibrated", True): {"importance": _FOUND},
    ("calibrated", False): {**_OF_GGUF, "importance": _FOUND, "search": _FILE, "fallback": _FILE},
}  # fmt: skip
"""(way, whether into a GGUF) → options that mean nothing there, and why."""
_WORDS = {"activations": "--round-activations", "tensor_formats": "--tensor-format", "importance": "--imatrix"}
_WORDS |= {"split_max_bytes": "--split-max-size", "fallback": "--no-fallback"}


def way_of(model: Model, how: How, *, is_calibrated: bool) -> Way:
    """Return the way that method, container and source ask for.

    is_calibrated  whether a text or statistics were given
    """
    if how.method != "rtn" or is_calibrated:
        return "calibrated"
    return "rounded" if quantized_source(model) is None else "kept"


def take(
    model: Model,
    format: str,  # noqa: A002 (the word of the command line)
    output: Path,
    how: How,
    *,
    is_calibrated: bool,
    dry_run: bool = False,
    measure: bool = True,
    **choices: Unpack[UserChoices],
) -> Card | None:
    """Make the artefact `output` and return its Card, None in every rank but the first.

    dry_run  return what the Card would say of formats and sizes; nothing is read or written
    measure  compare what plain rounding wrote with what it was
    Raises SchemeError for an option that means nothing on this way, and what the way raises.
    """
    way = way_of(model, how, is_calibrated=is_calibrated)
    check_options(way, how, choices)
    if dry_run:
        return _planned(way, model, format, output, how, choices)
    if way == "calibrated":
        return quantize_calibrated(model, format, output, how, **choices)
    if how.container == GGUF:
        kept = kept_codes(model, make_plan(model, format, **choices)) if way == "kept" else None
        with contextlib.closing(kept) if kept else contextlib.nullcontext():
            return plainly.quantize(model, format, output, made=kept, measure=measure, **_written(how), **choices)
    if way == "kept":
        return convert(model, format, output, how.container, command=how.command)
    return round_plainly(
        model, format, output, how.container, activations=how.activations, command=how.command, **choices
    )


def check_options(way: Way, how: How, choices: UserChoices) -> None:
    """Raise SchemeError for what was asked for and would not be done."""
    given = {**{field.name: getattr(how, field.name) for field in fields(How)}, **choices}
    for name, why in REFUSED[way, how.container == GGUF].items():
        if given.get(name) not in (None, (), {}, USUAL.get(name)):
            word = _WORDS.get(name, f"--{name.replace('_', '-')}")
            raise SchemeError(f"{word} means nothing here: {why}")
    if way == "calibrated" and given.get("search", "best") != "best" and how.method != "rtn":
        raise SchemeError(f"--search is of --method rtn; {how.method} looks for grids of its own")


def _written(how: How) -> dict[str, Any]:
    names = ("split_max_bytes", "split_max_tensors", "threads", "command", "progress")
    return {name: getattr(how, name) for name in names}


def _planned(  # noqa: PLR0917 (as `take` was given)
    way: Way, model: Model, name: str, output: Path, how: How, choices: UserChoices
) -> Card:
    """The Card of what would be made, as far as that is known without reading a weight."""
    told = cast("Choices", dict(choices))
    if way == "calibrated":
        text = how.statistics or (how.calibration and how.calibration.source)
        told |= {"method": how.method, "calibration": str(text)}
    if how.container == GGUF:
        return plainly.quantize(model, name, output, dry_run=True, **_written(how), **told)
    if way == "kept":
        plan = plan_conversion(model, name, how.container)
    else:
        plan = plan_checkpoint(model, name, how.container, told)
    return Card(
        name=model.name,
        plan=plan,
        sources={},
        source_bytes=source_bytes(model),
        artefacts=(Artefact(output.name, plan.nbytes, ""),),
        errors=(),
        seconds=Seconds(total=0.0),
        peak_memory_bytes=provenance.peak_memory_bytes(),
        versions=provenance.versions(),
        platform=provenance.machine(),
        command=how.command,
        dry_run=True,
        notes=(*model.notes, "bytes of the tensors: headers, settings and tokenizer come on top"),
    )

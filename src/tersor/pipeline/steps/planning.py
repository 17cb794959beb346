"""From a model and what the user asked for to a Plan; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

from tersor.containers.mixture_rules import TABLE_VERSION
from tersor.containers.mixtures import ModelFacts, choose, file_type, tensor_format
from tersor.core.arrays import Float32
from tersor.core.errors import SchemeError, ShapeError
from tersor.core.plan import Plan, PlannedTensor, Recipe
from tersor.formats import FORMATS
from tersor.kernels.codec import SEARCHES
from tersor.models.model import Model

__all__ = ["Choices", "Importance", "UserChoices", "make_plan"]

Importance = Mapping[str, Float32]
"""GGUF name → weight of each column's squared error, [columns], or [experts, columns] for stacked experts."""


class UserChoices(TypedDict, total=False):
    """What a user may say about formats beyond the file type; every key may be left out.

    tensor_formats    "PATTERN=FORMAT" texts: the first that matches a GGUF name wins over the mixture
    output_format     format of the output matrix, or of the embedding that stands in for it
    embedding_format  format of the token embedding
    search            "best" (ours, the default) or "ggml" (exactly llama.cpp's)
    importance        what calibration found; None: no preference
    fallback          False: refuse rows that a format cannot hold, instead of naming a stand-in
    """

    tensor_formats: Sequence[str]
    output_format: str | None
    embedding_format: str | None
    search: str
    importance: Importance | None
    fallback: bool


class Choices(UserChoices, total=False):
    """What shapes a plan beyond the file type.

    method       what chooses the grid points: a key of METHODS, rewrites before it
    calibration  the text that it knows, in words; it counts as importance where a file type asks for that
    """

    method: str
    calibration: str


def make_plan(model: Model, format: str, **choices: Unpack[Choices]) -> Plan:  # noqa: A002 (the word of the command line)
    """Decide the format of every tensor of `model` for file type `format` (a key of FILE_TYPES).

    Raises SchemeError for an unknown name or a pattern that matches nothing, ShapeError for a refused fallback.
    """
    recipe = _recipe(format, choices)
    importance = choices.get("importance") or {}
    _check_importance(model, importance)
    chosen = choose(
        recipe.format,
        model.tensors,
        ModelFacts.from_metadata(model.architecture, model.metadata),
        tensor_formats=recipe.tensor_formats,
        output_format=recipe.output_format or None,
        embedding_format=recipe.embedding_format or None,
        has_importance=bool(importance) or bool(recipe.calibration),
        fallback=recipe.fallback,
    )
    rows = []
    for tensor in model.tensors:
        name, reason, wanted = (choice := chosen[tensor.name]).format, choice.reason, choice.wanted
        nbytes = tensor.rows * FORMATS[name].row_bytes(tensor.columns)
        rows.append(PlannedTensor(tensor.name, tensor.shape, tensor.source_dtype, name, reason, wanted, nbytes))
    return Plan(model.name, model.architecture, recipe, tuple(rows))


def _recipe(name: str, choices: Choices) -> Recipe:
    search = choices.get("search", "best")
    if search not in SEARCHES:
        raise SchemeError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    output, embedding = choices.get("output_format"), choices.get("embedding_format")
    return Recipe(
        format=file_type(name).name,
        mixture=TABLE_VERSION,
        tensor_formats=tuple(choices.get("tensor_formats", ())),
        output_format=tensor_format(output) if output else "",
        embedding_format=tensor_format(embedding) if embedding else "",
        search=search,
        importance="given" if choices.get("importance") else "",
        fallback=choices.get("fallback", True),
        method=choices.get("method", "rtn"),
        calibration=choices.get("calibration", ""),
    )


def _check_importance(model: Model, importance: Importance) -> None:
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    for name, vector in importance.items():
        if name not in shapes:
            raise SchemeError(f"importance is given for {name!r}, but the model has no such tensor")
        shape = shapes[name]
        allowed = [(shape[-1],)] + ([(shape[0], shape[-1])] if len(shape) == 3 else [])
        if vector.shape not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ShapeError(f"{name} {shape}: importance must have shape {wanted}, got {vector.shape}")

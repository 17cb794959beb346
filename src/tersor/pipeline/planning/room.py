"""Whether a pass of gradients through a model has room, and where its hidden states go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tersor.analyse.projections import held_bytes
from tersor.core.errors import MissingError
from tersor.core.quantities import size
from tersor.decoder import Decoder
from tersor.formats import get
from tersor.models.model import Model
from tersor.pipeline.calibrated.memory import PROGRAM
from tersor.targets.memory import available_bytes

__all__ = ["folder_of_states", "outside_bytes"]

STATES_SHARE = 4
"""Part of the free memory that hidden states may take: a file that was just written is in memory anyway, if it fits."""


def folder_of_states(
    decoder: Decoder, shape: tuple[int, ...], candidates: int, wanted: bool | None, folder: Path
) -> Path | None:
    """Return where the states before all blocks go, None: into memory.

    shape       of the ids that go through, (sequences, tokens)
    candidates  of a matrix, at most
    wanted      True or False to decide it; None: in memory as long as they take little of it
    Raises MissingError where the rest of the pass has no room: it comes after hours of other work.
    """
    held, states = held_bytes(decoder, shape[0], shape[1], candidates)
    available = available_bytes()
    if available is not None and PROGRAM + held > available:
        raise MissingError(
            f"the pass of gradients needs {size(PROGRAM + held)}, {size(available)} are free: it holds a block, its "
            "gradients and what formats change in it; fewer --formats need less"
        )
    is_large = available is not None and states > available // STATES_SHARE
    return folder if (is_large if wanted is None else wanted) else None


def outside_bytes(model: Model, formats: Mapping[str, Sequence[str]]) -> int:
    """Return the bytes of embeddings and output matrix while they are rounded: of the larger one and all candidates."""
    sizes = {t.name: (t.rows, t.columns) for t in model.tensors if t.layer is None and t.name in formats}
    candidates = (
        rows * get(kind).row_bytes(columns) for name, (rows, columns) in sizes.items() for kind in formats[name]
    )
    return 4 * max((rows * columns for rows, columns in sizes.values()), default=0) + 2 * sum(candidates)

"""Whether a pass of gradients through a model has room, and where its hidden states go."""

from __future__ import annotations

from pathlib import Path

from tersor.analyse.projections import held_bytes
from tersor.core.errors import MissingError
from tersor.core.quantities import size
from tersor.decoder import Decoder
from tersor.pipeline.calibrated.memory import PROGRAM
from tersor.targets.memory import available_bytes

__all__ = ["folder_of_states"]

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

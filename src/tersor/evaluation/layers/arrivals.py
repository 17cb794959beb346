"""How far activations have moved: the run of an artefact beside the run of full precision, on the same tokens."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.evaluation import LayerError
from tersor.engines.activations import Activations
from tersor.evaluation.layers.weights import Sums

__all__ = ["with_arrivals"]

_NODE = re.compile(r"(l_out|ffn_inp|kqv_out)-(\d+)|result_norm")
_KINDS = {"l_out": "block", "ffn_inp": "attention residual", "kqv_out": "attention"}


def with_arrivals(rows: Sequence[LayerError], reference: Activations, subject: Activations) -> tuple[LayerError, ...]:
    """Return `rows` with `arriving_db`, and a row for each activation that belongs to no weight, in order of computing.

    A weight's arriving error is that of its product (or of the rows looked up in it) in the run of the artefact, where
    everything before it is quantized too. What the engine does to activations (llama.cpp rounds them to 8 bits before
    it multiplies them with quantized weights) is in it. Activations are called "blk.3" (what leaves block 3),
    "blk.3.attention", …, and "result_norm".
    A weight used at both ends (tied embeddings) has its product in a row of its own, of kind "output".
    """
    made = [_weight_row(row, reference, subject) for row in rows]
    for row in rows:
        name = f"product {row.name}"
        if f"lookup {row.name}" in reference and name in reference and name in subject:
            sums = _compared(reference.read(name), subject.read(name))
            made.append(
                dataclasses.replace(
                    row,
                    name=f"{row.name} as output",
                    kind="output",
                    arriving_db=sums.sqnr_db,
                    findings=(),
                )
            )
    return (*made, *_activation_rows(reference, subject))


def _weight_row(row: LayerError, reference: Activations, subject: Activations) -> LayerError:
    lookup, product = f"lookup {row.name}", f"product {row.name}"
    name = lookup if lookup in reference else product
    if name not in reference or name not in subject:
        return row
    arriving = _compared(reference.read(name), subject.read(name)).sqnr_db
    # Looking a row up has no input that could be off: what enters is what arrives.
    return dataclasses.replace(row, arriving_db=arriving, entering_db=arriving if name == lookup else row.entering_db)


def _activation_rows(reference: Activations, subject: Activations) -> Iterator[LayerError]:
    for name in reference.places:
        match = _NODE.fullmatch(name)
        if match is None or name not in subject:
            continue
        sums = _compared(reference.read(name), subject.read(name))
        kind = _KINDS.get(match[1] or "", name)
        layer = int(match[2]) if match[2] else None
        stem = f"blk.{layer}" if layer is not None else name
        yield LayerError(
            name=stem if kind in ("block", name) else f"{stem}.{kind.replace(' ', '_')}",
            kind=kind,
            layer=layer,
            sqnr_db=sums.sqnr_db,
            cosine=sums.cosine,
            largest=sums.largest_in_rms,
            arriving_db=sums.sqnr_db,
        )


def _compared(wanted: Float32, found: Float32) -> Sums:
    """Sums over rows of both; a row that is not finite counts as zero."""
    sums = Sums()
    if wanted.shape == found.shape:
        sums.add(np.nan_to_num(wanted), np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))
    return sums

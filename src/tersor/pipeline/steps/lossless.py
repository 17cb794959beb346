"""What loses nothing: a GGUF with the very weights of a checkpoint, and the codes of one that is quantized already."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tersor.containers.lossless import Kept, gathered_codes
from tersor.containers.mixtures import is_quantizable
from tersor.core.arrays import Bytes, Float32
from tersor.core.card import Card, TensorError
from tersor.core.errors import SchemeError, ShapeError, UnsupportedError
from tersor.core.plan import Plan
from tersor.models.model import Model, ModelTensor
from tersor.models.quantized_checkpoint import QuantizedCheckpoint, open_quantized
from tersor.models.transforms import Affine, Source, origin
from tersor.pipeline.quantize import quantize
from tersor.targets.memory import machine_bytes

__all__ = ["KeptCodes", "kept_codes", "lossless_gguf", "quantized_source"]

MEMORY_SHARE = 0.4
"""Share of this machine's memory that float32 weights may take; beyond it every matrix keeps its own 16 bits."""
_HALVES = {"BF16": "bf16", "F16": "f16"}


def lossless_gguf(model: Model, folder: Path) -> Path:
    """Return a GGUF that holds exactly the weights of `model`: its own file where it is one, else one made in `folder`.

    Matrices are written as float32 even where the checkpoint has 16 bits: llama.cpp rounds the *activations* to 16
    bits before it multiplies them with 16-bit weights, and a reference should not round. Only where float32 would fill
    MEMORY_SHARE of the machine or the disk do they keep their type, which loses nothing of the weights either.

    `folder` must be there; the file in it is the caller's to delete. Raises what reading and `quantize` raise.
    """
    own = next((path for path in model.files if path.suffix == ".gguf"), None)
    if own is not None:
        return own
    path = folder / "reference.gguf"
    kept = () if _has_room(model, folder) else tuple(_own_types(model))
    quantize(model, "f32", path, tensor_formats=kept, measure=False)
    return path


def _has_room(model: Model, folder: Path) -> bool:
    needed = 4 * sum(tensor.rows * tensor.columns for tensor in model.tensors)
    if needed > 0.9 * shutil.disk_usage(folder).free:
        return False
    memory = machine_bytes()
    return memory is None or needed <= MEMORY_SHARE * memory


def _own_types(model: Model) -> list[str]:
    """PATTERN=FORMAT for each matrix that 16 bits hold exactly: stored so, and copied without arithmetic."""
    return [
        f"^{re.escape(tensor.name)}$={_HALVES[tensor.source_dtype]}"
        for tensor in model.tensors
        if is_quantizable(tensor) and tensor.source_dtype in _HALVES and not _is_computed(tensor)
    ]


def _is_computed(tensor: ModelTensor) -> bool:
    return isinstance(tensor.values, Affine)


def quantized_source(model: Model) -> Path | None:
    """Return the folder of the checkpoint that `model` was loaded from, where it is quantized already; else None."""
    if not model.config.get("quantization_config"):
        return None
    return model.folder


def kept_codes(model: Model, plan: Plan) -> KeptCodes | None:
    """Return the codes that the source of `model` has for the formats of `plan`; None where it is not quantized."""
    folder = quantized_source(model)
    if folder is None:
        return None
    tensors = {tensor.name: tensor for tensor in model.tensors}
    return KeptCodes(open_quantized(folder, model.weights), tensors, _formats(plan))


def _formats(plan: Plan) -> dict[str, str]:
    return {row.name: row.format for row in plan.tensors}


@dataclass
class KeptCodes:
    """The Findings of a conversion: rows with the codes of the source, and what became of every matrix.

    One matrix is held at a time. A matrix whose grid does not fit its format is rounded again; the Card names it.
    """

    checkpoint: QuantizedCheckpoint
    tensors: dict[str, ModelTensor]
    formats: dict[str, str]
    changes: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    _held: tuple[str, Kept | None] = ("", None)

    def rows(self, name: str, start: int, stop: int) -> Bytes | None:
        """Return packed rows with the codes of the source; None where they have to be rounded (again)."""
        if self._held[0] != name:
            self._held = (name, self._gathered(name))
        kept = self._held[1]
        return None if kept is None else kept.tensor.data[start:stop]

    def changed(self, quantized: Collection[str]) -> Iterator[tuple[str, Float32]]:
        """Yield nothing: what is not quantized stays as it is."""
        del quantized
        yield from ()

    def onto(self, card: Card) -> Card:
        """Return the Card with what became of every matrix that the source had quantized."""
        errors = tuple(self._error(error) for error in card.errors)
        return replace(card, errors=errors, notes=(*card.notes, *self._notes()))

    def close(self) -> None:
        """Release all files."""
        self.checkpoint.close()

    def _gathered(self, name: str) -> Kept | None:
        tensor = self.tensors[name]
        sources = origin(tensor.values, 0, tensor.rows).sources
        if not any(isinstance(one, Source) and one.name in self.checkpoint.quantized_names for one in sources):
            return None
        try:
            kept = gathered_codes(tensor, self.checkpoint, self.formats[name])
        except (SchemeError, ShapeError, UnsupportedError) as error:
            self.refusals[name] = str(error)
            return None
        self.changes[name] = kept.change
        return kept

    def _error(self, error: TensorError) -> TensorError:
        if error.name in self.refusals:
            return replace(error, method="rounded again", note=self.refusals[error.name])
        change = self.changes.get(error.name)
        if change is None:
            return error
        return replace(error, method="codes kept", note=_moved(change) if change else "")

    def _notes(self) -> Iterator[str]:
        same = [name for name, change in self.changes.items() if not change]
        if same:
            yield f"{len(same)} matrices keep the codes of the source and mean the same numbers"
        if len(same) < len(self.changes):
            count = len(self.changes) - len(same)
            yield f"not lossless: {count} matrices keep the codes of the source, {_moved(max(self.changes.values()))}"
        if self.refusals:
            name, reason = next(iter(self.refusals.items()))
            yield f"not lossless: {len(self.refusals)} matrices were rounded again; {name}: {reason}"


def _moved(change: float) -> str:
    return f"scales or minima are rounded to fewer bits: no weight moves by more than {change:.2g} of a step"

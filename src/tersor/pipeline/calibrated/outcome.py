"""What became of one matrix, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One matrix (one expert of a stacked one) after its method.

    method     what made the rows that were kept: the method asked for, or "rtn" where that was better or all there was
    error      output error of the rows kept on the inputs behind the quantized prefix, root of Σ(x·(w - q))² / Σ(x·w)²
               over calibration tokens; None where that is not known. A method that makes good the errors of earlier
               layers aims at the full-precision outputs instead, and may have a larger one than rounding
    rtn_error  the same of importance-weighted rounding
    tokens     calibration tokens that passed through it
    reason     why it is not the method's own result, "" where it is
    """

    name: str
    method: str
    error: float | None
    rtn_error: float | None
    tokens: int
    reason: str = ""
    expert: int | None = None

    def to_object(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

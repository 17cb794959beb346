"""Types of the Open Inference Protocol, and numpy's."""

from __future__ import annotations

import numpy as np

__all__ = ["KINDS", "NAMES"]

KINDS: dict[str, str] = {
    "BOOL": "|b1", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "|i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""Types of the protocol → numpy's."""
NAMES = {np.dtype(kind).str: name for name, kind in KINDS.items()}
"""The other way round."""

"""The array types that cross module borders, named once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Bytes", "Float32"]

Float32: TypeAlias = npt.NDArray[np.float32]
"""Weights, activations, logits: C-contiguous float32."""

Bytes: TypeAlias = npt.NDArray[np.uint8]
"""Packed blocks, exactly as a container stores them."""

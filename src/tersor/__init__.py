"""tersor: quantize any trained model, prove what it cost, run it without fear."""

from __future__ import annotations

__version__ = "0.1.0"

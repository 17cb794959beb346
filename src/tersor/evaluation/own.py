"""Metrics that users bring: functions that are not ours, and fail in their own ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import SchemeError

__all__ = ["applied"]


def applied(name: str, function: Callable[..., npt.ArrayLike], *given: Any) -> npt.NDArray[np.float64]:
    """Return what the metric `name` makes of `given`; SchemeError names it, whatever it raised."""
    try:
        return np.asarray(function(*given), np.float64)
    except Exception as error:
        raise SchemeError(
            f"--metric {name}: {type(error).__name__}: {error}; the function is your own: TERSOR_TRACEBACK=1 shows "
            "where it failed"
        ) from error

"""LOAD: checkpoints, GGUF files and hub ids as a Model whose weights are read when asked for."""

from __future__ import annotations

from tersor.models.load import load
from tersor.models.model import Model, ModelTensor

__all__ = ["Model", "ModelTensor", "load"]

"""Every error that tersor raises on purpose.

TersorError                what went wrong, with which values, and what would be right
├── SchemeError            a format, method or option that does not exist or does not combine   (ValueError)
├── ShapeError             a tensor whose shape does not fit                                      (ValueError)
├── FormatError            a file that is broken, hostile or of a kind we do not read             (ValueError)
├── UnsupportedError       a model, tokenizer or tensor that no table row covers
├── QualityError           a result that is worse than it must be, and was not written
├── EngineError            an engine (llama.cpp, …) refused, crashed or timed out
└── MissingError           an optional dependency or file that this action needs
"""

from __future__ import annotations

__all__ = [
    "EngineError",
    "FormatError",
    "MissingError",
    "QualityError",
    "SchemeError",
    "ShapeError",
    "TersorError",
    "UnsupportedError",
]


class TersorError(Exception):
    """Base of all deliberate errors; the command line prints its text and exits with 1."""


class SchemeError(TersorError, ValueError):
    """A format, method or option that does not exist, or a combination that cannot work."""


class ShapeError(TersorError, ValueError):
    """A tensor whose shape does not fit what it is used for."""


class FormatError(TersorError, ValueError):
    """A file that is truncated, inconsistent or not of the kind it claims to be."""


class UnsupportedError(TersorError):
    """A model, tokenizer or tensor that no table row covers; names it and the remedy."""


class QualityError(TersorError):
    """A finished result that is worse than a simpler one would be; says by how much and how to have it all the same."""


class EngineError(TersorError):
    """An external engine refused an artefact, crashed, or ran out of time."""


class MissingError(TersorError):
    """An optional dependency or a file that this action needs; names the install command."""

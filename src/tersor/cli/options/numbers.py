"""Options that take several numbers at once."""

from __future__ import annotations

from tersor.core.errors import SchemeError

__all__ = ["whole_numbers"]


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Return the numbers in `text`, with commas between; SchemeError names the option.

    >>> whole_numbers("1, 2,4", "--batches"), whole_numbers("", "--threads")
    ((1, 2, 4), ())
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise SchemeError(f"{option} takes whole numbers with commas between, such as 1,2,4; got {text!r}")
    return tuple(int(word) for word in words)

from __future__ import annotations

import math

import pytest

from tersor.core.errors import FormatError
from tersor.core.metadata import MetadataEntry, MetadataKind, MetadataValue


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (255, "u8"), (-128, "i8"), (2**32 - 1, "u32"), (2**64 - 1, "u64"), (0.1, "f32"), (math.inf, "f32"),
        (1e300, "f64"), (True, "bool"), ("x", "str"), ([], "[i32]"), ([1, -1], "[i32]"), ([0.5, math.nan], "[f32]"),
        (["a"], "[str]"),
        ([True], "[bool]"),
    ],
)  # fmt: skip
def test_a_value_that_fits_is_kept(value: MetadataValue, kind: MetadataKind) -> None:
    assert MetadataEntry(value, kind).value is value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (256, "u8"), (-1, "u32"), (2**31, "i32"), (1.0, "u32"), (True, "u32"), (1, "f32"), (1e39, "f32"), (1, "bool"),
        (3, "str"), ([1, 2**31], "[i32]"), ([1, True], "[i32]"), ([1.0, 2], "[f32]"), (["a", 1], "[str]"), (1, "[i32]"),
        ([1], "i32"),
    ],
)  # fmt: skip
def test_a_value_that_would_change_is_refused(value: MetadataValue, kind: MetadataKind) -> None:
    with pytest.raises(FormatError, match="cannot be"):
        MetadataEntry(value, kind)

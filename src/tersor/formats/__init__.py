"""The table of number formats: `FORMATS` lists them, `get` finds one by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.formats import gguf, micro, scaled
from tersor.formats.integer import integer_format

__all__ = ["ALIASES", "FORMATS", "get"]

INTEGERS = (
    *("int8-tensor-sym", "int8-tensor-asym", "int8-channel-sym", "int8-channel-asym", "int8-g128-sym"),
    *("int4-channel-sym", "int4-g128-sym", "int4-g128-asym", "int4-g32-sym", "int4-g32-asym"),
    *("int3-channel-sym", "int3-g128-sym", "int3-g128-asym", "int2-channel-sym", "int2-g64-sym", "int2-g64-asym"),
)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {fmt.name: fmt for fmt in (*gguf.FORMATS, *scaled.FORMATS, *micro.FORMATS, *map(integer_format, INTEGERS))}
)
"""Every named format; integer groups of other sizes and nvfp4 of other global scales exist too, `get` makes them."""

ALIASES: Mapping[str, str] = MappingProxyType({"ternary": "tq2_0", "q1_0": "binary", "fp16": "f16", "fp32": "f32"})


@lru_cache(maxsize=256)
def get(name: str) -> Format:
    """Find a format by its name (upper or lower case), an alias, or the spelling of an integer group or global scale.

    >>> get("Q4_K").bits_per_weight
    4.5
    >>> get("int4-g64").name
    'int4-g64-sym'
    """
    wanted = name.lower()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in FORMATS:
        return FORMATS[wanted]
    if wanted.startswith("int"):
        return integer_format(wanted)
    if wanted.startswith(micro.PREFIX):
        return micro.micro_named(wanted)
    near = difflib.get_close_matches(wanted, [*FORMATS, *ALIASES], n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(FORMATS)}"
    raise SchemeError(f"no number format {name!r}; {hint}")

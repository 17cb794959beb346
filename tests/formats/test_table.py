from __future__ import annotations

import gguf
import pytest

from tersor.core.errors import SchemeError
from tersor.formats import ALIASES, FORMATS, get
from tersor.kernels import reference
from tersor.kernels.layouts import LAYOUTS

PROMISED = {
    *("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k"),
    *("iq4_nl", "iq4_xs", "mxfp4", "tq1_0", "tq2_0", "fp8_e4m3", "fp8_e5m2", "nf4", "nvfp4", "binary"),
}


def test_every_promised_format_is_in_the_table() -> None:
    assert set(FORMATS) >= PROMISED
    assert {name.split("-")[0] for name in FORMATS if name.startswith("int")} == {"int8", "int4", "int3", "int2"}
    assert set(LAYOUTS) == set(reference.KERNELS) <= set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_consistent(name: str) -> None:
    fmt = FORMATS[name]
    assert fmt.name == name
    assert fmt.lowest < fmt.highest
    assert 0 < fmt.step <= fmt.highest - fmt.lowest
    assert fmt.bits_per_weight >= fmt.bits
    assert fmt.layout
    assert bool(fmt.containers) == bool(fmt.engines)
    if "gguf" in fmt.containers:
        assert fmt.ggml_type is not None


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.ggml_type is not None])
def test_types_and_sizes_equal_those_of_gguf(name: str) -> None:
    fmt = FORMATS[name]
    kind = gguf.GGMLQuantizationType(fmt.ggml_type)
    assert kind.name.lower() == ("q1_0" if name == "binary" else name)
    assert gguf.GGML_QUANT_SIZES[kind] == (fmt.block, fmt.block_bytes)


@pytest.mark.parametrize("name", FORMATS)
def test_fallbacks_end_at_a_format_that_holds_any_row(name: str) -> None:
    fmt, seen = FORMATS[name], []
    while fmt.fallback is not None:
        seen.append(fmt.name)
        fmt = get(fmt.fallback)
        assert fmt.name not in seen
    assert all(fmt.holds(columns) for columns in (1, 7, 33, 576))


def test_fallbacks_are_those_of_llama_cpp() -> None:
    taken = {name: FORMATS[name].fallback for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "tq1_0")}
    expected = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}
    assert taken == expected | {"tq1_0": "q4_0"}
    assert {FORMATS[name].fallback for name in ("q4_0", "q8_0", "q5_1", "iq4_nl", "mxfp4")} == {"f16"}


def test_names_are_found_in_any_case_and_by_alias() -> None:
    assert get("Q6_K") is FORMATS["q6_k"]
    for alias, name in ALIASES.items():
        assert get(alias) is FORMATS[name]


def test_an_unknown_name_gets_near_names() -> None:
    with pytest.raises(SchemeError, match=r"no number format 'q4_kk'; did you mean q4_k"):
        get("q4_kk")
    with pytest.raises(SchemeError, match=r"no number format '###'; there are f32, f16"):
        get("###")

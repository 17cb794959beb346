from __future__ import annotations

from typing import Any

import pytest

from tersor.core.errors import FormatError, TersorError, UnsupportedError
from tersor.formats.hf.settings import Settings, read_settings

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
}


def test_each_method_is_read() -> None:
    assert read_settings(GPTQ, "c") == Settings("gptq", 4, 1)
    assert read_settings({**GPTQ, "checkpoint_format": "gptq_v2", "bits": 3}, "c") == Settings("gptq", 3, 2)
    assert read_settings({"quant_method": "awq", "bits": 4, "version": "GEMM"}, "c") == Settings("awq", 4)
    inner = {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
    assert read_settings(inner, "c") == Settings("gptq", 4, 1)
    for kind in ("pack-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized"):
        found = read_settings({**PACKED, "format": kind}, "c")
        assert found == Settings("compressed-tensors", widths=frozenset({4}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "must be an object, got list"),
        ({"quant_method": "bitsandbytes"}, "already quantized with 'bitsandbytes'; load the original model"),
        ({}, "already quantized with 'unknown'"),
        ({**GPTQ, "bits": 5}, "bits = 5; 2, 3, 4, 8 can be read"),
        ({**GPTQ, "bits": True}, "bits = True"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'; gptq and gptq_v2 can be read"),
        ({**GPTQ, "checkpoint_format": ["gptq"]}, "checkpoint_format"),
        ({**GPTQ, "dynamic": {"+:layers.0": {"bits": 8}}}, "dynamic = .* cannot be read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq in version 'gemv'; only gemm"),
        ({"quant_method": "awq", "bits": 8}, "bits = 8; 4 can be read"),
        ({**PACKED, "format": "marlin-24"}, "compressed-tensors as 'marlin-24'"),
        ({**PACKED, "format": "mxfp8-quantized"}, "compressed-tensors as 'mxfp8-quantized'"),
        ({**PACKED, "transform_config": {"r1": 1}}, "transform_config .* changes the weights"),
        ({**PACKED, "config_groups": {}}, "config_groups of quantization_config must be an object"),
        ({**PACKED, "config_groups": {"a": {"weights": {"num_bits": "4"}}}}, "'a' must say weights.num_bits"),
        ({**PACKED, "config_groups": {"a": 3}}, "'a' must say weights.num_bits"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(TersorError, match=message) as caught:
        read_settings(values, "config.json")
    assert isinstance(caught.value, (FormatError, UnsupportedError))
    assert str(caught.value).startswith("config.json: ")


def test_modules_that_are_skipped_are_no_obstacle() -> None:
    assert read_settings({**GPTQ, "dynamic": {"-:^lm_head$": {}}}, "c") == Settings("gptq", 4, 1)

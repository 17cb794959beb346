from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.containers.hf.table import CONTAINERS, format_for
from tersor.core.errors import SchemeError
from tersor.formats import get
from tersor.models.quantized_checkpoint import open_quantized

SOME = {"model.layers.0.mlp.up_proj": "int4-g32-sym-bf16"}
PACKED = {
    "int4-g32-sym-bf16": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
    "int8-channel-asym-f16": {
        "num_bits": 8, "type": "int", "symmetric": False, "strategy": "channel", "group_size": None,
    },
}  # fmt: skip


def settings(container: str, name: str, *, activations: bool = False) -> dict[str, Any]:
    return CONTAINERS[container].settings({"model.layers.0.mlp.up_proj": get(name)}, ["lm_head"], activations)


def test_the_configuration_of_gptq_has_the_keys_that_vllm_needs() -> None:
    assert settings("gptq", "int4-g32-sym-bf16") == {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
        "checkpoint_format": "gptq", "lm_head": False,
    }  # fmt: skip
    second = settings("gptq_v2", "int8-channel-asym-f16")
    assert (second["checkpoint_format"], second["sym"], second["group_size"]) == ("gptq_v2", False, -1)


def test_the_configuration_of_awq_has_the_keys_that_vllm_needs() -> None:
    assert settings("awq", "int4-g32-sym-bf16") == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_the_configuration_of_packed_integers_says_what_they_are(name: str) -> None:
    made = settings("compressed-tensors", name)
    assert made["format"] == "pack-quantized"
    assert made["quantization_status"] == "compressed"
    assert made["ignore"] == ["lm_head"]
    group = made["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"]
    assert group["weights"] == {**PACKED[name], "dynamic": False}
    assert group["input_activations"] is None


def test_activations_are_rounded_token_by_token_only_where_asked_for() -> None:
    group = settings("compressed-tensors", "int8-channel-sym", activations=True)["config_groups"]["group_0"]
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert group["input_activations"] == inputs
    assert group["format"] == "int-quantized"
    made = settings("compressed-tensors", "fp8_e4m3", activations=True)["config_groups"]["group_0"]
    assert (made["format"], made["input_activations"]["type"]) == ("float-quantized", "float")
    with pytest.raises(SchemeError, match="activations of 8 bits go with int8-channel-sym and fp8_e4m3, not with int4"):
        settings("compressed-tensors", "int4-g32-sym-bf16", activations=True)
    with pytest.raises(SchemeError, match="gptq quantizes weights only"):
        settings("gptq", "int4-g32-sym-bf16", activations=True)


@pytest.mark.parametrize(
    ("container", "name", "dtype", "expected"),
    [
        ("gptq", "int4-g128", "BF16", "int4-g128-sym-bf16"),
        ("awq", "int4-g128-asym", "F32", "int4-g128-asym-f16"),
        ("gptq", "int4-g128-sym-f16", "BF16", "int4-g128-sym-f16"),
        ("gptq", "int8-channel", "F16", "int8-channel-sym-f16"),
        ("compressed-tensors", "int8-channel", "BF16", "int8-channel-sym"),
        ("compressed-tensors", "fp8_e4m3", "BF16", "fp8_e4m3"),
    ],
)
def test_scales_follow_the_type_of_the_model(container: str, name: str, dtype: str, expected: str) -> None:
    assert format_for(container, get(name), dtype).name == expected


def test_the_configuration_of_nvfp4_is_the_one_of_weights_alone() -> None:
    made = settings("compressed-tensors", "nvfp4")
    assert made["format"] == "nvfp4-pack-quantized"
    group = made["config_groups"]["group_0"]
    assert group["weights"] == {
        "num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16,
        "dynamic": False, "scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn",
    }  # fmt: skip
    assert group["input_activations"] is None
    with pytest.raises(
        SchemeError, match="activations of 8 bits go with int8-channel-sym and fp8_e4m3, not with nvfp4"
    ):
        settings("compressed-tensors", "nvfp4", activations=True)


def test_matrices_of_nvfp4_with_several_global_scales_are_one_group() -> None:
    formats = {"a": get("nvfp4"), "b": get("nvfp4-scale300"), "c": get("fp8_e4m3")}
    groups = CONTAINERS["compressed-tensors"].settings(formats, [], False)["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("container", ["gptq", "gptq_v2", "awq"])
def test_transformers_understands_the_configuration(container: str) -> None:
    pytest.importorskip("transformers", reason="its configuration classes judge: pip install 'tersor[torch]'")
    config: Any = importlib.import_module("transformers.utils.quantization_config")
    kind = config.AwqConfig if container == "awq" else config.GPTQConfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        made = kind.from_dict(settings(container, "int4-g32-sym-bf16"))
    assert (made.bits, made.group_size) == (4, 32)


@pytest.mark.parametrize(
    "name",
    [
        *("int4-g32-sym-bf16", "int4-g32-asym-bf16", "int4-channel-sym-f16", "int8-channel-asym-f16"),
        *("int2-g32-asym-f16", "int8-channel-sym", "fp8_e4m3", "mxfp4", "nvfp4", "nvfp4-scale300.0"),
    ],
)
def test_the_compressed_tensors_library_decodes_the_same_numbers(write: Any, name: str) -> None:
    pytest.importorskip("compressed_tensors", reason="its own decoder judges: pip install compressed-tensors")
    torch: Any = importlib.import_module("torch")
    folder: Path = write("compressed-tensors", name)
    values = json.loads((folder / "config.json").read_text())["quantization_config"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        compressors: Any = importlib.import_module("compressed_tensors.compressors")
        quantization: Any = importlib.import_module("compressed_tensors.quantization")
        config = quantization.QuantizationConfig.model_validate(values)
        scheme = config.config_groups["group_0"]
        decoder = compressors.BaseCompressor.get_value_from_registry(scheme.format or values["format"])
        stored = importlib.import_module("safetensors.torch").load_file(folder / "model.safetensors")
        ours = open_quantized(folder)
        for tensor in ours.quantized_names:
            prefix = tensor.removesuffix("weight")
            state = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            if "fp4" not in name:  # it computes in the type of the scales, and here in float32
                state["weight_scale"] = state["weight_scale"].to(torch.float32)
            weight = decoder.decompress(state, scheme)["weight"]
            wanted = torch.from_numpy(ours.read(tensor)).to(weight.dtype)  # codes of 4 bits become bfloat16
            np.testing.assert_array_equal(weight.float().numpy(), wanted.float().numpy())
            if name in ("mxfp4", "nvfp4"):
                np.testing.assert_array_equal(weight.float().numpy(), ours.read(tensor))
        ours.close()

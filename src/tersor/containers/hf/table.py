"""The table of checkpoint containers: which formats each holds, in which tensors, and what its config.json says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from tersor.core.errors import SchemeError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.formats.hf.awq import Awq
from tersor.formats.hf.compressed_tensors import (
    PackQuantized,
    byte_parts,
    encode_bytes,
    encode_mx,
    encode_nv,
    is_byte_format,
    mx_parts,
    nv_parts,
)
from tersor.formats.hf.gptq import Gptq
from tersor.formats.hf.groups import Part, integer_rules
from tersor.formats.hf.words import Stored
from tersor.formats.integer import IntegerRules
from tersor.formats.micro import MicroRules

__all__ = ["CONTAINERS", "Container", "container", "format_for", "is_written_here"]

Settings: TypeAlias = dict[str, Any]
HALVES = {"BF16": "bf16"}
WORDS = {"pack": "pack-quantized", "mx": "mxfp4-pack-quantized", "nv": "nvfp4-pack-quantized"}
NV_SCALE = "torch.float8_e4m3fn"


@dataclass(frozen=True, slots=True)
class Container:
    """A row.

    parts     format, shape → the tensors that stand in the place of a weight; SchemeError, ShapeError if it cannot
    encode    the tensors themselves, codes verbatim
    settings  (formats by module, modules that stay as they are, dynamic activations) → quantization_config
    mixes     whether matrices of one checkpoint may have different formats
    """

    name: str
    parts: Callable[[Format, tuple[int, ...]], dict[str, Part]]
    encode: Callable[[QuantizedTensor], dict[str, Stored]]
    settings: Callable[[Mapping[str, Format], Sequence[str], bool], Settings]
    mixes: bool


def container(name: str) -> Container:
    """Return the row; SchemeError names what there is."""
    if name not in CONTAINERS:
        raise SchemeError(f"no checkpoint container {name!r}; there are {', '.join(CONTAINERS)}")
    return CONTAINERS[name]


def format_for(name: str, fmt: Format, source_dtype: str) -> Format:
    """Return the format that the container `name` holds in place of `fmt`: with scales as wide as the model's weights.

    Engines round scales to the type that the model computes in, so a scale of that type is the one they use.

    >>> format_for("gptq", get("int4-g128"), "BF16").name
    'int4-g128-sym-bf16'
    """
    container(name)
    rules = fmt.rules
    keeps = name == "compressed-tensors" and is_byte_format(fmt)
    if not isinstance(rules, IntegerRules) or rules.scale_type != "f32" or keeps:
        return fmt
    return get(f"{fmt.name}-{HALVES.get(source_dtype, 'f16')}")


def _gptq_settings(version: int) -> Callable[[Mapping[str, Format], Sequence[str], bool], Settings]:
    def settings(formats: Mapping[str, Format], left: Sequence[str], activations: bool) -> Settings:
        _refuse_activations(activations, "gptq")
        fmt = next(iter(formats.values()))
        made: Settings = {
            "quant_method": "gptq",
            "bits": int(fmt.bits),
            "group_size": fmt.block or -1,
            "desc_act": False,
            "sym": integer_rules(fmt, "gptq").symmetric,
            "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
            "lm_head": "lm_head" in formats,
        }
        skipped = [module for module in left if module != "lm_head"]
        if skipped:
            made["dynamic"] = {f"-:^{re.escape(module)}$": {} for module in skipped}
        return made

    return settings


def _awq_settings(formats: Mapping[str, Format], left: Sequence[str], activations: bool) -> Settings:
    _refuse_activations(activations, "awq")
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": next(iter(formats.values())).block or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(left) or None,
    }


def _refuse_activations(activations: bool, name: str) -> None:
    if activations:
        raise SchemeError(f"{name} quantizes weights only; activations are for compressed-tensors with 8 bits")


def _ct_parts(fmt: Format, shape: tuple[int, ...]) -> dict[str, Part]:
    parts = {"pack": PackQuantized().parts, "byte": byte_parts, "mx": mx_parts, "nv": nv_parts}
    return parts[_ct_kind(fmt)](fmt, shape)


def _ct_encode(tensor: QuantizedTensor) -> dict[str, Stored]:
    encoders = {"pack": PackQuantized().encode, "byte": encode_bytes, "mx": encode_mx, "nv": encode_nv}
    return encoders[_ct_kind(tensor.format)](tensor)


def _ct_kind(fmt: Format) -> str:
    """Tell which tensors hold a format: 16-bit scales go with packed integers, float32 ones with whole bytes."""
    if fmt.name == "mxfp4":
        return "mx"
    if isinstance(fmt.rules, MicroRules):
        return "nv"
    if is_byte_format(fmt) and not (isinstance(fmt.rules, IntegerRules) and fmt.rules.scale_type != "f32"):
        return "byte"
    return "pack"


def _ct_settings(formats: Mapping[str, Format], left: Sequence[str], activations: bool) -> Settings:
    names = {module: "nvfp4" if isinstance(fmt.rules, MicroRules) else fmt.name for module, fmt in formats.items()}
    kinds = list(dict.fromkeys(names.values()))  # global scales stand in the tensors, not here
    groups = {}
    for index, name in enumerate(kinds):
        targets = ["Linear"] if len(kinds) == 1 else [module for module, other in names.items() if other == name]
        groups[f"group_{index}"] = _ct_group(get(name), targets, activations)
    words = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": words.pop() if len(words) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(left),
    }


def _ct_group(fmt: Format, targets: list[str], activations: bool) -> Settings:
    """Return one group: what its weights are, and how activations are rounded where they are."""
    kind = _ct_kind(fmt)
    is_float = not isinstance(fmt.rules, IntegerRules)
    weights: Settings = {
        "num_bits": int(fmt.bits),
        "type": "float" if is_float else "int",
        "symmetric": not isinstance(fmt.rules, IntegerRules) or fmt.rules.symmetric,
        "strategy": "group" if fmt.block else "channel",
        "group_size": fmt.block or None,
        "dynamic": False,
    }
    if kind == "mx":
        weights |= {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    if kind == "nv":
        weights |= {"strategy": "tensor_group", "scale_dtype": NV_SCALE, "zp_dtype": NV_SCALE}
    inputs = None
    if activations:
        if kind != "byte":
            raise SchemeError(f"activations of 8 bits go with int8-channel-sym and fp8_e4m3, not with {fmt.name}")
        inputs = {"num_bits": 8, "type": weights["type"], "symmetric": True, "strategy": "token", "dynamic": True}
    word = WORDS.get(kind, "float-quantized" if is_float else "int-quantized")
    return {"targets": targets, "weights": weights, "input_activations": inputs, "format": word}


CONTAINERS: Mapping[str, Container] = MappingProxyType(
    {
        "gptq": Container("gptq", Gptq(1).parts, Gptq(1).encode, _gptq_settings(1), mixes=False),
        "gptq_v2": Container("gptq_v2", Gptq(2).parts, Gptq(2).encode, _gptq_settings(2), mixes=False),
        "awq": Container("awq", Awq().parts, Awq().encode, _awq_settings, mixes=False),
        "compressed-tensors": Container("compressed-tensors", _ct_parts, _ct_encode, _ct_settings, mixes=True),
    }
)
"""Every checkpoint container."""


def is_written_here(settings: Mapping[str, object]) -> bool:
    """Tell whether a quantization_config has the keys of one that a row writes; all tools write awq alike: never there.

    >>> is_written_here({"quant_method": "gptq", "bits": 4, "damp_percent": 0.1})
    False
    """
    row = CONTAINERS.get(str(settings.get("quant_method")))
    if row is None or row.name == "awq":
        return False
    return set(settings) - {"dynamic"} == set(row.settings({"": get("int4-g32-sym-f16")}, (), False))

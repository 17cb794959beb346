"""The quantization_config of a config.json, read strictly: which layout, and what cannot be read at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tersor.core.errors import FormatError, UnsupportedError

__all__ = ["Method", "Settings", "read_settings"]

Method: TypeAlias = Literal["gptq", "awq", "compressed-tensors"]
_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mxfp4-pack-quantized",
    "nvfp4-pack-quantized", "mixed-precision", "dense",
)  # fmt: skip
_INNER = {"auto_round:auto_gptq": "gptq", "auto_round:gptq": "gptq", "auto_round:auto_awq": "awq"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says.

    method   the family of layouts
    bits     of every matrix; 0: the tensors tell (compressed-tensors)
    version  1 or 2 of gptq, 0 for the others
    widths   bits that the groups of compressed-tensors name
    """

    method: Method
    bits: int = 0
    version: int = 0
    widths: frozenset[int] = frozenset()


def read_settings(values: object, place: str) -> Settings:
    """Return the settings; UnsupportedError for what no layout covers, FormatError for what makes no sense."""
    if not isinstance(values, Mapping):
        raise FormatError(f"{place}: quantization_config must be an object, got {type(values).__name__}")
    method = values.get("quant_method", "unknown")
    if method == "auto-round":
        method = _INNER.get(str(values.get("packing_format")), f"auto-round, {values.get('packing_format')}")
    if method == "gptq":
        return _gptq(values, place)
    if method == "awq":
        version = values.get("version", "gemm")
        if not isinstance(version, str) or version.lower() != "gemm":
            raise UnsupportedError(f"{place}: awq in version {version!r:.40}; only gemm can be read")
        return Settings("awq", _bits(values, place, (4,)))
    if method == "compressed-tensors":
        return _compressed_tensors(values, place)
    raise UnsupportedError(
        f"{place}: the checkpoint is already quantized with {method!r:.60}; load the original model, or one in gptq, "
        "awq or compressed-tensors"
    )


def _gptq(values: Mapping[str, object], place: str) -> Settings:
    versions = {"gptq": 1, "gptq_v2": 2, None: 1, "": 1}
    name = values.get("checkpoint_format")
    if name is not None and (not isinstance(name, str) or name not in versions):
        raise UnsupportedError(f"{place}: checkpoint_format {name!r:.40}; gptq and gptq_v2 can be read")
    for key in ("pack_dtype", "dynamic"):
        value = values.get(key)
        if value not in (None, "int32", {}) and not _only_skips(value):
            raise UnsupportedError(f"{place}: {key} = {value!r:.60} in quantization_config cannot be read")
    return Settings("gptq", _bits(values, place, (2, 3, 4, 8)), versions[name])


def _only_skips(value: object) -> bool:
    """Tell whether `dynamic` only names modules that are not quantized."""
    return isinstance(value, Mapping) and all(isinstance(key, str) and key.startswith("-:") for key in value)


def _bits(values: Mapping[str, object], place: str, known: tuple[int, ...]) -> int:
    bits = values.get("bits")
    if type(bits) is not int or bits not in known:
        raise UnsupportedError(f"{place}: bits = {bits!r:.40}; {', '.join(map(str, known))} can be read")
    return bits


def _compressed_tensors(values: Mapping[str, object], place: str) -> Settings:
    kind, groups = values.get("format"), values.get("config_groups")
    if kind not in _FORMATS:
        raise UnsupportedError(f"{place}: compressed-tensors as {kind!r:.40}; {', '.join(_FORMATS)} can be read")
    for key in ("transform_config", "sparsity_config"):
        if values.get(key) and values.get(key) != {"format": "dense"}:
            raise UnsupportedError(f"{place}: {key} = {values[key]!r:.60} changes the weights; load the original model")
    if not isinstance(groups, Mapping) or not groups:
        raise FormatError(f"{place}: config_groups of quantization_config must be an object that is not empty")
    widths = set()
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
        if type(bits) is not int or not 1 <= bits <= 16:
            raise FormatError(f"{place}: config_groups: {name!r:.40} must say weights.num_bits, from 1 to 16")
        widths.add(bits)
    return Settings("compressed-tensors", widths=frozenset(widths))

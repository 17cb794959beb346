"""A checkpoint in gptq, awq or compressed-tensors, seen as one of plain matrices: as float32, or codes verbatim."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, MissingError, SchemeError, TersorError, UnsupportedError
from tersor.core.format import Format
from tersor.core.tensor import QuantizedTensor
from tersor.files.checkpoint import Checkpoint, read_json, weight_files
from tersor.files.dtypes import Numbers
from tersor.files.safetensors import TensorInfo, checked_rows
from tersor.formats import get
from tersor.formats.hf.awq import Awq
from tersor.formats.hf.compressed_tensors import (
    PackQuantized,
    decode_bytes,
    decode_mx,
    decode_nv,
    eight_bit_codes,
    nv_format,
)
from tersor.formats.hf.gptq import Gptq
from tersor.formats.hf.groups import Decoded, Part, checked_part, format_of
from tersor.formats.hf.settings import Settings, read_settings
from tersor.formats.hf.words import Stored

__all__ = ["QuantizedCheckpoint", "open_quantized"]

_WORD_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_PACKED_PARTS = (
    *("weight_packed", "weight_scale", "weight_global_scale"),
    *("weight_shape", "weight_zero_point", "weight_g_idx"),
)
_NOT_READ = ("input_scale", "input_global_scale", "pre_quant_scale", "weight_scale_inv")
_SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True)
class _Module:
    """One matrix: its parts as the files hold them, its shape, and how rows of it are decoded."""

    name: str
    parts: Mapping[str, Part]
    shape: tuple[int, int]
    label: str
    decode: Callable[[int, int], Decoded]


def open_quantized(folder: Path, weights: Sequence[Path] = ()) -> QuantizedCheckpoint:
    """Return the quantized checkpoint in `folder`; the caller closes it.

    weights  its files of weights; none: those of the folder
    Raises MissingError where there is none, SchemeError where it is not quantized, and what reading it raises.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(f"{folder}: no config.json; a checkpoint folder holds it beside the weights")
    values = read_json(path).get("quantization_config")
    if not values:
        raise SchemeError(f"{path}: has no quantization_config, so the checkpoint is not quantized")
    settings = read_settings(values, str(path))
    paths, index, _ = (list(weights), None, []) if weights else weight_files(folder)
    checkpoint = Checkpoint(paths, index)
    try:
        return QuantizedCheckpoint(checkpoint, settings, str(folder))
    except BaseException:
        checkpoint.close()
        raise


class QuantizedCheckpoint:
    """Like Checkpoint: `tensors`, `paths`, `read`, `close`; a quantized matrix appears as MODULE.weight.

    tensors  name → TensorInfo; the dtype of a quantized matrix is the name of its number format
    Raises FormatError where the tensors of a matrix contradict each other or the settings.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, place: str) -> None:
        self._checkpoint, self._settings, self._place = checkpoint, settings, place
        self.paths: list[Path] = checkpoint.paths
        self._lock = threading.Lock()
        self._held: tuple[str, dict[str, Stored]] = ("", {})
        self._modules: dict[str, _Module] = {}
        self.tensors: dict[str, TensorInfo] = {}
        found = self._grouped()
        for name, info in checkpoint.tensors.items():
            module, _, suffix = name.rpartition(".")
            if module not in found or suffix not in found[module]:
                self.tensors[name] = info
            elif f"{module}.weight" not in self._modules:
                made = self._located(module, found[module])
                self._modules[f"{module}.weight"] = made
                self.tensors[f"{module}.weight"] = TensorInfo(f"{module}.weight", made.label, made.shape, 0, 0)

    @property
    def quantized_names(self) -> tuple[str, ...]:
        """The names of the matrices that are quantized, in file order."""
        return tuple(self._modules)

    def format(self, name: str) -> Format:
        """Return the number format of a quantized matrix; whether it is symmetric its zero points tell."""
        return self._decoded(self._modules[name], 0, 1).tensor.format

    def quantized(self, name: str) -> QuantizedTensor:
        """Return a quantized matrix, codes verbatim.

        UnsupportedError where its groups are not of neighbouring columns (activation order).
        """
        decoded = self.decoded(name)
        if decoded.order is not None:
            raise UnsupportedError(
                f"{name}: its groups are not of neighbouring columns (desc_act); no format here is so"
            )
        return decoded.tensor

    def decoded(self, name: str) -> Decoded:
        """Return a quantized matrix, codes verbatim, its columns in the order of its groups."""
        module = self._modules[name]
        return self._decoded(module, 0, module.shape[0])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers:
        """Return rows of the leading axis: a quantized matrix as float32, others as Checkpoint.read does."""
        module = self._modules.get(name)
        if module is None:
            return self._checkpoint.read(name, start, stop)
        first, last = checked_rows(name, module.shape, start, stop)
        if first == last:
            return np.zeros((0, module.shape[1]), np.float32)
        values: Float32 = self._decoded(module, first, last).dequantize()
        return values

    def close(self) -> None:
        """Release all files."""
        self._checkpoint.close()

    def _decoded(self, module: _Module, start: int, stop: int) -> Decoded:
        try:
            return module.decode(start, stop)
        except TersorError as error:
            raise type(error)(f"{self._place}: {module.name}: {error}") from error

    def _grouped(self) -> dict[str, dict[str, Part]]:
        """Return module → its parts, of every module that is quantized."""
        names = self._checkpoint.tensors
        found: dict[str, dict[str, Part]] = {}
        is_packed = self._settings.method == "compressed-tensors"
        marks = ("weight_packed", "weight_scale") if is_packed else ("qweight",)
        for name in names:
            module, _, suffix = name.rpartition(".")
            if suffix in _NOT_READ or (suffix == "weight_global_scale" and f"{module}.weight_packed" not in names):
                raise UnsupportedError(f"{self._place}: {name} cannot be read; load the original model")
            if suffix in marks:
                found.setdefault(module, {})
        for module, parts in found.items():
            for suffix in (*_PACKED_PARTS, "weight") if is_packed else _WORD_PARTS:
                info = names.get(f"{module}.{suffix}")
                if info is not None:
                    parts[suffix] = Part(info.dtype, info.shape)
        return found

    def _located(self, module: str, parts: Mapping[str, Part]) -> _Module:
        try:
            if self._settings.method != "compressed-tensors":
                return self._word_module(module, parts)
            if "weight_packed" not in parts:
                return self._byte_module(module, parts)
            if "weight_g_idx" in parts:
                raise UnsupportedError("weight_g_idx (actorder group) cannot be read")
            scale = parts.get("weight_scale")
            if "weight_global_scale" in parts or (scale is not None and scale.dtype == "F8_E4M3"):
                return self._nv_module(module, parts)
            if parts["weight_packed"].dtype == "U8":
                return self._mx_module(module, parts)
            return self._packed_module(module, parts)
        except TersorError as error:
            raise type(error)(f"{self._place}: {module}: {error}") from error

    def _word_module(self, module: str, parts: Mapping[str, Part]) -> _Module:
        layout = Awq() if self._settings.method == "awq" else Gptq(self._settings.version)
        bits = self._settings.bits
        shape = layout.shape(parts, bits)
        dtype, groups = parts["scales"].dtype, parts["scales"].shape[0]
        label = f"int{bits}-channel" if groups == 1 else f"int{bits}-g{shape[1] // groups}"

        def decode(start: int, stop: int) -> Decoded:
            return layout.decode(self._whole(module, parts), dtype, bits, start, stop)

        return _Module(module, parts, shape, label, decode)

    def _packed_module(self, module: str, parts: Mapping[str, Part]) -> _Module:
        checked_part(parts, "weight_shape", ("I64", "I32"), 1)
        declared = self._checkpoint.read(f"{module}.weight_shape")
        if declared.shape != (2,) or int(declared.min()) < 1 or int(declared.max()) >= 2**31:
            raise FormatError(f"weight_shape must hold two counts from 1 on, got {declared.tolist()!s:.60}")
        rows, columns = int(declared[0]), int(declared[1])
        packed = checked_part(parts, "weight_packed", ("I32",), 2)
        layout = PackQuantized()
        fitting = [bits for bits in sorted(self._settings.widths) if -(-columns * bits // 32) == packed.shape[1]]
        if len(fitting) != 1:
            named = ", ".join(map(str, sorted(self._settings.widths)))
            raise FormatError(f"{packed.shape[1]} words hold {columns} columns in none of the declared bits ({named})")
        bits = fitting[0]
        shape = layout.shape(parts, (rows, columns), bits)
        dtype = parts["weight_scale"].dtype
        groups = parts["weight_scale"].shape[1]
        symmetric = "weight_zero_point" not in parts
        label = format_of(bits, 0 if groups == 1 else columns // groups, symmetric=symmetric, scale_dtype=dtype).name

        def decode(start: int, stop: int) -> Decoded:
            stored = {
                name: self._checkpoint.read(f"{module}.{name}", start, stop)
                for name in ("weight_packed", "weight_scale")
            }
            if not symmetric:
                stored["weight_zero_point"] = self._checkpoint.read(f"{module}.weight_zero_point")
            return layout.decode(stored, dtype, bits, columns, start)

        return _Module(module, parts, shape, label, decode)

    def _byte_module(self, module: str, parts: Mapping[str, Part]) -> _Module:
        weight = checked_part(parts, "weight", ("I8", "F8_E4M3"), 2)
        scale = parts["weight_scale"]
        rows, columns = weight.shape
        if scale.dtype not in _SCALES or scale.shape not in ((rows, 1), (rows,), (1,), (1, 1), ()):
            raise UnsupportedError(f"weight_scale is {scale.dtype} {scale.shape}; one a row or one for all can be read")
        if "weight_zero_point" in parts:
            raise UnsupportedError("weight_zero_point of one byte a weight cannot be read")
        is_integer = weight.dtype == "I8"
        fmt = format_of(8, 0, symmetric=True, scale_dtype=scale.dtype) if is_integer else get("fp8_e4m3")
        one_a_row = len(scale.shape) > 0 and scale.shape[0] == rows

        def decode(start: int, stop: int) -> Decoded:
            values = self._checkpoint.read(f"{module}.weight", start, stop)
            codes = np.ascontiguousarray(values).view(np.uint8) if is_integer else eight_bit_codes(values)
            span = (start, stop) if one_a_row else (0, None)
            return decode_bytes(codes, self._checkpoint.read(f"{module}.weight_scale", *span), fmt)

        return _Module(module, parts, (rows, columns), fmt.name, decode)

    def _mx_module(self, module: str, parts: Mapping[str, Part]) -> _Module:
        rows, half = checked_part(parts, "weight_packed", ("U8",), 2).shape
        scale = checked_part(parts, "weight_scale", ("U8",), 2)
        if scale.shape != (rows, half // 16) or half % 16:
            raise FormatError(
                f"weight_packed {(rows, half)} and weight_scale {scale.shape} do not belong to one matrix"
            )
        fmt = get("mxfp4")

        def decode(start: int, stop: int) -> Decoded:
            packed, scales = (
                self._checkpoint.read(f"{module}.{name}", start, stop) for name in ("weight_packed", "weight_scale")
            )
            return decode_mx(packed, scales, fmt)

        return _Module(module, parts, (rows, 2 * half), fmt.name, decode)

    def _nv_module(self, module: str, parts: Mapping[str, Part]) -> _Module:
        rows, half = checked_part(parts, "weight_packed", ("U8",), 2).shape
        scale = checked_part(parts, "weight_scale", ("F8_E4M3",), 2)
        if scale.shape != (rows, half // 8) or half % 8:
            raise FormatError(
                f"weight_packed {(rows, half)} and weight_scale {scale.shape} do not belong to one matrix"
            )
        if checked_part(parts, "weight_global_scale", ("F32",), 1).shape != (1,):
            raise FormatError(f"weight_global_scale is {parts['weight_global_scale'].shape}; one number is needed")
        fmt = nv_format(self._checkpoint.read(f"{module}.weight_global_scale"))

        def decode(start: int, stop: int) -> Decoded:
            packed, scales = (
                self._checkpoint.read(f"{module}.{name}", start, stop) for name in ("weight_packed", "weight_scale")
            )
            return decode_nv(packed, scales, fmt)

        return _Module(module, parts, (rows, 2 * half), fmt.name, decode)

    def _whole(self, module: str, parts: Mapping[str, Part]) -> dict[str, Stored]:
        """Return all parts of a module; those of the last one asked for are held, because its rows lie across them."""
        with self._lock:
            if self._held[0] != module:
                self._held = (module, {name: self._checkpoint.read(f"{module}.{name}") for name in parts})
            return self._held[1]

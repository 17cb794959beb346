"""A quantized checkpoint (gptq, awq, compressed-tensors) as a model of transformers on our own integer kernels.

The model is built without weights; each quantized matrix becomes a `QuantizedLinear` with the codes of the file,
everything else keeps the file's numbers in the type that the model computes in. Nothing is rounded again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError, UnsupportedError
from tersor.core.tensor import QuantizedTensor
from tersor.files.checkpoint import read_json
from tersor.formats import get
from tersor.formats.hf.groups import Decoded, row_blocks, unpack_groups
from tersor.formats.integer import IntegerRules
from tersor.kernels.lazy import LazyModule
from tersor.kernels.linear.arena import Arena
from tersor.kernels.linear.module import quantized_linear
from tersor.kernels.linear.weights import PackedWeight, is_group, pack_weight
from tersor.kernels.reference.linear import Digits
from tersor.models.quantized_checkpoint import QuantizedCheckpoint, open_quantized

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = LazyModule("torch", "torch")
    transformers = LazyModule("transformers", "torch")

__all__ = ["Activations", "is_quantized", "load_quantized"]

Activations: TypeAlias = Literal["int8", "int16"]
"""What activations are rounded to on their way into a quantized matrix."""
DIGITS: dict[Activations, Digits] = {"int8": 1, "int16": 2}
MOVED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
"""Endings of tensors that some files hold and models compute themselves."""


def is_quantized(folder: Path) -> bool:
    """Tell whether the config.json in `folder` says that its weights are quantized."""
    return bool(read_json(folder / "config.json").get("quantization_config"))


def load_quantized(
    path: str | Path, *, dtype: Any = None, activations: Activations = "int8", round_head: bool = False
) -> Any:
    """Load a quantized checkpoint as a causal language model of transformers that multiplies on the CPU in integers.

    path         a folder with config.json and weights in gptq, awq or compressed-tensors
    dtype        torch type of everything that is not quantized; None: as config.json says
    activations  "int8" is fastest, one scale for each group of a weight; "int16" costs some speed away from the memory
                 roof and loses next to nothing
    round_head   whether to round the output matrix to int8, a scale a row, where the file has it unrounded: it is half
                 of what a token reads in a small model
    Matrices in formats or groups that no kernel takes are decoded and multiplied by torch; `model.decoded_layers` names
    them. Raises MissingError, SchemeError (not quantized), UnsupportedError, FormatError and ShapeError.
    """
    folder = Path(path).expanduser()
    if activations not in DIGITS:
        raise SchemeError(f"activations must be one of {', '.join(DIGITS)}, got {activations!r}")
    with contextlib.closing(open_quantized(folder)) as checkpoint:
        model = _empty_model(folder, dtype)
        per_token = _rounds_tokens(folder)
        decoded, arena = [], Arena()
        for name in checkpoint.quantized_names:
            module = name.removesuffix(".weight")
            packed, order = _packed(checkpoint.decoded(name), arena)
            linear = _linear(model, module, checkpoint.tensors[name].shape)
            if packed is None:
                decoded.append(module)
                _fill(linear, "weight", checkpoint.read(name))
                continue
            bias = checkpoint.read(f"{module}.bias") if linear.bias is not None else None
            made = quantized_linear(
                packed,
                None if bias is None else torch.from_numpy(np.array(bias)),
                order=order,
                digits=DIGITS[activations],
                per_token=per_token,
            )
            model.set_submodule(module, made)
        _fill_rest(model, checkpoint)
    head = model.get_output_embeddings()
    if round_head and isinstance(head, torch.nn.Linear):
        model.set_output_embeddings(_rounded(head, DIGITS[activations]))
    model.decoded_layers = tuple(decoded)
    return model.eval()


def _empty_model(folder: Path, dtype: Any) -> Any:
    """Build the model with parameters that take no memory; buffers are real."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        kind = dtype or getattr(config, "dtype", None) or torch.float32
        with _parameters_nowhere():
            return transformers.AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise MissingError(f"transformers cannot build {folder}: {error}") from error


@contextlib.contextmanager
def _parameters_nowhere() -> Iterator[None]:
    """Have parameters of modules that are built meanwhile hold no memory."""
    module: Any = torch.nn.Module
    register = module.register_parameter

    def emptied(self: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(self, name, parameter)
        if parameter is not None:
            self._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    module.register_parameter = emptied  # torch offers no other way that keeps buffers
    try:
        yield
    finally:
        module.register_parameter = register


def _rounds_tokens(folder: Path) -> bool:
    """Tell whether the checkpoint says that activations share a scale a token (compressed-tensors, dynamic int8)."""
    settings = read_json(folder / "config.json").get("quantization_config")
    groups = settings.get("config_groups") if isinstance(settings, dict) else None
    inputs = [group.get("input_activations") for group in groups.values()] if isinstance(groups, dict) else []
    return any(isinstance(one, dict) and one.get("strategy") == "token" for one in inputs)


def _packed(decoded: Decoded, arena: Arena) -> tuple[PackedWeight | None, torch.Tensor | None]:
    """Return the matrix as the kernels read it, None where none takes it; and the order of its columns."""
    fmt, (rows, columns) = decoded.tensor.format, decoded.tensor.shape
    rules = fmt.rules
    if not isinstance(rules, IntegerRules) or rules.span == "tensor" or not is_group(fmt.block or columns):
        return None, None
    parts = [unpack_groups(decoded.tensor, start, stop) for start, stop in row_blocks((rows, columns))]
    codes, zeros, scales = (
        torch.from_numpy(np.concatenate([getattr(part, name) for part in parts]))
        for name in ("codes", "zeros", "scales")
    )
    order = None if decoded.order is None else torch.from_numpy(decoded.order)
    return pack_weight(codes, zeros, scales, bits=rules.bits, real=rules.scale_type, arena=arena), order


def _rounded(layer: torch.nn.Linear, digits: Digits) -> torch.nn.Module:
    """Return the layer on int8 with a scale a row; a matrix that it shares with the embedding stays there as it is."""
    fmt = get("int8-channel-sym")
    weight = layer.weight.detach().to(torch.float32).numpy()
    packed, _ = _packed(Decoded(QuantizedTensor(fmt, weight.shape, fmt.encode(weight))), Arena(weight.size))
    if packed is None:
        return layer
    return quantized_linear(packed, layer.bias, digits=digits)


def _linear(model: Any, module: str, shape: tuple[int, ...]) -> Any:
    """Return the layer of the model that the quantized matrix is for."""
    try:
        found = model.get_submodule(module)
    except AttributeError as error:
        raise UnsupportedError(
            f"{type(model).__name__} has no layer {module}, which the checkpoint quantizes: transformers arranges this "
            "architecture otherwise than its files"
        ) from error
    if not isinstance(found, torch.nn.Linear):
        raise UnsupportedError(f"{module} is a {type(found).__name__}; only linear layers can be quantized here")
    if tuple(found.weight.shape) != tuple(shape):
        raise ShapeError(f"{module} is {tuple(shape)} in the checkpoint, {tuple(found.weight.shape)} in the model")
    return found


def _fill_rest(model: Any, checkpoint: QuantizedCheckpoint) -> None:
    """Give every other parameter and buffer the checkpoint's numbers; none may be left over, none may be missing."""
    quantized = {name.removesuffix(".weight") for name in checkpoint.quantized_names}
    for name in checkpoint.tensors:
        place, _, part = name.rpartition(".")
        if place in quantized or name.endswith(MOVED):
            continue
        try:
            owner = model.get_submodule(place)
        except AttributeError:
            owner = None
        if owner is None or part not in (*owner._parameters, *owner._buffers):
            raise UnsupportedError(f"{type(model).__name__} has no place for {name}, which the checkpoint holds")
        _fill(owner, part, checkpoint.read(name))
    model.tie_weights()
    missing = [name for name, value in model.named_parameters() if value.is_meta]
    if missing:
        raise FormatError(f"{len(missing)} tensors of the model are not in the checkpoint, the first is {missing[0]}")


def _fill(owner: Any, part: str, values: Any) -> None:
    """Put numbers in the place of a parameter or buffer that holds none, in the type that is there."""
    there = getattr(owner, part)
    if tuple(there.shape) != tuple(values.shape):
        raise ShapeError(f"{part} of {type(owner).__name__} is {tuple(there.shape)}, in the file {values.shape}")
    made = torch.from_numpy(np.array(values)).to(there.dtype)
    if part in owner._parameters:
        owner._parameters[part] = torch.nn.Parameter(made, requires_grad=False)
    else:
        owner._buffers[part] = made

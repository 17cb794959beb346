"""A quantized checkpoint (gptq, awq, compressed-tensors) as a model of transformers that multiplies with its codes.

The model is built without weights; each quantized matrix becomes a layer of `layers.py` with the codes of the file,
everything else keeps the file's numbers in the type that the model computes in. Nothing is rounded again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import FormatError, MissingError, ShapeError, UnsupportedError
from tersor.core.tensor import QuantizedTensor
from tersor.engines.torch.attention import attend_by_kernel
from tersor.engines.torch.layers import DECODED, SLOW, Activations, Kernels, Layers, layers_for
from tersor.files.checkpoint import read_json
from tersor.formats import get
from tersor.formats.hf.groups import Decoded
from tersor.kernels.lazy import LazyModule
from tersor.models.quantized_checkpoint import QuantizedCheckpoint, open_quantized

if TYPE_CHECKING:
    import torch
    import transformers
else:
    torch = LazyModule("torch", "torch")
    transformers = LazyModule("transformers", "torch")

__all__ = ["is_quantized", "load_quantized", "rounds_tokens", "vocabulary_size"]

MOVED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
"""Endings of tensors that some files hold and models compute themselves."""
_BUILDING = threading.Lock()
"""Held while a model is built: what is changed of torch for that has to be put back in turn."""


def is_quantized(folder: Path) -> bool:
    """Tell whether the config.json in `folder` says that its weights are quantized."""
    return bool(read_json(folder / "config.json").get("quantization_config"))


def load_quantized(
    path: str | Path,
    *,
    dtype: Any = None,
    activations: Activations | None = None,
    round_head: bool = False,
    device: Any = "cpu",
    kernels: Kernels = "auto",
) -> Any:
    """Load a quantized checkpoint as a causal language model of transformers that multiplies with its codes.

    path         a folder with config.json and weights in gptq, awq or compressed-tensors
    dtype        torch type of everything that is not quantized; None: as config.json says
    activations  on our own kernels "int8", one scale for each group of a weight, the default and fastest; or "int16",
                 which costs some speed away from the memory roof and loses next to nothing. On torch's operators
                 "float", as they are, or "rounded", to the kind of number of the weight; None: as the file says
    round_head   whether to round the output matrix to int8, a scale a row, where the file has it unrounded: it is half
                 of what a token reads in a small model
    device       of torch, such as "cuda"
    kernels      "tersor": our own, on the CPU; "torch": torch's operators; "auto": our own where they run

    Matrices that nothing takes as they are, are decoded and multiplied by torch; `model.decoded_layers` names them, and
    `model.layer_operators` says of every quantized layer what multiplies it. Raises MissingError (also for a device
    that is not there), SchemeError (not quantized, options), UnsupportedError, FormatError and ShapeError.
    """
    folder = Path(path).expanduser()
    with contextlib.closing(open_quantized(folder)) as checkpoint:
        layers = layers_for(kernels, device, activations, per_token=rounds_tokens(folder))
        model = _empty_model(folder, dtype)
        operators = {}
        for name in checkpoint.quantized_names:
            module = name.removesuffix(".weight")
            linear = _linear(model, module, checkpoint.tensors[name].shape)
            bias = checkpoint.read(f"{module}.bias") if linear.bias is not None else None
            own = None if bias is None else torch.from_numpy(np.array(bias))
            made = layers.made(checkpoint.decoded(name), own, module.rpartition(".")[2])
            operators[module] = DECODED if made is None else made.operator
            if made is None:
                _fill(linear, "weight", checkpoint.read(name))
                if bias is not None:
                    _fill(linear, "bias", bias)
            else:
                model.set_submodule(module, made.module)
        _fill_rest(model, checkpoint)
    layers.finish(model)
    head = model.get_output_embeddings()
    if round_head and isinstance(head, torch.nn.Linear):
        model.set_output_embeddings(_rounded(head, layers))
    if layers.device.type == "cpu":
        attend_by_kernel(model)
    model.layer_operators = operators
    model.decoded_layers = tuple(name for name, operator in operators.items() if operator in SLOW)
    return model.to(layers.device).eval()


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
    """Have parameters of modules that this thread builds meanwhile hold no memory; other threads' stay as they are."""
    module: Any = torch.nn.Module
    builder = threading.get_ident()
    with _BUILDING:
        register = module.register_parameter

        def emptied(self: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
            register(self, name, parameter)
            if parameter is not None and threading.get_ident() == builder:
                self._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

        module.register_parameter = emptied  # torch offers no other way that keeps buffers
        try:
            yield
        finally:
            module.register_parameter = register


def vocabulary_size(model: Any) -> int:
    """Return for how many tokens a causal language model of transformers has logits, quantized or not."""
    head = model.get_output_embeddings()
    if head is None:
        return int(model.config.vocab_size)
    return int(head.out_features if hasattr(head, "out_features") else head.weight.shape[0])


def rounds_tokens(folder: Path) -> bool:
    """Tell whether a checkpoint says that activations are rounded, a scale a token (compressed-tensors)."""
    settings = read_json(folder / "config.json").get("quantization_config")
    groups = settings.get("config_groups") if isinstance(settings, dict) else None
    inputs = [group.get("input_activations") for group in groups.values()] if isinstance(groups, dict) else []
    return any(isinstance(one, dict) and one.get("strategy") == "token" for one in inputs)


def _rounded(layer: torch.nn.Linear, layers: Layers) -> torch.nn.Module:
    """Return the layer on int8 with a scale a row; a matrix that it shares with the embedding stays there as it is."""
    fmt = get("int8-channel-sym")
    weight = layer.weight.detach().to(torch.float32).numpy()
    made = layers.made(Decoded(QuantizedTensor(fmt, weight.shape, fmt.encode(weight))), layer.bias)
    return layer if made is None else made.module


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

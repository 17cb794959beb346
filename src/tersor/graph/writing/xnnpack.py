"""A net as the PyTorch module that ExecuTorch lowers to XNNPACK whole: on integers, in float32 or in float16.

XNNPACK takes operators one by one, each with what decodes its inputs and what rounds its output. What this writes are
the numbers of the quantized net, so that nothing is observed again; what it changes is how the graph says them:
every reader has a decoder of its own, and a Relu or Clip that rounding makes idle is gone.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.core.errors import SchemeError, UnsupportedError
from tersor.graph.net import Net
from tersor.graph.ptq import QuantizedNet
from tersor.graph.scheme import Quantizer, Scheme
from tersor.graph.sessions import Feeds
from tersor.graph.training.module import to_torch
from tersor.graph.training.ops.layers import gemm
from tersor.graph.writing.torch_module import integer_module
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx, nn
    from torch.nn import functional
else:
    torch, functional = LazyModule("torch", "torch"), LazyModule("torch.nn.functional", "torch")

__all__ = ["exported", "float_module", "xnnpack_module"]

EVERYTHING = (-np.inf, np.inf)


def xnnpack_module(quantized: QuantizedNet) -> fx.GraphModule:
    """Return the module of a net that was quantized for the engine "xnnpack", SchemeError for another one.

    Other errors are those of `integer_module`.
    """
    if quantized.recipe.engine != "xnnpack":
        raise SchemeError(
            f"{quantized.source.name} was quantized for {quantized.recipe.engine}: phones need the engine xnnpack, "
            "whose codes have a sign"
        )
    module = integer_module(quantized, by_row=True)
    decomposed: Any = torch.ops.quantized_decomposed
    for node in list(module.graph.nodes):
        if node.target is decomposed.quantize_per_tensor.default:
            _pass_clips(module.graph, node)
    _bound_by_functions(module.graph)
    decoders = (decomposed.dequantize_per_tensor.default, decomposed.dequantize_per_channel.default)
    for node in list(module.graph.nodes):
        if node.target in decoders:
            _part(module.graph, node)
    return _finished(module)


def float_module(net: Net, *, half: bool = False) -> nn.Module:
    """Return the module of a float net, its products with matrices as linear layers.

    half  weights and what is between them have 16 bits; inputs and outputs keep 32
    """
    module = to_torch(net.model)
    for node in list(module.graph.nodes):
        if node.target in (torch.matmul, gemm) and len(node.args) > 1:
            _line(module, node)
    _bound_by_functions(module.graph)
    made = _finished(module)
    return _halved(made) if half else made


def exported(module: nn.Module, feeds: Feeds) -> bytes:
    """Return the file of `torch.export.save` for inputs of these very shapes; UnsupportedError where there is none."""
    inputs = tuple(torch.from_numpy(np.ascontiguousarray(values)) for values in feeds.values())
    target = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch itself
            torch.export.save(torch.export.export(module, inputs), target)
    except Exception as error:  # torch raises a class for each of its stages
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnsupportedError(
            f"torch cannot export the net for phones: {(lines or [repr(error)])[0][:300]}"
        ) from error
    return target.getvalue()


def _finished(module: fx.GraphModule) -> fx.GraphModule:
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    for tensor in (*module.parameters(), *module.buffers()):  # a size of one may have any stride, and ExecuTorch asks
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return module.requires_grad_(False).eval()


def _pass_clips(graph: fx.Graph, rounding: fx.Node) -> None:
    """Let a quantizer read what is before a Relu or Clip that only cuts off what it saturates anyway."""
    given: Any = rounding.args[1:5]
    scale, zero, low, high = given
    scheme = Scheme(8, signed=low < 0, symmetric=False)
    quantizer = Quantizer(np.asarray(scale, np.float32), np.asarray(zero, scheme.dtype), scheme)
    while True:
        node: Any = rounding.args[0]
        bounds = _bounds(node) if isinstance(node, torch.fx.Node) and len(node.users) == 1 else None
        if bounds is None:
            return
        codes = quantizer.codes(np.asarray(bounds, np.float32))
        if (int(codes[0]), int(codes[1])) != (low, high):
            return
        rounding.update_arg(0, node.args[0])
        graph.erase_node(node)


def _bounds(node: fx.Node) -> tuple[float, float] | None:
    """Return what a Relu or Clip cuts off at; None for others, and where that is computed."""
    operator = node.meta.get("operator")
    if operator == "Relu":
        return 0.0, np.inf
    if operator != "Clip":
        return None
    given: list[Any] = list(node.args[1:])
    given += [node.kwargs.get(name) for name in ("low", "high")[len(given) :]]
    if any(isinstance(bound, torch.fx.Node) for bound in given):
        return None
    low, high = (other if bound is None else float(bound) for bound, other in zip(given, EVERYTHING, strict=True))
    return low, high


def _bound_by_functions(graph: fx.Graph) -> None:
    """Write a Clip with two known ends as the function that XNNPACK computes within the operator before it."""
    for node in graph.nodes:
        bounds = _bounds(node) if node.meta.get("operator") == "Clip" else None
        if bounds is not None and np.isfinite(bounds).all():
            node.target, node.args, node.kwargs = functional.hardtanh, (node.args[0], *bounds), {}


def _part(graph: fx.Graph, decoder: fx.Node) -> None:
    """Give every reader but the first a decoder of its own."""
    for reader in list(decoder.users)[1:]:
        with graph.inserting_after(decoder):
            reader.replace_input_with(decoder, graph.node_copy(decoder))


def _line(module: fx.GraphModule, product: fx.Node) -> None:
    """Put a linear layer in the place of a product with a stored matrix."""
    values, matrix, *rest = product.args
    if not isinstance(matrix, torch.fx.Node) or matrix.op != "get_attr" or len(matrix.users) > 1:
        return
    settings: Any = product.kwargs
    if any(settings.get(name, 1) != 1 for name in ("alpha", "beta")) or settings.get("transA", 0):
        return
    stored, is_turned = _stored(module, matrix), bool(settings.get("transB", 0))
    if stored.ndim != 2 or (rest and not _is_row(module, rest[0], stored.shape[0 if is_turned else 1])):
        return
    if not is_turned:
        owner, _, leaf = str(matrix.target).rpartition(".")
        turned = torch.nn.Parameter(stored.detach().T.contiguous(), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, turned)
    with module.graph.inserting_before(product):
        made = module.graph.call_function(functional.linear, (values, matrix, *rest))
    made.meta |= product.meta
    product.replace_all_uses_with(made)
    module.graph.erase_node(product)


def _stored(module: fx.GraphModule, node: fx.Node) -> Tensor:
    owner, _, leaf = str(node.target).rpartition(".")
    made: Tensor = getattr(module.get_submodule(owner), leaf)
    return made


def _is_row(module: fx.GraphModule, bias: Any, count: int) -> bool:
    """Whether a bias is stored, one number for each output."""
    is_stored = isinstance(bias, torch.fx.Node) and bias.op == "get_attr"
    return is_stored and tuple(_stored(module, bias).shape) == (count,)


def _halved(module: nn.Module) -> nn.Module:
    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module.half()

        def forward(self, *inputs: Tensor) -> Any:
            made = self.net(*(each.half() if each.is_floating_point() else each for each in inputs))
            return made.float() if isinstance(made, torch.Tensor) else tuple(each.float() for each in made)

    return Halved().eval()

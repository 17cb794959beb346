"""Weights in 16 bits, decoded where they are read: half of the file, the same computation.

Engines decode constants once, when they load a file; so this makes a net smaller to store and to send, not faster.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from tersor.graph.net import Array, Net, constant
from tersor.kernels.lazy import LazyModule

if TYPE_CHECKING:
    import onnx_ir as ir
else:
    ir = LazyModule("onnx_ir", "onnx")

__all__ = ["LEAST_WEIGHTS", "halved", "is_halved"]

LEAST_WEIGHTS = 256
"""Of a tensor: smaller ones are biases, scales and shapes, which weigh nothing."""
LARGEST = float(np.finfo(np.float16).max)


def is_halved(numbers: Array | None) -> bool:
    """Whether `halved` puts these numbers in 16 bits: float32, 256 of them or more, all within ±65504."""
    if numbers is None or numbers.dtype != np.float32 or numbers.size < LEAST_WEIGHTS:
        return False
    return bool((np.abs(numbers) <= LARGEST).all())


def halved(net: Net, names: Collection[str] | None = None) -> Net:
    """Return the net with each float32 weight of 256 numbers or more as binary16 and a Cast before its readers.

    names  of the weights that are meant; None: all
    A tensor with numbers beyond ±65504, or none that are finite, stays as it is.
    """
    made = net.copy()
    for name, value in list(made.graph.initializers.items()):
        if names is not None and name not in names:
            continue
        numbers = constant(value)
        if numbers is None or not is_halved(numbers) or value.is_graph_output():
            continue
        small = made.new_constant(f"{name}_f16", numbers.astype(np.float16))
        cast = ir.node("Cast", [small], {"to": int(ir.DataType.FLOAT)}, name=made.free_name(f"{name}_decode"))
        wide = cast.outputs[0]
        wide.name, wide.shape = made.free_name(f"{name}_f32"), value.shape
        wide.type = ir.TensorType(ir.DataType.FLOAT)
        made.graph.insert_before(next(iter(made.graph)), [cast])
        value.replace_all_uses_with(wide)
        del made.graph.initializers[name]
    return made

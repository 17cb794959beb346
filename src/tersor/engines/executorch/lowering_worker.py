"""The child process that lowers one exported program and ends: its greeting says what became of it.

Started by `engines/child.py` with the arguments PROGRAM.pt2 OUT.pte. The compiler of ExecuTorch configures logging,
warns and takes hundreds of megabytes; here that ends with the child.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from typing import Any

from tersor.engines.frames import own_output, send

__all__ = ["main"]

SILENT = ("getitem", "quantize", "dequantize", "choose_qparams")
"""What is no operator of the net."""


def lower(program: str, target: str) -> dict[str, Any]:
    """Write OUT.pte; return name → how many operators of the net the delegate takes."""
    import torch  # noqa: PLC0415 - only ever in the child
    import torch.ao.quantization.fx._decomposed  # noqa: PLC0415 - registers operators of the program
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
    from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415
    from executorch.exir.lowered_backend_module import get_lowered_submodules  # noqa: PLC0415

    loaded = torch.export.load(program)
    lowered = to_edge_transform_and_lower(loaded, partitioner=[XnnpackPartitioner()])
    delegated: Counter[str] = Counter()
    for _, module, _ in get_lowered_submodules(lowered.exported_program().graph_module):
        for node in module.original_module.graph_module.graph.nodes:
            name = _name(node)
            if name:
                delegated[name] += 1
    with open(target, "wb") as file:  # noqa: PTH123 - a path is a text here
        lowered.to_executorch().write_to_file(file)
    return {"delegated": dict(delegated)}


def _name(node: Any) -> str:
    """Return such as "aten.convolution.default"; nothing for what is no operator."""
    if node.op != "call_function":
        return ""
    name = str(getattr(node.target, "__name__", node.target))
    return "" if any(part in name for part in SILENT) else name


def main() -> None:
    """Lower, tell, end."""
    program, target = sys.argv[1:3]
    output = own_output()
    warnings.simplefilter("ignore")
    try:
        send(output, {"done": True, **lower(program, target)})
    except Exception as error:  # the edge of the process: whatever the compiler raises goes to the parent
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        send(output, {"error": f"{type(error).__name__}: {(lines or [''])[0][:400]}"})
    output.flush()
    os._exit(0)

"""Write tests/files/golden_program.json: a small ExecuTorch program, and what ExecuTorch's own reader says of it.

    python tools/make_golden_program.py

Needs the extra "mobile". The program has a linear layer for XNNPACK and a cumulative sum that its own kernels compute.
"""

from __future__ import annotations

import base64
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from executorch.exir._serialize._program import deserialize_pte_binary

from tersor.engines.executorch.program import Program, lower
from tersor.graph.writing.xnnpack import exported

TARGET = Path(__file__).resolve().parents[1] / "tests" / "files" / "golden_program.json"


class Sums(torch.nn.Module):
    """Sums along the features of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [1, 2] for [1, 3]."""
        return torch.cumsum(torch.relu(self.layer(x)), 1)


def main() -> None:
    """Lower, read, run, write."""
    torch.manual_seed(0)
    net, given = Sums().eval(), np.array([[1.0, 2.0, 3.0]], np.float32)
    data = lower(exported(net, {"x": given})).data
    (plan,) = deserialize_pte_binary(data).program.execution_plan
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sums.pte"
        path.write_bytes(data)
        with Program(path) as program:
            (made,) = program.run([given])
    content = {
        "executorch": version("executorch"),
        "program": base64.b64encode(data).decode(),
        "planned_bytes": sum(plan.non_const_buffer_sizes),
        "operators": [f"{row.name}.{row.overload}" for row in plan.operators],
        "delegates": [row.id for row in plan.delegates],
        "input": given.tolist(),
        "output": made.tolist(),
    }
    TARGET.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

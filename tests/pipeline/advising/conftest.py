from __future__ import annotations

from ..nets.conftest import folder, graph, net

__all__ = ["folder", "graph", "net"]

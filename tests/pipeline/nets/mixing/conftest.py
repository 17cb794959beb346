from __future__ import annotations

from typing import Any

import pytest

from tersor.graph.capture import capture
from tersor.graph.net import Net

from ..conftest import CLASSES, SIDE, fitted, folder

torch = pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")

__all__ = ["folder"]


@pytest.fixture(scope="session")
def graph() -> Net:
    """A trained net whose weights weigh more than what quantizers add to the graph."""

    class Larger(torch.nn.Module):  # type: ignore[name-defined,misc]  # importorskip gives no types
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
            self.second = torch.nn.Conv2d(16, 32, 3, padding=1, stride=2)
            self.third = torch.nn.Linear(512, 24)
            self.last = torch.nn.Linear(24, CLASSES)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.second(torch.relu(self.first(x))))
            return self.last(torch.relu(self.third(x.flatten(1))))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = fitted(Larger(), 0.005, 30)
    torch.set_num_threads(threads)
    return capture(net, torch.zeros(2, 3, SIDE, SIDE))

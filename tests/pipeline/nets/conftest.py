from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.graph.capture import capture
from tersor.graph.net import Net

torch = pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")
pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")
pytest.importorskip("onnxscript", reason="torch exports nets with it: pip install 'tersor[onnx]'")

CLASSES, SIDE = 4, 8


def images(count: int, seed: int) -> tuple[Any, Any]:
    """Noise with a quarter that is a little brighter; the quarter is the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = random.integers(0, 120, (count, SIDE, SIDE, 3))
    for image, label in zip(pixels, labels, strict=True):
        image[4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 14
    return pixels.astype(np.uint8), labels


def fitted(net: Any, rate: float, steps: int) -> Any:
    """Train a net on 256 images, all of them in each step, and return it."""
    pixels, labels = images(256, 1)
    x, y = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2) / 255), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def make_net() -> Any:
    """A small trained convolutional net with a residual."""

    class Small(torch.nn.Module):  # type: ignore[name-defined,misc]  # importorskip gives no types
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = torch.nn.BatchNorm2d(8)
            self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.pool = torch.nn.AvgPool2d(4)
            self.last = torch.nn.Linear(32, CLASSES)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.norm(self.first(x)))
            x = torch.relu(x + self.second(x))
            return self.last(self.pool(x).flatten(1))

    torch.manual_seed(0)
    net = Small()
    return fitted(net, 0.01, 30)


@pytest.fixture(scope="session")
def net() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_net()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def graph(net: Any) -> Net:
    """The graph of the net: exporting is what takes time."""
    return capture(net, torch.zeros(2, 3, SIDE, SIDE))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """calibration.npz and test.npz, in the current folder."""
    for name, seed in (("calibration", 2), ("test", 3)):
        pixels, labels = images(96, seed)
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path

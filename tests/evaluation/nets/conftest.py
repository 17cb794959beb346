"""A small net on random pictures, and the same net with rounded weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tersor.formats import get

torch = pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")

if TYPE_CHECKING:
    from torch.nn import Module

CLASSES = 7


def make_net(seed: int = 0) -> Module:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return torch.nn.Sequential(  # type: ignore[no-any-return]  # torch is imported by name
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, CLASSES),
    )


def round_weights(net: Module, name: str, only: str = "") -> Module:
    made = copy.deepcopy(net)
    for key, module in made.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and only in ("", key):
            weight: Any = module.weight.data
            rows = weight.reshape(len(weight), -1).numpy()
            form = get(name)
            module.weight.data = torch.from_numpy(form.decode(form.encode(rows), rows.shape[1])).reshape(weight.shape)
    return made


def pictures(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def batches(count: int, size: int, net: Module) -> list[tuple[Any, Any]]:
    """Batches whose labels are what `net` says, but for every fifth."""
    inputs = torch.from_numpy(pictures(count).astype(np.float32).transpose(0, 3, 1, 2) / 255)
    with torch.no_grad():
        labels = net.eval()(inputs).argmax(dim=1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    return [(inputs[at : at + size], labels[at : at + size]) for at in range(0, count, size)]

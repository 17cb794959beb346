"""What the examples share: scikit-learn's handwritten digits, a small net for them, and a loop that trains it."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["DigitNet", "batches", "load", "train"]


class Residual(nn.Module):
    """A filter for each channel, then one across channels, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        made = self.norm2(self.pointwise(torch.relu(self.norm1(self.depthwise(x)))))
        return torch.relu(x + made)


class DigitNet(nn.Module):
    """Convolution, four residual blocks at two sizes, a classifier."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks1, self.blocks2 = (nn.Sequential(*(Residual(channels) for _ in range(2))) for _ in range(2))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, 10] of images [n, 1, height, width]."""
        x = self.blocks2(self.pool(self.blocks1(self.stem(x))))
        scores: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def load(side: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images [n, 1, side, side] and labels to train on, and 497 to test with."""
    pixels, digits = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels.astype(np.float32).reshape(-1, 1, 8, 8) / 8 - 1)
    x = nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    y = torch.from_numpy(digits.astype(np.int64))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:1300]], y[order[:1300]], x[order[1300:]], y[order[1300:]]


def batches(x: Tensor, y: Tensor, size: int = 64, seed: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Return the data in batches, shuffled where there is a seed."""
    order = torch.arange(len(x))
    if seed is not None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return [(x[part], y[part]) for part in torch.split(order, size)]


def train(x: Tensor, y: Tensor, *, channels: int = 96, epochs: int = 12, seed: int = 0) -> nn.Module:
    """Return a net, trained in plain PyTorch and at rest; the same for the same seed."""
    torch.manual_seed(seed)
    net = DigitNet(channels)
    optimizer = torch.optim.AdamW(net.parameters(), 0.005)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs=epochs, steps_per_epoch=len(x) // 64 + 1)
    net.train()
    for epoch in range(epochs):
        for images, labels in batches(x, y, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            schedule.step()
    return net.eval()

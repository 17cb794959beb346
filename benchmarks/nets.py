"""The nets that benchmarks and examples measure on, written out: no package with them can be asked for here.

ResNet: He et al. 2015, arXiv:1512.03385 (18 for images of 224, 20 for CIFAR-10 with shortcuts that pad). MobileNetV2:
Sandler et al. 2018, arXiv:1801.04381.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["MobileNetV2", "ResNet18", "ResNet20", "cifar_resnet20", "normalised", "settled", "trained"]


class Block(nn.Module):
    """Two convolutions and a shortcut: a 1×1 convolution where shapes differ, or (`pads`) every second pixel."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, pads: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.extra, self.pads = (outputs - inputs) // 2, pads
        differs = not pads and (stride != 1 or inputs != outputs)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if differs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, rectified."""
        made = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.pads and self.extra:
            shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        else:
            shortcut = self.down(x)
        return torch.relu(made + shortcut)


class ResNet18(nn.Module):
    """For images of 224 × 224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        shapes = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        self.layers = nn.Sequential(*(nn.Sequential(Block(i, o, s), Block(o, o, 1)) for i, o, s in shapes))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, classes] of images [n, 3, height, width]."""
        x = self.layers(self.pool(torch.relu(self.bn1(self.conv1(x)))))
        scores: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


class ResNet20(nn.Module):
    """For CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(i if k == 0 else o, o, s if k == 0 else 1, pads=True) for k in range(3)))
            for i, o, s in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, 10] of images [n, 3, 32, 32]."""
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        scores: Tensor = self.linear(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


class Inverted(nn.Module):
    """Widen, filter each channel, narrow; with a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = inputs * widening
        layers: list[nn.Module] = []
        if widening != 1:
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers, self.adds = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        made: Tensor = self.layers(x)
        return x + made if self.adds else made


class MobileNetV2(nn.Module):
    """`width` scales the channels, `first` is the stride of the first convolution (1 for small images)."""

    def __init__(self, classes: int = 1000, *, width: float = 1.0, first: int = 2, channels: int = 3) -> None:
        super().__init__()

        def scaled(count: int) -> int:
            return max(8, int(count * width + 4) // 8 * 8)

        inputs = scaled(32)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, inputs, 3, first, 1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
        ]
        rows = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for widening, count, repeats, stride in rows:
            for number in range(repeats):
                layers.append(Inverted(inputs, scaled(count), 1 if number else stride, widening))
                inputs = scaled(count)
        last = max(1280, int(1280 * width))
        layers += [nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
        self.features, self.fc = nn.Sequential(*layers), nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [n, classes] of images [n, channels, height, width]."""
        scores: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return scores


def settled(net: nn.Module, shape: tuple[int, ...], seed: int = 0, batches: int = 4) -> nn.Module:
    """Return a net of random weights whose batch norms have seen noise, at rest: for speed and noise, not accuracy."""
    generator = torch.Generator().manual_seed(seed)
    net.train()
    with torch.no_grad():
        for _ in range(batches):
            net(torch.randn(shape, generator=generator))
    return net.eval()


def cifar_resnet20(folder: Path) -> nn.Module:
    """Return the trained net that lies in a folder as resnet20.safetensors."""
    from safetensors.torch import load_file  # noqa: PLC0415 (an extra)

    net = ResNet20()
    net.load_state_dict(load_file(folder / "resnet20.safetensors"), strict=False)
    return net.eval()


def normalised(pixels: np.ndarray) -> Tensor:
    """Return images uint8 [n, h, w, 3] as the CIFAR net takes them."""
    mean, std = (np.array(values, np.float32) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def trained(net: nn.Module, x: Tensor, y: Tensor, *, epochs: int, seed: int = 0, rate: float = 0.004) -> nn.Module:
    """Return the net, trained with AdamW and a cosine schedule, at rest."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.01)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for at in range(0, len(x) - 63, 64):
            part = order[at : at + 64]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            schedule.step()
    return net.eval()

"""Small nets of every kind, in torch."""

from __future__ import annotations

import warnings
from typing import Any

from .conftest import ir, torch

nn = torch.nn


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


def resnet() -> Any:
    stem = [nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(
        *stem, Residual(8, 8, 1), Residual(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )


def mobilenet() -> Any:
    def block(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[Any]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]

    layers = [*block(3, 8, 3, 2, 1), *block(8, 24, 1, 1, 1), *block(24, 24, 3, 1, 24), *block(24, 12, 1, 1, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Hardswish(), nn.Linear(12, 5))


class Encoder(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.place = nn.Parameter(torch.randn(6, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.layers(self.embed(tokens) + self.place).mean(1))


def audio() -> Any:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, 2), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv1d(8, 8, 3, dilation=2, groups=4),
        nn.LeakyReLU(0.1), nn.AvgPool1d(2), nn.ConvTranspose1d(8, 4, 4, 2, 1), nn.PReLU(), nn.Flatten(),
        nn.LazyLinear(3), nn.Softmax(-1),
    )  # fmt: skip


NETS = {
    "resnet": (resnet, lambda batch: torch.randn(batch, 3, 16, 16)),
    "mobilenet": (mobilenet, lambda batch: torch.randn(batch, 3, 16, 16)),
    "encoder": (Encoder, lambda batch: torch.randint(0, 11, (batch, 6))),
    "audio": (audio, lambda batch: torch.randn(batch, 2, 64)),
}


def made(name: str) -> tuple[Any, Any]:
    """Return a net with statistics of its own, at rest, and a function that draws a batch for it."""
    torch.manual_seed(0)
    make: Any = NETS[name][0]
    draw: Any = NETS[name][1]
    net = make()
    with torch.no_grad():
        net.train()
        net(draw(8))
        for parameter in net.parameters():  # the exporter makes one of parameters that are equal
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net.eval(), draw


def exported(net: Any, example: Any, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(net, (example,), dynamo=True, dynamic_shapes=batch, verbose=False, **more)
    return ir.from_proto(program.model_proto)

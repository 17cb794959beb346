"""Handwritten digits: rounding a small net to three or four bits loses what training with the roundings regains."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest

from tersor.graph.net import Net
from tersor.graph.ptq import Recipe, quantize_net
from tersor.graph.training.convert import convert
from tersor.graph.training.prepare import prepare
from tersor.graph.training.train import Options, adam, train

from ..conftest import run
from .conftest import ir, torch
from .nets import exported

datasets = pytest.importorskip("sklearn.datasets", reason="has the digits: pip install scikit-learn")
onnxscript = pytest.importorskip("onnxscript", reason="exports nets: pip install 'tersor[onnx]'")
nn = torch.nn
pytestmark = pytest.mark.slow

SEEDS = (1, 2, 3)


def digits() -> tuple[Any, Any, Any, Any]:
    """Return images and classes, for training and held out."""
    found = datasets.load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = 1200
    return x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]]


def mobile() -> Any:
    """Return a net of depthwise convolutions with few channels: rounding hurts it."""

    def block(inputs: int, outputs: int, stride: int) -> list[Any]:
        wide = 3 * inputs
        layers: list[Any] = []
        for conv in (
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.Conv2d(wide, outputs, 1, bias=False),
        ):
            layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6()]
        return layers

    stem = [nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    blocks = [*block(8, 8, 1), *block(8, 12, 2), *block(12, 16, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def accuracy(logits: Any, y: Any) -> float:
    return 100 * float((torch.as_tensor(np.asarray(logits)).argmax(-1) == y).float().mean())


@pytest.fixture(scope="module")
def trained() -> Any:
    torch.manual_seed(0)
    x, y, _, _ = digits()
    net = mobile()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(25):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return net.eval()


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("with_norms", [False, True], ids=["folded", "norms"])
def test_training_regains_what_rounding_loses(trained: Any, bits: int, with_norms: bool) -> None:
    x, _, held_x, held_y = digits()
    model = exported(trained, x[:2], optimize=not with_norms)
    if with_norms:  # the exporter's own optimization folds them
        onnxscript.optimizer.fold_constants(model)
    net = Net.parse(ir.to_proto(model).SerializeToString(), "digits")
    (name,) = [str(value.name) for value in net.inputs]
    plain = Recipe(bits=bits, weights="rtn", equalize=False, smooth=False, biases=False)  # the default loses too little
    start = quantize_net(net, [x[:256].numpy()], plain, threads=1)
    wanted = accuracy(trained(held_x).detach(), held_y)
    lost = accuracy(next(iter(run(start.net, {name: held_x.numpy()}).values())), held_y)
    found = [_trained_again(trained, start, net if with_norms else None, seed) for seed in SEEDS]
    logging.getLogger(__name__).info("w%da8: float %.1f %%, PTQ %.1f %%, QAT %s %%", bits, wanted, lost, found)
    assert lost < wanted - (3 if bits == 3 else 0.5)
    # Another CPU trains another net, and one training differs from the next by up to nine images of 597. On four nets
    # with folded norms and 3 bits 80 to 97 % came back in each of 15 trainings; with 4 bits .84 points were missing.
    regained = (np.mean(found) - lost) / (wanted - lost)
    assert regained >= (0.75 if bits == 3 else 0.5)
    if bits == 4:
        assert np.mean(found) >= wanted - 1


def _trained_again(trained: Any, start: Any, norms: Net | None, seed: int) -> float:
    """Return how much of the held-out digits the trained integers get right, in per cent."""
    x, y, held_x, held_y = digits()
    module = prepare(start, norms=norms)
    torch.manual_seed(seed)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64, shuffle=True)
    teacher = copy.deepcopy(trained)
    train(module, loader, 12, Options(loss=nn.functional.cross_entropy, teacher=teacher, optimizer=adam(1e-2)))
    made = convert(module, start).net
    (name,) = [str(value.name) for value in made.inputs]
    found = accuracy(next(iter(run(made, {name: held_x.numpy()}).values())), held_y)
    assert abs(found - accuracy(module(held_x).detach(), held_y)) <= 0.35
    return found

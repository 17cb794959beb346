"""A prepared net is an ordinary module: the loops of other libraries train it, and what they made is converted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.graph.ptq import QuantizedNet
from tersor.graph.training.convert import convert
from tersor.graph.training.prepare import prepare
from tersor.graph.training.train import adam

from ..conftest import images, quantized, resnet, run, sqnr
from .conftest import torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the libraries
nn = torch.nn


@pytest.fixture
def start() -> QuantizedNet:
    """A net whose weights have 3 bits."""
    return quantized(resnet().net(), images(8, 3, 16, 16), bits=3)


@pytest.fixture
def data() -> Any:
    """Sixty-four images and what the float net says of them: there is something to learn."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 16, 16)
    return x, (x.mean((1, 2, 3)) > 0).long()


def check(module: Any, start: QuantizedNet, before: float, after: float, x: Any) -> None:
    """Training has lowered the loss, and the integers compute what was trained."""
    assert after < 0.9 * before
    made = convert(module, start)
    with torch.no_grad():
        wanted = module.eval()(x[:4]).numpy()
    assert sqnr(wanted, run(made.net, {"x": x[:4].numpy()})["logits"]) > 40
    assert any((made.weights[name].codes != weight.codes).any() for name, weight in start.weights.items())


def loss_of(module: Any, data: Any) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module.eval()(data[0]), data[1]))


def test_a_plain_loop_trains_it(start: QuantizedNet, data: Any) -> None:
    module = prepare(start)
    before, optimizer = loss_of(module, data), adam(0.01)(module)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module.train()(data[0]), data[1]).backward()
        optimizer.step()
    check(module, start, before, loss_of(module, data), data[0])


def test_lightning_trains_it(start: QuantizedNet, data: Any, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="another loop: pip install lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Learner(lightning.LightningModule):  # type: ignore[misc,name-defined]  # no types where it is absent
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

        def training_step(self, batch: Any, _number: int) -> Any:
            return nn.functional.cross_entropy(self.module(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return adam(0.01)(self)

    module = prepare(start)
    before = loss_of(module, data)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), 64)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(
        max_epochs=12, accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path, **quiet
    ).fit(Learner(module), loader)
    check(module, start, before, loss_of(module, data), data[0])


def test_the_trainer_of_transformers_trains_it(start: QuantizedNet, data: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it: pip install accelerate")
    transformers = pytest.importorskip("transformers", reason="another loop: pip install transformers")

    class Learner(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            logits = self.module(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    module = prepare(start)
    before = loss_of(module, data)
    rows = [{"x": x, "labels": y} for x, y in zip(*data, strict=True)]
    learner = Learner(module)
    transformers.Trainer(
        learner,
        transformers.TrainingArguments(
            str(tmp_path), num_train_epochs=12, per_device_train_batch_size=64, use_cpu=True, report_to=[],
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        ),
        train_dataset=rows,
        optimizers=(adam(0.01)(learner), None),
    ).train()  # fmt: skip
    check(module, start, before, loss_of(module, data), data[0])
    assert np.isfinite(loss_of(module, data))

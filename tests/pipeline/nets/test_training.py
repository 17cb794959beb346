from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.capture import capture
from tersor.graph.net import Net, constant
from tersor.graph.ptq import Recipe, quantize_net
from tersor.graph.sessions import Session
from tersor.pipeline.nets.quantizing import NetHow, quantize_network
from tersor.pipeline.nets.training import Training, _Lesson, train_quantized

from .conftest import images

torch = pytest.importorskip("torch", reason="trains in torch: pip install 'tersor[torch]'")
nn = torch.nn


def batches(seed: int = 2) -> list[Any]:
    pixels, labels = images(96, seed)
    x = pixels.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)
    return [
        (torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(np.split(x, 6), np.split(labels, 6), strict=True)
    ]


def retrained(graph: Net) -> Net:
    """The same net, with weights that are a little other."""
    made = graph.copy()
    weight = constant(made.value("second.weight"))
    assert weight is not None
    made.set_constant("second.weight", weight * np.float32(1.01))
    return made


def test_checkpoints_of_another_net_or_of_other_data_are_not_gone_on_from(graph: Net, tmp_path: Path) -> None:
    training = Training(batches(), epochs=2, rate=0.01, folder=tmp_path / "work")
    how = NetHow(calibration=batches(), training=training, bench=False, threads=1)
    first = quantize_network(graph, "int2", how)
    resumed = replace(how, training=replace(training, resume=True))
    assert quantize_network(graph, "int2", resumed).quantized.net.to_bytes() == first.quantized.net.to_bytes()
    with pytest.raises(SchemeError, match="made with another net: "):
        quantize_network(retrained(graph), "int2", resumed)
    other = replace(training, data=batches(3), resume=True)
    with pytest.raises(SchemeError, match="made with another data: "):
        quantize_network(graph, "int2", replace(how, training=other))
    alone = quantize_network(retrained(graph), "int2", replace(how, training=replace(training, folder=None)))
    anew = quantize_network(retrained(graph), "int2", how)
    assert anew.quantized.net.to_bytes() == alone.quantized.net.to_bytes()


def taught(net: Any, data: list[Any], x: Any, *, epochs: int = 6) -> tuple[float, Any]:
    """Return the share of the noise of two bits that training leaves, and how it went."""
    rounded = quantize_net(capture(net, x[:2]), [x], Recipe(bits=2), threads=1)
    trained, told = train_quantized(rounded, Training(data, epochs=epochs))
    wanted, before, after = (
        Session(each, threads=1).first({str(each.inputs[0].name): x.numpy()})
        for each in (rounded.source, rounded.net, trained.net)
    )
    return float(np.square(after - wanted).sum() / np.square(before - wanted).sum()), told


def test_one_number_an_item_is_learned() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)).eval(), torch.randn(256, 8)
    left, told = taught(net, [(part,) for part in x.split(16)], x)
    assert min(epoch.loss for epoch in told.epochs) > 0
    assert told.best >= 0
    assert left < 0.8


def test_classes_of_maps_are_told_apart_place_by_place() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)
    net, x = nn.Sequential(*layers).eval(), torch.randn(16, 3, 5, 6)
    rounded = quantize_net(capture(net, x[:2]), [x], Recipe(bits=2), threads=1)
    _, told = train_quantized(rounded, Training([(part,) for part in x.split(8)], epochs=1, rate=1e-12))
    kept = {str(rounded.net.inputs[0].name): x[:8].numpy()}
    made, wanted = (
        torch.log_softmax(torch.from_numpy(Session(each, threads=1).first(kept)), 1)
        for each in (rounded.net, rounded.source)
    )
    divergence = (wanted.exp() * (wanted - made)).sum(1).mean()
    assert told.epochs[0].score == pytest.approx(-float(divergence), rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "labels", "axis"),
    [
        ((8, 5), None, 1),
        ((8, 5), (8,), 1),
        ((8, 1), None, None),
        ((8,), None, None),
        ((8, 7, 5), None, 2),
        ((8, 7, 5), (8, 7), 2),
        ((8, 5, 7), (8, 7), 1),
        ((8, 5, 5), (8, 5), 2),
        ((8, 5, 6, 7), None, 1),
        ((8, 5, 6, 7), (8, 6, 7), 1),
        ((8, 6, 7, 5), (8, 6, 7), 3),
    ],
)
def test_classes_lie_along_the_axis_that_labels_lack(shape: Any, labels: Any, axis: int | None) -> None:
    made = torch.randn(*shape)
    given = None if labels is None else torch.zeros(*labels, dtype=torch.long)
    lesson = _Lesson([((made,), given)], nn.Identity())
    assert lesson.axis == axis
    assert float(lesson.distance(made, made)) == pytest.approx(0, abs=1e-6)
    assert float(lesson.distance(made + torch.randn(*shape), made)) > 0.01
    if given is not None:
        assert axis is not None
        wanted = -torch.log_softmax(made, axis).select(axis, 0).mean()
        torch.testing.assert_close(lesson.cross_entropy(made, given), wanted)


def test_labels_that_are_no_classes_and_nets_of_two_outputs_are_refused() -> None:
    x = torch.randn(32, 8)
    net = nn.Sequential(nn.Linear(8, 4))
    for labels, words in (
        (torch.rand(32, 1), r"training batch 0: labels are torch\.float32 \[16, 1\], and classes are whole numbers"),
        (
            torch.zeros(32, 1, dtype=torch.long),
            r"labels are \[16, 1\] and the net gives \[16, 4\]: .* leave the labels",
        ),
    ):
        with pytest.raises(SchemeError, match=words):
            taught(net, list(zip(x.split(16), labels.split(16), strict=True)), x)
    with pytest.raises(SchemeError, match=r"the net gives \[16, 1\]"):
        taught(nn.Linear(8, 1), list(zip(x.split(16), torch.zeros(32, dtype=torch.long).split(16), strict=True)), x)

    class Two(nn.Module):  # type: ignore[misc, name-defined]  # nn is Any where torch is absent
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.first(x), self.second(x)

    with pytest.raises(SchemeError, match=r"Two has the outputs \w+, \w+; training is taught by one"):
        taught(Two(), [(part,) for part in x.split(16)], x)

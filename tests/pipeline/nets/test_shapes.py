"""Nets whose inputs are more, or less, than one batch of free size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.graph.conftest import Drawing, images, run, sqnr

from tersor.core.errors import ShapeError
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe
from tersor.pipeline.nets import quantizing
from tersor.pipeline.nets.quantizing import NetHow, quantize_network


def fixed() -> tuple[Net, Any]:
    """A batch of four, whatever the caller has."""
    d = Drawing()
    d.add("Gemm", d.input("x", [4, 16]), d.weight(16, 8), made="y")
    return d.output("y").net(), images(4, 16)


def recurrent() -> tuple[Net, Any]:
    """A state of [layers, batch, size] beside the input."""
    d = Drawing()
    made = d.add("Gemm", d.input("x", ["n", 16]), d.weight(16, 8))
    layer = d.add("Gather", d.input("state", [2, "n", 8]), d.constant(1, kind="int64"), axis=0)
    d.add("Add", made, layer, made="y")
    return d.output("y").net(), [{"x": x, "state": images(2, 4, 8)[0]} for x in images(4, 16)]


def tempered() -> tuple[Net, Any]:
    """A number before the input, which stands for no item."""
    d = Drawing()
    number = d.input("temperature", [])
    d.add("Div", d.add("Gemm", d.input("x", ["n", 16]), d.weight(16, 8)), number, made="y")
    return d.output("y").net(), [{"x": x, "temperature": 2.0} for x in images(4, 16)]


def test_a_number_may_stand_beside_a_batch() -> None:
    net, batches = tempered()
    result = quantize_network(net, "int8", NetHow(batches, threads=1))
    assert [race.settings["batch"] for race in result.card.benchmarks] == [1]
    assert result.card.plan.recipe.calibration == "list: 16 items in 4 batches"
    wanted = run(net, {"x": batches[0]["x"], "temperature": np.asarray(2.0, np.float32)})["y"]
    assert sqnr(wanted, result(**batches[0])) > 30


def picturing(batch: Any) -> Net:
    """Classes of images [batch, 3, 8, 8]."""
    d = Drawing()
    made = d.add("GlobalAveragePool", d.add("Relu", d.conv(d.input("x", [batch, 3, 8, 8]), 3, 8)))
    d.add("Gemm", d.add("Flatten", made), d.weight(8, 4), made="y")
    return d.output("y").net()


@pytest.mark.parametrize("batch", [1, 20])
def test_archives_come_in_batches_of_the_size_that_a_net_takes(
    folder: Path, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    taken = 96 - 96 % batch
    plain = Recipe(equalize=False)
    how = NetHow("calibration.npz", data="test.npz", recipe=plain, max_drop=100.0, threads=1, bench=False)
    free, found = (quantize_network(picturing(size), "int8", how) for size in ("n", batch))
    assert found.card.plan.recipe.calibration == f"calibration.npz: {taken} items in {taken // batch} batches"
    assert found.card.evaluations[0].settings["items"] == taken
    told = [
        f"{name}.npz: the last 16 of 96 items are left out: the net takes 20 at a time"
        for name in ("test", "calibration")
    ]
    assert [record.message for record in caplog.records] == (told if batch == 20 else [])
    if batch == 1:  # the same images, one by one
        for name, quantizer in found.quantized.activations.items():
            np.testing.assert_allclose(quantizer.scale, free.quantized.activations[name].scale, rtol=1e-6)
    with np.load("calibration.npz") as arrays:
        np.savez("fed.npz", x=arrays["images"].astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255))
    fed = quantize_network(picturing(batch), "int8", replace(how, calibration="fed.npz"))
    assert fed.quantized.net.to_bytes() == found.quantized.net.to_bytes()


def test_fewer_items_than_a_net_takes_are_refused(folder: Path) -> None:
    for calibration, data in (("calibration.npz", None), ([np.zeros((97, 3, 8, 8), np.float32)], "test.npz")):
        with pytest.raises(ShapeError, match=r"\.npz: 96 items are not enough: the net takes 97 at a time"):
            quantize_network(picturing(97), "int8", NetHow(calibration, data=data, threads=1, bench=False))


def test_a_folder_of_images_comes_in_batches_of_the_size_that_a_net_takes(folder: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="images are read with Pillow")
    with np.load("test.npz") as arrays:
        for number, (pixels, label) in enumerate(zip(arrays["images"][:6], arrays["labels"][:6], strict=True)):
            place = folder / "pictures" / str(label)
            place.mkdir(parents=True, exist_ok=True)
            pillow.fromarray(pixels).save(place / f"{number}.png")
    result = quantize_network(picturing(4), "int8", NetHow("pictures", data="pictures", threads=1, bench=False))
    assert result.card.evaluations[0].settings["items"] == 4


@pytest.mark.parametrize("make", [fixed, recurrent])
def test_a_batch_that_cannot_be_parted_is_measured_whole(make: Any) -> None:
    net, batches = make()
    result = quantize_network(net, "int8", NetHow(batches, threads=1))
    assert [race.settings["batch"] for race in result.card.benchmarks] == [4]


def test_what_nobody_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "race_nets", None)
    net, batches = fixed()
    assert quantize_network(net, "int8", NetHow(batches, threads=1, bench=False)).card.benchmarks == ()

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError, ShapeError, TersorError
from tersor.graph.placement.engines import ENGINES
from tersor.graph.ptq import Recipe, quantize_net
from tersor.graph.ranges import RANGES

from .conftest import Drawing, by_name, images, mobilenet, operators, quantized, resnet, run, sqnr


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_net_on_integers_computes_nearly_what_the_net_does(ranges: str, engine: str) -> None:
    net = resnet().net()
    made = quantized(net, images(16, 3, 16, 16), ranges=ranges, engine=engine)
    x = images(8, 3, 16, 16, seed=9)[0]
    assert sqnr(run(net, {"x": x})["logits"], run(made.net, {"x": x})["logits"]) > 25
    assert (made.recipe.ranges, made.recipe.engine) == (ranges, engine)
    assert set(made.activations) == set(made.placement.activations)


def test_more_bits_of_weights_are_better() -> None:
    net, x = mobilenet().net(), images(8, 3, 16, 16, seed=9)[0]
    wanted = run(net, {"x": x})["logits"]
    made = [quantized(net, images(8, 3, 16, 16), bits=bits) for bits in (2, 3, 4, 8)]
    found = [sqnr(wanted, run(each.net, {"x": x})["logits"]) for each in made]
    assert found == sorted(found)
    assert found[-1] > 30


def test_the_same_data_gives_the_same_bytes_and_the_net_stays() -> None:
    net = mobilenet().net()
    before = net.to_bytes()
    one, other = (quantized(net, images(4, 3, 16, 16)).net.to_bytes() for _ in range(2))
    assert one == other
    assert net.to_bytes() == before


def test_batches_and_their_order_change_nothing_of_minmax() -> None:
    net, x = resnet().net(), images(12, 3, 16, 16)[0]
    parts = [[x], list(np.split(x, 4)), list(np.split(x, 12))[::-1]]
    made = [quantized(net, part) for part in parts]
    for name, quantizer in made[0].activations.items():
        for other in made[1:]:
            np.testing.assert_allclose(other.activations[name].scale, quantizer.scale, rtol=1e-5)
            assert abs(int(other.activations[name].zero_point) - int(quantizer.zero_point)) <= 1


def test_any_batch_runs() -> None:
    made = quantized(resnet().net(), images(4, 3, 16, 16))
    x = images(7, 3, 16, 16)[0]
    whole = run(made.net, {"x": x}, optimized=True)["logits"]
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        part = run(made.net, {"x": x[start:stop]}, optimized=True)["logits"]
        np.testing.assert_allclose(part, whole[start:stop], atol=1e-5)


def test_operators_that_are_left_stay_in_float() -> None:
    net = resnet().net()
    made = quantized(net, images(4, 3, 16, 16), left=("conv0", "gemm22"))
    assert {kept.node: kept.reason for kept in made.placement.kept} == {"conv0": "asked for", "gemm22": "asked for"}
    nodes = by_name(made.net)
    for name in ("conv0", "gemm22"):
        assert nodes[name].inputs[1] is not None
        assert nodes[name].inputs[1].producer() is None
    better = quantized(net, images(4, 3, 16, 16), left=[*made.placement.integer, "conv0", "gemm22"])
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(better.net))


def test_a_net_of_float_operators_only_stays_one() -> None:
    d = Drawing()
    net = d.output(d.add("Softmax", d.input("x", ["batch", 4]), made="y")).net()
    made = quantized(net, images(2, 4), ranges="mse")
    x = images(2, 4)[0]
    np.testing.assert_array_equal(run(made.net, {"x": x})["y"], run(net, {"x": x})["y"])


def constant_net() -> Any:
    d = Drawing()
    y = d.add("Mul", d.conv(d.input("x", ["batch", 3, 8, 8]), 3, 4), d.constant(0.0))
    return d.output(d.conv(y, 4, 2, made="y")).net()


@pytest.mark.parametrize("ranges", RANGES)
def test_activations_that_are_always_zero_and_data_of_zeros_are_no_harm(ranges: str) -> None:
    x = images(2, 3, 8, 8)[0]
    for net, data in ((constant_net(), x), (constant_net(), 0 * x), (resnet().net(), np.zeros((2, 3, 16, 16), "f"))):
        made = quantized(net, [data], ranges=ranges)
        wanted, found = run(made.source, {"x": data}), run(made.net, {"x": data})
        for name, array in wanted.items():
            assert sqnr(array, found[name]) > 20


REFUSED: dict[str, tuple[Any, dict[str, Any], type[TersorError], str]] = {
    "no data": ([], {}, SchemeError, "is empty"),
    "NaN": ([np.full((1, 3, 16, 16), np.nan, np.float32)], {}, FormatError, "calibration batch 0: x holds nan"),
    "another shape": ([np.zeros((1, 1, 28, 28), np.float32)], {}, ShapeError, "the net takes"),
    "an engine": (images(1, 3, 16, 16), {"engine": "tflite"}, SchemeError, "no engine 'tflite'"),
    "a range": (images(1, 3, 16, 16), {"ranges": "best"}, SchemeError, "no range 'best'"),
    "a method": (images(1, 3, 16, 16), {"weights": "nearest"}, SchemeError, "no method 'nearest'"),
    "bits": (images(1, 3, 16, 16), {"bits": 1}, SchemeError, "not 1"),
    "an operator": (images(1, 3, 16, 16), {"left": ("head",)}, SchemeError, "no operator 'head'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_message(case: str) -> None:
    data, recipe, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        quantize_net(resnet().net(), data, Recipe(**recipe), threads=1)


def test_a_saved_net_is_the_net(tmp_path: Any) -> None:
    made = quantized(resnet().net(), images(4, 3, 16, 16))
    size = made.net.save(tmp_path / "net.onnx")
    data = (tmp_path / "net.onnx").read_bytes()
    assert (len(data), data) == (size, made.net.to_bytes())
    assert size < len(resnet().net().to_bytes())

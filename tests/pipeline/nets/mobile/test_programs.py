"""What a runtime may differ by from our own arithmetic, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.graph.net import Net
from tersor.graph.ptq import QuantizedNet, Recipe, quantize_net
from tersor.graph.sessions import Session
from tersor.pipeline.nets.mobile import programs
from tersor.pipeline.nets.mobile.programs import AGREEMENT, SHARE_OF_NOISE, make_program

from ..conftest import images


@pytest.fixture
def sample() -> dict[str, Any]:
    pixels, _ = images(12, 5)
    return {"x": pixels.astype(np.float32).transpose(0, 3, 1, 2) / 255}


@pytest.fixture
def quantized(graph: Net, sample: dict[str, Any]) -> QuantizedNet:
    return quantize_net(graph, [sample], replace(Recipe(), engine="onnxruntime"))


def differing(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the runtime's outputs be others than it computed, knowing what they were to be and how far from float."""
    real = programs._OnnxRuntime

    class Changed(real):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.outputs = [[change(each) for each in one] for one in self.wanted]

    monkeypatch.setattr(programs, "_OnnxRuntime", Changed)


def metrics(quantized: QuantizedNet, sample: dict[str, Any]) -> dict[str, float]:
    made = make_program(quantized, sample, ".ort", threads=1)
    return {metric.name: metric.value for metric in made.benchmark.metrics}


def test_what_rounding_moves_less_than_quantizing_did_is_taken(
    quantized: QuantizedNet, sample: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metrics(quantized, sample)["runtime_difference"] <= AGREEMENT
    monkeypatch.setattr(programs, "AGREEMENT", 1e-9)
    random = np.random.default_rng(0)
    differing(monkeypatch, lambda wanted: wanted + 1e-5 * random.standard_normal(wanted.shape).astype(np.float32))
    found = metrics(quantized, sample)
    assert found["runtime_difference"] > 1e-9
    assert 0 < found["runtime_share_of_noise"] <= SHARE_OF_NOISE


def changed(wanted: Any) -> Any:
    return np.roll(wanted, 1, axis=-1)


@pytest.mark.parametrize("change", [changed, lambda wanted: 1.5 * wanted, lambda wanted: wanted * np.float32("nan")])
def test_what_is_another_computation_is_refused(
    change: Any, quantized: QuantizedNet, sample: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    differing(monkeypatch, change)
    with pytest.raises(EngineError, match=r"computes something else .* of what quantizing moved it by"):
        make_program(quantized, sample, ".ort", threads=1)


def test_every_output_is_compared_and_classes_are_not(sample: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")
    make, random = onnx.helper, np.random.default_rng(0)
    kernels = {name: random.standard_normal((4, 3, 3, 3)).astype(np.float32) / 5 for name in ("first", "second")}
    nodes = [make.make_node("Conv", ["x", name], [f"y_{name}"], name=f"conv_{name}") for name in kernels]
    nodes.append(make.make_node("ArgMax", ["y_first"], ["class"], name="likeliest", axis=1))
    shape = ["n", *next(iter(sample.values())).shape[1:]]
    rows, columns = (size - 2 for size in shape[2:])
    ends = [make.make_tensor_value_info("class", 7, ["n", 1, rows, columns])]
    ends += [make.make_tensor_value_info(f"y_{name}", 1, ["n", 4, rows, columns]) for name in kernels]
    stored = [onnx.numpy_helper.from_array(values, name) for name, values in kernels.items()]
    drawn = make.make_graph(nodes, "net", [make.make_tensor_value_info("x", 1, shape)], ends, stored)
    model = make.make_model(drawn, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    net = Net.parse(model.SerializeToString(), "net")
    quantized = quantize_net(net, [sample], replace(Recipe(), engine="onnxruntime"))
    assert metrics(quantized, sample)["runtime_difference"] <= AGREEMENT
    real = programs._OnnxRuntime

    class Changed(real):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.outputs = [[one[0] + 1, one[1], one[2] if is_kept else changed(one[2])] for one in self.wanted]

    monkeypatch.setattr(programs, "_OnnxRuntime", Changed)
    is_kept = True
    assert metrics(quantized, sample)["runtime_difference"] == 0
    is_kept = False
    with pytest.raises(EngineError, match="computes something else"):
        make_program(quantized, sample, ".ort", threads=1)


def test_each_output_is_judged_by_itself(
    quantized: QuantizedNet, sample: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that rounding moves a little beside one that no rounding reaches, and so has no noise to be a share of."""
    monkeypatch.setattr(programs, "AGREEMENT", 1e-9)
    real = programs._OnnxRuntime

    class Twice(Session):
        def all(self, feeds: Any) -> list[Any]:
            return [*super().all(feeds), feeds["x"]]

    class Moved(real):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.outputs = [[one[0] + np.float32(1e-5), one[1]] for one in self.wanted]

    monkeypatch.setattr(programs, "Session", Twice)
    monkeypatch.setattr(programs, "_OnnxRuntime", Moved)
    assert metrics(quantized, sample)["runtime_difference"] > 1e-9

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.core.errors import SchemeError
from tersor.graph.net import Net
from tersor.graph.placement.engines import ENGINES, PASSING, WITH_WEIGHTS, Engine, engine

from ..conftest import Drawing, fused, images, mobilenet, onnx, quantized, resnet

FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "GlobalAveragePool", "AveragePool", "Mul", "Concat"}


@pytest.mark.parametrize("row", ENGINES.values(), ids=ENGINES.keys())
def test_a_row_names_operators_of_the_standard_and_is_found_by_its_name(row: Engine) -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    for operators in (row.weighted, row.joining, row.passing, row.closed, row.fused, PASSING, WITH_WEIGHTS):
        assert set(operators) <= known
        assert len(set(operators)) == len(operators)
    assert set(row.weighted) <= set(WITH_WEIGHTS)
    assert set(row.closed) <= {*row.weighted, *row.joining}
    assert not set(row.passing) & {*row.weighted, *row.joining, *row.fused}
    assert engine(row.name) is row


def test_an_engine_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(SchemeError, match="no engine 'tflite'; there are onnxruntime, openvino"):
        engine("tflite")


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_onnx_runtime_runs_every_operator_of_a_residual_net_on_integers(tmp_path: Path, opset: int) -> None:
    made = quantized(resnet(opset=opset).net(), images(4, 3, 16, 16))
    found = fused(made.net, tmp_path)
    assert not FLOAT & set(found)
    assert found["QuantizeLinear"] == 1
    assert "DequantizeLinear" not in found
    wanted = {"QLinearConv": 6, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_onnx_runtime_runs_every_operator_of_a_mobile_net_on_integers(tmp_path: Path, opset: int, ranges: str) -> None:
    made = quantized(mobilenet(opset=opset).net(), images(4, 3, 16, 16), ranges=ranges)
    found = fused(made.net, tmp_path)
    assert not {"Clip", *FLOAT} & set(found)
    assert found["QuantizeLinear"] == 1
    wanted = {"QLinearConv": 11, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert {name: found.get(name) for name in wanted} == wanted


def joined(d: Drawing, x: str, operator: str) -> str:
    left, right = d.add("Relu", d.conv(x, 4, 4)), d.conv(x, 4, 4)
    if operator in ("Add", "Mul"):
        return d.add(operator, left, right)
    if operator == "Concat":
        return d.conv(d.add("Concat", left, right, axis=1), 8, 4)
    if operator in ("AveragePool", "MaxPool"):
        return d.add(operator, left, kernel_shape=[2, 2])
    if operator == "Clip":
        return d.add("Clip", right, d.constant(-0.1), d.constant(0.2))
    return d.add(operator, right)


@pytest.mark.parametrize(
    "operator",
    ["Add", "Mul", "Concat", "AveragePool", "MaxPool", "Relu", "Clip", "Sigmoid", "LeakyRelu", "GlobalAveragePool"],
)
def test_onnx_runtime_has_an_integer_kernel_for_what_its_row_says(operator: str, tmp_path: Path) -> None:
    d = Drawing()
    y = d.conv(joined(d, d.input("x", ["batch", 4, 8, 8]), operator), 4, 4, made="y")
    found = fused(quantized(d.output(y).net(), images(4, 4, 8, 8)).net, tmp_path)
    assert not {operator, *FLOAT} & (set(found) - {"MaxPool"})
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)


def test_onnx_runtime_multiplies_matrices_on_integers(tmp_path: Path) -> None:
    d = Drawing()
    x = d.input("x", ["batch", 6, 8])
    y = d.add("Add", d.add("MatMul", x, d.weight(8, 8)), d.weight(8))
    y = d.add("MatMul", y, d.add("Transpose", d.add("MatMul", x, d.weight(8, 8)), perm=[0, 2, 1]))
    d.add("Sigmoid", y, made="y")
    found = fused(quantized(d.output("y").net(), images(4, 6, 8)).net, tmp_path)
    assert found["MatMulIntegerToFloat"] + found.get("QLinearMatMul", 0) == 3
    assert "MatMul" not in found


@pytest.mark.parametrize("operator", ["ConvTranspose", "ReduceMean"])
def test_what_onnx_runtime_has_no_integers_for_is_not_in_its_row(operator: str, tmp_path: Path) -> None:
    """When this fails, the engine has learned it: put the operator into the row."""
    row = ENGINES["onnxruntime"]
    assert operator not in (*row.weighted, *row.joining)
    d = Drawing()
    d.constants |= {"s": d.random.uniform(0.1, 0.2, ()), "z": d.random.integers(3, 9, ())}
    d.constants = {"s": d.constants["s"].astype("float32"), "z": d.constants["z"].astype("uint8")}
    d.constants |= {
        "w": d.random.integers(-9, 9, (4, 4, 3, 3)).astype("int8"),
        "o": d.constants["z"].astype("int8") * 0,
    }

    def decoded(codes: str, zero: str = "z") -> str:
        return d.add("DequantizeLinear", codes, "s", zero)

    x = decoded(d.add("QuantizeLinear", d.input("x", ["batch", 4, 8, 8]), "s", "z"))
    more = {"axes": [2]} if operator == "ReduceMean" else {}
    inputs = [x, decoded("w", "o")] if operator == "ConvTranspose" else [x]
    decoded(d.add("QuantizeLinear", d.add(operator, *inputs, **more), "s", "z"))
    d.output(f"v{len(d.nodes) - 1}")
    import onnx_ir  # noqa: PLC0415 (a net that Net.parse refuses: it is quantized)

    assert fused(Net(onnx_ir.from_proto(d.proto())), tmp_path).get(operator) == 1

"""A net and a budget become the file of the most precise format that fits, or a reason for each that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tersor
from tersor.core.errors import FormatError, MissingError, QualityError, SchemeError
from tersor.engines.executorch.program import Program, has_executorch
from tersor.graph.net import Net
from tersor.graph.sessions import Session
from tersor.pipeline.nets.mobile import fitting
from tersor.pipeline.nets.mobile.budget import Budget
from tersor.pipeline.nets.mobile.fitting import PhoneResult, quantize_for_phone
from tersor.pipeline.nets.quantizing import NetHow, quantize_network
from tersor.pipeline.steps.cards import read_card

from ..conftest import images

onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")

SHAPES = {"first": (64, 256), "second": (256, 64)}
needs_executorch = pytest.mark.skipif(not has_executorch(), reason="programs for phones: pip install 'tersor[mobile]'")


def perceptron() -> Net:
    """Return a net of two matrices, of which integers are a quarter."""
    make, random = onnx.helper, np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32) / 8 for name, shape in SHAPES.items()}
    nodes = [
        make.make_node("MatMul", ["x", "first"], ["a"], name="first"),
        make.make_node("Relu", ["a"], ["b"], name="relu"),
        make.make_node("MatMul", ["b", "second"], ["y"], name="second"),
    ]
    ends = [make.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 64), ("y", 64))]
    stored = [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = make.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    return Net.parse(model.SerializeToString(), "net")


def rows() -> list[Any]:
    return [np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)]


def batches() -> list[Any]:
    pixels, _ = images(64, 2)
    values = pixels.astype(np.float32).transpose(0, 3, 1, 2) / 255
    return [values[:32], values[32:]]


def made(graph: Net, name: str | None, suffix: str, *, data: Any = None, **more: Any) -> PhoneResult:
    return quantize_for_phone(graph, name, NetHow(data or batches(), threads=1, **more), suffix=suffix)


def sizes(result: PhoneResult) -> dict[str, float]:
    return {row.format: row.made.benchmark.metric("file_bytes").value for row in result.trials if row.made}  # type: ignore[union-attr]


def test_the_first_format_that_fits_is_taken(tmp_path: Path) -> None:
    graph, given = perceptron(), {"data": rows()}
    whole = made(graph, None, ".ort", budget=Budget(max_file_mb=1), **given)
    assert [trial.format for trial in whole.trials] == ["fp32"]
    assert whole.trials[0].fits
    small = made(graph, None, ".ort", budget=Budget(max_file_mb=sizes(whole)["fp32"] / 2e6), **given)
    first = small.trials[0]
    assert (first.format, first.fits) == ("fp32", False)
    assert [trial.format for trial in small.trials if trial.fits] == ["int8"]
    assert sizes(small)["int8"] < sizes(whole)["fp32"] / 2
    card = small.save(tmp_path / "net.ort")
    assert any(note.startswith("fp32 does not fit: file_bytes is") for note in card.notes)
    assert card.benchmarks[0].limits[0].outcome == "pass"
    assert read_card(tmp_path / "net.ort") == card
    with pytest.raises(SchemeError, match=r"this was made as \.ort"):
        small.save(tmp_path / "net.pte")


def test_where_nothing_fits_every_format_says_why() -> None:
    graph, given = perceptron(), {"data": rows()}
    with pytest.raises(QualityError, match="no format fits the phone") as refused:
        made(graph, None, ".ort", budget=Budget(max_file_mb=1e-6), **given)
    assert all(f"  {name}: file_bytes is" in str(refused.value) for name in ("fp32", "int8"))
    assert not any(name in str(refused.value) for name in ("fp16", "int4")), "ONNX Runtime's files have none"
    forced = made(graph, "int8", ".ort", budget=Budget(max_file_mb=1e-6), force=True, **given)
    assert [limit.outcome for limit in forced.card.benchmarks[0].limits] == ["fail"]


def test_labelled_data_that_cannot_be_read_is_refused_before_any_format_is_tried(graph: Net, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=np.zeros((2, 8, 8, 3)), labels=np.zeros(2, np.int64))
    how = NetHow(batches(), data=tmp_path / "test.npz", budget=Budget(max_memory_mb=20))
    with pytest.raises(FormatError, match=r"test\.npz has no array 'images'; there are x, labels"):
        quantize_for_phone(graph, None, how, suffix=".ort")
    with pytest.raises(FormatError, match="has no array 'images'"):
        quantize_network(graph, "int8", how)


def test_what_is_not_installed_is_said_once_and_not_by_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def absent(*_: object, name: str, **__: object) -> None:
        tried.append(name)
        raise MissingError("programs for phones need executorch")

    monkeypatch.setattr(fitting, "make_program", absent)
    with pytest.raises(MissingError, match=r"^programs for phones need executorch$"):
        made(perceptron(), None, ".pte", data=rows(), budget=Budget(max_file_mb=1))
    assert tried == ["fp32"]


def test_a_phone_is_estimated_with_an_interval_or_said_to_be_unknown(graph: Net) -> None:
    notes = made(graph, "int8", ".ort", budget=Budget(phone="snapdragon-8-gen-3")).card.notes
    assert any(note.startswith("latency on snapdragon-8-gen-3") for note in notes)
    assert "energy on snapdragon-8-gen-3 unknown: nobody tells its power" in notes
    with pytest.raises(QualityError, match=r"fp32: latency on iphone-16-pro unknown: .*nobody tells"):
        made(graph, None, ".ort", budget=Budget(max_latency_ms=50, phone="iphone-16-pro"))
    with pytest.raises(SchemeError, match="no profile 'pixel'"):
        made(graph, "int8", ".ort", budget=Budget(phone="pixel"))


def test_a_file_of_onnx_runtime_runs_as_the_net_does(graph: Net, tmp_path: Path) -> None:
    result = made(graph, "int8", ".ort")
    card = result.save(tmp_path / "net.ort")
    data = (tmp_path / "net.ort").read_bytes()
    given = {"x": batches()[0][:1]}
    ours = Session(result.quantized.net, threads=1, data=data).first(given)
    np.testing.assert_allclose(ours, Session(result.quantized.net, threads=1).first(given), atol=1e-6)
    metrics = {metric.name: metric.value for metric in card.benchmarks[0].metrics}
    assert metrics["macs"] == 64 * 8 * 27 + 64 * 8 * 72 + 32 * 4
    assert metrics["file_bytes"] == len(data)
    assert metrics["output_sqnr"] > 20


@pytest.mark.parametrize(
    ("name", "suffix", "told"),
    [
        ("int8", ".onnx", "phones run .pte and .ort files"),
        ("fp16", ".ort", "no floats of 16 bits"),
        ("int4-g16", ".ort", "reads no integers of 4 bits in its own format"),
        ("int9", ".ort", "nets are written as int8"),
    ],
)
def test_what_a_phone_does_not_run_is_refused(graph: Net, name: str, suffix: str, told: str) -> None:
    with pytest.raises(SchemeError, match=told):
        made(graph, name, suffix)


@needs_executorch
def test_the_integers_of_a_program_are_ours(graph: Net, tmp_path: Path) -> None:
    result: Any = tersor.quantize(graph, "int8", calibration=batches(), target="mobile", threads=1)
    card = result.save(tmp_path / "net.pte")
    metrics = {metric.name: metric.value for metric in card.benchmarks[0].metrics}
    assert metrics["runtime_difference"] <= 1e-6, "the same codes, sum for sum"
    assert metrics["planned_bytes"] > 0
    assert metrics["resident_bytes"] > metrics["file_bytes"]
    assert any(note.startswith("XNNPACK computes 8 of 8 operators, in 1 pieces: aten.") for note in card.notes)
    with Program(tmp_path / "net.pte", threads=1) as program:
        (ours,) = program.run([batches()[0][:8]])
    wanted = np.concatenate(
        [Session(result.quantized.net, optimized=False).first({"x": batches()[0][p : p + 1]}) for p in range(8)]
    )
    np.testing.assert_allclose(ours, wanted, atol=1e-6)

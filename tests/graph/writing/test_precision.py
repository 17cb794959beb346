"""Integers without calibrated ranges: found at run time, or weights alone, in rows and groups; tables of rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError, UnsupportedError
from tersor.graph.observe import batches_of
from tersor.graph.placement.engines import ENGINES
from tersor.graph.ptq import QuantizedNet, Recipe, written
from tersor.graph.scheme import Precision, Quantizer, Scheme
from tersor.graph.sensitivity.operators import sensitivities
from tersor.graph.sensitivity.rebuild import roundings_of, with_left
from tersor.graph.writing.stored import nbytes_of

from ..conftest import Drawing, encoder, fused, images, numbers, operators, quantized, run, sentences, simulated, sqnr

KINDS: dict[str, dict[str, Any]] = {
    "static": {},
    "dynamic": {"activations": "dynamic"},
    "rows": {"activations": "float"},
    "four": {"activations": "float", "bits": 4},
    "groups": {"activations": "float", "bits": 4, "group": 16},
    "bytes in groups": {"activations": "float", "bits": 8, "group": 32},
    "biased": {"activations": "float", "bits": 3, "biases": True, "weights": "gptq"},
    "smoothed": {"activations": "dynamic", "smooth": True, "biases": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def made_of(kind: str, **more: Any) -> QuantizedNet:
    return quantized(encoder().net(), sentences(8, batches=2), **{**KINDS[kind], **more})


@kinds
def test_the_written_net_is_its_definition(kind: str) -> None:
    made = made_of(kind)
    for feeds in sentences(3, 9, seed=5, batches=2):
        wanted = simulated(made, feeds)["made"]
        np.testing.assert_array_equal(run(made.net, feeds)["made"], wanted)
        # MatMulNBits rounds activations to 8 bits by itself, a group at a time: its accuracy level 4
        close = 40 if made.recipe.activations == "float" else 60
        assert sqnr(wanted, run(made.net, feeds, optimized=True)["made"]) > close
        float_ = run(made.source, feeds)["made"]
        assert sqnr(float_, wanted) > {8: 30, 4: 12, 3: 6}[made.recipe.bits]


@pytest.mark.parametrize("engine", ["openvino", "tensorrt"])
def test_weights_alone_for_other_engines_are_their_definition(engine: str) -> None:
    made = made_of("groups", engine=engine)
    feeds = sentences(3, 9, seed=5)[0]
    np.testing.assert_array_equal(run(made.net, feeds)["made"], simulated(made, feeds)["made"])


def test_onnx_runtime_multiplies_by_small_weights(tmp_path: Path) -> None:
    assert fused(made_of("dynamic").net, tmp_path)["DynamicQuantizeMatMul"] == 3
    assert fused(made_of("groups").net, tmp_path)["MatMulNBits"] == 3
    assert fused(made_of("rows").net, tmp_path)["MatMulNBits"] == 3
    assert "DequantizeLinear" not in fused(made_of("groups").net, tmp_path)


def test_readers_of_a_value_share_its_codes() -> None:
    d = Drawing(2)
    x = d.add("Relu", d.input("x", ["batch", 16]))
    left, right = (d.add("MatMul", x, d.weight(16, 16)) for _ in range(2))
    d.add("Add", left, right, made="y")
    net = d.output("y", shape=["batch", 16]).net()
    made = quantized(net, [{"x": np.ones((2, 16), np.float32)}], activations="dynamic")
    assert operators(made.net)["DynamicQuantizeLinear"] == 1
    assert operators(made.net)["MatMulInteger"] == 2


def test_files_shrink_by_the_bits() -> None:
    whole = len(encoder(width=64, hidden=512).net().to_bytes())

    def share(**recipe: Any) -> float:
        net = quantized(encoder(width=64, hidden=512).net(), sentences(8), **recipe).net
        return len(net.to_bytes()) / whole

    conv = 64 * 64 * 4 / whole  # stays in float
    assert share(activations="dynamic") == pytest.approx(0.25 + 0.75 * conv, abs=0.04)
    assert share(activations="float", bits=4, group=32) < 0.25 + conv
    assert share(activations="float", bits=4) < share(activations="float") - 0.05


def test_tables_are_rows_of_eight_bits_and_small_ones_stay() -> None:
    made = made_of("static")
    assert set(made.tables) == {"take_words"}
    table = made.tables["take_words"]
    words = dict(made.source.graph.initializers)["words"].const_value
    assert words is not None
    assert table.codes.dtype == np.int8
    assert np.abs(table.values - words.numpy()).max() <= table.quantizer.scale.max() / 2 * 1.001
    assert "words" not in made.net.graph.initializers
    left = with_left(made, {"take_words"})
    assert "words" in left.net.graph.initializers
    np.testing.assert_array_equal(
        run(left.net, sentences(2)[0])["made"], run(with_left(left, {"take_words"}).net, sentences(2)[0])["made"]
    )


def test_operators_that_would_be_slower_stay_in_float_by_name() -> None:
    for kind, reason in (("dynamic", "run time"), ("groups", "decode its weights")):
        kept = {row.node: row.reason for row in made_of(kind).placement.kept}
        assert reason in kept["last"]
        assert set(made_of(kind).weights) == {"up", "down", "pooler"}


def test_tables_and_operators_are_ranked() -> None:
    made = made_of("groups")
    rows = sensitivities(made, sentences(8))
    assert {row.node for row in rows} == {"up", "down", "pooler", "take_words"}
    assert all(0 <= row.alone < 0.2 for row in rows)


@pytest.mark.parametrize("engine", ["openvino", "tensorrt"])
def test_engines_that_read_no_such_file_are_named_with_what_they_take(engine: str) -> None:
    with pytest.raises(SchemeError, match=f"{engine} runs no net with dynamic activations: choose static"):
        made_of("dynamic", engine=engine)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"activations": "guessed"}, "static, dynamic, float, not 'guessed'"),
        ({"block": 32}, "groups of 32 weights are for activations in float or dynamic, not static"),
        ({"block": 24, "activations": "float"}, "powers of two from 16 on"),
    ],
)
def test_what_does_not_go_together_is_said(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SchemeError, match=told):
        Precision(**given)
    with pytest.raises(SchemeError, match="rows of a matrix"):
        Scheme(4, signed=True, symmetric=True, axis=2, block=16)


def test_old_opsets_are_refused_for_halves_of_bytes_and_blocks() -> None:
    d = Drawing(2, opset=18)
    d.add("MatMul", d.input("x", ["batch", 16]), d.weight(16, 32), made="y")
    net, given = d.output("y", shape=["batch", 32]).net(), [{"x": np.ones((2, 16), np.float32)}]
    for recipe in ({"bits": 4}, {"bits": 8, "group": 16}):
        with pytest.raises(UnsupportedError, match="opset 18 has neither"):
            quantized(net, given, activations="float", **recipe)
    quantized(net, given, activations="float", bits=8)


def test_raising_the_opset_leaves_the_net_of_the_caller_alone() -> None:
    net = encoder().net()
    made = quantized(net, sentences(8), activations="float", bits=4)
    assert made.net.model.opset_imports[""] == 21
    assert net.model.opset_imports[""] == made.source.model.opset_imports[""] == 20


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_have_scales_of_their_own(axis: int) -> None:
    weight = np.arange(1, 65, dtype=np.float32).reshape(2, 32) if axis == 0 else np.ones((32, 2), np.float32)
    scheme = Scheme(8, signed=True, symmetric=True, axis=axis, block=16)
    scale = np.array([[1, 2], [3, 4]], np.float32)
    quantizer = Quantizer(scale, np.zeros((2, 2), np.int8), scheme)
    wide = np.repeat(scale, 16, axis=1 - axis)
    np.testing.assert_array_equal(quantizer.codes(weight), np.rint(weight / wide))
    np.testing.assert_array_equal(quantizer.values(quantizer.codes(weight)), np.rint(weight / wide) * wide)


def test_every_engine_says_what_it_keeps_small() -> None:
    assert {name for name, row in ENGINES.items() if row.dynamic} == {"onnxruntime", "xnnpack"}
    assert {name for name, row in ENGINES.items() if row.compressed} == {"onnxruntime", "openvino", "tensorrt"}


@pytest.mark.parametrize("kind", ["static", "dynamic", "groups"])
def test_a_weight_that_operators_share_is_rounded_and_stored_once(kind: str) -> None:
    d = Drawing(2, opset=20)
    ids = d.input("ids", ["batch", "length"], "int64")
    table, matrix = d.weight(256, 32, name="table"), d.weight(32, 32, name="matrix")
    x = d.add("Tanh", d.add("Add", d.add("Gather", table, ids), d.add("Gather", table, ids)))
    for _ in range(3):
        x = d.add("Tanh", d.add("MatMul", x, matrix))
    d.add("MatMul", x, d.add("Transpose", table, perm=[1, 0]), made="made")  # a tied embedding
    net = d.output("made", shape=["batch", "length", 256]).net()
    made = quantized(net, sentences(8), **{**KINDS[kind], "weights": "gptq", "smooth": True, "biases": True})
    codes = [value for value in made.net.graph.initializers.values() if str(value.dtype) in ("INT8", "INT4")]
    large = [value for value in codes if value.const_value is not None and value.const_value.size >= 32 * 32]
    assert len(large) == 3  # the table by rows, the matrix, the table as a matrix
    feeds = sentences(2)[0]
    np.testing.assert_array_equal(run(made.net, feeds)["made"], simulated(made, feeds)["made"])


def test_short_rows_factors_and_what_the_caller_gets_stay_exact() -> None:
    d = Drawing(2)
    ids = d.input("ids", ["batch", "length"], "int64")
    x = d.add("Gather", d.weight(256, 32), ids, name="features")
    turned = d.add("Mul", x, d.add("Gather", d.weight(256, 32), ids, name="angles"))
    scaled = d.add("Mul", d.add("Gather", d.weight(256, 32), ids, name="scaled"), d.constant(2.0))
    d.add("Add", d.add("Tanh", turned), d.add("Tanh", scaled), made="sum")
    d.add("Add", d.add("Gather", d.weight(256, 32), ids, name="added"), d.weight(32), made="other")
    d.add("Gather", d.weight(2048, 4), ids, name="boxes", made="corners")
    d.add("Transpose", d.add("Gather", d.weight(256, 32), ids, name="given"), perm=[1, 0, 2], made="rows")
    net = d.output("sum", "other", "corners", "rows").net()
    made = quantized(net, sentences(8))
    assert set(made.tables) == {"scaled", "added"}


def test_names_of_wide_operators_are_checked() -> None:
    with pytest.raises(SchemeError, match="has no operator 'typo'"):
        made_of("static", wide=("typo",))


@pytest.mark.parametrize("kind", ["static", "rows"])
def test_a_constant_that_the_caller_gets_too_stays_as_it_is(kind: str) -> None:
    d = Drawing(2)
    matrix = d.weight(32, 32, name="matrix")
    d.add("MatMul", d.input("x", ["batch", 32]), matrix, made="made")
    net = d.output("made", shape=["batch", 32]).output("matrix", shape=[32, 32]).net()
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    made = quantized(net, [{"x": x}], **{**KINDS[kind], "smooth": True, "equalize": True})
    np.testing.assert_array_equal(run(made.net, {"x": x})["matrix"], d.constants[matrix])


@pytest.mark.parametrize("opset", [17, 20])
def test_four_bits_take_half_a_byte_where_the_opset_has_them_and_still_run_on_integers(
    opset: int, tmp_path: Any
) -> None:
    d = Drawing(opset=opset)
    x = d.input("x", [4, 3, 8, 8])
    value = d.add("Relu", d.conv(x, 3, 16))
    net = d.output(d.conv(value, 16, 32)).net()
    batches = images(4, 3, 8, 8)
    small, whole = (quantized(net, batches, bits=bits) for bits in (4, 8))
    codes = sum(weight.codes.size for weight in small.weights.values())
    saved = len(whole.net.to_bytes()) - len(small.net.to_bytes())
    assert (saved > 0.4 * codes) == (opset == 20)
    assert fused(small.net, tmp_path) == fused(whole.net, tmp_path)
    assert fused(small.net, tmp_path).get("QLinearConv") == 2
    told = sum(nbytes_of(weight, small.placement, small.net) for weight in small.weights.values())
    assert told == (codes // 2 if opset == 20 else codes) + 4 * (16 + 32)
    # the very numbers of a net whose weights, of the same codes, lie in whole bytes
    plain = replace(small, placement=replace(small.placement, engine=replace(small.placement.engine, unpacks=False)))
    feeds = {"x": batches[0]}
    for made, wanted in zip(run(small.net, feeds).values(), run(written(plain), feeds).values(), strict=True):
        np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("kind", ["static", "dynamic", "rows"])
def test_products_and_tables_take_widths_of_their_own(kind: str) -> None:
    net, recipe = encoder().net(), Recipe(**{**KINDS[kind], "weights": "rtn", "smooth": False})
    batches = batches_of(net, sentences(8, batches=2))
    roundings = roundings_of(net, batches, recipe, (4, 8), threads=1)
    products = list(roundings.finest.weights)
    assert "take_words" in roundings.finest.tables
    mixed = roundings.mixed({"take_words": "fp16", products[0]: "int4", products[1]: "fp32"})
    assert "take_words" not in mixed.tables
    assert mixed.weights[products[0]] is roundings.nets[4].weights[products[0]]
    assert mixed.weights[products[2]] is roundings.nets[8].weights[products[2]]
    assert products[1] not in mixed.weights
    whole = roundings.mixed({"take_words": "fp32", products[0]: "int4", products[1]: "fp32"})
    table = next(node for node in net.nodes if node.name == "take_words").inputs[0]
    assert len(whole.net.to_bytes()) - len(mixed.net.to_bytes()) == pytest.approx(2 * numbers(table).size, rel=0.1)
    feeds = batches[0]
    for made, wanted in zip(run(mixed.net, feeds).values(), run(whole.net, feeds).values(), strict=True):
        assert sqnr(wanted, made) > 40, "16 bits of a table change codes behind it here and there at most"

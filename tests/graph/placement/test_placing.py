from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tersor.core.errors import SchemeError
from tersor.graph.net import Net
from tersor.graph.placement.engines import ENGINES, Engine
from tersor.graph.placement.placing import place
from tersor.graph.placement.sites import Placement, weight_axis
from tersor.graph.scheme import Precision
from tersor.graph.simplify import simplified

from ..conftest import Drawing, mobilenet, resnet

engines = pytest.mark.parametrize("row", ENGINES.values(), ids=ENGINES.keys())
SHAPE = ["batch", 4, 8, 8]


def placed(d: Drawing, row: Engine, **more: Any) -> Placement:
    return place(simplified(d.net()), row, **more)


def scale_groups(placement: Placement) -> dict[str, str]:
    return {name: site.group for name, site in placement.activations.items()}


def reasons(placement: Placement) -> dict[str, str]:
    return {kept.node: kept.reason for kept in placement.kept}


@engines
@pytest.mark.parametrize("make", [resnet, mobilenet])
def test_every_site_is_sound(row: Engine, make: Callable[[], Drawing]) -> None:
    net = simplified(make().net())
    placement = place(net, row)
    nodes = {str(node.name): node for node in net.nodes}
    values = net.values()
    assert not placement.kept
    assert {name for name, node in nodes.items() if node.op_type in ("Conv", "Gemm")} <= set(placement.integer)
    for name, site in placement.activations.items():
        assert (site.value, site.kind, site.scheme) == (name, "activation", row.activations)
        assert site.group in placement.activations
        readers = {str(use.node.name) for use in values[name].uses()}
        assert set(site.nodes) <= readers
        assert site.nodes or site.returned
    for name, site in placement.weights.items():
        assert (site.kind, site.nodes, site.scheme.axis) == ("weight", (name,), weight_axis(nodes[name]))
        assert site.value in [value.name for value in nodes[name].inputs if value is not None]
    assert set(placement.weights) == {name for name in placement.integer if nodes[name].op_type in row.weighted}
    assert set(placement.biases) == (set(placement.weights) if row.rounds_bias else set())


@engines
def test_every_input_of_an_operator_on_integers_is_rounded_unless_it_is_summed(row: Engine) -> None:
    net = simplified(resnet().net())
    placement = place(net, row)
    for node in net.nodes:
        name = str(node.name)
        if name not in placement.integer:
            continue
        data = [str(value.name) for value in node.inputs if value is not None and value.const_value is None]
        read = [value for value in data if value in placement.activations]
        assert all(name in placement.activations[value].nodes for value in read)
        assert len(read) == len(data) - (row.fuses_sum and node.op_type == "Add")


@engines
def test_the_last_of_two_convolutions_is_summed_where_the_engine_can(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    first, second = d.conv(x, 4, 4, made="first"), d.conv(x, 4, 4, made="second")
    d.add("Relu", d.add("Add", second, first, name="sum"), made="y")
    placement = placed(d.output("y"), row)
    assert "sum" in placement.integer
    assert ("first" in placement.activations, "second" in placement.activations) == (True, not row.fuses_sum)


@engines
@pytest.mark.parametrize("case", ["twice the same", "read elsewhere too", "a function between"])
def test_a_sum_takes_rounded_numbers_where_the_convolution_is_not_its_own(row: Engine, case: str) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    made = d.conv(x, 4, 4, made="made")
    other = {"twice the same": made, "read elsewhere too": x, "a function between": x}[case]
    term = d.add("Relu", made, made="term") if case == "a function between" else made
    y = d.add("Add", term, d.add("MaxPool", d.conv(other, 4, 4), kernel_shape=[1, 1]) if other == x else other)
    y = d.conv(y, 4, 4)
    if case == "read elsewhere too":
        y = d.add("Concat", y, d.conv(made, 4, 4), axis=1)
    placement = placed(d.output(d.add("Relu", y, made="y")), row)
    assert term in placement.activations


@engines
def test_inputs_of_a_concat_share_a_grid_where_the_engine_needs_it(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    parts = [d.add("Relu", d.conv(x, 4, 4)), d.conv(x, 4, 4), d.add("MaxPool", d.conv(x, 4, 4), kernel_shape=[1, 1])]
    y = d.add("Concat", *parts, axis=1, name="joined")
    again = d.add("Concat", y, d.conv(y, 12, 4), axis=1, name="again")
    placement = placed(d.output(d.conv(again, 16, 4, made="y")), row)
    assert {"joined", "again"} <= set(placement.integer)
    groups = scale_groups(placement)
    names = [*parts, y, again, "v4"]  # v4: what the pooling reads
    assert set(names) <= set(groups)
    shared = len({groups[name] for name in names}) == 1
    assert shared == row.one_grid
    assert groups["x"] != groups[y]
    assert groups[parts[2]] == groups["v4"]


@engines
def test_what_is_only_moved_keeps_its_grid(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    y = d.conv(x, 4, 4, made="made")
    chain = [y, d.add("MaxPool", y, kernel_shape=[1, 1])]
    chain.append(d.add("Transpose", chain[-1], perm=[0, 1, 3, 2]))
    chain.append(d.add("Reshape", chain[-1], d.constant([0, 8, -1, 4], kind="int64")))
    rest = d.conv(chain[-1], 8, 4)
    placement = placed(d.output(d.add("Relu", rest, made="y")), row)
    groups = scale_groups(placement)
    assert {groups[name] for name in chain} == {groups[y]}
    for name in chain[:-1]:
        assert len(placement.activations[name].nodes) == 1


@engines
def test_what_is_moved_before_any_operator_on_integers_is_rounded_behind_the_move(row: Engine) -> None:
    d = Drawing()
    x = d.add("Reshape", d.input("x", SHAPE), d.constant([0, 8, 4, 8], kind="int64"))
    placement = placed(d.output(d.conv(x, 8, 4, made="y")), row)
    assert x in placement.activations
    assert "x" not in placement.activations


@engines
def test_a_part_of_a_value_that_is_rounded_itself_lies_on_its_grid(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    ends = [d.constant([place], kind="int64") for place in (0, 2, 1)]
    half = d.add("Slice", x, *ends)
    y = d.add("Concat", d.conv(x, 4, 4), d.conv(half, 2, 4), axis=1)
    placement = placed(d.output(d.add("Relu", y, made="y")), row)
    assert placement.activations[half].group == placement.activations["x"].group
    assert "slice0" in placement.activations["x"].nodes


@engines
def test_a_float_operator_reads_an_input_as_it_is(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    y = d.add("Mul", d.conv(x, 4, 4), d.add("Sin", x, name="sine"))
    placement = placed(d.output(d.add("Relu", y, made="y")), row)
    assert placement.activations["x"].nodes == ("conv0",)


@engines
def test_what_an_operator_on_integers_makes_is_read_rounded_by_all_and_returned_so(row: Engine) -> None:
    d = Drawing()
    y = d.conv(d.input("x", SHAPE), 4, 4, made="made")
    z = d.add("Mul", d.conv(y, 4, 4), d.add("Sin", y, name="sine"))
    placement = placed(d.output(y).output(d.add("Relu", z, made="y")), row)
    site = placement.activations["made"]
    assert {"conv1", "sine"} <= set(site.nodes)
    assert site.returned
    assert not placement.activations["x"].returned


@engines
def test_the_end_of_a_net_is_rounded_only_where_its_operator_must_be_closed(row: Engine) -> None:
    for operator in ("Conv", "Gemm"):
        d = Drawing()
        x = d.input("x", SHAPE if operator == "Conv" else ["batch", 4])
        d.conv(x, 4, 4, made="y") if operator == "Conv" else d.add("Gemm", x, d.weight(4, 4), made="y")
        placement = placed(d.output("y"), row)
        assert ("y" in placement.activations) == (operator in row.closed)


@engines
def test_functions_are_passed_over_where_the_engine_fuses_them(row: Engine) -> None:
    for function in ("Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh", "Elu"):
        d = Drawing()
        made = d.conv(d.input("x", SHAPE), 4, 4, made="made")
        y = d.conv(d.add(function, made, made="after"), 4, 4, made="y")
        placement = placed(d.output(y), row)
        assert "after" in placement.activations
        expected = function not in row.fused and "Conv" in row.closed
        assert ("made" in placement.activations) == expected, function


@engines
def test_a_function_of_what_others_read_too_is_not_fused(row: Engine) -> None:
    d = Drawing()
    made = d.conv(d.input("x", SHAPE), 4, 4, made="made")
    y = d.add("Add", d.conv(d.add("Relu", made), 4, 4), d.conv(made, 4, 4))
    placement = placed(d.output(d.add("Relu", y, made="y")), row)
    assert "made" in placement.activations


@engines
@pytest.mark.parametrize("other", ["a float operator", "the caller"])
def test_what_is_behind_a_function_that_is_not_fused_is_float_for_float_operators(row: Engine, other: str) -> None:
    d = Drawing()
    made = d.conv(d.input("x", SHAPE), 4, 4, made="made")
    after = d.add("Relu", made, made="after")
    y = d.add("Mul", d.conv(after, 4, 4), d.add("Cos", after, name="cosine"))
    if other == "the caller":
        d.output(made)
    else:
        y = d.add("Mul", y, d.add("Sin", made))
    placement = placed(d.output(d.add("Relu", y, made="y")), row)
    assert placement.activations[after].nodes == ("conv2",)


@engines
def test_weights_that_two_operators_share_are_a_site_of_each(row: Engine) -> None:
    d = Drawing()
    kernel, bias = d.weight(4, 4, 3, 3), d.weight(4)
    y = d.input("x", SHAPE)
    for _ in range(2):
        y = d.add("Conv", y, kernel, bias, pads=[1] * 4)
    placement = placed(d.output(y), row)
    assert {name: site.value for name, site in placement.weights.items()} == {"conv0": kernel, "conv1": kernel}


def kept_net(case: str) -> tuple[Drawing, str]:
    d = Drawing(opset=17)
    x = d.input("x", ["batch", 4, 8, 8])
    if case == "computed":
        d.add("Conv", x, d.add("Sin", d.weight(4, 4, 3, 3)), name="it", made="y")
    elif case == "constant input":
        d.add("Conv", d.weight(1, 4, 8, 8), d.add("Slice", x, *(d.constant([p], kind="int64") for p in (0, 4, 0))),
              name="it", made="y")  # fmt: skip
    elif case == "vector":
        d.add("MatMul", x, d.weight(8), name="it", made="y")
    elif case == "not finite":
        d.add("MatMul", x, d.constant([[float("nan")] * 4] * 8), name="it", made="y")
    elif case == "alpha":
        d.add("Gemm", d.add("Flatten", x), d.weight(256, 4), alpha=0.5, name="it", made="y")
    elif case == "transA":
        d.add("Gemm", d.add("Flatten", x), d.weight(8, 4), transA=1, name="it", made="y")
    elif case == "groups":
        d.add("ConvTranspose", x, d.weight(4, 2, 3, 3), group=2, name="it", made="y")
    elif case == "double":
        x = d.add("Cast", x, to=11)
        d.add("MatMul", x, d.constant([[1.0] * 4] * 8, kind="float64"), name="it", made="y")
        return d.output("y", kind="float64"), "it"
    elif case == "recurrent":
        x = d.add("Reshape", x, d.constant([-1, 1, 256], kind="int64"))
        d.add("LSTM", x, d.weight(1, 16, 256), d.weight(1, 16, 4), hidden_size=4, name="it", made="y")
    return d.output("y"), "it"


KEPT = {
    "computed": "computed, not constant",
    "constant input": "first input is constant",
    "vector": "no matrix",
    "not finite": "not finite",
    "alpha": "alpha",
    "transA": "transA",
    "groups": "in groups|no integer kernel",
    "double": "not in float32",
    "recurrent": "no integer kernel",
}


@engines
@pytest.mark.parametrize("case", KEPT)
def test_what_stays_in_float_is_kept_by_name_and_with_a_reason(row: Engine, case: str) -> None:
    d, name = kept_net(case)
    placement = placed(d, row)
    assert name not in placement.integer
    (reason,) = reasons(placement).values()
    assert list(reasons(placement)) == [name]
    assert any(part in reason for part in KEPT[case].split("|"))


@engines
def test_operators_that_are_left_by_name_stay_in_float(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    y = d.add("Add", d.conv(x, 4, 4, name="first"), d.conv(x, 4, 4, name="second"), name="sum")
    d.conv(y, 4, 4, name="third", made="y")
    placement = placed(d.output("y"), row, left=("second", "sum"))
    assert reasons(placement) == {"second": "asked for"}
    assert set(placement.integer) == {"first", "third"}
    with pytest.raises(SchemeError, match=r"drawn has no operator 'fourth', 'zeroth'"):
        placed(d, row, left=("zeroth", "first", "fourth"))


@engines
def test_a_product_of_activations_runs_on_integers_where_the_engine_has_one(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    d.add("MatMul", d.conv(x, 4, 4, made="left"), d.conv(x, 4, 4, made="right"), name="product", made="y")
    placement = placed(d.output("y"), row)
    assert ("product" in placement.integer) == row.products
    assert ("product" in reasons(placement)) == (not row.products)
    assert not {"product"} & set(placement.weights)
    if row.products:
        assert {"left", "right"} <= set(placement.activations)


@engines
def test_a_bias_behind_a_matmul_is_a_part_of_it(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", ["batch", 3, 8])
    y = d.add("Relu", d.add("Add", d.weight(8), d.add("MatMul", x, d.weight(8, 8), made="raw"), made="biased"))
    placement = placed(d.output(d.add("MatMul", y, d.weight(8, 8), made="y")), row)
    assert list(placement.activations)[:2] == ["x", y]
    assert not {"raw", "biased"} & set(placement.activations)


@engines
def test_a_net_without_anything_to_round_has_no_site(row: Engine) -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    y = d.add("Add", d.add("MaxPool", x, kernel_shape=[2, 2]), d.constant(1.0))
    placement = placed(d.output(d.add("Softmax", y, made="y")), row)
    assert (placement.sites, placement.integer, placement.kept) == ((), (), ())


@engines
def test_operators_of_other_domains_stay_as_they_are(row: Engine) -> None:
    d = Drawing()
    d.domains["mine"] = 1
    x = d.input("x", SHAPE)
    y = d.add("Relu", d.add("Conv", d.conv(x, 4, 4), domain="mine"), domain="mine", made="y")
    d.outputs.append(d.inputs[0].__class__())
    d.outputs[0].CopyFrom(d.inputs[0])
    d.outputs[0].name = y
    placement = placed(d, row)
    assert placement.integer == ("conv0",)


@engines
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_are_those_of_weights_only(row: Engine, bits: int) -> None:
    placement = place(simplified(resnet().net()), row, Precision(bits=bits))
    assert {site.scheme.bits for site in placement.weights.values()} == {bits}
    assert {site.scheme.bits for site in placement.activations.values()} == {8}


def test_the_axis_of_outputs_is_that_of_the_operator() -> None:
    d = Drawing()
    x = d.input("x", SHAPE)
    flat = d.add("Flatten", x)
    d.add("Conv", x, d.weight(6, 4, 3, 3))
    d.add("ConvTranspose", x, d.weight(4, 6, 3, 3))
    d.add("Gemm", flat, d.weight(6, 256), transB=1)
    d.add("Gemm", flat, d.weight(256, 6))
    d.add("MatMul", x, d.weight(8, 6))
    d.add("MatMul", x, d.weight(4, 8, 6))
    for place_ in range(1, 7):
        d.output(f"v{place_}")
    net: Net = d.net()
    found = [weight_axis(node) for node in net.nodes if node.op_type != "Flatten"]
    assert found == [0, 1, 0, 1, 1, None]

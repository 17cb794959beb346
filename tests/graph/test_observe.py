from __future__ import annotations

import numpy as np
import pytest

from tersor.core.errors import FormatError
from tersor.graph.net import Net
from tersor.graph.observe import activation_quantizers, batches_of, needs_counts, observe
from tersor.graph.placement.engines import ENGINES
from tersor.graph.placement.placing import place
from tersor.graph.ranges import Seen
from tersor.graph.scheme import Quantizer
from tersor.graph.simplify import simplified

from .conftest import Drawing, images, run


def two_branches() -> Net:
    d = Drawing(2)
    x = d.input("x", ["batch", 4, 6, 6])
    left, right = d.add("Relu", d.conv(x, 4, 4)), d.conv(x, 4, 4)
    y = d.conv(d.add("Concat", left, right, axis=1), 8, 4, made="y")
    return d.output(y).net()


def test_extremes_and_counts_are_those_of_the_values_themselves() -> None:
    net = two_branches()
    names = [str(value.name) for node in net.nodes for value in node.outputs]
    batches = batches_of(net, images(2, 4, 6, 6, count=3))
    told: list[tuple[str, int, int]] = []
    seen = observe(net, batches, ["x", *names], threads=1, progress=lambda *what: told.append(what))
    values = [{**run(net, feeds, optimized=True, watched=names), **feeds} for feeds in batches]
    for name in ["x", *names]:
        x = np.stack([made[name] for made in values])
        assert (seen[name].low, seen[name].high) == (x.min(), x.max())
        assert seen[name].batches == 3
        counts = seen[name].counts
        assert counts is not None
        assert counts.sum() == x.size
    assert [done for _, done, _ in told] == [1, 2, 3, 4, 5, 6]
    assert {total for _, _, total in told} == {6}


def test_without_counts_the_data_is_run_once() -> None:
    net = two_branches()
    told: list[tuple[str, int, int]] = []
    batches = batches_of(net, images(1, 4, 6, 6, count=3))
    seen = observe(net, batches, ["x"], counts=False, threads=1, progress=lambda *what: told.append(what))
    assert len(told) == 3
    assert seen["x"].counts is None


def test_the_order_of_batches_changes_no_range_but_that_of_rounding() -> None:
    net = two_branches()
    batches = batches_of(net, images(1, 4, 6, 6, count=4))
    one, other = (observe(net, each, ["x"], threads=1)["x"] for each in (batches, batches[::-1]))
    assert (one.low, one.high) == (other.low, other.high)
    assert one.counts is not None
    assert other.counts is not None
    np.testing.assert_array_equal(one.counts, other.counts)


@pytest.mark.parametrize("odd", [-1.0, 0.0])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_that_is_not_finite_in_any_batch_is_named(odd: float, place: int) -> None:
    d = Drawing(opset=17)
    x = d.input("x", ["batch", 4])
    d.add("MatMul", d.add("Log", x, made="logs"), d.weight(4, 4), made="y")
    net = d.output("y").net()
    batches = np.ones((3, 1, 4), np.float32)
    batches[place, 0, 1] = odd
    with pytest.raises(FormatError, match=r"logs is not finite .*(nan|inf)"):
        observe(net, batches_of(net, batches), ["logs"], counts=False, threads=1)


def test_values_of_a_group_get_the_range_that_covers_all() -> None:
    net = simplified(two_branches())
    placement = place(net, ENGINES["openvino"])
    seen = {name: Seen() for name in placement.activations}
    for number, name in enumerate(seen):
        seen[name].add_extremes(np.array([-number, 10 * number + 1], np.float32))
    found = activation_quantizers(placement, seen, "minmax")
    (joined,) = (node for node in net.nodes if node.op_type == "Concat")
    group = [str(value.name) for value in (*joined.inputs, joined.outputs[0]) if value is not None]
    low, high = min(seen[name].low for name in group), max(seen[name].high for name in group)
    wanted = Quantizer.of_range(low, high, ENGINES["openvino"].activations)
    for name in group:
        assert (found[name].scale, found[name].zero_point) == (wanted.scale, wanted.zero_point)


def test_only_rules_on_histograms_need_one() -> None:
    assert [needs_counts(rule) for rule in ("minmax", "average", "percentile", "entropy", "mse")] == [
        False, False, True, True, True,
    ]  # fmt: skip

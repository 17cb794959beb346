from __future__ import annotations

import numpy as np
import pytest

from tersor.graph.corrections import statistics
from tersor.graph.corrections.patches import input_rows
from tersor.graph.corrections.statistics import gather, in_turn
from tersor.graph.sessions import read_batches

from ..conftest import Drawing, images, quantized, resnet, run

pytest.importorskip("torch", reason="rounding methods are of torch: pip install 'tersor[torch]'")


def drawn() -> Drawing:
    d = Drawing(7)
    x = d.input("x", ["batch", 3, 8, 8])
    x = d.add("Relu", d.conv(x, 3, 6, name="first"))
    d.conv(x, 6, 6, group=3, name="second", made="y")
    return d.output("y")


def test_statistics_are_the_moments_of_all_rows_however_they_come_in_batches() -> None:
    net = drawn().net()
    data = images(2, 3, 8, 8, count=3)
    found = gather(net, list(read_batches(net, data)), ["first", "second"], threads=1)
    whole = gather(net, list(read_batches(net, [np.concatenate(data)])), ["first", "second"], threads=1)
    node = next(node for node in net.nodes if node.name == "second")
    read = str(node.inputs[0].name)  # type: ignore[union-attr]
    rows = input_rows(node, run(net, {"x": np.concatenate(data)}, watched=[read])[read]).astype(np.float64)
    wanted = np.stack([part.T @ part / len(part) for part in rows])
    assert found["second"].hessian.shape == (3, 18, 18)
    assert found["second"].places == rows.shape[1]
    np.testing.assert_allclose(found["second"].hessian, wanted, atol=1e-5)
    np.testing.assert_allclose(found["second"].mean, rows.mean(axis=1), atol=1e-6)
    for name in ("first", "second"):
        np.testing.assert_allclose(found[name].hessian, whole[name].hessian, atol=1e-5)


def test_inputs_can_be_those_that_integers_make() -> None:
    net = resnet().net()
    batches = images(2, 3, 16, 16)
    made = quantized(net, batches)
    feeds = list(read_batches(net, batches))
    nodes = list(made.placement.weights)
    ours, theirs = gather(made.source, feeds, nodes), gather(made.source, feeds, nodes, seen_in=made.net)
    assert ours.keys() == theirs.keys() == set(nodes)
    for name in nodes:
        off = np.abs(ours[name].mean - theirs[name].mean).max()
        assert 0 < off < 0.1 * np.abs(ours[name].mean).max() + 0.05


def test_importance_is_the_mean_square_of_each_column() -> None:
    net = drawn().net()
    (found,) = gather(net, list(read_batches(net, images(2, 3, 8, 8))), ["first"]).values()
    np.testing.assert_array_equal(found.importance[0], np.diag(found.hessian[0]))


@pytest.mark.parametrize(("held", "known_of", "turns"), [(0, 0, 1), (9000, 3, 2), (70_000, 6, 4)])
def test_hessians_that_do_not_go_into_memory_together_come_in_turn(
    held: int, known_of: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the same; what would not go into it alone is rounded without."""
    net, data = resnet().net(), images(2, 3, 16, 16)
    whole = quantized(net, data, weights="gptq", biases=True)
    monkeypatch.setattr(statistics, "HELD", held)
    parts = list(in_turn(whole.source, whole.placement.weights))
    assert [name for names in parts for name in names] == list(whole.placement.weights)
    made = quantized(net, data, weights="gptq", biases=True)
    alone = quantized(net, data)
    known = gather(whole.source, list(read_batches(whole.source, data)), whole.placement.weights, threads=1)
    assert (len(known), len(parts)) == (known_of, turns)
    for name, weight in made.weights.items():
        np.testing.assert_array_equal(weight.codes, (whole if name in known else alone).weights[name].codes)
    assert made.biases.keys() == known.keys() & whole.biases.keys()

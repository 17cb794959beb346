"""Requests in one call of a net get what each gets alone; what is wrong, late or gone harms no other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.deploy.running.batching import Batcher, Dropped
from tersor.deploy.running.supervised import Patience, Running

onnx = pytest.importorskip("onnx", reason="a small net is an ONNX file: pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="runs it: pip install 'tersor[onnx]'")

Array = np.ndarray[Any, Any]
FLOAT = onnx.TensorProto.FLOAT
PATIENCE = Patience(start=60, silence=60)


class Counting:
    """Sums each row; remembers the rows of each call, waits for `gate`, and fails on a row with NaN."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.calls: list[int] = []
        self.gate = gate

    def __call__(self, wanted: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        self.calls.append(len(feeds["x"]))
        if self.gate is not None:
            assert self.gate.wait(10)
        if np.isnan(feeds["x"]).any():
            raise ValueError("NaN")
        return [feeds["x"].sum(axis=1, keepdims=True) for _ in wanted]


def never() -> bool:
    return False


def gathered(most: int, inputs: Sequence[Array], *, wait_s: float = 0.0) -> tuple[Counting, list[Any]]:
    """What becomes of requests that all wait while the first one computes."""
    gate = threading.Event()
    net = Counting(gate)
    batcher = Batcher(net, most, wait_s)

    def ask(array: Array) -> Any:
        try:
            return batcher.run(("y",), {"x": array}, never)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(len(inputs) + 1) as pool:
        first = pool.submit(ask, np.zeros((1, 3)))
        until(lambda: bool(net.calls))
        others = []
        for number, array in enumerate(inputs):  # one after the other, so that their order is known
            others.append(pool.submit(ask, array))
            until(lambda number=number: len(batcher._queue) + len(net.calls) > number + 1)  # type: ignore[misc]
        gate.set()
        first.result(10)
        return net, [one.result(10) for one in others]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.001)


def test_who_waits_is_computed_together_and_gets_his_own() -> None:
    inputs = [np.full((rows, 3), rows * 10 + place) for place, rows in enumerate([1, 2, 1, 3, 1, 2])]
    net, answers = gathered(8, inputs)
    assert net.calls == [1, 8, 2]
    for array, (made, together) in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(made[0], array.sum(axis=1, keepdims=True))
        assert together in (5, 1)


def test_only_requests_of_one_shape_and_type_go_together() -> None:
    inputs: list[Array] = [np.ones((1, 3)), np.ones((1, 4)), np.ones((1, 3)), np.ones((1, 3), np.float32)]
    net, answers = gathered(8, inputs)
    assert sorted(net.calls[1:]) == [1, 1, 2]
    assert [float(made[0][0, 0]) for made, _ in answers] == [3, 4, 3, 3]
    assert answers[3][0][0].dtype == np.float32


def test_one_that_is_wrong_harms_no_other() -> None:
    inputs = [np.ones((1, 3)), np.full((1, 3), np.nan), np.ones((2, 3))]
    net, (first, wrong, last) = gathered(8, inputs)
    assert net.calls == [1, 4, 1, 1, 2]
    assert isinstance(wrong, ValueError)
    assert float(first[0][0][0, 0]) == 3
    assert last[0][0].tolist() == [[3], [3]]
    assert (first[1], last[1]) == (1, 1)


def test_a_net_that_makes_other_rows_is_asked_one_by_one() -> None:
    calls: list[int] = []

    def total(wanted: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        calls.append(len(feeds["x"]))
        time.sleep(0.05)
        return [feeds["x"].sum(axis=0, keepdims=True)]

    batcher = Batcher(total, 8, 5.0)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: batcher.run(("y",), {"x": np.full((1, 2), n)}, never), range(8)))
    assert [float(one[0][0, 0]) for one, _ in made] == list(range(8))
    assert calls == [8] + [1] * 8


def test_who_has_left_is_not_computed() -> None:
    gate = threading.Event()
    net, gone = Counting(gate), threading.Event()
    batcher = Batcher(net, 8, 0.0)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.run, ("y",), {"x": np.zeros((1, 3))}, never)
        until(lambda: bool(net.calls))
        leaves = pool.submit(batcher.run, ("y",), {"x": np.zeros((1, 3))}, gone.is_set)
        stays = pool.submit(batcher.run, ("y",), {"x": np.ones((1, 3))}, never)
        until(lambda: len(batcher._queue) == 2)
        gone.set()
        gate.set()
        assert stays.result(10)[1] == 1
        with pytest.raises(Dropped):
            leaves.result(10)
        first.result(10)
    assert net.calls == [1, 1]


def test_more_rows_than_a_batch_holds_go_alone_and_others_wait_no_longer_than_they_must() -> None:
    net = Counting()
    batcher = Batcher(net, 2, 0.02)
    made, together = batcher.run(("y",), {"x": np.ones((5, 3))}, never)
    assert (len(made[0]), together, net.calls) == (5, 1, [5])
    made, together = batcher.run(("y",), {"x": np.ones((1, 3))}, never)
    assert (len(made[0]), together) == (1, 1)
    long = Batcher(net, 2, 1000.0)  # a full batch does not wait
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: long.run(("y",), {"x": np.ones((1, 3))}, never), range(2)))
    assert [together for _, together in answers] == [2, 2]


def test_a_batch_that_the_next_one_does_not_fit_into_does_not_wait() -> None:
    batcher = Batcher(Counting(), 2, 1000.0)
    with ThreadPoolExecutor(2) as pool:
        small = pool.submit(batcher.run, ("y",), {"x": np.ones((1, 3))}, never)
        until(lambda: len(batcher._queue) == 1)
        large = pool.submit(batcher.run, ("y",), {"x": np.ones((2, 3))}, never)
        assert [small.result(10)[1], large.result(10)[1]] == [1, 1]


# Nets of ONNX


def saved(path: Path, nodes: list[Any], first: Any = "n", last: Any = "n", constants: Sequence[Any] = ()) -> Path:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "net", [info("x", FLOAT, [first, 3])], [info("y", FLOAT, [last, 3])], list(constants)
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def node(kind: str, *names: str, outputs: Sequence[str] = ("y",)) -> Any:
    return onnx.helper.make_node(kind, list(names), list(outputs))


async def asked(engine: Running, array: Array) -> tuple[Array, int]:
    request = {"inputs": [{"name": "x", "dtype": "<f4", "shape": list(array.shape)}]}
    ((head, data),) = [part async for part in engine.run(request, array.tobytes())]
    (one,) = head["outputs"]
    return np.frombuffer(data, one["dtype"]).reshape(one["shape"]), head["together"]


def test_a_net_in_batches_answers_what_it_answers_without(tmp_path: Path) -> None:
    path = saved(tmp_path / "softmax.onnx", [node("Softmax", "x")])
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((number % 3 + 1, 3)).astype(np.float32) for number in range(60)]

    async def answered(**options: Any) -> list[tuple[Array, int]]:
        async with Running("net", "onnxruntime", {"path": str(path), **options}, PATIENCE) as engine:
            return list(await asyncio.gather(*[asked(engine, array) for array in inputs]))

    plain = asyncio.run(answered())
    batched = asyncio.run(answered(max_batch=16, max_wait_ms=20))
    for (one, alone), (other, _) in zip(plain, batched, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6)
        assert alone == 1
    assert max(together for _, together in batched) > 2


def _dynamic(path: Path) -> Path:
    nodes = [
        node("DynamicQuantizeLinear", "x", outputs=("q", "s", "z")),
        node("DequantizeLinear", "q", "s", "z"),
    ]
    return saved(path, nodes)


def _running_sum(path: Path) -> Path:
    zero = onnx.helper.make_tensor("axis", onnx.TensorProto.INT64, [], [0])
    return saved(path, [node("CumSum", "x", "axis")], constants=[zero])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: saved(path, [node("Neg", "x")], 1, 1), r"needs a first axis that varies .*x: 1, y: 1"),
        (lambda path: saved(path, [node("Neg", "x")], None, None), r"has one name .*x: None"),
        (lambda path: saved(path, [node("Neg", "x")], "n", "m"), r"has one name .*x: 'n', y: 'm'"),
        (_dynamic, "the rows of a batch change one another's y"),
        (_running_sum, "the rows of a batch change one another's y"),
    ],
    ids=["fixed", "unnamed", "two names", "ranges while it runs", "sum over rows"],
)
def test_a_net_that_cannot_be_batched_is_told_when_it_is_loaded(
    make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "net.onnx")

    async def scene(**options: Any) -> None:
        async with Running("net", "onnxruntime", {"path": str(path), **options}, PATIENCE):
            pass

    asyncio.run(scene())
    with pytest.raises(EngineError, match=words):
        asyncio.run(scene(max_batch=4))

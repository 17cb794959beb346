from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import EngineError, FormatError, SchemeError, ShapeError, TersorError
from tersor.graph.net import Net
from tersor.graph.sessions import Session, feeds_of, fixed_batch, items_of, one, read_batches

from .conftest import Array, Drawing, images, resnet, run

X = images(2, 4, count=1)[0]


def one_input() -> Net:
    d = Drawing()
    return d.output(d.add("Relu", d.input("x", ["batch", 4]), made="y")).net()


def two_inputs() -> Net:
    d = Drawing()
    ids = d.add("Cast", d.input("ids", ["batch", 3], "int64"), to=1)
    d.add("Concat", d.input("x", ["batch", 4]), ids, axis=1, made="y")
    return d.output("y").net()


def test_batches_come_in_every_shape_that_loaders_give() -> None:
    ids = np.arange(6).reshape(2, 3)
    for batch in (X, (X,), [X], (X, "a label"), {"x": X, "label": 3}, X.tolist(), [X, np.arange(2)]):
        if isinstance(batch, list) and isinstance(batch[0], list):
            batch = (batch,)  # noqa: PLW2901 (rows in lists are no batch, a tuple of them is)
        np.testing.assert_array_equal(feeds_of(one_input(), batch, "it")["x"], X)
    for batch in ((ids, X), [ids, X, "a label"], {"x": X, "ids": ids}):
        found = feeds_of(two_inputs(), batch, "it")
        np.testing.assert_array_equal(found["x"], X)
        np.testing.assert_array_equal(found["ids"], ids)


def test_tensors_of_torch_are_taken_whatever_they_are_part_of() -> None:
    torch = pytest.importorskip("torch", reason="gives tensors: pip install 'tersor[torch]'")
    x = torch.from_numpy(X)
    parts = [x, x.requires_grad_(), x.double(), x.half(), x.bfloat16(), x.t().contiguous().t()]
    for part in parts:
        found = feeds_of(one_input(), part, "it")["x"]
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, X, rtol=0.01)


def test_numbers_are_taken_in_the_type_that_the_net_takes() -> None:
    for kind in (np.float16, np.float64):
        assert feeds_of(one_input(), X.astype(kind), "it")["x"].dtype == np.float32
    for other in (np.int8, np.int32, np.uint8, np.bool_):
        ids = np.ones((2, 3), other)
        assert feeds_of(two_inputs(), (ids, X), "it")["ids"].dtype == np.int64


def rows(value: Any) -> Array:
    x = X.copy()
    x[1, 2] = value
    return x


REFUSED: dict[str, tuple[Any, type[TersorError], str]] = {
    "too few axes": (X[0], ShapeError, r"batch 7: x is \[4\], the net takes \[any, 4\]"),
    "too many axes": (X[None], ShapeError, r"\[1, 2, 4\]"),
    "another width": (X[:, :3], ShapeError, r"\[2, 3\]"),
    "no items": (X[:0], ShapeError, "x is empty"),
    "NaN": (rows(np.nan), FormatError, r"x holds nan at \(1, 2\)"),
    "infinite": (rows(-np.inf), FormatError, "x holds -inf at"),
    "too large for float32": (rows(0.0).astype(np.float64) + 1e300, FormatError, "x holds inf at"),
    "whole numbers for floats": (X.astype(np.int64), SchemeError, "x is int64, the net takes float32"),
    "text": (np.full((2, 4), "a"), SchemeError, "x is <U1"),
    "objects": ([None], SchemeError, "x is object"),
    "complex": (X.astype(complex), SchemeError, "x is complex128"),
    "rows of different lengths": (([[1.0], [1.0, 2.0]],), SchemeError, "x is no array"),
    "a mapping without it": ({"y": X}, SchemeError, "has y, but the net takes x too"),
    "nothing": ((), SchemeError, "0 arrays for 1 inputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_batch_that_does_not_fit_is_refused_by_place_and_name(case: str) -> None:
    batch, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        feeds_of(one_input(), batch, "batch 7")


def test_two_inputs_are_not_taken_from_one_array() -> None:
    with pytest.raises(SchemeError, match="takes ids, x: give a tuple or a mapping"):
        feeds_of(two_inputs(), X, "it")
    with pytest.raises(SchemeError, match="1 arrays for 2 inputs"):
        feeds_of(two_inputs(), (X,), "it")
    with pytest.raises(SchemeError, match="ids is float32, the net takes int64"):
        feeds_of(two_inputs(), (X[:, :3], X), "it")


def test_whole_numbers_that_the_type_cannot_hold_are_refused() -> None:
    d = Drawing()
    net = d.output(d.add("Cast", d.input("x", ["batch"], "uint8"), to=1, made="y")).net()
    np.testing.assert_array_equal(feeds_of(net, np.array([255, 0]), "it")["x"], [255, 0])
    for odd in (256, -1, 1 << 40):
        with pytest.raises(FormatError, match="the net takes uint8"):
            feeds_of(net, np.array([1, odd]), "it")


def test_a_limit_takes_no_batch_more_from_the_loader() -> None:
    taken: list[int] = []

    def loader() -> Iterator[Array]:
        for number in range(9):
            taken.append(number)
            yield X + number

    found = list(read_batches(one_input(), loader(), limit=3))
    assert [float(feeds["x"][0, 0] - X[0, 0]) == number for number, feeds in enumerate(found)][:1] == [True]
    assert len(found) == len(taken) == 3
    assert len(list(read_batches(one_input(), [X, X], limit=9))) == 2


@pytest.mark.parametrize(
    ("data", "limit", "message"),
    [
        ([], None, "is empty"),
        (iter(()), 4, "is empty"),
        ([X], 0, "0 batches"),
        ([X], -1, "-1 batches"),
        (None, None, "got NoneType"),
        ({"x": X}, None, "got dict"),
        ("folder", None, "got str"),
    ],
)
def test_calibration_data_that_is_none_is_refused(data: Any, limit: int | None, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        list(read_batches(one_input(), data, limit=limit))


@pytest.mark.parametrize(
    ("shapes", "items"),
    [
        ([["n", 4]], 1),
        ([[None, 4]], 1),
        ([["n", 4], ["n"]], 1),
        ([["n", 4], []], 1),
        ([[], ["n", 4]], 1),
        ([[3, 4]], 3),
        ([["n", 4], [2, 4]], 3),
        ([["n", 4], ["m", 4]], 3),
        ([[None, 4], [None, 4]], 3),
        ([[]], 1),
    ],
)
def test_one_item_is_taken_where_all_inputs_share_a_free_axis(shapes: list[Any], items: int) -> None:
    d = Drawing()
    names = [d.input(f"x{number}", shape) for number, shape in enumerate(shapes)]
    for name in names:
        d.output(d.add("Relu", name))
    sizes = [
        [size if isinstance(size, int) else 3 for size in shape or ([3] if shape is None else [])] for shape in shapes
    ]
    feeds = {name: np.zeros(size, np.float32) for name, size in zip(names, sizes, strict=True)}
    taken = one(d.net(), feeds)
    assert items_of(taken) == items
    assert items_of(feeds) == (3 if any(sizes) else 1)
    assert fixed_batch(d.net()) == (3 if shapes == [[3, 4]] else None)


def test_batches_are_numbered_in_messages() -> None:
    with pytest.raises(ShapeError, match="calibration batch 2: x is"):
        list(read_batches(one_input(), [X, X, X[:, :1]]))


def test_watched_values_come_beside_outputs_once_each() -> None:
    net = resnet().net()
    x = images(1, 3, 16, 16)[0]
    names = ["v3", "logits", "v6", "v3"]
    found = Session(net, names, threads=1).run({"x": x})
    assert list(found) == ["logits", "v3", "v6"]
    np.testing.assert_array_equal(
        Session(net, optimized=False, threads=1).first({"x": x}), run(net, {"x": x})["logits"]
    )
    assert [value.name for value in net.outputs] == ["logits"]


def test_what_the_engine_refuses_is_an_error_of_the_engine() -> None:
    d = Drawing()
    d.domains["nobody"] = 1
    d.add("Conv", d.input("x", ["batch", 4]), domain="nobody", made="y")
    d.outputs.append(d.inputs[0].__class__())
    d.outputs[0].CopyFrom(d.inputs[0])
    d.outputs[0].name = "y"
    with pytest.raises(EngineError, match=r"drawn: ONNX Runtime cannot load it: .*nobody"):
        Session(d.net())
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        Session(one_input()).run({"x": X[0]})

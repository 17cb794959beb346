"""Nets of torch.export: they compute what they computed, and nothing in their files is executed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import EngineError, FormatError
from tersor.deploy.running.exported.archive import rewritten
from tersor.deploy.running.supervised import Patience, RequestError, Running

torch = pytest.importorskip("torch", reason="exports the net: pip install 'tersor[torch]'")

PATIENCE = Patience(start=60, silence=60)


class Net(torch.nn.Module):  # type: ignore[name-defined,misc]  # torch is imported by pytest
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8)
        self.register_buffer("shift", torch.ones(8), persistent=False)

    def forward(self, x: Any, scale: Any) -> dict[str, Any]:
        hidden = torch.relu(self.norm(self.linear(x))) * scale + self.shift
        return {"hidden": hidden, "label": hidden.argmax(-1)}


class Counter(torch.nn.Module):  # type: ignore[name-defined,misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.seen.add_(1)
        return x + self.seen


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Net().eval(), (torch.randn(2, 6), torch.randn(2, 1)), dynamic_shapes=({0: batch}, {0: batch})
    )
    torch.export.save(program, path)
    return path


def run(path: Path, feeds: list[dict[str, np.ndarray[Any, Any]]], **options: Any) -> list[Any]:
    """Facts of the engine, and what it answers to requests that come at once."""

    async def ask(engine: Running, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        inputs = [{"name": name, "dtype": one.dtype.str, "shape": list(one.shape)} for name, one in arrays.items()]
        payload = b"".join(one.tobytes() for one in arrays.values())
        ((head, data),) = [part async for part in engine.run({"inputs": inputs}, payload)]
        made, at = {"together": head["together"]}, 0
        for one in head["outputs"]:
            count = int(np.prod(one["shape"]))
            made[one["name"]] = np.frombuffer(data, one["dtype"], count, at).reshape(one["shape"])
            at += made[one["name"]].nbytes
        return made

    async def scene() -> list[Any]:
        async with Running("net", "torch", {"path": str(path), **options}, PATIENCE) as engine:
            return [engine.facts, *await asyncio.gather(*[ask(engine, one) for one in feeds])]

    return asyncio.run(scene())


def test_it_computes_what_the_net_computes_alone_and_in_batches(saved: Path) -> None:
    net, random = Net().eval(), np.random.default_rng(1)
    feeds = [
        {name: random.standard_normal((rows, size)).astype(np.float32) for name, size in (("x", 6), ("scale", 1))}
        for rows in [1, 2, 3] * 5
    ]
    facts, *answers = run(saved, feeds, max_batch=8, max_wait_ms=50)
    assert [(one["name"], one["datatype"], one["shape"]) for one in facts["inputs"]] == [
        ("x", "FP32", [-1, 6]),
        ("scale", "FP32", [-1, 1]),
    ]
    assert [(one["datatype"], one["shape"]) for one in facts["outputs"]] == [("FP32", [-1, 8]), ("INT64", [-1])]
    for arrays, made in zip(feeds, answers, strict=True):
        with torch.no_grad():
            expected = net(*[torch.tensor(one) for one in arrays.values()])
        values = [value for name, value in made.items() if name != "together"]
        np.testing.assert_allclose(values[0], expected["hidden"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(values[1], expected["label"])
    assert max(made["together"] for made in answers) > 1


def test_inputs_that_do_not_fit_are_refused(saved: Path) -> None:
    with pytest.raises(RequestError, match=r"input x: <f4 \[-1, 6\], got float32 \[2, 5\]"):
        run(saved, [{"x": np.ones((2, 5), np.float32), "scale": np.ones((2, 1), np.float32)}])
    with pytest.raises(RequestError, match="is 3 here, and 2 in another input"):
        run(saved, [{"x": np.ones((2, 6), np.float32), "scale": np.ones((3, 1), np.float32)}])


class Table(torch.nn.Module):  # type: ignore[name-defined,misc]
    """A row of a table, and as many numbers as the other input has pairs of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.eye(4))

    def forward(self, place: Any, x: Any) -> Any:
        return self.rows[place].sum() + (x @ x.T).sum()


def test_a_place_that_there_is_not_is_refused_and_want_of_memory_is_a_failure(tmp_path: Path) -> None:
    path, place, few = tmp_path / "table.pt2", np.array([1]), np.zeros((2, 1), np.float32)
    shapes = {"place": None, "x": {0: torch.export.Dim("n")}}
    torch.export.save(torch.export.export(Table(), (torch.tensor([1]), torch.zeros(2, 1)), dynamic_shapes=shapes), path)
    assert run(path, [{"place": place, "x": few}])[1]["add"] == 1
    with pytest.raises(RequestError, match="index 9 is out of bounds"):
        run(path, [{"place": np.array([9]), "x": few}])
    with pytest.raises(EngineError, match="memory"):
        run(path, [{"place": place, "x": np.zeros((1 << 22, 1), np.float32)}])


def test_a_net_that_changes_itself_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Counter(), (torch.ones(1),)), tmp_path / "counter.pt2")
    with pytest.raises(EngineError, match=r"add_\.Tensor changes what the net holds"):
        run(tmp_path / "counter.pt2", [])


# Files that mean harm

Parts = dict[str, bytes]


class Harm:
    """What a pickle does when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def changed(source: Path, target: Path, change: Callable[[Parts], None], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(source) as found:
        parts = {name.partition("/")[2]: found.read(name) for name in found.namelist()}
    change(parts)
    with zipfile.ZipFile(target, "w", compression) as made:
        for name, data in parts.items():
            made.writestr(f"net/{name}", data)
    return target


def in_json(name: str, change: Callable[[Any], None]) -> Callable[[Parts], None]:
    def made(parts: Parts) -> None:
        document = json.loads(parts[name])
        change(document)
        parts[name] = json.dumps(document).encode()

    return made


MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


def node(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"][0]


def size(document: Any) -> Any:
    return document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]


def spec(document: Any) -> Any:
    return next(one["signature"] for one in document["graph_module"]["module_call_graph"] if one["signature"])


HARMS: dict[str, tuple[Callable[[Parts], None], str]] = {
    "a function for an operator": (
        in_json(MODEL, lambda found: node(found).update(target="torch.os.system")),
        "target 'torch.os.system' is not among",
    ),
    "an operator on files": (
        in_json(MODEL, lambda found: node(found).update(target="torch.ops.aten.from_file.default")),
        "from_file",
    ),
    "another operator on files": (
        in_json(MODEL, lambda found: node(found).update(target="torch.ops.aten.save.default")),
        "aten.save",
    ),
    "control flow": (
        in_json(MODEL, lambda found: node(found).update(target="torch.ops.higher_order.cond")),
        "higher_order.cond",
    ),
    "Python for a size": (
        in_json(MODEL, lambda found: size(found).update(expr_str="__import__('os').mkdir('MARKER')")),
        "expr_str",
    ),
    "a size that takes for ever": (
        in_json(MODEL, lambda found: size(found).update(expr_str="9**9**9**9")),
        "expr_str",
    ),
    "Python for a name": (
        in_json(MODEL, lambda found: spec(found).update(forward_arg_names=["x=print(1)", "y"])),
        "forward_arg_names",
    ),
    "Python for a key": (
        in_json(MODEL, lambda found: found["range_constraints"].update({"print(1)": {}})),
        "name 'print",
    ),
    "a class for a structure": (
        in_json(
            MODEL,
            lambda found: spec(found).update(
                in_spec='[1, {"type": "os.system", "context": "null", "children_spec": []}]'
            ),
        ),
        "in_spec",
    ),
    "an object": (in_json(MODEL, lambda found: found.update(as_custom_obj={"class_fqn": "os.system"})), "class_fqn"),
    "a tensor that is a pickle": (
        in_json(WEIGHTS, lambda found: next(iter(found["config"].values())).update(use_pickle=True)),
        "a tensor is a pickle, which is never opened",
    ),
    "a constant that is one": (
        lambda parts: parts.update({"data/constants/custom_obj_0": b"x"}),
        "'net/data/constants/custom_obj_0' is no part of a net",
    ),
    "a library": (lambda parts: parts.update({"data/aotinductor/model/a.so": b"x"}), "is no part of a net"),
    "no graph": (lambda parts: parts.update({MODEL: b"[1]"}), "is no object"),
    "JSON that is too deep": (lambda parts: parts.update({MODEL: b"[" * 200_000}), "is no JSON"),
    "nothing": (lambda parts: parts.update({MODEL: b""}), "is not there"),
}


@pytest.mark.parametrize("case", HARMS)
def test_what_torch_would_execute_is_refused_by_name(case: str, saved: Path, tmp_path: Path) -> None:
    change, words = HARMS[case]
    with pytest.raises(FormatError, match=words):
        rewritten(changed(saved, tmp_path / "harm.pt2", change))


def test_example_inputs_and_guards_are_left_out(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def change(parts: Parts) -> None:
        parts["data/sample_inputs/model.pt"] = pickle.dumps(Harm(marker))
        in_json(MODEL, lambda found: found.update(guards_code=[f"__import__('os').mkdir({str(marker)!r})"]))(parts)

    path = changed(saved, tmp_path / "harm.pt2", change)
    with zipfile.ZipFile(rewritten(path)) as made:
        assert made.read("net/data/sample_inputs/model.pt") == b""
        assert b'guards_code": []' in made.read(f"net/{MODEL}")
    _, answer = run(path, [{"x": np.ones((2, 6), np.float32), "scale": np.ones((2, 1), np.float32)}])
    assert len(answer) == 3
    assert not marker.exists()


def test_torch_itself_would_have_opened_the_pickle(saved: Path, tmp_path: Path) -> None:
    """Else the test before this one would show nothing."""
    marker = tmp_path / "marker"
    harm = changed(
        saved, tmp_path / "harm.pt2", lambda parts: parts.update({"data/sample_inputs/model.pt": _zipped(Harm(marker))})
    )
    with contextlib.suppress(Exception):  # whatever it says afterwards
        torch.export.load(harm)
    assert marker.exists()


def _zipped(harm: Harm) -> bytes:
    made = io.BytesIO()
    torch.save(harm, made)
    return made.getvalue()


def test_what_is_no_archive_or_a_packed_one_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pt2").write_bytes(b"PK\x03\x04" + b"\x00" * 100)
    with pytest.raises(FormatError, match=r"no.pt2: no archive of torch.export"):
        rewritten(tmp_path / "no.pt2")
    with pytest.raises(FormatError, match="is packed"):
        rewritten(changed(saved, tmp_path / "packed.pt2", lambda _: None, zipfile.ZIP_DEFLATED))
    data = saved.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 40)):
        (tmp_path / "cut.pt2").write_bytes(data[:end])
        with pytest.raises(FormatError):
            rewritten(tmp_path / "cut.pt2")

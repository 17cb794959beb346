"""Weights that lie in files beside an ONNX file: read from its folder, and from nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, UnsupportedError
from tersor.graph.net import Net
from tersor.graph.placement.engines import ENGINES
from tersor.graph.placement.placing import place
from tersor.graph.simplify import simplified

from .conftest import images, onnx, run
from .test_net import small


def with_external(folder: Path, change: Callable[[Any], None] | None = None, *, deep: bool = False) -> Path:
    """Write a net whose weights lie in weights.bin; `deep`: one of them in an attribute of a node."""
    d = small()
    proto = d.proto()
    data = b""
    if deep:
        held = proto.graph.node.add()
        held.op_type, held.name = "Constant", "held"
        held.output.append("inner")
        held.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.ones(9, "f"), "k")))
    tensors = [held.attribute[0].t] if deep else list(proto.graph.initializer)
    for tensor in tensors:
        entries = {"location": "weights.bin", "offset": str(len(data)), "length": str(len(tensor.raw_data))}
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    if change is not None:
        change(tensors[0])
    (folder / "weights.bin").write_bytes(data)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def told(**entries: str) -> Callable[[Any], None]:
    def change(tensor: Any) -> None:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)

    return change


def test_weights_in_a_file_beside_the_net_are_read(tmp_path: Path) -> None:
    net = Net.open(with_external(tmp_path))
    (tmp_path / "weights.bin").unlink()
    x = images(1, 3, 6, 6)[0]
    np.testing.assert_array_equal(run(net, {"x": x})["y"], run(small().net(), {"x": x})["y"])
    assert len(place(simplified(net), ENGINES["onnxruntime"]).integer) == 1


OUTSIDE: dict[str, tuple[dict[str, str], str]] = {
    "a file above": ({"location": "../secret.bin"}, "refused|outside"),
    "an absolute path": ({"location": "/etc/passwd"}, "refused|outside"),
    "a file that is not there": ({"location": "nothing.bin"}, "leads nowhere"),
    "no name": ({"location": ""}, "lies in another file"),
    "a name with a null": ({"location": "weights\0.bin"}, "null"),
    "a folder": ({"location": "."}, "."),
    "an offset beyond the end": ({"offset": "99999999"}, "has .* bytes"),
    "a length beyond the end": ({"length": "99999999"}, "has .* bytes"),
    "a negative offset": ({"offset": "-4"}, "lies at -4"),
    "a negative length": ({"length": "-4"}, r"\+ -4"),
    "an offset that is no number": ({"offset": "four"}, "four"),
    "a length that is too small": ({"length": "8"}, "."),
}


@pytest.mark.parametrize("case", OUTSIDE)
@pytest.mark.parametrize("deep", [False, True])
def test_weights_outside_the_folder_or_the_file_are_refused(case: str, deep: bool, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    entries, message = OUTSIDE[case]
    path = with_external(folder, told(**entries), deep=deep)
    with pytest.raises(FormatError, match=message):
        Net.open(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    path = with_external(folder)
    (folder / "weights.bin").rename(tmp_path / "secret.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(FormatError, match="outside its folder"):
        Net.open(path)


@pytest.mark.parametrize("deep", [False, True])
def test_bytes_without_a_folder_have_no_other_file(deep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_external(tmp_path, deep=deep).read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match=r"lies in another file \(weights.bin\)"):
        Net.parse(data, "it")


def test_many_weights_in_the_same_bytes_do_not_fill_memory(tmp_path: Path) -> None:
    """A file of 64 MB (sparse) that 50 weights share would be 3 GB."""
    d = small()
    proto = d.proto()
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(1 << 26)
    for number in range(50):
        tensor = proto.graph.initializer.add()
        tensor.name, tensor.data_type, tensor.data_location = f"w{number}", 1, onnx.TensorProto.EXTERNAL
        tensor.dims.extend([1 << 24])
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "weights.bin"
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedError, match="3,355,443,200 bytes"):
        Net.open(tmp_path / "net.onnx")


# Mutants

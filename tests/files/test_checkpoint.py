from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tersor.core.errors import FormatError, MissingError
from tersor.files.checkpoint import Checkpoint, read_json, weight_files

SHARDS = ("model-1.safetensors", "model-2.safetensors")


def sharded(folder: Path, weight_map: object = None, **tensors: dict[str, Any]) -> Path:
    """Write two shards, `a` in the first and `b` in the second, and an index."""
    save_file({"a": np.ones(2, np.float32)}, folder / SHARDS[0])
    save_file({"b": np.ones(3, np.float32)}, folder / SHARDS[1])
    weight_map = {"a": SHARDS[0], "b": SHARDS[1]} if weight_map is None else weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def opened(folder: Path) -> Checkpoint:
    paths, index, _ = weight_files(folder)
    return Checkpoint(paths, index)


def test_shards_are_read_as_one_table(tmp_path: Path) -> None:
    checkpoint = opened(sharded(tmp_path))
    assert set(checkpoint.tensors) == {"a", "b"}
    assert checkpoint.read("b", 1, 3).tolist() == [1, 1]


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "..", "",
     "x\0.safetensors", "model.safetensors.index.json", "x.bin"],
)  # fmt: skip
def test_a_shard_name_that_is_not_a_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match=r"is not the plain name of a \.safetensors file in the same folder"):
        opened(sharded(tmp_path, {"a": SHARDS[0], "b": name}))


def test_a_shard_that_links_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder)
    (folder / SHARDS[1]).rename(tmp_path / "elsewhere.safetensors")
    (folder / SHARDS[1]).symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FormatError, match="links to a file outside its folder"):
        opened(folder)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    sharded(folder)
    for index, shard in enumerate(SHARDS):
        (folder / shard).rename(blobs / str(index))
        (folder / shard).symlink_to(f"../../blobs/{index}")
    assert set(opened(folder).tensors) == {"a", "b"}


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    for shard, other in (SHARDS, SHARDS[::-1]):
        (tmp_path / shard).unlink()
        (tmp_path / shard).symlink_to(other)
    with pytest.raises((FormatError, MissingError), match=r"missing|nowhere"):
        opened(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / SHARDS[1]).unlink()
    with pytest.raises(MissingError, match=r"1 shards are missing, the first is model-2\.safetensors"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": SHARDS[1], "b": SHARDS[0]}, "puts 'a' into model-2.safetensors, model-1.safetensors has it"),
        ({"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}, "puts 'c' into model-2.safetensors, no shard has it"),
        ({"a": SHARDS[0], "x": SHARDS[1]}, "no shard has it"),
        ({}, "weight_map must map"),
        ([], "weight_map must map"),
        ({"a": 3}, "weight_map must map"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path, weight_map: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        opened(sharded(tmp_path, weight_map))


def test_a_tensor_that_the_index_leaves_out_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"b": np.ones(3, np.float32), "c": np.ones(1, np.float32)}, tmp_path / SHARDS[1])
    with pytest.raises(FormatError, match="tensor 'c' is not in the index"):
        opened(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, tmp_path / SHARDS[1])
    with pytest.raises(FormatError, match=r"tensor 'a' is also in model-1\.safetensors"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b'{"weight_map":{"a":"x","a":"y"}}', "'a' is named twice"),
        (b"[" * 200_000, "at most 131072"),
        (b'{"weight_map":' + b"[" * 100_000, "not JSON"),
        (b"{" + b'"":"",' * 700_000, "at most"),
        (b" " * (33 * 2**20), "at most 33554432 are read"),
    ],
)
def test_a_hostile_index_is_a_format_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        opened(tmp_path)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
    assert weight_files(tmp_path)[0] == [tmp_path / "model.safetensors"]


def test_a_whole_file_is_preferred_to_an_index_as_in_transformers(tmp_path: Path) -> None:
    (sharded(tmp_path) / SHARDS[1]).unlink()
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == ([tmp_path / "model.safetensors"], None, [])


def test_a_single_file_of_any_name_is_taken_and_several_are_not(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    assert weight_files(tmp_path)[0] == [tmp_path / "weights.safetensors"]
    (tmp_path / "more.safetensors").touch()
    with pytest.raises(MissingError, match="2 weight files and no index"):
        weight_files(tmp_path)


def test_an_empty_folder_has_no_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no weights"):
        weight_files(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(b"[1]", "an object is needed"), (b"nul", "not JSON")])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_json(tmp_path / "config.json")

"""The writer against the `gguf` package's own, against its reader, and against our structural check."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from tersor.containers.gguf import Split, lay_out, write_gguf
from tersor.core.arrays import Bytes
from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError
from tersor.core.metadata import MetadataEntry
from tersor.core.plan import PlannedTensor
from tersor.files.gguf import GgufFile, check
from tersor.formats import FORMATS

METADATA = {
    "general.architecture": MetadataEntry("llama", "str"),
    "a.bool": MetadataEntry(True, "bool"),
    "a.u8": MetadataEntry(200, "u8"),
    "a.u16": MetadataEntry(60_000, "u16"),
    "a.i64": MetadataEntry(-(2**40), "i64"),
    "a.f32": MetadataEntry(1e-5, "f32"),
    "a.f64": MetadataEntry(0.1, "f64"),
    "a.text": MetadataEntry("naïve ▁ 東京", "str"),
    "tokens": MetadataEntry(["<s>", "", "▁a"], "[str]"),
    "types": MetadataEntry([1, 3, -6], "[i32]"),
    "scores": MetadataEntry([0.0, -1.0, -2.0], "[f32]"),
    "flags": MetadataEntry([True, False], "[bool]"),
}


def planned(name: str, shape: tuple[int, ...], number_format: str = "f32") -> PlannedTensor:
    rows = int(np.prod(shape[:-1]))
    nbytes = rows * FORMATS[number_format].row_bytes(shape[-1])
    return PlannedTensor(name, shape, "F32", number_format, "test", "", nbytes)


TENSORS = (
    planned("token_embd.weight", (3, 64), "q8_0"),
    planned("blk.0.attn_norm.weight", (5,)),
    planned("blk.0.ffn_up_exps.weight", (2, 3, 32), "q4_0"),
    planned("output_norm.weight", (7,), "f32"),
)


def data_of(tensor: PlannedTensor) -> Bytes:
    generator = np.random.default_rng(len(tensor.name))
    return generator.integers(0, 60, tensor.nbytes, dtype=np.uint8)


def chunks_of(tensors: tuple[PlannedTensor, ...], size: int = 50) -> Iterator[tuple[str, Bytes]]:
    """The data of `tensors` in pieces of `size` bytes."""
    for tensor in tensors:
        data = data_of(tensor)
        for start in range(0, tensor.nbytes, size):
            yield tensor.name, data[start : start + size]


def write_with_package(path: Path, *, integers_as_floats: bool = False) -> None:
    """Write METADATA and TENSORS with the writer of the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama")
    kinds = {"u8": "uint8", "u16": "uint16", "i64": "int64", "f32": "float32", "f64": "float64", "str": "string"}
    for key, entry in METADATA.items():
        if key == "general.architecture":
            continue
        if entry.kind.startswith("["):
            writer.add_array(key, [0, -1, -2] if key == "scores" and integers_as_floats else entry.value)
        else:
            getattr(writer, f"add_{kinds.get(entry.kind, entry.kind)}")(key, entry.value)
    for tensor in TENSORS:
        number_format = FORMATS[tensor.format]
        assert number_format.ggml_type is not None
        data = data_of(tensor)
        if tensor.format == "f32":
            writer.add_tensor(tensor.name, data.view(np.float32).reshape(tensor.shape))
        else:
            rows = data.reshape(*tensor.shape[:-1], number_format.row_bytes(tensor.shape[-1]))
            writer.add_tensor(tensor.name, rows, raw_dtype=gguf.GGMLQuantizationType(number_format.ggml_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_bytes_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    write_with_package(tmp_path / "theirs.gguf")
    write_gguf(tmp_path / "ours.gguf", METADATA, TENSORS, chunks_of(TENSORS))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_float_arrays_stay_floats_where_the_package_makes_integers_of_them(tmp_path: Path) -> None:
    """The reason for not building on it: decisions/0003."""
    write_with_package(tmp_path / "theirs.gguf", integers_as_floats=True)
    write_gguf(tmp_path / "ours.gguf", METADATA, TENSORS, chunks_of(TENSORS))
    with GgufFile(tmp_path / "theirs.gguf") as theirs, GgufFile(tmp_path / "ours.gguf") as ours:
        assert theirs.entries["scores"].kind == "[i32]"
        assert ours.entries["scores"].kind == "[f32]"


def test_the_reader_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    (artefact,) = write_gguf(path, METADATA, TENSORS, chunks_of(TENSORS))
    assert check(path) == []
    assert artefact.name == "m.gguf"
    assert artefact.nbytes == path.stat().st_size
    assert artefact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with GgufFile(path) as file:
        assert file.entries == {k: v if k != "a.f32" else file.entries[k] for k, v in METADATA.items()}
        for tensor in TENSORS:
            assert file.tensors[tensor.name].shape == tensor.shape
            np.testing.assert_array_equal(file.read_bytes(tensor.name).reshape(-1), data_of(tensor))


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_size_of_chunks_never_changes_the_file(tmp_path: Path, size: int) -> None:
    (artefact,) = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, chunks_of(TENSORS, size))
    (other,) = write_gguf(tmp_path / "n.gguf", METADATA, TENSORS, chunks_of(TENSORS))
    assert artefact.sha256 == other.sha256


@pytest.mark.parametrize(
    ("split", "groups"),
    [(Split(max_tensors=1), [1, 1, 1, 1]), (Split(max_tensors=3), [3, 1]), (Split(max_bytes=160), [1, 2, 1]),
     (Split(max_bytes=1), [1, 1, 1, 1]), (Split(max_bytes=10_000), [4]), (None, [4])],
)  # fmt: skip
def test_parts_hold_what_the_limit_allows_and_open_as_one(
    tmp_path: Path, split: Split | None, groups: list[int]
) -> None:
    written = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, chunks_of(TENSORS), split=split)
    count = len(groups)
    names = [f"m-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)] if count > 1 else ["m.gguf"]
    assert [artefact.name for artefact in written] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    first = tmp_path / names[0]
    assert check(first) == []
    with GgufFile(first) as file:
        assert list(file.tensors) == [tensor.name for tensor in TENSORS]
        for tensor in TENSORS:
            np.testing.assert_array_equal(file.read_bytes(tensor.name).reshape(-1), data_of(tensor))
    planned_parts = lay_out(tmp_path / "m.gguf", METADATA, TENSORS, split)
    assert [len(part.tensors) for part in planned_parts] == groups
    for part in planned_parts:
        assert part.nbytes == (tmp_path / part.name).stat().st_size


def test_late_metadata_replaces_its_placeholder_and_is_in_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    placeholder = {**METADATA, "source": MetadataEntry("0" * 8, "str")}
    consumed = False

    def chunks() -> Iterator[tuple[str, Bytes]]:
        nonlocal consumed
        yield from chunks_of(TENSORS)
        consumed = True

    def late() -> dict[str, MetadataEntry]:
        assert consumed
        return {"source": MetadataEntry("deadbeef", "str")}

    (artefact,) = write_gguf(path, placeholder, TENSORS, chunks(), late=late)
    assert check(path) == []
    assert artefact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with GgufFile(path) as file:
        assert file.metadata["source"] == "deadbeef"


def test_late_metadata_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"late metadata changes the header from \d+ to \d+ bytes"):
        write_gguf(
            tmp_path / "m.gguf",
            METADATA,
            TENSORS,
            chunks_of(TENSORS),
            late=lambda: {"a.text": MetadataEntry("x" * 90, "str")},
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (list(chunks_of(TENSORS))[:-1], r"output_norm\.weight: 28 bytes are to come, nothing more arrived"),
        (list(chunks_of(TENSORS[1:])), r"token_embd\.weight: 204 bytes are to come, 20 of blk\.0\.attn_norm\.weight"),
        ([("token_embd.weight", np.zeros(205, np.uint8))], r"204 bytes are to come, 205 of token_embd\.weight arrived"),
        ([*chunks_of(TENSORS), ("more", np.zeros(1, np.uint8))], r"rows of more arrived after the last tensor"),
    ],
)
def test_chunks_that_do_not_fit_the_tensors_are_refused_and_nothing_stays(
    tmp_path: Path, chunks: list[tuple[str, Bytes]], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, chunks, split=Split(max_tensors=2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([planned("x" * 64, (4,))], r"has 64 bytes; a GGUF holds 1 to 63"),
        ([planned("", (4,))], r"has 0 bytes"),
        ([planned("a", (4,)), planned("a", (4,))], r"two tensors are called 'a'"),
        ([planned("a", (1, 1, 1, 1, 4))], r"tensors of 1 to 4 axes"),
        ([PlannedTensor("a", (0, 4), "F32", "f32", "", "", 0)], r"none of them empty"),
        ([PlannedTensor("a", (4,), "F32", "f32", "", "", 15)], r"f32 takes 16 bytes, not 15"),
        ([planned("a", (64,), "nf4")], r"a GGUF cannot hold nf4"),
        ([planned("a", (64,), "nvfp4")], r"a GGUF cannot hold nvfp4"),
    ],
)
def test_tensors_that_a_gguf_cannot_hold_are_refused(tensors: list[PlannedTensor], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        lay_out(Path("m.gguf"), METADATA, tensors)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=re.escape(str(tmp_path / "no"))):
        write_gguf(tmp_path / "no" / "m.gguf", METADATA, TENSORS, chunks_of(TENSORS))


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_tensors": -1}])
def test_a_limit_below_one_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(SchemeError, match=r"must be at least 1"):
        Split(**limits)


def test_more_parts_than_the_format_can_count_are_refused() -> None:
    tensors = [planned(f"t{n}", (1,)) for n in range(65_536)]
    with pytest.raises(SchemeError, match=r"65536 parts, a split GGUF has at most 65535"):
        lay_out(Path("m.gguf"), METADATA, tensors, Split(max_tensors=1))

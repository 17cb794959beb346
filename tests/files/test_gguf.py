from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from tersor.core.errors import FormatError, MissingError, ShapeError
from tersor.files.gguf import GgufFile, check


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def header(keys: list[bytes], tensors: list[bytes], *, version: int = 3, count: int | None = None) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors) if count is None else count, len(keys))
    return b"GGUF" + counts + b"".join(keys) + b"".join(tensors)


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return path


def test_every_key_and_tensor_reads_as_the_gguf_package_wrote_it(sound_gguf: Path) -> None:
    reader = gguf.GGUFReader(sound_gguf)
    with GgufFile(sound_gguf) as file:
        for field in reader.fields.values():
            if not field.name.startswith("GGUF."):
                expected = field.contents()
                assert file.metadata[field.name] == pytest.approx(expected) if isinstance(expected, float) else expected
        assert {name: entry.kind for name, entry in file.entries.items() if name.startswith("a.")} == {
            name: name[2:] for name in file.entries if name.startswith("a.")
        }
        for theirs in reader.tensors:
            ours = file.tensors[theirs.name]
            assert ours.shape == tuple(int(size) for size in reversed(theirs.shape))
            assert ours.ggml_type == int(theirs.tensor_type)
            assert ours.offset == theirs.data_offset
            data = np.ascontiguousarray(theirs.data).view(np.uint8).reshape(-1, ours.row_bytes)
            np.testing.assert_array_equal(file.read_bytes(theirs.name), data)
            np.testing.assert_array_equal(file.read_bytes(theirs.name, 1, 3), data[1:3])
    assert check(sound_gguf) == []


def test_version_2_is_read_like_version_3(sound_gguf: Path) -> None:
    content = bytearray(sound_gguf.read_bytes())
    content[4] = 2
    sound_gguf.write_bytes(content)
    assert GgufFile(sound_gguf).version == 2


def test_rows_outside_a_tensor_are_refused(sound_gguf: Path) -> None:
    with GgufFile(sound_gguf) as file, pytest.raises(ShapeError, match="rows 2 to 7 asked for, it has 6"):
        file.read_bytes("token_embd.weight", 2, 7)


def test_a_vocabulary_of_150_000_tokens_and_merges_opens_in_bounded_time(tmp_path: Path) -> None:
    tokens = [f"token{index}" for index in range(152_000)]
    merges = [f"to ken{index}" for index in range(151_000)]
    arrays = [
        key(name, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values)))
        for name, values in (("tokens", tokens), ("merges", merges))
    ]
    path = written(tmp_path, header(arrays, []))
    start = time.process_time()
    file = GgufFile(path)
    assert time.process_time() - start < 20
    assert file.metadata["tokens"] == tokens
    assert file.metadata["merges"] == merges


FATAL: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "another magic": (b"GGML" + bytes(40), "does not begin with the letters GGUF"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (header([], [], version=1), "version 1; versions 2 and 3"),
    "version 4": (header([], [], version=4), "version 4"),
    "huge tensor count": (header([], [], count=2**60), "tensors claimed"),
    "huge key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "keys claimed"),
    "key longer than the file": (header([struct.pack("<Q", 2**60)], []), "keys claimed|at most|truncated"),
    "huge key": (header([struct.pack("<Q", 2**40) + bytes(16)], []), "a key of 1099511627776 bytes"),
    "huge string": (header([text("k") + struct.pack("<IQ", 8, 2**62)], []), "truncated"),
    "huge array": (header([key("k", 9, struct.pack("<IQ", 4, 2**61))], []), "items of the array 'k' claimed"),
    "array longer than the file": (header([key("k", 9, struct.pack("<IQ", 4, 100))], []), "claimed"),
    "nested array": (header([key("k", 9, struct.pack("<IQ", 9, 1) + bytes(12))], []), "array of arrays"),
    "unknown value type": (header([key("k", 13, bytes(8))], []), "value type 13"),
    "unknown item type": (header([key("k", 9, struct.pack("<IQ", 77, 0))], []), "item type 77"),
    "key not UTF-8": (header([key(b"\xff\xfe", 0, b"\1")], []), "a key is not UTF-8"),
    "value not UTF-8": (header([key("k", 8, text(b"\xff"))], []), "the value of 'k' is not UTF-8"),
    "item not UTF-8": (
        header([key("k", 9, struct.pack("<IQ", 8, 1) + text(b"\xff"))], []),
        "item 0 of 'k' is not UTF-8",
    ),
    "five dimensions": (header([], [tensor("t", (1, 1, 1, 1, 1))]), "5 dimensions, 1 to 4"),
    "four billion dimensions": (
        header([], [text("t") + struct.pack("<I", 2**32 - 1) + bytes(32)]),
        "4294967295 dimensions",
    ),
    "no dimensions": (header([], [tensor("t", ()) + bytes(8)]), "0 dimensions"),
}


@pytest.mark.parametrize("case", FATAL)
def test_a_header_that_cannot_be_read_is_a_format_error(tmp_path: Path, case: str) -> None:
    content, message = FATAL[case]
    path = written(tmp_path, content)
    with pytest.raises(FormatError, match=message):
        GgufFile(path)
    assert len(check(path)) == 1


ONE = tensor("a", (8,))
BROKEN: dict[str, tuple[list[bytes], list[bytes], int, str]] = {
    "key twice": ([key("k", 0, b"\1"), key("k", 0, b"\1")], [], 0, "the key 'k' appears twice"),
    "empty key": ([key("", 0, b"\1")], [], 0, "a key is empty"),
    "bool of 7": ([key("k", 7, b"\7")], [], 0, "a bool with value 7"),
    "alignment of 24": ([key("general.alignment", 4, struct.pack("<I", 24))], [], 0, "general.alignment is 24"),
    "alignment of 0": ([key("general.alignment", 4, bytes(4))], [], 0, "general.alignment is 0"),
    "alignment as text": ([key("general.alignment", 8, text("32"))], [], 0, "u32 power of 2"),
    "long name": ([], [tensor("n" * 64, (8,))], 32, "must have 1 to 63 bytes"),
    "no name": ([], [tensor("", (8,))], 32, "must have 1 to 63 bytes"),
    "name twice": ([], [ONE, tensor("a", (8,), offset=32)], 64, "the tensor 'a' appears twice"),
    "unknown type": ([], [tensor("a", (8,), 99)], 32, "has type 99"),
    "retired type": ([], [tensor("a", (8,), 4)], 32, "has type 4"),
    "half a block": ([], [tensor("a", (48,), 2)], 32, "rows of 48 elements; Q4_0 needs a multiple of 32"),
    "size of 0": ([], [tensor("a", (8, 0))], 32, "sizes must be positive"),
    "overflowing sizes": ([], [tensor("a", (2**40, 2**40))], 32, "product below"),
    "offset not aligned": ([], [tensor("a", (8,), offset=4)], 64, "not a multiple of 32"),
    "gap": ([], [tensor("a", (8,), offset=32)], 64, "leaves a gap; 0 was due"),
    "overlap": ([], [tensor("a", (16,)), tensor("b", (8,), offset=32)], 96, "overlaps the one before; 64 was due"),
    "data cut off": ([], [ONE], 31, "truncated"),
    "offset near 2^64": ([], [tensor("a", (8,), offset=2**64 - 32)], 64, "leaves a gap"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_of_the_format_is_held(tmp_path: Path, case: str) -> None:
    keys, tensors, data, message = BROKEN[case]
    path = written(tmp_path, padded(header(keys, tensors)) + bytes(data))
    assert any(message in problem for problem in check(path)), check(path)
    with pytest.raises(FormatError):
        GgufFile(path)


def test_check_lists_all_problems_and_not_only_the_first(tmp_path: Path) -> None:
    keys = [key("", 0, b"\1"), key("k", 7, b"\7")]
    path = written(tmp_path, padded(header(keys, [tensor("a", (8,), 99)])) + bytes(32))
    assert len(check(path)) == 3


def test_a_larger_alignment_moves_the_data(tmp_path: Path) -> None:
    keys = [key("general.alignment", 4, struct.pack("<I", 256))]
    tensors = [tensor("a", (1,)), tensor("b", (1,), offset=256)]
    data = padded(struct.pack("<f", 1.5), 256) + struct.pack("<f", 2.5)
    file = GgufFile(written(tmp_path, padded(header(keys, tensors), 256) + data))
    assert [file.read_bytes(name).view("<f4").item() for name in "ab"] == [1.5, 2.5]


def part(number: int, count: int, name: str, total: int) -> bytes:
    keys = [
        key("split.no", 2, struct.pack("<H", number)),
        key("split.count", 2, struct.pack("<H", count)),
        key("split.tensors.count", 5, struct.pack("<i", total)),
    ]
    if number == 0:
        keys.append(key("general.architecture", 8, text("llama")))
    return padded(header(keys, [tensor(name, (8,))])) + struct.pack("<8f", *[number] * 8)


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., Path]:
    def make(*, names: str = "abc", total: int = 3, count: int = 3, numbers: tuple[int, ...] = (0, 1, 2)) -> Path:
        for index, (number, name) in enumerate(zip(numbers, names, strict=True)):
            path = tmp_path / f"m-{index + 1:05d}-of-00003.gguf"
            path.write_bytes(part(number, count, name, total))
        return tmp_path / "m-00001-of-00003.gguf"

    return make


def test_a_split_file_is_read_as_one_from_any_of_its_parts(split: Callable[..., Path]) -> None:
    first = split()
    for path in (first, first.with_name("m-00002-of-00003.gguf")):
        with GgufFile(path) as file:
            assert list(file.tensors) == ["a", "b", "c"]
            assert [file.read_bytes(name).view("<f4")[0, 0] for name in "abc"] == [0, 1, 2]
            assert file.metadata == {"general.architecture": "llama"}
            assert len(file.paths) == 3
    assert check(first) == []


def test_a_missing_part_is_named(split: Callable[..., Path]) -> None:
    first = split()
    first.with_name("m-00002-of-00003.gguf").unlink()
    with pytest.raises(MissingError, match=r"1 of 3 parts are missing, the first is m-00002-of-00003\.gguf"):
        GgufFile(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": (0, 2, 1)}, "split.no, split.count are 2, 3; 1, 3 are needed"),
        ({"count": 4}, "split.no, split.count are 0, 4; 0, 3 are needed"),
        ({"total": 4}, "split.tensors.count is 4, the parts hold 3 tensors"),
        ({"names": "aba"}, "the tensor 'a' is also in m-00001-of-00003"),
    ],
)
def test_parts_that_contradict_one_another_are_refused(
    split: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        GgufFile(split(**changes))


def test_one_part_of_several_under_another_name_is_refused(split: Callable[..., Path], tmp_path: Path) -> None:
    alone = split().rename(tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match=r"split\.no, split\.count are 0, 3; 0, 1 are needed"):
        GgufFile(alone)


def test_part_seven_of_three_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="part 7 of 3 cannot be"):
        GgufFile(tmp_path / "m-00007-of-00003.gguf")

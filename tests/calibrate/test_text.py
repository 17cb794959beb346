from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tersor.calibrate import text
from tersor.calibrate.text import BUILT_IN, read_corpus
from tersor.core.errors import FormatError, MissingError


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\nworld\n")
    corpus = read_corpus(tmp_path / "a.txt")
    assert [d.text for d in corpus.documents] == ["hello\nworld\n"]
    assert (corpus.name, corpus.characters) == ("a.txt", 12)


def test_a_folder_is_read_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "d.jsonl", [{"text": "three"}, "four"])
    assert [d.text for d in read_corpus(tmp_path).documents] == ["one", "two", "three", "four"]


def test_a_name_that_is_no_unicode_is_told_with_a_mark_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = folder / os.fsdecode(b"\xe9.txt")
    path.write_text("one")
    assert (read_corpus(folder).name, read_corpus(path).name) == ("caf\ufffd", "\ufffd.txt")


def test_rows_may_hold_conversations_in_either_spelling(tmp_path: Path) -> None:
    rows: list[object] = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    ]
    first, second = read_corpus(write(tmp_path / "c.jsonl", rows)).documents
    assert first.messages == second.messages == (("user", "hi"), ("assistant", "hello"))


def test_a_field_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"text": "no", "body": "yes"}])
    assert read_corpus(path, field="body").documents[0].text == "yes"


def test_a_json_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps([{"text": "a"}, {"content": "b"}]))
    assert [d.text for d in read_corpus(tmp_path / "c.json").documents] == ["a", "b"]


def test_the_hash_depends_on_contents_and_where_documents_end(tmp_path: Path) -> None:
    one = read_corpus(write(tmp_path / "1.jsonl", ["ab", "c"]))
    two = read_corpus(write(tmp_path / "2.jsonl", ["a", "bc"]))
    same = read_corpus(write(tmp_path / "3.jsonl", ["ab", "c"]))
    assert one.sha256 == same.sha256 != two.sha256


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", ["x" * 100] * 50)
    assert len(read_corpus(path, max_bytes=1000).documents) == 10


def test_the_built_in_text_needs_no_file() -> None:
    corpus = read_corpus(BUILT_IN, max_bytes=200_000)
    assert corpus.characters > 190_000
    assert any("def " in d.text for d in corpus.documents)
    assert read_corpus(BUILT_IN, max_bytes=200_000).sha256 == corpus.sha256


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", FormatError, "not UTF-8 text"),
        ("a.txt", b"  \n", MissingError, "holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{', FormatError, "line 2: not JSON"),
        ("a.jsonl", b'{"words": "a"}\n', FormatError, r"row 1: no field .* it has words"),
        ("a.jsonl", b"17\n", FormatError, "an object or a string is needed, got int"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', FormatError, "needs the texts role and content"),
        ("a.jsonl", b'{"messages": [3]}', FormatError, "must be an object with role and content"),
        ("a.json", b'{"a": 1}', FormatError, "a JSON list of rows is needed"),
    ],
)
def test_what_is_no_text_is_refused_by_place(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_corpus(tmp_path / name)


def test_what_is_cut_is_told_from_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_BYTES", 100)
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 60)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(["x" * 30] * 4))
    with pytest.raises(FormatError, match=r"c\.json: longer than 100 bytes.*or JSON lines \(\.jsonl\)"):
        read_corpus(path)
    path.write_text(json.dumps(["x" * 30] * 2).ljust(100))
    assert len(read_corpus(path).documents) == 2
    rows = write(tmp_path / "c.jsonl", ["a", "x" * 57, "b" * 58])  # 59 and 60 bytes, and a line's end
    with pytest.raises(FormatError, match="line 3: longer than 60 bytes, the most that is read; make several rows"):
        read_corpus(rows)
    assert len(read_corpus(write(rows, ["a", "x" * 57])).documents) == 2


@pytest.mark.parametrize("name", ["teknium/OpenHermes-2.5", "allenai/c4:en.noblocklist:train"])
def test_a_dot_in_the_id_of_a_data_set_makes_no_file_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load_dataset(*given: object, **_: object) -> list[object]:
        asked.extend(given)
        return [{"text": "one"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert [document.text for document in read_corpus(name).documents] == ["one"]
    assert asked[0] == name.partition(":")[0]


def test_absent_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file or folder"):
        read_corpus(tmp_path / "none.txt")
    with pytest.raises(MissingError, match="holds no file with one of the endings"):
        read_corpus(tmp_path)

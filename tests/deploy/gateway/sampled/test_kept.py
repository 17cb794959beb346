"""What is kept of requests: bounded, readable by its owner alone, and nothing of who asked."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import FormatError, MissingError
from tersor.deploy.gateway.sampled import kept as module
from tersor.deploy.gateway.sampled.kept import Keeper, arrays_of, kept_path, read_kept, texts_of


def row(numbers: list[float], name: str = "x") -> tuple[dict[str, object], bytes]:
    """A request of one row."""
    array = np.array([numbers], np.float32)
    told = {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
    return {"inputs": [told], "outputs": ["y"], "user": "ann"}, array.tobytes()


def test_the_newest_stay_some_of_each_span_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    keeper = Keeper(kept_path(tmp_path / "deploy.record.db"), most=60)
    for span in range(100):
        for number in range(20):
            keeper.take("digits", *row([span, number]))
        keeper.save(5.0 * span)
    assert stat.S_IMODE(keeper.path.stat().st_mode) == 0o600
    found = read_kept(keeper.path, "digits")
    assert len(found) == 60
    arrays = arrays_of(found)
    assert arrays["x"].shape == (60, 2)
    assert sorted(set(arrays["x"][:, 0])) == list(range(40, 100))  # one of each of the last sixty times
    assert all(set(request) == {"inputs"} for request, _ in found)
    assert read_kept(keeper.path, "another") == []


def test_bytes_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    keeper = Keeper(tmp_path / "requests.db", most=72_000)
    for number in range(50):
        keeper.take("digits", *row([float(number)] * 200))
    keeper.take("digits", *row([0.0] * (1 << 19)))  # 2 MiB: too large to keep
    keeper.save(0.0)
    found = arrays_of(read_kept(keeper.path, "digits"))["x"]
    assert 5 < len(found) < 13
    assert found[-1, 0] == 49


def test_of_texts_the_words_are_kept_and_nothing_else(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "requests.db", most=7200)
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ho"}]
    keeper.take("demo", {"operation": "completions", "body": {"prompt": "def f(", "user": "ann", "seed": 3}}, b"")
    keeper.take("demo", {"operation": "chat/completions", "body": {"messages": chat, "user": "ann"}}, b"")
    keeper.take("demo", {"operation": "completions", "body": {"prompt": [1, 2]}}, b"")
    keeper.save(0.0)
    assert b"ann" not in keeper.path.read_bytes()
    assert texts_of(read_kept(keeper.path, "demo")) == ["def f(", "hello\nho"]


def test_requests_of_another_form_than_the_newest_are_left_out() -> None:
    found = arrays_of([row([1, 2, 3]), row([4, 5], "z"), row([6, 7]), row([8, 9])])
    assert found["x"].tolist() == [[6, 7], [8, 9]]
    assert list(found) == ["x"]
    assert arrays_of([]) == {}


def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    with pytest.raises(MissingError, match="keep: 2000"):
        read_kept(path, "demo")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(FormatError, match="another program"):
        read_kept(path, "demo")
    assert path.read_bytes() == before
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(FormatError):
        read_kept(path, "demo")

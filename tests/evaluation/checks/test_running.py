"""Real llama.cpp has the last word."""

from __future__ import annotations

import re
from pathlib import Path

from tersor.evaluation.checks.running import check_running

from .conftest import MakeGguf, changing_nothing


def test_a_sound_file_runs(exact: Path) -> None:
    check = check_running(exact, tokens=7)
    assert check.status == "passed"
    assert check.numbers["generated_tokens"] == 7
    assert re.search(r"xllamacpp .* loads it and continues 'The' with", check.detail)


def test_a_file_that_the_engine_refuses_fails_with_its_words(exact: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(exact.read_bytes()[:-4000])
    check = check_running(path)
    assert check.status == "failed"
    assert "llama.cpp" in check.problems[0]


def test_weights_that_are_not_numbers_are_noticed(make_gguf: MakeGguf, tmp_path: Path) -> None:
    path = make_gguf("f32", changing_nothing)
    data = path.read_bytes()
    path.write_bytes(data[:-4096] + b"\x00\x00\xc0\x7f" * 1024)
    check = check_running(path, tokens=2)
    assert check.status == "failed"
    assert check.problems == ("logits are not finite",)

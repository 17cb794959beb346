from __future__ import annotations

from pathlib import Path

import pytest

from tersor.core.errors import MissingError, UnsupportedError
from tersor.evaluation.speed.runners import RUNNERS, runner_for


def test_what_no_engine_runs_is_refused_with_what_could_be_run(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"bench runs a GGUF in llama\.cpp and a folder with config\.json"):
        runner_for(tmp_path)
    with pytest.raises(MissingError, match="no such file or folder"):
        runner_for(tmp_path / "none.gguf")


def test_an_artefact_suits_one_engine_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "x.gguf").write_bytes(b"")
    for path in (tmp_path, tmp_path / "x.gguf"):
        assert sum(runner.suits(path) for runner in RUNNERS.values()) == 1

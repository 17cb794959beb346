"""A bar is for people who wait at a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tersor.cli.screen import progress as module
from tersor.cli.screen.progress import Bar, progress_bar


def test_away_from_a_terminal_nothing_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    with progress_bar() as bar:
        bar("a", 1, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("unit", ["bytes", "weights"])
def test_a_long_run_at_a_terminal_shows_what_it_does(unit: module.Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    bar = Bar(Console(file=text, force_terminal=True, width=100), unit)
    bar("blk.0.attn_q.weight", 1, 2)
    assert text.getvalue() == ""  # a short run stays silent
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    bar("blk.1.attn_q.weight", 1, 2)
    bar.close()
    assert "blk.1.attn_q.weight" in text.getvalue()

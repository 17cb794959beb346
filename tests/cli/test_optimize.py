from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run

pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")


def test_the_choice_is_shown_and_kept_where_it_is_wanted(run: Run, convolution: Path, tmp_path: Path) -> None:
    options = ("--engines", "onnxruntime", "--threads", "1", "--rounds", 2, "-o", tmp_path / "kept.json")
    done = run("optimize", convolution, *options)
    assert done.code == 0, done.err
    assert done.out.startswith("net.onnx: onnxruntime, 1 threads, ")
    assert "measured in" in done.out.splitlines()[0]
    assert "1.00×" in done.out
    assert "kept in kept.json" in done.out
    again = run("optimize", convolution, *options, "--json").document
    assert again["fresh"] is False
    assert again["choice"]["engine"] == "onnxruntime"
    assert not (convolution.parent / "net.onnx.choices.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clock", "sun"), "--clock is wall or processor"),
        (("--threads", "1,x"), "--threads takes whole numbers"),
        (("--engines", "x"), "no engine for nets is called 'x'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    run: Run, convolution: Path, options: tuple[str, ...], message: str
) -> None:
    done = run("optimize", convolution, *options)
    assert done.code == 1
    assert message in done.err


@pytest.mark.parametrize("option", ["--batch", "--length"])
def test_sizes_of_nets_mean_nothing_for_a_gguf(run: Run, model: Path, option: str) -> None:
    done = run("optimize", model, option, 1)
    assert done.code == 1
    assert f"{option} means nothing for a GGUF" in done.err

"""Saved sums: they are what the model sees, survive a kill and damage is told, and any method can start from them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tersor.calibrate import statistics as saved
from tersor.calibrate.statistics import Statistics
from tersor.calibrate.workspace import workspace_path
from tersor.cli.main import app
from tersor.containers.imatrix import read_imatrix
from tersor.core.card import Card
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.decoder import Decoder
from tersor.models import Model
from tersor.pipeline.calibrated import statistics as pipeline
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.calibrated.run import Calibration, divided
from tersor.pipeline.calibrated.statistics import calibrate, importances_of, open_statistics

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="calibration computes with torch: pip install 'tersor[torch]'")

Make = Callable[..., Model]
KINDS = {"dense": ("LlamaConfig", {}), "experts": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2})}


def settings(text: Path) -> Calibration:
    return Calibration(source=text, sequences=24, length=32, chunk=4)


@pytest.fixture
def gathered(make: Make, text: Path, tmp_path: Path) -> tuple[Model, Path]:
    """A tiny model and its statistics."""
    model = make()
    calibrate(model, tmp_path / "saved", settings(text))
    return model, tmp_path / "saved"


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_a_plain_forward_pass(kind: str, make: Make, text: Path, tmp_path: Path) -> None:
    config, more = KINDS[kind]
    model = make(config, **more)
    found = calibrate(model, tmp_path / "saved", settings(text))
    statistics = open_statistics(tmp_path / "saved", model)
    taken, kept_back = divided(statistics.sequences)
    assert found is not None
    assert found.tokens == taken.tokens
    assert len(kept_back)
    decoder = Decoder(model)
    hidden = decoder.embed(torch.from_numpy(taken.ids))
    for layer in range(decoder.layers):
        seen: dict[Any, Any] = {}

        def observe(names: tuple[str, ...], x: Any, expert: int | None, at: dict[Any, Any] = seen) -> None:
            at[names, expert] = x.double()

        hidden = decoder.block(layer).forward(hidden, observe)
        inputs = {(one.names, one.expert): one.sums for one in statistics.load(layer)}
        assert set(inputs) == set(seen)
        for key, x in seen.items():
            sums, hessian = inputs[key], inputs[key].hessian()
            assert sums.tokens == len(x)
            if not len(x):
                assert hessian is None
                continue
            expected = (x.T @ x / len(x)).float()
            torch.testing.assert_close(hessian, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
            torch.testing.assert_close(sums.squares.float(), x.square().sum(0).float(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(sums.peaks, x.abs().amax(0).float(), rtol=1e-4, atol=1e-5)


def test_the_first_block_is_quantized_as_from_the_text(
    gathered: tuple[Model, Path], text: Path, tmp_path: Path
) -> None:
    model, folder = gathered
    by_text, by_sums = (
        quantize_calibrated(model, "q4_0", tmp_path / "m.gguf", how, embedding_format="f32")
        for how in (How("awq", settings(text), force=True), How("awq", statistics=folder, force=True))
    )
    assert by_text is not None
    assert by_sums is not None
    first = [
        [(one.output, one.plain) for one in card.errors if one.name.startswith("blk.0.")] for card in (by_text, by_sums)
    ]
    assert np.array(first[0], float) == pytest.approx(np.array(first[1], float), rel=2e-3, nan_ok=True)
    assert "saved statistics" in by_sums.plan.recipe.calibration
    assert by_sums.evaluations[0].metric("kl_mean") is not None


@pytest.mark.parametrize("method", ["rtn", "gptq", "clip", "hqq", "autoround", "best", "smoothquant+gptq"])
def test_every_method_that_needs_no_pairs_takes_them(method: str, gathered: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = gathered
    card = quantize_calibrated(model, "q4_0", tmp_path / "m.gguf", How(method=method, statistics=folder, force=True))
    assert card is not None
    assert any(one.method and one.method.endswith(method.rpartition("+")[2]) for one in card.errors)


@pytest.mark.parametrize("method", ["gptaq", "foem", "qronos"])
def test_methods_that_correct_earlier_layers_say_what_they_need(
    method: str, gathered: tuple[Model, Path], tmp_path: Path
) -> None:
    model, folder = gathered
    how = How(method=method, statistics=folder, force=True)
    if method == "foem":
        assert quantize_calibrated(model, "q4_0", tmp_path / "m.gguf", how) is not None
        return
    with pytest.raises(SchemeError, match=f"{method} corrects what earlier layers did wrong, .* give --calibration"):
        quantize_calibrated(model, "q4_0", tmp_path / "m.gguf", how)


def test_a_stopped_run_goes_on_and_saves_the_same(
    gathered: tuple[Model, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = gathered
    original = saved.save_sums

    def once(path: Path, inputs: Any) -> None:
        if path.name == "block-0001.safetensors":
            raise KeyboardInterrupt
        original(path, inputs)

    monkeypatch.setattr(pipeline, "save_sums", once)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, tmp_path / "again", settings(text))
    assert not (tmp_path / "again").exists()
    assert (workspace_path(tmp_path / "again") / "block-0000.safetensors").is_file()
    written: list[str] = []

    def noted(path: Path, inputs: Any) -> None:
        written.append(path.name)
        original(path, inputs)

    monkeypatch.setattr(pipeline, "save_sums", noted)
    calibrate(model, tmp_path / "again", settings(text), resume=True)
    assert "block-0000.safetensors" not in written
    assert Statistics.open(tmp_path / "again").about == Statistics.open(folder).about
    assert not workspace_path(tmp_path / "again").exists()


def test_unfinished_work_of_another_text_is_not_mixed_in(
    gathered: tuple[Model, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = gathered
    monkeypatch.setattr(pipeline, "save_index", lambda folder, about: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calibrate(model, tmp_path / "again", settings(text))
    text.write_text(text.read_text() + " the sea")
    with pytest.raises(SchemeError, match="made with another "):
        calibrate(model, tmp_path / "again", settings(text), resume=True)


def test_statistics_of_another_model_are_refused(gathered: tuple[Model, Path], make: Make, tmp_path: Path) -> None:
    other = make(num_hidden_layers=1)
    with pytest.raises(SchemeError, match=r"gathered from another model \(.* differs\)"):
        quantize_calibrated(other, "q4_0", tmp_path / "m.gguf", How(statistics=gathered[1]))


def test_a_folder_of_something_else_is_not_replaced(make: Make, text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FormatError, match=r"thesis.txt: belongs to no statistics, so the folder is not replaced"):
        calibrate(make(), tmp_path / "mine", settings(text))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(FormatError, match="a file has this name"):
        calibrate(make(), tmp_path / "mine" / "thesis.txt", settings(text))


def test_older_statistics_are_replaced_where_nothing_else_lies_beside(gathered: tuple[Model, Path], text: Path) -> None:
    model, folder = gathered
    (folder / "notes.md").write_text("years of work")
    with pytest.raises(FormatError, match=r"notes.md: belongs to no statistics"):
        calibrate(model, folder, settings(text))
    (folder / "notes.md").unlink()
    calibrate(model, folder, Calibration(source=text, sequences=16, length=32, chunk=4))
    assert open_statistics(folder, model).sequences.ids.shape == (16, 32)


@pytest.mark.parametrize("name", ["block-0001.safetensors", "tokens.safetensors", saved.INDEX])
def test_damage_is_told_with_the_remedy(name: str, gathered: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = gathered
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x55
    (folder / name).write_bytes(content if name != saved.INDEX else content[: len(content) // 2])
    with pytest.raises(FormatError, match=rf"{name}: damaged .*; gather the statistics again"):
        quantize_calibrated(model, "q4_0", tmp_path / "m.gguf", How(method="gptq", statistics=folder))


def test_what_is_missing_is_named(gathered: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = gathered
    (folder / "block-0000.safetensors").unlink()
    with pytest.raises(MissingError, match=r"block-0000.safetensors: is missing; gather"):
        quantize_calibrated(model, "q4_0", tmp_path / "m.gguf", How(method="gptq", statistics=folder))
    with pytest.raises(MissingError, match="no saved statistics; make them with tersor calibrate"):
        open_statistics(tmp_path, model)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"schema": "tersor.statistics/9"}', "[" * 100_000, '{"schema": "tersor.statistics/1", "files": 3}'],
)
def test_an_index_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / saved.INDEX).write_text(content)
    with pytest.raises(FormatError, match=r"statistics.json: (damaged|not of schema)"):
        Statistics.open(tmp_path)


def test_importance_comes_out_as_an_imatrix(gathered: tuple[Model, Path]) -> None:
    model, folder = gathered
    found = importances_of(open_statistics(folder, model))
    one = Statistics.open(folder).load(1)[0].sums
    np.testing.assert_allclose(found.values()["blk.1.attn_q.weight"], one.importance().numpy(), rtol=1e-6)


def test_the_command_line_saves_and_takes_them(make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    source = next(file.parent for file in model.files if file.name == "config.json")
    words = ["calibrate", str(source), "-o", str(tmp_path / "saved"), "-c", str(text), "--calibration-sequences", "24"]
    words += ["--calibration-length", "32", "--save-imatrix", str(tmp_path / "i.gguf")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "--statistics" in done.stdout
    assert "blk.0.ffn_down.weight" in read_imatrix(tmp_path / "i.gguf").sums
    words = ["quantize", str(source), "-o", str(tmp_path / "m.gguf"), "--statistics", str(tmp_path / "saved")]
    done = CliRunner().invoke(app, [*words, "--format", "q4_0", "--json"])
    assert done.exit_code == 0, done.output
    assert Card.from_json(done.stdout).plan.recipe.method == "best"
    refused = CliRunner().invoke(app, [*words, "--calibration", str(text)])
    assert isinstance(refused.exception, SchemeError)
    assert str(refused.exception) == "--calibration means nothing for saved statistics"


@pytest.mark.slow
def test_two_ranks_save_what_one_saves(gathered: tuple[Model, Path], text: Path, tmp_path: Path) -> None:
    model, folder = gathered
    source = next(file.parent for file in model.files if file.name == "config.json")
    words = ["-m", "tersor", "calibrate", str(source), "-o", str(tmp_path / "two"), "-c", str(text)]
    words += ["--calibration-sequences", "24", "--calibration-length", "32"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launcher, *words], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert Statistics.open(tmp_path / "two").about["files"] == Statistics.open(folder).about["files"]

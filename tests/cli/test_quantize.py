"""`tersor quantize`, as a user and as a script see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.cli.quantize import parse_size
from tersor.core.card import Card
from tersor.core.errors import SchemeError
from tersor.files.gguf import GgufFile, check

from .conftest import Run


def test_a_run_tells_size_cost_fallbacks_card_and_the_next_command(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    outcome = run("quantize", model, "-o", out, "--format", "q4_k_m", "--search", "ggml")
    assert (outcome.code, outcome.err) == (0, "")
    assert check(out) == []
    for words in ("tiny → q4_k_m", "× smaller", "bits per weight", "mean relative error", "fallbacks: 1 tensors"):
        assert words in outcome.out
    assert "blk.0.ffn_down.weight: q6_k → q8_0, 320 columns" in outcome.out
    assert f"Card  {tmp_path / 'small.card.html'}" in outcome.out
    assert f"tersor verify {out} --against {model}" in outcome.out
    assert (tmp_path / "small.card.md").is_file()


def test_json_is_one_document_and_equals_the_card(run: Run, model: Path, tmp_path: Path) -> None:
    outcome = run("quantize", model, "-o", tmp_path / "m.gguf", "-f", "q8_0", "--json", "--search", "ggml")
    assert outcome.code == 0
    card = Card.from_json((tmp_path / "m.card.json").read_text())
    assert outcome.document["summary"]["bytes"] == card.nbytes == (tmp_path / "m.gguf").stat().st_size


def test_the_command_in_the_card_holds_no_folder(run: Run, model: Path, tmp_path: Path) -> None:
    run("quantize", model, "-o", tmp_path / "m.gguf", "-f", "q8_0", "--search", "ggml")
    text = (tmp_path / "m.card.json").read_text()
    assert "tersor quantize tiny.gguf -o m.gguf -f q8_0 --search ggml" in text
    assert str(tmp_path) not in text
    assert str(model.parent) not in text


@pytest.mark.parametrize("spelling", [["--output={}/x.gguf"], ["-o{}/x.gguf"], ["-o", "{}/./x.gguf"]])
def test_no_spelling_of_the_output_shows_its_folder(spelling: list[str], run: Run, model: Path, tmp_path: Path) -> None:
    words = [word.format(tmp_path) for word in spelling]
    assert run("quantize", model, *words, "-f", "q8_0", "--search", "ggml").code == 0
    command = Card.from_json((tmp_path / "x.card.json").read_text()).command
    assert "x.gguf" in command
    assert str(tmp_path) not in command


def test_no_option_shows_a_folder(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    text = tmp_path / "mine.txt"
    text.write_text("words")
    more = ("--calibration", text, f"--save-imatrix={tmp_path}/new.gguf", "--dry-run", "--json")
    found = run("quantize", ".", "-o", "m.gguf", "-f", "q8_0", *more).document["command"]
    words = "--calibration mine.txt --save-imatrix=new.gguf --dry-run --json"
    assert found == f"tersor quantize {model.parent.name} -o m.gguf -f q8_0 {words}"


def test_output_is_whole_where_the_terminal_knows_only_ascii(model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for more in ((), ("--json",)):
        words = [
            sys.executable,
            "-m",
            "tersor",
            "quantize",
            str(model),
            "-o",
            str(tmp_path / "gäbe.gguf"),
            "-f",
            "q8_0",
        ]
        ended = subprocess.run([*words, *more], env=environment, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert "gäbe.gguf" in json.dumps(json.loads(ended.stdout), ensure_ascii=False)


def test_overrides_reach_the_file(run: Run, model: Path, tmp_path: Path) -> None:
    options = ("--tensor-format", "attn_(q|k)=q8_0", "--tensor-format", "ffn_up=f16", "--embedding-format", "q6_k")
    outcome = run("quantize", model, "-o", tmp_path / "m.gguf", "-f", "q4_0", *options, "--search", "ggml")
    assert outcome.code == 0, outcome.err
    with GgufFile(tmp_path / "m.gguf") as file:
        types = {name: tensor.ggml_type for name, tensor in file.tensors.items()}
    assert types["blk.0.attn_k.weight"] == 8
    assert types["blk.0.ffn_up.weight"] == 1
    assert types["blk.0.attn_v.weight"] == 2


def test_a_dry_run_writes_nothing_and_says_so(run: Run, model: Path, tmp_path: Path) -> None:
    outcome = run("quantize", model, "-o", tmp_path / "m.gguf", "--dry-run", "--split-max-size", "200KiB")
    assert outcome.code == 0
    assert "would write m-00001-of-" in outcome.out
    assert "nothing was written" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_parts_are_written_and_named(run: Run, model: Path, tmp_path: Path) -> None:
    outcome = run("quantize", model, "-o", tmp_path / "m.gguf", "--split-max-tensors", "4", "-f", "bf16")
    assert "and 2 more parts" in outcome.out
    assert len(list(tmp_path.glob("m-0000?-of-00003.gguf"))) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "q4_k_x"), "did you mean q4_k_s or q4_k_m"),
        (("--format", "int8-g128-sym"), "no llama.cpp file type holds"),
        (("--no-fallback",), "fallback is off"),
        (("--search", "fast"), "search must be one of best, ggml"),
        (("--tensor-format", "nothing=q8_0"), "nothing"),
        (("--split-max-size", "much"), "'much' is not a size"),
        (("--epochs", "2", "--method", "best"), "--epochs means nothing for a language model unless the method is qat"),
        (("--train-sequences", "9", "--method", "qat"), "--train-sequences says how much of --train is read"),
        (("--train", "README.md"), "text to train on means nothing to plain rounding: the method must be qat"),
        (
            ("--train", "README.md", "--method", "best"),
            "text to train on means nothing to best: the method must be qat",
        ),
    ],
)
def test_what_cannot_work_fails_with_one_line_and_the_remedy(
    options: tuple[str, ...], words: str, run: Run, model: Path, tmp_path: Path
) -> None:
    outcome = run("quantize", model, "-o", tmp_path / "m.gguf", *options)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_binary_unless_decimal_is_written() -> None:
    assert [parse_size(text) for text in ("2GiB", "2GB", "2g", "1.5MB", "10B")] == [
        2 << 30,
        2 * 10**9,
        2 << 30,
        1_500_000,
        10,
    ]
    assert parse_size("9" * 400) == int("9" * 400)  # beyond every float, and still a size
    for text in ("", "GB", "-1MB", "1XB", "1 2"):
        with pytest.raises(SchemeError, match="is not a size"):
            parse_size(text)

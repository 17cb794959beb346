from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tersor.containers.hf.writer import write_checkpoint
from tersor.core.errors import EngineError
from tersor.core.tensor import QuantizedTensor
from tersor.engines.transformers_timing import TransformersTiming, empty_engine
from tersor.files.checkpoint import Checkpoint
from tersor.formats import get

torch = pytest.importorskip("torch", reason="transformers needs torch")
transformers = pytest.importorskip("transformers", reason="the engine under test")

PROMPTS = [[5, 17, 99, 4], [1, 2, 3, 40]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=120, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersTiming]:
    with TransformersTiming(folder, timeout_s=120) as opened:
        opened.timed("time_open", sequences=2, context=20, threads=1)
        yield opened


def test_the_tokens_are_those_of_transformers_own_greedy_generation(engine: TransformersTiming, folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected = model.generate(
        torch.tensor(PROMPTS), attention_mask=torch.ones(2, 4), max_new_tokens=7, min_new_tokens=7, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    engine.timed("time_prompt", sequences=2, prompts=PROMPTS)
    made = engine.timed("time_generation", sequences=2, steps=6)
    assert made["ids"] == expected[:, 4:].tolist()
    assert len(made["step_ns"]) == 6
    assert min(made["step_ns"]) > 0


@pytest.fixture(scope="module")
def quantized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fmt, quantized = get("int8-g16-sym-f16"), tmp_path_factory.mktemp("gptq") / "gptq"
    with contextlib.closing(Checkpoint([folder / "model.safetensors"])) as source:
        names = [name for name in source.tensors if name.endswith("proj.weight")]
        weights = ((name, np.asarray(source.read(name), np.float32)) for name in names)
        tensors = ((name, QuantizedTensor(fmt, w.shape, fmt.encode(w))) for name, w in weights)
        write_checkpoint(folder, source, dict.fromkeys(names, fmt), tensors, quantized, name="gptq")
    return quantized


def test_a_quantized_checkpoint_runs_in_integers(folder: Path, quantized: Path) -> None:
    weights_bytes = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    with TransformersTiming(quantized, timeout_s=120) as engine, TransformersTiming(folder, timeout_s=120) as whole:
        held = [one.timed("time_open", sequences=1, context=20, threads=1)["loaded_bytes"] for one in (engine, whole)]
        assert 2.5 * weights_bytes < held[1] - held[0] < 3 * weights_bytes  # one byte and an eighth instead of four
        engine.timed("time_prompt", sequences=2, prompts=PROMPTS)
        made = engine.timed("time_generation", sequences=2, steps=3)
        assert all(0 <= token < 120 for ids in made["ids"] for token in ids)


def test_a_quantized_checkpoint_runs_on_torchs_operators(quantized: Path) -> None:
    weights_bytes = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    with TransformersTiming(quantized, timeout_s=120, kernels="torch") as engine:
        assert engine.version().endswith(", kernels torch")
        held = engine.timed("time_open", sequences=1, context=20, threads=1)["loaded_bytes"]
        engine.timed("time_prompt", sequences=2, prompts=PROMPTS)
        made = engine.timed("time_generation", sequences=2, steps=3)
        assert all(0 <= token < 120 for ids in made["ids"] for token in ids)
    with TransformersTiming(quantized, timeout_s=120) as ours:
        other = ours.timed("time_open", sequences=1, context=20, threads=1)["loaded_bytes"]
    assert abs(held - other) < 0.3 * weights_bytes  # both keep codes; scales here are float32, zero points are kept
    with pytest.raises(EngineError, match="SchemeError: kernels must be auto, tersor or torch, got 'none'"):
        TransformersTiming(quantized, timeout_s=120, kernels="none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_engine_error(folder: Path) -> None:
    with pytest.raises(EngineError, match="MissingError: device cuda is not available here"):
        TransformersTiming(folder, timeout_s=120, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_makes_the_same_tokens(engine: TransformersTiming, folder: Path) -> None:
    with TransformersTiming(folder, timeout_s=120, device="cuda") as other:
        assert other.version().endswith(", cuda")
        for one in (engine, other):
            one.timed("time_prompt", sequences=2, prompts=PROMPTS)
        made = [one.timed("time_generation", sequences=2, steps=6)["ids"] for one in (engine, other)]
    assert made[0] == made[1]


def test_the_engine_tells_what_it_is(engine: TransformersTiming, folder: Path) -> None:
    answer = engine.timed("time_open", sequences=1, context=20, threads=1)
    weights = sum(tensor.nbytes for tensor in transformers.AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert weights <= answer["loaded_bytes"] < weights + 1000
    assert engine.vocabulary_size == 120
    assert engine.load_s > 0
    assert engine.version().startswith("transformers ")


def test_a_refusal_of_the_library_is_an_engine_error_and_the_engine_lives_on(engine: TransformersTiming) -> None:
    with pytest.raises(EngineError, match=r"transformers, time_prompt .*: ValueError"):
        engine.timed("time_prompt", sequences=2, prompts=[[1, 2], [3]])
    assert engine.timed("time_prompt", sequences=1, prompts=[[1]])["evaluated_ns"] > 0


def test_a_folder_without_a_model_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no config\.json"):
        TransformersTiming(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(EngineError, match=r"(?s)transformers, loading .*: OSError"):
        TransformersTiming(tmp_path)


def test_a_call_that_takes_too_long_ends_the_process(folder: Path) -> None:
    with TransformersTiming(folder, timeout_s=60) as engine:
        engine.timed("time_prompt", sequences=1, prompts=[[1]])
        engine._child._timeout_s = 0.2
        with pytest.raises(EngineError, match=r"timed out after 0\.2 s"):
            engine.timed("time_generation", sequences=1, steps=100_000)
        assert engine.pid is None


def test_an_engine_without_a_model_starts_and_ends() -> None:
    child = empty_engine()
    assert child.pid is not None
    child.close()
    assert child.pid is None

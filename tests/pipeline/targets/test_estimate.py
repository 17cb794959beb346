from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tersor import reference_model
from tersor.core.errors import MissingError, SchemeError, UnsupportedError
from tersor.models import load
from tersor.pipeline.conversion import quantize as convert_quantize
from tersor.pipeline.quantize import quantize
from tersor.pipeline.targets import estimate as estimating
from tersor.pipeline.targets.estimate import estimate

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return tmp_path


def test_a_config_alone_is_enough_and_comes_to_the_size_that_everybody_knows(folder: Path) -> None:
    """Llama 3 8B has 8 030 261 248 parameters; its cache takes 128 KiB a token in 16 bits."""
    found = estimate(folder, target="h100", context=8192)
    assert found.amount("weights_bytes") == 2 * 8_030_261_248
    assert found.amount("cache_bytes") == 8192 * 128 * 1024
    assert found.fits is True
    read = 2 * (8_030_261_248 - 128256 * 4096) + 8192 * 128 * 1024
    assert found.amount("decode_tokens_per_s") == pytest.approx(3350e9 / read)
    assert estimate(folder, target="l4", context=8192).fits is True
    assert estimate(folder, target="t4", context=8192).fits is False
    assert estimate(folder, target="t4", context=8192, machines=2).fits is True


def test_fewer_bits_take_less_and_run_faster(folder: Path) -> None:
    found = [estimate(folder, target="rtx-4090", format=name) for name in (None, "q8_0", "q4_k_m", "q2_k")]
    sizes = [one.amount("weights_bytes") or 0 for one in found]
    speeds = [one.amount("decode_tokens_per_s") or 0 for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert speeds == sorted(speeds)


def test_a_number_format_leaves_embeddings_and_output_as_they_are(folder: Path) -> None:
    found = estimate(folder, target="h100", format="int4-g128")
    blocks = 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
    assert found.amount("weights_bytes") == pytest.approx(2 * (2 * 128256 * 4096) + blocks * 0.53, rel=0.02)
    assert found.format == "int4-g128-sym"


@pytest.mark.parametrize(
    ("method", "group", "bits"), [("gptq", 128, 4 + 20 / 128), ("awq", 128, 4 + 20 / 128), ("gptq", -1, 4)]
)
def test_a_config_of_a_quantized_checkpoint_comes_to_its_size(
    method: str, group: int, bits: float, tmp_path: Path
) -> None:
    settings = {
        "quant_method": method,
        "bits": 4,
        "group_size": group,
        "version": "gemm",
        "zero_point": True,
        "sym": True,
    }
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_3_8B, "quantization_config": settings}))
    ends, norms = 2 * 128256 * 4096, 65 * 4096
    blocks = 8_030_261_248 - ends - norms
    found = estimate(tmp_path, target="h100")
    assert found.amount("weights_bytes") == pytest.approx(2 * (ends + norms) + blocks * bits / 8, rel=0.01)


def test_a_config_that_does_not_tell_what_is_stored_asks_for_the_format(tmp_path: Path) -> None:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_3_8B, "quantization_config": settings}))
    with pytest.raises(UnsupportedError, match="stored as quantized, whose bytes nothing tells: name it with --format"):
        estimate(tmp_path, target="h100")


def test_a_quantized_checkpoint_is_as_large_as_its_files(tmp_path: Path) -> None:
    made = convert_quantize(reference_model.PATH, "int4-g128", output=tmp_path / "out", container="gptq")
    tensors = sum(file.nbytes for file in made.artefacts if file.name.endswith(".safetensors"))
    found = estimate(tmp_path / "out", target="h100").amount("weights_bytes")
    assert found == pytest.approx(tensors, rel=0.01)


def test_what_is_multiplied_in_follows_from_format_and_machine(folder: Path) -> None:
    def basis(**options: str) -> str:
        found = estimate(folder, **options)  # type: ignore[arg-type]  # texts all
        return next(amount.basis for amount in found.amounts if amount.name == "prefill_tokens_per_s")

    assert "in bfloat16 at" in basis(target="h100", format="int4-g128")
    assert "in float8 at" in basis(target="h100", format="fp8_e4m3")
    assert "in int8 at" in basis(target="h100", compute="int8")
    assert "in int8 at" in basis(target="snapdragon-8-gen-3", format="q4_0")


def test_a_gguf_is_estimated_as_large_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    card = quantize(load(reference_model.PATH), "q4_k_m", path)
    found = estimate(path, target="raspberry-pi-5-8gb", context=256, prompt=64)
    assert found.amount("weights_bytes") == card.plan.nbytes
    planned = estimate(reference_model.PATH, target="raspberry-pi-5-8gb", format="q4_k_m", context=256, prompt=64)
    assert [(a.name, a.value) for a in planned.amounts] == [(a.name, a.value) for a in found.amounts]


def test_this_machine_is_measured(tiny_gguf: Callable[..., Path]) -> None:
    found = estimate(tiny_gguf(), context=32, prompt=8, threads=1)
    assert found.fits is True
    basis = next(amount.basis for amount in found.amounts if amount.name == "decode_tokens_per_s")
    assert "measured here with 1 threads" in basis


def test_rates_of_a_busy_machine_are_called_so(tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf()
    for busy, is_told in ((None, False), (0.1, False), (3.0, True)):
        monkeypatch.setattr(estimating, "busy_cores", lambda busy=busy: busy)
        notes = estimate(path, context=32, prompt=8, threads=1).assumptions
        assert any("3.0 cores' worth of other work" in note for note in notes) is is_told


def test_what_does_not_exist_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="no profile 'h1000'"):
        estimate(folder, target="h1000")
    with pytest.raises(SchemeError, match=r"matrices are multiplied in float32, .*, not 'bogus'"):
        estimate(folder, target="h100", compute="bogus")
    with pytest.raises(SchemeError, match="machines must be 1 or more"):
        estimate(folder, target="h100", machines=0)
    with pytest.raises(SchemeError, match="q9"):
        estimate(folder, target="h100", format="q9")
    with pytest.raises(MissingError, match="no such file or folder"):
        estimate(tmp_path / "none", target="h100")

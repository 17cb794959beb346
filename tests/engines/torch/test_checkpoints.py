"""Quantized checkpoints on our kernels say what transformers says of the same weights, decoded to float32."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.containers.hf.writer import write_checkpoint
from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError, UnsupportedError
from tersor.core.tensor import QuantizedTensor
from tersor.engines.torch.checkpoints import load_quantized, vocabulary_size
from tersor.engines.transformers_lm import TransformersLm
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.formats import get
from tersor.kernels.linear.module import linear_class
from tersor.models.quantized_checkpoint import open_quantized

torch = pytest.importorskip("torch", reason="the engine under test")
transformers = pytest.importorskip("transformers", reason="the engine under test")
safetensors = pytest.importorskip("safetensors.torch", reason="checkpoints are saved with it")

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.tensor([[5, 17, 3, 99, 42, 7], [1, 2, 3, 4, 5, 6]])
Write = Callable[..., Path]
DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
])]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return two models of random numbers: Llama, and Qwen2 with biases and a tied output matrix."""
    torch.manual_seed(0)
    made = {}
    kinds = {
        "llama": transformers.LlamaConfig(vocab_size=120, num_key_value_heads=2, tie_word_embeddings=False, **SIZES),
        "qwen2": transformers.Qwen2Config(vocab_size=120, num_key_value_heads=2, tie_word_embeddings=True, **SIZES),
    }
    for name, config in kinds.items():
        made[name] = tmp_path_factory.mktemp(name)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(made[name])
    return made


@pytest.fixture
def write(sources: dict[str, Path], tmp_path: Path) -> Write:
    """Return a function that rounds the matrices of a model and writes them into a container."""

    def made(source: str, container: str, spelled: str, *, head: bool = False, **options: Any) -> Path:
        fmt = get(spelled)
        with contextlib.closing(Checkpoint(*weight_files(sources[source])[:2])) as checkpoint:
            wanted = ("proj.weight", "lm_head.weight") if head else ("proj.weight",)
            formats = {name: fmt for name in checkpoint.tensors if name.endswith(wanted)}
            weights = ((name, np.asarray(checkpoint.read(name), np.float32)) for name in formats)
            tensors = ((name, QuantizedTensor(fmt, w.shape, fmt.encode(w))) for name, w in weights)
            output = tmp_path / f"{container}-{spelled}"
            write_checkpoint(sources[source], checkpoint, formats, tensors, output, name=container, **options)
        return output

    return made


def decoded(folder: Path, source: Path) -> Any:
    """The model of `source` in float32 with the decoded weights of `folder`: no code of the engine under test."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with contextlib.closing(open_quantized(folder)) as checkpoint:
        for name in checkpoint.quantized_names:
            model.get_parameter(name).data.copy_(torch.from_numpy(checkpoint.read(name)))
    return model


def distance(a: Any, b: Any) -> float:
    """Mean squared difference of logits as a share of their spread."""
    with torch.no_grad():
        x, y = (model(IDS.to(model.device)).logits.float().cpu() for model in (a, b))
    return float((x - y).square().mean() / y.var())


CASES = [
    ("llama", "gptq", "int4-g32-sym-f16"),
    ("llama", "gptq_v2", "int4-g16-asym-bf16"),
    ("llama", "gptq", "int3-channel-sym-f16"),
    ("qwen2", "awq", "int4-g32-asym-f16"),
    ("qwen2", "compressed-tensors", "int4-g32-sym-bf16"),
    ("llama", "compressed-tensors", "int8-channel-sym"),
    ("qwen2", "gptq", "int8-g32-sym-f16"),
]


@pytest.mark.parametrize(("source", "container", "spelled"), CASES)
def test_logits_are_those_of_the_decoded_weights(
    write: Write, sources: dict[str, Path], source: str, container: str, spelled: str
) -> None:
    folder = write(source, container, spelled)
    wanted = decoded(folder, sources[source])
    fine, quick = (load_quantized(folder, activations=how) for how in ("int16", "int8"))
    assert sum(isinstance(module, linear_class()) for module in fine.modules()) == 14
    assert fine.decoded_layers == ()
    assert set(fine.layer_operators.values()) == {"tersor"}
    assert distance(fine, wanted) < 1e-7  # of activations alone, rounded to 1 in 32639: (2^-16)² times what layers add
    assert 1e-7 < distance(quick, wanted) < 3e-3  # rounded to 1 in 127
    assert fine.lm_head.weight.dtype == torch.float32
    if source == "qwen2":
        assert fine.lm_head.weight.data_ptr() == fine.model.embed_tokens.weight.data_ptr()


def test_activations_share_a_scale_as_the_file_says(write: Write) -> None:
    folders = [write("llama", "compressed-tensors", "int8-channel-sym", activations=True)]
    folders.append(write("llama", "compressed-tensors", "int8-g32-sym-f16"))
    assert [load_quantized(folder).model.layers[0].mlp.up_proj.per_token for folder in folders] == [True, False]


@pytest.mark.parametrize(("source", "container", "spelled"), CASES[:5])
def test_layers_with_one_input_multiply_one_token_together(
    write: Write, source: str, container: str, spelled: str
) -> None:
    model = load_quantized(write(source, container, spelled))
    block = model.model.layers[0]
    queries, keys = block.self_attn.q_proj, block.self_attn.k_proj
    assert queries._joint is keys._joint is block.self_attn.v_proj._joint is not None
    assert block.mlp.gate_proj._joint is block.mlp.up_proj._joint is not None
    assert block.mlp.down_proj._joint is None
    assert queries.codes.untyped_storage().data_ptr() == keys.codes.untyped_storage().data_ptr()
    apart = model(IDS[:1, :1]).logits.detach()  # with gradients, each by itself
    with torch.no_grad():
        assert torch.equal(model(IDS[:1, :1]).logits, apart)


def test_generation_goes_on_from_the_cache(write: Write) -> None:
    model = load_quantized(write("llama", "gptq", "int4-g32-sym-f16"))
    made = model.generate(IDS[:1], max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=torch.ones(1, 6))
    with torch.no_grad():
        whole = model(made).logits[0, 5:-1].argmax(-1)
    assert made[0, 6:].tolist() == whole.tolist()


def test_columns_in_order_of_activation_meet_their_groups(write: Write, sources: dict[str, Path]) -> None:
    folder = write("llama", "gptq", "int4-g32-sym-f16")
    tensors = safetensors.load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("q_proj.g_idx")]:
        tensors[name] = tensors[name][torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    safetensors.save_file(tensors, folder / "model.safetensors")
    model = load_quantized(folder, activations="int16")
    assert model.model.layers[0].self_attn.q_proj.order is not None
    assert distance(model, decoded(folder, sources["llama"])) < 1e-7


@pytest.mark.parametrize("source", ["llama", "qwen2"])
@pytest.mark.parametrize("spelled", ["fp8_e4m3", "mxfp4", "int4-g8-sym-f16"])
def test_what_no_kernel_takes_is_decoded_and_named(
    write: Write, sources: dict[str, Path], source: str, spelled: str
) -> None:
    folder = write(source, "compressed-tensors", spelled)
    model = load_quantized(folder)
    assert len(model.decoded_layers) == 14
    assert "model.layers.0.mlp.up_proj" in model.decoded_layers
    assert model.layer_operators["model.layers.0.mlp.up_proj"] == "decoded"
    assert distance(model, decoded(folder, sources[source])) < 1e-10


ON_TORCH = [
    # container, format, activations, operator of most layers, distance from the decoded weights
    ("gptq", "int4-g32-sym-f16", None, "torch._weight_int4pack_mm", (0, 1e-10)),
    ("awq", "int4-g32-asym-f16", None, "torch._weight_int4pack_mm", (0, 1e-10)),
    ("gptq", "int3-channel-sym-f16", None, "torch._weight_int4pack_mm", (0, 1e-10)),
    ("compressed-tensors", "int8-channel-sym", None, "torch._weight_int8pack_mm", (0, 1e-10)),
    ("compressed-tensors", "int8-channel-sym", "rounded", "torch._int_mm", (1e-7, 3e-3)),
    ("compressed-tensors", "fp8_e4m3", None, "dequantized", (0, 1e-10)),
    ("compressed-tensors", "fp8_e4m3", "rounded", "torch._scaled_mm", (1e-6, 2e-2)),
    ("gptq", "int8-g32-sym-f16", None, "dequantized", (0, 1e-10)),
    ("compressed-tensors", "mxfp4", None, "decoded", (0, 1e-10)),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ON_TORCH, ids=lambda case: "-".join(map(str, case[:3])))
def test_torchs_own_operators_multiply_the_same_codes(
    write: Write, sources: dict[str, Path], device: str, case: tuple[str, str, Any, str, tuple[float, float]]
) -> None:
    container, spelled, activations, operator, (low, high) = case
    folder = write("qwen2", container, spelled)
    model = load_quantized(folder, kernels="torch", device=device, activations=activations)
    assert {parameter.device.type for parameter in (*model.parameters(), *model.buffers())} == {device}
    assert len(model.layer_operators) == 14
    assert set(model.layer_operators.values()) == {operator}
    assert len(model.decoded_layers) == (14 if operator in ("dequantized", "decoded") else 0)
    assert low <= distance(model, decoded(folder, sources["qwen2"])) < (high if device == "cpu" else max(high, 1e-3))


def test_a_file_says_whether_activations_are_rounded(write: Write) -> None:
    for spelled, operator in (("int8-channel-sym", "torch._int_mm"), ("fp8_e4m3", "torch._scaled_mm")):
        folder = write("llama", "compressed-tensors", spelled, activations=True)
        assert set(load_quantized(folder, kernels="torch").layer_operators.values()) == {operator}
        plain = load_quantized(folder, kernels="torch", activations="float")
        assert operator not in plain.layer_operators.values()


def test_int8_by_int8_on_torch_is_our_own_kernels_bit_for_bit(write: Write) -> None:
    folder = write("qwen2", "compressed-tensors", "int8-channel-sym", activations=True)
    ours, torchs = (load_quantized(folder, kernels=kernels) for kernels in ("tersor", "torch"))
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, torchs(IDS).logits)


def test_order_of_activation_head_and_type_on_torch(write: Write, sources: dict[str, Path]) -> None:
    folder = write("llama", "gptq", "int4-g32-sym-f16")
    tensors = safetensors.load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("q_proj.g_idx")]:
        tensors[name] = tensors[name][torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    safetensors.save_file(tensors, folder / "model.safetensors")
    model = load_quantized(folder, kernels="torch")
    assert model.model.layers[0].self_attn.q_proj.order is not None
    assert distance(model, decoded(folder, sources["llama"])) < 1e-10
    narrow = load_quantized(folder, kernels="torch", dtype=torch.bfloat16, round_head=True)
    assert narrow.lm_head.operator == "torch._weight_int8pack_mm"
    assert distance(narrow, model) < 2e-3


def test_models_that_are_loaded_side_by_side_leave_torch_as_it_was(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("llama", "gptq", "int4-g32-sym-f16")
    before, kind = torch.nn.Module.register_parameter, transformers.AutoModelForCausalLM
    entered, let_go = ({name: threading.Event() for name in ("first", "second")} for _ in range(2))
    build, loaded = kind.from_config, []

    def waiting(*given: Any, **more: Any) -> Any:
        name = threading.current_thread().name
        entered[name].set()
        assert let_go[name].wait(60)
        return build(*given, **more)

    monkeypatch.setattr(kind, "from_config", waiting)
    threads = [threading.Thread(target=lambda: loaded.append(load_quantized(folder)), name=name) for name in entered]
    try:
        threads[0].start()
        assert entered["first"].wait(60)
        assert not torch.nn.Linear(2, 2).weight.is_meta  # what another thread builds meanwhile
        threads[1].start()
        entered["second"].wait(0.5)  # it has to wait for the first
    finally:
        for name, thread in zip(let_go, threads, strict=True):  # the first ends before the second does
            let_go[name].set()
            if thread.ident is not None:
                thread.join(60)
        left, torch.nn.Module.register_parameter = torch.nn.Module.register_parameter, before
    assert left is before
    assert distance(*loaded) == 0


def test_options_that_do_not_go_together_are_refused(write: Write) -> None:
    folder = write("llama", "gptq", "int4-g32-sym-f16")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"kernels": "cutlass"}, "kernels must be auto, tersor or torch, got 'cutlass'"),
        (
            {"kernels": "torch", "activations": "int16"},
            "on torch's operators activations must be one of float, rounded",
        ),
        ({"device": "gpu"}, "torch knows no device 'gpu'"),
    ]
    for options, message in refused:
        with pytest.raises(SchemeError, match=message):
            load_quantized(folder, **options)
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="device cuda is not available here"):
            load_quantized(folder, device="cuda")


def test_the_rest_computes_in_the_type_that_is_asked_for(write: Write) -> None:
    folder = write("llama", "gptq", "int4-g32-sym-bf16")
    model = load_quantized(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert distance(model, load_quantized(folder)) < 2e-3
    scales = model.model.layers[0].mlp.up_proj.scales
    assert torch.equal(model.half().model.layers[0].mlp.up_proj.scales, scales)  # a cast rounds no scale


@pytest.mark.parametrize("kernels", ["tersor", "torch"])
@pytest.mark.parametrize(("container", "spelled"), [CASES[0][1:], CASES[5][1:]])
def test_an_output_matrix_that_the_file_has_quantized_is_taken(
    write: Write, sources: dict[str, Path], container: str, spelled: str, kernels: Any
) -> None:
    folder = write("llama", container, spelled, head=True)
    model = load_quantized(folder, kernels=kernels)
    assert not isinstance(model.lm_head, torch.nn.Linear)
    assert vocabulary_size(model) == 120
    engine = TransformersLm(folder, name="m", weights=1)
    assert engine.vocabulary_size == 120
    with torch.no_grad():
        wanted = decoded(folder, sources["llama"])(IDS[:1]).logits[0].numpy()
    np.testing.assert_allclose(engine.logits(IDS[0].tolist()), wanted, atol=1e-2 * wanted.std())


@pytest.mark.parametrize("source", ["llama", "qwen2"])
def test_the_output_matrix_can_be_rounded_too(write: Write, source: str) -> None:
    folder = write(source, "gptq", "int8-g32-sym-f16")
    whole, rounded = (load_quantized(folder, activations="int16", round_head=how) for how in (False, True))
    assert isinstance(rounded.lm_head, linear_class())
    assert rounded.lm_head.bits == 8
    assert 1e-7 < distance(rounded, whole) < 1e-4
    assert torch.equal(rounded.model.embed_tokens.weight, whole.model.embed_tokens.weight)


def test_folders_that_do_not_fit_are_refused(write: Write, sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="not quantized"):
        load_quantized(sources["llama"])
    with pytest.raises(MissingError, match=r"no config\.json"):
        load_quantized(tmp_path)
    folder = write("llama", "gptq", "int4-g32-sym-f16")
    with pytest.raises(SchemeError, match="on tersor's kernels activations must be one of int8, int16, got 'fp8'"):
        load_quantized(folder, activations="fp8")  # type: ignore[arg-type]  # what a user may write
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(UnsupportedError, match=r"LlamaForCausalLM has no layer model\.layers\.1\."):
        load_quantized(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(FormatError, match=r"9 tensors .* the first is model\.layers\.2\."):
        load_quantized(folder)
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ShapeError, match=r"mlp\.\w+ is \(\d+, \d+\) in the checkpoint"):
        load_quantized(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nothing"}))
    with pytest.raises(MissingError, match="transformers cannot build"):
        load_quantized(folder)

from __future__ import annotations

import gc
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tersor.core.errors import EngineError
from tersor.engines import llama_cpp
from tersor.engines.llama_cpp import LlamaCpp

_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_TOKENS = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *_LETTERS, "ab", "▁ab"]
_WIDTH, _LAYERS, _HEADS, _GROUPS, _INNER = 32, 2, 4, 2, 48


def weights() -> dict[str, np.ndarray]:
    """A random Llama under transformers' names, rows of q and k in transformers' order."""
    generator = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return generator.standard_normal((rows, columns)).astype(np.float32) * 0.3

    found = {"model.embed_tokens.weight": matrix(len(_TOKENS), _WIDTH), "lm_head.weight": matrix(len(_TOKENS), _WIDTH)}
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}."
        found[f"{name}self_attn.q_proj.weight"] = matrix(_WIDTH, _WIDTH)
        found[f"{name}self_attn.k_proj.weight"] = matrix(_WIDTH // _HEADS * _GROUPS, _WIDTH)
        found[f"{name}self_attn.v_proj.weight"] = matrix(_WIDTH // _HEADS * _GROUPS, _WIDTH)
        found[f"{name}self_attn.o_proj.weight"] = matrix(_WIDTH, _WIDTH)
        found[f"{name}mlp.gate_proj.weight"] = matrix(_INNER, _WIDTH)
        found[f"{name}mlp.up_proj.weight"] = matrix(_INNER, _WIDTH)
        found[f"{name}mlp.down_proj.weight"] = matrix(_WIDTH, _INNER)
        found[f"{name}input_layernorm.weight"] = 1 + matrix(1, _WIDTH)[0]
        found[f"{name}post_attention_layernorm.weight"] = 1 + matrix(1, _WIDTH)[0]
    found["model.norm.weight"] = 1 + matrix(1, _WIDTH)[0]
    return found


def gguf_name(name: str) -> str:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, _LAYERS)
    return str(names.get_name(name, try_suffixes=(".weight",)))


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_model(path: Path, *, skip: str = "", tokens: list[str] | None = None) -> Path:
    tokens = tokens or _TOKENS
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in weights().items():
        if name == skip:
            continue
        heads = {"q_proj": _HEADS, "k_proj": _GROUPS}.get(name.split(".")[-2], 0)
        writer.add_tensor(gguf_name(name), interleaved(value, heads) if heads else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engine") / "model é.gguf")


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(path, context=300, timeout_s=60) as opened:
        yield opened


def children() -> int:
    """Children of this process that exist, zombies included."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = entry.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        found += int(parent) == os.getpid()
    return found


@pytest.fixture
def no_child_left() -> Iterator[None]:
    gc.collect()
    before = children()
    yield
    assert children() == before


def test_logits_equal_those_of_transformers(engine: LlamaCpp) -> None:
    import torch  # noqa: PLC0415 - slow to import, needed here alone
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig(
        vocab_size=len(_TOKENS),
        hidden_size=_WIDTH,
        intermediate_size=_INNER,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_GROUPS,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights().items()})
    ids = np.random.default_rng(1).integers(0, len(_TOKENS), 300).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = engine.logits(ids)
    assert found.shape == (300, len(_TOKENS))
    assert found.dtype == np.float32
    # float32 sums in another order: 2 layers, 48 terms, logits of about 3
    assert np.abs(found - expected).max() < 1e-4
    assert expected.std() > 1


def test_a_call_starts_from_an_empty_cache(engine: LlamaCpp) -> None:
    first = engine.logits([1, 5, 9, 300 % len(_TOKENS)])
    engine.logits([7, 7, 7])
    engine.generate([2, 3], 5)
    np.testing.assert_array_equal(engine.logits([1, 5, 9, 300 % len(_TOKENS)]), first)


def test_batches_of_another_size_give_the_same_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(40))
    with LlamaCpp(path, context=64) as whole:
        expected = whole.logits(ids)
    monkeypatch.setattr(llama_cpp, "_BATCH_BYTES", 1)  # batches of 16, the least
    with LlamaCpp(path, context=64) as pieces:
        np.testing.assert_allclose(pieces.logits(ids), expected, atol=1e-5)


def test_generation_takes_the_highest_logit_each_time(engine: LlamaCpp) -> None:
    ids = [1, 270, 265]
    made = engine.generate(ids, 6)
    for token in made:
        assert token == int(engine.logits(ids)[-1].argmax())
        ids.append(token)
    assert len(made) == 6
    assert engine.generate(ids, 0) == []


def test_text_becomes_tokens_and_back(engine: LlamaCpp) -> None:
    ids = engine.tokenize("ab é\n🙂", add_special=True)
    assert ids[0] == 1
    assert ids[1] == _TOKENS.index("▁ab")
    assert engine.detokenize(ids[1:]).strip() == "ab é\n🙂"
    assert engine.tokenize("</s>", parse_special=True)[-1] == 2
    assert 2 not in engine.tokenize("</s>")
    assert engine.tokenize("") == []
    assert len(engine.tokenize("\0 x")) == 4
    assert engine.detokenize([]) == ""


def test_the_engine_states_its_version_and_vocabulary(engine: LlamaCpp) -> None:
    assert engine.version().startswith("xllamacpp ")
    assert engine.vocabulary_size == len(_TOKENS)


def test_a_vocabulary_alone_tokenizes_but_computes_nothing(path: Path) -> None:
    with LlamaCpp(path, vocabulary_only=True) as engine:
        assert engine.tokenize("ab") == [_TOKENS.index("▁ab")]
        with pytest.raises(EngineError, match="vocabulary_only=True: it has no weights to run"):
            engine.logits([1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: engine.logits([]), "at least one token is needed"),
        (lambda engine: engine.logits([1] * 301), "301 tokens .* exceed the context of 300; .* context=301"),
        (lambda engine: engine.generate([1] * 299, 2), "299 tokens and 2 to generate exceed"),
        (lambda engine: engine.generate([1], -1), "count must not be negative"),
        (lambda engine: engine.logits([-1]), "token -1 is outside the vocabulary"),
        (lambda engine: engine.detokenize([10**9]), "token 1000000000 is outside the vocabulary"),
        (lambda engine: engine.tokenize("\ud800"), "not valid Unicode"),
    ],
)
def test_impossible_requests_are_refused_and_the_engine_lives_on(
    call: Callable[[LlamaCpp], object], message: str, engine: LlamaCpp
) -> None:
    with pytest.raises(EngineError, match=message):
        call(engine)
    assert engine.logits([1]).shape == (1, len(_TOKENS))


def load_check(path: Path, timeout_s: float = 120) -> None:
    """Load `path` whole and let it go."""
    LlamaCpp(path, context=32, timeout_s=timeout_s).close()


@pytest.mark.usefixtures("no_child_left")
def test_a_missing_file_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"none\.gguf: no such file"):
        load_check(tmp_path / "none.gguf")


@pytest.mark.usefixtures("no_child_left")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "(?s)could not load the model.*failed to read magic"),
        (lambda data: b"hello world" * 99, "(?s)could not load the model.*invalid magic"),
        (lambda data: data[: len(data) // 2], "(?s)could not load the model.*corrupted or incomplete"),
        (lambda data: data[:3000], "(?s)could not load the model.*failed to read key-value pairs"),
        (lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:], "could not load the model"),
    ],
    ids=["empty", "text", "half", "header", "count"],
)
def test_a_broken_file_is_refused_with_the_engines_words(
    damage: Callable[[bytes], bytes], message: str, path: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EngineError, match=message):
        load_check(broken, timeout_s=30)


@pytest.mark.usefixtures("no_child_left")
def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", skip="model.layers.1.self_attn.q_proj.weight")
    with pytest.raises(EngineError, match=r"(?s)loading .*m\.gguf.*blk\.1\.attn_q\.weight' not found"):
        load_check(model)


@pytest.mark.usefixtures("no_child_left")
def test_an_abort_of_the_engine_is_an_engine_error_with_its_last_words(tmp_path: Path) -> None:
    twice = [*_TOKENS[:-1], _TOKENS[-2]]
    with pytest.raises(EngineError, match=r"(?s)loading .*died \(signal SIGABRT\).*GGML_ASSERT"):
        load_check(write_model(tmp_path / "m.gguf", tokens=twice))


@pytest.mark.usefixtures("no_child_left")
def test_an_abort_during_a_call_closes_the_engine(tmp_path: Path) -> None:
    lacking = [token.replace("<0xC3>", "<0xc3>") for token in _TOKENS]
    engine = LlamaCpp(write_model(tmp_path / "m.gguf", tokens=lacking))
    with pytest.raises(EngineError, match=r"(?s)tokenize .*died \(signal SIGABRT\).*out_of_range"):
        engine.tokenize("é")
    with pytest.raises(EngineError, match="is closed"):
        engine.tokenize("a")


@pytest.mark.usefixtures("no_child_left")
def test_a_call_that_takes_too_long_is_ended(path: Path) -> None:
    engine = LlamaCpp(path, timeout_s=0.5)
    assert engine._child.pid is not None
    os.kill(engine._child.pid, signal.SIGSTOP)  # hangs for ever
    start = time.perf_counter()
    with pytest.raises(EngineError, match=r"logits .*timed out after 0\.5 s"):
        engine.logits([1])
    assert time.perf_counter() - start < 60


@pytest.mark.usefixtures("no_child_left")
def test_loading_that_takes_too_long_is_ended(path: Path) -> None:
    with pytest.raises(EngineError, match=r"loading .*timed out"):
        LlamaCpp(path, timeout_s=0.001)


@pytest.mark.usefixtures("no_child_left")
def test_an_engine_that_is_forgotten_leaves_no_process(path: Path) -> None:
    engine = LlamaCpp(path, vocabulary_only=True)
    del engine
    gc.collect()


@pytest.mark.usefixtures("no_child_left")
def test_closing_twice_is_harmless(path: Path) -> None:
    engine = LlamaCpp(path, vocabulary_only=True)
    engine.close()
    engine.close()


@pytest.mark.parametrize("options", [{"context": -1}, {"threads": 0}, {"timeout_s": 0.0}])
def test_options_must_be_positive(options: dict[str, Any], path: Path) -> None:
    with pytest.raises(EngineError, match="must be positive"):
        LlamaCpp(path, **options)


def test_files_of_the_current_folder_do_not_mislead_the_child(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    load_check(path)

"""A tiny Llama with random weights, its float32 GGUF, and one without the permutation of Q and K."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tersor.core.arrays import Float32
from tersor.models import Model, ModelTensor, load
from tersor.models.transforms import HeadsInterleaved, Rows
from tersor.pipeline.quantize import quantize

torch = pytest.importorskip("torch", reason="tiny models are built with torch: pip install 'tersor[torch]'")
transformers = pytest.importorskip("transformers", reason="tiny models are built with transformers")
tokenizers = pytest.importorskip("tokenizers", reason="their tokenizers are trained with tokenizers")
pytest.importorskip("xllamacpp", reason="these tests run llama.cpp: pip install 'tersor[llama]'")

VOCABULARY = 288


def _save_tokenizer(path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["def add(first, second):\n    return first + second\n", "the cat sat on it"], trainer)
    made.save(str(path))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Llama with sharp attention, so that a wrong rotation shows."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=1,
        )
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                sharpness = 3.0 if "q_proj" in name or "k_proj" in name else 1.0
                value.uniform_(0.5, 1.5) if "norm" in name else value.normal_(0, sharpness * value.shape[-1] ** -0.5)
        model.save_pretrained(folder)
    _save_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}'
    )
    return folder


@pytest.fixture(scope="session")
def source(checkpoint: Path) -> Model:
    return load(checkpoint)


@dataclasses.dataclass(frozen=True)
class Changed:
    """The rows of a tensor, changed as a whole."""

    inner: Rows
    change: Callable[[Float32], Float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def read(self, start: int, stop: int) -> Float32:
        rows = 1 if len(self.shape) == 1 else self.shape[0]
        return self.change(self.inner.read(0, rows))[start:stop]


Change: TypeAlias = Callable[[ModelTensor], ModelTensor]


def with_changes(model: Model, change: Change) -> Model:
    return dataclasses.replace(model, tensors=tuple(change(tensor) for tensor in model.tensors))


def unpermuted(tensor: ModelTensor) -> ModelTensor:
    is_permuted = isinstance(tensor.values, HeadsInterleaved)
    return dataclasses.replace(tensor, values=tensor.values.inner) if is_permuted else tensor  # type: ignore[attr-defined]  # just checked


def changing_nothing(tensor: ModelTensor) -> ModelTensor:
    return tensor


MakeGguf: TypeAlias = Callable[..., Path]


@pytest.fixture(scope="session")
def make_gguf(source: Model, tmp_path_factory: pytest.TempPathFactory) -> MakeGguf:
    """A function that writes the tiny model in a file type, changed as asked, and returns the path."""

    def make(file_type: str = "f32", change: Change | None = None) -> Path:
        path = tmp_path_factory.mktemp("gguf") / f"{file_type}.gguf"
        quantize(with_changes(source, change) if change else source, file_type, path, search="ggml")
        return path

    return make


@pytest.fixture(scope="session")
def exact(make_gguf: MakeGguf) -> Path:
    return make_gguf("f32")


@pytest.fixture(scope="session")
def forgotten(make_gguf: MakeGguf) -> Path:
    """Loads, runs, and is wrong: the file that this whole folder is about."""
    return make_gguf("f32", unpermuted)

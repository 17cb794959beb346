"""Tiny random checkpoints as transformers saves them, with a tokenizer trained on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

torch = pytest.importorskip("torch", reason="tiny models are built with torch: pip install 'tersor[torch]'")
transformers = pytest.importorskip("transformers", reason="tiny models are built with transformers")
tokenizers = pytest.importorskip("tokenizers", reason="their tokenizers are trained with tokenizers")
pytest.importorskip("xllamacpp", reason="these tests run llama.cpp: pip install 'tersor[llama]'")

VOCABULARY = 288

Checkpoint: TypeAlias = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """Return a function that saves a random model in bf16, once for the same arguments, and returns its folder."""
    made: dict[str, Path] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(kind: str = "Llama", **settings: Any) -> Path:
        key = f"{kind}-{sorted(settings.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(kind)
            _save(made[key], kind, settings)
        return made[key]

    yield make
    torch.set_num_threads(threads)


def _save(folder: Path, kind: str, settings: dict[str, Any]) -> None:
    base = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    base |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, about its own defaults
        config = getattr(transformers, f"{kind}Config")(**{**base, "max_position_embeddings": 128, **settings})
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.uniform_(0.5, 1.5) if "norm" in name else value.normal_(0, value.shape[-1] ** -0.5)
        model.to(torch.bfloat16).save_pretrained(folder)
    _train_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}'
    )


def _train_tokenizer() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["def add(first, second):\n    return first + second\n", "the cat sat"], trainer)
    return made

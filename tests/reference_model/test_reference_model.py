"""The committed reference model is complete, small, and as good as its eval.json says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tersor.reference_model import PATH

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

RELATIVE_TOLERANCE = 0.005
MODEL_BYTES = 9_000_000
BLOCK = 256


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The committed tokenizer, opened the way users open it."""
    return transformers.AutoTokenizer.from_pretrained(PATH)


@pytest.fixture(scope="module")
def model() -> Any:
    """The committed weights, widened to float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(PATH, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def held_out() -> str:
    """Text that the model was not trained on."""
    return (PATH / "held_out.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The figures recorded when the model was written."""
    content: dict[str, Any] = json.loads((PATH / "eval.json").read_text(encoding="utf-8"))
    return content


def test_perplexity_matches_the_recorded_value(
    model: Any, tokenizer: Any, held_out: str, recorded: dict[str, Any]
) -> None:
    context, count = recorded["context"], recorded["first_windows"]
    ids = tokenizer(held_out, return_tensors="pt", verbose=False).input_ids[0]
    total = 0.0
    with torch.no_grad():
        for part in ids[: context * count].view(count, context).split(16):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"
            ).item()
    perplexity = math.exp(total / (count * (context - 1)))
    assert perplexity == pytest.approx(recorded["perplexity_first_windows"], rel=RELATIVE_TOLERANCE)


def test_recorded_token_count_covers_the_held_out_text(tokenizer: Any, held_out: str, recorded: dict[str, Any]) -> None:
    windows = len(tokenizer(held_out, verbose=False).input_ids) // recorded["context"]
    assert recorded["tokens"] == windows * (recorded["context"] - 1)
    assert windows > recorded["first_windows"]


def test_weights_are_small_and_bfloat16() -> None:
    path: Path = PATH / "model.safetensors"
    data = path.read_bytes()
    assert len(data) <= MODEL_BYTES
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}


def test_vocabulary_matches_the_embedding(model: Any, tokenizer: Any) -> None:
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert len(tokenizer) == model.config.vocab_size
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_special_tokens_agree(model: Any, tokenizer: Any) -> None:
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_tokenizer_round_trips_the_held_out_text(tokenizer: Any, held_out: str) -> None:
    assert tokenizer.decode(tokenizer(held_out, verbose=False).input_ids) == held_out


@pytest.mark.parametrize("text", ["\tif x:\r\n", "naïve — 日本 🙂", " a  b \n\n", "x .y , z 's"])
def test_tokenizer_round_trips_other_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_linear_inputs_are_whole_blocks(model: Any) -> None:
    widths = {name: module.in_features for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(widths) == 4 * 7 + 1
    assert [name for name, width in widths.items() if width % BLOCK] == []


def test_held_out_text_is_of_useful_size(held_out: str) -> None:
    assert 150_000 <= len(held_out.encode()) <= 300_000

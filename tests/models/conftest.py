"""Tiny models built in code: random weights, biases and norms, a byte-level tokenizer trained on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.engines.llama_cpp import LlamaCpp
from tersor.models import Model, load

torch = pytest.importorskip("torch", reason="tiny models are built with torch: pip install 'tersor[torch]'")
transformers = pytest.importorskip("transformers", reason="tiny models are built with transformers")
tokenizers = pytest.importorskip("tokenizers", reason="tiny tokenizers are trained with tokenizers")

VOCABULARY = 288
_ADDERS = {
    "u32": "add_uint32", "i32": "add_int32", "f32": "add_float32", "bool": "add_bool", "str": "add_string",
    "u64": "add_uint64",
}  # fmt: skip


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer.json with VOCABULARY tokens: bytes, some merges, two special tokens."""
    models, pre_tokenizers, trainers = tokenizers.models, tokenizers.pre_tokenizers, tokenizers.trainers
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(
        ["def add(first, second):\n    return first + second\n", "the cat sat on the mat"], trainer
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@dataclass(frozen=True)
class Tiny:
    """A saved model and the one in memory."""

    folder: Path
    source: Any

    def logits(self, ids: Sequence[int]) -> Float32:
        with torch.no_grad():
            values = self.source(torch.tensor([list(ids)])).logits[0]
        array: Float32 = values.float().numpy()
        return array


Build: TypeAlias = Callable[..., Tiny]


@pytest.fixture
def build(tmp_path: Path, plain_tokenizer: Path) -> Iterator[Build]:
    """Return a function that makes a random model of a config class and saves it with the plain tokenizer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(config: str, seed: int = 0, feed_forward_share: float = 1.0, **settings: Any) -> Tiny:
        kind = getattr(transformers, config)
        name = config.replace("TextConfig", "").replace("Config", "") + "ForCausalLM"
        torch.manual_seed(seed)
        settings = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **settings}
        settings.setdefault("vocab_size", VOCABULARY)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, about its own defaults
            source = getattr(transformers, name)(kind(**settings)).float().eval()
            _randomize(source, feed_forward_share)
            folder = tmp_path / f"{config}-{seed}"
            source.save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes(plain_tokenizer.read_bytes())
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}'
        )
        return Tiny(folder, source)

    yield make
    torch.set_num_threads(threads)


def _randomize(model: Any, feed_forward_share: float) -> None:
    """Give every parameter values that matter: fresh models have zero biases and norms of one.

    feed_forward_share  what Gemma's last norm of a block is multiplied by: how much its feed-forward part adds
    """
    hidden = model.config.hidden_size
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.uniform_(0.5, 1.5)
                if "post_feedforward" in name:
                    value.mul_(feed_forward_share)
                if "Gemma" in type(model).__name__:
                    value.sub_(1.0)
            elif name.endswith("bias"):
                value.normal_(0, 0.3)
            elif "embed" in name or "lm_head" in name:
                value.normal_(0, hidden**-0.5)
            else:
                value.normal_(0, value.shape[-1] ** -0.5)


def write_f32(model: Model, path: Path) -> Path:
    """Write `model` as it is, in float32, with the writer of the `gguf` package: not the project's own."""
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, entry in (model.metadata | (model.tokenizer.metadata() if model.tokenizer else {})).items():
        if isinstance(entry.value, list):
            writer.add_array(key, entry.value)
        else:
            getattr(writer, _ADDERS[entry.kind])(key, entry.value)
    writer.add_uint32("general.file_type", 0)
    for tensor in model.tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.read(0, tensor.rows)).reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@dataclass(frozen=True)
class Parity:
    """How far llama.cpp's logits are from transformers', in units of their root mean square: at most, and as a rule."""

    difference: float
    median: float
    same_top: float
    scale: float


Compare: TypeAlias = Callable[..., Parity]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Return a function that measures the parity of a tiny model over `sequences` random texts of `length` tokens."""
    pytest.importorskip("xllamacpp", reason="parity is measured against llama.cpp: pip install 'tersor[llama]'")

    def measure(tiny: Tiny, *, sequences: int = 8, length: int = 128, context: int = 128) -> Parity:
        model = load(tiny.folder)
        path = write_f32(model, tmp_path / "model.gguf")
        random = np.random.default_rng(7)
        differences, medians, hits, squares = [], [], [], []
        with LlamaCpp(path, context=context, threads=1) as engine:
            for _ in range(sequences):
                ids = random.integers(0, VOCABULARY, length).tolist()
                theirs, ours = tiny.logits(ids)[:, :VOCABULARY], engine.logits(ids)[:, :VOCABULARY]
                differences.append(float(np.abs(theirs - ours).max()))
                medians.append(float(np.median(np.abs(theirs - ours))))
                hits.append(np.mean(theirs.argmax(1) == ours.argmax(1)))
                squares.append(float(np.mean(theirs**2)))
        scale = float(np.sqrt(np.mean(squares)))
        return Parity(max(differences) / scale, float(np.median(medians)) / scale, float(np.mean(hits)), scale)

    return measure

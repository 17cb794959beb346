"""A folder of codes is judged as its decoded weights are, in transformers and in llama.cpp."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from tersor import reference_model
from tersor.containers.hf.writer import write_checkpoint
from tersor.core.card import Artefact
from tersor.core.errors import MissingError, UnsupportedError
from tersor.core.evaluation import Evaluation
from tersor.core.tensor import QuantizedTensor
from tersor.engines.llama_cpp import LlamaCpp
from tersor.engines.transformers_text import TransformersText
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.formats import get
from tersor.models import load
from tersor.models.quantized_checkpoint import open_quantized
from tersor.pipeline.bench import weights_sha256
from tersor.pipeline.evaluate import evaluate, layer_errors
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps.cards import carded, read_card, save_card

torch = pytest.importorskip("torch", reason="folders run in transformers: pip install 'tersor[torch]'")
transformers = pytest.importorskip("transformers", reason="folders run in transformers: pip install 'tersor[torch]'")
pytest.importorskip("xllamacpp", reason="these tests run llama.cpp: pip install 'tersor[llama]'")

SHORT: dict[str, Any] = {"context": 64, "windows": 4, "threads": 1, "save": False}
SOURCE = Path(reference_model.PATH)
Write: TypeAlias = Callable[..., Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Return a function that rounds the matrices of the embedded model and writes them into a container."""

    def made(container: str, spelled: str, **options: Any) -> Path:
        fmt, output = get(spelled), tmp_path_factory.mktemp("folder") / f"{container}-{spelled}"
        with contextlib.closing(Checkpoint(*weight_files(SOURCE)[:2])) as checkpoint:
            formats = {name: fmt for name in checkpoint.tensors if name.endswith("proj.weight")}
            weights = ((name, np.asarray(checkpoint.read(name), np.float32)) for name in formats)
            tensors = ((name, QuantizedTensor(fmt, w.shape, fmt.encode(w))) for name, w in weights)
            write_checkpoint(SOURCE, checkpoint, formats, tensors, output, name=container, **options)
        return output

    return made


@pytest.fixture(scope="module")
def codes(write: Write) -> Path:
    return write("gptq", "int4-g32-sym-f16")


@pytest.fixture(scope="module")
def found(codes: Path) -> Evaluation:
    return evaluate(codes, against=SOURCE, **SHORT)


@pytest.fixture(scope="module")
def decoded(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same numbers as float32: no code of what is judged, but for reading the file."""
    folder = tmp_path_factory.mktemp("decoded") / "plain"
    model = transformers.AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32)
    with contextlib.closing(open_quantized(codes)) as checkpoint:
        for name in checkpoint.quantized_names:
            model.get_parameter(name).data.copy_(torch.from_numpy(checkpoint.read(name)))
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(SOURCE).save_pretrained(folder)
    return folder


def values(evaluation: Evaluation) -> dict[str, float]:
    return {metric.name: metric.value for metric in evaluation.metrics}


def test_the_same_codes_give_the_same_figures_in_every_engine(found: Evaluation, decoded: Path, tmp_path: Path) -> None:
    quantize(load(decoded), "f32", tmp_path / "plain.gguf", measure=False)
    wanted = values(found)
    assert wanted["kl_mean"] > 0.002
    for path in (decoded, tmp_path / "plain.gguf"):
        other = values(evaluate(path, against=SOURCE, **SHORT))
        assert other.keys() == wanted.keys()
        for name in ("kl_mean", "kl_median", "rms_delta_p", "kl_p99"):
            assert other[name] == pytest.approx(wanted[name], rel=2e-3), name
        for name in ("perplexity", "perplexity_sliding", "perplexity_ratio"):
            assert other[name] == pytest.approx(wanted[name], rel=1e-5), name
        assert abs(other["top1_agreement"] - wanted["top1_agreement"]) <= 1 / 124  # a tie may fall either way


def test_the_evaluation_says_what_ran(found: Evaluation, codes: Path) -> None:
    assert found.subject == codes.name
    assert found.engines["subject"].endswith("float32, codes by tersor, activations int16")
    assert found.settings["tokens_scored"] == 4 * 31
    assert len(found.subject_sha256) == 64
    assert found.samples


def test_activations_are_rounded_where_the_file_says_so(write: Write, found: Evaluation) -> None:
    made = {}
    for spelled in ("int8-channel-sym", "fp8_e4m3"):
        for rounds in (False, True):
            folder = write("compressed-tensors", spelled, activations=rounds)
            one = evaluate(folder, against=SOURCE, **SHORT)
            made[spelled, rounds] = values(one)["kl_mean"]
            assert ("codes by torch" in one.engines["subject"]) == rounds
        assert made[spelled, True] > 1.3 * made[spelled, False]
    assert made["int8-channel-sym", True] < 0.1 * values(found)["kl_mean"]


def test_tokens_are_those_of_llama_cpp(decoded: Path, tmp_path: Path) -> None:
    quantize(load(decoded), "q8_0", tmp_path / "q8.gguf", measure=False)
    one = TransformersText(decoded, context=64, name="plain", weights=1, threads=1)
    texts = ["", "def f(x):\n    return x  # naïve\n", "<|endoftext|> is text", "\t\t三 🙂\r\n"]
    with LlamaCpp(tmp_path / "q8.gguf", vocabulary_only=True) as other:
        assert (one.begin, one.adds_end) == (other.begin, other.adds_end)
        for text in texts:
            ids = one.tokenize(text, add_special=True)
            assert ids == other.tokenize(text, add_special=True)
            assert one.detokenize(ids) == other.detokenize(ids) == text


def test_the_card_in_the_folder_takes_the_result_in(codes: Path, tmp_path: Path) -> None:
    card = quantize(load(SOURCE), "q8_0", tmp_path / "made.gguf", measure=False)
    weights = Artefact("model.safetensors", 0, weights_sha256(codes))
    save_card(replace(card, artefacts=(weights,)), carded(codes))
    made = evaluate(codes, against=SOURCE, **{**SHORT, "save": True})
    kept = read_card(carded(codes))
    assert kept is not None
    assert kept.evaluations == (made,)


def test_a_quantized_folder_can_be_what_others_are_compared_with(codes: Path, decoded: Path) -> None:
    found = values(evaluate(decoded, against=codes, **SHORT))
    assert found["kl_mean"] < 1e-6
    assert found["top1_agreement"] >= 1 - 1 / 124


def test_questions_are_answered_too(codes: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [{"context": "import", "choices": [" os", " zebra quilt"], "answer": 0} for _ in range(3)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(codes, against=SOURCE, choices=questions, threads=1, save=False)
    assert values(found)["agreement"] == 1


def test_what_cannot_be_judged_is_refused(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no config\.json; evaluate takes a GGUF or a folder"):
        evaluate(tmp_path, against=SOURCE)
    with pytest.raises(MissingError, match="no such file or folder"):
        evaluate(tmp_path / "none", against=SOURCE)
    with pytest.raises(UnsupportedError, match="layers are compared of a GGUF"):
        layer_errors(codes, against=SOURCE)

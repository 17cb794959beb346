"""What `evaluate` reports equals a plain float64 calculation from the engines' own logits."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError, FormatError, MissingError, SchemeError
from tersor.decoder import Decoder
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.language.demands import Demands
from tersor.evaluation.language.stored import MAGIC
from tersor.models import load
from tersor.pipeline.evaluate import evaluate, layer_errors
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps.cards import read_card

pytest.importorskip("xllamacpp", reason="these tests run llama.cpp: pip install 'tersor[llama]'")

CONTEXT, TOKENS = 32, 330
Float64: TypeAlias = npt.NDArray[np.float64]
Logits: TypeAlias = Callable[[list[int]], Float32]


@pytest.fixture(scope="module")
def full(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf()


@pytest.fixture(scope="module")
def rounded(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in 8 bits, with its Card."""
    path = tmp_path_factory.mktemp("rounded") / "q8.gguf"
    quantize(load(full), "q8_0", path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_text("".join(chr(code) for code in np.random.default_rng(5).integers(33, 127, TOKENS)) + "\n")
    return path


def log_softmax(logits: Float32) -> Float64:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    normal: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normal


def plainly(reference: Logits, subject: Logits, tokens: list[int]) -> dict[str, float]:
    """Chunk by chunk as llama-perplexity goes, everything kept, in float64."""
    divergences, losses, others, top, moved = [], [], [], [], []
    for start in range(0, len(tokens) - CONTEXT + 1, CONTEXT):
        ids = tokens[start : start + CONTEXT]
        rows = np.arange(CONTEXT // 2, CONTEXT - 1)
        targets = np.array(ids)[rows + 1]
        p, q = (log_softmax(logits(ids)[rows]) for logits in (reference, subject))
        divergences += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        others += (-p[np.arange(len(rows)), targets]).tolist()
        losses += (-q[np.arange(len(rows)), targets]).tolist()
        top += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        moved += ((np.exp(q) - np.exp(p))[np.arange(len(rows)), targets] ** 2).tolist()
    return {
        "kl_mean": float(np.mean(divergences)),
        "kl_median": float(np.median(divergences)),
        "kl_p99": float(np.quantile(divergences, 0.99)),
        "kl_max": float(np.max(divergences)),
        "perplexity": float(np.exp(np.mean(losses))),
        "reference_perplexity": float(np.exp(np.mean(others))),
        "perplexity_ratio": float(np.exp(np.mean(losses) - np.mean(others))),
        "top1_agreement": float(np.mean(top)),
        "rms_delta_p": float(np.sqrt(np.mean(moved))),
    }


def test_all_metrics_are_those_of_a_plain_calculation_from_the_logits_of_llama_cpp(
    full: Path, rounded: Path, text: Path
) -> None:
    found = evaluate(rounded, against=full, data=text, context=CONTEXT, threads=1, save=False)
    with LlamaCpp(full, context=CONTEXT) as reference, LlamaCpp(rounded, context=CONTEXT) as subject:
        tokens = reference.tokenize(text.read_text().removesuffix("\n"), add_special=True)
        expected = plainly(reference.logits, subject.logits, tokens)
    assert len(tokens) == TOKENS
    assert expected["kl_mean"] > 1e-5
    assert found.settings["windows"] == TOKENS // CONTEXT
    for name, value in expected.items():
        metric = found.metric(name)
        assert metric is not None
        assert metric.value == pytest.approx(value, rel=1e-4, abs=1e-9), name
        if metric.low is not None and metric.high is not None:
            assert metric.low <= metric.value <= metric.high


def test_perplexity_and_divergence_are_those_of_torch_with_the_same_weights(
    full: Path, text: Path, tmp_path: Path
) -> None:
    """Four bits, decoded again: of a file in four bits llama.cpp rounds the activations too, which torch does not."""
    torch = pytest.importorskip("torch", reason="the second opinion is torch's: pip install 'tersor[torch]'")
    rounded = tmp_path / "decoded.gguf"
    quantize(load(full), "q4_0", tmp_path / "q4.gguf")
    quantize(load(tmp_path / "q4.gguf"), "f32", rounded)
    found = evaluate(rounded, against=full, data=text, context=CONTEXT, threads=1, save=False)

    def logits_of(path: Path) -> Logits:
        decoder = Decoder(load(path))
        blocks = [decoder.block(layer) for layer in range(decoder.layers)]

        def compute(ids: list[int]) -> Float32:
            with torch.no_grad():
                hidden = decoder.embed(torch.tensor([ids]))
                for block in blocks:
                    hidden = block.forward(hidden)
                values: Float32 = decoder.logits(hidden)[0].numpy()
            return values

        return compute

    with LlamaCpp(full, context=CONTEXT, vocabulary_only=True) as engine:
        tokens = engine.tokenize(text.read_text().removesuffix("\n"), add_special=True)
    expected = plainly(logits_of(full), logits_of(rounded), tokens)
    assert expected["kl_mean"] > 0.01
    for name, value in expected.items():
        metric = found.metric(name)
        assert metric is not None
        assert metric.value == pytest.approx(value, rel=1e-4, abs=1e-9), name


def test_the_sliding_perplexity_predicts_every_token_once(full: Path, rounded: Path, text: Path) -> None:
    stride = 8
    found = evaluate(rounded, against=full, data=text, context=CONTEXT, stride=stride, threads=1, save=False)
    losses: list[float] = []
    with LlamaCpp(full, context=CONTEXT) as engine:
        tokens = engine.tokenize(text.read_text().removesuffix("\n"), add_special=True)
        at, done = 0, 1
        while done < len(tokens):
            at = min(at, len(tokens) - CONTEXT)
            ids = tokens[at : at + CONTEXT]
            p = log_softmax(engine.logits(ids))
            losses += [-float(p[place - at - 1, tokens[place]]) for place in range(done, at + CONTEXT)]
            at, done = at + stride, at + CONTEXT
    metric = found.metric("reference_perplexity_sliding")
    assert metric is not None
    assert metric.value == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-6)
    assert found.settings["tokens_scored_sliding"] == TOKENS - 1 == len(losses)


def test_a_model_beside_itself_passes_every_limit(full: Path, text: Path) -> None:
    limits: Demands = {"max_kl": 1e-9, "max_perplexity_increase": 0, "min_agreement": 1}
    found = evaluate(full, against=full, data=text, context=CONTEXT, threads=1, **limits)
    kl = found.metric("kl_mean")
    assert kl is not None
    assert kl.floor is not None
    assert kl.value <= kl.floor
    assert found.outcome == "pass"
    assert all("no divergence beyond the noise floor" in limit.reason for limit in found.limits)


def test_a_small_sample_is_inconclusive_and_says_how_much_would_do(full: Path, rounded: Path, text: Path) -> None:
    usual = evaluate(rounded, against=full, data=text, context=CONTEXT, threads=1, windows=4, save=False)
    kl = usual.metric("kl_mean")
    assert kl is not None
    assert kl.low is not None
    bound = (kl.low + kl.value) / 2
    found = evaluate(rounded, against=full, data=text, context=CONTEXT, threads=1, windows=4, save=False, max_kl=bound)
    (limit,) = found.limits
    assert found.outcome == "inconclusive"
    assert limit.needed is not None
    assert limit.needed > 4
    assert f"about {limit.needed} units would settle it, 4 were measured" in limit.reason


def test_a_broken_model_fails_and_says_by_how_much(tiny_gguf: Callable[..., Path], full: Path, text: Path) -> None:
    found = evaluate(tiny_gguf(1), against=full, data=text, context=CONTEXT, threads=1, max_kl=0.01)
    assert found.outcome == "fail"
    assert "above the largest allowed, 0.01" in found.limits[0].reason


def test_the_evaluation_names_data_engines_versions_and_command(full: Path, rounded: Path, text: Path) -> None:
    found = evaluate(
        rounded, against=full, data=text, context=CONTEXT, threads=1, save=False, command="tersor …", seed=2
    )
    assert (found.task, found.subject, found.reference, found.data) == ("language", "q8.gguf", "tiny", "letters.txt")
    assert found.subject_sha256 == hashlib.sha256(rounded.read_bytes()).hexdigest()
    assert found.data_sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert found.engines["subject"].startswith("xllamacpp ")
    assert {"python", "tersor", "xllamacpp"} <= found.versions.keys()
    assert (found.command, found.settings["seed"], found.settings["context"]) == ("tersor …", 2, CONTEXT)
    assert found.seconds > 0
    assert sum(found.histograms[0].counts) == found.settings["tokens_scored"]
    content = text.read_text()
    for sample in found.samples:
        assert sample.before + sample.text + sample.after in content
        assert "reference: " in sample.detail
        assert "; artefact: " in sample.detail
    assert [sample.value for sample in found.samples] == sorted((s.value for s in found.samples), reverse=True)
    kl_max = found.metric("kl_max")
    assert kl_max is not None
    assert found.samples[0].value == kl_max.value


def test_the_card_beside_the_artefact_takes_it_in(full: Path, rounded: Path, text: Path) -> None:
    found = evaluate(rounded, against=full, data=text, context=CONTEXT, threads=1)
    card = read_card(rounded)
    assert card is not None
    assert card.evaluations[-1] == found
    rows = layer_errors(rounded, against=full, data=text, threads=1)
    card = read_card(rounded)
    assert card is not None
    assert card.layers == rows
    assert any(row.entering_db is not None for row in rows)


def test_metrics_of_ones_own_get_intervals(full: Path, rounded: Path, text: Path) -> None:
    def certainty(reference: Float32, subject: Float32, targets: npt.NDArray[np.int32]) -> Float64:
        assert reference.shape == subject.shape == (len(targets), 300)
        best: Float64 = log_softmax(subject).max(axis=1)
        return best

    found = evaluate(
        rounded, against=full, data=text, context=CONTEXT, threads=1, save=False, metrics={"certainty": certainty}
    )
    metric = found.metric("certainty")
    assert metric is not None
    assert metric.low is not None
    assert metric.low < metric.value < 0


def test_a_stored_reference_stands_in_for_the_model(full: Path, rounded: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "full.reference"
    direct = evaluate(
        rounded, against=full, data=text, context=CONTEXT, threads=1, save=False, save_reference=path, top_k=20
    )
    for data in (None, text):
        found = evaluate(rounded, against=path, data=data, threads=1, save=False)
        assert found.reference == "tiny"
        assert found.data_sha256 == direct.data_sha256
        assert any("lower bounds" in note for note in found.notes)
        for name in ("perplexity", "reference_perplexity", "perplexity_ratio", "top1_agreement", "rms_delta_p"):
            ours, theirs = found.metric(name), direct.metric(name)
            assert ours is not None
            assert theirs is not None
            assert ours.value == pytest.approx(theirs.value, rel=1e-6), name
        low, true, high = found.metric("kl_mean"), direct.metric("kl_mean"), found.metric("kl_mean_upper_bound")
        assert low is not None
        assert true is not None
        assert high is not None
        assert 0 < low.value <= true.value <= high.value
    assert low is not None
    assert high is not None
    between = (low.value + high.value) / 2
    judged = evaluate(rounded, against=path, threads=1, save=False, max_kl=between)
    assert judged.outcome == "inconclusive"
    assert "larger --top-k" in judged.limits[0].reason
    assert evaluate(rounded, against=path, threads=1, save=False, max_kl=100 * high.value).outcome == "pass"


def test_a_stored_reference_is_refused_where_it_does_not_fit(
    full: Path, rounded: Path, text: Path, tmp_path: Path
) -> None:
    path, other = tmp_path / "full.reference", tmp_path / "other.txt"
    evaluate(rounded, against=full, data=text, context=CONTEXT, threads=1, save=False, save_reference=path)
    other.write_text("another text")
    with pytest.raises(SchemeError, match=r"other\.txt is not the text that full\.reference was recorded on \(letters"):
        evaluate(rounded, against=path, data=other, threads=1)
    with pytest.raises(SchemeError, match="the stored reference has windows of 32 tokens, 16 were asked for"):
        evaluate(rounded, against=path, context=16, threads=1)
    for name, value, held in (("windows", 4, "none"), ("stride", 8, 16), ("seed", 3, "none"), ("top_k", 9, 64)):
        with pytest.raises(SchemeError, match=f"full.reference was recorded with {name} {held}, {value} was asked for"):
            evaluate(rounded, against=path, threads=1, **{name: value})  # type: ignore[arg-type]
    same = evaluate(rounded, against=path, threads=1, save=False, stride=16, top_k=64)
    assert same.settings["stride"] == 16
    for more in ({"save_reference": tmp_path / "again"}, {"reference_engine": "llama.cpp"}):
        with pytest.raises(SchemeError, match="is stored already, and no engine runs for it"):
            evaluate(rounded, against=path, threads=1, **more)
    with pytest.raises(SchemeError, match=r"holds predictions, no layers"):
        layer_errors(rounded, against=path)
    with pytest.raises(SchemeError, match="give its path, not what was stored of it"):
        evaluate(rounded, against=path, threads=1, max_latency_ratio=2.0)
    damaged = tmp_path / "damaged.reference"
    damaged.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError, match="truncated or not closed"):
        evaluate(rounded, against=damaged, threads=1)
    assert path.read_bytes().startswith(MAGIC)


def test_what_cannot_work_is_refused_by_name(full: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abc")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    with pytest.raises(SchemeError, match="the text has 3 tokens, 2 windows of 32 need 64; give more text"):
        evaluate(full, against=full, data=short, context=CONTEXT, threads=1)
    with pytest.raises(SchemeError, match="was trained for 512 tokens, windows of 1024 were asked for"):
        evaluate(full, against=full, data=text, context=1024)
    with pytest.raises(FormatError, match=r"latin\.txt: not UTF-8 text"):
        evaluate(full, against=full, data=latin, context=CONTEXT, threads=1)
    with pytest.raises(MissingError, match=r"absent\.gguf: no such file"):
        evaluate(tmp_path / "absent.gguf", against=full)
    with pytest.raises(MissingError, match=r"no config\.json; evaluate takes a GGUF"):
        evaluate(tmp_path, against=full)
    with pytest.raises(SchemeError, match="give a text or questions, not both"):
        evaluate(full, against=full, data=text, choices=text)
    with pytest.raises(SchemeError, match="max_kl does not go with a choice task"):
        evaluate(full, against=full, choices=text, max_kl=1.0)
    with pytest.raises(SchemeError, match=r"the reference engine must be one of auto, transformers, llama\.cpp"):
        evaluate(full, against=full, data=text, context=CONTEXT, reference_engine="onnx")


def test_questions_are_answered_by_both_and_counted(full: Path, rounded: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    random = np.random.default_rng(3)
    words = ["".join(chr(code) for code in random.integers(97, 123, 4)) for _ in range(60)]
    rows = [{"context": a, "choices": [b, f"{b[::-1]}x"], "answer": len(b) % 2} for a, b in pairwise(words)]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate(
        rounded, against=full, choices=path, threads=1, save=False, min_agreement=0.5, max_accuracy_drop=0.9
    )
    assert found.task == "choice"
    assert found.settings["questions"] == 59
    assert found.outcome == "pass"
    agreement = found.metric("agreement")
    assert agreement is not None
    assert agreement.value > 0.9
    again = evaluate(rounded, against=full, choices=path, threads=1, save=False, windows=10, seed=1)
    assert (again.settings["questions"], again.settings["seed"]) == (10, 1)
    itself = evaluate(full, against=full, choices=path, threads=1, save=False)
    assert itself.metric("agreement").value == 1  # type: ignore[union-attr]  # it is there
    assert itself.samples == ()


def test_a_broken_artefact_is_refused(full: Path, text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(full.read_bytes()[:-4096])
    with pytest.raises((FormatError, EngineError)):
        evaluate(broken, against=full, data=text, context=CONTEXT, threads=1)


def test_memory_does_not_grow_with_the_text(full: Path, rounded: Path, tmp_path: Path) -> None:
    """All logits of this text take 2 x 5000 x 300 x 4 bytes; a tenth of that is held in Python at most."""
    tokens = 10_000
    text = tmp_path / "long.txt"
    text.write_text("".join(chr(code) for code in np.random.default_rng(5).integers(33, 127, tokens)))
    evaluate(rounded, against=full, data=text, context=CONTEXT, stride=0, threads=1, save=False, windows=2)
    tracemalloc.start()
    try:
        found = evaluate(rounded, against=full, data=text, context=CONTEXT, stride=0, threads=1, save=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    scored = int(found.settings["tokens_scored"])
    assert scored > 4000
    assert peak < 0.3 * 2 * scored * 300 * 4

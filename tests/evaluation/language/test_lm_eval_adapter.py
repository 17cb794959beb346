"""lm-evaluation-harness computes on our engine what we compute ourselves."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.errors import MissingError, UnsupportedError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.language.lm_eval_adapter import harness_model

pytest.importorskip("xllamacpp", reason="these tests run llama.cpp: pip install 'tersor[llama]'")
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install lm_eval"
)

TASK = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def engine(tiny_gguf: Callable[..., Path]) -> Iterator[LlamaCpp]:
    with LlamaCpp(tiny_gguf(), context=64) as opened:
        yield opened


def log_probability(engine: LlamaCpp, before: str, answer: str) -> float:
    first, whole = engine.tokenize(before), engine.tokenize(before + answer)
    logits: Float32 = engine.logits(whole)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(sum(p[place - 1, whole[place]] for place in range(len(first), len(whole))))


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_a_local_task_gives_the_accuracy_computed_by_hand(
    engine: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lm_eval, tasks = (importlib.import_module(name) for name in ("lm_eval", "lm_eval.tasks"))

    random = np.random.default_rng(0)
    words = ["".join(map(chr, random.integers(97, 123, 5))) for _ in range(40)]
    rows = [{"question": w[:3], "choices": [w[3], w[4]], "answer": index % 2} for index, w in enumerate(words)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "letters.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(harness_model(engine), tasks=["letters"], task_manager=manager, bootstrap_iters=0)
    picks = [int(np.argmax([log_probability(engine, w[:3], w[place]) for place in (3, 4)])) for w in words]
    expected = float(np.mean([pick == row["answer"] for pick, row in zip(picks, rows, strict=True)]))
    assert found["results"]["letters"]["acc,none"] == pytest.approx(expected)


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_likelihoods_and_greedy_text_are_those_of_the_engine(engine: LlamaCpp) -> None:
    model = harness_model(engine)

    def asked(*arguments: Any) -> SimpleNamespace:
        return SimpleNamespace(args=arguments)

    made = engine.detokenize(engine.generate(engine.tokenize("abc"), 8))
    ((value, is_greedy), (other, _)) = model.loglikelihood([asked("abc", made[0]), asked("abc", "xyz")], True)
    assert is_greedy
    assert value == pytest.approx(log_probability(engine, "abc", made[0]), rel=1e-5)
    assert other == pytest.approx(log_probability(engine, "abc", "xyz"), rel=1e-5)
    assert model.generate_until([asked("abc", {"max_gen_toks": 8, "until": [made[3]]})]) == [made.split(made[3])[0]]
    with pytest.raises(UnsupportedError, match="text is generated greedily"):
        model.generate_until([asked("abc", {"do_sample": True})])
    with pytest.raises(UnsupportedError, match="an answer of 70 tokens does not fit a context of 64"):
        model.loglikelihood([asked("abc", "x" * 70)], True)
    with pytest.raises(UnsupportedError, match="has no beginning token"):
        model.loglikelihood_rolling([asked("abc")])


def test_without_the_harness_the_remedy_is_named(engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingError, match=r"pip install 'tersor\[lm-eval\]'"):
        harness_model(engine)

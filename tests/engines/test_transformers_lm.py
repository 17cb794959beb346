"""Logits of transformers by slices are its logits, and what does not fit is refused before it is loaded."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tersor.core.errors import EngineError, MissingError
from tersor.engines import transformers_lm
from tersor.engines.transformers_lm import TransformersLm

torch = pytest.importorskip("torch", reason="transformers computes with torch: pip install 'tersor[torch]'")
transformers = pytest.importorskip("transformers", reason="this engine is transformers: pip install 'tersor[torch]'")

IDS = np.random.default_rng(0).integers(0, 90, 30).tolist()


def saved(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": 90, "num_key_value_heads": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "gemma2":  # its code after the blocks caps the logits
            config = transformers.Gemma2Config(**shape, head_dim=16, final_logit_softcapping=2.0)
            model = transformers.Gemma2ForCausalLM(config)
        else:
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_slices_are_the_logits_of_the_model(kind: str, tmp_path: Path) -> None:
    engine = TransformersLm(saved(tmp_path, kind), name=kind, weights=1, threads=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    assert engine.vocabulary_size == 90
    np.testing.assert_allclose(engine.logits(IDS), expected, atol=1e-5)
    parts = list(engine.slices(IDS, start=5, rows=7))
    assert [len(part) for part in parts] == [7, 7, 7, 4]
    np.testing.assert_allclose(np.concatenate(parts), expected[5:], atol=1e-5)
    (other,) = engine.slices(IDS, start=5, rows=100, batch=24)
    np.testing.assert_allclose(other, expected[5:], atol=1e-5)
    np.testing.assert_allclose(engine.logits(IDS[:9]), expected[:9], atol=1e-5)  # nothing was left behind
    assert engine.version() == f"transformers {transformers.__version__} float32"


def test_the_number_of_threads_is_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    TransformersLm(saved(tmp_path, "llama"), name="m", weights=1, threads=before + 1).logits(IDS)
    assert torch.get_num_threads() == before


def test_requests_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    engine = TransformersLm(saved(tmp_path, "llama"), name="m", weights=1)
    for start, rows in ((30, 5), (-1, 5), (0, 0)):
        with pytest.raises(EngineError, match=f"start {start} and rows {rows} do not fit 30 tokens"):
            next(engine.slices(IDS, start=start, rows=rows))


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"big takes .* GiB in float32, this machine has .*compare with a bf16 GGUF"):
        TransformersLm(tmp_path / "absent", name="big", weights=1 << 45)


def test_memory_is_what_a_container_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_lm, "machine_bytes", lambda: 8 << 30)
    with pytest.raises(MissingError, match=r"big takes 7\.5 GiB in float32, this machine has 8\.0"):
        TransformersLm(tmp_path / "absent", name="big", weights=15 << 27)


def test_a_folder_whose_name_its_reader_cannot_take_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "llama").rename(tmp_path / os.fsdecode(b"\xe9"))
    with pytest.raises(MissingError, match=r"transformers cannot load m: .* not valid UTF-8"):
        TransformersLm(folder, name="m", weights=1)


def test_a_folder_that_transformers_cannot_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="transformers cannot load empty"):
        TransformersLm(tmp_path, name="empty", weights=1)


def test_without_transformers_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingError, match=r"pip install 'tersor\[torch\]'"):
        TransformersLm(tmp_path, name="m", weights=1)

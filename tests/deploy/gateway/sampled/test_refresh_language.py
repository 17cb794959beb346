"""A language model is made anew from what it was asked, judged, and tried by the gateway that serves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import tersor
from tersor import reference_model
from tersor.core.card import Card, card_path
from tersor.deploy.config import read_deployment
from tersor.deploy.gateway.recording.store import read_happenings
from tersor.deploy.gateway.sampled.kept import kept_path, read_kept, texts_of
from tersor.pipeline.deploy.orders import Gateway
from tersor.pipeline.deploy.refresh import Refreshed, refresh

from ..conftest import live
from ..operating.orders import JSON, asked, seen

YAML = """models:
  demo:
    primary: quantized
    fallback: full
    variants:
      quantized: {engine: llama.cpp, path: small.gguf, context: 512}
      full: {engine: llama.cpp, path: full.gguf, context: 512}
    rollout: {steps: [50, 100], shadow: 100, min_samples: 20, min_time_s: 0.0, look: 5000}

monitor: {keep: 72000}
"""
LETTERS = 260


def test_from_prompts_to_a_rollout(artefacts: Path, tmp_path: Path) -> None:
    text = (reference_model.PATH / "held_out.txt").read_text()
    usual = tmp_path / "usual.txt"
    usual.write_text(text[-14_000:])
    shutil.copy(artefacts / "full.gguf", tmp_path)
    small = tmp_path / "small.gguf"
    tersor.quantize(reference_model.PATH, "q4_0", output=small, method="gptq", calibration=usual)
    place = tmp_path / "deploy.yaml"
    place.write_text(YAML)
    prompts = [text[at : at + LETTERS] for at in range(0, 60 * LETTERS, LETTERS)]

    with live(place) as gateway:
        for prompt in prompts:
            body = {"model": "demo", "prompt": prompt, "max_tokens": 1}
            assert asked(gateway.address, "POST", "/v1/completions", body, JSON)[0] == 200
    assert set(texts_of(read_kept(kept_path(tmp_path / "deploy.record.db"), "demo"))) == set(map(str.strip, prompts))

    with live(place) as gateway:
        found = refresh(place, "demo", gateway=Gateway(gateway.address), who="ann")
        assert isinstance(found, Refreshed)
        assert (found.record.outcome, found.commands) == ("PASS", ())
        assert seen(gateway, "demo")["rollout"]["candidate"] == found.variant
        body = {"model": "demo", "prompt": "def f(", "max_tokens": 4}
        chosen = {**JSON, "X-Tersor-Variant": found.variant}
        status, _, headers = asked(gateway.address, "POST", "/v1/completions", body, chosen)
        assert (status, headers["x-tersor-variant"]) == (200, found.variant)

    rows = [row.what for row in read_happenings(tmp_path / "deploy.record.db") if row.what.startswith("refresh")]
    assert rows == [f"refresh {step}" for step in ("began", "quantized", "judged", "named", "begun")]
    old, new = (Card.from_json(card_path(one, "json").read_text()) for one in (small, found.artefact))
    assert (new.plan.recipe.format, new.plan.recipe.method) == (old.plan.recipe.format, old.plan.recipe.method)
    assert new.plan.recipe.calibration != old.plan.recipe.calibration
    assert found.artefact.read_bytes() != small.read_bytes()
    assert read_deployment(place).models["demo"].candidate == found.variant
    assert not (tmp_path / "deploy.record.refresh" / "demo").exists()

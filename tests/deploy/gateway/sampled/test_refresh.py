"""A net is made anew from what it was asked, judged, registered, and tried by the gateway that serves it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from tersor.cli.main import main
from tersor.core.card import Card
from tersor.core.errors import EngineError, MissingError, QualityError, SchemeError
from tersor.deploy.config import read_deployment
from tersor.deploy.gateway.recording.store import read_happenings
from tersor.deploy.gateway.sampled.kept import Keeper, kept_path, read_kept
from tersor.deploy.registry.registry import Registry
from tersor.pipeline.deploy.amending import put_candidate
from tersor.pipeline.deploy.orders import Gateway
from tersor.pipeline.deploy.refresh import Refreshed, Waits, refresh

from ..conftest import live
from ..operating.orders import JSON, asked, seen
from .conftest import Digits, classify
from .figures import metric, wait_for

YAML = """# what we serve
registry: .
models:
  digits:
    primary: int8   # of March
    fallback: full
    variants:
      full: {engine: onnxruntime, path: full.onnx}
      int8:
        engine: onnxruntime
        path: int8.onnx   # and its Card beside
    rollout: {steps: [50, 100], shadow: 100, min_samples: 20, min_time_s: 0.0, look: 5000}

monitor: MONITOR
"""
KEEP = "{keep: 100000}"
AUTO = "{keep: 100000, refresh: auto, drift_every_s: 2, alarms: 1000, references: {digits: calibration.npz}}"


@pytest.fixture
def folder(digits: Digits, tmp_path: Path) -> Path:
    """A registry with the net in float and on integers, the latter of which passed its gate."""
    for file in digits.folder.iterdir():
        shutil.copy(file, tmp_path)
    with Registry.open(tmp_path, mode="create") as opened:
        full = opened.add_artefact("digits-full", tmp_path / "full.onnx", who="ann")
        made = opened.add_artefact("digits", tmp_path / "int8.onnx", who="ann", baseline=full.label)
        opened.record_verdict(made.label, "pass", {"outcome": "PASS"}, who="ann")
    (tmp_path / "deploy.yaml").write_text(YAML.replace("MONITOR", KEEP))
    return tmp_path


def fill(folder: Path, digits: Digits, count: int = 200, brightness: float = 2.0) -> None:
    """Let requests be kept, as a gateway does."""
    keeper = Keeper(kept_path(folder / "deploy.record.db"), most=72_000)
    for number in range(count):
        image = (digits.images[number : number + 1] * brightness).astype(np.float32)
        told = {"name": "x", "dtype": image.dtype.str, "shape": [1, 64]}
        keeper.take("digits", {"inputs": [told]}, image.tobytes())
        if number % 50 == 49:
            keeper.save(float(number))
    keeper.save(0.0)


def steps(folder: Path) -> list[str]:
    """What the record says of refreshes."""
    rows = read_happenings(folder / "deploy.record.db")
    return [row.what.removeprefix("refresh ") for row in rows if row.what.startswith("refresh ")]


def test_from_traffic_to_a_rollout_in_one_command(
    folder: Path, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    with live(folder / "deploy.yaml") as gateway:
        for image in digits.images[:30]:
            classify(gateway, image * 2)
    assert len(read_kept(kept_path(folder / "deploy.record.db"), "digits")) == 30
    fill(folder, digits, count=220)
    with live(folder / "deploy.yaml") as gateway:
        words = ["refresh", str(folder / "deploy.yaml"), "--model", "digits", "--gateway", gateway.address]
        assert main([*words, "--who", "ann"]) == 0, capsys.readouterr()
        assert "the rollout of" in capsys.readouterr().out
        found = seen(gateway, "digits")["rollout"]
        assert found["state"] in ("shadow", "canary", "promoted")
        fresh = found["candidate"]
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]}
        told = asked(gateway.address, "POST", "/v2/models/digits/infer", body, {**JSON, "X-Tersor-Variant": fresh})
        assert (told[0], told[2]["x-tersor-variant"]) == (200, fresh)
    assert steps(folder) == ["began", "quantized", "judged", "named", "begun"]
    text = (folder / "deploy.yaml").read_text()
    kept = [line for line in text.splitlines() if fresh not in line]
    assert kept == YAML.replace("MONITOR", KEEP).splitlines()
    plan = read_deployment(folder / "deploy.yaml").models["digits"]
    old, new = (
        Card.from_json((folder / f"{Path(plan.variants[name].path).stem}.onnx.card.json").read_text())
        for name in ("int8", fresh)
    )
    assert (new.plan.recipe.format, new.plan.recipe.method) == (old.plan.recipe.format, old.plan.recipe.method)
    with Registry.open(folder) as opened:
        row = opened.artefacts()[-1]
        assert (row.label, row.baseline) == ("digits:2", "digits-full:1")
        assert [verdict.outcome for verdict in opened.verdicts("digits:2")] == ["pass"]
    assert not (folder / "deploy.record.refresh" / "digits").exists()
    assert isinstance(refresh(folder / "deploy.yaml", "digits"), Waits)


def test_what_was_ended_goes_on_and_makes_nothing_twice(folder: Path, digits: Digits) -> None:
    fill(folder, digits)
    nobody = Gateway("http://127.0.0.1:9")
    with pytest.raises(EngineError, match="no gateway answers"):
        refresh(folder / "deploy.yaml", "digits", gateway=nobody, who="ann")
    (made,) = folder.glob("digits-*.onnx")
    before = made.stat().st_mtime_ns
    held = folder / "deploy.record.refresh" / "digits" / "held.npz"
    assert held.stat().st_mode & 0o077 == 0
    kept_path(folder / "deploy.record.db").unlink()  # what it took is its own
    found = refresh(folder / "deploy.yaml", "digits", who="ann")
    assert isinstance(found, Refreshed)
    assert (found.artefact.name, found.state, found.artefact.stat().st_mtime_ns) == (made.name, "", before)
    assert "/v1/rollout" in found.commands[0]
    assert steps(folder) == ["began", "quantized", "judged", "named", "stopped", "judged"]
    assert not held.exists()


def test_the_original_data_is_merged_where_it_is_known(folder: Path, digits: Digits) -> None:
    fill(folder, digits, brightness=0.5)
    refresh(folder / "deploy.yaml", "digits", calibration=folder / "calibration.npz", who="ann", rolls=False)
    (made,) = folder.glob("digits-*.onnx.card.json")
    assert "400 items" in Card.from_json(made.read_text()).plan.recipe.calibration
    assert read_deployment(folder / "deploy.yaml").models["digits"].candidate is None


def test_without_traffic_a_card_or_full_precision_it_is_said_what_is_missing(folder: Path, digits: Digits) -> None:
    place = folder / "deploy.yaml"
    with pytest.raises(SchemeError, match="no model 'other'"):
        refresh(place, "other")
    with pytest.raises(MissingError, match="keep: 2000"):
        refresh(place, "digits")
    fill(folder, digits, count=20)
    with pytest.raises(MissingError, match="20 recent requests are kept; 50"):
        refresh(place, "digits")
    (folder / "int8.onnx.card.json").unlink()
    with pytest.raises(MissingError, match="has no Card"):
        refresh(place, "digits")
    text = place.read_text().replace("registry: .\n", "").replace("    fallback: full\n", "")
    place.write_text(text)
    with pytest.raises(MissingError, match="full precision"):
        refresh(place, "digits")
    assert set(steps(folder)) == {"stopped"}


def test_what_does_not_pass_its_gate_changes_nothing(folder: Path, digits: Digits) -> None:
    fill(folder, digits, count=60)  # thirty are judged by: too few to be sure
    before = (folder / "deploy.yaml").read_bytes()
    with pytest.raises(QualityError, match="INCONCLUSIVE"):
        refresh(folder / "deploy.yaml", "digits", who="ann")
    assert (folder / "deploy.yaml").read_bytes() == before
    with Registry.open(folder) as opened:
        assert opened.objection("digits") is not None


def test_drift_has_it_made_anew_and_tried_by_itself(folder: Path, digits: Digits) -> None:
    (folder / "deploy.yaml").write_text(YAML.replace("MONITOR", AUTO))
    fill(folder, digits, count=240)
    with live(folder / "deploy.yaml") as gateway:
        images = itertools.cycle(digits.images)

        def has_drifted() -> bool:
            for image in itertools.islice(images, 60):
                classify(gateway, image * 2)
            return metric(gateway, "tersor_alerts_firing", alert="InputDrift", model="digits") == 1

        wait_for(has_drifted, seconds=60)
        wait_for(lambda: seen(gateway, "digits")["rollout"] is not None, seconds=120)
        wait_for(lambda: seen(gateway, "digits")["rollout"]["state"] in ("shadow", "canary", "promoted"))
    assert steps(folder) == ["wanted", "began", "quantized", "judged", "named", "run"]


def test_a_deployment_in_braces_is_left_to_its_owner(folder: Path) -> None:
    place = folder / "deploy.yaml"
    text = "models: {digits: {primary: int8, variants: {int8: {engine: onnxruntime, path: int8.onnx}}}}\n"
    place.write_text(text)
    with pytest.raises(SchemeError, match="in braces"):
        put_candidate(place, "digits", "fresh", {"engine": "onnxruntime", "path": "full.onnx"})
    place.write_text(YAML.replace("MONITOR", KEEP))
    with pytest.raises(SchemeError, match="is not there"):
        put_candidate(place, "digits", "fresh", {"engine": "onnxruntime", "path": "gone.onnx"})
    assert place.read_text() == YAML.replace("MONITOR", KEEP)

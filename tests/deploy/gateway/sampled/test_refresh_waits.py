"""A model whose candidate is being tried is made anew: when that has ended, or at once where somebody says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tersor.cli.main import main
from tersor.core.errors import EngineError, FormatError
from tersor.deploy.config import read_deployment
from tersor.deploy.gateway.recording.queued import Queued, put_queued, read_queued, waiting
from tersor.deploy.registry.locking import WriterLock
from tersor.pipeline.deploy.refresh import Waits, refresh

from ..conftest import Live, live
from ..operating.orders import ordered, seen
from .conftest import Digits, classify
from .figures import wait_for
from .test_refresh import fill, steps

YAML = """# what we serve
models:
  digits:
    primary: int8   # of March
    candidate: second
    fallback: full
    variants:
      full: {engine: onnxruntime, path: full.onnx}
      int8: {engine: onnxruntime, path: int8.onnx}
      second: {engine: onnxruntime, path: second.onnx}
    rollout: {shadow: 100, min_samples: 100000, min_time_s: 0.0}

monitor: {keep: 100000, look_every_s: 0.2}
"""


@pytest.fixture
def folder(digits: Digits, tmp_path: Path) -> Path:
    """A net whose candidate will be tried for ever, with requests to make it anew from."""
    for file in digits.folder.iterdir():
        shutil.copy(file, tmp_path)
    for ending in (".onnx", ".onnx.card.json"):
        shutil.copy(tmp_path / f"int8{ending}", tmp_path / f"second{ending}")
    (tmp_path / "deploy.yaml").write_text(YAML)
    fill(tmp_path, digits, count=220)
    return tmp_path


def refreshed(folder: Path, gateway: Live, *words: str) -> int:
    asked = ["refresh", str(folder / "deploy.yaml"), "--model", "digits", "--gateway", gateway.address, "--who", "ann"]
    return main([*asked, *words])


def is_in(gateway: Live, state: str, candidate: str = "second") -> bool:
    """Whether the rollout of a candidate, by the beginning of its name, is in a state."""
    found = seen(gateway, "digits")["rollout"]
    return found is not None and found["state"] == state and str(found["candidate"]).startswith(candidate)


def kill(gateway: Live) -> None:
    os.kill(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait()


def is_free(folder: Path) -> bool:
    """Whether no refresh is under way any more."""
    try:
        with WriterLock(folder / "deploy.record.refresh" / "digits.lock", 0.0):
            return True
    except EngineError:
        return False


def test_it_waits_for_the_end_of_the_rollout_whatever_kills_the_gateway_meanwhile(
    folder: Path, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    place, record = folder / "deploy.yaml", folder / "deploy.record.db"
    with live(place) as gateway:
        wait_for(lambda: is_in(gateway, "shadow"))
        assert refreshed(folder, gateway) == 0
        assert "the rollout of second is shadow: the gateway makes digits anew" in capsys.readouterr().out
        assert (steps(folder), waiting(record), place.read_text()) == (["queued"], ("digits",), YAML)
        kill(gateway)
    with live(place) as gateway:  # it waits still, and begins when the rollout ends
        wait_for(lambda: is_in(gateway, "shadow"))
        assert steps(folder) == ["queued"]
        assert ordered(gateway, "abort", "digits")[0] == 200
        wait_for(lambda: "began" in steps(folder))
        kill(gateway)
    wait_for(lambda: is_free(folder))  # what it ran has ended with it
    assert waiting(record) == ("digits",)
    with live(place) as gateway:
        wait_for(lambda: is_in(gateway, "shadow", "digits-"))
        assert classify(gateway, digits.images[0])[1] == "int8"
    found = steps(folder)
    assert found[:2] == ["queued", "began"]
    assert found[-2:] == ["named", "run"]
    assert (found.count("began"), waiting(record)) == (1, ())
    plan = read_deployment(place).models["digits"]
    assert (plan.primary, str(plan.candidate)[:7]) == ("int8", "digits-")


def test_the_fresh_one_takes_the_place_of_the_candidate_where_somebody_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live(folder / "deploy.yaml") as gateway:
        wait_for(lambda: is_in(gateway, "shadow"))
        assert refreshed(folder, gateway, "--supersede") == 0, capsys.readouterr()
        assert is_in(gateway, "shadow", "digits-")
    lines = map(json.loads, (folder / "deploy.audit.jsonl").read_text().splitlines())
    (abort,) = [line for line in lines if (line["what"], line["result"]) == ("abort", "done")]
    assert abort["reason"].startswith("superseded by digits-")
    assert steps(folder) == ["began", "quantized", "judged", "superseded", "named", "begun"]
    assert "second" in read_deployment(folder / "deploy.yaml").models["digits"].variants


def test_what_was_promoted_is_what_is_made_anew_and_the_primary_then(folder: Path, digits: Digits) -> None:
    with live(folder / "deploy.yaml") as gateway:
        wait_for(lambda: is_in(gateway, "shadow"))
        assert ordered(gateway, "promote", "digits")[0] == 200
        assert refreshed(folder, gateway) == 0
        assert is_in(gateway, "shadow", "digits-")
        assert {classify(gateway, image)[1] for image in digits.images[:5]} == {"second"}
    text = (folder / "deploy.yaml").read_text()
    assert "primary: second   # of March" in text
    assert steps(folder) == ["began", "quantized", "judged", "named", "begun"]


def test_two_at_once_are_one_too_many(folder: Path) -> None:
    where = folder / "deploy.record.refresh"
    where.mkdir()
    with WriterLock(where / "digits.lock", 0.0), pytest.raises(EngineError, match="is refreshing digits"):
        refresh(folder / "deploy.yaml", "digits", who="ann")
    assert steps(folder) == []


def test_what_waits_is_kept_and_a_file_of_another_kind_is_named(folder: Path) -> None:
    found = refresh(folder / "deploy.yaml", "digits", who="ann", calibration=folder / "calibration.npz")
    assert found == Waits("digits", "second", "created")
    record = folder / "deploy.record.db"
    entry = read_queued(record, "digits")
    assert entry is not None
    assert (entry.who, entry.calibration) == ("ann", str(folder / "calibration.npz"))
    put_queued(record, "digits", Queued("second", "bob", entry.at))
    assert read_queued(record, "digits") == Queued("second", "bob", entry.at)
    path = folder / "deploy.record.refresh" / "digits" / "queued.json"
    for text in ("[]", "{", '{"who": "x"}', path.read_text().replace("queued-refresh/1", "queued-refresh/9")):
        path.write_text(text)
        with pytest.raises(FormatError):
            read_queued(record, "digits")

"""Drift of what comes in, against calibration data or what came first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.deploy.gateway.recording.test_recorder import Clock

from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.deploy.alerting.plan import MonitorPlan
from tersor.deploy.gateway.recording.drifting import Drifting
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.recording.samples import FIRST, Reference, reference_of_file
from tersor.deploy.gateway.recording.store import Store


def _ask(recorder: Recorder, seed: int, count: int, letter: str = "a") -> None:
    for size in np.random.default_rng(seed).integers(20, 200, count):
        recorder.asked("m", {"body": {"prompt": f"{letter * int(size)} 12."}}, b"")


def test_the_first_requests_are_usual_and_a_restart_keeps_that(tmp_path: Path) -> None:
    recorder, store = Recorder(Clock()), Store(tmp_path / "r.db")
    drifting = Drifting.of(MonitorPlan({}), recorder, store)
    _ask(recorder, 0, FIRST - 1)
    assert not drifting.look(store)
    _ask(recorder, 1, 1)
    assert not drifting.look(store)  # now it knows
    drifting = Drifting.of(MonitorPlan({}), recorder, store)
    _ask(recorder, 2, 300)
    assert drifting.look(store)["input", "m", ""].drifted == ()
    assert drifting.flag("input", "m", "") == 0.0
    _ask(recorder, 3, 300, "7")
    assert "digits" in drifting.look(store)["input", "m", ""].drifted
    _ask(recorder, 4, 49)
    assert not drifting.look(store), "too few to tell"
    kept = store.reference("reference input/m")
    assert kept is not None
    assert kept.source == f"the first {FIRST} requests"
    store.close()


def test_calibration_data_are_the_reference_where_they_are_named(tmp_path: Path) -> None:
    text = tmp_path / "c.txt"
    sizes = np.random.default_rng(5).integers(20, 200, 400)
    text.write_text("\n".join(f"{'a' * int(size)} 12." for size in sizes))
    recorder, store = Recorder(Clock()), Store(tmp_path / "r.db")
    drifting = Drifting.of(MonitorPlan({"m": str(text)}), recorder, store)
    _ask(recorder, 6, 200)
    assert drifting.look(store)["input", "m", ""].drifted == ()
    _ask(recorder, 7, 200, "é")
    assert "other bytes" in drifting.look(store)["input", "m", ""].drifted
    store.close()


def test_arrays_are_calibration_data_by_row(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32))
    reference = reference_of_file(tmp_path / "c.npz")
    assert list(reference.features) == ["x[0]", "x[1]", "x[2]"]
    assert Reference.of(reference.to_object()) == reference


def test_what_is_no_calibration_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        reference_of_file(tmp_path / "none.txt")
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(SchemeError, match="2 examples"):
        reference_of_file(tmp_path / "few.txt")
    (tmp_path / "odd.npz").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(FormatError):
        reference_of_file(tmp_path / "odd.npz")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}] * 60), allow_pickle=True)
    with pytest.raises(FormatError):
        reference_of_file(tmp_path / "objects.npy")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\n" * 100)
    with pytest.raises(FormatError):
        reference_of_file(tmp_path / "bytes.txt")

"""Brighter images leave the ranges of a real net on integers, layer by layer, and somebody says so."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from tersor.deploy.gateway.recording.store import read_happenings

from ..conftest import live
from .conftest import YAML, Digits, classify
from .figures import metric, wait_for

WATCHED = YAML + "monitor: {clipping: 100, drift_every_s: 2, alarms: 1000, references: {digits: labelled.npz}}\n"
# A look every 2 s with one false alarm in 30 days would take p-values of millions of draws: many alarms are accepted.
CLIPPED = "tersor_clipped_activations_ratio"
HERE = {"model": "digits", "variant": "int8"}


def test_activations_beyond_their_ranges_are_told_by_layer_and_are_drift(digits: Digits, tmp_path: Path) -> None:
    for file in digits.folder.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "deploy.yaml").write_text(WATCHED)
    images = itertools.cycle(digits.images)
    with live(tmp_path / "deploy.yaml") as gateway:

        def asked(brightness: float) -> float | None:
            for image in itertools.islice(images, 60):
                classify(gateway, image * brightness)
            return metric(gateway, "tersor_drift_alarm", side="activations", **HERE)

        wait_for(lambda: asked(1.0) is not None)
        assert metric(gateway, "tersor_drift_alarm", side="activations", **HERE) == 0
        usual = metric(gateway, CLIPPED, **HERE)
        assert usual is not None
        assert usual < 0.02
        wait_for(lambda: asked(3.0) == 1)
        # The alarm may come while most of what was looked at is as it was.
        wait_for(lambda: bool(asked(3.0)) and (metric(gateway, CLIPPED, layer="x", **HERE) or 0) > 0.2)
        wait_for(lambda: metric(gateway, "tersor_alerts_firing", alert="InputDrift", model="digits") == 1)
    rows = [row for row in read_happenings(tmp_path / "deploy.record.db") if row.what == "activations clipped"]
    assert "x" in rows[-1].details["drifted"]
    assert rows[-1].details["layers"]["x"]["share"] > rows[-1].details["layers"]["x"]["expected"]
    refreshes = [row for row in read_happenings(tmp_path / "deploy.record.db") if row.what == "refresh wanted"]
    assert refreshes

"""The record of an hour that a gateway goes on with."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from tersor.deploy.gateway.recording.incidents import DRIFT
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.recording.store import Store


def an_hour_before(path: Path, model: str) -> None:
    """Write answers, comparisons, labels, memory and a window that drifted; nothing that any alert is about."""
    clock, rng = [time.time() - 3540.0], np.random.default_rng(0)
    store, recorder = Store(path), Recorder(lambda: clock[0])
    for minute in range(58):
        for variant, least in (("quantized", 0.05), ("full", 0.1)):
            for seconds in rng.lognormal(0, 0.3, 6) * least:
                recorder.answered(model, variant, float(seconds) / 3, float(seconds), 8)
            recorder.labelled(model, variant, is_right=minute != 9)
            recorder.holds(model, variant, 100 << 20)
        recorder.compared(model, "quantized", agreed=minute != 19)
        clock[0] += 60
    store.save(recorder)
    far = {"js": 0.4, "psi": 3.0, "ks": 0.6, "p_value": 1e-4, "outside": 0.6}
    row = {"at": time.time() - 900, "side": "input", "model": model, "variant": "", "requests": 200}
    store.put(DRIFT, [{**row, "drifted": ["digits"], "features": {"digits": far}}])
    store.close()

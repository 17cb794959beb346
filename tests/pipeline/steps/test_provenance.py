"""What the Card says of the run itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tersor.pipeline.steps.provenance import peak_memory_bytes

SHOW = "from tersor.pipeline.steps.provenance import peak_memory_bytes; print(peak_memory_bytes())"


@pytest.mark.skipif(sys.platform != "linux", reason="the other systems have no /proc")
def test_the_peak_of_a_child_does_not_count_its_parent() -> None:
    held = np.ones(600 << 20, np.uint8)
    own = peak_memory_bytes()
    child = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert own is not None
    assert own > held.nbytes
    assert int(child.stdout) < 300 << 20

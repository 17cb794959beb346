"""Programs for phones on AArch64, emulated: ExecuTorch's runtime and XNNPACK there say what they say here."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tersor.engines.executorch.program import Program, has_executorch
from tersor.graph.net import Net
from tersor.pipeline.nets.mobile.fitting import quantize_for_phone
from tersor.pipeline.nets.quantizing import NetHow

ROOT = Path(__file__).parents[4]
VARIABLE = "TERSOR_EXECUTORCH_AARCH64"
WHEEL = Path(os.environ.get(VARIABLE, ""))
PROCESSORS = ("cortex-a53", "cortex-a76", "max,sme=off")
"""With SME, which qemu 7.2 was the first to emulate, outputs are wrong: docs/log.md."""
GOLDEN = json.loads((ROOT / "tests/files/golden_program.json").read_text())


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_pte_on_arm", ROOT / "tools/run_pte_on_arm.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(TOOL.COMPILER) is None or shutil.which(TOOL.EMULATOR) is None,
        reason="no compiler or emulator for AArch64: apt install g++-aarch64-linux-gnu qemu-user-static",
    ),
    pytest.mark.skipif(
        not WHEEL.is_file(), reason=f"{VARIABLE} names no wheel of executorch for AArch64 (tools/run_pte_on_arm.py)"
    ),
]


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs programs on AArch64."""
    made: Path = TOOL.build(WHEEL, tmp_path_factory.mktemp("arm"))
    return made


def test_a_program_of_an_earlier_day_answers_as_on_the_processor_here(arm: Path, tmp_path: Path) -> None:
    path = tmp_path / "sums.pte"
    path.write_bytes(base64.b64decode(GOLDEN["program"]))
    (made,) = TOOL.run(arm, path, [np.array(GOLDEN["input"], np.float32)])
    assert made.shape == np.array(GOLDEN["output"]).shape
    np.testing.assert_allclose(made, GOLDEN["output"], rtol=1e-6)
    with pytest.raises(RuntimeError, match="does not run"):
        TOOL.run(arm, path, [np.ones((1, 2, 9), np.float32)])
    path.write_bytes(b"no program")
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        TOOL.run(arm, path, [np.ones((1, 3), np.float32)])


@pytest.mark.skipif(not has_executorch(), reason="programs for phones: pip install 'tersor[mobile]'")
@pytest.mark.parametrize("spelled", ["fp32", "int8"])
def test_a_quantized_net_answers_with_the_same_codes(
    arm: Path, convolution: Path, tmp_path: Path, spelled: str
) -> None:
    """Kernels differ: plain NEON, products of four bytes, products of matrices of bytes. Integers do not."""
    images = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    path = tmp_path / "net.pte"
    quantize_for_phone(Net.open(convolution), spelled, NetHow([images], threads=1)).save(path)
    with Program(path, threads=1) as program:
        (wanted,) = program.run([images])
    for processor in PROCESSORS:
        made = np.concatenate([TOOL.run(arm, path, [image[None]], processor=processor)[0] for image in images])
        assert made.shape == wanted.shape
        if spelled == "int8":
            np.testing.assert_array_equal(made, wanted, err_msg=processor)
        else:
            np.testing.assert_allclose(made, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=processor)

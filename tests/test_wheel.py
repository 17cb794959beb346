"""What users install: the built wheel is complete, and works without torch and without the repository."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

WITHOUT_TORCH = """
import sys
sys.path += {paths!r}
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them fails, as if they were not there
from tersor.cli.main import main
from tersor.kernels.codec import backend
from tersor.reference_model import PATH
print(PATH, backend())
sys.exit(main(["quantize", str(PATH), "-o", "model.gguf", "--format", "q4_k_m"]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree with the build tools of this environment."""
    pytest.importorskip("scikit_build_core", reason="building needs scikit-build-core and nanobind")
    pytest.importorskip("nanobind")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    command += [f"--config-settings=build-dir={folder / 'build'}", "--wheel-dir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_what_is_needed_and_no_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("tersor/py.typed", "tersor/cli/main.py", "tersor/kernels/reference/__init__.py"):
        assert needed in names
    model = {path.name for path in (ROOT / "src/tersor/reference_model").iterdir() if path.is_file()}
    assert {f"tersor/reference_model/{name}" for name in model} <= set(names)
    static = "tersor/deploy/gateway/dashboard/static"
    assert {f"{static}/{path.name}" for path in (ROOT / "src" / static).iterdir()} <= set(names)
    assert [name for name in names if name.endswith((".cpp", ".h", ".hpp", ".pyc"))] == []
    assert len([name for name in names if name.startswith("tersor/kernels/_native.")]) >= 1
    assert {name.split("/")[0] for name in names} == {"tersor", f"tersor-{wheel.name.split('-')[1]}.dist-info"}
    licences = [name.rpartition("/")[2] for name in names if "/licenses/" in name]
    assert sorted(licences) == ["LICENSE", "NOTICE"]


def test_the_wheel_quantizes_without_torch_and_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    paths = [str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    program = WITHOUT_TORCH.format(paths=paths)
    # -S leaves out the hooks of editable installations, so that this tree cannot stand in for the wheel.
    command = [sys.executable, "-I", "-S", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{installed}/tersor/reference_model native (")
    assert (tmp_path / "model.gguf").stat().st_size > 2_000_000
    assert (tmp_path / "model.card.md").is_file()

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tersor import reference_model
from tersor.core.errors import FormatError, MissingError
from tersor.models import load


def test_a_source_that_is_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nothing: no such file or folder, and not of the form org/name"):
        load(tmp_path / "nothing")


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    with pytest.raises(FormatError, match=r"\.onnx suffix; models are"):
        load(tmp_path / "x.onnx")


def test_a_folder_with_several_ggufs_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(MissingError, match=r"2 GGUF models \(a\.gguf, b\.gguf\); name the file"):
        load(tmp_path)


def test_a_file_with_of_in_its_name_is_no_shard(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(reference_model.PATH, folder, ignore=shutil.ignore_patterns("__pycache__"))
    other = folder / "best-of-breed.safetensors"
    shutil.copyfile(folder / "model.safetensors", other)
    assert other in load(other).files
    assert folder / "model.safetensors" not in load(other).files
    shard = folder / "model-00001-of-00002.safetensors"
    shutil.copyfile(folder / "model.safetensors", shard)
    with pytest.raises(MissingError, match=r"of-00002\.safetensors: one of several.* made up of model\.safetensors"):
        load(shard)


def test_a_gguf_with_of_in_its_name_is_a_whole_one(tmp_path: Path) -> None:
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "best-of-breed.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(MissingError, match=r"2 GGUF models \(a-00001-of-00002\.gguf, best-of-breed\.gguf\); name"):
        load(tmp_path)


def test_importing_and_refusing_load_neither_torch_nor_the_hub() -> None:
    script = "import sys, tersor.models; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tersor.core.errors import MissingError
from tersor.models import load
from tersor.models.hub import fetch, looks_like_id

hub: Any = pytest.importorskip("huggingface_hub")
SAFETENSORS = ["model*.safetensors", "model*.safetensors.index.json"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", True), ("org/name-1.5B_x@refs/pr/1", True), ("name", False), ("/org/name", False),
        ("./org/name", False), ("a/b/c", False), ("org/na me", False), ("", False),
    ],
)  # fmt: skip
def test_only_org_slash_name_looks_like_an_id(source: str, expected: bool) -> None:
    assert looks_like_id(source) is expected


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty cache folder that the hub's client is bound to, without network."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_and_not_cached_says_so(offline: Path) -> None:
    with pytest.raises(
        MissingError, match=r"org/name: neither a local file or folder nor in the hub's cache, and the hub"
    ):
        load("org/name")


def test_offline_but_cached_is_taken_from_the_cache(offline: Path) -> None:
    repository = offline / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    (repository / "snapshots" / "0123").mkdir(parents=True)
    assert fetch("org/name") == repository / "snapshots" / "0123"


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], SAFETENSORS),
        (["consolidated.safetensors", "model-00001-of-00002.safetensors"], SAFETENSORS),
        (["pytorch_model-1.bin"], ["pytorch_model*.bin", "pytorch_model*.bin.index.json"]),
        (["x.gguf", "sub/model.safetensors"], ["*.gguf"]),
    ],
)  # fmt: skip
def test_one_complete_set_of_weights_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], weights: list[str]
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert fetch("org/name@v2") == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/name", "v2")
    assert asked["allow_patterns"][-len(weights) :] == weights
    assert asked["ignore_patterns"] == ["*/*"]

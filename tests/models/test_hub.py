from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersor import reference_model
from tersor.core.errors import MissingError
from tersor.models import load
from tersor.models.hub import fetch, looks_like_id
from tersor.models.outline import look
from tersor.pipeline.targets.estimate import estimate

hub: Any = pytest.importorskip("huggingface_hub")
SAFETENSORS = ["model*.safetensors", "model*.safetensors.index.json"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", True), ("org/name-1.5B_x@refs/pr/1", True), ("name", False), ("/org/name", False),
        ("./org/name", False), ("a/b/c", False), ("org/na me", False), ("", False),
        ("org/name/m-q4_0.gguf", True), ("org/name@v2/m.gguf", True), ("org/name/sub/m.gguf", False),
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
        (["x.gguf", "sub/model.safetensors"], ["x.gguf"]),
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


@pytest.fixture
def stocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives the hub one repository, and the list of what is fetched from it."""

    def stock(**files: bytes) -> list[str]:
        fetched: list[str] = []
        names = {name.replace("__", "-").replace("_dot_", "."): data for name, data in files.items()}

        def download(_: str, *, allow_patterns: list[str], **__: Any) -> str:
            for name, data in names.items():
                if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                    fetched.append(name)
                    (tmp_path / name).write_bytes(data)
            return str(tmp_path)

        monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda *_, **__: list(names))
        monkeypatch.setattr(hub, "snapshot_download", download)
        return fetched

    return stock


CONFIG = (reference_model.PATH / "config.json").read_bytes()


def test_shapes_and_plans_need_no_weight_of_the_hub(stocked: Callable[..., list[str]]) -> None:
    fetched = stocked(config_dot_json=CONFIG, model_dot_safetensors=b"never asked for", tokenizer_dot_json=b"{}")
    found = look("org/name")
    assert sorted(fetched) == ["config.json", "tokenizer.json"]
    assert found.name == "name"
    assert [(t.name, t.shape) for t in found.tensors] == [(t.name, t.shape) for t in load(reference_model.PATH).tensors]
    assert estimate("org/name", target="h100").amount("weights_bytes") is not None
    assert "model.safetensors" not in fetched


def test_one_of_several_ggufs_is_asked_for_before_any_is_fetched(stocked: Callable[..., list[str]]) -> None:
    parts = {f"big__0000{number}__of__00002_dot_gguf": b"x" for number in (1, 2)}
    fetched = stocked(**parts, small_dot_gguf=b"y")
    for seek in (load, look):
        with pytest.raises(MissingError, match=r"org/name: 2 GGUF models \(big-00001-of-00002\.gguf, small\.gguf\)"):
            seek("org/name")
    assert fetched == []
    assert fetch("org/name/small.gguf").name == "small.gguf"
    assert fetched == ["small.gguf"]
    assert fetch("org/name/big-00001-of-00002.gguf").name == "big-00001-of-00002.gguf"
    assert fetched == ["small.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]
    with pytest.raises(MissingError, match=r"org/name has no file other\.gguf"):
        fetch("org/name/other.gguf")


def test_a_gguf_of_the_hub_is_loaded_by_its_name(stocked: Callable[..., list[str]], tiny_gguf: Any) -> None:
    stocked(a_dot_gguf=tiny_gguf(1).read_bytes(), b_dot_gguf=b"another")
    for seek in (load, look):
        assert seek("org/name/a.gguf").files[0].name == "a.gguf"

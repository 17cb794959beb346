"""Files of artefacts: which belong to one, which may not lie where they lie, and which are not what they were."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

import tersor
from tersor import reference_model
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.deploy.registry import manifest
from tersor.deploy.registry.registry import Registry


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    path = folder / "llama"
    (path / "deep").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "deep/tokens"):
        (path / name).write_bytes(name.encode())
    return path


def test_a_manifest_lists_every_file_with_its_hash(registry: Registry, checkpoint: Path) -> None:
    (checkpoint / "llama.card.json").write_bytes(b"")  # its Card grows, and is no part of it
    (checkpoint / "llama.card.json").unlink()
    row = registry.add_artefact("llama", checkpoint, who="ann")
    assert row.kind == "checkpoint"
    assert [(file.path, file.nbytes) for file in row.files] == [
        ("config.json", 11), ("deep/tokens", 11), ("model.safetensors", 17),
    ]  # fmt: skip
    lines = ""
    for file in row.files:
        assert file.sha256 == hashlib.sha256((checkpoint / file.path).read_bytes()).hexdigest()
        lines += f"{file.sha256}  {file.path}\n"
    assert row.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert row.nbytes == 39
    assert registry.path("llama") == checkpoint
    assert registry.verify("llama") == ()


def test_verify_names_each_file_that_differs_and_how(registry: Registry, checkpoint: Path) -> None:
    registry.add_artefact("llama", checkpoint, who="ann")
    (checkpoint / "model.safetensors").write_bytes(b"model.safetensorz")
    (checkpoint / "config.json").write_bytes(b"{}")
    (checkpoint / "deep" / "tokens").unlink()
    (checkpoint / "modeling.py").touch()
    assert [(found.path, found.problem) for found in registry.verify("llama")] == [
        ("config.json", "has 2 bytes, 11 were registered"),
        ("deep/tokens", "is missing"),
        ("model.safetensors", "has other content: its SHA-256 is another"),
        ("modeling.py", "was not there when the artefact was registered"),
    ]


def test_verify_of_what_is_gone_is_no_crash(registry: Registry, folder: Path) -> None:
    (folder / "q4.gguf").unlink()
    (found,) = registry.verify("q4")
    assert found.path == "q4.gguf"
    assert "cannot be followed" in found.problem


def test_all_parts_of_a_split_file_belong_to_it(registry: Registry, folder: Path) -> None:
    names = [f"m-{index:05d}-of-00003.gguf" for index in (1, 2, 3)]
    for name in names:
        (folder / name).write_bytes(b"GGUF" + name.encode())
    row = registry.add_artefact("m", folder / names[1], who="ann")
    assert [file.path for file in row.files] == names
    (folder / names[2]).write_bytes(b"GGUF")
    assert [found.path for found in registry.verify("m")] == [names[2]]
    (folder / names[2]).unlink()
    assert "parts are missing" in registry.verify("m")[0].problem


def test_weights_beside_a_net_belong_to_it(registry: Registry, folder: Path) -> None:
    for name in ("net.onnx", "net.onnx.data", "other.data"):
        (folder / name).write_bytes(b"x")
    row = registry.add_artefact("net", folder / "net.onnx", who="ann")
    assert (row.kind, [file.path for file in row.files]) == ("onnx", ["net.onnx", "net.onnx.data"])


@pytest.mark.parametrize(("name", "kind"), [("a.pt", "torch"), ("a.PTH", "torch"), ("a.safetensors", "torch")])
def test_the_kind_is_told_by_the_name(registry: Registry, folder: Path, name: str, kind: str) -> None:
    (folder / name).write_bytes(b"x")
    assert registry.add_artefact("a", folder / name, who="ann").kind == kind


def test_a_kind_that_nothing_tells_must_be_given(registry: Registry, folder: Path) -> None:
    (folder / "thing").mkdir()
    (folder / "thing" / "x").touch()
    (folder / "thing.xyz").touch()
    for path in ("thing", "thing.xyz"):
        with pytest.raises(SchemeError, match="kind"):
            registry.add_artefact("a", folder / path, who="ann")
    with pytest.raises(SchemeError, match="'magic' is no kind of artefact; there are gguf, checkpoint, onnx, torch"):
        registry.add_artefact("a", folder / "thing", kind="magic", who="ann")
    assert registry.add_artefact("a", folder / "thing", kind="torch", who="ann").kind == "torch"


def test_a_path_outside_the_folder_is_refused_unless_it_is_meant(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "away.gguf"
    outside.write_bytes(b"GGUF away")
    for path in (outside, folder / ".." / "away.gguf"):
        with pytest.raises(SchemeError, match="lies outside the folder of the registry"):
            registry.add_artefact("away", path, who="ann")
    row = registry.add_artefact("away", folder / ".." / "away.gguf", is_absolute=True, who="ann")
    assert (row.path, row.is_absolute) == (str(outside.resolve()), 1)
    assert registry.path("away") == outside.resolve()
    assert registry.verify("away") == ()
    outside.write_bytes(b"GGUF awax")
    assert len(registry.verify("away")) == 1


def test_a_link_that_leaves_the_folder_is_refused(registry: Registry, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "away.gguf"
    outside.write_bytes(b"GGUF away")
    (folder / "link.gguf").symlink_to(outside)
    (folder / "inner").symlink_to(tmp_path)
    for path in ("link.gguf", "inner/away.gguf"):
        with pytest.raises(SchemeError, match="outside the folder of the registry"):
            registry.add_artefact("link", folder / path, who="ann")


def test_a_link_within_the_folder_is_followed(registry: Registry, folder: Path) -> None:
    (folder / "link.gguf").symlink_to("q4.gguf")
    row = registry.add_artefact("link", folder / "link.gguf", who="ann")
    assert (row.path, row.sha256 != "", row.nbytes) == ("link.gguf", True, 204)


def test_a_file_in_a_folder_that_leads_outside_is_refused(registry: Registry, checkpoint: Path, tmp_path: Path) -> None:
    registry.add_artefact("llama", checkpoint, who="ann")
    secret = tmp_path / "secret"
    secret.write_bytes((checkpoint / "model.safetensors").read_bytes())
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").symlink_to(secret)
    with pytest.raises(SchemeError, match="outside the folder of the registry"):
        registry.add_artefact("llama", checkpoint, who="ann")
    assert "outside the folder" in registry.verify("llama")[0].problem


def test_links_in_circles_and_to_folders_are_refused(registry: Registry, checkpoint: Path) -> None:
    (checkpoint / "loop").symlink_to("loop")
    with pytest.raises(MissingError, match="loop: cannot be followed"):
        registry.add_artefact("llama", checkpoint, who="ann")
    (checkpoint / "loop").unlink()
    (checkpoint / "loop").symlink_to(checkpoint)
    with pytest.raises(FormatError, match="a link to a folder"):
        registry.add_artefact("llama", checkpoint, who="ann")


def test_a_pipe_is_refused_at_once(registry: Registry, checkpoint: Path) -> None:
    os.mkfifo(checkpoint / "pipe")
    begun = time.monotonic()
    with pytest.raises(FormatError, match="pipe: not a plain file"):
        registry.add_artefact("llama", checkpoint, who="ann")
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("name", [b"\xff\xfe", b"new\nline", b"\x1b[2J"])
def test_names_of_files_that_are_no_text_are_refused(registry: Registry, checkpoint: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(checkpoint) + b"/" + name)).touch()
    with pytest.raises(FormatError, match="a name of a file must be printable text"):
        registry.add_artefact("llama", checkpoint, who="ann")


def test_more_files_than_an_artefact_has_are_refused(
    registry: Registry, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_FILES", 3)
    with pytest.raises(FormatError, match="more than 3 files"):
        registry.add_artefact("llama", checkpoint, who="ann")
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "MAX_DEPTH", 0)
    with pytest.raises(FormatError, match="or 0 folders deep"):
        registry.add_artefact("llama", checkpoint, who="ann")


def test_nothing_and_the_wrong_thing_are_refused(registry: Registry, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "fake.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(MissingError, match=r"nothing.gguf: cannot be followed"):
        registry.add_artefact("a", folder / "nothing.gguf", who="ann")
    with pytest.raises(MissingError, match="an empty folder is no artefact"):
        registry.add_artefact("a", folder / "empty", kind="torch", who="ann")
    with pytest.raises(FormatError, match="not a GGUF"):
        registry.add_artefact("a", folder / "fake.gguf", who="ann")
    with pytest.raises(SchemeError, match="no path below the folder"):
        registry.add_artefact("a", folder, kind="torch", who="ann")


def test_a_file_that_is_being_written_is_refused(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = hashlib.file_digest

    def growing(*arguments: object) -> object:
        with (folder / "q4.gguf").open("ab") as file:
            file.write(b"more")
        return plain(*arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(hashlib, "file_digest", growing)
    with pytest.raises(FormatError, match="was written while it was read"):
        registry.add_artefact("q4", folder / "q4.gguf", who="ann")


@pytest.fixture
def made(folder: Path) -> Path:
    """A real artefact with its Card."""
    tersor.quantize(reference_model.PATH, "q8_0", output=folder / "small.gguf", search="ggml")
    return folder / "small.gguf"


def test_the_card_beside_an_artefact_is_kept_as_it_was(registry: Registry, made: Path) -> None:
    row = registry.add_artefact("small", made, who="ann", baseline="full")
    assert [file.path for file in row.files] == ["small.gguf"]
    beside = made.with_name("small.card.json")
    text = beside.read_text(encoding="utf-8")
    beside.unlink()
    card = registry.card("small")
    assert card is not None
    assert card.to_json() == text
    assert registry.card("full") is None
    assert registry.verify("small") == ()


def test_what_its_card_says_is_quantized_is_no_full_precision(registry: Registry, folder: Path, made: Path) -> None:
    with pytest.raises(SchemeError, match=r"small\.gguf has \d+\.\d+ bits per weight by its Card: name what it is"):
        registry.add_artefact("small", made, who="ann")
    tersor.quantize(reference_model.PATH, "f16", output=folder / "whole.gguf")
    assert registry.objection(registry.add_artefact("whole", folder / "whole.gguf", who="ann").label) is None


def test_the_card_of_another_file_is_refused(registry: Registry, made: Path) -> None:
    made.write_bytes(made.read_bytes() + b"\0")
    with pytest.raises(FormatError, match=r"the Card of another small.gguf"):
        registry.add_artefact("small", made, who="ann")


def test_the_card_in_a_folder_is_no_part_of_the_artefact(registry: Registry, checkpoint: Path, made: Path) -> None:
    document = json.loads(made.with_name("small.card.json").read_bytes())
    document["artefacts"] = []
    (checkpoint / "llama.card.json").write_text(json.dumps(document))
    row = registry.add_artefact("llama", checkpoint, who="ann", baseline="full")
    assert "llama.card.json" not in {file.path for file in row.files}
    assert registry.card("llama") is not None
    (checkpoint / "llama.card.json").write_text(json.dumps({**document, "notes": ["evaluated since"]}))
    assert registry.verify("llama") == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a JSON document"), (b"{", "not a JSON document"), (b"[" * 200_000, "not a JSON document"),
        (b"\xff\xfe", "not a text file"), (b"[1]", "an object is needed"), (b'{"schema": "x"}', "schema 'x'"),
        (b" " * (manifest.MAX_CARD_BYTES + 1), "no Card is that large"), (b'{"name": NaN}', "NaN is no JSON number"),
    ],
)  # fmt: skip
def test_a_broken_card_is_refused(registry: Registry, folder: Path, content: bytes, problem: str) -> None:
    (folder / "q4.card.json").write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(FormatError, match=problem):
        registry.add_artefact("q5", folder / "q4.gguf", who="ann")
    assert time.monotonic() - begun < 60
    assert len(registry.artefacts()) == 3

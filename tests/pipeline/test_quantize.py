"""One call from model to file: bytes, card, refusals, and nothing half done."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tersor import load, reference_model
from tersor.core.card import Card
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.core.metadata import MetadataEntry
from tersor.files.gguf import GgufFile, check
from tersor.formats import FORMATS
from tersor.pipeline import quantize as module
from tersor.pipeline.quantize import squared_error

from .conftest import Held, MakeModel, held_tensor

quantize = functools.partial(module.quantize, search="ggml")
"""The search is not the subject here, and this one is in the reference kernels too."""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_every_tensor_is_encoded_as_planned(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    card = quantize(model, "q4_0", tmp_path / "m.gguf", tensor_formats=("attn_k=f16",))
    assert check(tmp_path / "m.gguf") == []
    with GgufFile(tmp_path / "m.gguf") as file:
        for source, planned in zip(model.tensors, card.plan.tensors, strict=True):
            number_format = FORMATS[planned.format]
            assert file.tensors[source.name].shape == source.shape
            assert file.tensors[source.name].ggml_type == number_format.ggml_type
            expected = number_format.encode(source.read(0, source.rows), search="ggml")
            np.testing.assert_array_equal(file.read_bytes(source.name), expected, err_msg=source.name)
    assert {tensor.format for tensor in card.plan.tensors} == {"q4_0", "f16", "q6_k", "f32"}


def test_the_file_tells_where_it_came_from(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    card = quantize(model, "q8_0", tmp_path / "m.gguf")
    digest = hashlib.sha256(model.files[0].read_bytes()).hexdigest()
    with GgufFile(tmp_path / "m.gguf") as file:
        assert file.entries["general.file_type"] == MetadataEntry(7, "u32")
        assert file.entries["general.quantization_version"] == MetadataEntry(2, "u32")
        assert next(iter(file.metadata)) == "general.architecture"
        assert file.metadata["general.name"] == "tiny"
        assert str(file.metadata["general.quantized_by"]).startswith("tersor ")
        assert file.metadata["llama.block_count"] == 2
        assert json.loads(str(file.metadata["tersor.source.sha256"])) == {"model.safetensors": digest}
        assert json.loads(str(file.metadata["tersor.recipe"]))["format"] == "q8_0"
    assert card.sources == {"model.safetensors": digest}


def test_names_that_are_no_unicode_are_written_with_a_mark_in_their_place(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(reference_model.PATH, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "model.safetensors").rename(folder / os.fsdecode(b"\xe9.safetensors"))
    output = tmp_path / os.fsdecode(b"\xe9.gguf")
    card = quantize(load(folder), "q8_0", output)
    metadata = GgufFile(output).metadata
    assert metadata["general.name"] == card.name == "caf\ufffd"
    assert metadata["tersor.source.sha256"] == json.dumps(dict(sorted(card.sources.items())))
    assert "\ufffd.safetensors" in card.sources


def test_the_card_lies_beside_the_file_and_agrees_with_it(make_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    card = quantize(make_model(), "q8_0", path, command="tersor quantize tiny -o m.gguf --format q8_0")
    assert names_in(tmp_path) == ["m.card.html", "m.card.json", "m.card.md", "m.gguf"]
    assert Card.from_json((tmp_path / "m.card.json").read_text(encoding="utf-8")) == card
    assert (tmp_path / "m.card.md").read_text(encoding="utf-8") == card.to_markdown()
    (artefact,) = card.artefacts
    assert artefact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert artefact.nbytes == path.stat().st_size
    assert card.source_bytes == 63_000
    assert card.seconds.total >= max(card.seconds.reading, card.seconds.encoding) > 0
    assert card.peak_memory_bytes is None or card.peak_memory_bytes > 2**20
    assert set(card.versions) == {"tersor", "python", "numpy", "gguf", "kernels"}
    assert str(tmp_path) not in card.to_json()


def test_the_error_of_a_tensor_is_what_its_bytes_decode_to(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    card = quantize(model, "q4_0", tmp_path / "m.gguf")
    errors = {row.name: row.relative for row in card.errors}
    with GgufFile(tmp_path / "m.gguf") as file:
        for source, planned in zip(model.tensors, card.plan.tensors, strict=True):
            x = source.read(0, source.rows).astype(np.float64)
            y = FORMATS[planned.format].decode(file.read_bytes(source.name), source.columns).astype(np.float64)
            assert errors[source.name] == pytest.approx(math.sqrt(((y - x) ** 2).sum() / (x**2).sum()), rel=1e-5)
    assert errors["blk.0.attn_norm.weight"] == 0.0
    assert 0.05 < (errors["blk.0.attn_q.weight"] or 0) < 0.15


def test_a_tensor_of_zeros_has_no_error(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model({"blk.0.attn_q.weight": np.zeros((12, 256), np.float32)})
    card = quantize(model, "q8_0", tmp_path / "m.gguf")
    assert {row.name: row.relative for row in card.errors}["blk.0.attn_q.weight"] == 0.0


def test_measuring_can_be_left_out(make_model: MakeModel, tmp_path: Path) -> None:
    card = quantize(make_model(), "q8_0", tmp_path / "m.gguf", measure=False)
    assert {row.relative for row in card.errors} == {None}
    assert card.mean_error is None


def test_the_same_model_gives_the_same_bytes(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the slice, the thread count and the name of the file."""
    first = quantize(make_model(), "q4_k_m", tmp_path / "a.gguf", threads=1)
    monkeypatch.setattr(module, "SLICE_WEIGHTS", 700)
    second = quantize(make_model(), "q4_k_m", tmp_path / "b.gguf", threads=2)
    assert first.artefacts[0].sha256 == second.artefacts[0].sha256
    for one, other in zip(first.errors, second.errors, strict=True):
        assert one.relative == pytest.approx(other.relative, rel=1e-6)


def test_weights_are_read_once_in_bounded_slices(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE_WEIGHTS", 1000)
    stacked = np.ones((3, 5, 256), np.float32)
    model = make_model({"blk.0.ffn_up_exps.weight": stacked})
    quantize(model, "q8_0", tmp_path / "m.gguf")
    for tensor in model.tensors:
        assert isinstance(tensor.values, Held)
        step = max(1, 1000 // tensor.columns)
        rows = [row for start, stop in tensor.values.reads for row in range(start, stop)]
        assert rows == list(range(tensor.rows))
        assert all(stop - start <= step for start, stop in tensor.values.reads)
    experts = next(tensor for tensor in model.tensors if tensor.name.endswith("_exps.weight"))
    assert isinstance(experts.values, Held)
    assert experts.values.reads == [(0, 3), (3, 5), (5, 8), (8, 10), (10, 13), (13, 15)]


def test_each_expert_is_rounded_with_its_own_importance(make_model: MakeModel, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    stacked = generator.standard_normal((2, 4, 256), dtype=np.float32)
    importance = generator.random((2, 256), dtype=np.float32) ** 4 + 1e-3
    name = "blk.0.ffn_up_exps.weight"
    quantize(
        make_model({name: stacked}), "q4_k_pure", tmp_path / "m.gguf", importance={name: importance}, search="ggml"
    )
    encode = FORMATS["q4_k"].encode
    expected = [encode(stacked[i], importance=importance[i], search="ggml") for i in range(2)]
    with GgufFile(tmp_path / "m.gguf") as file:
        np.testing.assert_array_equal(file.read_bytes(name), np.concatenate(expected))
    assert not np.array_equal(expected[1], encode(stacked[1], importance=importance[0], search="ggml"))


def test_a_dry_run_knows_the_exact_size_and_touches_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(ff=344)
    card = quantize(model, "q4_k_m", tmp_path / "m.gguf", dry_run=True, split_max_tensors=6)
    assert names_in(tmp_path) == []
    assert all(isinstance(tensor.values, Held) and not tensor.values.reads for tensor in model.tensors)
    assert card.dry_run
    assert card.sources == {}
    assert len(card.plan.fallbacks) == 2
    real = quantize(model, "q4_k_m", tmp_path / "m.gguf", split_max_tensors=6)
    assert [(a.name, a.nbytes) for a in card.artefacts] == [(a.name, a.nbytes) for a in real.artefacts]
    assert len(real.artefacts) == 3


def test_progress_counts_every_byte(make_model: MakeModel, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    model = make_model()

    def note(tensor: str, done: int, total: int) -> None:
        seen.append((tensor, done, total))

    card = quantize(model, "q8_0", tmp_path / "m.gguf", progress=note)
    assert [name for name, _, _ in seen] == [tensor.name for tensor in model.tensors]
    assert seen[-1][1:] == (card.plan.nbytes, card.plan.nbytes)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_an_older_file_is_replaced_only_by_a_whole_one(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"older")
    broken = make_model({"blk.1.attn_v.weight": np.full((12, 256), np.nan, np.float32)})
    with pytest.raises(FormatError, match=r"^blk\.1\.attn_v\.weight \(12, 256\) as q8_0: .*nan"):
        quantize(broken, "q8_0", tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"older"
    assert names_in(tmp_path) == ["m.gguf"]
    quantize(make_model(), "q8_0", tmp_path / "m.gguf")
    assert check(tmp_path / "m.gguf") == []


def test_a_value_beyond_f16_names_tensor_and_remedy(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model({"blk.1.attn_v.weight": np.full((12, 256), 1e6, np.float32)})
    with pytest.raises(SchemeError, match=r"^blk\.1\.attn_v\.weight .* as f16: .*use bf16"):
        quantize(model, "f16", tmp_path / "m.gguf")


def test_a_reader_that_fails_is_reported_with_the_tensor(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(_self: Held, start: int, stop: int) -> None:
        raise FormatError("truncated: bytes 3 to 9 are needed")

    model = make_model()
    monkeypatch.setattr(Held, "read", torn)
    with pytest.raises(FormatError, match=r"^token_embd\.weight \(40, 256\) as q8_0: truncated"):
        quantize(model, "q8_0", tmp_path / "m.gguf")
    assert names_in(tmp_path) == []


def test_an_interrupt_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    def interrupt(tensor: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(make_model(), "q8_0", tmp_path / "m.gguf", progress=interrupt)
    assert names_in(tmp_path) == []


def test_a_missing_folder_is_refused_before_work(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no: no such folder; create it first"):
        quantize(make_model(), "q8_0", tmp_path / "no" / "m.gguf")


def test_a_pipe_or_a_broken_link_as_output_is_refused_and_left_alone(make_model: MakeModel, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("link")
    for odd in (pipe, link):
        with pytest.raises(SchemeError, match=f"{odd.name} exists and is no regular file"):
            quantize(make_model(), "q8_0", odd)
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_folder_as_output_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match=r"source is a folder; the output must be a file, for example .*model\.gguf"):
        quantize(make_model(), "q8_0", tmp_path / "source")


@pytest.mark.parametrize("name", ["m", "m.pte", "lm.onnx", "llama-3.1"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_name_that_nothing_would_open_is_refused(
    name: str, dry_run: bool, make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(SchemeError, match=rf"{name}: a language model is written as a GGUF, .* let it end in \.gguf"):
        quantize(make_model(), "q8_0", tmp_path / name, dry_run=dry_run)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_file_of_the_model_is_never_overwritten(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    (tmp_path / "link.gguf").symlink_to(model.files[0])
    for output in (model.files[0], tmp_path / "link.gguf"):
        with pytest.raises(SchemeError, match=r"is a file of the model itself; give another output"):
            quantize(model, "q8_0", output)


def test_a_full_disk_is_noticed_before_work(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    model = make_model()
    with pytest.raises(MissingError, match=r"the output takes [\d,]+ bytes, 1,000 are free; make room"):
        quantize(model, "q8_0", tmp_path / "m.gguf")
    assert all(isinstance(tensor.values, Held) and not tensor.values.reads for tensor in model.tensors)


def test_q2_k_s_without_importance_is_noted(make_model: MakeModel, tmp_path: Path) -> None:
    card = quantize(make_model(), "q2_k_s", tmp_path / "m.gguf", dry_run=True)
    assert any("importance matrix" in note for note in card.notes)


def test_a_gguf_as_source_keeps_its_keys_but_not_its_provenance(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.metadata["general.quantized_by"] = MetadataEntry("someone else", "str")
    model.metadata["general.license"] = MetadataEntry("mit", "str")
    model.metadata["tersor.recipe"] = MetadataEntry("old", "str")
    model.metadata["tersor.forgotten"] = MetadataEntry("old", "str")
    model.metadata["split.count"] = MetadataEntry(3, "u16")
    quantize(model, "f16", tmp_path / "m.gguf")
    with GgufFile(tmp_path / "m.gguf") as file:
        assert str(file.metadata["general.quantized_by"]).startswith("tersor ")
        assert file.metadata["general.license"] == "mit"
        assert "old" not in file.metadata.values()
    assert check(tmp_path / "m.gguf") == []


def test_measuring_agrees_with_the_definition_in_float64() -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((301, 4096), dtype=np.float32) * np.float32(1e-3)
    data = FORMATS["q8_0"].encode(weight, search="ggml")
    error, power = squared_error(weight, data, "q8_0")
    difference = FORMATS["q8_0"].decode(data, 4096).astype(np.float64) - weight
    assert error == pytest.approx((difference**2).sum(), rel=1e-5)
    assert power == pytest.approx((weight.astype(np.float64) ** 2).sum(), rel=1e-5)


def test_held_tensors_know_what_they_are() -> None:
    assert held_tensor("blk.1.attn_norm.weight", np.ones(4, np.float32)).must_be_f32

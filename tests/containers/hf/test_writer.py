from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.containers.hf.writer import write_checkpoint
from tersor.containers.lossless import gathered_codes
from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.core.tensor import QuantizedTensor
from tersor.files.checkpoint import Checkpoint, weight_files
from tersor.formats import get
from tersor.models import load
from tersor.models.quantized_checkpoint import open_quantized

torch = pytest.importorskip("torch", reason="the source is saved with torch: pip install 'tersor[torch]'")
safetensors = pytest.importorskip("safetensors.torch", reason="the source is saved with safetensors")

CASES = [
    ("gptq", "int4-g32-sym-bf16"),
    ("gptq", "int3-channel-sym-f16"),
    ("gptq", "int8-g32-sym-f16"),
    ("gptq_v2", "int4-g16-asym-f16"),
    ("gptq_v2", "int2-g32-asym-bf16"),
    ("awq", "int4-g32-asym-f16"),
    ("awq", "int4-g16-sym-bf16"),
    ("compressed-tensors", "int4-g32-sym-bf16"),
    ("compressed-tensors", "int4-g32-asym-f16"),
    ("compressed-tensors", "int2-channel-asym-f16"),
    ("compressed-tensors", "int8-g32-sym-f16"),
    ("compressed-tensors", "int8-channel-sym"),
    ("compressed-tensors", "fp8_e4m3"),
    ("compressed-tensors", "mxfp4"),
    ("compressed-tensors", "nvfp4"),
    ("compressed-tensors", "nvfp4-scale300.0"),
]


def expected(source: Path, name: str) -> dict[str, Any]:
    """The tensors of the source, its matrices rounded to the format and back, in float32."""
    fmt = get(name)
    made = {}
    for tensor, values in safetensors.load_file(source / "model.safetensors").items():
        weight = values.float().numpy()
        if tensor.endswith("proj.weight"):
            weight = fmt.decode(fmt.encode(weight), weight.shape[1])
        made[tensor] = weight
    return made


@pytest.mark.parametrize(("container", "name"), CASES)
def test_codes_and_untouched_tensors_are_read_back_as_they_were(
    write: Any, source: Path, container: str, name: str
) -> None:
    folder = write(container, name)
    wanted = expected(source, name)
    checkpoint = open_quantized(folder)
    assert set(checkpoint.tensors) == set(wanted)
    for tensor, weight in wanted.items():
        np.testing.assert_array_equal(checkpoint.read(tensor), weight)
        if tensor.endswith("proj.weight"):
            np.testing.assert_array_equal(checkpoint.read(tensor, 3, 11), weight[3:11])
            assert checkpoint.quantized(tensor).format.name == get(name).name
    checkpoint.close()
    stored, original = (safetensors.load_file(path / "model.safetensors") for path in (folder, source))
    for tensor in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert stored[tensor].dtype == original[tensor].dtype
        assert torch.equal(stored[tensor], original[tensor])
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
    }


@pytest.mark.parametrize(("container", "name"), [CASES[0], CASES[5], CASES[8]])
def test_a_quantized_folder_loads_as_the_model_with_its_weights_rounded(
    write: Any, source: Path, tmp_path: Path, container: str, name: str
) -> None:
    model = load(write(container, name))
    plain = tmp_path / "plain"
    plain.mkdir()
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in expected(source, name).items()}
    safetensors.save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    (plain / "config.json").write_bytes((source / "config.json").read_bytes())
    reference = load(plain)
    assert [tensor.name for tensor in model.tensors] == [tensor.name for tensor in reference.tensors]
    for ours, theirs in zip(model.tensors, reference.tensors, strict=True):
        np.testing.assert_array_equal(ours.read(0, ours.rows), theirs.read(0, theirs.rows))
    assert any("the source is quantized already" in note for note in model.notes)


def convert(folder: Path, output: Path, name: str) -> None:
    """Write a quantized checkpoint as another container: the same codes under the same scales."""
    with contextlib.closing(open_quantized(folder)) as source:
        formats = {tensor: source.format(tensor) for tensor in source.quantized_names}
        tensors = ((tensor, source.quantized(tensor)) for tensor in formats)
        write_checkpoint(folder, source, formats, tensors, output, name=name)


def test_containers_convert_into_each_other_and_back_without_a_change(write: Any, tmp_path: Path) -> None:
    first = write("gptq_v2", "int4-g32-asym-bf16", "first")
    chain = ["awq", "compressed-tensors", "gptq_v2"]
    folder = first
    for place, container in enumerate(chain):
        convert(folder, tmp_path / f"step{place}", container)
        folder = tmp_path / f"step{place}"
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (first / name).read_bytes()


def test_four_bit_floats_of_another_tool_keep_their_global_scales(write: Any, tmp_path: Path) -> None:
    names = ("nvfp4", "nvfp4-scale300.0", "nvfp4-scale0.3")
    layer = "model.layers.0.mlp"
    some = {f"{layer}.{m}.weight": name for m, name in zip(("up_proj", "gate_proj", "down_proj"), names, strict=True)}
    first = write("compressed-tensors", some)
    convert(first, tmp_path / "again", "compressed-tensors")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()
    stored = safetensors.load_file(first / "model.safetensors")
    scales = [stored[name.replace("weight", "weight_global_scale")].tolist() for name in some]
    assert scales == [[256], [300], [float(np.float32(0.3))]]
    with pytest.raises(SchemeError, match="gptq stores integer groups, not nvfp4"):
        convert(write("compressed-tensors", "nvfp4", "third"), tmp_path / "other", "gptq")


def test_what_a_container_cannot_hold_is_refused_in_a_conversion(write: Any, source: Path, tmp_path: Path) -> None:
    folder = write("gptq", "int3-g32-sym-f16")
    with pytest.raises(SchemeError, match=r"down_proj.weight .* as int3-g32-sym-f16 in awq: awq stores 4 bits"):
        convert(folder, tmp_path / "other", "awq")
    with pytest.raises(SchemeError, match="has no quantization_config, so the checkpoint is not quantized"):
        convert(source, tmp_path / "other", "awq")
    assert not (tmp_path / "other").exists()


def test_shards_hold_at_most_what_was_asked_for_and_load_alike(write: Any) -> None:
    whole, parts = (
        write("gptq", "int4-g32-sym-f16", "whole"),
        write("gptq", "int4-g32-sym-f16", "parts", shard_bytes=6000),
    )
    shards = sorted(parts.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    together: dict[str, Any] = {}
    for shard in shards:
        found = safetensors.load_file(shard)
        assert {index["weight_map"][name] for name in found} == {shard.name}
        assert sum(value.nbytes for value in found.values()) <= 6000
        together |= found
    single = safetensors.load_file(whole / "model.safetensors")
    assert single.keys() == together.keys()
    assert all(torch.equal(single[name], together[name]) for name in single)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in single.values())
    assert len(load(parts).tensors) == 12


def test_matrices_that_are_left_out_are_named_to_the_engines(write: Any) -> None:
    some = {"model.layers.0.mlp.up_proj.weight": "int4-g32-sym-f16"}
    config = json.loads((write("compressed-tensors", some, "a") / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.mlp.down_proj" in config["ignore"]
    assert "model.layers.0.mlp.up_proj" not in config["ignore"]
    assert config["ignore"].count("lm_head") == 1
    assert not any("norm" in name or "embed" in name for name in config["ignore"])
    config = json.loads((write("gptq", some, "b") / "config.json").read_text())["quantization_config"]
    assert r"-:^model\.layers\.0\.mlp\.down_proj$" in config["dynamic"]
    assert len(load(write("gptq", some, "c")).tensors) == 12


def test_a_failure_leaves_nothing_behind(write: Any, source: Path, tmp_path: Path) -> None:
    positive = get("int4-g32-asym-f16")
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = QuantizedTensor(positive, (96, 64), positive.encode(np.ones((96, 64), np.float32)))
    with pytest.raises(SchemeError, match="gptq version 1 stores zero points less 1 and has no 0"):
        write("gptq", {name: positive.name}, tensors=iter([(name, tensor)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_tensors_that_are_missing_or_different_are_refused(write: Any, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"down_proj.g_idx: 384 bytes of 384 never arrived"):
        write("gptq", "int4-g32-sym-f16", tensors=iter([]))
    fmt = get("int4-g32-sym-bf16")
    name = "model.layers.0.mlp.up_proj.weight"
    other = QuantizedTensor(fmt, (96, 64), fmt.encode(np.ones((96, 64), np.float32)))
    with pytest.raises(ShapeError, match=r"arrived as int4-g32-sym-bf16 \(96, 64\), int4-g32-sym-f16 \(96, 64\)"):
        write("gptq", {name: "int4-g32-sym-f16"}, tensors=iter([(name, other)]))
    with pytest.raises(ShapeError, match="bytes arrived, 0 were to come"):
        write("gptq", {name: fmt.name}, tensors=iter([(name, other), (name, other)]))
    assert not (tmp_path / "made").exists()


def test_one_format_per_checkpoint_but_for_compressed_tensors(write: Any) -> None:
    mixed = {
        "model.layers.0.mlp.up_proj.weight": "int4-g32-sym-f16",
        "model.layers.0.mlp.down_proj.weight": "int8-channel-sym",
    }
    with pytest.raises(SchemeError, match="gptq holds one format for all matrices, not int4-g32-sym-f16, int8-channel"):
        write("gptq", mixed)
    folder = write("compressed-tensors", mixed)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert config["config_groups"]["group_1"]["targets"] == ["model.layers.0.mlp.down_proj"]
    assert config["config_groups"]["group_1"]["format"] == "int-quantized"
    assert len(load(folder).tensors) == 12


@pytest.mark.parametrize("place", ["source", "."])
def test_the_source_is_never_replaced(write: Any, source: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(SchemeError, match="holds the source; choose another folder"):
        write("gptq", "int4-g32-sym-f16", place)
    assert (source / "model.safetensors").is_file()


def test_an_older_checkpoint_of_ours_is_replaced(write: Any) -> None:
    for container in ("compressed-tensors", "gptq", "awq"):
        folder = write(container, "int4-g32-sym-f16")
        assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == container
    with pytest.raises(FormatError, match=r"made/config\.json: was not written by tersor"):
        write("awq", "int4-g32-sym-f16")  # other tools write it just so, and no Card lies in it
    (folder / "old.card.json").write_text("{}")
    write("gptq", "int4-g32-sym-f16")


@pytest.mark.parametrize("name", ["diary.txt", "optimizer.pt", "README.md", "model-best.safetensors", "logs"])
def test_a_folder_that_holds_more_than_was_written_is_not_replaced(write: Any, name: str) -> None:
    folder = write("gptq", "int4-g32-sym-f16")
    (folder / name).mkdir() if name == "logs" else (folder / name).write_text("dear diary")
    with pytest.raises(FormatError, match=rf"made/{name}: was not written by tersor, so the folder is not replaced"):
        write("gptq", "int4-g32-sym-f16")
    assert (folder / name).exists()


def test_a_model_of_somebody_else_is_not_replaced(write: Any, source: Path, tmp_path: Path) -> None:
    theirs = shutil.copytree(source, tmp_path / "theirs", ignore=shutil.ignore_patterns("notes*"))
    (theirs / "m.card.json").write_text("{}")  # of a GGUF that was made beside it
    with pytest.raises(FormatError, match=r"theirs/config\.json: was not written by tersor"):
        write("gptq", "int4-g32-sym-f16", "theirs")
    config = json.loads((theirs / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "meta": {"quantizer": ["gptqmodel:2.0"]}}
    (theirs / "config.json").write_text(json.dumps(config))
    (theirs / "m.card.json").unlink()
    with pytest.raises(FormatError, match=r"theirs/config\.json: was not written by tersor"):
        write("gptq", "int4-g32-sym-f16", "theirs")
    (theirs / "config.json").unlink()
    with pytest.raises(FormatError, match=r"theirs/generation_config\.json: was not written by tersor"):
        write("gptq", "int4-g32-sym-f16", "theirs")


def test_a_link_out_of_the_folder_is_not_copied(write: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (source / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="links to a file outside its folder, which is refused"):
        write("gptq", "int4-g32-sym-f16")


def test_unknown_names_are_refused(write: Any) -> None:
    with pytest.raises(SchemeError, match="no checkpoint container 'exl2'; there are gptq, gptq_v2, awq, compressed"):
        write("exl2", "int4-g32-sym-f16")
    with pytest.raises(SchemeError, match=r"'nothing\.weight' is no weight of the source"):
        write("gptq", {"nothing.weight": "int4-g32-sym-f16"}, tensors=iter([]))
    with pytest.raises(SchemeError, match="no tensor is to be quantized"):
        write("gptq", {}, tensors=iter([]))


def test_a_checkpoint_of_torch_is_a_source_too(source: Path, tmp_path: Path) -> None:
    values = safetensors.load_file(source / "model.safetensors")
    torch.save(values, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    paths, index, _ = weight_files(source)
    checkpoint = Checkpoint(paths, index)
    name = "model.layers.0.mlp.up_proj.weight"
    fmt = get("int4-g32-sym-f16")
    weight = np.asarray(checkpoint.read(name), np.float32)
    tensors = [(name, QuantizedTensor(fmt, weight.shape, fmt.encode(weight)))]
    artefacts = write_checkpoint(source, checkpoint, {name: fmt}, tensors, tmp_path / "made", name="gptq")
    stored = safetensors.load_file(tmp_path / "made" / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], values["lm_head.weight"])
    assert [artefact.name for artefact in artefacts][-1] == "tokenizer.json"


@pytest.mark.parametrize(
    ("container", "name", "target"),
    [("awq", "int4-g32-sym-f16", "q4_0"), ("compressed-tensors", "int4-g32-asym-bf16", "q8_0")],
)
def test_codes_go_into_blocks_of_gguf_in_its_order_of_rows(write: Any, container: str, name: str, target: str) -> None:
    folder = write(container, name)
    checkpoint, model = open_quantized(folder), load(folder)
    matrices = [tensor for tensor in model.tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    assert len(matrices) == 7
    for tensor in matrices:  # queries and keys among them, whose rows llama.cpp wants interleaved
        made = gathered_codes(tensor, checkpoint, target)
        assert made.change == 0
        np.testing.assert_array_equal(made.tensor.dequantize(), tensor.read(0, tensor.rows))
    with pytest.raises(SchemeError, match=r"token_embd\.weight: is not quantized in the checkpoint"):
        gathered_codes(model.tensors[0], checkpoint, target)
    with pytest.raises(SchemeError, match="codes can be kept in q4_0, q4_1, q8_0 and integer groups, not in q4_k"):
        gathered_codes(matrices[0], checkpoint, "q4_k")
    with pytest.raises(SchemeError, match=r"proj\.weight: q4_0 has no zero points|is not quantized"):
        gathered_codes(matrices[0] if "asym" in name else model.tensors[0], checkpoint, "q4_0")
    checkpoint.close()

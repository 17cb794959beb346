from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from tersor.core.errors import FormatError, UnsupportedError
from tersor.models import load
from tersor.models.model import needs_f32

QUANTIZERS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def write(path: Path, architecture: str | None = "llama", kind: str | None = None) -> dict[str, object]:
    """Write a GGUF with one tensor of each type, blocks out of order; return the values that they decode to."""
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, architecture or "x")
    if architecture is None:
        del writer.kv_data[0]["general.architecture"]
    if kind:
        writer.add_type(kind)
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.0, -1.0])
    writer.add_file_type(2)
    expected: dict[str, object] = {}
    names = [
        "output.weight",
        "output_norm.weight",
        *(f"blk.{6 - i}.attn_q.weight" for i in range(5)),
        "token_embd.weight",
    ]
    for name, label in zip(names, QUANTIZERS, strict=True):
        form = gguf.GGMLQuantizationType[label]
        data = gguf.quants.quantize(random.standard_normal((6, 64), dtype=np.float32), form)
        writer.add_tensor(name, data, raw_dtype=form)
        expected[name] = gguf.quants.dequantize(data, form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_tensors_decode_to_what_the_gguf_package_says_and_come_in_file_order(tmp_path: Path) -> None:
    expected = write(tmp_path / "x.gguf")
    model = load(tmp_path / "x.gguf")
    assert [tensor.name for tensor in model.tensors] == [
        "token_embd.weight", *(f"blk.{i}.attn_q.weight" for i in range(2, 7)), "output_norm.weight", "output.weight",
    ]  # fmt: skip
    for tensor in model.tensors:
        np.testing.assert_array_equal(tensor.read(0, 6), expected[tensor.name], err_msg=tensor.name)
        np.testing.assert_array_equal(tensor.read(2, 5), expected[tensor.name][2:5])  # type: ignore[index]


def test_metadata_is_passed_on_with_the_tokenizer_but_without_what_the_next_writer_sets(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    model = load(tmp_path / "x.gguf")
    assert model.name == "Tiny"
    assert model.architecture == "llama"
    assert model.tokenizer is None
    assert {key: entry.kind for key, entry in model.metadata.items()} == {
        "general.name": "str",
        "llama.context_length": "u32",
        "tokenizer.ggml.tokens": "[str]",
        "tokenizer.ggml.scores": "[f32]",
    }


def test_a_file_whose_name_is_no_unicode_is_called_with_a_mark_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "x.gguf").rename(path)
    assert load(path).name == "caf\ufffd"
    assert list(load(path).hashes()) == ["caf\ufffd.gguf"]


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("blk.0.ssm_conv1d.weight", True),
        ("blk.0.ssm_in.weight", False),
        ("blk.0.shortconv.conv.weight", True),
        ("blk.0.shortconv.in_proj.weight", False),
        ("blk.0.time_mix_first.weight", True),
        ("blk.0.time_mix_w0.weight", True),
        ("blk.0.time_mix_v2.weight", True),
        ("blk.0.time_mix_decay_w1.weight", True),
        ("blk.0.time_mix_lerp_fused.weight", True),
        ("blk.0.time_mix_key.weight", False),
        ("enc.blk.0.attn_rel_b.weight", True),
        ("position_embd.weight", True),
        ("token_types.weight", True),
        ("blk.0.altup_correct_coef.weight", True),
        ("blk.0.laurel_l.weight", True),
        ("per_layer_model_proj.weight", True),
        ("per_layer_token_embd.weight", False),
        ("blk.0.ffn_gate_inp.weight", True),
        ("blk.0.ffn_gate_inp_shexp.weight", False),
        ("blk.0.indexer.k_proj.weight", True),
        ("enc.blk.0.attn_q.weight", False),
    ],
)
def test_matrices_that_llama_quantize_leaves_alone_stay_in_float32(name: str, is_kept: bool) -> None:
    assert needs_f32(name, (64, 64)) is is_kept


def test_losses_of_a_quantized_source_are_noted(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    assert load(tmp_path / "x.gguf").notes == (
        "the source is quantized already (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0): its losses stay",
    )


def test_types_that_no_format_row_has_are_decoded_by_the_gguf_package(tmp_path: Path) -> None:
    path, kind = tmp_path / "x.gguf", gguf.GGMLQuantizationType.IQ3_S
    data = np.random.default_rng(0).integers(0, 120, (2, 110), dtype=np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.testing.assert_array_equal(load(path).tensors[0].read(0, 2), gguf.quants.dequantize(data, kind))


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "adapter.gguf", kind="adapter")
    with pytest.raises(UnsupportedError, match="a GGUF of type 'adapter'; only models"):
        load(tmp_path / "adapter.gguf")
    write(tmp_path / "nameless.gguf", architecture=None)
    with pytest.raises(FormatError, match=r"general\.architecture is missing"):
        load(tmp_path / "nameless.gguf")

"""What `tersor quantize` asks of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CalibrationOption",
    "ContainerOption",
    "DryRunOption",
    "EmbeddingFormatOption",
    "FallbackOption",
    "FileTypeOption",
    "IgnoreConfigOption",
    "MethodOption",
    "ModelArgument",
    "OutputFormatOption",
    "OutputOption",
    "SearchOption",
    "SplitSizeOption",
    "SplitTensorsOption",
    "TensorFormatOption",
    "ThreadsOption",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder with config.json and weights, a .safetensors, .bin, .pt or .gguf file, or a Hugging Face "
        "id such as org/name.",
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The GGUF to write.")]
FileTypeOption = Annotated[
    str,
    typer.Option(
        "--format",
        "-f",
        metavar="F",
        help="Which numbers the weights become: q4_k_m is the usual choice (4.9 bits a weight), q8_0 is nearly "
        "lossless, bf16 and f32 change nothing. `tersor formats --files` lists all.",
    ),
]
TensorFormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-format",
        metavar="PATTERN=FORMAT",
        help="Another format for all tensors whose GGUF name the regular expression finds, such as "
        "'ffn_down=q6_k' or 'blk\\.0\\.=q8_0'. May be repeated; the first that matches wins.",
    ),
]
OutputFormatOption = Annotated[
    str | None, typer.Option(metavar="F", help="Format of the output matrix: rounding it costs the most.")
]
EmbeddingFormatOption = Annotated[
    str | None, typer.Option(metavar="F", help="Format of the token embedding: rounding it costs the least.")
]
SearchOption = Annotated[
    str,
    typer.Option(
        metavar="best|ggml", help="How grid points are found: 'best' is ours; 'ggml' gives llama.cpp's very bytes."
    ),
]
FallbackOption = Annotated[
    bool,
    typer.Option(
        "--fallback/--no-fallback",
        help="A row that does not divide into blocks of its format takes a near one, named in the Card; "
        "--no-fallback stops instead.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and exact sizes; read and write no weight.")
]
SplitSizeOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Begin a new file before it exceeds this size, such as 2GiB.")
]
SplitTensorsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Begin a new file after N tensors.")]
ThreadsOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Threads of the encoder; 0: all cores. Never changes the bytes.")
]
IgnoreConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY", help="A key of config.json that tersor does not know and that you know to be harmless."
    ),
]


MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        metavar="M",
        help="What chooses the grid points: rtn and hqq know no text; clip, gptq, gptaq, foem, qronos, autoround and "
        "best put errors where the calibration text feels them least. Rewrites stand before, as in awq+gptq or "
        "hadamard+best; awq alone means awq+clip. Default: best where --calibration is given, else rtn. For nets ptq "
        "or qat.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        "-c",
        metavar="TEXT",
        help="Text like that of your use: a file, a folder, JSON lines, Parquet, a dataset id, or 'builtin'.",
    ),
]
ContainerOption = Annotated[
    str,
    typer.Option(
        metavar="C",
        help="gguf for llama.cpp; gptq, gptq_v2, awq or compressed-tensors for transformers and vLLM: OUT is a folder "
        "then, and --format a plain one such as int4-g128.",
    ),
]

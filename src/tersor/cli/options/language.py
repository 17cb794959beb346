"""What `tersor quantize` asks of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "OF_CALIBRATION",
    "OF_TEXT",
    "CalibrationOption",
    "ChunkOption",
    "ContainerOption",
    "DeviceOption",
    "DryRunOption",
    "EmbeddingFormatOption",
    "FallbackOption",
    "FieldOption",
    "FileTypeOption",
    "IgnoreConfigOption",
    "LengthOption",
    "MethodOption",
    "ModelArgument",
    "OutputFormatOption",
    "OutputOption",
    "PlanOption",
    "SaveImatrixOption",
    "SearchOption",
    "SeedOption",
    "SequencesOption",
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
        "hadamard+best; awq alone means awq+clip. qat trains on from what stands before it, alone from best. Default: "
        "best where --calibration is given, else rtn. For nets ptq or qat.",
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
SequencesOption = Annotated[int, typer.Option(min=1, metavar="N", help="How many sequences of calibration text.")]
LengthOption = Annotated[
    int | None, typer.Option(min=8, metavar="N", help="Tokens in each. Default: 512, or what the model takes.")
]
FieldOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Field of a row of text that holds it or the messages, for training too."),
]
ChunkOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Sequences that go through a block at once: memory against speed.")
]
SeedOption = Annotated[int, typer.Option(metavar="N", help="Shuffles the documents of text; 0: their own order.")]
SaveImatrixOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Save what calibration saw as an imatrix file for llama.cpp.")
]
DeviceOption = Annotated[str, typer.Option(metavar="D", help="Where calibration computes: cpu, cuda, cuda:1.")]

PlanOption = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Take the format of every tensor from what tersor plan has written; --tensor-format wins over it.",
    ),
]

OF_CALIBRATION = ("calibration", "calibration_sequences", "calibration_length")
"""Parameters that say which text is calibrated on and how it is cut."""
OF_TEXT = (*OF_CALIBRATION, "calibration_field", "seed")
"""Parameters that say which text is read and how it is cut; the last two hold for text to train on as well."""

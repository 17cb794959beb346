"""What `tersor quantize` asks of a net with activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "OF_LANGUAGE",
    "OF_NETS",
    "ActivationsOption",
    "DataOption",
    "EngineOption",
    "EpochsOption",
    "LeaveOption",
    "MaxDropOption",
    "MaxFileOption",
    "MaxLatencyOption",
    "MaxMemoryOption",
    "NetSizeOption",
    "PhoneOption",
    "TargetOption",
    "TrainOption",
    "WeightsOption",
]

WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Nets: weights to load into module:factory first, .safetensors or .pt."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        help="Nets: labelled images to judge by, a folder with a subfolder a class or an .npz of images and labels.",
    ),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="Nets: percentage points of accuracy that may be lost on --data; without it, of agreement with the float "
        "net on the calibration data. As few operators as possible go back to float until it is met.",
    ),
]
TrainOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        help="--method qat: what to train on. For a net labelled images, as --data takes them; for a language model "
        "text beside that of --calibration: steps on new text win more than passes over the same.",
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="--method qat: passes over --train for a net (usually 10), or over all text that a language "
        "model learns from (5), behind four fifths as many over its parts alone.",
    ),
]
ActivationsOption = Annotated[
    str | None,
    typer.Option(
        "--activations",
        metavar="KIND",
        help="Nets: static (the default) rounds activations to ranges that calibration finds, dynamic to that of each "
        "batch; float leaves them, and weights alone are small, in rows, or in groups as in int4-g32.",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        metavar="E",
        help="Nets: whose rules say what runs on integers: onnxruntime (others read that too), openvino, tensorrt, "
        "xnnpack.",
    ),
]
LeaveOption = Annotated[
    list[str] | None, typer.Option(metavar="NODE", help="Nets: an operator that stays in float. May be repeated.")
]
NetSizeOption = Annotated[
    str, typer.Option("--size", metavar="HxW", help="Nets: what images of a folder are resized to.")
]

TargetOption = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        help="Nets: mobile writes what phones run, OUT.pte (ExecuTorch, XNNPACK) or OUT.ort (ONNX Runtime), after it "
        "has run here and agreed.",
    ),
]
MaxMemoryOption = Annotated[
    float | None,
    typer.Option(
        metavar="MB", help="Nets, --target mobile: what a process may grow by when it loads and runs OUT.pte."
    ),
]
MaxLatencyOption = Annotated[
    float | None,
    typer.Option(metavar="MS", help="Nets, --target mobile: what half of all calls may take, on this machine."),
]
PhoneOption = Annotated[
    str | None,
    typer.Option(
        metavar="PROFILE",
        help="Nets, --target mobile: estimate latency on a class of machines (`tersor estimate --list`), with its "
        "interval, and hold --max-latency-ms against that.",
    ),
]
MaxFileOption = Annotated[
    float | None,
    typer.Option(
        metavar="MB",
        help="Nets, --target mobile: what the file may take of the app. Given a limit and no --format, fp32, fp16, "
        "int8 and int4-g32 are tried in turn until one fits; exit code 1 where none does.",
    ),
]

OF_NETS = (
    *("weights", "data", "max_drop", "kind", "engine", "leave", "mean", "std", "size_of", "target"),
    *("max_memory_mb", "max_latency_ms", "max_file_mb", "phone"),
)
"""Parameters that mean nothing for a language model."""
OF_LANGUAGE = (
    *("tensor_format", "output_format", "embedding_format", "search", "fallback", "dry_run", "split_max_size"),
    *("split_max_tensors", "ignore_config", "container", "activations", "calibration_sequences", "calibration_length"),
    *("calibration_field", "calibration_chunk", "seed", "statistics", "imatrix", "save_imatrix", "proof", "device"),
    "train_sequences",
)
"""Parameters that mean nothing for a net."""

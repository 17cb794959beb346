"""Quantize the same model again and again until killed; run by test_killed.py as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from tersor.pipeline import quantize as module
from tersor.pipeline.quantize import quantize

from .conftest import arrays, held_model


def main(source: Path, output: Path) -> None:
    """Write `output`, remove it and begin again; the first line on stdout is the hash that it always has."""
    module.SLICE_WEIGHTS = 1 << 10
    model = held_model(arrays(), (source,))
    split = None if len(sys.argv) < 4 else int(sys.argv[3])
    while True:
        card = quantize(model, "q8_0", output, split_max_tensors=split, threads=1, search="ggml")
        print(*(artefact.sha256 for artefact in card.artefacts), flush=True)  # noqa: T201 (the parent reads it)
        for artefact in card.artefacts:
            (output.parent / artefact.name).unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

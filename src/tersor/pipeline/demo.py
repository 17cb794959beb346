"""The whole way on the embedded reference model: quantize it, run it in real llama.cpp, show what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from tersor import reference_model
from tersor.core.card import Card
from tersor.engines.llama_cpp import LlamaCpp
from tersor.models import load
from tersor.pipeline.quantize import Progress, quantize

__all__ = ["PROMPT", "Demo", "demo"]

PROMPT = "import os\nimport sys\n\ndef read_file(path):\n    with open("
FILE_NAME = "reference-{format}.gguf"
NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo made: the file, its Card, what llama.cpp wrote after the prompt, and how fast."""

    path: Path
    card: Card
    prompt: str
    generated: str
    tokens: int
    tokens_per_second: float
    engine: str


def demo(
    folder: Path,
    *,
    format: str = "q4_k_m",  # noqa: A002 (the word of the command line)
    search: str = "best",
    progress: Progress | None = None,
) -> Demo:
    """Quantize the embedded model into `folder` (made if need be) and let llama.cpp continue a Python function.

    Raises MissingError where llama.cpp is not installed; the artefact is there all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME.format(format=format)
    card = quantize(load(reference_model.PATH), format, path, search=search, command="tersor demo", progress=progress)
    with LlamaCpp(path, context=256) as engine:
        ids = engine.tokenize(PROMPT, add_special=True)
        began = perf_counter()
        made = engine.generate(ids, NEW_TOKENS, stop=True)
        seconds = perf_counter() - began
        return Demo(path, card, PROMPT, engine.detokenize(made), len(made), len(made) / seconds, engine.version())

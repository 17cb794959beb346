"""Does the real engine load the artefact, and write with it?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tersor.core.errors import EngineError, MissingError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.checks.verdict import Check

__all__ = ["check_running"]

PROMPT = "The"
_SHOWN = 120


def check_running(path: Path, *, tokens: int = 24, threads: int = 1, timeout_s: float = 300) -> Check:
    """Load `path` in llama.cpp, look at its logits and generate `tokens` tokens greedily."""
    try:
        with LlamaCpp(path, context=64 + tokens, threads=threads, timeout_s=timeout_s) as engine:
            name = engine.version()
            prompt = engine.tokenize(PROMPT, add_special=True)[:32] or [0]
            if not np.isfinite(logits := engine.logits(prompt)).all():
                return Check("running", "failed", "it loads, but computes no numbers", ("logits are not finite",))
            made = engine.generate(prompt, tokens)
            text = engine.detokenize(made)
    except MissingError as error:
        return Check("running", "skipped", str(error))
    except EngineError as error:
        return Check("running", "failed", "llama.cpp does not run it", (str(error),))
    numbers = {"generated_tokens": float(len(made)), "largest_logit": float(np.abs(logits).max())}
    if np.ptp(logits[-1]) == 0:
        return Check("running", "failed", "it loads, but knows nothing", ("all logits are alike",), numbers)
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return Check("running", "passed", f"{name} loads it and continues {PROMPT!r} with {shown!r}", numbers=numbers)

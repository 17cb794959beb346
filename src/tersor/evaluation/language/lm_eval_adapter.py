"""A GGUF as a model of lm-evaluation-harness, for its hundreds of tasks.

    import lm_eval
    with LlamaCpp(Path("model.gguf"), context=2048, threads=8) as engine:
        found = lm_eval.simple_evaluate(harness_model(engine), tasks=["hellaswag"])

The harness is an extra, and its base class too, so that the class here is made when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tersor.core.errors import MissingError, UnsupportedError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.language.streams import rows_at_once
from tersor.kernels.logits import token_losses

__all__ = ["harness_model"]

MOST_GENERATED = 256
"""Tokens, where a task does not say; as lm-evaluation-harness has it."""


def harness_model(engine: LlamaCpp) -> Any:
    """Return an `lm_eval.api.model.LM` that computes in `engine`; the caller closes it.

    Answers are scored as the harness scores those of transformers; text is generated greedily. Raises MissingError
    where lm_eval is not installed.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").TemplateLM
        rolling = importlib.import_module("lm_eval.utils")
    except ImportError as error:
        raise MissingError("lm-evaluation-harness is an extra: pip install 'tersor[lm-eval]'") from error

    class HarnessModel(base):  # type: ignore[misc, valid-type]  # the harness is not there when types are checked
        """What the harness asks of a model."""

        @property
        def eot_token_id(self) -> int:
            """What stands before a text that has nothing before it."""
            if engine.begin is None:
                raise UnsupportedError(f"{engine.path.name} has no beginning token; a task without context needs one")
            return engine.begin

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids = engine.tokenize(string, add_special=add_special_tokens is not False, parse_special=True)
            return ids[:-1] if engine.adds_end and add_special_tokens is not False else ids

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            return [_scored(engine, before, answer) for _, before, answer in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002 (the harness passes it)
            """Log-probability of each text as a whole, in windows that predict every token once."""
            return [self._rolled(request.args[0]) for request in requests]

        def _rolled(self, text: str) -> float:
            windows = rolling.get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=engine.context,
                context_len=1,
            )
            pairs = map(rolling.make_disjoint_window, windows)
            return float(sum(_scored(engine, before, answer)[0] for before, answer in pairs))

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002 (the harness passes it)
            """Greedy text after each prompt, up to the first of the given endings."""
            return [_generated(engine, self.tok_encode(text), options) for text, options in (r.args for r in requests)]

    return HarnessModel()


def _scored(engine: LlamaCpp, before: list[int], answer: list[int]) -> tuple[float, bool]:
    """Log-probability of the tokens `answer` in nats, and whether each of them is the likeliest."""
    ids = [*before, *answer][:-1]
    if len(answer) > engine.context:
        raise UnsupportedError(f"an answer of {len(answer)} tokens does not fit a context of {engine.context}")
    surplus = max(0, len(ids) - engine.context)
    targets, total, done, is_greedy = np.array(answer, np.int32), 0.0, 0, True
    rows = rows_at_once(engine.vocabulary_size)
    for values in engine.slices(ids[surplus:], start=len(ids) - surplus - len(answer), rows=rows):
        wanted = targets[done : done + len(values)]
        total -= float(token_losses(values, wanted).sum())
        is_greedy = is_greedy and bool((values.argmax(axis=1) == wanted).all())
        done += len(values)
    return total, is_greedy


def _generated(engine: LlamaCpp, ids: list[int], options: dict[str, Any]) -> str:
    if options.get("do_sample") and options.get("temperature", 1) > 0:
        raise UnsupportedError("text is generated greedily; the task samples: set do_sample to false")
    until = options.get("until") or []
    count = min(int(options.get("max_gen_toks", MOST_GENERATED)), engine.context - 1)
    kept = ids[max(0, len(ids) - (engine.context - count)) :]
    text = engine.detokenize(engine.generate(kept, count, stop=True))
    for ending in [until] if isinstance(until, str) else until:
        text = text.split(ending)[0] if ending else text
    return text

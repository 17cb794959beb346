"""What is asked of an engine, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tersor.core.errors import SchemeError

__all__ = ["Memory", "Reading", "Workload"]

BATCH_PROMPT = 32
"""Tokens of the prompts of parallel sequences at most: enough to differ, few enough not to take the time."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One round: a prompt, its continuation, and continuations of several sequences at once.

    prompt, generate  tokens
    batches           sizes of batches for throughput
    rounds, warmups   counted and not
    loads             how often each side is loaded
    seed              of the tokens, which are drawn at random: their meaning changes no speed
    device, kernels   of models in transformers, as `load_quantized` takes them
    """

    prompt: int = 256
    generate: int = 64
    batches: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 9
    warmups: int = 1
    loads: int = 3
    threads: int = 1
    timeout_s: float = 600
    seed: int = 0
    device: str = "cpu"
    kernels: str = "auto"

    def __post_init__(self) -> None:
        for name in ("prompt", "generate", "rounds", "warmups", "loads", "threads", "timeout_s"):
            if getattr(self, name) <= 0:
                raise SchemeError(f"{name} must be positive, got {getattr(self, name)}")
        if any(size < 1 or size > 64 for size in self.batches) or len(set(self.batches)) != len(self.batches):
            raise SchemeError(f"batches must be different numbers from 1 to 64, got {self.batches}")

    @property
    def context(self) -> int:
        """Tokens that a sequence grows to."""
        return self.prompt + self.generate + 1

    @property
    def batch_prompt(self) -> int:
        """Tokens of the prompt of each sequence of a batch."""
        return min(self.prompt, BATCH_PROMPT)

    def prompts(self, count: int, length: int, vocabulary: int) -> list[list[int]]:
        """Return `count` prompts of `length` tokens; the same numbers each time."""
        drawn = np.random.default_rng(self.seed).integers(0, vocabulary, (count, length))
        return [[int(token) for token in row] for row in drawn]

    def settings(self) -> dict[str, str | int | float | bool]:
        """Return what shaped the numbers."""
        return {
            "prompt_tokens": self.prompt,
            "generated_tokens": self.generate,
            "batches": ",".join(map(str, self.batches)),
            "batch_prompt_tokens": self.batch_prompt,
            "rounds": self.rounds,
            "warmups": self.warmups,
            "loads": self.loads,
            "threads": self.threads,
            "tokens": f"random, seed {self.seed}",
            **({} if self.device == "cpu" else {"device": self.device}),
            **({} if self.kernels == "auto" else {"kernels": self.kernels}),
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """One round of one side, in seconds.

    evaluated    for the prompt
    first_token  for the prompt and picking the first token
    steps        for each generated token after the first
    batches      size → tokens per second of all sequences together
    joules       of the processor packages while generating; None where nothing counts them
    """

    evaluated: float
    first_token: float
    steps: tuple[float, ...]
    batches: Mapping[int, float] = field(default_factory=dict)
    joules: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the engine's process with one sequence, above the same engine without a model, in bytes; None: not known.

    peak    since the process began, loading included
    steady  after the warm-up
    """

    peak: int | None
    steady: int | None

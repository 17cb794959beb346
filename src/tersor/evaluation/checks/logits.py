"""Does llama.cpp compute with the artefact what the source model computes?

Rounding moves logits a little, a broken conversion moves them a lot. The distance is the Kullback-Leibler divergence
from the source's distribution of the next token to the artefact's, in nats, averaged over the tokens of some text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError, MissingError, TersorError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.engines.transformers_lm import TransformersLm
from tersor.evaluation.checks.verdict import Check
from tersor.models import Model

__all__ = ["Distance", "check_logits", "compare", "largest_divergence"]

Logits: TypeAlias = Callable[[Sequence[int]], Float32]

SEQUENCES, LENGTH = 4, 96
EXACT = 1e-3
"""Largest difference of any logit of a float32 file, in units of their root mean square: float32 sums, reordered."""
EXACT_WITH_GELU = 1e-2
"""The same where llama.cpp looks GELU up in a table of half precision: the Gemmas."""
SAME_TOP = 0.999
FLOOR, PLAIN_FLOOR, GROWTH = 0.01, 0.001, 100.0


@dataclass(frozen=True, slots=True)
class Distance:
    """How far logits are from the source's.

    divergence  mean Kullback-Leibler divergence in nats
    worst       the largest of one token
    same_top    share of tokens for which both find the same token most likely
    difference  the largest difference of a logit, in units of their root mean square
    """

    divergence: float
    worst: float
    same_top: float
    difference: float
    tokens: int


def largest_divergence(error: float, *, is_plain: bool = False) -> float:
    """Nats beyond which a file is broken, not rounded: floor + 100 · error², `error` the relative error of its weights.

    The floor, 0.01, is for the 8-bit activations of the engine; 0.001 where the file holds plain floats only.
    Divergence grows with the square of the error. Measured over all file types: 1 to 8 · error² for the embedded
    model (hidden size 256), up to 44 · error² for one of hidden size 64; about 6 · error² is published for Llama-3-8B.
    The bound is wide, since the tensors are compared one by one elsewhere: it is there for wrong metadata and graphs.

    >>> round(largest_divergence(0.06), 3), largest_divergence(0.0, is_plain=True)
    (0.37, 0.001)
    """
    return (PLAIN_FLOOR if is_plain else FLOOR) + GROWTH * error**2


def check_logits(
    path: Path, source: Model, texts: Sequence[str], *, error: float, formats: Collection[str], threads: int = 1
) -> Check:
    """Compare logits over some hundred tokens of `texts`.

    error    relative error of the artefact's weights, which sets the bound
    formats  of the artefact, as ggml calls them; float32 throughout: logits must be equal but for the order of sums
    """
    with ExitStack() as stack:
        try:
            context = min(LENGTH, _context(source))
            engine = stack.enter_context(LlamaCpp(path, context=context, threads=threads, timeout_s=600))
            sequences = _sequences(engine, texts, context)
            name, reference = _reference(source, stack, context, threads)
            distance = compare(reference, engine.logits, sequences)
        except MissingError as missing:
            return Check("logits", "skipped", str(missing))
        except TersorError as fault:
            return Check("logits", "failed", "no logits were computed", (str(fault),))
    return _judged(distance, name, source, error=error, formats=set(formats))


def compare(reference: Logits, other: Logits, sequences: Sequence[Sequence[int]]) -> Distance:
    """Measure how far `other` is from `reference` over all positions of `sequences`."""
    divergences, same, differences, squares = [], [], [], []
    for ids in sequences:
        wanted, found = reference(ids), other(ids)
        columns = min(wanted.shape[1], found.shape[1])  # checkpoints pad their vocabulary
        wanted, found = wanted[:, :columns], found[:, :columns]
        p, q = _log_softmax(wanted), _log_softmax(found)
        divergences.append((np.exp(p) * (p - q)).sum(axis=1))
        same.append(wanted.argmax(axis=1) == found.argmax(axis=1))
        differences.append(float(np.abs(wanted - found).max()))
        squares.append(float(np.mean(np.square(wanted, dtype=np.float64))))
    every = np.concatenate(divergences)
    return Distance(
        divergence=float(every.mean()),
        worst=float(every.max()),
        same_top=float(np.concatenate(same).mean()),
        difference=max(differences) / max(float(np.sqrt(np.mean(squares))), 1e-30),
        tokens=len(every),
    )


def _judged(distance: Distance, name: str, source: Model, *, error: float, formats: set[str]) -> Check:
    limit = largest_divergence(error, is_plain=formats <= {"F32", "F16", "BF16"})
    bound = EXACT_WITH_GELU if source.architecture.startswith("gemma") else EXACT
    numbers = {
        "divergence_nats": distance.divergence,
        "largest_divergence_allowed_nats": limit,
        "worst_divergence_nats": distance.worst,
        "same_top": distance.same_top,
        "difference_in_rms": distance.difference,
        "tokens": float(distance.tokens),
    }
    found = (
        f"{distance.tokens} tokens against {name}: divergence {distance.divergence:.2g} nats, same top token "
        f"{distance.same_top:.1%}, largest difference {distance.difference:.1g} of rms"
    )
    problems = []
    if not distance.divergence <= limit:
        problems.append(
            f"divergence {distance.divergence:.3g} nats; weights with a relative error of {error:.2%} "
            f"explain at most {limit:.3g}: the file is broken, not only rounded"
        )
    if formats == {"F32"} and not (distance.difference <= bound and distance.same_top >= SAME_TOP):
        problems.append(
            f"a float32 file must agree to {bound:g} of rms and in {SAME_TOP:.1%} of the top tokens; it has "
            f"{distance.difference:.2g} and {distance.same_top:.1%}"
        )
    return Check("logits", "failed" if problems else "passed", found, tuple(problems), numbers)


def _log_softmax(logits: Float32) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    normal: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normal


def _context(source: Model) -> int:
    entry = source.metadata.get(f"{source.architecture}.context_length")
    return entry.value if entry is not None and isinstance(entry.value, int) and entry.value > 1 else LENGTH


def _sequences(engine: LlamaCpp, texts: Sequence[str], context: int) -> list[list[int]]:
    """Cut `texts` into at most SEQUENCES pieces of `context` tokens, each with the beginning that the file asks for."""
    head = [] if engine.begin is None else [engine.begin]
    step = context - len(head)
    made: list[list[int]] = []
    for text in texts:
        ids = engine.tokenize(text)
        made += [[*head, *ids[at : at + step]] for at in range(0, len(ids), step)]
    whole = [ids for ids in made if len(ids) == context]
    chosen = (whole or [ids for ids in made if ids])[:SEQUENCES]
    if not chosen:
        raise EngineError("the text has no tokens to compare logits on")
    return chosen


def _reference(source: Model, stack: ExitStack, context: int, threads: int) -> tuple[str, Logits]:
    """The name of what computes the source's logits, and its function."""
    for file in source.files:
        if file.suffix == ".gguf":
            engine = LlamaCpp(file, context=context, threads=threads, timeout_s=600)
            return file.name, stack.enter_context(engine).logits
    folder = source.folder
    if folder is None:
        raise MissingError(f"{source.name} has no config.json, which transformers needs to compute its logits")
    if not source.is_its_folder:
        raise MissingError(
            f"transformers reads a folder's own weights, and {source.weights[0].name} was named: give it a folder"
        )
    weights = sum(tensor.rows * tensor.columns for tensor in source.tensors)
    return "transformers in float32", TransformersLm(folder, name=source.name, weights=weights).logits

"""The estimate: memory by what takes it, speed by the roof that bounds it; each figure with what it rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tersor.core.errors import SchemeError
from tersor.evaluation.estimates.limits import Machine
from tersor.evaluation.estimates.shape import DecoderShape
from tersor.evaluation.speed.traffic import Traffic
from tersor.targets.profiles.profile import Figure

__all__ = ["Amount", "Estimate", "Load", "Sense", "estimated"]

Sense: TypeAlias = Literal["exact", "about", "at least", "at most", "unknown"]
RESERVED = 0.1
"""Share of the memory left to the engine, its buffers and the system; vLLM's default leaves as much."""
BUFFERS, ALLOWANCE = 1.1, 16 << 20
"""What llama.cpp was seen to take beyond weights, cache and activations: a share, and bytes for any model."""
MOST = 1 << 24
"""Tokens or sequences beyond which nobody looks."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the model.

    context       tokens that each sequence grows to
    prompt        tokens of the prompt, for prefill
    batch         sequences side by side
    chunk         tokens of a prompt evaluated together
    cache_bits    bits of a number in the cache
    live_bytes    bytes of a number while it is computed with
    compute       type that matrices are multiplied in
    """

    context: int
    prompt: int
    batch: int
    chunk: int
    cache_bits: float
    live_bytes: int
    compute: str

    def __post_init__(self) -> None:
        for name in ("context", "prompt", "batch", "chunk"):
            if not 0 < getattr(self, name) <= MOST:
                raise SchemeError(f"{name} must be from 1 to {MOST}, got {getattr(self, name)}")
        if self.prompt > self.context:
            raise SchemeError(f"a prompt of {self.prompt} tokens does not fit in a context of {self.context}")


@dataclass(frozen=True, slots=True)
class Amount:
    """One figure.

    value  None where there is no basis for one
    sense  whether it is exact, near the truth, or on which side of it the truth lies
    basis  what it rests on, in words
    """

    name: str
    value: float | None
    unit: str
    sense: Sense
    basis: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs and can reach at most on a machine.

    fits         None where the machine's memory is not known
    assumptions  what holds for all figures
    """

    model: str
    machine: str
    format: str
    fits: bool | None
    amounts: tuple[Amount, ...]
    assumptions: tuple[str, ...]

    def amount(self, name: str) -> float | None:
        """Return the value of that name, None where it is unknown."""
        return next((amount.value for amount in self.amounts if amount.name == name), None)


def estimated(
    model: str,
    kind: str,
    traffic: Traffic,
    stored: float,
    *,
    shape: DecoderShape,
    load: Load,
    machine: Machine,
    repacked: float = 0.0,
) -> Estimate:
    """Return the estimate.

    kind      the format, for people
    traffic   what one token reads and computes
    stored    bytes of all weights in memory
    repacked  bytes of weights that the engine holds a second time, packed for the processor
    """
    memory = _memory(stored, repacked, shape, load, machine)
    room = None if machine.memory is None else machine.memory.value * (1 - RESERVED)
    total = stored + _cache(shape, load, load.context, load.batch) + _live(shape, load)
    return Estimate(
        model,
        machine.name,
        kind,
        None if room is None else total <= room,
        (*memory, *_limits(stored, shape, load, machine.memory), *_speeds(traffic, shape, load, machine)),
        (
            f"{RESERVED:.0%} of the memory is left to the engine and the system",
            "speeds are those of the roofs; real engines reach a share of them (docs/how-to/estimate.md)",
            "weights and cache are read from memory: models of a few MB, which stay in a cache, can be faster",
            *machine.notes,
        ),
    )


def _cache(shape: DecoderShape, load: Load, tokens: int, batch: int) -> float:
    return batch * shape.cached_values(tokens) * load.cache_bits / 8


def _live(shape: DecoderShape, load: Load) -> float:
    return float(shape.live_values(max(min(load.chunk, load.prompt), load.batch), load.batch) * load.live_bytes)


def _memory(stored: float, repacked: float, shape: DecoderShape, load: Load, machine: Machine) -> tuple[Amount, ...]:
    cache, live = _cache(shape, load, load.context, load.batch), _live(shape, load)
    windowed = sum(window is not None for window in shape.windows)
    slides = f", {windowed} of {len(shape.windows)} layers keep their window only" if windowed else ""
    memory = machine.memory
    return (
        Amount("weights_bytes", stored, "bytes", "exact", "shapes and format; headers and padding not counted"),
        Amount(
            "cache_bytes",
            cache,
            "bytes",
            "exact",
            f"{load.batch} × {load.context} tokens at {load.cache_bits:g} bits a number{slides}",
        ),
        Amount(
            "activation_bytes",
            live,
            "bytes",
            "at least",
            f"what lives in the wider half of a block for {min(load.chunk, load.prompt)} tokens, and logits, at "
            f"{load.live_bytes} bytes a number; attention scores are not stored",
        ),
        Amount("needed_bytes", stored + cache + live, "bytes", "at least", "the three together"),
        *_resident(stored + cache + live, repacked, machine),
        Amount("memory_bytes", None if memory is None else memory.value, "bytes", *_told(memory)),
    )


def _resident(needed: float, repacked: float, machine: Machine) -> tuple[Amount, ...]:
    """Return what llama.cpp copies on a processor, and what its process may show in memory then."""
    if not machine.packs:
        return ()
    most = BUFFERS * (needed + repacked) + ALLOWANCE
    return (
        Amount(
            "repacked_bytes",
            repacked,
            "bytes",
            "at most",
            "weights that llama.cpp packs anew for such a processor, in a copy; builds for fewer instructions pack "
            "less, and its option --no-repack nothing",
        ),
        Amount(
            "resident_bytes",
            most,
            "bytes",
            "at most",
            f"needed and copies, with {BUFFERS - 1:.0%} and {ALLOWANCE >> 20} MiB for the engine's buffers (measured, "
            "docs/how-to/estimate.md); what of the file was copied counts too until the system takes its pages back",
        ),
    )


def _told(figure: Figure | None) -> tuple[Sense, str]:
    return ("unknown", "no document that we read says it") if figure is None else (figure.sense, figure.source)


def _limits(stored: float, shape: DecoderShape, load: Load, memory: Figure | None) -> tuple[Amount, ...]:
    """Return the longest context and the largest batch that fit."""
    if memory is None:
        why = "the machine's memory is not known"
        return (
            Amount("longest_context", None, "tokens", "unknown", why),
            Amount("largest_batch", None, "sequences", "unknown", why),
        )
    live, room = _live(shape, load), memory.value * (1 - RESERVED)
    sense: Sense = "about" if memory.sense == "about" else "at most"

    def holds(tokens: int, batch: int) -> bool:
        return stored + live + _cache(shape, load, tokens, batch) <= room

    longest = _largest(lambda tokens: holds(tokens, load.batch))
    trained = f"; the model was trained for {shape.context}" if shape.context else ""
    return (
        Amount("longest_context", longest, "tokens", sense, f"{load.batch} sequences side by side{trained}"),
        Amount(
            "largest_batch",
            _largest(lambda batch: holds(load.context, batch)),
            "sequences",
            sense,
            f"of {load.context} tokens each",
        ),
    )


def _largest(holds: Callable[[int], bool]) -> int:
    """Return the largest number up to MOST for which it holds, 0 if for none; what holds for one holds below it."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _speeds(traffic: Traffic, shape: DecoderShape, load: Load, machine: Machine) -> tuple[Amount, ...]:
    peak = machine.peaks.get(load.compute)
    return (
        *_decode(traffic, shape, load, machine),
        *_prefill(traffic, shape, load, machine, None if peak is None else peak.value),
    )


def _read_in_a_step(traffic: Traffic, shape: DecoderShape, batch: int) -> float:
    """Bytes of weights that a step of `batch` sequences reads; experts as if each token picked them at random."""
    if not traffic.is_mixture or batch == 1:
        return traffic.weight_bytes
    share = shape.used / shape.experts
    whole = traffic.expert_bytes / share
    return traffic.weight_bytes - traffic.expert_bytes + whole * (1 - (1 - share) ** batch)


def _decode(traffic: Traffic, shape: DecoderShape, load: Load, machine: Machine) -> tuple[Amount, ...]:
    """Return the speed of generation: each step reads the weights once and every cache."""
    if machine.read is None:
        why = "the bandwidth of the machine's memory is not known"
        return (Amount("decode_tokens_per_s", None, "tokens/s", "unknown", why),)
    cache = _cache(shape, load, load.context, load.batch)
    weights = _read_in_a_step(traffic, shape, load.batch)
    seconds, bound = (weights + cache) / machine.read.value, "bandwidth"
    peak = machine.peaks.get(load.compute)
    if peak is not None:
        computing = load.batch * 2 * (traffic.body + traffic.head) / peak.value
        seconds, bound = max((seconds, bound), (computing, f"{load.compute} arithmetic"))
    basis = (
        f"bound by {bound}: {weights / 1e9:.4g} GB of weights and, at the full context, {cache / 1e9:.4g} GB of cache "
        f"a step at {machine.read.value / 1e9:.4g} GB/s ({machine.read.source})"
    )
    experts = "; experts picked at random" if traffic.is_mixture and load.batch > 1 else ""
    return (
        Amount("decode_tokens_per_s", load.batch / seconds, "tokens/s", "at most", basis + experts),
        Amount("decode_tokens_per_s_each", 1 / seconds, "tokens/s", "at most", "of one sequence"),
    )


def _prefill(
    traffic: Traffic, shape: DecoderShape, load: Load, machine: Machine, peak: float | None
) -> tuple[Amount, ...]:
    """Return the speed of a prompt: its multiply-adds at the peak, and the weights once for every chunk."""
    names = (("prefill_tokens_per_s", "tokens/s"), ("first_token_s", "s"))
    if peak is None:
        why = f"the peak in {load.compute} is not known"
        return tuple(Amount(name, None, unit, "unknown", why) for name, unit in names)
    operations = traffic.prompt_operations(load.prompt) + shape.attention_operations(load.prompt)
    seconds, bound = operations / peak, f"{load.compute} arithmetic"
    if machine.read is not None:
        chunks = -(-load.prompt // load.chunk)
        reading = chunks * _read_in_a_step(traffic, shape, min(load.chunk, load.prompt)) / machine.read.value
        seconds, bound = max((seconds, bound), (reading, "bandwidth"))
    basis = (
        f"bound by {bound}: {operations / 1e12:.4g} T operations for {load.prompt} tokens in {load.compute} at "
        f"{peak / 1e12:.4g} T a second ({machine.peaks[load.compute].source})"
    )
    return (
        Amount("prefill_tokens_per_s", load.prompt / seconds, "tokens/s", "at most", basis),
        Amount("first_token_s", seconds, "s", "at least", "the prompt, of one sequence alone"),
    )

"""Cards as real runs make them, without running anything."""

from __future__ import annotations

import math
from dataclasses import replace

from tersor.core.card import Artefact, Card, Seconds, TensorError
from tersor.core.evaluation import Benchmark, Evaluation, Histogram, LayerError, Limit, Metric, Sample
from tersor.core.plan import Plan, PlannedTensor, Recipe

BITS = {"q8_0": 8.5, "q6_k": 6.5625, "q5_k": 5.5, "q4_k": 4.5, "q3_k": 3.4375, "q2_k": 2.625}
KINDS: dict[str, tuple[int, ...]] = {
    "attn_norm": (576,),
    "attn_q": (576, 576),
    "attn_k": (192, 576),
    "attn_v": (192, 576),
    "attn_output": (576, 576),
    "ffn_norm": (576,),
    "ffn_gate": (1536, 576),
    "ffn_up": (1536, 576),
    "ffn_down": (576, 1536),
}


def make_card(format: str = "q4_k", *, blocks: int = 30, is_measured: bool = True) -> Card:  # noqa: A002 (as elsewhere)
    """A Card of a model the size of SmolLM-135M, made with one format."""
    noise = 0.9 * 2.0 ** -BITS[format]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (49152, 576)}
    shapes |= {f"blk.{block}.{kind}.weight": shape for block in range(blocks) for kind, shape in KINDS.items()}
    shapes["output_norm.weight"] = (576,)
    tensors, errors = [], []
    for index, (name, shape) in enumerate(shapes.items()):
        is_kept = len(shape) == 1
        chosen = "f32" if is_kept else "q6_k" if "ffn_down" in name and index % 2 else format
        bits = 32.0 if is_kept else BITS[chosen]
        nbytes = int(math.prod(shape) * bits / 8)
        tensors.append(
            PlannedTensor(name, shape, "BF16", chosen, "kept f32: norm" if is_kept else "default", "", nbytes)
        )
        error = 0.0 if is_kept else 0.9 * 2.0 ** -BITS[chosen] * (1 + 0.4 * math.sin(index) ** 2 + index / 600)
        errors.append(TensorError(name, error))
    plan = Plan("SmolLM-135M", "llama", Recipe(f"{format}_m", "llama.cpp b9941"), tuple(tensors))
    weights = plan.weights
    measured = is_measured
    return Card(
        name="SmolLM-135M",
        plan=plan,
        sources={"model.safetensors": "5af5" * 16, "tokenizer.json": "9ca9" * 16},
        source_bytes=weights * 2,
        artefacts=(Artefact(f"smollm-{format}.gguf", plan.nbytes + 1_800_000, "c0de" * 16),),
        errors=tuple(errors),
        seconds=Seconds(1.1, 14.2, 0.8, 0.6, 14.9),
        peak_memory_bytes=412 * 2**20,
        versions={"tersor": "0.1.0", "python": "3.11.2", "numpy": "2.5.3", "kernels": "native avx2"},
        platform="Linux x86_64, 2 cores",
        command=f"tersor quantize SmolLM-135M -o smollm-{format}.gguf --format {format}_m",
        evaluations=(make_evaluation(noise, f"smollm-{format}.gguf"),) if measured else (),
        layers=make_layers(blocks, noise) if measured else (),
        benchmarks=(make_benchmark(plan.nbytes, f"smollm-{format}.gguf"),) if measured else (),
    )


def make_evaluation(noise: float, subject: str) -> Evaluation:
    """An evaluation whose divergence follows from the noise of the weights."""
    mean = 8.0 * noise**2
    edges = (0.0, *(10.0 ** (power / 4) for power in range(-32, 9)))
    center = math.log10(mean / 3)
    counts = tuple(round(9000 * math.exp(-(((math.log10(edge) - center) / 0.9) ** 2))) for edge in edges[1:])
    metrics = (
        Metric("perplexity", 17.3 * (1 + mean), "", 16.9 * (1 + mean), 17.7 * (1 + mean), 128),
        Metric("reference_perplexity", 17.3, "", 16.9, 17.7, 128),
        Metric("perplexity_ratio", 1 + mean, "", 1 + 0.8 * mean, 1 + 1.2 * mean, 128, 1.0000002),
        Metric("kl_mean", mean, "nats", 0.93 * mean, 1.07 * mean, 128, 3.1e-9),
        Metric("kl_median", mean / 3, "nats", 0.3 * mean, 0.36 * mean, 128, 1.2e-10),
        Metric("kl_p99", 9 * mean, "nats", 8 * mean, 10.1 * mean, 128, 4e-8),
        Metric("kl_max", 120 * mean, "nats", units=128, floor=6.7e-7),
        Metric("top1_agreement", 1 - 1.9 * noise, "", 1 - 2 * noise, 1 - 1.8 * noise, 128, 0.99998),
        Metric("rms_delta_p", 0.9 * noise, "", 0.86 * noise, 0.94 * noise, 128, 0.00001),
    )
    samples = (
        Sample("    def close(self):\n        if self._", "file", " is not None:\n            self._file.close()\n",
               120 * mean, "original: 'file' 0.91; quantized: 'closed' 0.55, 'file' 0.31"),
        Sample("The capital of the region is ", "\n", "It lies on the river", 80 * mean, "original: '\\n' 0.40"),
    )  # fmt: skip
    limits = (
        Limit("kl_mean", 0.05, False, "pass" if mean < 0.05 else "fail", f"kl_mean is {mean:.4g} nats, the limit 0.05"),
        Limit("top1_agreement", 0.9, True, "inconclusive", "top1_agreement lies between 0.88 and 0.93, the limit is "
              "0.9", 410),
    )  # fmt: skip
    return Evaluation(
        task="language",
        subject=subject,
        subject_sha256="c0de" * 16,
        reference="SmolLM-135M",
        data="wiki.test.txt",
        data_sha256="beef" * 16,
        engines={"subject": "xllamacpp 2026.10", "reference": "transformers 5.23, float32"},
        settings={"window": 512, "convention": "llama.cpp: second half of each window", "seed": 0},
        metrics=metrics,
        histograms=(Histogram("kl", edges, counts),),
        samples=samples,
        limits=limits,
        notes=("The noise floor is the reference against itself in batches of another size.",),
        seconds=311.0,
        versions={"tersor": "0.1.0"},
        command=f"tersor evaluate {subject} --against SmolLM-135M --data wiki.test.txt --max-kl 0.05",
        date="2026-11-24",
    )


def make_layers(blocks: int, noise: float) -> tuple[LayerError, ...]:
    """Noise that enters evenly and grows on its way."""
    start = -20 * math.log10(noise)
    rows = [
        LayerError(f"blk.{block}", "block", block, start, 0.999, 0.4, None, start + 6 + math.cos(block),
                   start + 5 - 8 * math.log10(block + 1))
        for block in range(blocks)
    ]  # fmt: skip
    faulty = LayerError("blk.3.attn_q.weight", "attn_q", 3, start - 9, 0.91, 5.2, 0.01, findings=(
        "rows 16 … 31 (head 1) are those of head 3",))  # fmt: skip
    return (*rows, faulty)


def make_benchmark(nbytes: int, subject: str) -> Benchmark:
    """Speed that follows from the bytes that are read for every token."""
    rate = 9e9 / nbytes
    return Benchmark(
        subject=subject,
        subject_sha256="c0de" * 16,
        against="smollm-f16.gguf",
        engine="llama.cpp (xllamacpp 2026.10)",
        machine={"processor": "AMD EPYC 7B13", "threads": 2, "memory GB/s": 21.4, "compute GFLOP/s": 96.0},
        settings={"prompt tokens": 256, "new tokens": 64, "repeats": 12},
        metrics=(
            Metric("time_to_first_token_ms", 812.4, "ms", 799.0, 830.5, 12),
            Metric("prompt_tokens_per_s", 315.2, "tokens/s", 309.0, 320.9, 12, share=0.64),
            Metric("generation_tokens_per_s", rate, "tokens/s", 0.98 * rate, 1.01 * rate, 12, share=0.83),
            Metric("latency_p50_ms", 1e3 / rate, "ms", 0.99e3 / rate, 1.02e3 / rate, 12),
            Metric("peak_memory_bytes", float(nbytes + 3e8), "bytes", units=12),
        ),
        ratios=(Metric("generation_tokens_per_s", 2.71, "", 2.66, 2.77, 12),),
        seconds=64.0,
        command=f"tersor bench {subject} --against smollm-f16.gguf",
        date="2026-11-24",
    )


def hostile(name: str) -> Card:
    """A Card in which every name and text is `name`."""
    card = make_card(blocks=4)
    evaluation = card.evaluations[0]
    evaluation = replace(
        evaluation, task=name, subject=name, reference=name, data=name, engines={name: name}, settings={name: name},
        notes=(name,), command=name, date=name, versions={name: name},
        metrics=tuple(replace(metric, name=name + metric.name, unit=name) for metric in evaluation.metrics),
        histograms=tuple(replace(histogram, name=name) for histogram in evaluation.histograms),
        samples=tuple(replace(s, before=name, text=name, after=name, detail=name) for s in evaluation.samples),
        limits=tuple(replace(limit, metric=name, reason=name) for limit in evaluation.limits),
    )  # fmt: skip
    tensors = tuple(
        replace(t, name=f"blk.{i % 4}.{name}{i // 4}", format=name, reason=name, source_dtype=name, wanted=name)
        for i, t in enumerate(card.plan.tensors)
    )
    recipe = replace(card.plan.recipe, format=name, mixture=name, importance=name, tensor_formats=(name,), search=name)
    benchmark = card.benchmarks[0]
    benchmark = replace(
        benchmark, subject=name, against=name, engine=name, machine={name: name}, settings={name: name}, notes=(name,),
        metrics=tuple(replace(metric, name=name, unit=name) for metric in benchmark.metrics),
    )  # fmt: skip
    return replace(
        card, name=name, plan=replace(card.plan, model=name, architecture=name, recipe=recipe, tensors=tensors),
        sources={name: name}, versions={name: name}, platform=name, command=name, notes=(name,),
        artefacts=tuple(replace(a, name=name, sha256=name) for a in card.artefacts),
        errors=tuple(replace(e, name=t.name) for e, t in zip(card.errors, tensors, strict=True)),
        layers=tuple(replace(row, name=name, kind=name, findings=(name,)) for row in card.layers),
        evaluations=(evaluation,), benchmarks=(benchmark,),
    )  # fmt: skip

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tersor.core.errors import EngineError, MissingError, SchemeError, UnsupportedError
from tersor.core.evaluation import Benchmark
from tersor.core.records import plain, read_record
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.speed.runners import RUNNERS
from tersor.evaluation.speed.workload import Workload
from tersor.models import load
from tersor.pipeline.bench import bench, model_roof
from tersor.pipeline.quantize import quantize
from tersor.pipeline.steps.cards import read_card

SHORT: dict[str, Any] = {"threads": 1, "prompt": 8, "generate": 3, "batches": (1, 2), "timeout_s": 60}
RATES = {"prompt_tokens_per_s", "generation_tokens_per_s", "throughput_batch_1_tokens_per_s"}
RATES |= {"throughput_batch_2_tokens_per_s"}
TIMES = {"load_s", "time_to_first_token_ms", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"}
SIZES = {"file_bytes", "loaded_bytes", "peak_memory_bytes", "steady_memory_bytes"}


@pytest.fixture(scope="module")
def artefacts(tiny_gguf: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantized model with its Card, and the float one it was made from."""
    output = tmp_path_factory.mktemp("bench") / "tiny-q8_0.gguf"
    quantize(load(tiny_gguf()), "q8_0", output)
    return output, tiny_gguf()


@pytest.fixture(scope="module")
def pair(artefacts: tuple[Path, Path]) -> tuple[Benchmark, ...]:
    subject, other = artefacts
    return bench(subject, against=other, rounds=6, command="tersor bench x", **SHORT)


def test_every_metric_is_there_for_both_sides_and_as_a_ratio(pair: tuple[Benchmark, ...]) -> None:
    subject, other = pair
    for one in pair:
        found = {metric.name: metric for metric in one.metrics}
        assert (
            RATES | TIMES | {"file_bytes", "loaded_bytes"}
            <= set(found)
            <= RATES | TIMES | SIZES | {"energy_joules_per_token"}
        )
        assert all(metric.value > 0 and math.isfinite(metric.value) for metric in one.metrics)
        assert all(found[name].low is not None and found[name].units == 6 for name in RATES)
        assert {name for name, metric in found.items() if metric.share is not None} == {
            "prompt_tokens_per_s", "generation_tokens_per_s",
        }  # fmt: skip
    assert {metric.name for metric in subject.ratios} == {metric.name for metric in subject.metrics}
    assert other.ratios == ()


def test_the_sizes_are_those_of_the_files(pair: tuple[Benchmark, ...], artefacts: tuple[Path, Path]) -> None:
    ratios = {metric.name: metric.value for metric in pair[0].ratios}
    sizes = [path.stat().st_size for path in artefacts]
    assert [one.metric("file_bytes").value for one in pair] == sizes  # type: ignore[union-attr]  # it is there
    assert ratios["file_bytes"] == sizes[0] / sizes[1]
    assert ratios["loaded_bytes"] < 0.5


def test_the_benchmark_says_what_ran_where(pair: tuple[Benchmark, ...], artefacts: tuple[Path, Path]) -> None:
    subject = pair[0]
    assert (subject.subject, subject.against) == tuple(path.name for path in artefacts)
    assert len(subject.subject_sha256) == 64
    assert subject.engine.startswith("xllamacpp ")
    assert {"processor", "cores", "threads", "read_bytes_per_s", "float32_operations_per_s"} <= set(subject.machine)
    assert subject.settings["prompt_tokens"] == 8
    assert "xllamacpp" in subject.versions
    assert subject.seconds > 0
    assert subject.date.endswith("Z")
    assert any("reads 0.1 MiB of weights" in note for note in subject.notes)


def test_the_card_takes_the_benchmark_in(pair: tuple[Benchmark, ...], artefacts: tuple[Path, Path]) -> None:
    card = read_card(artefacts[0])
    assert card is not None
    assert card.benchmarks == (pair[0],)
    assert read_record(Benchmark, plain(pair[0]), "benchmark") == pair[0]


def test_limits_pass_and_fail(artefacts: tuple[Path, Path]) -> None:
    passed = bench(artefacts[1], against=artefacts[0], rounds=6, max_latency_ratio=1e6, min_tokens_per_s=1e-3, **SHORT)[
        0
    ]
    assert [(limit.metric, limit.outcome) for limit in passed.limits] == [
        ("latency_ratio", "pass"), ("generation_tokens_per_s", "pass"),
    ]  # fmt: skip
    failed = bench(artefacts[1], rounds=6, min_tokens_per_s=1e12, **SHORT)[0]
    assert [limit.outcome for limit in failed.limits] == ["fail"]


def test_progress_reaches_the_end(artefacts: tuple[Path, Path]) -> None:
    told: list[tuple[int, int]] = []
    bench(artefacts[1], rounds=1, progress=lambda _, done, total: told.append((done, total)), **SHORT)
    assert told[-1][0] == told[-1][1] == len(told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_latency_ratio": 1.0}, "max_latency_ratio compares with another artefact"),
        ({"min_tokens_per_s": 1.0, "rounds": 5}, "limits need at least 6 rounds, got 5"),
        ({"rounds": 0}, "rounds must be positive"),
        ({"batches": (0,)}, "batches must be different numbers"),
    ],
)
def test_options_that_do_not_combine_are_refused_before_anything_runs(
    artefacts: tuple[Path, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SchemeError, match=message):
        bench(artefacts[0], **options)


def test_a_gguf_stays_on_the_processor(artefacts: tuple[Path, Path]) -> None:
    elsewhere: tuple[dict[str, Any], ...] = ({"device": "cuda"}, {"kernels": "torch"})
    for options in elsewhere:
        with pytest.raises(SchemeError, match=r"a GGUF runs in llama\.cpp, on the processor"):
            bench(artefacts[0], rounds=1, **SHORT, **options)


def test_the_settings_of_each_side_name_what_it_was_run_with(
    artefacts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF beside folders, whose engine another plays."""
    given = []

    def opens(_: Path, work: Workload) -> LlamaCpp:
        given.append((work.device, work.kernels))
        return LlamaCpp(artefacts[1], context=0, threads=1, timeout_s=60)

    played = replace(RUNNERS["llama.cpp"], suits=lambda path: path.is_dir(), opens=opens, devices=True)
    monkeypatch.setitem(RUNNERS, "transformers", played)
    for name, config in (("quantized", '{"quantization_config": {"bits": 4}}'), ("plain", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        (tmp_path / name / "model.safetensors").write_bytes(b"x")

    def named(*places: Path, **asked: Any) -> list[set[str]]:
        made = bench(places[0], against=places[1], rounds=1, **asked, **SHORT)
        return [{"device", "kernels"} & set(one.settings) for one in made]

    assert named(artefacts[1], tmp_path / "quantized", device="cuda", kernels="torch") == [set(), {"device", "kernels"}]
    assert named(artefacts[1], tmp_path / "plain", device="cuda") == [set(), {"device"}]
    assert set(given) == {("cuda", "torch"), ("cuda", "auto")}
    given.clear()
    plain = tmp_path / "plain"
    assert named(plain, tmp_path / "quantized", device="cuda", kernels="torch") == [{"device"}, {"device", "kernels"}]
    assert given[:2] == [("cuda", "auto"), ("cuda", "torch")]
    with pytest.raises(SchemeError, match="kernels are for quantized folders"):
        bench(plain, against=artefacts[1], kernels="torch", **SHORT)
    with pytest.raises(SchemeError, match="kernels are for quantized folders"):
        model_roof(plain, kernels="torch")


def test_what_cannot_be_run_is_an_error_of_its_own_kind(artefacts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file or folder"):
        bench(tmp_path / "none.gguf")
    with pytest.raises(UnsupportedError, match="bench runs a GGUF"):
        bench(tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(artefacts[1].read_bytes().replace(b"blk.1.attn_q", b"blk.1.attn_x"))
    with pytest.raises(EngineError, match=r"(?s)loading .*broken\.gguf.*attn_q"):
        bench(artefacts[0], against=broken, rounds=1, **SHORT)

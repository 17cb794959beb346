from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tersor import reference_model

from .conftest import Run

SHORT = ("--threads", 1, "--prompt", 6, "--generate", 2, "--batches", "1,2")


@pytest.fixture
def path(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf()


def test_the_table_shows_both_sides_their_ratio_and_the_roofs(
    run: Run, path: Path, tiny_gguf: Callable[..., Path]
) -> None:
    done = run("bench", path, "--against", tiny_gguf(1), "--rounds", 6, *SHORT)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "1 of " in lines[0]
    assert "GiB/s, float32 " in lines[0]
    assert lines[1].startswith("A  tiny-0.gguf, xllamacpp ")
    assert lines[2].startswith("B  tiny-1.gguf, xllamacpp ")
    for start in ("load, ms", "generation, tokens/s", "  share of the roof", "batch 2, tokens/s", "latency p99, ms"):
        assert any(line.startswith(start) for line in lines), start
    assert next(line for line in lines if line.startswith("file, MiB")).split()[-1] == "1"
    assert any(line.startswith("note: tiny-0.gguf: a generated token reads") for line in lines)
    assert "…" not in done.out


def test_a_whole_model_stands_beside_the_roof_and_its_layers_are_unknown(run: Run, path: Path) -> None:
    options = ("--roof", "--threads", 1, "--prompt", 6, "--generate", 2, "--rounds", 1)
    done = run("bench", path, *options)
    assert done.code == 0, done.err
    assert any(line.split()[:2] == ["token", "generated"] for line in done.out.splitlines())
    assert "layers: unknown" in done.out
    prompt, token = run("bench", path, *options, "--json").document["kernels"]
    shapes = 2 * (64 * 64 * 3 + 3 * 96 * 64)
    assert token["operations"] == 2 * (shapes + 300 * 64)
    assert prompt["operations"] == 2 * (6 * shapes + 300 * 64)
    assert token["nbytes"] > 4 * (shapes + 300 * 64)
    assert token["share"] > 0
    for more in (("--against", path), ("--compare", "engines")):
        refused = run("bench", path, "--roof", *more)
        assert (refused.code, "--roof looks at one artefact" in refused.err) == (1, True)


def test_json_is_one_document(run: Run, path: Path) -> None:
    done = run("bench", path, "--rounds", 1, "--json", *SHORT)
    (one,) = done.document["benchmarks"]
    assert one["subject"] == "tiny-0.gguf"
    assert {metric["name"] for metric in one["metrics"]} >= {"generation_tokens_per_s", "file_bytes"}
    assert one["command"].startswith("tersor bench tiny-0.gguf --rounds 1 --json")
    assert one["ratios"] == []


def test_the_command_in_the_card_names_no_folder(run: Run, path: Path) -> None:
    done = run("bench", path, f"--against={path}", "--rounds", 1, "--json", *SHORT)
    assert done.document["benchmarks"][0]["command"].startswith("tersor bench tiny-0.gguf --against=tiny-0.gguf ")


def test_the_exit_code_tells_pass_fail_and_inconclusive(run: Run, path: Path) -> None:
    passed = run("bench", path, "--rounds", 6, "--min-tokens-per-s", 0.001, *SHORT)
    assert (passed.code, "pass: " in passed.out) == (0, True)
    failed = run("bench", path, "--rounds", 6, "--min-tokens-per-s", 1e12, *SHORT)
    assert (failed.code, "fail: " in failed.out) == (1, True)


def test_a_limit_judges_the_fastest_of_the_engines_that_are_compared(run: Run, path: Path) -> None:
    failed = run("bench", path, "--compare", "engines", "--rounds", 6, "--min-tokens-per-s", 1e12, *SHORT)
    assert (failed.code, "fail: " in failed.out) == (1, True)


def test_an_interval_that_holds_the_limit_is_inconclusive(run: Run, path: Path) -> None:
    """A file beside itself: the interval of the ratio holds its own median."""
    for _ in range(5):
        done = run("bench", path, "--against", path, "--rounds", 6, "--json", *SHORT)
        row = next(r for r in done.document["benchmarks"][0]["ratios"] if r["name"] == "latency_p50_ms")
        bound = (row["low"] + row["high"]) / 2
        again = run("bench", path, "--against", path, "--rounds", 6, "--max-latency-ratio", bound, *SHORT)
        if again.code == 3:
            assert "inconclusive: " in again.out
            assert "the interval holds the largest allowed" in again.out
            return
    pytest.fail("five runs of a model beside itself were all conclusive")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batches", "1,x"), "--batches takes whole numbers with commas between"),
        (("--max-latency-ratio", "1"), "name it with against"),
    ],
)
def test_options_that_make_no_sense_are_refused(run: Run, path: Path, options: tuple[str, ...], message: str) -> None:
    done = run("bench", path, *options)
    assert done.code == 1
    assert message in done.err


def test_a_language_model_is_compared_in_every_engine_that_runs_it(run: Run) -> None:
    pytest.importorskip("transformers", reason="the other engine: pip install 'tersor[torch]'")
    short = ("--threads", 1, "--prompt", 6, "--generate", 2, "--batches", "1", "--rounds", 2)
    done = run("bench", reference_model.PATH, "--compare", "engines", "--json", *short)
    first, second = done.document["benchmarks"]
    assert {first["engine"].split()[0], second["engine"].split()[0]} == {"xllamacpp", "transformers"}
    speeds = [one["metrics"] for one in (first, second)]
    rates = [next(m["value"] for m in metrics if m["name"] == "generation_tokens_per_s") for metrics in speeds]
    assert rates == sorted(rates, reverse=True)
    assert (first["against"], second["against"]) == ("", first["engine"])
    assert next(m["value"] for m in second["ratios"] if m["name"] == "generation_tokens_per_s") > 0


def test_a_gguf_is_run_by_one_engine_which_is_said(run: Run, path: Path) -> None:
    done = run("bench", path, "--compare", "engines", "--rounds", 1, *SHORT)
    assert done.code == 0, done.err
    assert "tiny-0.gguf, 1 engines in turn" in done.out
    assert "note: transformers reads a GGUF only as floats" in done.out
    assert next(line for line in done.out.splitlines() if line.startswith("xllamacpp")).split()[-1] == "1×"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compare", "all"), "--compare takes the word engines"),
        (("--engine", "openvino"), "--engine means nothing for a language model"),
        (("--roof", "--device", "cuda"), "--roof knows the roofs of the processor, not those of cuda"),
        (("--roof", "--kernels", "torch"), "kernels are for folders"),
        (("--roof", "--min-tokens-per-s", 1), "--min-tokens-per-s means nothing for --roof"),
        (("--roof", "--max-latency-ratio", 1), "--max-latency-ratio means nothing for --roof"),
        (("--roof", "--batches", 1), "--batches means nothing for --roof"),
        (("--roof", "--no-save"), "--save means nothing for --roof"),
        (("--compare", "engines", "--save"), "--save means nothing for --compare"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(
    run: Run, path: Path, options: tuple[object, ...], message: str
) -> None:
    done = run("bench", path, *options)
    assert done.code == 1
    assert message in done.err

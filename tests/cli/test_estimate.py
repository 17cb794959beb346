from __future__ import annotations

from pathlib import Path

import pytest

from tersor.targets.profiles.table import PROFILES

from .conftest import Run


def test_the_table_says_of_each_figure_what_it_is_and_rests_on(run: Run, model: Path) -> None:
    done = run("estimate", model, "--gpu", "h100", "--context", 64, "--prompt", 16)
    assert done.code == 0, done.err
    assert done.out.startswith("tiny in as stored, mostly F32 on NVIDIA H100 SXM, 80 GB: fits\n")
    line = next(line for line in done.out.splitlines() if line.startswith("decode "))
    assert "at most" in line
    assert "note: 10% of the memory is left" in done.out


def test_json_is_one_document_and_a_model_that_does_not_fit_fails(run: Run, model: Path) -> None:
    done = run("estimate", model, "--target", "raspberry-pi-5-8gb", "--batch", 1000000, "--context", 64, "--json")
    assert done.code == 1
    assert done.document["fits"] is False
    assert {amount["name"] for amount in done.document["amounts"]} >= {
        "weights_bytes",
        "cache_bytes",
        "longest_context",
    }


def test_profiles_are_listed_with_their_sources(run: Run) -> None:
    done = run("estimate", "--list")
    assert done.code == 0, done.err
    assert all(any(line.startswith(name + " ") for line in done.out.splitlines()) for name in PROFILES)
    rows = run("estimate", "--list", "--json").document
    assert [row["name"] for row in rows] == list(PROFILES)
    card = next(row for row in rows if row["name"] == "h100")
    assert "data sheet" in card["read_bytes_per_s"]["source"]
    assert card["memory_bytes"]["source"].startswith("81559 MiB, the memory.total that nvidia-smi shows")


def test_a_prompt_is_cut_to_the_context_only_where_nobody_asked_for_it(run: Run, model: Path) -> None:
    options = ("estimate", model, "--gpu", "h100", "--context", 256, "--json")
    amounts = {amount["name"]: amount for amount in run(*options).document["amounts"]}
    assert "for 256 tokens" in amounts["prefill_tokens_per_s"]["basis"]
    refused = run(*options, "--prompt", 1000)
    assert (refused.code, "a prompt of 1000 tokens does not fit in a context of 256" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name a MODEL, or --list"),
        (("x.gguf", "--gpu", "h100", "--target", "l4"), "--target and --gpu name the same thing"),
        (("x.gguf", "--gpu", "h99"), "no profile 'h99'"),
        (("x.gguf", "--gpu", "h100", "--threads", 2), "threads are those of a measurement here"),
        (("x.gguf", "--gpu", "h100"), "no such file"),
    ],
)
def test_options_that_make_no_sense_are_refused(run: Run, options: tuple[object, ...], message: str) -> None:
    done = run("estimate", *options)
    assert done.code == 1
    assert message in done.err

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tersor.core.errors import EngineError
from tersor.engines.llama_cpp import LlamaCpp, empty_engine

PROMPT, STEPS = [5, 17, 99, 4, 250, 33], 12


@pytest.fixture(scope="module")
def path(tiny_gguf: Any) -> Path:
    made: Path = tiny_gguf()
    return made


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(path, context=0, timeout_s=60) as opened:
        opened.timed("time_open", sequences=1, context=64, threads=1)
        opened.timed("time_open", sequences=4, context=64, threads=1)
        yield opened


def continued(engine: LlamaCpp, sequences: int, prompts: list[list[int]], steps: int = STEPS) -> list[list[int]]:
    engine.timed("time_prompt", sequences=sequences, prompts=prompts)
    made: list[list[int]] = engine.timed("time_generation", sequences=sequences, steps=steps)["ids"]
    return made


def check_likeliest(engine: LlamaCpp, prompt: list[int], made: list[int]) -> None:
    """Each token is the likeliest of the closely computed logits, up to what a cache in float16 changes."""
    logits = engine.logits([*prompt, *made], start=len(prompt) - 1)[: len(made)]
    missing = logits.max(axis=1) - logits[range(len(made)), made]
    assert missing.max() < 0.02 * logits.std()


def test_a_batch_continues_each_sequence_as_it_would_be_alone(engine: LlamaCpp) -> None:
    prompts = [PROMPT, PROMPT[1:], [*PROMPT, 7, 8], PROMPT[::-1]]
    alone = [continued(engine, 1, [prompt])[0] for prompt in prompts]
    assert continued(engine, 4, prompts) == alone
    assert len({tuple(ids) for ids in alone}) == 4


def test_fewer_sequences_than_the_context_holds_are_no_others(engine: LlamaCpp) -> None:
    assert continued(engine, 4, [PROMPT, PROMPT[1:]]) == continued(engine, 4, [PROMPT, PROMPT[1:], [1]])[:2]


def test_what_is_timed_is_what_is_generated_elsewhere(engine: LlamaCpp, path: Path) -> None:
    with LlamaCpp(path, context=64) as other:
        check_likeliest(other, PROMPT, continued(engine, 1, [PROMPT])[0])


def test_generation_goes_on_where_it_stopped(engine: LlamaCpp) -> None:
    whole = continued(engine, 1, [PROMPT])[0]
    first = continued(engine, 1, [PROMPT], 5)[0]
    rest = engine.timed("time_generation", sequences=1, steps=STEPS - 5)["ids"][0]
    assert first + rest[1:] == whole


def test_every_step_has_a_time_and_the_prompt_two(engine: LlamaCpp) -> None:
    read = engine.timed("time_prompt", sequences=1, prompts=[PROMPT])
    assert 0 < read["evaluated_ns"] < read["first_token_ns"]
    times = engine.timed("time_generation", sequences=1, steps=STEPS)["step_ns"]
    assert len(times) == STEPS
    assert min(times) > 0


def test_long_prompts_are_read_in_pieces(path: Path) -> None:
    long = [index % 290 for index in range(2100)]  # batches hold 2048
    with LlamaCpp(path, context=0) as timed, LlamaCpp(path, context=2200) as other:
        timed.timed("time_open", sequences=1, context=2200, threads=1)
        check_likeliest(other, long, continued(timed, 1, [long], 3)[0])


def test_the_engine_tells_the_size_of_its_weights_and_how_long_they_took_to_load(engine: LlamaCpp, path: Path) -> None:
    size = engine.timed("time_open", sequences=1, context=64, threads=1)["loaded_bytes"]
    assert 0.9 * path.stat().st_size < size < path.stat().st_size
    assert engine.load_s > 0
    assert engine.pid is not None


@pytest.mark.parametrize(
    ("operation", "fields", "message"),
    [
        ("time_prompt", {"sequences": 2, "prompts": [[1]]}, "no context for 2 sequences was opened"),
        ("time_prompt", {"sequences": 1, "prompts": [[1], [2]]}, "1 to 1 prompts of a token or more are needed"),
        ("time_prompt", {"sequences": 1, "prompts": [[]]}, "1 to 1 prompts of a token or more are needed"),
        ("time_generation", {"sequences": 1, "steps": 5000}, "llama_decode returned 1 for 1 tokens"),
    ],
)
def test_impossible_requests_are_refused(
    engine: LlamaCpp, operation: str, fields: dict[str, Any], message: str
) -> None:
    engine.timed("time_prompt", sequences=1, prompts=[PROMPT])
    with pytest.raises(EngineError, match=message):
        engine.timed(operation, **fields)
    assert continued(engine, 1, [PROMPT], 1)


def test_there_is_nothing_to_continue_before_a_prompt(path: Path) -> None:
    with LlamaCpp(path, context=0) as engine:
        engine.timed("time_open", sequences=1, context=64, threads=1)
        with pytest.raises(EngineError, match="there is no prompt to continue"):
            engine.timed("time_generation", sequences=1, steps=1)


def test_an_engine_without_a_context_computes_no_logits(engine: LlamaCpp) -> None:
    with pytest.raises(EngineError, match="exceed the context of 0"):
        engine.logits([1])


def test_an_engine_without_a_model_starts_and_ends() -> None:
    child = empty_engine()
    assert child.pid is not None
    child.close()
    assert child.pid is None

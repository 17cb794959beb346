"""What llama.cpp copies while it loads: by the table, and by what its process really takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tersor.engines.llama_cpp import LlamaCpp, empty_engine
from tersor.evaluation.estimates.limits import Machine
from tersor.evaluation.estimates.repacking import repacked_bytes
from tersor.evaluation.speed.traffic import Weight
from tersor.models import load
from tersor.pipeline.quantize import quantize
from tersor.pipeline.targets.estimate import estimate
from tersor.targets.processor import processor

AVX2, AVX512 = ("avx2", "fma"), ("avx2", "avx512f")
NEON, DOT = ("asimd",), ("asimd", "asimddp")
MIB = 1 << 20


def matrix(label: str, name: str = "blk.0.attn_q.weight", shape: tuple[int, ...] = (256, 256)) -> Weight:
    return Weight(name, shape, 1000.0, label)


@pytest.mark.parametrize(
    ("label", "flags"),
    [
        ("q4_0", (AVX2, AVX512, DOT)),
        ("q4_k", (AVX2, AVX512, DOT)),
        ("q2_k", (AVX512,)),
        ("q5_k", (DOT,)),
        ("q6_k", (DOT,)),
        ("q8_0", (DOT,)),
        ("iq4_nl", (AVX2, AVX512, NEON, DOT)),
        ("mxfp4", (AVX2, AVX512, DOT)),
        ("q5_0", ()),
        ("f16", ()),
    ],
)
def test_which_types_are_copied_where(label: str, flags: tuple[tuple[str, ...], ...]) -> None:
    copied = [sets for sets in (AVX2, AVX512, NEON, DOT, ()) if repacked_bytes([matrix(label.upper())], sets)]
    assert set(copied) == set(flags)


def test_vectors_looked_up_rows_and_odd_numbers_of_rows_are_not_copied() -> None:
    embedding, output = matrix("Q4_0", "token_embd.weight"), matrix("F16", "output.weight")
    assert repacked_bytes([embedding, output], AVX2) == 0
    assert repacked_bytes([embedding], AVX2) == 1000  # the output matrix too
    assert repacked_bytes([matrix("Q4_0", shape=(252, 256)), output], AVX2) == 0
    assert repacked_bytes([matrix("Q4_0", shape=(252, 256)), output], DOT) == 1000
    assert repacked_bytes([matrix("Q4_0", shape=(256,)), matrix("Q4_0", shape=(8, 1)), output], AVX2) == 0
    assert repacked_bytes([matrix("Q4_0", "blk.0.ffn_up_exps.weight", (4, 256, 256)), output], AVX2) == 1000


def taken(pid: int | None) -> dict[str, int]:
    """Bytes of a process: all in memory, and what of that is of no file."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0] in ("VmRSS:", "RssAnon:")}


def run(path: Path) -> dict[str, int]:
    """What an engine takes once it has generated."""
    with LlamaCpp(path, context=0, threads=1) as engine:
        engine.timed("time_open", sequences=1, context=65, threads=1)
        engine.timed("time_prompt", sequences=1, prompts=[list(range(32))])
        engine.timed("time_generation", sequences=1, steps=4)
        return taken(engine.pid)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process takes")
def test_a_running_engine_takes_what_the_estimate_says(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    """Of 12 million weights: enough that a copy stands out from what any process takes."""
    pytest.importorskip("xllamacpp", reason="runs a GGUF: pip install 'tersor[llama]'")
    if "avx2" not in processor().flags:
        pytest.skip("looked up and seen on x86 with AVX2")
    here = Machine("here", "cpu", None, None, {}, packs=processor().flags)
    empty = empty_engine(threads=1)
    bare = taken(empty.pid)
    empty.close()
    seen = {}
    for kind in ("f16", "q8_0", "q4_0", "iq4_nl", "q4_k_s"):
        path = tmp_path / f"{kind}.gguf"
        quantize(load(tiny_gguf(hidden=512)), kind, path, measure=False)
        found, seen[kind] = estimate(path, target=here, context=65, prompt=32), run(path)
        needed, copied, most = (found.amount(f"{name}_bytes") for name in ("needed", "repacked", "resident"))
        assert needed is not None
        assert copied is not None
        assert most is not None
        assert needed <= seen[kind]["VmRSS"] - bare["VmRSS"] <= most, kind
        copies = seen[kind]["RssAnon"] - seen["f16"]["RssAnon"]  # cache, activations and buffers are alike
        assert copies == pytest.approx(copied, abs=MIB / 2), kind
        assert (copied > 4 * MIB) == (kind in ("q4_0", "iq4_nl", "q4_k_s"))

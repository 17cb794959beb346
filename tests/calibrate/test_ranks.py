"""Several ranks add up to what one has, and one that is lost does not leave the others waiting."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.calibrate.accumulate import Sums
from tersor.calibrate.ranks import Ranks, deal, open_ranks
from tersor.calibrate.sequences import Sequences
from tersor.core.errors import MissingError, SchemeError

torch = pytest.importorskip("torch", reason="ranks speak through torch: pip install 'tersor[torch]'")

ROOT = Path(__file__).parents[2]


def sequences(count: int) -> Sequences:
    return Sequences(np.arange(count)[:, None], "text", "0" * 64)


@pytest.mark.parametrize(("count", "chunk", "size"), [(12, 2, 3), (13, 4, 2), (7, 1, 7), (100, 8, 5)])
def test_shares_are_whole_chunks_and_together_everything(count: int, chunk: int, size: int) -> None:
    parts = [Ranks(rank, size).share(sequences(count), chunk).ids[:, 0].tolist() for rank in range(size)]
    assert list(itertools.chain(*parts)) == list(range(count))
    assert all(part for part in parts)
    assert all(part[0] % chunk == 0 for part in parts)


def test_more_ranks_than_chunks_are_refused() -> None:
    with pytest.raises(SchemeError, match=r"9 sequences are 2 chunks of 8, too few for 3 ranks"):
        Ranks(0, 3).share(sequences(9), 8)


def test_a_device_that_is_not_here_is_told_before_anything_runs() -> None:
    with pytest.raises(SchemeError, match=r"torch knows no device 'bogus': give cpu, cuda"), open_ranks("bogus"):
        pass
    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(MissingError, match=f"device {absent} is not available here"), open_ranks(absent):
        pass


def test_work_is_dealt_out_evenly_and_every_rank_alone_gives_the_same_answer() -> None:
    costs = np.random.default_rng(0).uniform(1, 4, 40).tolist()
    owners = deal(costs, 3)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3)]
    assert max(loads) - min(loads) <= max(costs)
    assert owners == deal(costs, 3)
    assert deal([], 4) == []


def test_one_rank_sends_nothing() -> None:
    with open_ranks() as ranks:
        assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
        assert ranks.tell({"a": 1}) == {"a": 1}
        assert ranks.total([1.0, 2.0]) == [1.0, 2.0]
        sums = Sums.empty(3, hessian=True, cross=False)
        sums.add(torch.ones(2, 3))
        ranks.reduce(sums, {0})
        assert sums.tokens == 2


def start(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, "-m", "tests.calibrate.sum_in_ranks", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def documents(text: str) -> list[dict[str, Any]]:
    """What the ranks printed; two of them may end up on one line."""
    found, at = [], text.find("{")
    while at >= 0:
        document, end = json.JSONDecoder().raw_decode(text, at)
        found.append(document)
        at = text.find("{", end)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_add_up_to_the_sums_of_one(size: int) -> None:
    ended = start(size)
    assert ended.returncode == 0, ended.stderr
    found = sorted(documents(ended.stdout), key=lambda row: int(row["rank"]))
    assert list(itertools.chain(*(row["share"] for row in found))) == list(range(12))
    inputs = torch.randn(12, 10, 6, generator=torch.Generator().manual_seed(0))
    whole = Sums.empty(6, hessian=True, cross=True)
    for at in range(0, 12, 2):
        whole.add(inputs[at : at + 2])
        whole.add_pair(inputs[at : at + 1], 2 * inputs[at : at + 1], inputs[at : at + 1, :, :4])
    for row in found:
        assert (row["tokens"], row["paired"]) == (120, 60)
        assert row["squares"] == whole.importance().tolist()
        assert row["peaks"] == inputs.abs().amax(dim=(0, 1)).tolist()
        assert row["broadcast"] == [1, 1, 1]
        assert row["told"] == {"from": 1}
        assert row["total"] == [sum(range(size)), size]
    for mine, theirs in zip(found[1]["parts"], whole.parts(), strict=True):
        np.testing.assert_array_equal(np.array(mine, np.float32), theirs.float().numpy())


@pytest.mark.slow
def test_a_lost_rank_ends_the_others_with_what_to_do() -> None:
    began = time.monotonic()
    ended = start(3, "--lose")
    assert ended.returncode != 0
    assert time.monotonic() - began < 60
    # torchrun may end a rank before it can speak; whoever speaks says this
    told = [line for line in ended.stdout.splitlines() if line.startswith("told: ")]
    assert all("another rank was lost" in line and "--resume" in line for line in told)

"""The kernels where memory or threads are scarce: in processes of their own, which may die of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")

FEW_THREADS = """
import re, resource
import numpy as np
from tersor.formats import get
fmt, x = get("q8_0"), np.random.default_rng(0).standard_normal((1024, 4096)).astype(np.float32)
wanted = fmt.encode(x, threads=1)
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)  # room for the stacks of some threads
print((fmt.encode(x, threads=64) == wanted).all())
"""

LONG_PROMPT = """
import resource, torch
from tersor.kernels.linear.multiply import multiply
from tersor.kernels.linear.weights import pack_weight
codes = torch.zeros(16, 8192, dtype=torch.uint8)
weight = pack_weight(codes, torch.full((16, 64), 8, dtype=torch.uint8), torch.ones(16, 64), bits=4)
def used():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
x = torch.ones(8192, 8192)
multiply(x[:1], weight, digits=2)
before = used()
multiply(x, weight, digits=2)
print(used() - before < 32 << 20)
"""


@pytest.mark.parametrize("program", [FEW_THREADS, LONG_PROMPT], ids=["few threads", "a long prompt"])
def test_scarcity_is_borne(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-2000:]

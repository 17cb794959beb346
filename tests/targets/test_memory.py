from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tersor.targets.memory import Footprint, available_bytes, footprint, machine_bytes

MIB = 1 << 20
PROGRAM = """
import sys
for line in sys.stdin:
    held = None
    size = int(line)
    if size >= 0:
        held = bytearray(b"x") * size
    print("done", flush=True)
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system has no /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        hold(process, 0)
        yield process
        process.kill()


def hold(process: subprocess.Popen[str], size: int) -> Footprint:
    """Let the child hold `size` bytes and nothing else, and look at it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{size}\n")
    process.stdin.flush()
    process.stdout.readline()
    found = footprint(process.pid)
    assert found is not None
    return found


@needs_proc
def test_what_a_child_takes_and_has_taken_is_counted(child: subprocess.Popen[str]) -> None:
    bare = hold(child, 0)
    full = hold(child, 64 * MIB)
    after = hold(child, 0)
    assert abs(full.resident - bare.resident - 64 * MIB) < MIB
    assert abs(after.resident - bare.resident) < MIB
    assert after.peak is not None
    assert abs(after.peak - full.resident) < MIB
    assert full.proportional is None or 64 * MIB < full.proportional <= full.resident


def test_a_process_that_is_gone_has_no_footprint(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert footprint(process.pid) is None
    assert footprint(1, tmp_path) is None


def test_the_files_of_the_system_are_read_as_kilobytes(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmHWM:\t     300 kB\nVmRSS:\t     200 kB\nThreads:\t1\n")
    assert footprint(7, tmp_path) == Footprint(200 * 1024, 300 * 1024, None)
    (tmp_path / "7" / "smaps_rollup").write_text("00400000-7fff rw-p\nRss: 200 kB\nPss: 150 kB\n")
    assert footprint(7, tmp_path) == Footprint(200 * 1024, 300 * 1024, 150 * 1024)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 800 kB\n")
    assert available_bytes(tmp_path) == 800 * 1024


def test_without_proc_the_resident_size_comes_from_ps(tmp_path: Path) -> None:
    found = footprint(os.getpid(), tmp_path / "none")
    assert found is None or (found.resident > MIB and found.peak is None)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to give memory back")
def test_what_was_freed_between_things_that_live_on_is_given_back() -> None:
    program = (
        "import os, numpy as np\n"
        "from tersor.targets.memory import footprint, give_back\n"
        "many = [np.ones(12_500) for _ in range(1500)]\n"
        "kept = many[::50]\n"
        "del many\n"
        "before = footprint(os.getpid()).resident\n"
        "give_back()\n"
        "print(before - footprint(os.getpid()).resident, sum(array.sum() for array in kept))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    given, kept = done.stdout.split()
    assert int(given) > 50 << 20
    assert float(kept) == 30 * 12_500


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    """A function that writes a file of a system whose root is `tmp_path`."""

    def written(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return written


def test_a_container_has_what_its_control_groups_grant(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    assert machine_bytes(tmp_path) == 16 << 30
    write("proc/self/cgroup", "0::/work/job\n")
    write("sys/fs/cgroup/work/job/memory.max", "max\n")
    assert machine_bytes(tmp_path) == 16 << 30
    write("sys/fs/cgroup/work/memory.max", f"{4 << 30}\n")
    assert machine_bytes(tmp_path) == 4 << 30
    write("proc/self/cgroup", "5:memory:/old\n3:cpu:/old\n")
    write("sys/fs/cgroup/memory/old/memory.limit_in_bytes", f"{2 << 30}\n")
    assert machine_bytes(tmp_path) == 2 << 30
    write("sys/fs/cgroup/memory/old/memory.limit_in_bytes", "9223372036854771712\n")  # what no limit looks like there
    assert machine_bytes(tmp_path) == 16 << 30


def test_a_container_has_left_what_its_control_groups_grant_and_nobody_holds(
    tmp_path: Path, write: Callable[[str, str], None]
) -> None:
    write("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    write("proc/self/cgroup", "0::/work/job\n")
    write("sys/fs/cgroup/work/job/memory.max", "max\n")
    write("sys/fs/cgroup/work/job/memory.current", f"{1 << 30}\n")
    assert available_bytes(tmp_path) == 8 << 30
    write("sys/fs/cgroup/work/memory.max", f"{4 << 30}\n")
    assert available_bytes(tmp_path) == 4 << 30
    write("sys/fs/cgroup/work/memory.current", f"{3 << 30}\n")
    assert available_bytes(tmp_path) == 1 << 30
    write("sys/fs/cgroup/work/memory.stat", f"anon 1\ninactive_file {2 << 30}\n")  # can be dropped
    assert available_bytes(tmp_path) == 3 << 30
    write("sys/fs/cgroup/work/memory.current", f"{7 << 30}\n")
    assert available_bytes(tmp_path) == 0
    write("proc/self/cgroup", "5:memory:/old\n3:cpu:/old\n")
    write("sys/fs/cgroup/memory/old/memory.limit_in_bytes", f"{2 << 30}\n")
    write("sys/fs/cgroup/memory/old/memory.usage_in_bytes", f"{1 << 30}\n")
    write("sys/fs/cgroup/memory/old/memory.stat", f"inactive_file 0\ntotal_inactive_file {1 << 29}\n")
    assert available_bytes(tmp_path) == (1 << 30) + (1 << 29)


def test_this_machine_has_memory() -> None:
    assert (machine_bytes() or 0) > MIB
    assert (available_bytes() or 0) > MIB

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tersor.targets.processor import busy_cores, places, processor

CPUINFO = "processor\t: 0\nmodel name\t: Fast 9000\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_name_flags_and_last_cache_are_read(tmp_path: Path) -> None:
    cache = "sys/devices/system/cpu/cpu0/cache"
    files = {"proc/cpuinfo": CPUINFO}
    for index, (level, kind, size) in enumerate(
        (("1", "Data", "32K"), ("1", "Instruction", "64K"), ("3", "Unified", "8M"))
    ):
        files |= {f"{cache}/index{index}/level": level, f"{cache}/index{index}/type": kind + "\n"}
        files[f"{cache}/index{index}/size"] = size + "\n"
    found = processor(write(tmp_path, files))
    assert (found.name, found.flags) == ("Fast 9000", ("avx2", "avx512f", "avx512_vnni"))
    assert found.cache_bytes == 8 << 20


def test_a_system_that_tells_nothing_still_has_a_core_and_a_name(tmp_path: Path) -> None:
    found = processor(tmp_path)
    assert found.name
    assert found.cores == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else found.cores >= 1
    assert 1 <= found.physical <= found.cores
    assert (found.flags, found.cache_bytes) == ((), None)


def test_a_quota_of_the_control_group_or_of_one_above_it_limits_the_cores(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    files = {"proc/self/cgroup": "0::/work/job\n", f"{top}/work/cpu.max": "50000 100000\n"}
    assert processor(write(tmp_path, {**files, f"{top}/work/job/cpu.max": "max 100000\n"})).cores == 1
    assert processor(write(tmp_path, {f"{top}/work/cpu.max": "max 100000\n"})).cores == processor().cores


@pytest.mark.skipif(processor().cores < 2, reason="one core is all that there is")
def test_a_part_of_a_core_counts_as_one(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "110000 100000\n"}
    assert processor(write(tmp_path, files)).cores == 2


def test_a_quota_of_the_older_control_groups_counts_too(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/cpu/job"
    files = {"proc/self/cgroup": "3:cpu,cpuacct:/job\n1:name=systemd:/\n"}
    files |= {f"{folder}/cpu.cfs_quota_us": "100000\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert processor(write(tmp_path, files)).cores == 1
    assert processor(write(tmp_path, {f"{folder}/cpu.cfs_quota_us": "-1\n"})).cores == processor().cores


def test_two_threads_of_one_core_are_one_physical_core(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    found = processor(write(tmp_path, {topology.format(number): "0-999\n" for number in allowed}))
    assert found.physical == 1


def test_the_load_average_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert busy_cores(tmp_path) is None
    assert busy_cores(write(tmp_path, {"proc/loadavg": "1.25 1.00 0.50 1/99 1234\n"})) == 1.25
    assert busy_cores() is None or busy_cores() >= 0  # type: ignore[operator]  # not None here


def test_threads_are_spread_over_cores_before_two_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 5, 6}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    for number, core in ((1, "1,2"), (2, "1,2"), (5, "5-6"), (6, "5-6")):
        place = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{core}\n")
    assert [places(count, tmp_path) for count in (1, 2, 3, 4)] == [(1,), (1, 5), (1, 5, 2), (1, 5, 2, 6)]
    assert places(5, tmp_path) is places(0, tmp_path) is None

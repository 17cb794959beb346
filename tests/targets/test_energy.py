from __future__ import annotations

import os
from pathlib import Path

import pytest

from tersor.targets.energy import Meter, open_meter


def zone(folder: Path, name: str, title: str, energy: int, most: int = 999) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "name").write_text(title + "\n")
    (place / "energy_uj").write_text(f"{energy}\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    return place


def test_packages_are_summed_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 100), zone(tmp_path, "intel-rapl:1", "package-1", 900)
    zone(tmp_path, "intel-rapl:0:0", "core", 50)
    meter = open_meter(tmp_path)
    assert isinstance(meter, Meter)
    before = meter.read()
    assert before == (100, 900)
    (first / "energy_uj").write_text("350\n")
    (second / "energy_uj").write_text("20\n")  # wrapped at 1000
    assert meter.joules(before, meter.read()) == pytest.approx((250 + 120) / 1e6)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    assert open_meter(tmp_path / "none") == "this machine exposes no energy counters"
    assert open_meter(tmp_path) == "this machine exposes no energy counters"
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    assert open_meter(tmp_path) == "this machine exposes no energy counters"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_counters_that_may_not_be_read_are_told_apart(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").chmod(0)
    assert "takes root" in str(open_meter(tmp_path))

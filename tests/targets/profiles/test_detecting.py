from __future__ import annotations

from pathlib import Path

import pytest

from tersor.targets.graphics import Graphics
from tersor.targets.processor import Processor
from tersor.targets.profiles.detecting import profile_of, profile_of_graphics


def name_of(name: str, flags: tuple[str, ...] = (), system: Path = Path("/none")) -> str | None:
    found = profile_of(Processor(name, 4, 4, flags, None), system)
    return None if found is None else found.name


def test_a_board_is_known_by_what_its_firmware_says(tmp_path: Path) -> None:
    path = tmp_path / "proc/device-tree/model"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert name_of("unknown", ("asimd", "asimddp"), tmp_path) == "raspberry-pi-5-8gb"
    path.write_bytes(b"Some other board\0")
    assert name_of("unknown", ("asimd", "asimddp"), tmp_path) == "arm-dotprod"


def test_a_chip_is_known_by_its_whole_name() -> None:
    assert name_of("Apple M4 Max") == "apple-m4-max"
    assert name_of("Apple M4") == "apple-m4"
    assert name_of("Apple M99") is None


@pytest.mark.parametrize(
    ("name", "capability", "mebibytes", "profile"),
    [
        ("NVIDIA H200", (9, 0), 143771, "h200"),
        ("NVIDIA H100 80GB HBM3", (9, 0), 81559, "h100"),
        ("NVIDIA H100 PCIe", (9, 0), 81559, "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 40960, "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 24564, "rtx-4090"),
        ("NVIDIA L4", (8, 9), 23034, "l4"),
        ("Tesla V100-SXM2-16GB", (7, 0), 16384, None),
        ("NVIDIA H100 in half", (9, 0), 40000, None),
    ],
)
def test_a_gpu_is_known_by_capability_memory_and_name(
    name: str, capability: tuple[int, int], mebibytes: int, profile: str | None
) -> None:
    found = profile_of_graphics(Graphics(name, capability, mebibytes << 20))
    assert (None if found is None else found.name) == profile
    memory = None if found is None else found.memory_bytes
    assert memory is None or memory.value == mebibytes << 20  # what the driver reports, not what the label says

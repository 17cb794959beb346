from __future__ import annotations

from collections.abc import Iterator

import pytest

from tersor.core.errors import SchemeError
from tersor.formats import get
from tersor.targets.profiles.processors import PROCESSORS
from tersor.targets.profiles.profile import Cores, Figure, Profile
from tersor.targets.profiles.table import PROFILES, matching, profile

ENGINES = {"llama.cpp", "onnxruntime", "openvino", "tensorrt", "vllm", "xnnpack"}
LARGEST = {"memory_bytes": 1e12, "read_bytes_per_s": 2e13, "power_w": 2000, "battery_mah": 1e4}
LEAST = {"memory_bytes": 1e9, "read_bytes_per_s": 1e9, "power_w": 1, "battery_mah": 1000}
"""What no machine of the table is below or above: a slip of a unit is a factor of a thousand."""


def figures(row: Profile) -> Iterator[Figure]:
    yield from (f for f in (row.memory_bytes, row.read_bytes_per_s, row.power_w, row.battery_mah) if f is not None)
    yield from row.peaks.values()
    for cores in row.cores:
        yield from (f for f in (cores.count, cores.clock_hz) if f is not None)
        yield from cores.per_cycle.values()


@pytest.mark.parametrize("name", PROFILES)
def test_every_figure_has_its_source_and_a_plausible_unit(name: str) -> None:
    row = profile(name)
    assert row.name == name
    assert all(len(figure.source) > 10 for figure in figures(row))
    for field, most in LARGEST.items():
        figure = getattr(row, field)
        assert figure is None or LEAST[field] <= figure.value <= most, field
    assert all(1e12 < figure.value < 2e16 for figure in row.peaks.values())
    assert all(0.1e9 < cores.clock_hz.value < 6e9 for cores in row.cores if cores.clock_hz is not None)


@pytest.mark.parametrize("name", PROFILES)
def test_what_runs_fast_is_a_format_of_ours_on_an_engine_that_is_known(name: str) -> None:
    row = profile(name)
    assert set(row.engines) <= ENGINES
    assert row.engines
    for text in (text for support in row.engines.values() for text in support.formats):
        assert text == "int8" or get(text).bits_per_weight  # "int8": nets with rounded activations


def test_no_gpu_runs_floats_of_8_bits_before_it_has_units_for_them() -> None:
    rows = [row for row in PROFILES.values() if row.capability is not None]
    for row in rows:
        for engine, support in row.engines.items():
            assert ("fp8_e4m3" in support.formats) <= (row.capability >= (8, 9)), (row.name, engine)  # type: ignore[operator]
    assert {row.capability >= (8, 9) for row in rows} == {True, False}  # type: ignore[operator]


def test_narrow_types_are_never_slower_than_wide_ones_of_the_same_machine() -> None:
    order = ("float32", "float16", "float8", "float4"), ("float32", "int8", "int4")
    for row in PROFILES.values():
        for names in order:
            rates = [row.peaks[name].value for name in names if name in row.peaks]
            assert rates == sorted(rates), row.name


def test_more_instruction_sets_make_a_faster_class() -> None:
    assert matching(["avx2", "fma", "avx", "f16c"]) == profile("x86-avx2")
    every = ["avx2", "fma", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16", "avx512bw"]
    assert matching(every) == profile("x86-amx")
    assert matching(["asimd", "asimddp"]) == profile("arm-dotprod")
    assert matching(["asimd", "asimddp", "i8mm", "bf16"]) == profile("arm-i8mm")
    assert matching([]) is None
    for row in PROCESSORS:
        assert matching(row.flags) == row


def test_a_peak_that_no_document_says_follows_from_the_cores() -> None:
    found = profile("snapdragon-8-gen-3").peak("int8")
    assert found is not None
    assert found.value == pytest.approx(1 * 3.3e9 * 256 + 3 * 3.2e9 * 128 + 2 * 3.0e9 * 128)
    assert found.source.startswith("1 Cortex-X4 × 3.3 GHz × 256 + 3 Cortex-A720")
    assert "A520" not in found.source
    assert profile("snapdragon-8-gen-3").peak("float32") is None
    assert profile("x86-amx").peak("int8") is None  # a class of any size and clock
    assert profile("h100").peak("int8") == profile("h100").peaks["int8"]


def test_figures_without_value_or_source_are_refused() -> None:
    with pytest.raises(SchemeError, match="above 0 and has a source"):
        Figure(0, "a data sheet")
    with pytest.raises(SchemeError, match="above 0 and has a source"):
        Figure(1, "")
    with pytest.raises(SchemeError, match=r"box: peaks are told for float32.*not int9"):
        Profile("box", "cpu", "a box", cores=(Cores("core", per_cycle={"int9": Figure(1, "a data sheet")}),))


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    with pytest.raises(SchemeError, match="no profile 'h10'; did you mean h100"):
        profile("h10")


def test_every_phone_has_memory_and_a_class_of_processors_has_amx() -> None:
    phones = [row for row in PROFILES.values() if row.kind == "phone"]
    assert len(phones) >= 4
    assert all(row.memory_bytes is not None and 4e9 <= row.memory_bytes.value <= 32e9 for row in phones)
    found = matching(["avx2", "fma", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"])
    assert found is not None
    assert found.name == "x86-amx"
    rates = found.cores[0].per_cycle
    assert rates["int8"].value == 8 * profile("x86-avx512-vnni").cores[0].per_cycle["int8"].value

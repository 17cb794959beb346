from __future__ import annotations

import importlib
import importlib.util

import pytest

from tersor.core.errors import SchemeError
from tersor.kernels import codec
from tersor.targets.roofs import measure_roofs

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("tersor.kernels._native") is None, reason="the native kernels are not built"
)


@needs_native
def test_the_native_roofs_are_above_what_any_machine_of_today_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_KERNELS", "native")
    found = measure_roofs(1, buffer_bytes=8 << 20)
    assert found.method.startswith("native (")
    assert (found.threads, found.buffer_bytes) == (1, 8 << 20)
    assert 1e8 < found.read_bytes_per_s < 1e13
    assert 1e8 < found.float_flops < 1e13
    assert found.byte_ops is None or 1e8 < found.byte_ops < 1e14
    assert found.matrix_ops is None or (found.byte_ops or 0) < found.matrix_ops < 1e15  # what else would it be for?
    assert found.int8_ops == (found.byte_ops if found.matrix_ops is None else found.matrix_ops)


@needs_native
def test_every_instruction_set_has_loops_that_are_not_optimised_away() -> None:
    module = codec.native()
    if module is None:
        pytest.skip("TERSOR_KERNELS=reference")
    usual, native = module.isa(), importlib.import_module("tersor.kernels._native")
    try:
        for name in native.isa_levels():
            native.set_isa(name)
            assert 1e8 < native.multiply_rate("floats", 1 << 16, 1, 3) < 1e13
            assert 1e8 < native.read_rate(4 << 20, 2, 3) < 1e13
            assert native.multiply_rate("bytes", 1 << 16, 1, 3) < 1e14
            assert (native.multiply_rate("tiles", 1 << 12, 1, 3) > 0) == (name == "amx")
    finally:
        native.set_isa(usual)


@needs_native
def test_the_native_loops_refuse_nothing_to_do() -> None:
    native = importlib.import_module("tersor.kernels._native")
    with pytest.raises(ValueError, match="must be positive"):
        native.read_rate(0, 1, 1)
    with pytest.raises(ValueError, match="must be positive"):
        native.multiply_rate("floats", 1, 0, 1)
    with pytest.raises(ValueError, match="'bits'; there are floats, bytes, tiles"):
        native.multiply_rate("bits", 1, 1, 1)


def test_without_native_kernels_numpy_measures_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_KERNELS", "reference")
    found = measure_roofs(2, buffer_bytes=4 << 20)
    assert found.method == "numpy, which may reach less"
    assert found.byte_ops is None
    assert found.read_bytes_per_s > 1e7
    assert found.float_flops > 1e7


@pytest.mark.parametrize(("threads", "size"), [(0, None), (-1, 1), (1, 0)])
def test_impossible_measurements_are_refused(threads: int, size: int | None) -> None:
    with pytest.raises(SchemeError, match="must be positive"):
        measure_roofs(threads, buffer_bytes=size)

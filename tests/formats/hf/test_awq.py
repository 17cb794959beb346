from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError, ShapeError, UnsupportedError
from tersor.core.tensor import QuantizedTensor
from tersor.formats import get
from tersor.formats.hf.awq import Awq
from tersor.formats.hf.groups import Groups, Part, pack_groups


def test_eight_outputs_stand_in_the_order_0_2_4_6_1_3_5_7() -> None:
    fmt = get("int4-g32-asym-f16")
    codes = np.tile(np.arange(8, dtype=np.uint8)[:, None], (1, 32))  # output n has code n everywhere
    values = Groups(codes, np.arange(8, 16, dtype=np.uint8)[:, None], np.full((8, 1), 0.25, np.float32))
    stored = Awq().encode(QuantizedTensor(fmt, (8, 32), pack_groups(values, fmt)))
    assert stored["qweight"].astype(np.uint32).tolist() == [[0x75316420]] * 32
    assert stored["qzeros"].astype(np.uint32).tolist() == [[0xFDB9ECA8]]
    assert stored["scales"].tobytes() == np.full((1, 8), 0.25, "<f2").tobytes()


@pytest.mark.parametrize("name", ["int4-g32-sym-f16", "int4-g64-asym-f16", "int4-channel-asym-f16"])
@pytest.mark.parametrize("rows", [8, 40, 72])
def test_the_tensors_equal_those_made_code_by_code_and_are_read_back(make: Any, name: str, rows: int) -> None:
    tensor, values = make(name, rows, 192)
    stored = Awq().encode(tensor)
    for k in (0, 77, 191):
        for n in range(rows):
            place = (0, 4, 1, 5, 2, 6, 3, 7)[n % 8]  # where output n lies, the inverse of the order
            assert int(stored["qweight"][k, n // 8]) >> (4 * place) & 15 == values.codes[n, k]
    wide = {**stored, "scales": stored["scales"].astype(np.float32)}
    decoded = Awq().decode(wide, "F16", 4)
    assert decoded.tensor.format.name == tensor.format.name
    np.testing.assert_array_equal(decoded.tensor.data, tensor.data)
    np.testing.assert_array_equal(Awq().decode(wide, "F16", 4, 3, rows - 2).dequantize(), tensor.dequantize()[3:-2])


def test_what_awq_cannot_hold_is_refused() -> None:
    with pytest.raises(SchemeError, match="awq stores 4 bits, int8-channel-sym-f16 has 8: write gptq or compressed"):
        Awq().parts(get("int8-channel-f16"), (8, 32))
    with pytest.raises(SchemeError, match="awq stores scales of 16 bits: use int4-g32-sym-f16"):
        Awq().parts(get("int4-g32"), (8, 32))
    with pytest.raises(ShapeError, match="awq packs eight outputs a word: 12 rows do not divide by 8"):
        Awq().parts(get("int4-g32-f16"), (12, 32))


@pytest.mark.parametrize(
    ("scales", "zeros", "message"),
    [((1, 8), (1, 2), "do not belong to one awq matrix"), ((1, 16), (1, 1), "do not belong to one awq matrix")],
)
def test_tensors_that_contradict_each_other_are_refused(
    scales: tuple[int, int], zeros: tuple[int, int], message: str
) -> None:
    parts = {"qweight": Part("I32", (32, 1)), "qzeros": Part("I32", zeros), "scales": Part("F16", scales)}
    with pytest.raises(FormatError, match=message):
        Awq().shape(parts, 4)
    with pytest.raises(UnsupportedError, match="awq with 8 bits; 4 can be read"):
        Awq().shape(parts, 8)

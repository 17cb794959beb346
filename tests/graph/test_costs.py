"""The work of operators is counted by hand for a few, and by their sum for a whole net."""

from __future__ import annotations

from tersor.core.nets.work import KINDS
from tersor.graph.costs import work_of

from .conftest import Drawing, encoder, images, mobilenet, quantized, sentences

FEEDS = {"x": images(1, 3, 16, 16)[0]}


def test_convolutions_and_products_are_counted_by_hand() -> None:
    d = Drawing(opset=20)
    x = d.input("x", ["batch", 3, 16, 16])
    y = d.add("Relu", d.conv(x, 3, 8, strides=[2, 2], name="dense"))
    y = d.conv(d.conv(y, 8, 8, group=8, name="each"), 8, 4, 1, name="places")
    y = d.add("Flatten", d.add("GlobalAveragePool", y))
    d.add("Gemm", y, d.weight(10, 4), d.weight(10), transB=1, name="last", made="y")
    rows = {row.name: row for row in work_of(d.output("y", shape=["batch", 10]).net(), FEEDS)}
    assert {name: (row.kind, row.macs) for name, row in rows.items() if row.macs} == {
        "dense": ("stem", 8 * 8 * 8 * 3 * 9),
        "each": ("depthwise", 8 * 8 * 8 * 9),
        "places": ("pointwise", 4 * 8 * 8 * 8),
        "last": ("linear", 40),
    }
    dense = rows["dense"]
    assert (dense.weight_bytes, dense.read_bytes, dense.written_bytes) == (4 * (8 * 27 + 8), 4 * 768, 4 * 512)
    assert [row.operator for row in rows.values() if row.fused] == ["Relu"]
    assert all(row.arithmetic == "float32" for row in rows.values())


def test_integers_take_a_byte_and_four_bits_half_of_one() -> None:
    made = quantized(mobilenet(opset=20).net(), images(4, 3, 16, 16), engine="xnnpack")
    whole = work_of(made.source, FEEDS)
    small = work_of(made.source, FEEDS, made.placement)
    halves = work_of(made.source, FEEDS, half=True)
    for before, after, half in zip(whole, small, halves, strict=True):
        assert before.macs == after.macs == half.macs
        if before.macs:
            assert after.arithmetic == "int8"
            assert 4 * after.read_bytes == 2 * half.read_bytes == before.read_bytes
            assert 4 * after.weight_bytes == before.weight_bytes
    assert {row.kind for row in whole} <= set(KINDS)
    net = encoder()
    feeds = {"ids": sentences(1)[0]["ids"]}
    words = quantized(net.net(), sentences(8, batches=2), engine="xnnpack", activations="dynamic", bits=4, group=32)
    up = next(row for row in work_of(words.source, feeds, words.placement) if row.name == "up")
    assert up.macs == 32 * 64 * feeds["ids"].size
    assert (up.weight_bytes, up.arithmetic) == (32 * 64 // 2, "int8")
    assert up.read_bytes == 4 * 32 * feeds["ids"].size, "activations stay floats between operators"

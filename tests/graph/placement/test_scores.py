"""Attention: queries and keys are rounded where an engine fuses what stands around their product."""

from __future__ import annotations

from dataclasses import replace

from tersor.graph.placement.engines import ENGINES, Engine

from ..conftest import Drawing
from .test_placing import engines, placed, reasons


def attention(between: str = "Mul") -> Drawing:
    """Draw an attention of two heads of four."""
    d = Drawing()
    x = d.input("x", ["batch", 6, 8])
    heads = d.constant([0, 6, 2, 4], kind="int64")

    def projected(name: str, order: list[int]) -> str:
        y = d.add("Add", d.weight(8), d.add("MatMul", x, d.weight(8, 8), name=name), made=f"{name}_biased")
        return d.add("Transpose", d.add("Reshape", y, heads), perm=order, made=f"{name}_moved")

    query, key, value = projected("q", [0, 2, 1, 3]), projected("k", [0, 2, 3, 1]), projected("v", [0, 2, 1, 3])
    y = d.add("MatMul", query, key, name="scores")
    y = d.add("Add", d.add("Mul", y, d.constant(0.5)), d.constant(0.1)) if between == "Mul" else d.add(between, y)
    d.add("MatMul", d.add("Softmax", y, axis=-1), value, name="mixed", made="y")
    return d.output("y")


@engines
def test_scores_of_an_attention_run_on_integers_where_the_engine_fuses_them(row: Engine) -> None:
    alone = replace(row, products=False)
    placement = placed(attention(), alone)
    rounded = {"q_biased", "k_biased"} & set(placement.activations)
    assert ("scores" in placement.integer) == (row.scores is not None)
    if "MatMul" not in row.closed:  # else all that it makes is rounded
        assert rounded == (set() if row.scores is None else {"q_biased", "k_biased"})
        assert "v_biased" not in placement.activations
    for name in rounded:
        assert placement.activations[name].scheme == (row.scores or row.activations)
    assert not {"q_moved", "k_moved", "v_moved"} & set(placement.activations)
    assert "mixed" in reasons(placement)
    if row.products:
        assert {"q_moved", "k_moved", "v_moved"} <= set(placed(attention(), row).activations)


def test_a_product_that_is_no_score_stays_in_float() -> None:
    placement = placed(attention("Sin"), replace(ENGINES["openvino"], products=False))
    assert "scores" in reasons(placement)
    assert "q_biased" not in placement.activations

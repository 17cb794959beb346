from __future__ import annotations

import pytest

from tersor.core.errors import SchemeError
from tersor.evaluation.nets.layers import compare_net_layers

from .conftest import batches, make_net, round_weights, torch

NET = make_net()
INPUTS = batches(16, 16, NET)[0][0]


def test_a_net_compared_with_itself_has_no_error() -> None:
    rows = compare_net_layers(NET, against=NET, inputs=INPUTS)
    assert [row.name for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert all(row.sqnr_db is None and row.entering_db is None and row.arriving_db is None for row in rows)
    assert rows[0].kind == "conv2d"
    assert rows[0].cosine == 1.0


def test_error_enters_at_the_module_that_was_rounded() -> None:
    rows = compare_net_layers(round_weights(NET, "int4-channel-sym", only="0"), against=NET, inputs=INPUTS)
    assert [row.name for row in rows if row.entering_db is not None] == ["0"]
    assert all(row.arriving_db is not None for row in rows)
    assert rows[0].entering_db == rows[0].arriving_db
    rows = compare_net_layers(round_weights(NET, "int4-channel-sym", only="5"), against=NET, inputs=INPUTS)
    assert [row.name for row in rows if row.arriving_db is not None] == ["5"]


def test_modules_of_another_class_are_compared_where_they_take_the_input() -> None:
    class Wrapped(torch.nn.Module):  # type: ignore[misc]  # torch is imported by name
        def __init__(self, inner: object) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: object) -> object:
            return self.inner(x)  # type: ignore[operator]  # a module

    class Picky(Wrapped):
        def forward(self, x: object) -> object:
            if x.shape[0] and not getattr(x, "mine", True):  # type: ignore[attr-defined]
                raise TypeError
            return super().forward(x) * 1.01  # type: ignore[operator]

    net = round_weights(NET, "int4-channel-sym")
    net[5] = Wrapped(net[5])  # type: ignore[index,operator]  # a Sequential
    net[2] = Picky(net[2])  # type: ignore[index,operator]
    rows = {row.name: row for row in compare_net_layers(net, against=NET, inputs=INPUTS)}
    assert rows["5"].entering_db is not None
    assert rows["5"].sqnr_db is None
    assert rows["5"].cosine is None
    assert rows["2"].entering_db == pytest.approx(40, abs=0.1)


def test_hooks_are_gone_afterwards() -> None:
    net = make_net()
    compare_net_layers(net, against=NET, inputs=INPUTS)
    assert not any(module._forward_hooks for module in [*net.modules(), *NET.modules()])


def test_functions_and_strangers_have_no_layers_to_compare() -> None:
    with pytest.raises(SchemeError, match="torch modules only"):
        compare_net_layers(print, against=NET, inputs=INPUTS)  # type: ignore[arg-type]  # that is the point
    other = torch.nn.ModuleDict({"a": torch.nn.ReLU()})
    with pytest.raises(SchemeError, match="no modules of the same name"):
        compare_net_layers(other, against=NET, inputs=INPUTS)

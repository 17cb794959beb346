from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tersor.core.errors import SchemeError, ShapeError
from tersor.evaluation.nets.calling import at_rest, call, scores_of

from .conftest import make_net, torch

SCORES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("made", "output"),
    [
        (SCORES, None),
        (torch.from_numpy(SCORES), None),
        (torch.from_numpy(SCORES).to(torch.bfloat16), None),
        ((SCORES,), None),
        ({"any": SCORES}, None),
        ({"logits": SCORES, "hidden": 1}, None),
        (SimpleNamespace(logits=SCORES), None),
        (("no", SCORES), 1),
        ({"a": 1, "b": SCORES}, "b"),
        (SimpleNamespace(a=SCORES), "a"),
        ({"a": {"b": SCORES}}, lambda made: made["a"]["b"]),
    ],
)
def test_scores_are_found_in_what_nets_return(made: object, output: object) -> None:
    np.testing.assert_array_equal(scores_of(made, output), SCORES)  # type: ignore[arg-type]  # a selector


def test_what_is_not_plain_asks_for_a_choice() -> None:
    with pytest.raises(SchemeError, match="a tuple of 2; say with output= which part"):
        scores_of((SCORES, SCORES))
    with pytest.raises(SchemeError, match="a mapping with 'a', 'b'; say with output="):
        scores_of({"a": 1, "b": 2})
    with pytest.raises(SchemeError, match="a mapping with 'a', which has no 'c'"):
        scores_of({"a": 1}, "c")
    with pytest.raises(ShapeError, match=r"scores \[items, classes\], got \(2, 3, 1\)"):
        scores_of(SCORES[:, :, None])


def test_inputs_are_moved_and_handed_over_as_they_come() -> None:
    class Two(torch.nn.Module):  # type: ignore[misc]  # torch is imported by name
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, a: object, b: object = 0) -> object:
            return a, b

    a, b = call(Two(), (torch.ones(2), np.ones(3, np.float32)))
    assert a.device.type == b.device.type == "meta"
    a, b = call(Two(), {"b": torch.ones(2), "a": 5})
    assert a == 5
    assert b.device.type == "meta"
    assert call(Two(), torch.ones(4))[0].shape == (4,)


def test_gradients_are_off_inside_and_states_come_back_after_an_error() -> None:
    net = make_net().train()

    def fail() -> None:
        raise ZeroDivisionError(torch.is_grad_enabled(), {module.training for module in net.modules()})

    with pytest.raises(ZeroDivisionError, match=r"\(False, \{False\}\)"), at_rest(net, print):
        fail()
    assert torch.is_grad_enabled()
    assert all(module.training for module in net.modules())

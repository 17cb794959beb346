"""A result is remembered for the same tensors only, and not beyond their lives."""

from __future__ import annotations

import gc

import numpy as np
import torch

from tersor.methods.solving.remembered import remembered


def counted() -> tuple[list[int], object]:
    """A function that counts its calls."""
    calls: list[int] = []

    def doubled(x: torch.Tensor, *, times: int = 2) -> torch.Tensor:
        calls.append(times)
        return x * times

    return calls, remembered(doubled)


def test_the_same_tensor_is_worked_on_once() -> None:
    calls, doubled = counted()
    x = torch.ones(3)
    assert callable(doubled)
    assert doubled(x) is doubled(x)
    assert len(calls) == 1


def test_other_options_and_equal_but_other_tensors_are_worked_on_again() -> None:
    calls, doubled = counted()
    assert callable(doubled)
    x, y = torch.ones(3), torch.ones(3)
    doubled(x)
    doubled(x, times=3)
    doubled(y, times=3)
    doubled(x, times=3)
    assert calls == [2, 3, 3, 3]


def test_a_tensor_that_was_written_is_worked_on_again() -> None:
    calls, doubled = counted()
    assert callable(doubled)
    x = torch.ones(3)
    doubled(x)
    x += 1
    assert float(doubled(x)[0]) == 4
    assert len(calls) == 2


def test_a_tensor_that_numpy_wrote_is_worked_on_again() -> None:
    calls, doubled = counted()
    assert callable(doubled)
    array = np.eye(3)
    x = torch.from_numpy(array)
    doubled(x)
    array += 1
    assert float(doubled(x)[0, 0]) == 4
    assert len(calls) == 2


def test_what_is_made_for_inference_is_worked_on_each_time() -> None:
    calls, doubled = counted()
    assert callable(doubled)
    with torch.inference_mode():
        x = torch.ones(3)
        doubled(x)
        x += 1
        assert float(doubled(x)[0]) == 4
    assert len(calls) == 2


def test_nothing_is_kept_when_the_tensor_is_gone() -> None:
    _, doubled = counted()
    assert callable(doubled)
    x = torch.ones(3)
    kept = doubled(x)
    references = len(gc.get_referrers(kept))
    del x
    gc.collect()
    assert len(gc.get_referrers(kept)) < references

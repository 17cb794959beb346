"""Labels of two variants: intervals that cover, sizes that find what they promise, and nothing made up."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.rollout.fixed import difference_interval, h_interval, opinions
from tersor.deploy.rollout.sequential.counts import Count


def test_the_difference_and_its_size_are_those_of_the_tables() -> None:
    candidate, control = Count(56, 70), Count(48, 80)
    found = opinions(candidate, control)
    assert found.difference == difference_interval(candidate, control)
    assert found.effect == h_interval(candidate, control)
    assert found.candidate is candidate


def test_without_labels_nothing_is_said() -> None:
    for candidate, control in ((Count(0, 0), Count(3, 4)), (Count(3, 4), Count(0, 0))):
        found = opinions(candidate, control)
        assert (found.difference, found.effect, found.needed, found.is_enough) == (None, None, None, False)
    assert opinions(Count(1, 1), Count(1, 1)).needed is not None  # a share of 1 is not taken for certain
    assert opinions(Count(1, 90), Count(1, 100), loss=0.5).needed is None  # nothing can be as much worse
    with pytest.raises(SchemeError, match=r"between 0 and 1"):
        opinions(Count(1, 2), Count(1, 2), loss=0.0)


def test_as_many_labels_as_are_needed_find_the_loss_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    asked = opinions(Count(300, 400), Count(900, 1200), loss=0.05)
    assert asked.needed is not None
    size, times = asked.needed, 2000
    ours, theirs = rng.binomial(size, 0.70, times), rng.binomial(3 * size, 0.75, times)
    found = [
        interval.high < 0  # one-sided at 5 %: the upper end of 90 %
        for hits, others in zip(ours, theirs, strict=True)
        if (interval := opinions(Count(hits, size), Count(others, 3 * size), confidence=0.90).difference) is not None
    ]
    assert np.mean(found) == pytest.approx(0.80, abs=0.03)
    assert opinions(Count(0, size), Count(9 * size // 4, 3 * size), loss=0.05).is_enough
    assert not opinions(Count(0, size), Count(900, 1200), loss=0.05).is_enough  # the control's are fewer now

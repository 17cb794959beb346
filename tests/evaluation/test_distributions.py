"""Beta and t against tables and sums that are written out."""

from __future__ import annotations

import math

import pytest

from tersor.evaluation.distributions import beta_quantile, beta_share, t_quantile


def test_quantiles_of_the_t_and_beta_distributions_are_those_of_the_tables() -> None:
    for freedom, expected in ((1, 12.7062), (2, 4.30265), (14, 2.14479), (29, 2.04523), (999, 1.96234)):
        assert t_quantile(freedom, 0.95) == pytest.approx(expected, abs=1e-5 * expected)
    assert t_quantile(5, 0.99) == pytest.approx(4.03214, abs=1e-5)
    assert beta_quantile(0.025, 5, 6) == pytest.approx(0.187086, abs=1e-6)
    assert beta_quantile(0.975, 1, 1) == pytest.approx(0.975)


@pytest.mark.parametrize("p", [1e-4, 0.03, 0.5, 0.97])
@pytest.mark.parametrize(("hits", "trials"), [(1, 1), (3, 10), (50, 1000), (1000, 1000)])
def test_the_share_of_a_beta_distribution_is_a_tail_of_the_binomial(p: float, hits: int, trials: int) -> None:
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(p)
        + (trials - k) * math.log1p(-p)
        for k in range(hits, trials + 1)
    )
    tail = math.fsum(math.exp(each) for each in logs)
    assert beta_share(p, hits, trials - hits + 1) == pytest.approx(tail, rel=1e-9, abs=1e-15)

"""FIXED: A/B reports on a number of requests that was set before; looked at once, unlike the sequential tests."""

from __future__ import annotations

from tersor.deploy.rollout.fixed.feedback import Opinions, opinions
from tersor.deploy.rollout.fixed.paired import mcnemar, odds_ratio_interval, paired_bootstrap
from tersor.deploy.rollout.fixed.shares import difference_interval, h_interval, standardized_interval
from tersor.deploy.rollout.fixed.sizes import (
    pairs_for_mcnemar,
    pairs_for_means,
    requests_for_means,
    requests_for_shares,
)

__all__ = [
    "Opinions",
    "difference_interval",
    "h_interval",
    "mcnemar",
    "odds_ratio_interval",
    "opinions",
    "paired_bootstrap",
    "pairs_for_mcnemar",
    "pairs_for_means",
    "requests_for_means",
    "requests_for_shares",
    "standardized_interval",
]

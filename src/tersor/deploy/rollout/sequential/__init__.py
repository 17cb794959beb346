"""SEQUENTIAL: tests that may be looked at after every request, and say "harmful", "safe" or "undecided"."""

from __future__ import annotations

from tersor.deploy.rollout.sequential.agreement import Agreement, AgreementRules
from tersor.deploy.rollout.sequential.counts import Count
from tersor.deploy.rollout.sequential.errors import ErrorRate, ErrorRules
from tersor.deploy.rollout.sequential.latency import Latency, LatencyRules
from tersor.deploy.rollout.sequential.means import MeanInterval
from tersor.deploy.rollout.sequential.quality import Quality, QualityRules
from tersor.deploy.rollout.sequential.standing import Standing, Verdict, split_level
from tersor.deploy.rollout.sequential.stored import TESTS, AnyTest, restored, stored
from tersor.deploy.rollout.sequential.wealth import Wealth

__all__ = [
    "TESTS",
    "Agreement",
    "AgreementRules",
    "AnyTest",
    "Count",
    "ErrorRate",
    "ErrorRules",
    "Latency",
    "LatencyRules",
    "MeanInterval",
    "Quality",
    "QualityRules",
    "Standing",
    "Verdict",
    "Wealth",
    "restored",
    "split_level",
    "stored",
]

"""How long a call would take on a machine, from the work of its operators and rates that were fitted elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tersor.core.errors import SchemeError
from tersor.core.nets.work import OperatorWork
from tersor.targets.estimating.estimate import Estimate, Unknown
from tersor.targets.estimating.machine import Machine
from tersor.targets.estimating.rates import CALL, OPERATOR, Rates, terms_of

__all__ = ["ELSEWHERE", "estimate_energy", "estimate_latency", "estimate_sustained"]

ELSEWHERE = math.log(2.5)
"""Logarithm of a factor: how far kernels of another instruction set may come from their documented peaks in another
share. An assumption: no phone was measured here."""
THREADS = math.log(1.5)
"""The same for threads, whose work is not divided evenly."""


def estimate_latency(work: Sequence[OperatorWork], machine: Machine, rates: Rates) -> Estimate | Unknown:
    """Return milliseconds of one call; Unknown where a peak, the bandwidth, or the rate of a kind of operator is."""
    name = f"latency on {machine.name}"
    try:
        terms = terms_of(work, machine)
    except SchemeError as error:
        return Unknown(name, str(error))
    absent = sorted(term for term in terms if term not in rates.terms)
    if absent:
        return Unknown(name, f"no run that was timed has {', '.join(absent)}")
    fixed = sum(rates.terms[term] * terms[term] for term in (CALL, OPERATOR))
    scaled = sum(rates.terms[term] * count for term, count in terms.items() if term not in (CALL, OPERATOR))
    # what a call and an operator cost beside arithmetic is time of the machine that was measured
    seconds, spread = fixed + scaled, rates.spread
    told = [f"each operator takes the share of peak and bandwidth that it took in {rates.source}"]
    told.append(f"nets and engines that were held out lay within a factor of {math.exp(rates.spread):.2f} of it")
    if not machine.is_measured:
        spread += ELSEWHERE
        told.append(
            f"its peaks are documented, not measured: another factor of {math.exp(ELSEWHERE):.1f} either way is assumed"
        )
        told += machine.sources
    if machine.threads > 1:
        spread += THREADS
        told.append(f"{machine.threads} threads share the work: a factor of {math.exp(THREADS):.1f} is assumed")
    told.append("nothing else runs, the clock is the highest, and weights are in memory")
    ms, factor = 1e3 * seconds, math.exp(spread)
    return Estimate(name, ms, ms / factor, ms * factor, "ms", tuple(told))


def estimate_sustained(latency: Estimate | Unknown, machine: Machine) -> Estimate | Unknown:
    """Return milliseconds of one call once the machine is warm; Unknown where nobody tells what it keeps up."""
    name = f"sustained latency on {machine.name}"
    if isinstance(latency, Unknown):
        return Unknown(name, latency.reason)
    if machine.sustained_share is None:
        return Unknown(name, "nobody tells which share of its speed it keeps when it is warm")
    share = machine.sustained_share
    told = (*latency.assumptions, f"a warm machine keeps {share:.0%} of its speed; a cool one all of it")
    return Estimate(name, latency.value / share, latency.low, latency.high / share, "ms", told)


def estimate_energy(latency: Estimate | Unknown, machine: Machine) -> Estimate | Unknown:
    """Return millijoules of one call: at most the power that the machine may take, for as long as the call takes."""
    name = f"energy on {machine.name}"
    if isinstance(latency, Unknown):
        return Unknown(name, latency.reason)
    if machine.power_w is None:
        return Unknown(name, "nobody tells its power")
    most = latency.value * machine.power_w
    told = (
        *latency.assumptions,
        f"it takes a fifth to all of the {machine.power_w:g} W that it may take for long: the share is assumed",
    )
    return Estimate(name, 0.6 * most, 0.2 * latency.low * machine.power_w, latency.high * machine.power_w, "mJ", told)

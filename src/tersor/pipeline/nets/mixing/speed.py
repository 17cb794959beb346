"""How long a mix of formats takes: told from the work of operators on a machine, and measured where it is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tersor.core.errors import SchemeError
from tersor.core.nets.work import OperatorWork
from tersor.evaluation.nets.latency import race_nets
from tersor.graph.costs import work_of
from tersor.graph.ptq import QuantizedNet
from tersor.graph.sensitivity.rebuild import FORMATS
from tersor.graph.sessions import Feeds
from tersor.pipeline.nets.mixing.costs import Operators
from tersor.targets.estimating.estimate import Estimate, Unknown
from tersor.targets.estimating.latency import estimate_latency
from tersor.targets.estimating.machine import Machine
from tersor.targets.estimating.measured import rates_of
from tersor.targets.estimating.rates import CALL, Rates, terms_of

__all__ = ["Clock"]

SECONDS = 1.0
"""Of measuring one net."""
NANO, MILLI = 1e9, 1e3


@dataclass
class Clock:
    """Times of one net's mixes on one machine.

    feeds    one call
    is_here  whether the machine is the one at hand, so that what is estimated can be measured
    scale    measured over estimated, of operators on integers and of those in float; 1 where nothing is measured
    """

    operators: Operators
    machine: Machine
    feeds: Feeds
    is_here: bool
    threads: int = 0
    rates: Rates = field(default_factory=lambda: rates_of("onnxruntime"))
    scale: dict[bool, float] = field(default_factory=lambda: {True: 1.0, False: 1.0})

    def calibrate(self) -> None:
        """Hold the estimates against the net in float and on integers as they run here."""
        ends = {is_integer: self.operators.net(self._all(is_integer)) for is_integer in (True, False)}
        for is_integer, quantized in ends.items():
            told = self.estimated(quantized).value
            self.scale[is_integer] = self.measured_ms(quantized) / told if told > 0 else 1.0

    def nanoseconds(self) -> dict[str, dict[str, int]]:
        """Return for each choice what its operators take in each format."""
        source, finest = self.operators.roundings.finest.source, self.operators.roundings.finest
        rows = {
            True: {row.name: row for row in work_of(source, self.feeds, finest.placement)},
            False: {row.name: row for row in work_of(source, self.feeds)},
        }
        found: dict[str, dict[str, int]] = {}
        for name, choice in self.operators.choices.items():
            found[name] = {}
            for kind in choice.formats:
                is_integer = FORMATS[kind] is not None
                seconds = sum(self._seconds(rows[is_integer][node]) for node in choice.nodes)
                found[name][kind] = round(NANO * seconds * self.scale[is_integer])
        return found

    def estimated(self, quantized: QuantizedNet) -> Estimate:
        """Return milliseconds of one call, by documents and fitted rates; SchemeError where nobody tells enough."""
        found = estimate_latency(work_of(quantized.source, self.feeds, quantized.placement), self.machine, self.rates)
        if isinstance(found, Unknown):
            raise SchemeError(str(found))
        return found

    def expected_ms(self, quantized: QuantizedNet) -> float:
        """Return the estimate, moved by what was measured of nets in float and on integers."""
        work = work_of(quantized.source, self.feeds, quantized.placement)
        shares = {True: 0.0, False: 0.0}
        for row in work:
            shares[row.arithmetic == "int8"] += self._seconds(row)
        whole = sum(shares.values()) or 1.0
        factor = sum(self.scale[is_integer] * seconds for is_integer, seconds in shares.items()) / whole
        return self.estimated(quantized).value * factor

    def measured_ms(self, quantized: QuantizedNet) -> float:
        """Return the median of one call in ONNX Runtime on this machine."""
        found = race_nets(quantized.net, quantized.source, self.feeds, threads=self.threads, seconds=SECONDS)
        metric = found.metric("latency_p50_ms")
        assert metric is not None, "every race tells the median"
        return metric.value

    def _seconds(self, row: OperatorWork) -> float:
        terms = terms_of([replace(row, weight_bytes=0)], self.machine)
        absent = sorted(term for term in terms if term not in self.rates.terms)
        if absent:
            raise SchemeError(f"latency on {self.machine.name}: no run that was timed has {', '.join(absent)}")
        return sum(self.rates.terms[term] * count for term, count in terms.items() if term != CALL)

    def _all(self, is_integer: bool) -> Mapping[str, str]:
        return {
            name: next((kind for kind in reversed(choice.formats) if (FORMATS[kind] is not None) == is_integer), "fp32")
            for name, choice in self.operators.choices.items()
        }

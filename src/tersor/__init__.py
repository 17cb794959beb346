"""tersor: quantize any trained model, prove what it cost, run it without fear.

>>> import tersor
>>> card = tersor.quantize("path/or/hub-id", "q4_k_m", output="model.gguf")  # doctest: +SKIP
>>> tersor.evaluate("model.gguf", against="path/or/hub-id", data="text.txt")  # doctest: +SKIP
>>> tersor.verify("model.gguf", against="path/or/hub-id").passed             # doctest: +SKIP
True

Importing it costs nothing: each name is loaded at its first use, and torch only by what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "Calibration",
    "Card",
    "EngineError",
    "Evaluation",
    "FormatError",
    "MissingError",
    "Model",
    "Plan",
    "QualityError",
    "SchemeError",
    "ShapeError",
    "TersorError",
    "UnsupportedError",
    "Verdict",
    "__version__",
    "bench",
    "demo",
    "doctor",
    "estimate",
    "evaluate",
    "evaluate_net",
    "formats",
    "inspect",
    "load",
    "load_quantized",
    "loadtest",
    "optimize",
    "quantize",
    "report",
    "verify",
]

if TYPE_CHECKING:
    from tersor import formats as formats
    from tersor.core.card import Card as Card
    from tersor.core.errors import EngineError as EngineError
    from tersor.core.errors import FormatError as FormatError
    from tersor.core.errors import MissingError as MissingError
    from tersor.core.errors import QualityError as QualityError
    from tersor.core.errors import SchemeError as SchemeError
    from tersor.core.errors import ShapeError as ShapeError
    from tersor.core.errors import TersorError as TersorError
    from tersor.core.errors import UnsupportedError as UnsupportedError
    from tersor.core.evaluation import Benchmark as Benchmark
    from tersor.core.evaluation import Evaluation as Evaluation
    from tersor.core.plan import Plan as Plan
    from tersor.engines.torch.checkpoints import load_quantized as load_quantized
    from tersor.evaluation.checks.verdict import Verdict as Verdict
    from tersor.evaluation.nets.accuracy import evaluate_net as evaluate_net
    from tersor.models import Model as Model
    from tersor.models import load as load
    from tersor.pipeline.bench import bench as bench
    from tersor.pipeline.calibrated.run import Calibration as Calibration
    from tersor.pipeline.conversion import quantize as quantize
    from tersor.pipeline.demo import demo as demo
    from tersor.pipeline.deploy.loadtest import loadtest as loadtest
    from tersor.pipeline.doctor import doctor as doctor
    from tersor.pipeline.evaluate import evaluate as evaluate
    from tersor.pipeline.inspect import inspect as inspect
    from tersor.pipeline.report import report as report
    from tersor.pipeline.targets.estimate import estimate as estimate
    from tersor.pipeline.targets.optimize import optimize as optimize
    from tersor.pipeline.verify import verify as verify

_ERRORS = "tersor.core.errors"
_HOMES = {
    "Benchmark": "tersor.core.evaluation",
    "Calibration": "tersor.pipeline.calibrated.run",
    "Card": "tersor.core.card",
    "Evaluation": "tersor.core.evaluation",
    "EngineError": _ERRORS,
    "FormatError": _ERRORS,
    "MissingError": _ERRORS,
    "Model": "tersor.models",
    "Plan": "tersor.core.plan",
    "QualityError": _ERRORS,
    "SchemeError": _ERRORS,
    "ShapeError": _ERRORS,
    "TersorError": _ERRORS,
    "UnsupportedError": _ERRORS,
    "Verdict": "tersor.evaluation.checks.verdict",
    "bench": "tersor.pipeline.bench",
    "demo": "tersor.pipeline.demo",
    "doctor": "tersor.pipeline.doctor",
    "estimate": "tersor.pipeline.targets.estimate",
    "evaluate": "tersor.pipeline.evaluate",
    "evaluate_net": "tersor.evaluation.nets.accuracy",
    "inspect": "tersor.pipeline.inspect",
    "load": "tersor.models",
    "load_quantized": "tersor.engines.torch.checkpoints",
    "loadtest": "tersor.pipeline.deploy.loadtest",
    "optimize": "tersor.pipeline.targets.optimize",
    "quantize": "tersor.pipeline.conversion",
    "report": "tersor.pipeline.report",
    "verify": "tersor.pipeline.verify",
}
"""Public name → the module that defines it."""


def __getattr__(name: str) -> object:
    if name == "formats":
        return importlib.import_module("tersor.formats")
    if name not in _HOMES:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

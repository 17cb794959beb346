"""Nets with activations, as users name them: quantized and compared."""

from tersor.pipeline.nets.evaluating import evaluate_net_command
from tersor.pipeline.nets.naming import is_net_name, load_net

__all__ = ["evaluate_net_command", "is_net_name", "load_net"]

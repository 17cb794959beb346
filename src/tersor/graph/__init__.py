"""Nets with quantized activations: one ONNX graph, captured, observed, rounded, and written for engines to run."""

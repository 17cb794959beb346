"""Nets for phones: programs of ExecuTorch and files of ONNX Runtime, run here, and fitted to a budget."""

"""All of these need ONNX Runtime."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")
pytest.importorskip("onnx", reason="nets are ONNX graphs: pip install 'tersor[onnx]'")

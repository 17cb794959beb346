"""Write tests/kernels/golden_blocks.json: one block in every GGUF format, as ggml (in xllamacpp) encodes it.

Usage: python tools/make_golden_blocks.py          (needs pip install 'tersor[llama]')
The weights are short decimal numbers made by a linear congruence, so that the file explains itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

from tersor.core.arrays import Float32
from tersor.formats import get
from tersor.kernels.layouts import LAYOUTS

TARGET = Path(__file__).parents[1] / "tests/kernels/golden_blocks.json"


def numbers(count: int, seed: int) -> list[float]:
    """Numbers between -1 and 1 with two decimals, small ones more often than large ones."""
    state, out = seed, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % (1 << 31)
        unit = (state >> 8) % 2001 / 1000 - 1
        out.append(round(unit**3, 2))
    return out


def library() -> ctypes.CDLL:
    """The shared library of xllamacpp, which exports ggml."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        sys.exit("xllamacpp is not installed: pip install 'tersor[llama]'")
    return ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))


def encode(ggml: ctypes.CDLL, name: str, x: Float32, importance: Float32 | None) -> str:
    """One block as ggml encodes it, in hexadecimal."""
    out = np.zeros(LAYOUTS[name].size, np.uint8)
    if name == "q8_k":
        ggml.quantize_row_q8_K_ref(
            ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(x.size)
        )
        return out.tobytes().hex()
    kind = get(name).ggml_type
    ggml.ggml_quantize_init(kind)
    shares = ctypes.c_void_p(None if importance is None else importance.ctypes.data)
    places = (ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data))
    ggml.ggml_quantize_chunk(kind, *places, *map(ctypes.c_int64, (0, 1, x.size)), shares)
    return out.tobytes().hex()


def main() -> None:
    """Write the file."""
    ggml = library()
    importance = [abs(value) for value in numbers(256, 7)]
    weights = numbers(256, 1)
    golden: dict[str, object] = {"weights": weights, "importance": importance}
    for name, layout in LAYOUTS.items():
        x = np.array(weights[: layout.weights], np.float32)
        entry = {"bytes": encode(ggml, name, x, None)}
        if get(name).uses_importance:
            entry["weighted"] = encode(ggml, name, x, np.array(importance[: x.size], np.float32))
        golden[name] = entry
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    TARGET.write_text("{\n" + lines + "\n}\n")
    print(f"{TARGET}: {len(golden) - 2} formats")


if __name__ == "__main__":
    main()

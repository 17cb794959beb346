"""Log-probabilities of a text's tokens by one engine, in an environment of its own; no module of tersor is imported.

    python interop_engine.py vllm|transformers FOLDER WINDOWS.json DTYPE

DTYPE is what the engine computes in: float32 or bfloat16. WINDOWS.json holds lists of token ids. Prints one line of
JSON: the loss of every token but the first of each window, in nats, and versions.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from torchvision_stand_in import stand_in


def losses_of_transformers(folder: str, windows: list[list[int]], dtype: str) -> list[list[float]]:
    """Load with transformers as a user would, and score every window."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(1)
    stand_in()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    losses = []
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([window])
            logits = model(input_ids=ids).logits[0, :-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist())
    return losses


def losses_of_vllm(folder: str, windows: list[list[int]], dtype: str) -> list[list[float]]:
    """Load with vLLM on the CPU and score every window by the log-probabilities of its prompt."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    vllm: Any = importlib.import_module("vllm")
    engine = vllm.LLM(model=folder, dtype=dtype, enforce_eager=True, max_model_len=len(windows[0]) + 1)
    sampling = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs = engine.generate([{"prompt_token_ids": window} for window in windows], sampling, use_tqdm=False)
    losses = []
    for window, output in zip(windows, outputs, strict=True):
        scored = [entry[token].logprob for token, entry in zip(window[1:], output.prompt_logprobs[1:], strict=True)]
        losses.append([-value for value in scored])
    return losses


def versions(kind: str) -> str:
    """Return the engine and the libraries that decode for it, with their versions."""
    packages = ("vllm-cpu",) if kind == "vllm" else ("transformers", "compressed-tensors", "gptqmodel")
    known = {name for found in importlib.metadata.distributions() if (name := found.metadata["Name"].lower())}
    return " with ".join(f"{name} {importlib.metadata.version(name)}" for name in packages if name in known)


def main() -> None:
    """Score, and print the result as the last line."""
    kind, folder, path, dtype = sys.argv[1:]
    windows = json.loads(Path(path).read_text(encoding="utf-8"))
    losses = {"transformers": losses_of_transformers, "vllm": losses_of_vllm}[kind](folder, windows, dtype)
    print(json.dumps({"losses": losses, "version": versions(kind)}), flush=True)
    os._exit(0)  # engines keep threads that would wait


if __name__ == "__main__":
    main()

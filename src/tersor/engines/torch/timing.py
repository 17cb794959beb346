"""The child process that times transformers: the same operations and answers as `engines/llama/timing.py`.

Started by `engines/child.py` with the arguments MODEL OPTIONS_JSON; without a MODEL it is an empty engine, whose memory
is what every model pays. The model runs in the type its checkpoint names, as people run it; a quantized one on our own
integer kernels, or on torch's operators.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, BinaryIO

from tersor.engines.frames import Ready, serve
from tersor.engines.torch.checkpoints import is_quantized, load_quantized
from tersor.kernels.linear.by_torch.stored import place_of

__all__ = ["main"]


class _Stage:
    """A causal model of transformers, and the sequences that are being continued."""

    def __init__(self, path: str, threads: int, device: str, loading: dict[str, Any]) -> None:
        import torch  # noqa: PLC0415 - only ever in the child
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        began = perf_counter()
        self.model: Any = None
        if path and is_quantized(Path(path)):
            self.model = load_quantized(path, device=device, **loading)
        elif path:
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)
            self.model = self.model.to(place_of(device).device).eval()
        self.device = torch.device(device)
        self._wait()
        self.load_s = perf_counter() - began
        takes = {} if self.model is None else inspect.signature(self.model.forward).parameters
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}  # a generated token needs no others
        self.cache: Any = None
        self.tokens: Any = None

    def facts(self) -> dict[str, Any]:
        """The greeting."""
        if self.model is None:
            return {}
        return {"vocabulary_size": int(self.model.config.get_text_config().vocab_size), "load_s": self.load_s}

    def _wait(self) -> None:
        """Wait until the device has done what it was asked for: other than the processor, it only takes orders."""
        if self.device.type != "cpu":
            self.torch.accelerator.synchronize(self.device)

    def open(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Nothing has to be set up ahead; tells what the weights take."""
        held = {tensor.data_ptr(): tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers())}
        return {"loaded_bytes": sum(held.values())}

    def prompt(self, request: dict[str, Any]) -> dict[str, Any]:
        """Evaluate all prompts, which are equally long, in one batch and pick the likeliest token of each."""
        ids = self.torch.tensor(request["prompts"]).to(self.device)
        self._wait()
        began = perf_counter_ns()
        result = self.model(ids, use_cache=True, **self.last)
        self._wait()
        evaluated = perf_counter_ns() - began
        self.cache, self.tokens = result.past_key_values, result.logits[:, -1:].argmax(-1)
        self._wait()
        return {"evaluated_ns": evaluated, "first_token_ns": perf_counter_ns() - began}

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Generate `steps` more tokens in every sequence: nanoseconds of each step, and the tokens."""
        if self.cache is None:
            raise ValueError("there is no prompt to continue")
        times, made = [], [self.tokens]
        for _ in range(request["steps"]):
            began = perf_counter_ns()
            result = self.model(self.tokens, past_key_values=self.cache, use_cache=True, **self.last)
            self.cache, self.tokens = result.past_key_values, result.logits[:, -1:].argmax(-1)
            self._wait()
            times.append(perf_counter_ns() - began)
            made.append(self.tokens)
        return {"step_ns": times, "ids": self.torch.cat(made, 1).tolist()}


_OPERATIONS = {"time_open": _Stage.open, "time_prompt": _Stage.prompt, "time_generation": _Stage.generate}


def main() -> None:
    """Load the model, then answer requests until stdin closes."""
    path, options = sys.argv[1:3]

    def load(_output: BinaryIO) -> Ready:
        chosen = json.loads(options)
        stage = _Stage(path, chosen["threads"], chosen["device"], chosen["loading"])
        return stage.facts(), lambda request: _OPERATIONS[request["operation"]](stage, request)

    serve(load)
    os._exit(0)

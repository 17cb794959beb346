"""A causal language model in transformers, in float32: what artefacts are compared with, or one of them."""

from __future__ import annotations

import importlib.metadata
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tersor.core.arrays import Float32
from tersor.core.errors import EngineError, MissingError
from tersor.engines.torch.checkpoints import is_quantized, load_quantized, rounds_tokens, vocabulary_size
from tersor.targets.memory import machine_bytes

__all__ = ["TransformersLm"]

MEMORY_SHARE = 0.6


class TransformersLm:
    """The checkpoint in `folder`, widened to float32, on the CPU; for one thread at a time.

    A quantized one keeps its codes: activations are rounded as the file says, by torch's operators, or, where it says
    nothing, to 16 bits by our own kernels, which changes a divergence in its fifth digit.

    name     of the model, for errors
    weights  how many it has, so that one that would not fit is refused before it is loaded
    threads  of torch while it computes; 0: as many as torch is set to

    Raises MissingError where transformers or torch is absent, the model does not fit, or transformers cannot load it.
    """

    def __init__(self, folder: Path, *, name: str, weights: int, threads: int = 0) -> None:
        try:
            import torch  # noqa: PLC0415 (an extra)
            import transformers  # noqa: PLC0415
        except ImportError as error:
            raise MissingError(
                "the source's logits need transformers and torch: pip install 'tersor[torch]'"
            ) from error
        self._torch, self._threads = torch, threads
        self.name, self._codes = name, ""
        if (folder / "config.json").is_file() and is_quantized(folder):
            rounds = rounds_tokens(folder)
            how: dict[str, Any] = {"kernels": "torch"} if rounds else {"activations": "int16"}
            self._model = load_quantized(folder, dtype=torch.float32, **how)
            self._codes = f"codes by torch {torch.__version__}" if rounds else "codes by tersor, activations int16"
        else:
            _check_memory(name, weights)
            self._model = _load(transformers, torch.float32, folder, name)
        self.vocabulary_size = vocabulary_size(self._model)
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters

    def version(self) -> str:
        """What computes: name and release, as `transformers 5.23.0 float32`, and whether it multiplies with codes."""
        codes = f", {self._codes}" if self._codes else ""
        return f"transformers {importlib.metadata.version('transformers')} float32{codes}"

    def logits(self, ids: Sequence[int], *, start: int = 0) -> Float32:
        """Logits after each token of `ids` from `start` on: [len(ids) - start, vocabulary_size] float32."""
        return next(self.slices(ids, start=start, rows=max(1, len(ids))))

    def slices(self, ids: Sequence[int], *, start: int = 0, rows: int = 512, batch: int = 0) -> Iterator[Float32]:
        """Yield what `logits` returns, `rows` rows at a time; the blocks run once, the output matrix slice by slice.

        batch  not 0: compute the same text twice side by side, which changes the order of sums and nothing else
        """
        if not 0 <= start < len(ids) or rows < 1:
            raise EngineError(f"start {start} and rows {rows} do not fit {len(ids)} tokens")
        torch, model = self._torch, self._model
        tokens = torch.tensor([[int(token) for token in ids]] * (2 if batch else 1))
        if not self._keeps:
            with self._computing():
                whole = model(input_ids=tokens, use_cache=False).logits[0]
            for begin in range(start, len(ids), rows):
                yield whole[begin : begin + rows].numpy()
            return
        decoder = model.base_model
        with self._computing():
            hidden = decoder(input_ids=tokens, use_cache=False)
        for begin in range(start, len(ids), rows):
            wanted = torch.arange(begin, min(begin + rows, len(ids)))
            # The model's own code after the blocks (scales, soft caps) runs on states that are already there.
            decoder.forward = lambda *_, **__: hidden
            try:
                with self._computing():
                    values: Float32 = model(input_ids=tokens, use_cache=False, logits_to_keep=wanted).logits[0].numpy()
            finally:
                del decoder.forward
            yield values

    @contextmanager
    def _computing(self) -> Iterator[None]:
        before = self._torch.get_num_threads()
        if self._threads:
            self._torch.set_num_threads(self._threads)
        try:
            with self._torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the library's own, about its own defaults
                yield
        finally:
            if self._threads:
                self._torch.set_num_threads(before)


def _load(transformers: Any, dtype: object, folder: Path, name: str) -> Any:
    from safetensors import SafetensorError  # noqa: PLC0415 (comes with transformers)

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, about its own defaults
            return transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False
            ).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise MissingError(f"transformers cannot load {name}: {error}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _check_memory(name: str, weights: int) -> None:
    """Refuse to load what would not fit: MissingError says how much is needed."""
    needed, there = 4 * weights, machine_bytes()
    if there is not None and needed > MEMORY_SHARE * there:
        raise MissingError(
            f"{name} takes {needed / 2**30:.1f} GiB in float32, this machine has {there / 2**30:.1f}; "
            "compare with a bf16 GGUF of it instead (--against model-bf16.gguf)"
        )

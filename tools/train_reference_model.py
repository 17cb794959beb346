"""Train the embedded reference model of tersor and write its folder.

What: a Llama-architecture causal language model of 4.2 million parameters, trained on the source text of the Python
standard library of the interpreter that runs this script. It collects the text, splits it by file, trains a byte-level
BPE tokenizer, trains the model on the CPU, and writes a Hugging Face folder together with held-out text and the
perplexity measured on it.

Why: quantization has to be measured on weights that were really trained, and on text the model has never seen, with
neither a network nor a licence question. Random weights have no outliers and no perplexity worth losing.

How: needs torch, transformers, tokenizers and safetensors, and a C++ compiler unless --eager is given.

    python tools/train_reference_model.py --minutes 45            # train and write
    python tools/train_reference_model.py --minutes 45 --resume   # go on after an interruption
    python tools/train_reference_model.py --evaluate-only         # measure again, rewrite eval.json

The learning rate follows elapsed training time rather than a step count, so that a slower or busier machine still ends
with a finished schedule. Two runs therefore agree closely, not bit for bit; the collected text, the split, the
tokenizer and the order of the batches are deterministic for one Python release.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import hashlib
import itertools
import json
import math
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "tersor" / "reference_model"
SPECIAL = "<|endoftext|>"
VOCABULARY = 4096
CONTEXT = 512
EVALUATION_CONTEXT = 256
FIRST_WINDOWS = 80
CONVENTION = (
    "non-overlapping windows of 256 tokens, first token of each window not scored, "
    "float32 arithmetic on the committed bf16 weights"
)
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "encodings"}
    | {"pydoc_data", "__pycache__", "lib-dynload"}
)
HELD_OUT_PER_MILLE = 50
HELD_OUT_BYTES = 280_000
VALIDATION_BYTES = 120_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that shapes a training run; times are in minutes of wall clock."""

    minutes: float
    learning_rate: float
    batch: int
    threads: int
    seed: int
    bfloat16: bool
    compiled: bool
    checkpoint_minutes: float
    output: Path
    state: Path
    resume: bool
    evaluate_only: bool
    warm_up: float = 0.02
    final_rate: float = 0.01
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts of whole files: for training, for watching the training, and for the final figure."""

    train: list[str]
    validation: list[str]
    held_out: list[str]


def is_source(relative: Path) -> bool:
    """Whether a path below the standard library is hand-written source wanted in the corpus.

    Left out besides tests and tables: what the build generates, which names the machine that built the interpreter.
    """
    folders = set(relative.parts[:-1])
    generated = relative.name.startswith("_sysconfigdata") or any(part.startswith("config-") for part in folders)
    return not generated and not folders & EXCLUDED_FOLDERS


def collect() -> dict[str, str]:
    """Read the standard library: relative path to text, in sorted order, without duplicates."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[bytes] = set()
    texts: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not is_source(relative):
            continue
        data = path.read_bytes().replace(b"\r\n", b"\n")
        digest = hashlib.sha256(data).digest()
        if not data.strip() or digest in seen:
            continue
        seen.add(digest)
        texts[relative.as_posix()] = data.decode("utf-8")
    return texts


def split(texts: dict[str, str]) -> Corpus:
    """Split by file on a hash of the relative path; about 5 % of the files leave training.

    Of those, whole files in hash order up to HELD_OUT_BYTES bytes make the held-out text; the next ones, up to
    VALIDATION_BYTES bytes, only watch the training, so that no setting is chosen on the held-out text. A file that
    fits neither goes back to training.
    """
    train: list[str] = []
    reserved: list[tuple[bytes, str, str]] = []
    for name, text in texts.items():
        digest = hashlib.sha256(name.encode()).digest()
        if int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE:
            reserved.append((digest[8:], name, text))
        else:
            train.append(text)
    corpus = Corpus(train, [], [])
    held_room, validation_room = HELD_OUT_BYTES, VALIDATION_BYTES
    for _, name, text in sorted(reserved):
        size = len(text.encode()) + 1
        if size <= held_room:
            held_room -= size
            corpus.held_out.append(text)
            print(f"held out: {name} ({size} bytes)")
        elif size <= validation_room:
            validation_room -= size
            corpus.validation.append(text)
            print(f"validation: {name} ({size} bytes)")
        else:
            train.append(text)
    return corpus


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of VOCABULARY tokens, the end-of-text token (id 0) included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL,
        eos_token=SPECIAL,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """One stream of token ids (int64), every document preceded by the end-of-text token."""
    stream: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        stream += [0, *encoding.ids]
    return torch.tensor(stream, dtype=torch.long)


def build_model(seed: int) -> LlamaForCausalLM:
    """A freshly initialised model of about 4.2 million parameters, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def batches(stream: torch.Tensor, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches (batch, CONTEXT) of ids; each epoch cuts at a new offset and reshuffles."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        count = (len(stream) - offset) // CONTEXT
        windows = stream[offset : offset + count * CONTEXT].view(count, CONTEXT)
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            yield windows[order[start : start + batch]]


@torch.no_grad()
def mean_loss(model: Any, stream: torch.Tensor) -> tuple[float, int]:
    """Mean negative log-likelihood in nats per scored token, and the number of scored tokens.

    Windows of EVALUATION_CONTEXT tokens without overlap; the first token of each is context only, and an incomplete
    last window is dropped.
    """
    count = len(stream) // EVALUATION_CONTEXT
    windows = stream[: count * EVALUATION_CONTEXT].view(count, EVALUATION_CONTEXT)
    total = 0.0
    for part in torch.split(windows, 16):
        logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    scored = count * (EVALUATION_CONTEXT - 1)
    return total / scored, scored


def evaluate(folder: Path) -> dict[str, float | int | str]:
    """Measure the saved model on the folder's held-out text; the content of eval.json.

    Perplexity is exp of the mean negative log-likelihood per scored token, without a unit.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = (folder / "held_out.txt").read_text(encoding="utf-8")
    stream = torch.tensor(tokenizer(text, verbose=False).input_ids, dtype=torch.long)
    loss, scored = mean_loss(model, stream)
    first, _ = mean_loss(model, stream[: FIRST_WINDOWS * EVALUATION_CONTEXT])
    return {
        "perplexity": round(math.exp(loss), 5),
        "tokens": scored,
        "context": EVALUATION_CONTEXT,
        "convention": CONVENTION,
        "bits_per_byte": round(loss / math.log(2) * len(stream) / len(text.encode()), 5),
        "first_windows": FIRST_WINDOWS,
        "perplexity_first_windows": round(math.exp(first), 5),
        "date": dt.date.today().isoformat(),
    }


def record(folder: Path) -> None:
    """Measure the folder and write its eval.json."""
    measured = evaluate(folder)
    (folder / "eval.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(f"written: held-out perplexity {measured['perplexity']}", flush=True)


def widen_compatibility(folder: Path) -> None:
    """Name the tokenizer class and the rotary base as readers before transformers 5 know them."""
    model, tokenizer = {"rope_theta": 10000.0}, {"tokenizer_class": "PreTrainedTokenizerFast"}
    for path, added in ((folder / "config.json", model), (folder / "tokenizer_config.json", tokenizer)):
        content = {**json.loads(path.read_text(encoding="utf-8")), **added}
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the Hugging Face folder in bf16 and the figures measured on what was written."""
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        copy.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        widen_compatibility(Path(temporary))
        for path in Path(temporary).iterdir():
            path.chmod(0o644)
            path.replace(output / path.name)
    record(output)


def rate(settings: Settings, progress: float) -> float:
    """Learning rate at a share of the training time: linear warm-up, then a cosine."""
    if progress < settings.warm_up:
        return settings.learning_rate * max(progress, 1e-4) / settings.warm_up
    share = min((progress - settings.warm_up) / (1 - settings.warm_up), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * cosine)


def make_optimizer(model: LlamaForCausalLM, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def prepare(model: LlamaForCausalLM, settings: Settings) -> Any:
    """The callable that training steps use: the model, compiled unless told otherwise.

    Compiling takes about a minute and happens here, outside the training time; it changes no weight, uses no batch.
    """
    if not settings.compiled:
        return model
    runner: Any = torch.compile(model)
    ids = torch.zeros((settings.batch, CONTEXT), dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        loss = runner(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    model.zero_grad()
    return runner


def train_step(runner: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor, settings: Settings) -> float:
    """One optimizer step; returns the batch loss in nats per token."""
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        loss = runner(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(runner.parameters(), settings.clip)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def train(corpus: Corpus, settings: Settings) -> None:
    """Train for the given minutes, writing a usable folder at every checkpoint."""
    tokenizer = train_tokenizer(corpus.train)
    stream = encode(tokenizer, corpus.train)
    watched = encode(tokenizer, corpus.validation)
    model = build_model(settings.seed)
    optimizer = make_optimizer(model, settings)
    step, elapsed = 0, 0.0
    if settings.resume:
        state = torch.load(settings.state, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]
    print(f"{model.num_parameters()} parameters, {len(stream)} train tokens, {len(watched)} validation tokens")
    runner = prepare(model, settings)
    source = itertools.islice(batches(stream, settings.batch, settings.seed), step, None)
    budget, saved, recent = settings.minutes * 60, elapsed, 0.0
    while elapsed < budget:
        before = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate(settings, elapsed / budget)
        loss = train_step(runner, optimizer, next(source), settings)
        elapsed += time.monotonic() - before
        step += 1
        recent = 0.98 * recent + 0.02 * loss if recent else loss
        if step % 100 == 0:
            speed = settings.batch * CONTEXT * step / elapsed
            print(f"step {step} {elapsed:.0f} s loss {recent:.4f} {speed:.0f} tok/s", flush=True)
        if elapsed - saved > settings.checkpoint_minutes * 60 or elapsed >= budget:
            saved = elapsed
            print(f"step {step} validation loss {mean_loss(model, watched)[0]:.4f}", flush=True)
            settings.state.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "elapsed": elapsed}, settings.state)
            export(model, tokenizer, settings.output)


def parse_arguments() -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=45.0, help="training time, wall clock")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 512 tokens per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--float32", dest="bfloat16", action="store_false", help="train without bf16 autocast")
    parser.add_argument("--eager", dest="compiled", action="store_false", help="train without torch.compile")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    state = Path(tempfile.gettempdir()) / "tersor_reference_model.pt"
    parser.add_argument("--state", type=Path, default=state, help="training state for --resume")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the folder and rewrite eval.json")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Collect, split, train and write; or only measure."""
    settings = parse_arguments()
    torch.set_num_threads(settings.threads)
    if settings.evaluate_only:
        record(settings.output)
        return
    texts = collect()
    corpus = split(texts)
    print(f"{len(texts)} files, {sum(map(len, texts.values()))} characters")
    settings.output.mkdir(parents=True, exist_ok=True)
    held_out = "\n".join(corpus.held_out)
    (settings.output / "held_out.txt").write_text(held_out, encoding="utf-8", newline="\n")
    train(corpus, settings)


if __name__ == "__main__":
    main()

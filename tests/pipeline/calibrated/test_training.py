"""Training on the grid, for language models: what is written is what was trained, and it is never worse than before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.engines.llama_cpp import LlamaCpp
from tersor.evaluation.checks.logits import EXACT, compare
from tersor.models import load
from tersor.pipeline import quantize as plainly
from tersor.pipeline.calibrated.run import Calibration
from tersor.pipeline.calibrated.training import part, result
from tersor.pipeline.calibrated.training.felt import divergence_behind, felt
from tersor.pipeline.calibrated.training.language import Language
from tersor.pipeline.calibrated.training.settings import Training, split_training
from tersor.targets.processor import processor

from .trained import QUICK, REPORT, WIDE, Make, contents, how, quantized

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="training computes with torch: pip install 'tersor[torch]'")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Language]:
    """Return the list that every model goes to as training ended with it."""
    seen: list[Language] = []

    class Seen(Language):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            seen.append(self)

    monkeypatch.setattr(result, "Language", Seen)
    return seen


def weights(language: Language) -> dict[str, torch.Tensor]:
    return {name: values.detach() for part in language.parts for name, values in part.weights().items()}


def test_the_file_holds_what_was_trained_and_llama_cpp_computes_with_it(
    make: Make, text: Path, tmp_path: Path, trained: list[Language], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = make(**WIDE), tmp_path / "m.gguf"
    monkeypatch.setattr(result.Report, "is_kept", True)
    card = quantized(model, path, how(text), "q2_k")
    (language,) = trained
    made, back = weights(language), {tensor.name: tensor for tensor in load(path).tensors}
    formats = {row.name: row.format for row in card.plan.tensors}
    assert {"q2_k", "q3_k", "f32"} <= {formats[name] for name in made}
    for name, values in made.items():
        np.testing.assert_array_equal(back[name].read(0, back[name].rows).reshape(values.shape), values.numpy())
    quantized(model, tmp_path / "start.gguf", how(text, "gptq", proof=False), "q2_k")
    start = {tensor.name: tensor.read(0, tensor.rows) for tensor in load(tmp_path / "start.gguf").tensors}
    moved = [name for name, values in made.items() if (values.numpy() != start[name].reshape(values.shape)).any()]
    assert {"blk.0.attn_norm.weight", "blk.0.ffn_down.weight", "output_norm.weight"} <= set(moved)

    def ours(ids: Any) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        with torch.no_grad():
            return language.logits(made, torch.tensor([list(ids)]))[0].numpy()

    plainly.quantize(load(path), "f32", tmp_path / "f32.gguf")
    texts = np.random.default_rng(0).integers(3, 40, (2, 16)).tolist()
    for file, most in ((tmp_path / "f32.gguf", EXACT), (path, 0.2)):  # engines round activations beside such weights
        with LlamaCpp(file, context=16) as engine:
            assert compare(ours, engine.logits, texts).difference < most


def test_an_error_of_embeddings_or_a_block_is_weighed_by_what_it_costs_at_the_end(
    make: Make, text: Path, tmp_path: Path, trained: list[Language]
) -> None:
    quantized(make(), tmp_path / "m.gguf", how(text, training=dataclasses.replace(QUICK, block_epochs=0, epochs=1)))
    language, ids = trained[0], torch.arange(3, 9)[None]
    with torch.enable_grad():
        found = felt(language, ids, draws=2000)
    hidden = language.embedded_in_full(ids)
    for place in range(len(language.blocks) + 1):
        hidden = language.blocks[place - 1].forward(hidden) if place else hidden

        def logits(states: torch.Tensor, after: int = place) -> torch.Tensor:
            for later in language.blocks[after:]:
                states = later.traced(states)
            return language.ended_in_full(states)[0]

        whole: Any = torch.autograd.functional.jacobian(logits, hidden)  # type: ignore[no-untyped-call]
        jacobian = whole[:, :, 0]  # [tokens, vocabulary, tokens, hidden]
        p = logits(hidden).detach().softmax(-1)
        fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        exact = torch.einsum("svth,svw,swti->hi", jacobian, fisher, jacobian) / hidden.shape[1]
        assert (found[place] - exact).norm() < 0.06 * exact.norm()
        torch.manual_seed(0)
        error = 1e-2 * torch.randn_like(hidden[:, :1])  # of one token, with none beside it that it could add to
        cost = divergence_behind(exact)(error, torch.zeros_like(error))
        wanted = 0.5 * float(error[0, 0] @ exact @ error[0, 0])
        floor = 0.5 * 0.05 * float(exact.diagonal().mean() * error.square().sum())
        assert float(cost) == pytest.approx(wanted + floor, rel=1e-4)


def test_it_helps_and_the_card_tells_how_it_went(make: Make, text: Path, tmp_path: Path) -> None:
    told: list[str] = []
    seen: list[tuple[str, int, int]] = []
    settings = how(text, tell=told.append, progress=lambda *step: seen.append(step))
    card = quantized(make(), tmp_path / "m.gguf", settings, "q4_0")
    (gain,) = card.evaluations
    after, before = gain.metric("kl_mean"), gain.metric("kl_mean_before_training")
    assert after is not None
    assert before is not None
    assert after.value < before.value
    notes = [note for note in card.notes if note.startswith("qat: ")]
    heads = [note.split(",")[0] for note in notes[:3]]
    assert heads == ["qat: the output matrix alone", "qat: block 1 alone", "qat: block 2 alone"]
    assert "in at most 2 epochs" in notes[3]
    assert notes[4].endswith("nats on text that nothing has seen; written: trained weights")
    judging = before.units
    assert (gain.settings["sequences"], gain.settings["tokens"]) == (judging, 15 * judging)
    assert {row.units for row in gain.metrics if row.name.startswith("kl_mean")} == {judging}
    assert {row.method for row in card.errors} == {"gptq+qat", ""}
    assert told[0].startswith("planned peak memory of training ")
    assert any(note.startswith("planned peak memory of training ") for note in card.notes)
    steps = [step for step in seen if step[0].startswith("training ")]
    parts = ["the end", "block 1", "block 2", "end to end"]
    assert list(dict.fromkeys(where for where, _, _ in steps)) == [f"training {part}" for part in parts]
    weighed = [step[1:] for step in seen if step[0] == "weighing errors of blocks"]
    assert weighed == [(done, len(weighed)) for done in range(len(weighed))] != []
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert all(done < total for _, done, total in steps)


def test_parts_have_settled_when_the_whole_begins_to_be_trained(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    train = result.train_whole  # type: ignore[attr-defined]  # as it is called there

    def seen(language: Language, *given: Any) -> Any:
        matrices = [matrix for part in language.parts for matrix in part.matrices.values()]
        begun.extend({**matrix.parameters, "away": matrix.off_grid()} for matrix in matrices)
        begun[:] = [{what: values.detach().clone() for what, values in one.items()} for one in begun]
        return train(language, *given)

    monkeypatch.setattr(result, "train_whole", seen)
    quick = dataclasses.replace(QUICK, scale_rate=0.02)
    quantized(make(**WIDE), tmp_path / "m.gguf", how(text, training=quick), "q2_k")
    assert len(begun) == 8
    assert all(float(one["away"].abs().max()) <= 0.25 for one in begun)
    assert all((one[what] == one[what].round()).all() for one in begun for what in {"multiple", "minimum"} & one.keys())


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_end_learns_to_answer_and_to_embed(
    is_tied: bool, make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told of it is measured again here, on a model that has that end and all else in full precision."""
    train = result.train_end  # type: ignore[attr-defined]  # as it is called there

    def seen(language: Language, taken: Any, kept: Any, course: Any, *, states: Any, felt: Any) -> Any:
        torch.testing.assert_close(states, language.full_states(taken), rtol=1e-5, atol=1e-6)

        def cost() -> float:
            with torch.no_grad():
                made = language.parts[-1].weights()
                full = language.full_logits({}, kept).log_softmax(-1)
                answers, embedded = language.ends(made, language.full_states(kept), kept)
                apart = embedded - language.embedded_in_full(kept)
                floor = 0.05 * float(felt.diagonal().mean()) * torch.eye(len(felt))
                of_embeddings = 0.5 * torch.einsum("sth,hi,sti->st", apart, felt + floor, apart).mean()
                return float((full.exp() * (full - answers.log_softmax(-1))).sum(-1).mean() + of_embeddings)

        before = cost()
        went: Any = train(language, taken, kept, course, states=states, felt=felt)
        assert (went.before, went.after) == pytest.approx((before, cost()), rel=1e-3)
        assert went.after < (0.9 if is_tied else 1) * went.before  # six bits, beside a table that is not trained
        return went

    monkeypatch.setattr(result, "train_end", seen)
    quick = dataclasses.replace(QUICK, block_epochs=8, products="float32")
    model = make(**WIDE, tie_word_embeddings=is_tied)
    assert any(
        note.startswith("qat: the output matrix alone")
        for note in quantized(model, tmp_path / "m.gguf", how(text, training=quick), "q2_k").notes
    )


def test_the_whole_learns_the_same_from_states_that_blocks_left_as_from_a_teacher(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = result.train_whole  # type: ignore[attr-defined]  # as it is called there
    went: list[Any] = []

    def seen(is_at_hand: bool) -> Callable[..., Any]:
        def of(language: Language, taken: Any, kept: Any, course: Any, states: Any) -> Any:
            torch.testing.assert_close(states, language.full_states(taken), rtol=1e-5, atol=1e-6)
            went.append(train(language, taken, kept, course, states if is_at_hand else None))
            return went[-1]

        return of

    quick = dataclasses.replace(QUICK, products="float32")
    for is_at_hand in (True, False):
        monkeypatch.setattr(result, "train_whole", seen(is_at_hand))
        quantized(make(), tmp_path / f"{is_at_hand}.gguf", how(text, training=quick))
    assert went[0].losses == pytest.approx(went[1].losses, rel=1e-4)
    assert went[0].after == pytest.approx(went[1].after, rel=1e-3)


@pytest.mark.parametrize("config", ["MixtralConfig", "Qwen2Config", "Qwen3Config", "Gemma2Config", "Phi3Config"])
def test_every_kind_of_block_is_trained_with_products_in_bfloat16(
    config: str, make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[Any] = []

    def report(*given: Any, **named: Any) -> result.Report:
        went.append(given)
        return REPORT(*given, **named)

    monkeypatch.setattr(result, "Report", report)
    more = {"num_local_experts": 4, "num_experts_per_tok": 2} if config == "MixtralConfig" else {}
    quick = dataclasses.replace(QUICK, products="bfloat16", rate=1e-3)
    quantized(make(config, **more), tmp_path / "m.gguf", how(text, training=quick))
    ((_, end, blocks, whole, *_),) = went
    assert all(np.isfinite(one.losses).all() for one in (end, *blocks, whole))
    assert whole.after < whole.before or whole.share < 1


def test_what_training_makes_worse_is_written_as_it_was_before(make: Make, text: Path, tmp_path: Path) -> None:
    model = make()
    wild = dataclasses.replace(QUICK, rate=90.0, block_rate=90.0, scale_rate=20.0, norm_rate=90.0)
    card = quantized(model, tmp_path / "m.gguf", how(text, training=wild))
    quantized(model, tmp_path / "start.gguf", how(text, "gptq"))
    assert contents(tmp_path / "m.gguf") == contents(tmp_path / "start.gguf")
    assert any("no gain, so what training started from" in note for note in card.notes)
    assert {row.method for row in card.errors} == {"gptq", ""}


def test_a_checkpoint_for_other_engines_has_the_codes_that_were_trained(
    make: Make, text: Path, tmp_path: Path, trained: list[Language], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result.Report, "is_kept", True)
    model = make(num_key_value_heads=4)
    settings = how(text, "qat", container="gptq", training=dataclasses.replace(QUICK, block_epochs=0))
    quantized(model, tmp_path / "out", settings, "int3-g32")
    back = {tensor.name: tensor for tensor in load(tmp_path / "out").tensors}
    made = weights(trained[0])
    assert len(made) == 14  # the matrices of two blocks: norms stay what the checkpoint has
    for name, values in made.items():
        np.testing.assert_array_equal(back[name].read(0, back[name].rows), values.numpy())


def test_what_cannot_be_trained_is_refused_before_anything_is_calibrated(
    make: Make, text: Path, tmp_path: Path
) -> None:
    settings = how(text, "qat", container="compressed-tensors")
    with pytest.raises(SchemeError, match="those of fp8_e4m3 are bits of a float"):
        quantized(make(), tmp_path / "out", settings, "fp8_e4m3")
    with pytest.raises(SchemeError, match="qat: bf16 rounds no matrix, so there is nothing to train"):
        quantized(make(), tmp_path / "m.gguf", how(text, "qat"), "bf16")
    with pytest.raises(SchemeError, match="unknown method 'qat\\+gptq'"):
        quantized(make(), tmp_path / "m.gguf", how(text, "qat+gptq"))
    with pytest.raises(SchemeError, match="text to train on means nothing to gptq: the method must be qat"):
        quantized(make(), tmp_path / "m.gguf", how(text, "gptq", train=Calibration(text)))
    with pytest.raises(SchemeError, match="training takes at least one epoch"):
        Training(epochs=0, block_epochs=0)
    with pytest.raises(SchemeError, match="rates that are not below 0"):
        Training(rate=-1.0)
    with pytest.raises(SchemeError, match="products in one of usual, float32, bfloat16, got 'int8'"):
        Training(products="int8")
    assert split_training("awq+gptq+qat") == (True, "awq+gptq")


@pytest.mark.parametrize(
    ("flags", "asked", "wanted"),
    [
        (("avx2", "avx512_bf16"), "usual", "bfloat16"),
        (("asimd", "bf16"), "usual", "bfloat16"),
        (("avx2", "avx512f"), "usual", None),
        (("avx2",), "bfloat16", "bfloat16"),
        (("avx512_bf16",), "float32", None),
    ],
)
def test_products_are_made_in_bfloat16_where_the_processor_is_fast_at_it_unless_told(
    flags: tuple[str, ...], asked: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = dataclasses.replace(processor(), flags=flags)
    monkeypatch.setattr(part, "processor", lambda: here)
    found = part.products_on("cpu", Training(products=asked))
    assert found is (None if wanted is None else getattr(torch, wanted))

"""Runs that train: which text is learnt from and which judges, the memory that is told, and going on after a kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tersor.calibrate.sequences import Sequences
from tersor.calibrate.workspace import workspace_path
from tersor.core.errors import MissingError, SchemeError
from tersor.core.quantities import size
from tersor.decoder import Decoder
from tersor.pipeline.calibrated.run import Calibration, divided
from tersor.pipeline.calibrated.training import memory, result
from tersor.pipeline.calibrated.training.language import Language

from .trained import QUICK, Make, how, quantized

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="training computes with torch: pip install 'tersor[torch]'")


@pytest.mark.parametrize("count", [8, 40, 1024])
def test_what_chooses_and_what_proves_was_seen_by_nothing_before(count: int) -> None:
    text = Sequences(np.arange(count)[:, None], "numbers", "")
    calibrated = set(divided(text)[0].ids.ravel().tolist())
    kept = divided(text)[1]
    found = result._texts(text, is_proved=True)
    np.testing.assert_array_equal(kept[found.places], found.judging)
    learnt, looked_at, unseen = (set(part.ravel().tolist()) for part in (found.learnt, found.looked_at, found.judging))
    assert learnt == calibrated
    assert not calibrated & (looked_at | unseen)
    assert not looked_at & unseen
    assert len(looked_at) >= 2
    assert len(unseen) >= 2
    found = result._texts(text, is_proved=False)
    assert len(found.learnt) + len(found.looked_at) == count
    assert not set(found.learnt.ravel().tolist()) & set(found.looked_at.ravel().tolist())
    assert not len(found.judging)


def test_text_to_train_on_is_learnt_from_beside_that_of_the_calibration(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = tmp_path / "more.txt"
    more.write_text(" ".join(reversed(text.read_text().split())))
    learnt: list[Any] = []
    train = result.train_whole  # type: ignore[attr-defined]  # as it is called there

    def seen(language: Language, taken: Any, kept: Any, *given: Any) -> Any:
        learnt.append((taken.numpy(), kept.numpy()))
        return train(language, taken, kept, *given)

    monkeypatch.setattr(result, "train_whole", seen)
    quick = dataclasses.replace(QUICK, block_epochs=0, epochs=1)
    without = how(text, training=quick)
    cards = [
        quantized(make(), tmp_path / f"{number}.gguf", settings)
        for number, settings in enumerate(
            (without, *(dataclasses.replace(without, train=Calibration(file, 40)) for file in (more, text)))
        )
    ]
    (plain, kept), (both, same_kept), (again, _) = learnt
    np.testing.assert_array_equal(both[: len(plain)], plain)
    np.testing.assert_array_equal(kept, same_kept)
    assert both.shape == (len(plain) + 40, 16)
    judging = {tuple(row) for row in kept.tolist()}
    assert not judging & {tuple(row) for row in again.tolist()}, "of the same text only what does not judge is read"
    assert len(again) == 2 * len(plain)
    left = [[note for note in card.notes if "left out" in note] for card in cards]
    assert left == [[], [], ["qat: 4 sequences to train on left out: they share text with those that judge"]]
    told = [card.plan.recipe.calibration for card in cards]
    assert told[1].startswith(f"{told[0]}, and to train on more.txt: 40 sequences, sha256 ")


def test_blocks_learn_from_as_many_sequences_as_their_states_may_take(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: dict[str, int] = {}
    at_hand: list[bool] = []

    def counted(name: str) -> Callable[..., Any]:
        train = getattr(result, name)

        def seen(language: Language, taken: Any, *given: Any, **named: Any) -> Any:
            learnt[name] = len(taken)
            at_hand.append(given[-1] is not None)
            return train(language, taken, *given, **named)

        return seen

    for name in ("train_blocks", "train_whole"):
        monkeypatch.setattr(result, name, counted(name))
    monkeypatch.setattr(memory, "STATES", 10 * 16 * 64 * memory.OF_A_STATE)
    told: list[str] = []
    seen: list[tuple[str, int, int]] = []
    quantized(make(), tmp_path / "m.gguf", how(text, tell=told.append, progress=lambda *step: seen.append(step)))
    assert learnt["train_blocks"] == 10 < learnt["train_whole"]
    assert not at_hand[-1], "states of some sequences are those of none"
    assert "hidden states 80.00 KiB" in next(line for line in told if "of training" in line)
    steps = 3 * QUICK.block_epochs * -(-10 // 8) + QUICK.epochs * -(-learnt["train_whole"] // 8)
    assert {total for where, _, total in seen if where.startswith("training ")} == {steps}


@pytest.mark.parametrize(
    ("where", "batches", "unfinished"),
    [("block 2", 7, "block-2-0"), ("end to end", 7, "end-to-end-0"), ("block 1", 17, "block-1-1"), ("writing", 0, "")],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(  # noqa: PLR0917 (fixtures)
    where: str,
    batches: int,
    unfinished: str,
    make: Make,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second of two stretches of 5 steps each, of the first attempt or of the second, or behind all of them."""
    model, path = make(), tmp_path / "m.gguf"
    quick = dataclasses.replace(QUICK, block_epochs=2)
    if unfinished.endswith("-1"):  # the first attempt gains nothing
        quick = dataclasses.replace(quick, block_rate=9.0, scale_rate=2.0)
    quantized(model, path, how(text, training=quick))
    wanted = path.read_bytes()

    def stop(now: str, *_: object) -> None:
        seen.append(now)
        if seen.count(f"training {where}") > batches:
            raise KeyboardInterrupt

    seen: list[str] = []
    if where == "writing":
        monkeypatch.setattr("tersor.pipeline.calibrated.quantize.plainly.quantize", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(model, path, how(text, training=quick, progress=stop))
    monkeypatch.undo()
    folder = workspace_path(path) / "training"
    if unfinished:
        assert len(torch.load(folder / unfinished / "last.pt", weights_only=True)["epochs"]) == 1
    else:
        assert {"block-1.pt", "block-2.pt", "end-to-end.pt"} <= {one.name for one in folder.iterdir()}
        assert not any(one.is_dir() for one in folder.iterdir()), "what a part needed to go on is gone"
    other = how(text, resume=True, training=dataclasses.replace(quick, epochs=3))
    with pytest.raises(SchemeError, match="the unfinished work was made with another training"):
        quantized(model, path, other)
    with pytest.raises(SchemeError, match="the unfinished work was made with another more"):
        quantized(model, path, how(text, resume=True, training=quick, train=Calibration(text, 20)))
    quantized(model, path, how(text, resume=True, training=quick))
    assert path.read_bytes() == wanted
    assert not workspace_path(path).exists()


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_memory_that_is_not_there_is_told_before_anything_is_calibrated(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = make(), list[str]()
    weights = sum(int(np.prod(tensor.shape)) for tensor in model.tensors)
    needed = memory.plan_training(model.tensors, Decoder(model), QUICK, sequences=40, length=16)
    logits, inner = 4 * 4 * 8 * 16 * Decoder(model).vocabulary, 4 * 8 * 16 * 2 * (12 * 64 + 5 * 96)
    assert (needed.weights, needed.step, needed.states) == (60 * weights, logits + inner, 8 * 40 * 16 * 64)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed.total - 1)
    with pytest.raises(MissingError, match=r"training needs 6\d\d.* MiB .* the model is held whole"):
        quantized(model, tmp_path / "m.gguf", how(text))
    assert not workspace_path(tmp_path / "m.gguf").exists()
    monkeypatch.setattr(memory, "available_bytes", lambda: needed.total)
    quantized(model, tmp_path / "m.gguf", how(text, tell=told.append))
    assert f"planned peak memory of training {size(needed.total)}: program 600" in "".join(told)


def test_what_shares_text_with_what_judges_is_not_learnt_from(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = result._texts

    def with_copies(given: Sequences, *, is_proved: bool) -> Any:
        found = texts(given, is_proved=is_proved)
        return dataclasses.replace(found, learnt=np.concatenate([found.learnt, found.judging, found.looked_at[:1]]))

    def copies(given: Sequences, *, is_proved: bool) -> Any:
        found = texts(given, is_proved=is_proved)
        return dataclasses.replace(found, learnt=found.judging)

    plain = quantized(make(), tmp_path / "plain.gguf", how(text))
    monkeypatch.setattr(result, "_texts", with_copies)
    card = quantized(make(), tmp_path / "m.gguf", how(text))
    judging = int(card.evaluations[0].settings["sequences"])
    assert f"qat: {judging + 1} sequences to train on left out: they share text with those that judge" in card.notes
    assert {note for note in plain.notes if "nats" in note} <= set(card.notes)
    monkeypatch.setattr(result, "_texts", copies)
    with pytest.raises(SchemeError, match="all sequences share text with those that judge"):
        quantized(make(), tmp_path / "m.gguf", how(text))


def test_proof_is_part_of_what_a_run_goes_on_with(
    make: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.pipeline.calibrated.quantize.plainly.quantize", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(make(), tmp_path / "m.gguf", how(text, "gptq", proof=False))
    monkeypatch.undo()
    with pytest.raises(SchemeError, match="the unfinished work was made with another proof"):
        quantized(make(), tmp_path / "m.gguf", how(text, "gptq", resume=True))


def test_a_gpu_is_asked_for_its_own_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123 if device == "cuda:1" else 0, 456))
    here = memory.plan_training(model.tensors, Decoder(model), QUICK, sequences=40, length=16)
    there = memory.plan_training(model.tensors, Decoder(model), QUICK, sequences=40, length=16, device="cuda:1")
    assert (there.available, there.program) == (123, 0)
    assert there.step > here.step, "logits are compared whole"

"""The ladder on real models: what it makes runs, is what it says, and is kept where it was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor import reference_model
from tersor.calibrate.workspace import workspace_path
from tersor.core.card import Card, card_path
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.files.hashing import sha256
from tersor.graph.capture import capture
from tersor.graph.net import Net
from tersor.graph.sessions import Session
from tersor.models import Model, load
from tersor.pipeline.advising import language as ladder_of_language
from tersor.pipeline.advising.advise import advise, save_report
from tersor.pipeline.advising.ladder import Advice, Finding, Goal
from tersor.pipeline.advising.language import Task, rungs_of_language
from tersor.pipeline.advising.nets import NetTask, rungs_of_net
from tersor.pipeline.evaluate import evaluate
from tersor.pipeline.nets.quantizing import NetHow
from tersor.pipeline.nets.training import Training

from ..nets.conftest import SIDE, fitted

onnxruntime = pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")
torch = pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")


@pytest.fixture
def how(folder: Path) -> NetHow:
    assert folder.is_dir()
    return NetHow(calibration="calibration.npz", data="test.npz", threads=1)


def verdicts(advice: Advice) -> dict[str, str]:
    return {one.rung: one.verdict for one in advice.findings}


@pytest.fixture(scope="module")
def wide() -> Net:
    """A trained net whose weights weigh more than the graph."""
    torch.manual_seed(0)
    layers = (torch.nn.Flatten(), torch.nn.Linear(192, 128), torch.nn.ReLU(), torch.nn.Linear(128, 4))
    net = fitted(torch.nn.Sequential(*layers), 0.003, 60)
    return capture(net, torch.zeros(2, 3, SIDE, SIDE))


def test_a_net_goes_down_to_integers_and_is_kept_with_its_card(wide: Net, how: NetHow, folder: Path) -> None:
    goal = Goal(5.0, "points", most_bytes=int(0.4 * len(wide.to_bytes())))
    advice = advise(wide, goal, how=how, output=folder / "small.onnx")
    assert advice.chosen is not None
    assert (advice.chosen.rung, verdicts(advice)["f16 weights"]) == ("int8 weights", "passed over")
    assert advice.chosen.made is not None
    card = Card.from_json(card_path(folder / "small.onnx", "json").read_text())
    assert (card.artefacts[0].name, card.artefacts[0].sha256) == ("small.onnx", sha256(folder / "small.onnx"))
    assert card.artefacts[0].nbytes == advice.chosen.made.nbytes <= goal.most_bytes  # type: ignore[operator]
    with np.load("test.npz") as arrays:
        x = arrays["images"].astype(np.float32).transpose(0, 3, 1, 2) / 255
        labels = arrays["labels"]
    (name,) = (str(value.name) for value in wide.inputs)
    small = onnxruntime.InferenceSession(folder / "small.onnx", providers=["CPUExecutionProvider"])
    scores = (Session(wide).first({name: x}), small.run(None, {name: x})[0])
    right = [float((one.argmax(axis=1) == labels).mean()) for one in scores]
    assert 100 * (right[0] - right[1]) == pytest.approx(advice.chosen.made.loss.value, abs=1e-6)
    assert not workspace_path(folder / "small.onnx").exists()


def test_a_walk_that_was_ended_goes_on(wide: Net, how: NetHow, folder: Path) -> None:
    wide.save(folder / "wide.onnx")
    goal, output, seen = Goal(5.0, "points", least_speed=999.0), folder / "small.onnx", list[str]()

    class Ended(Exception):  # noqa: N818
        pass

    def tell(finding: Finding) -> None:
        seen.append(finding.rung)
        if len(seen) == 2:
            raise Ended

    with pytest.raises(Ended):
        advise("wide.onnx", goal, how=how, output=output, tell=tell)
    kept = {path.name: path.stat().st_mtime_ns for path in workspace_path(output).glob("*.onnx")}
    assert len(kept) == 2
    other = replace(how, data="calibration.npz")
    with pytest.raises(SchemeError, match="another data"):
        advise("wide.onnx", goal, how=other, output=output, resume=True)
    with pytest.raises(SchemeError, match="another goal"):
        advise("wide.onnx", replace(goal, most_loss=1.0), how=how, output=output, resume=True)
    whole = advise("wide.onnx", goal, how=how, output=output, resume=True, tell=lambda one: seen.append(one.rung))
    assert whole.chosen is None
    assert seen[2:4] == seen[:2]
    assert not workspace_path(output).exists()


def test_cures_are_tried_where_too_much_is_lost(graph: Net, how: NetHow) -> None:
    with np.load("calibration.npz") as arrays:
        x = arrays["images"].astype(np.float32).transpose(0, 3, 1, 2) / 255
    batches = [(x[at : at + 16], None) for at in range(0, 96, 16)]
    hard = replace(how, training=Training(batches, epochs=1))
    task = NetTask(graph, hard)
    rungs = {rung.name: rung for rung in rungs_of_net(task, Goal(0.0, "points"))}
    assert list(rungs) == [
        "f16 weights",
        "int8 weights",
        "int8, ptq",
        "int8, ptq, mixed precision",
        "int8, qat",
        "int4, ptq",
        "int4, ptq, mixed precision",
        "int4, qat",
    ]
    assert [rung.level for rung in rungs.values()] == [0, 1, 2, 2, 2, 3, 3, 3]
    plain, mixed, trained = (
        rungs[name].make(Path()) for name in ("int4, ptq", "int4, ptq, mixed precision", "int4, qat")
    )
    assert mixed.loss.value <= plain.loss.value
    assert mixed.nbytes >= plain.nbytes
    assert trained.nbytes <= 1.1 * plain.nbytes
    assert all(Path(one.name).is_file() for one in (plain, mixed, trained))


def test_without_labels_agreement_with_the_float_net_is_what_counts(graph: Net, how: NetHow) -> None:
    advice = advise(graph, Goal(100.0, "points", most_bytes=10**6), how=replace(how, data=None))
    assert advice.chosen is not None
    assert advice.chosen.made is not None
    assert (advice.chosen.rung, advice.chosen.made.loss.name) == ("f16 weights", "disagreement")
    assert advice.chosen.made.loss.units == 96


def test_speed_is_measured_beside_float_where_it_is_asked_for(graph: Net, how: NetHow) -> None:
    rung = rungs_of_net(NetTask(graph, how, needs_speed=True), Goal(1.0, "points"))[0]
    made = rung.make(Path())
    assert made.speed is not None
    assert 0 < made.speed.value < 100


def language(source: Model) -> Task:
    return Task(source, "builtin", windows=2, threads=1)


def test_a_language_model_is_rounded_and_compared(tmp_path: Path) -> None:
    goal = Goal(0.05, "nats", most_bytes=3_000_000)
    output, told = tmp_path / "small.gguf", list[Finding]()
    advice = advise(reference_model.PATH, goal, output=output, language=language, tell=told.append)
    assert advice.chosen is not None
    assert (advice.chosen.rung, verdicts(advice)["q5_k_m, best"]) == ("q4_k_m, rtn", "passed over")
    assert tuple(told) == advice.findings
    assert output.stat().st_size <= 3_000_000
    assert any(tensor.source_dtype == "Q4_K" for tensor in load(output).tensors)
    card = Card.from_json(card_path(output, "json").read_text())
    metric = card.evaluations[0].metric("kl_mean")
    assert metric is not None
    assert advice.chosen.made is not None
    assert metric.value == advice.chosen.made.loss.value


def test_a_language_model_is_not_judged_by_what_another_text_said(tmp_path: Path) -> None:
    class Ended(Exception):  # noqa: N818
        pass

    def tell(_: Finding) -> None:
        raise Ended

    goal, output, texts = Goal(0.05, "nats"), tmp_path / "small.gguf", (tmp_path / "a.txt", tmp_path / "b.txt")
    held_out = (reference_model.PATH / "held_out.txt").read_text()
    texts[0].write_text(held_out[:20_000])
    texts[1].write_text(held_out[20_000:40_000])

    def judged_by(path: Path, windows: int = 2) -> Callable[[Model], Task]:
        return lambda source: Task(source, "builtin", path, windows=windows, threads=1)

    with pytest.raises(Ended):
        advise(reference_model.PATH, goal, output=output, language=judged_by(texts[0]), tell=tell)
    for other, word in ((judged_by(texts[1]), "data"), (judged_by(texts[0], 3), "windows")):
        with pytest.raises(SchemeError, match=f"another {word}"):
            advise(reference_model.PATH, goal, output=output, language=other, resume=True)


def test_full_precision_is_computed_once_and_losses_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = load(reference_model.PATH), list[Any]()

    def watched(path: Path, **settings: Any) -> Any:
        asked.append(settings["against"])
        return evaluate(path, **settings)

    monkeypatch.setattr(ladder_of_language, "evaluate", watched)
    rungs = {rung.name: rung for rung in rungs_of_language(language(source), Goal(0.01, "nats"))}
    found = {name: rungs[name].make(tmp_path) for name in ("q8_0, rtn", "q4_k_m, rtn", "q3_k_m, rtn")}
    assert asked == [source, tmp_path / "reference.bin", tmp_path / "reference.bin"]
    for made in found.values():
        again = evaluate(tmp_path / made.name, against=source, windows=2, threads=1, save=False).metric("kl_mean")
        assert again is not None
        assert made.loss.value == pytest.approx(again.value, rel=1e-4)


def test_a_mix_and_training_are_the_last_cures_of_a_language_model() -> None:
    source = load(reference_model.PATH)
    rungs = rungs_of_language(language(source), Goal(0.01, "nats", most_bytes=2_600_000))
    names = [rung.name for rung in rungs if rung.level == next(r.level for r in rungs if r.name == "q3_k_m, rtn")]
    assert names == ["q3_k_m, rtn", "q3_k_m, gptq", "q3_k_m, best", "mixed precision, best", "q3_k_m, qat"]
    assert [rung.name for rung in rungs if rung.name.startswith("mixed")] == ["mixed precision, best"]
    assert not any(rung.name.startswith("mixed") for rung in rungs_of_language(language(source), Goal(0.01, "nats")))


@pytest.mark.parametrize(("train", "wanted"), [(None, ("builtin", 2048, 5)), (Path("more.txt"), ("more.txt", 8192, 3))])
def test_training_reads_more_text_than_is_calibrated_on(
    train: Path | None, wanted: tuple[str, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(load(reference_model.PATH), "builtin", train=train, epochs=None if train is None else 3)
    (rung,) = (one for one in rungs_of_language(task, Goal(0.01, "nats")) if one.name == "q2_k, qat")
    seen: list[Any] = []

    def noted(*_: Any, **given: Any) -> Any:
        seen.append(given)
        raise MissingError("only looked at")

    monkeypatch.setattr("tersor.pipeline.advising.language.quantize", noted)
    with pytest.raises(MissingError):
        rung.make(tmp_path)
    (given,) = seen
    assert (str(given["train"].source), given["train"].sequences, given["training"].epochs) == wanted


@pytest.mark.slow
def test_a_mix_takes_all_of_a_size_and_loses_less(tmp_path: Path) -> None:
    size = 2_400_000

    def few(source: Model) -> Task:
        return Task(source, "builtin", windows=4, threads=1)

    source = load(reference_model.PATH)
    rungs = {rung.name: rung for rung in rungs_of_language(few(source), Goal(0.01, "nats", most_bytes=size))}
    mixed, stock = (rungs[name].make(tmp_path) for name in ("mixed precision, best", "q2_k, best"))
    assert 0.98 * size < mixed.nbytes <= size
    assert stock.nbytes < mixed.nbytes
    assert mixed.loss.value < stock.loss.value


def test_for_a_gpu_it_is_a_checkpoint(tmp_path: Path) -> None:
    text = tmp_path / "few.txt"
    text.write_text((reference_model.PATH / "held_out.txt").read_text()[:60_000])

    def few(source: Model) -> Task:
        return Task(source, text)

    advice = advise(
        reference_model.PATH, Goal(1.0, "nats", most_bytes=10**8), output=tmp_path / "m", target="gpu", language=few
    )
    assert advice.chosen is not None
    assert advice.chosen.rung == "int8-channel, rtn"
    assert json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    with pytest.raises(SchemeError, match="speed on a GPU"):
        advise(reference_model.PATH, Goal(1.0, "nats", least_speed=2.0), target="gpu", language=few)
    with pytest.raises(SchemeError, match="the target is"):
        advise(reference_model.PATH, Goal(1.0, "nats"), target="tpu")


@pytest.mark.parametrize("what", ["the model", "its folder", "another folder"])
def test_nothing_is_replaced_but_a_checkpoint(what: str, tmp_path: Path) -> None:
    folder, thesis = tmp_path / "source", tmp_path / "thesis"
    shutil.copytree(reference_model.PATH, folder)
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    output = {"the model": folder, "its folder": tmp_path, "another folder": thesis}[what]
    with pytest.raises((SchemeError, FormatError), match=r"the model itself, or holds it|was not written by tersor"):
        advise(folder, Goal(1.0, "nats"), output=output, target="gpu", language=language)
    assert (thesis / "thesis.tex").is_file()
    assert (folder / "config.json").is_file()


def test_a_gguf_ends_in_gguf(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match=r"m\.q4: a language model is written as a GGUF, .* let it end in \.gguf"):
        advise(reference_model.PATH, Goal(1.0, "nats"), output=tmp_path / "m.q4", language=language)


def test_a_file_of_the_model_is_not_written_over(wide: Net, how: NetHow, folder: Path) -> None:
    wide.save(folder / "wide.onnx")
    with pytest.raises(SchemeError, match="the model itself"):
        advise("wide.onnx", Goal(5.0, "points"), how=how, output=folder / "wide.onnx")
    with pytest.raises(MissingError, match="no such folder"):
        advise("wide.onnx", Goal(5.0, "points"), how=how, output=folder / "absent" / "wide.onnx")
    (folder / "there").mkdir()
    with pytest.raises(SchemeError, match="of another kind"):
        advise("wide.onnx", Goal(5.0, "points"), how=how, output=folder / "there")


def test_for_a_gpu_the_text_to_judge_by_decides(tmp_path: Path) -> None:
    held_out = (reference_model.PATH / "held_out.txt").read_text()
    found = []
    for number in range(2):
        text = tmp_path / f"{number}.txt"
        text.write_text(held_out[20_000 * number : 20_000 * (number + 1)])

        def judged(source: Model, text: Path = text) -> Task:
            return Task(source, "builtin", text, windows=2, threads=1, is_gpu=True)

        rung = rungs_of_language(judged(load(reference_model.PATH)), Goal(1.0, "nats"))[0]
        (tmp_path / f"rung-{number}").mkdir()
        made = rung.make(tmp_path / f"rung-{number}")
        found.append(made.loss.value)
    assert found[0] != found[1]
    path = tmp_path / "rung-1" / made.name
    settings: dict[str, Any] = {"against": load(reference_model.PATH), "windows": 2, "threads": 1, "save": False}
    again = evaluate(path, data=tmp_path / "1.txt", **settings).metric("kl_mean")
    assert again is not None
    assert found[1] == pytest.approx(again.value, rel=1e-3)


def test_a_walk_knows_what_it_began_with(
    graph: Net, how: NetHow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):  # noqa: N818
        pass

    def tell(_: Finding) -> None:
        raise Ended

    goal, output = Goal(5.0, "points", least_speed=999.0), folder / "small.onnx"
    with pytest.raises(Ended):
        advise(graph, goal, how=how, output=output, tell=tell)
    with pytest.raises(SchemeError, match="say which one to go on with"):
        advise(graph, goal, how=how, resume=True)
    other = Net.parse(graph.to_bytes(), "other")
    other.model.graph.initializers[next(iter(other.model.graph.initializers))].name = "renamed"
    with pytest.raises(SchemeError, match="another model"):
        advise(other, goal, how=how, output=output, resume=True)
    with pytest.raises(SchemeError, match="has no name to know it by"):
        advise(graph, goal, how=replace(how, data=[np.zeros(3)]), output=output, resume=True)
    monkeypatch.setattr("tersor.pipeline.steps.provenance.versions", lambda: {"tersor": "0.0.1"})
    with pytest.raises(SchemeError, match="another versions"):
        advise(graph, goal, how=how, output=output, resume=True)


def test_a_report_is_written_by_the_ending_of_its_name(graph: Net, how: NetHow, folder: Path) -> None:
    advice = advise(graph, Goal(100.0, "points", most_bytes=10**6), how=how)
    for form in ("md", "html", "json"):
        save_report(advice, folder / f"a.{form}")
        assert advice.model in (folder / f"a.{form}").read_text()
    with pytest.raises(SchemeError, match=r"\.html"):
        save_report(advice, folder / "a.pdf")


def test_a_net_without_data_is_refused(graph: Any) -> None:
    with pytest.raises(SchemeError, match="data to calibrate"):
        advise(graph, Goal(1.0, "points"))

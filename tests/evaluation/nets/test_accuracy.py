from __future__ import annotations

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError, ShapeError
from tersor.core.evaluation import Evaluation
from tersor.evaluation.nets.accuracy import evaluate_net

from .conftest import CLASSES, batches, make_net, round_weights, torch

NET = make_net()


def value(found: Evaluation, name: str) -> float:
    metric = found.metric(name)
    assert metric is not None
    return metric.value


def test_a_net_agrees_with_itself() -> None:
    found = evaluate_net(NET, against=NET, data=batches(60, 16, NET))
    assert value(found, "top1_accuracy") == value(found, "reference_top1_accuracy") == 0.8
    assert value(found, "agreement") == 1
    drop = found.metric("accuracy_drop")
    assert drop is not None
    assert drop.low is not None
    assert drop.high is not None
    assert drop.value == 0
    assert drop.high == pytest.approx(-drop.low)
    assert drop.high > 0.05  # 60 items without a change prove no more
    assert found.metric("output_sqnr") is None
    assert found.samples == ()
    assert found.notes == ("0 of 60 items went from right to wrong, 0 from wrong to right",)


@pytest.mark.parametrize("size", [1, 7, 200])
def test_numbers_are_those_of_all_scores_at_once_whatever_the_batch(size: int) -> None:
    data = batches(200, size, NET)
    rough = round_weights(NET, "int2-channel-sym")
    found = evaluate_net(rough, against=NET, data=data)
    with torch.no_grad():
        inputs = torch.cat([x for x, _ in data])
        labels = torch.cat([y for _, y in data]).numpy()
        full, poor = NET.eval()(inputs).numpy(), rough.eval()(inputs).numpy()
    right, was_right = poor.argmax(1) == labels, full.argmax(1) == labels
    top5 = [label in np.argsort(-row)[:5] for row, label in zip(poor, labels, strict=True)]
    assert value(found, "top1_accuracy") == pytest.approx(right.mean())
    assert value(found, "top5_accuracy") == pytest.approx(np.mean(top5))
    assert value(found, "agreement") == pytest.approx((poor.argmax(1) == full.argmax(1)).mean())
    assert value(found, "accuracy_drop") == pytest.approx(was_right.mean() - right.mean())
    sqnr = 10 * np.log10((full**2).sum() / ((full - poor) ** 2).sum())
    assert value(found, "output_sqnr") == pytest.approx(sqnr, abs=1e-3)
    drops = {number: (was_right[labels == number] * 1.0 - right[labels == number]).mean() for number in set(labels)}
    worst = max(drops, key=lambda number: drops[number])
    assert value(found, f"accuracy_drop/class {worst}") == pytest.approx(drops[worst])
    assert sum(found.histograms[0].counts) == 200
    lost = int((was_right & ~right).sum())
    assert found.notes[0].startswith(f"{lost} of 200 items went from right to wrong")
    assert len(found.samples) == min(16, lost)
    numbers = [int(sample.text.split()[1].strip(":")) for sample in found.samples]
    assert all(was_right[number] and not right[number] for number in numbers)
    assert [sample.value for sample in found.samples] == sorted((s.value for s in found.samples), reverse=True)


def test_intervals_hold_their_value_and_the_paired_one_is_narrower() -> None:
    found = evaluate_net(round_weights(NET, "int4-channel-sym"), against=NET, data=batches(300, 50, NET))
    for metric in found.metrics:
        if metric.low is not None and metric.high is not None:
            assert metric.low <= metric.value <= metric.high
    drop, accuracy = found.metric("accuracy_drop"), found.metric("top1_accuracy")
    assert drop is not None
    assert accuracy is not None
    assert (drop.high or 0) - (drop.low or 0) < (accuracy.high or 0) - (accuracy.low or 0)
    assert drop.units == 300


def test_metrics_of_ones_own_are_measured_on_both_nets() -> None:
    def margin(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        made: np.ndarray = scores[np.arange(len(labels)), labels] - scores.mean(axis=1)
        return made

    def failing(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        raise ValueError("no")

    rough = round_weights(NET, "int2-channel-sym")
    found = evaluate_net(rough, against=NET, data=batches(40, 9, NET), metrics={"margin": margin})
    assert value(found, "margin") != value(found, "reference_margin")
    with pytest.raises(ShapeError, match=r"the metric margin must give one number an item, \(9,\), \(\)"):
        evaluate_net(NET, against=NET, data=batches(40, 9, NET), metrics={"margin": lambda scores, labels: 1.0})
    with pytest.raises(SchemeError, match=r"--metric margin: ValueError: no; the function is your own"):
        evaluate_net(NET, against=NET, data=batches(40, 9, NET), metrics={"margin": failing})


def test_without_labels_only_agreement_is_measured() -> None:
    data = [(inputs, None) for inputs, _ in batches(20, 10, NET)]
    found = evaluate_net(round_weights(NET, "int8-channel-sym"), against=NET, data=data)
    assert {metric.name for metric in found.metrics} == {"agreement", "output_sqnr"}
    assert found.notes == ("the data has no labels: accuracy was not measured",)


def test_functions_loaders_and_names_of_classes_serve_too() -> None:
    data = batches(30, 30, NET)
    dataset = torch.utils.data.TensorDataset(data[0][0], data[0][1])
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    calls: list[tuple[str, int, int]] = []

    def always_three(inputs: object) -> np.ndarray:
        return np.tile(np.eye(CLASSES, dtype=np.float32)[3], (len(inputs), 1))  # type: ignore[arg-type]  # a tensor

    found = evaluate_net(
        always_three,
        against=NET,
        data=loader,
        classes=["a", "b", "c", "d", "e", "f", "g"],
        progress=lambda *call: calls.append(call),
    )
    assert found.subject == "always_three"
    assert found.reference == "Sequential"
    assert calls[-1] == ("items", 30, 30)
    assert any(sample.detail.endswith("now d") for sample in found.samples)


def test_training_state_comes_back_and_dropout_is_off() -> None:
    net = make_net().train()
    list(net.children())[1].eval()
    found = evaluate_net(net, against=NET, data=batches(30, 10, NET))
    assert value(found, "agreement") == 1
    assert net.training
    assert [module.training for module in net.children()] == [True, False, True, True, True, True]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.full((4,), CLASSES), r"labels from 7 to 7, the nets know 7 classes"),
        (torch.zeros(3, dtype=torch.long), r"labels must be whole numbers \[4\], got int64 \(3,\)"),
        (torch.zeros(4), r"got float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: object, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        evaluate_net(NET, against=NET, data=[(torch.zeros(4, 3, 8, 8), labels)])


def test_no_items_broken_scores_and_other_shapes_are_refused() -> None:
    inputs = torch.zeros(2, 3, 8, 8)
    with pytest.raises(SchemeError, match="the data holds no items"):
        evaluate_net(NET, against=NET, data=[])
    with pytest.raises(FormatError, match="scores of item 0 of a batch are not finite"):
        evaluate_net(lambda x: np.full((len(x), CLASSES), np.nan), against=NET, data=[(inputs, None)])
    with pytest.raises(ShapeError, match=r"the net returns \(2, 3\), the reference \(2, 7\)"):
        evaluate_net(lambda x: np.zeros((len(x), 3)), against=NET, data=[(inputs, None)])

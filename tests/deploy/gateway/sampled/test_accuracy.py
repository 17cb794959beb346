"""Accuracy of a real net without labels, once it was calibrated; and what people say of two variants."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.config import read_deployment
from tersor.deploy.gateway.recording.recorder import Recorder
from tersor.deploy.gateway.sampled.confidences import Confidences, predicted

from ..conftest import live
from ..operating.orders import seen
from ..recording.test_recorder import Clock
from .conftest import YAML, Digits, classify, tell
from .figures import metric, wait_for

TRIED = """
models:
  digits:
    primary: full
    candidate: int8
    variants:
      int8: {engine: onnxruntime, path: int8.onnx}
      full: {engine: onnxruntime, path: full.onnx}
    rollout: {steps: [50, 100], shadow: 100, min_samples: 20, min_time_s: 0.0, shadow_time: 100, look: 5000}
"""
HERE = {"model": "digits", "variant": "int8"}


@pytest.fixture
def folder(digits: Digits, tmp_path: Path) -> Path:
    """Files of the net, and a place for the record."""
    for file in digits.folder.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def kept(folder: Path, name: str) -> Any:
    """A document of the record."""
    with sqlite3.connect(folder / "deploy.record.db") as connection:
        row = connection.execute("SELECT document FROM documents WHERE name = ?", (name,)).fetchone()
    connection.close()
    return json.loads(row[0])


def estimate(folder: Path) -> Any:
    """What the record says of the primary's accuracy."""
    (row,) = [row for row in kept(folder, "estimated accuracy") if row["variant"] == "int8"]
    return row


def test_accuracy_is_unknown_until_labels_came_and_then_right_where_images_become_harder(
    folder: Path, digits: Digits
) -> None:
    (folder / "deploy.yaml").write_text(YAML + "monitor: {confidence: {digits: logits}}\n")
    random = np.random.default_rng(0)
    hard = digits.images + random.normal(0, 0.35, digits.images.shape).astype(np.float32)
    with live(folder / "deploy.yaml") as gateway:
        for number in range(30):
            classify(gateway, digits.images[number])
    assert estimate(folder)["state"] == "unknown"
    rights = []
    with live(folder / "deploy.yaml") as gateway:
        assert metric(gateway, "tersor_estimated_accuracy_ratio", **HERE) is None
        for number in range(400):  # labels of easy and of hard images
            image = (digits.images if number % 2 else hard)[number]
            given, _ = classify(gateway, image, f"a{number}")
            tell(gateway, f"a{number}", right=given == digits.labels[number])
        for number in range(400, len(digits.labels)):  # and none of these, all of them hard
            rights.append(classify(gateway, hard[number])[0] == digits.labels[number])
    row = estimate(folder)
    assert (row["state"], row["labels"]) == ("estimated", 400)
    with live(folder / "deploy.yaml") as gateway:  # another gateway goes on with the labels
        for number in range(400, len(digits.labels)):
            classify(gateway, hard[number])

        def end(name: str) -> float | None:
            return metric(gateway, "tersor_estimated_accuracy_ratio", end=name, **HERE)

        # Clean images are answered rightly more often; a first look may come while there are but a few answers.
        wait_for(lambda: (end("high") or 1.0) < 0.95)
        low, high = end("low"), end("high")
    assert low is not None
    assert high is not None
    assert low <= np.mean(rights) <= high


def test_a_labelled_reference_calibrates_before_the_first_request(folder: Path, digits: Digits) -> None:
    more = "monitor: {confidence: {digits: logits}, references: {digits: labelled.npz}}\n"
    (folder / "deploy.yaml").write_text(YAML + more)
    with live(folder / "deploy.yaml") as gateway:
        rights = [
            classify(gateway, image)[0] == label
            for image, label in zip(digits.images[:200], digits.labels[:200], strict=True)
        ]
        wait_for(lambda: metric(gateway, "tersor_estimated_accuracy_ratio", **HERE) is not None)
        value = metric(gateway, "tersor_estimated_accuracy_ratio", end="value", **HERE)
    assert value == pytest.approx(np.mean(rights), abs=0.06)
    row = estimate(folder)
    assert row["labels"] == 400


def test_labels_of_another_artefact_are_forgotten() -> None:
    confidences = Confidences(Recorder(Clock()), {"digits": "logits"})
    confidences.serve("digits", "int8", "one")
    for number in range(60):
        confidences.labelled("digits", "int8", 0.9, is_right=number % 2 == 0)
    again = Confidences(Recorder(Clock()), {"digits": "logits"})
    again.restore(confidences.to_object())
    again.serve("digits", "int8", "one")
    assert again.labels("digits", "int8") == 60
    again.serve("digits", "int8", "another")
    assert again.labels("digits", "int8") == 0
    again.restore([["digits", "int8", "x", [[2.0, 1], ["?", 1]]]])
    again.restore({"no": "rows"})
    assert again.labels("digits", "int8") == 0


def test_classes_are_those_of_the_first_row_and_odd_answers_have_none() -> None:
    rows = np.array([[0.0, np.log(3), 0.0], [9.0, 0.0, 0.0]], np.float32)
    part = {"outputs": [{"name": "y", "dtype": "<f4", "shape": [2, 3]}]}
    found = predicted([(part, rows.tobytes())], "logits")
    assert found is not None
    assert found[0] == 1
    assert found[1] == pytest.approx(3 / 5)
    assert predicted([(part, rows.tobytes())], "probabilities") is None  # these have no sum of 1
    assert predicted([(part, np.full_like(rows, np.nan).tobytes())], "logits") is None
    whole = {"outputs": [{"name": "y", "dtype": "<i4", "shape": [2, 3]}]}
    assert predicted([(whole, rows.tobytes())], "logits") is None
    assert predicted([], "logits") is None


def test_a_kind_of_output_that_there_is_not_is_refused(folder: Path) -> None:
    for kind, said in (("digits: guess", "logits or probabilities"), ("other: logits", "one of the nets")):
        (folder / "deploy.yaml").write_text(YAML + f"monitor: {{confidence: {{{kind}}}}}\n")
        with pytest.raises(SchemeError, match=said):
            read_deployment(folder / "deploy.yaml")


def test_labels_of_answers_that_lots_were_drawn_for_compare_the_variants(folder: Path, digits: Digits) -> None:
    (folder / "deploy.yaml").write_text(TRIED)
    with live(folder / "deploy.yaml") as gateway:
        for number in range(400):
            classify(gateway, digits.images[number])
            if seen(gateway, "digits")["rollout"]["state"] == "canary":
                break
        givers: dict[str, list[bool]] = {"int8": [], "full": []}
        for number in range(80):
            given, giver = classify(gateway, digits.images[number], f"b{number}")
            right = given == digits.labels[number] and not (giver == "int8" and number % 2 == 0)
            tell(gateway, f"b{number}", right=right)
            givers[giver].append(right)
        found = seen(gateway, "digits")["rollout"]["feedback"]
    assert found["candidate"] == {"right": sum(givers["int8"]), "labelled": len(givers["int8"])}
    assert found["control"] == {"right": sum(givers["full"]), "labelled": len(givers["full"])}
    assert min(map(len, givers.values())) > 10
    assert found["difference"]["high"] < 0
    assert found["effect"]["value"] < -0.5
    assert found["needed"] > 100
    assert found["is_enough"] is False
    (counts,) = kept(folder, "opinions").values()
    assert counts["int8"] == [sum(givers["int8"]), len(givers["int8"])]

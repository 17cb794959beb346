"""Two nets by name, compared on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from tersor.core.evaluation import Evaluation, LayerError
from tersor.evaluation.language.demands import Demands, check_demands, judged
from tersor.evaluation.nets.accuracy import NetMetric, NetProgress, evaluate_net
from tersor.evaluation.nets.calling import Selector, is_module
from tersor.evaluation.nets.images import Preparation, open_images
from tersor.evaluation.nets.layers import compare_net_layers
from tersor.pipeline.nets.naming import load_net

__all__ = ["evaluate_net_command"]


def evaluate_net_command(
    net: str,
    *,
    against: str,
    data: Path,
    preparation: Preparation | None = None,
    inputs: str = "images",
    labels: str = "labels",
    channels_first: bool = False,
    output: Selector = None,
    metrics: Mapping[str, NetMetric] | None = None,
    layers: bool = True,
    command: str = "",
    progress: NetProgress | None = None,
    **demands: Unpack[Demands],
) -> tuple[Evaluation, tuple[LayerError, ...]]:
    """Compare two nets by name on the images at `data`; the error of each layer is that of the first batch.

    data            an .npz (arrays called `inputs` and `labels`), or a folder with one subfolder a class
    preparation     how pixels become numbers
    channels_first  the .npz holds [n, channels, height, width]
    layers          also compare layers, where both are torch modules
    demands         min_agreement and max_accuracy_drop, judged
    Options and errors are those of `evaluate_net`, `open_images` and `load_net`.
    """
    check_demands(demands, "classification")
    images = open_images(data, preparation, inputs=inputs, labels=labels, channels_first=channels_first)
    subject, reference = load_net(net), load_net(against)
    found = evaluate_net(subject, against=reference, data=images, metrics=metrics, output=output, progress=progress)
    limits = judged(found.metrics, demands)
    found = dataclasses.replace(found, subject=net, reference=against, limits=limits, command=command)
    if not layers or not (is_module(subject) and is_module(reference)):
        return found, ()
    batch, _ = next(iter(images))
    return found, compare_net_layers(subject, against=reference, inputs=batch)  # type: ignore[arg-type]  # is_module

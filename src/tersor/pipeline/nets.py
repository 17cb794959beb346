"""Nets by name: `package.module:factory` imported and called, then compared on labelled images."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from tersor.core.errors import MissingError, SchemeError
from tersor.core.evaluation import Evaluation, LayerError
from tersor.evaluation.language.demands import Demands, check_demands, judged
from tersor.evaluation.nets.accuracy import NetMetric, NetProgress, evaluate_net
from tersor.evaluation.nets.calling import Net, Selector, is_module
from tersor.evaluation.nets.images import Preparation, open_images
from tersor.evaluation.nets.layers import compare_net_layers

__all__ = ["evaluate_net_command", "is_net_name", "load_net"]

_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def is_net_name(text: str) -> bool:
    """Whether `text` names a net as `package.module:factory`, not a file.

    >>> is_net_name("nets.resnet:quantized"), is_net_name("model.gguf"), is_net_name("org/model")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None and not Path(text).exists()


def load_net(name: str) -> Net:
    """Import `package.module:factory`, call the factory without arguments, and return its net.

    The current folder can be imported from, as `python -m` has it; whatever the import runs, runs. A module that
    stands there itself is taken as it is. Raises SchemeError for a name of another form, MissingError where it leads
    nowhere.
    """
    if _NAME.fullmatch(name) is None:
        raise SchemeError(f"{name!r} is not package.module:factory, for example nets.resnet:quantized")
    place, _, path = name.partition(":")
    try:
        with _current_folder():
            made: Any = importlib.import_module(place)
    except ImportError as error:
        raise MissingError(f"{place} cannot be imported from {Path.cwd()}: {error}") from error
    for part in path.split("."):
        if not hasattr(made, part):
            raise MissingError(f"{place} has no {path}")
        made = getattr(made, part)
    if is_module(made):
        return made  # type: ignore[no-any-return]  # is_module
    if not callable(made):
        raise SchemeError(f"{name} is a {type(made).__name__}; a function that returns a net is needed")
    net = made()
    if not callable(net):
        raise SchemeError(f"{name}() returned a {type(net).__name__}; a net that can be called is needed")
    return net  # type: ignore[no-any-return]  # whatever it is, it can be called


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


@contextmanager
def _current_folder() -> Iterator[None]:
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)

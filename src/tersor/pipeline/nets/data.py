"""Calibration data as users name it: arrays in an .npz, a folder of images, or a function that returns batches."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError
from tersor.evaluation.nets.images import ArrayImages, FolderImages, Preparation, in_whole_batches, open_images, whole
from tersor.graph.net import Net
from tersor.graph.sessions import fixed_batch
from tersor.pipeline.nets.naming import is_net_name, load_named

__all__ = ["calibration_batches", "fitting"]

BATCH = 32


def calibration_batches(
    source: Any, net: Net | None = None, preparation: Preparation | None = None, *, images: str = "images"
) -> Iterable[Any]:
    """Return the batches that `source` stands for.

    source       batches (a DataLoader, a list), passed on as they are; "package.module:function" that returns such; an
                 .npz whose arrays are named as the inputs of `net`, as they are fed, or that holds images, under the
                 name `images`; or a folder of images, in subfolders by class
    net          whose inputs are looked for in the .npz; None: an array must be called as `images`. Where it takes
                 batches of one size, what a path holds comes in such
    preparation  how pixels of images become numbers
    Raises MissingError, FormatError and SchemeError by name.
    """
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable):
            raise SchemeError(f"calibration data is a path or yields batches, got {type(source).__name__}")
        return source
    if is_net_name(str(source)):
        made = load_named(str(source))
        found = made() if callable(made) else made
        if not isinstance(found, Iterable):
            raise SchemeError(f"{source} returned a {type(found).__name__}; batches are needed")
        return found
    path = Path(source).expanduser()
    if path.suffix == ".npz":
        return _arrays(path, net, preparation or Preparation(), images)
    return [batch for batch, _ in fitting(open_images(path, preparation), net)]


def fitting(data: Any, net: Net | None) -> Any:
    """Return images in batches of the size that a net takes, where it takes but one; all other data as it is."""
    size = None if net is None else fixed_batch(net)
    return data if size is None or not isinstance(data, (ArrayImages, FolderImages)) else in_whole_batches(data, size)


def _arrays(path: Path, net: Net | None, preparation: Preparation, images: str) -> Iterator[Any]:
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    wanted = [] if net is None else [str(value.name) for value in net.inputs]
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            is_fed = bool(wanted) and all(name in names for name in wanted)
            arrays = {name: archive[name] for name in (wanted if is_fed else [images]) if name in names}
    except (ValueError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: not an .npz of plain arrays ({error})") from error
    if is_fed:
        yield from _rows(arrays, net, path)
        return
    if not arrays:
        named = f"{', '.join(wanted)} (as the net's inputs) or " if wanted else ""
        raise FormatError(f"{path} has no array called {named}{images}; there are {', '.join(names)}")
    pixels = arrays[images]
    if pixels.ndim != 4:
        raise ShapeError(f"{path}: {images} must be [n, height, width, channels], got {list(pixels.shape)}")
    for part in _parts(len(pixels), net, path):
        yield preparation.tensor(pixels[part])


def _parts(count: int, net: Net | None, path: Path) -> Iterator[slice]:
    """Yield where batches lie: of the size that the net takes, else of BATCH."""
    size = None if net is None else fixed_batch(net)
    count = count if size is None else whole(count, size, path)
    return (slice(start, start + (size or BATCH)) for start in range(0, count, size or BATCH))


def _rows(arrays: dict[str, Any], net: Net | None, path: Path) -> Iterator[dict[str, Any]]:
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or not counts - {0}:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ShapeError(f"{path}: arrays need as many rows each, at least one: {shapes}")
    for part in _parts(counts.pop(), net, path):
        yield {name: array[part] for name, array in arrays.items()}

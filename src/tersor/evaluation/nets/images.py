"""Labelled images in batches: from an .npz of arrays, or from a folder with one subfolder a class."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tersor.core.errors import FormatError, MissingError, SchemeError, ShapeError
from tersor.files.hashing import sha256

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ArrayImages", "FolderImages", "Preparation", "in_whole_batches", "open_images", "whole"]

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Preparation:
    """How stored pixels become what a net takes: (x / divisor - mean) / std, channels first.

    divisor    255 brings bytes to 0 … 1
    mean, std  one value for each channel
    size       (height, width) that images of a folder are resized to; None: they are all of one size
    batch      images handed over at once
    """

    divisor: float = 255.0
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    size: tuple[int, int] | None = None
    batch: int = 64

    def __post_init__(self) -> None:
        if self.divisor == 0 or not all(self.std) or len(self.mean) != len(self.std) or self.batch < 1:
            raise SchemeError(f"divisor and std must not be 0, mean and std equally long, batch at least 1; got {self}")

    def tensor(self, pixels: npt.NDArray[Any]) -> Tensor:
        """Return [n, channels, height, width] float32 of pixels [n, height, width, channels]."""
        import torch  # noqa: PLC0415 (an extra)

        if pixels.shape[-1] != len(self.mean):
            raise ShapeError(f"images have {pixels.shape[-1]} channels, mean and std have {len(self.mean)} values")
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        scaled = (pixels.astype(np.float32) / np.float32(self.divisor) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


@dataclass(frozen=True)
class ArrayImages:
    """Images [n, height, width, channels] (or channels first) and labels [n] of one .npz, held in memory as stored."""

    path: Path
    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    preparation: Preparation = field(default_factory=Preparation)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Tensor, npt.NDArray[Any]]]:
        step = self.preparation.batch
        for start in range(0, len(self), step):
            yield self.preparation.tensor(self.images[start : start + step]), self.labels[start : start + step]

    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256(self.path)


@dataclass(frozen=True)
class FolderImages:
    """Images in `folder/CLASS/…`, read when their batch is due; classes are numbered in the order of their names."""

    path: Path
    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    preparation: Preparation = field(default_factory=Preparation)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[Tensor, npt.NDArray[Any]]]:
        step = self.preparation.batch
        for start in range(0, len(self), step):
            pixels = [_read_image(file, self.preparation.size) for file in self.files[start : start + step]]
            sizes = {image.shape for image in pixels}
            if len(sizes) > 1:
                raise ShapeError(f"{self.path}: images of {sorted(sizes)[:2]}; give the size they are resized to")
            yield self.preparation.tensor(np.stack(pixels)), self.labels[start : start + step]

    def digest(self) -> str:
        """Nothing: a folder has no hash."""
        return ""


def in_whole_batches(images: ArrayImages | FolderImages, size: int) -> ArrayImages | FolderImages:
    """Return the same images in batches of `size`, for a net that takes no others."""
    count = whole(len(images), size, images.path)
    ways, labels = replace(images.preparation, batch=size), images.labels[:count]
    if isinstance(images, ArrayImages):
        return replace(images, images=images.images[:count], labels=labels, preparation=ways)
    return replace(images, files=images.files[:count], labels=labels, preparation=ways)


def whole(count: int, size: int, path: Path) -> int:
    """Return how many of `count` items fill batches of `size`; the log says what is left over. ShapeError for none."""
    rest = count % size
    if rest == count:
        raise ShapeError(f"{path}: {count} items are not enough: the net takes {size} at a time")
    if rest:
        log.warning("%s: the last %d of %d items are left out: the net takes %d at a time", path, rest, count, size)
    return count - rest


def open_images(
    path: Path,
    preparation: Preparation | None = None,
    *,
    inputs: str = "images",
    labels: str = "labels",
    channels_first: bool = False,
) -> ArrayImages | FolderImages:
    """Open an .npz (its arrays called `inputs` and `labels`) or a folder of class folders; pickles are refused.

    Raises MissingError, FormatError and ShapeError, naming the file and the remedy.
    """
    ways = preparation or Preparation()
    if path.is_dir():
        return _folder(path, ways)
    if not path.is_file():
        raise MissingError(f"{path}: no such file or folder")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            absent = [name for name in (inputs, labels) if name not in arrays]
            if absent:
                raise FormatError(f"{path} has no array {absent[0]!r}; there are {', '.join(arrays.files)}")
            images, classes = arrays[inputs], arrays[labels]
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: not an .npz of plain arrays ({error})") from error
    if images.ndim != 4 or classes.shape != (len(images),) or classes.dtype.kind not in "iu":
        raise ShapeError(
            f"{path}: {inputs} must be [n, height, width, channels] and {labels} whole numbers [n], "
            f"got {images.shape} and {classes.dtype} {classes.shape}"
        )
    if channels_first:
        images = images.transpose(0, 2, 3, 1)
    return ArrayImages(path, images, classes.astype(np.int64), ways)


def _folder(path: Path, preparation: Preparation) -> FolderImages:
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [
        (file, index)
        for index, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise MissingError(f"{path}: no images in subfolders; a folder of images has one subfolder for each class")
    labels = np.array([index for _, index in found], np.int64)
    return FolderImages(path, tuple(file for file, _ in found), labels, tuple(classes), preparation)


def _read_image(path: Path, size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise MissingError("reading image files needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            plain = image.convert("RGB")
            return np.asarray(plain.resize(size[::-1]) if size is not None else plain)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FormatError(f"{path}: not an image that can be read ({error})") from error

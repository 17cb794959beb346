"""The files of an artefact: which they are, where they may lie, their hashes, and the Card beside them.

An artefact lies below the folder of the registry, links followed, unless it was registered with an absolute path.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from tersor.core.card import Card, card_path
from tersor.core.errors import FormatError, MissingError, SchemeError
from tersor.core.records import read_text
from tersor.deploy.registry.rows import KINDS, Difference, Kind, ManifestFile
from tersor.files.gguf import split_paths

__all__ = [
    "Contents",
    "confined",
    "contents_of",
    "differences",
    "kind_of",
    "manifest_digest",
    "manifest_of",
    "read_card",
    "state_of",
]

Contents: TypeAlias = tuple[str, ...]
"""SHA-256 of every file of an artefact, sorted: what it is, whatever its files are called."""

MAX_FILES = 10_000
MAX_DEPTH = 16
MAX_CARD_BYTES = 1 << 24
"""A Card of ten thousand tensors takes four million bytes."""

_SUFFIXES: dict[str, Kind] = {
    ".gguf": "gguf", ".onnx": "onnx", ".pt": "torch", ".pth": "torch", ".pt2": "torch", ".bin": "torch",
    ".safetensors": "torch",
}  # fmt: skip
_WEIGHTS_BESIDE = ("{name}.data", "{name}_data", "{stem}.data")
"""Where exporters of ONNX put weights that do not fit into the file."""


def kind_of(path: Path, given: str | None) -> Kind:
    """Return the kind of the artefact at `path`, as given or by its name; SchemeError where neither tells."""
    if given is not None:
        for kind in KINDS:
            if kind == given:
                return kind
        raise SchemeError(f"{given!r:.60} is no kind of artefact; there are {', '.join(KINDS)}")
    if path.is_dir():
        if (path / "config.json").is_file():
            return "checkpoint"
        if any(path.glob("*.onnx")):
            return "onnx"
        raise SchemeError(f"{path}: a folder without config.json or .onnx; say what it is with the kind")
    if path.suffix.lower() not in _SUFFIXES:
        raise SchemeError(f"{path}: its name does not tell its kind; give one of {', '.join(KINDS)}")
    return _SUFFIXES[path.suffix.lower()]


def confined(root: Path, path: str, *, is_absolute: bool) -> Path:
    """Return where an artefact lies; SchemeError for a path that leaves `root`, by its parts or by a link."""
    if is_absolute:
        if not Path(path).is_absolute():
            raise FormatError(f"{path!r:.200} is registered as absolute, and is not")
        return Path(path)
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or PurePosixPath(path).is_absolute() or "\0" in path:
        raise SchemeError(f"{path!r:.200} is no path below the folder of the registry")
    inside = root.joinpath(*parts)
    _check_inside(root, inside)
    return inside


def manifest_of(path: Path, kind: Kind, root: Path | None) -> tuple[ManifestFile, ...]:
    """Return every file of the artefact at `path` with its hash, in the order of their names.

    root  the folder that no file may lie outside of, links followed; None where it may lie anywhere

    Raises MissingError where there is nothing, FormatError for devices, names that are no text, and files that change
    while they are read.
    """
    found = []
    for name, file in _files(path, kind):
        if root is not None:
            _check_inside(root, file)
        nbytes, digest = _hashed(file)
        found.append(ManifestFile(name, nbytes, digest))
    if not found:
        raise MissingError(f"{path}: an empty folder is no artefact")
    if kind == "gguf":
        _check_magic(path)
    return tuple(sorted(found, key=lambda file: file.path))


def contents_of(path: Path) -> Contents:
    """Return the hash of every file of the artefact at `path`; raises what `manifest_of` and `kind_of` raise."""
    return tuple(sorted(file.sha256 for file in manifest_of(path, kind_of(path, None), None)))


def state_of(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return name, inode, bytes and time (ns) of every file of an artefact: others where one was replaced."""
    try:
        kind = kind_of(path, None)
    except SchemeError:
        kind = "torch"  # one file, whatever it holds
    found = []
    for name, file in _files(path, kind):
        here = file.stat()
        found.append((name, here.st_ino, here.st_size, here.st_mtime_ns))
    return tuple(found)


def manifest_digest(files: tuple[ManifestFile, ...]) -> str:
    """Return one SHA-256 for a whole manifest: of the lines that `sha256sum` would check it by."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.sha256}  {file.path}\n".encode())
    return digest.hexdigest()


def differences(
    path: Path, kind: Kind, files: tuple[ManifestFile, ...], root: Path | None, *, is_hashed: bool
) -> tuple[Difference, ...]:
    """Return what is not as the manifest says, file by file; contents are compared where `is_hashed`."""
    try:
        present = dict(_files(path, kind))
    except (MissingError, FormatError) as error:
        return (Difference(path.name, str(error)),)
    found = []
    for file in files:
        here = present.pop(file.path, None)
        problem = "is missing" if here is None else _problem(here, file, root, is_hashed=is_hashed)
        if problem:
            found.append(Difference(file.path, problem))
    return (*found, *(Difference(name, "was not there when the artefact was registered") for name in sorted(present)))


def read_card(path: Path, files: tuple[ManifestFile, ...]) -> str | None:
    """Return the Card of an artefact as it stands in its file, None where there is none.

    FormatError where it is too long, no Card, or the Card of other files.
    """
    beside = [card_path(path, "json"), *([card_path(path / path.name, "json")] if path.is_dir() else [])]
    place = next((card for card in beside if card.is_file()), None)
    if place is None:
        return None
    text = read_text(place, most=MAX_CARD_BYTES, too_large="no Card is that large")
    hashes = {PurePosixPath(file.path).name: file.sha256 for file in files}
    for artefact in Card.from_json(text, place=str(place)).artefacts:
        if artefact.sha256 and hashes.get(artefact.name, artefact.sha256) != artefact.sha256:
            raise FormatError(
                f"{place}: the Card of another {artefact.name}; its hash there is {artefact.sha256:.12}…, the file's "
                f"{hashes[artefact.name]:.12}…"
            )
    return text


def _files(path: Path, kind: Kind) -> Iterator[tuple[str, Path]]:
    """Yield name → place of every file of the artefact; the Card beside a file is none of them."""
    if path.is_dir():
        yield from _walked(path)
        return
    if not os.path.lexists(path):
        raise MissingError(f"{path}: no such file or folder")
    parts = [path]
    if kind == "gguf":
        parts = split_paths(path)
    elif kind == "onnx":
        names = (name.format(name=path.name, stem=path.stem) for name in _WEIGHTS_BESIDE)
        parts += [path.with_name(name) for name in dict.fromkeys(names) if path.with_name(name).is_file()]
    for part in parts:
        yield _named(part.name), part


def _walked(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file below `folder` but its Card, which grows with every evaluation.

    Links to folders are refused, since they can go round in circles.
    """
    waiting, count = [(folder, 0)], 0
    cards = {card_path(folder / folder.name, suffix) for suffix in ("json", "md", "html")}
    while waiting:
        here, depth = waiting.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise MissingError(f"{here}: cannot be read ({error.strerror or error})") from error
        for entry in entries:
            count += 1
            place = Path(entry.path)
            if count > MAX_FILES or depth > MAX_DEPTH:
                raise FormatError(f"{folder}: more than {MAX_FILES} files or {MAX_DEPTH} folders deep; no artefact is")
            if entry.is_dir(follow_symlinks=False):
                waiting.append((place, depth + 1))
            elif entry.is_symlink() and place.is_dir():
                raise FormatError(f"{place}: a link to a folder; put the files themselves there")
            elif place not in cards:
                yield _named(place.relative_to(folder).as_posix()), place


def _named(name: str) -> str:
    # Names that are no Unicode reach Python as lone surrogates, which are not printable either.
    if not name.isprintable():
        raise FormatError(f"{name!r:.200}: a name of a file must be printable text")
    return name


def _check_inside(root: Path, path: Path) -> None:
    try:
        place = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise RuntimeError for links in a circle
        reason = getattr(error, "strerror", None) or "links in a circle"
        raise MissingError(f"{path}: cannot be followed ({reason})") from error
    if not place.is_relative_to(root.resolve()):
        raise SchemeError(
            f"{path} leads to {place}, outside the folder of the registry; copy it into {root}, or register it "
            "as absolute"
        )


def _hashed(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a plain file that nobody writes meanwhile."""
    try:
        # A pipe would be waited for without end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise FormatError(f"{path}: not a plain file")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FormatError(f"{path}: was written while it was read; wait until it is whole")
    return after.st_size, digest


def _problem(here: Path, file: ManifestFile, root: Path | None, *, is_hashed: bool) -> str:
    """Return what is wrong with one file, "" where nothing is."""
    try:
        if root is not None:
            _check_inside(root, here)
        found = here.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is not a plain file any more"
        if found.st_size != file.nbytes:
            return f"has {found.st_size:,} bytes, {file.nbytes:,} were registered"
        if is_hashed and _hashed(here)[1] != file.sha256:
            return "has other content: its SHA-256 is another"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except (MissingError, FormatError, SchemeError) as error:
        return str(error)
    return ""


def _check_magic(path: Path) -> None:
    if path.is_dir():
        raise FormatError(f"{path}: a folder is no GGUF; name the file in it")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise FormatError(f"{path}: not a GGUF")

"""All weight files of a checkpoint as one table: a single file, or shards with their index."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Protocol

from tersor.core.errors import FormatError, MissingError
from tersor.files.dtypes import Numbers
from tersor.files.positional import PositionalFile
from tersor.files.safetensors import MAX_HEADER_BYTES, SafetensorsFile, TensorInfo, refuse_crowded_json
from tersor.files.torch_zip import TorchZipFile

__all__ = ["Checkpoint", "inside", "read_json", "weight_files"]

_TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")


class _WeightFile(Protocol):
    path: Path
    tensors: dict[str, TensorInfo]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers: ...

    def close(self) -> None: ...


class Checkpoint:
    """Tensors of all files under their names.

    tensors    name → TensorInfo
    paths      the weight files, in order of name
    """

    def __init__(self, paths: list[Path], index: dict[str, str] | None = None) -> None:
        self.paths = sorted(paths)
        self.tensors: dict[str, TensorInfo] = {}
        self._file_of: dict[str, _WeightFile] = {}
        self._files: list[_WeightFile] = []
        try:
            for path in self.paths:
                self._add(path)
            if index is not None:
                self._compare(index)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Numbers:
        """Return rows of the leading axis; see SafetensorsFile.read."""
        return self._file_of[name].read(name, start, stop)

    def close(self) -> None:
        """Release all files."""
        for file in self._files:
            file.close()

    def _add(self, path: Path) -> None:
        file: _WeightFile = TorchZipFile(path) if path.suffix in _TORCH_SUFFIXES else SafetensorsFile(path)
        self._files.append(file)
        for name, info in file.tensors.items():
            if name in self._file_of:
                raise FormatError(f"{path}: tensor {name!r:.120} is also in {self._file_of[name].path.name}")
            self._file_of[name] = file
            self.tensors[name] = info

    def _compare(self, index: dict[str, str]) -> None:
        """Each tensor must lie in the shard that the index gives it, and no shard may hold a further one."""
        for name, shard in index.items():
            if name not in self._file_of:
                raise FormatError(f"{self.paths[0].parent}: the index puts {name!r:.120} into {shard}, no shard has it")
            found = self._file_of[name].path.name
            if found != shard:
                raise FormatError(f"{self.paths[0].parent}: the index puts {name!r:.120} into {shard}, {found} has it")
        extra = next((name for name in self._file_of if name not in index), None)
        if extra is not None:
            where = self._file_of[extra].path
            raise FormatError(f"{where}: tensor {extra!r:.120} is not in the index")


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None, list[Path]]:
    """Return (weight files, index or None, further files read) of a folder; safetensors are preferred.

    A whole file comes before an index, as in transformers: an index beside it is what was left of former shards.
    Raises MissingError when there are no weights or a shard is absent, FormatError when the index is hostile.
    """
    for name, single in zip(_INDEXES, _SINGLES, strict=True):
        if (folder / single).is_file():
            return [folder / single], None, []
        if (folder / name).is_file():
            index = _read_index(folder / name)
            shards = sorted(set(index.values()))
            missing = [shard for shard in shards if not (folder / shard).exists()]
            if missing:
                raise MissingError(f"{folder / name}: {len(missing)} shards are missing, the first is {missing[0]}")
            return [inside(folder, shard) for shard in shards], index, [folder / name]
    for suffixes in ((".safetensors",), _TORCH_SUFFIXES):
        found = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise MissingError(f"{folder}: {len(found)} weight files and no index ({names}); name the file to load")
        if found:
            return found, None, []
    raise MissingError(f"{folder}: no weights (looked for {', '.join([*_SINGLES, *_INDEXES])}, *.safetensors, *.bin)")


def read_json(path: Path, limit: int = MAX_HEADER_BYTES, *, unique: bool = False) -> dict[str, object]:
    """Return the JSON object in a file of at most `limit` bytes; FormatError otherwise.

    unique  refuse also what is named twice, and more objects, lists and texts than a header has
    """
    with PositionalFile(path) as file:
        if file.size > limit:
            raise FormatError(f"{path}: {file.size} bytes, at most {limit} are read")
        text = file.read(0, file.size)
    if unique:
        refuse_crowded_json(text, path)
    try:
        value = json.loads(text, object_pairs_hook=_refuse_doubles if unique else None)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: an object is needed, it holds a {type(value).__name__}")
    return value


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path, unique=True).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise FormatError(f"{path}: weight_map must map tensor names to file names")
    endings = (".safetensors",) if "safetensors" in path.name else _TORCH_SUFFIXES
    for shard in set(index.values()):
        if shard != Path(shard).name or "\\" in shard or "\0" in shard or not shard.endswith(endings):
            raise FormatError(f"{path}: {shard!r:.120} is not the plain name of a {endings[0]} file in the same folder")
    return index


def _refuse_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise FormatError(f"{twice!r:.120} is named twice")
    return made


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a checkpoint; FormatError when a link leads it out of the folder.

    The hub's cache keeps files in `blobs/` beside `snapshots/REVISION/` and links to them: that one way out is known.
    """
    path = folder / name
    home = folder.resolve()
    allowed = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise FormatError(f"{path}: a link that leads nowhere") from error
    if not any(target.is_relative_to(place) for place in allowed):
        raise FormatError(f"{path}: links to a file outside its folder, which is refused")
    return path

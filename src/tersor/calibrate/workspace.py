"""What a calibrated run has finished so far, on disk: it survives a kill, and `--resume` goes on from it.

One folder beside the output. Every finished block is one file, written whole or not at all: a line of JSON (sizes,
SHA-256, what was measured), then the packed rows of its matrices, then arrays of what was measured. `run.json` names
what the run was made from; work that was made from anything else is never mixed in, and what another process is at work
on is left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from tersor.core.arrays import Bytes, Float32
from tersor.core.errors import FormatError, SchemeError
from tersor.core.tensor import QuantizedTensor
from tersor.files.atomic import Claim, atomic_writer
from tersor.formats import get

__all__ = ["Finished", "Workspace", "workspace_path"]

_log = logging.getLogger(__name__)

SCHEMA = "tersor.work/1"
_ARRAY = "float32"
"""Stands in a head, with a shape, for an array that lies behind the rows: as text, those of many experts are huge."""


def workspace_path(output: Path) -> Path:
    """Where the unfinished work for `output` lies.

    >>> workspace_path(Path("out/model.gguf")).as_posix()
    'out/.model.gguf.tersor-work'
    """
    return output.with_name(f".{output.name}.tersor-work")


@dataclass(frozen=True, slots=True)
class Finished:
    """One block's matrices as they became, with what was measured about each: JSON values and arrays of float32."""

    tensors: Mapping[str, QuantizedTensor]
    notes: Mapping[str, Mapping[str, Any]]


class Workspace:
    """The folder of one run, which other processes are kept off as long as this lives.

    run       everything that shapes the result, as plain JSON values: hashes of model and text, recipe, versions
    resume    True: go on with what is there; None: only if it was made from the same; False: never. Else it is removed,
              and blocks that were finished are logged
    is_owner  False: another rank makes and checks the folder, and this one never touches it

    Raises SchemeError where resumed work was made from something else, naming what differs, and FormatError where
    another run is at work in the folder.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, resume: bool | None, is_owner: bool = True) -> None:
        self.folder = folder
        self._claim: Claim | None = None
        if not is_owner:
            return
        wanted = _plain(run)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._claim = _claimed(folder)
        is_there, differing = (folder / "run.json").is_file(), self.differing(folder, run)
        count = len([*folder.glob("block-*")])
        blocks = f"{count} finished block{'s' if count > 1 else ''}"
        if resume and is_there:
            if differing is not None:
                raise SchemeError(
                    f"{folder}: the unfinished work was made with another {differing}; repeat the command that began "
                    "it, or run without --resume to start anew"
                )
            return
        if resume is None and is_there and differing is None:
            if count:
                _log.warning("%s: goes on with %s of the same command", folder, blocks)
            return
        if count:
            why = "" if differing is None else f", made with another {differing}"
            _log.warning("%s: removes %s%s", folder, blocks, why)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with atomic_writer(folder / "run.json") as file:
            file.write(json.dumps(wanted, indent=1).encode())

    @staticmethod
    def differing(folder: Path, run: Mapping[str, Any]) -> str | None:
        """Return what the work in `folder` was made with that is another in `run`; None: nothing, or no work."""
        if not (folder / "run.json").is_file():
            return None
        wanted, found = _plain(run), _described(folder / "run.json")
        key = min((key for key in {*wanted, *found} if wanted.get(key) != found.get(key)), default=None)
        return None if key is None else f"{key}: {found.get(key)!r:.80}, now {wanted.get(key)!r:.80}"

    def save(self, layer: int, finished: Finished) -> None:
        """Keep the result of one block for good."""
        rows: list[dict[str, Any]] = []
        digest = hashlib.sha256()
        for name, tensor in finished.tensors.items():
            digest.update(tensor.data.data)
            rows.append({
                "name": name, "format": tensor.format.name, "shape": list(tensor.shape), "fallback": tensor.fallback,
                "notes": dict(finished.notes.get(name, {})),
            })  # fmt: skip
        arrays: list[Float32] = []
        rows = json.loads(json.dumps(rows, default=lambda value: _set_aside(value, arrays)))
        for array in arrays:
            digest.update(array.data)
        head = json.dumps({"tensors": rows, "sha256": digest.hexdigest()}).encode() + b"\n"
        with atomic_writer(self._file(layer)) as file:
            file.write(head)
            for tensor in finished.tensors.values():
                file.write(tensor.data.data)
            for array in arrays:
                file.write(array.data)

    def load(self, layer: int) -> Finished | None:
        """Return the result of a block, None where it is not finished; FormatError for a damaged file."""
        path = self._file(layer)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            try:
                arrays: list[Float32] = []
                head = json.loads(file.readline(), object_hook=lambda found: _with_array(found, arrays))
                tensors, notes = {}, {}
                digest = hashlib.sha256()
                for row in head["tensors"]:
                    kind, shape = get(row["format"]), tuple(row["shape"])
                    data = _take(file.read(int(np.prod(shape[:-1])) * kind.row_bytes(shape[-1])), shape, kind)
                    digest.update(data.data)
                    tensors[row["name"]] = QuantizedTensor(kind, shape, data, row["fallback"])
                    notes[row["name"]] = row["notes"]
                for array in arrays:
                    array.reshape(-1)[:] = np.frombuffer(file.read(array.nbytes), np.float32)
                    digest.update(array.data)
            except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
                raise FormatError(f"{path}: damaged ({error}); remove it to start anew") from error
            if digest.hexdigest() != head["sha256"] or file.read(1):
                raise FormatError(f"{path}: damaged (its hash is another); remove it to start anew")
        return Finished(tensors, notes)

    def remove(self) -> None:
        """Forget everything: the artefact is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let others write the folder; what lies in it stays."""
        if self._claim is not None:
            self._claim.close()

    def _file(self, layer: int) -> Path:
        return self.folder / f"block-{layer:04d}.bin"


_claims: WeakValueDictionary[Path, Claim] = WeakValueDictionary()
"""What this process has claimed. A run that failed here may be held alive, claim and all, by its traceback alone."""


def _claimed(folder: Path) -> Claim:
    """Claim a folder for the latest run of this process: an earlier one of it is over."""
    place = folder.resolve()
    earlier = _claims.pop(place, None)
    if earlier is not None:
        earlier.close()
    _claims[place] = made = Claim(folder)
    return made


def _plain(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return it as it comes back from a file."""
    made: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **run}))
    return made


def _described(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{path}: damaged ({error}); remove it to start anew") from error
    return found


def _set_aside(value: object, arrays: list[Float32]) -> dict[str, Any]:
    """Keep an array for later, and return what stands for it in JSON."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        raise TypeError(f"a {type(value).__name__} is neither JSON nor an array of float32")
    arrays.append(np.ascontiguousarray(value))
    return {_ARRAY: list(value.shape)}


def _with_array(found: dict[str, Any], arrays: list[Float32]) -> Any:
    """Return what stood in JSON, or in its place an array that is yet to be filled."""
    if found.keys() != {_ARRAY}:
        return found
    arrays.append(np.zeros(found[_ARRAY], np.float32))
    return arrays[-1]


def _take(content: bytes, shape: tuple[int, ...], kind: Any) -> Bytes:
    rows = int(np.prod(shape[:-1]))
    return np.frombuffer(content, np.uint8).reshape(rows, kind.row_bytes(shape[-1])).copy()

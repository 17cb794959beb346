"""One door for every kind of model source."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from tersor.core.card import PART
from tersor.core.errors import FormatError, MissingError
from tersor.files.checkpoint import weight_files
from tersor.models.checkpoint_model import from_checkpoint
from tersor.models.gguf_model import from_gguf
from tersor.models.hub import fetch, hub_id, without_parts
from tersor.models.model import WEIGHTS, Model

__all__ = ["load"]


def load(source: str | Path, *, ignore_config: Collection[str] = ()) -> Model:
    """Return the model at `source`; no weight is read yet.

    source         a folder with config.json; a .safetensors, .bin or .pt file in one; a .gguf; or a hub id, org/name or
                   org/name/file.gguf
    ignore_config  keys of config.json that are not known here and that you know to be harmless

    Raises MissingError, FormatError or UnsupportedError, each naming the file and the remedy.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, ignore_config)
    if path.is_file():
        if path.suffix == ".gguf":
            return from_gguf(path)
        if path.suffix in WEIGHTS:
            return from_checkpoint(path.parent, None if _is_shard(path) else path, ignore_config=ignore_config)
        raise FormatError(f"{path}: {path.suffix or 'no'} suffix; models are {', '.join(WEIGHTS)}, .gguf or folders")
    if named := hub_id(source):
        found = fetch(named)
        if found.is_file():
            return from_gguf(found)
        model = _from_folder(found, ignore_config)
        return dataclasses.replace(model, name=named.partition("@")[0].rpartition("/")[2])
    raise MissingError(f"{source}: no such file or folder, and not of the form org/name of a hub model")


def _is_shard(path: Path) -> bool:
    """Tell whether `path` is one of several weight files of its folder; MissingError if the folder has others."""
    if PART.search(path.stem) is None:
        return False
    weights = [file.name for file in weight_files(path.parent)[0]]
    if path.name not in weights:
        raise MissingError(
            f"{path}: one of several by its name, but the model in {path.parent} is made up of {weights[0]}; "
            "name a folder that holds all its parts and no other weights"
        )
    return True


def _from_folder(folder: Path, ignore_config: Collection[str]) -> Model:
    ggufs = sorted(folder.glob("*.gguf"))
    if not (folder / "config.json").is_file() and ggufs:
        wholes = without_parts([path.name for path in ggufs])
        if len(wholes) > 1:
            names = ", ".join(wholes[:4])
            raise MissingError(f"{folder}: {len(wholes)} GGUF models ({names}); name the file to load")
        return from_gguf(folder / wholes[0])
    return from_checkpoint(folder, ignore_config=ignore_config)

"""One door for every kind of model source."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from tersor.core.errors import FormatError, MissingError
from tersor.models.checkpoint_model import from_checkpoint
from tersor.models.gguf_model import from_gguf
from tersor.models.hub import fetch, looks_like_id
from tersor.models.model import Model

__all__ = ["load"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def load(source: str | Path, *, ignore_config: Collection[str] = ()) -> Model:
    """Return the model at `source`; no weight is read yet.

    source         a folder with config.json; a .safetensors, .bin or .pt file in one; a .gguf; or a hub id
    ignore_config  keys of config.json that are not known here and that you know to be harmless

    Raises MissingError, FormatError or UnsupportedError, each naming the file and the remedy.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, ignore_config)
    if path.is_file():
        if path.suffix == ".gguf":
            return from_gguf(path)
        if path.suffix in _WEIGHTS:
            is_shard = "-of-" in path.stem
            return from_checkpoint(path.parent, None if is_shard else path, ignore_config=ignore_config)
        raise FormatError(f"{path}: {path.suffix or 'no'} suffix; models are {', '.join(_WEIGHTS)}, .gguf or folders")
    if isinstance(source, str) and looks_like_id(source) and not path.parent.is_dir():
        model = _from_folder(fetch(source), ignore_config)
        return dataclasses.replace(model, name=source.partition("@")[0].rpartition("/")[2])
    raise MissingError(f"{source}: no such file or folder, and not of the form org/name of a hub model")


def _from_folder(folder: Path, ignore_config: Collection[str]) -> Model:
    ggufs = sorted(folder.glob("*.gguf"))
    if not (folder / "config.json").is_file() and ggufs:
        wholes = [path for path in ggufs if "-of-" not in path.stem or "-00001-of-" in path.stem] or ggufs
        if len(wholes) > 1:
            names = ", ".join(path.name for path in wholes[:4])
            raise MissingError(f"{folder}: {len(wholes)} GGUF models ({names}); name the file to load")
        return from_gguf(wholes[0])
    return from_checkpoint(folder, ignore_config=ignore_config)

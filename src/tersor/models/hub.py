"""Models by Hugging Face id: fetched into the hub's own cache, weights in one format only, one GGUF of several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tersor.core.card import PART
from tersor.core.errors import MissingError
from tersor.models.model import WEIGHTS

__all__ = ["fetch", "hub_id", "looks_like_id", "without_parts"]

_ID = re.compile(r"([\w.-]+/[\w.-]+(?:@[\w./-]+)?)")
_FILE = re.compile(r"([\w.-]+/[\w.-]+(?:@[\w.-]+)?)/([\w.-]+\.gguf)")
_SIDE_FILES = (
    "config.json", "generation_config.json", "token*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template*", "tekken.json",
)  # fmt: skip


def looks_like_id(source: str) -> bool:
    """Tell whether `source` has the form org/name, org/name@revision, or org/name/file.gguf.

    >>> looks_like_id("org/model@main"), looks_like_id("org/model/m-q4_0.gguf"), looks_like_id("/some/folder")
    (True, True, False)
    """
    return _ID.fullmatch(source) is not None or _FILE.fullmatch(source) is not None


def hub_id(source: str | Path) -> str | None:
    """Return `source` where it can only be the id of a hub model: nothing here has its name, or that of its folder."""
    path = Path(source).expanduser()
    is_here = path.exists() or path.parent.is_dir()
    return source if isinstance(source, str) and looks_like_id(source) and not is_here else None


def fetch(source: str, *, weights: bool = True) -> Path:
    """Return the folder of a hub model, downloaded if need be, with the hub's own progress bar on stderr; a file of it
    where one was named.

    weights  False: without those of a checkpoint
    Raises MissingError when it does not exist, is not open to this user, or cannot be reached and is not in the cache;
    and where there are several GGUFs and none was named, with their names.
    """
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - imports much, and most runs never need it
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise MissingError(f"{source}: hub ids need huggingface_hub: pip install huggingface_hub") from error
    is_file = None if _ID.fullmatch(source) else _FILE.fullmatch(source)
    repository, file = (source, "") if is_file is None else is_file.groups()
    name, _, revision = repository.partition("@")
    try:
        files = hub.HfApi().list_repo_files(name, revision=revision or None)
        wanted = _parts(file) if file else [*_SIDE_FILES, *_weights(files, source)]
        if not weights:
            wanted = [pattern for pattern in wanted if not pattern.endswith(WEIGHTS)]
        folder = hub.snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns=["*/*"])
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError) as error:
        raise MissingError(
            f"{source}: no such model or revision on the hub, or it is not open to you (log in with `hf auth login`)"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        folder = str(_cached(source, name, revision, error))
    if file and not (Path(folder) / file).is_file():
        raise MissingError(f"{source}: {repository} has no file {file}")
    return Path(folder, file)


def _parts(file: str) -> list[str]:
    """Return the pattern of a GGUF with all its parts."""
    found = PART.search(file.removesuffix(".gguf"))
    return [file if found is None else f"{file[: found.start()]}-*-of-{found[0][-5:]}.gguf"]


def without_parts(ggufs: Sequence[str]) -> list[str]:
    """Return the names of whole GGUFs and of first parts; all, where there is no such.

    >>> without_parts(["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf"])
    ['a-00001-of-00002.gguf', 'b.gguf']
    """
    parts = {name: PART.search(name.removesuffix(".gguf")) for name in ggufs}
    return [name for name, part in parts.items() if part is None or part[0].startswith("-00001-")] or list(ggufs)


def _cached(source: str, name: str, revision: str, reason: Exception) -> Path:
    """Return the folder from the cache; MissingError when the hub cannot be reached and nothing is cached."""
    import huggingface_hub as hub  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        return Path(hub.snapshot_download(name, revision=revision or None, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise MissingError(
            f"{source}: neither a local file or folder nor in the hub's cache, and the hub cannot be reached "
            f"({type(reason).__name__}); check the spelling or the network"
        ) from error


def _weights(files: list[str], source: str) -> list[str]:
    """Return the patterns of one complete set of weights and of its index, safetensors before pickles."""
    own = [name for name in files if "/" not in name]
    for pattern, beginning, ending in (
        ("model*.safetensors", "model", ".safetensors"),
        ("*.safetensors", "", ".safetensors"),
        ("pytorch_model*.bin", "pytorch_model", ".bin"),
    ):
        if any(name.startswith(beginning) and name.endswith(ending) for name in own):
            return [pattern, f"{pattern}.index.json"]
    wholes = without_parts(sorted(name for name in own if name.endswith(".gguf")))
    if len(wholes) > 1:
        names = ", ".join(wholes[:8]) + (f" and {len(wholes) - 8} more" if len(wholes) > 8 else "")
        raise MissingError(f"{source}: {len(wholes)} GGUF models ({names}); name one of them: {source}/{wholes[0]}")
    return _parts(wholes[0]) if wholes else ["*.gguf"]

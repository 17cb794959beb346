"""Models by Hugging Face id: fetched into the hub's own cache, weights in one format only."""

from __future__ import annotations

import re
from pathlib import Path

from tersor.core.errors import MissingError

__all__ = ["fetch", "looks_like_id"]

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_SIDE_FILES = (
    "config.json", "generation_config.json", "token*", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template*", "tekken.json",
)  # fmt: skip


def looks_like_id(source: str) -> bool:
    """Tell whether `source` has the form org/name or org/name@revision.

    >>> looks_like_id("org/model@main"), looks_like_id("/some/folder")
    (True, False)
    """
    return _ID.fullmatch(source) is not None


def fetch(source: str) -> Path:
    """Return the folder of a hub model, downloaded if need be, with the hub's own progress bar on stderr.

    Raises MissingError when it does not exist, is not open to this user, or cannot be reached and is not in the cache.
    """
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - imports much, and most runs never need it
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise MissingError(f"{source}: hub ids need huggingface_hub: pip install huggingface_hub") from error
    name, _, revision = source.partition("@")
    try:
        files = hub.HfApi().list_repo_files(name, revision=revision or None)
        wanted = [*_SIDE_FILES, *_weights(files)]
        folder = hub.snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns=["*/*"])
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError) as error:
        raise MissingError(
            f"{source}: no such model or revision on the hub, or it is not open to you (log in with `hf auth login`)"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        return _cached(source, name, revision, error)
    return Path(folder)


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


def _weights(files: list[str]) -> list[str]:
    """Return the patterns of one complete set of weights, safetensors before pickles."""
    own = [name for name in files if "/" not in name]
    for pattern, beginning, ending in (
        ("model*.safetensors", "model", ".safetensors"),
        ("*.safetensors", "", ".safetensors"),
        ("pytorch_model*.bin", "pytorch_model", ".bin"),
    ):
        if any(name.startswith(beginning) and name.endswith(ending) for name in own):
            return [pattern, f"{pattern}.index.json"]
    return ["*.gguf"]

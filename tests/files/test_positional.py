from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tersor.core.errors import MissingError
from tersor.files.positional import PositionalFile


def test_a_file_that_may_not_be_read_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:  # as for another user's file; root may read them all
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    path = tmp_path / "model.safetensors"
    path.touch()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MissingError, match=r"model\.safetensors: cannot be opened \(Permission denied\)"):
        PositionalFile(path)

"""The hash of a file is the published one of its bytes."""

from __future__ import annotations

from pathlib import Path

from tersor.files.hashing import sha256


def test_the_hash_is_that_of_the_published_example(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

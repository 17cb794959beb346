"""A stored reference: what was written is read, and nothing broken is believed."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.arrays import Float32
from tersor.core.errors import FormatError, SchemeError, TersorError
from tersor.evaluation.language.comparison import compare
from tersor.evaluation.language.stored import (
    MAGIC,
    Header,
    StoredReference,
    is_stored,
    recording,
    same_opening,
    targets_sha256,
)
from tersor.evaluation.language.windows import Window, cut

VOCABULARY, CONTEXT, KEPT = 40, 8, 5
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 50).astype(np.int32)
WINDOWS = cut(TOKENS, context=CONTEXT)


def logits(windows: Sequence[Window], seed: int) -> list[Float32]:
    """Random logits for each window, some of them ruled out."""
    random = np.random.default_rng(seed)
    made = []
    for window in windows:
        values = 3 * random.standard_normal((len(window.targets), VOCABULARY), dtype=np.float32)
        values[values < -7] = -np.inf
        values[np.arange(len(values)), window.targets] = 0
        made.append(values)
    return made


def header(**changes: Any) -> Header:
    rows = sum(len(window.targets) for window in WINDOWS)
    facts: dict[str, Any] = {"reference": "m", "engine": "e 1", "data": "t.txt", "data_sha256": "ab", "opening": "abc"}
    facts |= {"vocabulary": VOCABULARY, "context": CONTEXT, "stride": 4, "begin": None, "limit": None, "seed": None}
    facts |= {"kept": KEPT, "tokens": len(TOKENS), "rows": rows, "targets_sha256": targets_sha256(WINDOWS)}
    return Header(**(facts | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "m.reference"
    passed = list(recording(target, header(), TOKENS, WINDOWS, iter(logits(WINDOWS, 1))))
    assert all(np.array_equal(*pair) for pair in zip(passed, logits(WINDOWS, 1), strict=True))
    return target


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with another header."""
    data = path.read_bytes()
    at = len(MAGIC) + 4
    (size,) = struct.unpack("<I", data[len(MAGIC) : at])
    document = json.loads(data[at : at + size])
    change(document)
    text = json.dumps(document).encode()
    path.write_bytes(MAGIC + struct.pack("<I", len(text)) + text + data[at + size :])
    return path


def test_what_was_recorded_is_read_and_bounds_the_divergence(path: Path) -> None:
    stored = StoredReference(path)
    assert is_stored(path)
    assert stored.header == header()
    assert np.array_equal(stored.tokens, TOKENS)
    stored.check_windows(WINDOWS)
    exact, worst = compare(WINDOWS, logits(WINDOWS, 1), logits(WINDOWS, 2), VOCABULARY, context=CONTEXT)
    known, seen = compare(WINDOWS, stored.slices(WINDOWS), logits(WINDOWS, 2), VOCABULARY, context=CONTEXT)
    stored.close()
    slack = 1e-6 * (1 + exact.divergence)
    assert (known.divergence <= exact.divergence + slack).all()
    assert (exact.divergence <= known.divergence_high + slack).all()
    assert (known.divergence > 0.5 * exact.divergence).mean() > 0.5
    np.testing.assert_allclose(known.reference_loss, exact.reference_loss, rtol=1e-6)
    np.testing.assert_allclose(known.subject_loss, exact.subject_loss, rtol=1e-6)
    assert np.array_equal(known.same_top, exact.same_top)
    assert [token for token, _ in seen[0].reference] == [
        token for token, _ in next(one for one in worst if one.place == seen[0].place).reference
    ]


def test_a_file_of_all_tokens_knows_the_divergence(tmp_path: Path) -> None:
    target = tmp_path / "whole.reference"
    list(recording(target, header(kept=VOCABULARY), TOKENS, WINDOWS, iter(logits(WINDOWS, 1))))
    exact, _ = compare(WINDOWS, logits(WINDOWS, 1), logits(WINDOWS, 2), VOCABULARY, context=CONTEXT)
    stored = StoredReference(target)
    known, _ = compare(WINDOWS, stored.slices(WINDOWS), logits(WINDOWS, 2), VOCABULARY, context=CONTEXT)
    stored.close()
    np.testing.assert_allclose(known.divergence, exact.divergence, rtol=1e-5)
    np.testing.assert_allclose(known.divergence_high, exact.divergence, rtol=1e-5)


def test_a_recording_that_is_broken_off_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "m.reference"
    begun = recording(target, header(), TOKENS, WINDOWS, iter(logits(WINDOWS, 1)))
    next(begun)
    begun.close()  # type: ignore[attr-defined]  # a generator
    assert not target.exists()
    with pytest.raises(SchemeError, match="0 tokens of a vocabulary of 40 cannot be kept"):
        next(recording(target, header(kept=0), TOKENS, WINDOWS, iter(())))
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_ones_own_need_the_model_itself(path: Path) -> None:
    stored = StoredReference(path)
    with pytest.raises(SchemeError, match="metric mine needs the logits of the reference"):
        compare(
            WINDOWS, stored.slices(WINDOWS), logits(WINDOWS, 2), VOCABULARY, context=CONTEXT, own={"mine": lambda *_: 1}
        )
    stored.close()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocabulary", 0, "vocabulary is 0, it must be 1 to"),
        ("vocabulary", 1 << 40, "vocabulary is 1099511627776"),
        ("kept", 41, "kept is 41, it must be 1 to 40"),
        ("tokens", -1, "tokens is -1"),
        ("tokens", 1 << 30, "truncated or not closed"),
        ("rows", 1 << 30, "truncated or not closed"),
        ("rows", 3, "truncated or not closed"),
        ("context", 1 << 30, "tokens is 50, it must be 2147483648 to"),
        ("context", 3, "context is 3, it must be 4"),
        ("stride", 5, "stride is 5, it must be 0 to 4"),
        ("limit", 1, "limit is 1, it must be 2"),
        ("seed", -1, "seed is -1"),
        ("begin", 40, "begin is 40, it must be 0 to 39"),
        ("begin", "x", "begin"),
        ("engine", 5, "engine"),
        ("other", 5, "unknown keys"),
    ],
)
def test_headers_that_lie_are_refused(path: Path, name: str, value: object, message: str) -> None:
    changed(path, lambda document: document.update({name: value}))
    with pytest.raises(FormatError, match=message):
        StoredReference(path)


def test_other_windows_than_the_recorded_ones_are_refused(path: Path) -> None:
    changed(path, lambda document: document.update(stride=3))
    stored = StoredReference(path)
    with pytest.raises(FormatError, match="its rows are not those of its tokens and settings"):
        stored.check_windows(cut(stored.tokens, context=CONTEXT, stride=3))
    stored.close()


@pytest.mark.parametrize("head", [b"", b"TERSOR", b"x" * 400, MAGIC, MAGIC + b"\xff" * 4, MAGIC + b"\x02\0\0\0[]"])
def test_what_is_no_stored_reference_is_refused(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "m.reference"
    path.write_bytes(head)
    with pytest.raises(FormatError):
        StoredReference(path)


def test_every_truncation_and_many_changed_bytes_end_in_a_format_error_or_a_reading(path: Path) -> None:
    data = path.read_bytes()
    random = np.random.default_rng(0)
    began = time.perf_counter()
    for length in random.integers(0, len(data), 60).tolist():
        path.write_bytes(data[:length])
        with pytest.raises(FormatError):
            _read(path)
    refused = 0
    for at in random.integers(0, len(data), 300).tolist():
        broken = bytearray(data)
        broken[at] ^= int(random.integers(1, 256))
        path.write_bytes(broken)
        try:
            _read(path)
        except FormatError:
            refused += 1
        except TersorError as error:
            pytest.fail(f"byte {at}: {error!r}")
    assert refused > 100
    assert time.perf_counter() - began < 120


def _read(path: Path) -> None:
    stored = StoredReference(path)
    try:
        head = stored.header
        windows = cut(stored.tokens, context=head.context, stride=head.stride, limit=head.limit, seed=head.seed)
        stored.check_windows(windows)
        for _ in stored.slices(windows):
            pass
    finally:
        stored.close()


def test_an_opening_that_is_cut_otherwise_shows(path: Path) -> None:
    def whole(_text: str) -> np.ndarray[Any, np.dtype[np.int32]]:
        return TOKENS[:30]

    assert same_opening(header(), TOKENS, whole)
    assert same_opening(header(), TOKENS, lambda text: np.append(whole(text)[:-3], [1, 2, 3]).astype(np.int32))
    assert not same_opening(header(), TOKENS, lambda text: (whole(text) + 1).astype(np.int32))

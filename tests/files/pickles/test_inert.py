from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import pytest

from tersor.files.pickles import inert as module
from tersor.files.pickles.inert import Call, Name, Persistent, inert

PLAIN: dict[str, object] = {
    "text": "żółw \U0001f40d", "numbers": [0, 1, -1, 255, 65535, 2**31, -(2**70), 0.5], "bytes": b"\x00\xff",
    "bytes beyond a byte's count": bytes(300), "text beyond it": "x" * 300, "none": None, "flags": (True, False),
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "nested": {"a": {1: [{}]}}, "rest": [[]],
}  # fmt: skip


class Bomb:
    """Runs code when it is unpickled freely."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


class Stateful:
    """Has a state, set by calling what the pickle names."""

    def __init__(self) -> None:
        self.state = {"x": 1}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_what_was_pickled(protocol: int) -> None:
    value = {name: one for name, one in PLAIN.items() if protocol > 2 or "bytes" not in name}  # 2 calls a codec
    assert inert(pickle.dumps(value, protocol)) == value
    ordered = collections.OrderedDict(value)
    assert inert(pickle.dumps(ordered, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_would_be_called_is_told_and_not_called(protocol: int, tmp_path: Path) -> None:
    found = inert(pickle.dumps({"x": Bomb(tmp_path / "made"), "y": Stateful(), "z": {1, 2}}, protocol))
    assert isinstance(found, dict)
    opened, stateful = found["x"], found["y"]
    assert isinstance(opened, Call)
    assert opened.what in (Name("io", "open"), Name("__builtin__", "open"))
    assert opened.arguments == (str(tmp_path / "made"), "w")
    assert isinstance(stateful, Call)
    assert not [*tmp_path.iterdir()]


def test_a_value_that_is_kept_elsewhere_is_known_by_its_key() -> None:
    found = inert(b"\x80\x02K\x07Q.")
    assert isinstance(found, Persistent)
    assert found.key == 7


def test_a_value_that_is_named_twice_is_one() -> None:
    inner = [1]
    found = inert(pickle.dumps([inner, inner]))
    assert isinstance(found, list)
    assert found[0] is found[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "exhausted before"),
        (b"\x80\x02N", "exhausted before"),
        (b"\x80\x02.", "do not fit together"),
        (b"\x80\x02t.", "do not fit together"),
        (b"\x80\x02N\x86.", "do not fit together"),
        (b"\x80\x02h\x05.", "do not fit together"),
        (b"\x80\x02NNa.", "do not fit together: items of a NoneType"),
        (b"\x80\x02NNNs.", "do not fit together: 2 keys and values of a NoneType"),
        (b"\x80\x02}(Nu.", "do not fit together: 1 keys and values of a dict"),
        (b"\x80\x02}]Ns.", "do not fit together: a key that is a list"),
        (b"\x80\x02}(K\x01tNs.", "do not fit together: a key that is a tuple"),
        (b"\x80\x02cos\nsystem\nNR.", "do not fit together: arguments that are a NoneType"),
        (b"\x80\x04NN\x93.", "do not fit together: a name that is no text"),
        (b"\x80\x02X\xff\xff\xff\x7f.", "expected 2147483647 bytes"),
        (b"I1\n.", "the opcode INT is not read"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1 is not read"),
    ],
)
def test_what_is_broken_or_unknown_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inert(content)


def test_a_pickle_of_too_many_opcodes_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPCODES", 1000)
    assert inert(pickle.dumps([None] * 900)) == [None] * 900
    with pytest.raises(ValueError, match="more than 1000 opcodes"):
        inert(pickle.dumps([None] * 1000))


def test_what_is_nested_beyond_printing_costs_nothing() -> None:
    doubled = b"\x80\x02K\x01" + b"q\x00h\x00\x86" * 1000
    found = inert(doubled + b".")  # as text it would have 2^1000 numbers
    assert isinstance(found, tuple)
    with pytest.raises(ValueError, match="a key that is a tuple"):
        inert(b"\x80\x02}" + doubled[2:] + b"Ns.")

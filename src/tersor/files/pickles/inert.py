"""Pickles as inert values: nothing is imported, called or built, whatever a file asks for.

Opcodes are read one by one by Python's own pickletools. What they would import becomes a Name, what they would call a
Call with its arguments; containers, texts and numbers become what they are. The reader decides which names it knows.

Differs from Python's own machine: protocols 2 to 5, without what only 0 and 1 write; states of objects are dropped;
keys are texts and numbers, and sets become lists, so that nothing hostile is ever hashed or compared. It may still be
nested beyond what can be printed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["MAX_OPCODES", "Call", "Name", "Persistent", "inert"]

MAX_OPCODES = 1 << 22
"""A tensor takes thirty."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_IGNORED = ("PROTO", "FRAME")
_DICTIONARY = "collections.OrderedDict"


@dataclass(frozen=True, slots=True)
class Name:
    """What a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a pickle would call, and with what."""

    what: object
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """What a pickle names, and its writer keeps elsewhere."""

    key: object


def inert(content: bytes) -> object:
    """Return what a pickle holds; ValueError for one that is broken, too long or has opcodes beside those known here.

    >>> import os, pickle
    >>> inert(pickle.dumps({"x": os.getcwd}))
    {'x': Name(module='posix', name='getcwd')}
    """
    machine = _Machine()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name == "STOP":
                return machine.pop()
            if number >= MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, Warning) as error:  # pickletools warns of odd escapes in names
        raise ValueError(f"its opcodes do not fit together: {error!s:.80}") from error
    raise ValueError("it has no end")


class _Machine:
    """A stack, the stacks below its marks, and what was put aside."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.below: list[list[object]] = []
        self.memo: dict[object, object] = {}

    def step(self, name: str, argument: object) -> None:
        if name in _STEPS:
            _STEPS[name](self)
        elif name in _LITERALS:
            self.push(argument)
        elif name in _CONSTANTS:
            self.push(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.push(self.memo[argument])
        elif name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
            self.push(Name(module, attribute))
        elif name not in _IGNORED:
            raise ValueError(f"the opcode {name} is not read")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        return self.stack.pop()

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[object]:
        found, self.stack = self.stack, self.below.pop()
        return found

    def last(self, count: int) -> list[object]:
        """Take off what lies on top, in the order in which it came."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def add(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Call):  # what is in an object that is never made
            raise TypeError(f"items of a {type(target).__name__}")

    def put(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Call) or len(items) % 2:
            raise TypeError(f"{len(items)} keys and values of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | bytes | None):
                raise TypeError(f"a key that is a {type(key).__name__}")
            if isinstance(target, dict):
                target[key] = value

    def call(self) -> None:
        what, arguments = self.last(2)
        if not isinstance(arguments, tuple):
            raise TypeError(f"arguments that are a {type(arguments).__name__}")
        is_dictionary = isinstance(what, Name) and str(what) == _DICTIONARY and not arguments
        self.push({} if is_dictionary else Call(what, arguments))

    def name(self) -> None:
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        self.push(Name(module, name))


_STEPS: dict[str, Callable[[_Machine], object]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.marked,
    "EMPTY_LIST": lambda machine: machine.push([]),
    "EMPTY_SET": lambda machine: machine.push([]),
    "EMPTY_DICT": lambda machine: machine.push({}),
    "TUPLE1": lambda machine: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine: machine.push(tuple(machine.last(3))),
    "TUPLE": lambda machine: machine.push(tuple(machine.marked())),
    "FROZENSET": lambda machine: machine.push(machine.marked()),
    "APPEND": lambda machine: machine.add(machine.last(1)),
    "APPENDS": lambda machine: machine.add(machine.marked()),
    "ADDITEMS": lambda machine: machine.add(machine.marked()),
    "SETITEM": lambda machine: machine.put(machine.last(2)),
    "SETITEMS": lambda machine: machine.put(machine.marked()),
    "STACK_GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.pop,
    "BINPERSID": lambda machine: machine.push(Persistent(machine.pop())),
}

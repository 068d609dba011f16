"""What a pickle would make, worked out without making it: no class is looked up, nothing is called.

`torch.load` refuses foreign classes by itself, but takes whatever memory and time a file asks for: a pickle of 250
bytes can double a tuple thirty times and then hash it, or ask for a tensor of a terabyte. So each pickle is walked
through here first, instruction by instruction, with a note in the place of each object.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

__all__ = ["Description", "Made", "Odd", "TooMuch", "check_hashable", "describe"]

_STEPS = 5_000_000
_MARKS = 10_000
_REPEATS = 10  # things that occur in several places, such as names
_DEPTH = 100
_SIZE = 1_000_000


class Odd(Exception):
    """What no honest file of weights has, as a clause."""


class TooMuch(Odd):
    """Something that would take more memory or time than honest files do."""


class Made:
    """Stands for one object that a pickle would make.

    Attributes:
        kind: Such as "tuple", "list", "dict", "set", "global", "bytes", "storage", "tensor", "object" or "plain".
        name: Of the global, or of the class that the object is of.
        items: What it holds; of a dictionary keys and values in turn.
        size: Number of objects in it, each counted as often as it occurs.
        depth: How deeply they are nested.
    """

    __slots__ = ("depth", "items", "kind", "name", "size")

    def __init__(self, kind: str, name: str = "", items: list[Any] | None = None) -> None:
        """Note it."""
        self.kind, self.name, self.items = kind, name, [] if items is None else items
        self.size = self.depth = 1
        for item in self.items:
            self.count(item)

    def count(self, item: Any) -> None:
        """Add the size and depth of something that was put in.

        Raises:
            TooMuch: It is nested too deeply.
        """
        if isinstance(item, Made):
            self.size += item.size
            if item.depth >= self.depth:
                self.depth = item.depth + 1
                if self.depth > _DEPTH:
                    raise TooMuch(f"objects are nested more than {_DEPTH} deep")
        else:
            self.size += 1


@dataclass
class Description:
    """What a pickle holds.

    Attributes:
        top: The object itself.
        refused: Classes and functions that only running the file's code could make, with what it does to them.
        named: Every class or function that it names.
        filled: Classes whose objects it fills as dictionaries or as lists.
        storages: Bytes of each storage that its tensors lie in, by key.
        tensors: Bytes of each tensor, by what tells one from another.
    """

    top: Any = None
    refused: dict[str, str] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    filled: dict[str, str] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)
    tensors: dict[Any, int] = field(default_factory=dict)


Call = Callable[["Made", list[Any], Description], "Made | None"]
"""What a call makes of its arguments, or None where it is not allowed."""


def describe(file: IO[bytes], call: Call, persistent: Call, known: Callable[[str], bool]) -> Description:
    """Walk through one pickle of ``file``, which is then behind its last instruction.

    Args:
        file: At the pickle's first byte.
        call: Asked for every call, with the function, its arguments and the description so far; for what sets the state
            of an object, with the object itself and the state.
        persistent: Asked for every reference to something beside the pickle.
        known: Whether a class or function of this name may be used at all.

    Raises:
        TooMuch: It takes more instructions, or nests or doubles its objects more, than files of weights do.
        Odd: It uses instructions that files of weights do not have.
        Exception: Any other where it is damaged; read it inside `unbackdoor.files.reading.reading`.
    """
    machine = _Machine(call, persistent, known)
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if step > _STEPS:
            raise TooMuch(f"it has more than {_STEPS:,} instructions")
        work = _WORK.get(opcode.name)
        if work is None:
            raise Odd(f"it uses the instruction {opcode.name}, which files of weights do not have")
        work(machine, argument)
    (top,) = machine.stack
    if isinstance(top, Made) and top.size > _STEPS * _REPEATS:
        raise TooMuch("what it holds doubles itself again and again")
    machine.found.top = top
    return machine.found


def check_hashable(key: Any) -> None:
    """Refuse a key that would take long to hash.

    Raises:
        TooMuch: It is nested or doubled beyond measure.
    """
    if isinstance(key, Made) and key.size > _SIZE:
        raise TooMuch("a key doubles itself again and again")
    if isinstance(key, int) and abs(key) >= 2**63:
        raise TooMuch("a key is a giant number")


class _Machine:
    """A stack, a memo, and what was found; the instructions are those that `torch.load` knows."""

    def __init__(self, call: Call, persistent: Call, known: Callable[[str], bool]) -> None:
        self.call, self.persistent, self.known = call, persistent, known
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.found = Description()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def proto(self, version: int) -> None:
        if version != 2:
            raise Odd(f"it was pickled with protocol {version}, where files of weights have 2")

    def mark(self, _: Any) -> None:
        if len(self.marks) > _MARKS:
            raise TooMuch("it begins more things than it ends")
        self.marks.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def get(self, place: int) -> None:
        self.push(self.memo[place])

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def tuple_of(self, count: int | None) -> None:
        if count is None:
            items = self.to_mark()
        else:
            items = self.stack[-count:]
            if len(items) < count:
                raise IndexError("pop from empty stack")
            del self.stack[-count:]
        self.push(Made("tuple", items=items))

    def append(self, items: list[Any]) -> None:
        into = self.stack[-1]
        self._fillable(into, "list")
        for item in items:
            into.items.append(item)
            into.count(item)

    def set_items(self, items: list[Any]) -> None:
        into = self.stack[-1]
        self._fillable(into, "dict")
        if len(items) % 2:
            raise IndexError("a key without a value")
        for key in items[::2]:
            check_hashable(key)
        for item in items:
            into.items.append(item)
            into.count(item)

    def _fillable(self, into: Any, kind: str) -> None:
        if isinstance(into, Made) and into.kind == "object":
            self.found.filled[into.name] = kind
        elif not isinstance(into, Made) or into.kind != kind:
            raise Odd(f"it fills something as a {kind} that is none")

    def global_(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        module = IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        self.found.named.add(full)
        if not self.known(full):
            self.found.refused.setdefault(full, "names")
        self.push(Made("global", full))

    def reduce(self, _: Any) -> None:
        given, function = self.stack.pop(), self.stack.pop()
        self.push(self._called(function, given))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Made) or target.kind == "global":
            raise Odd("it sets the state of something that has none")
        made = self.call(target, [state], self.found)
        if made is None:
            raise Odd(f"it fills {_a(target.kind)} as honest files do not")
        if target.kind == "object":
            target.items.append(state)
            target.count(state)

    def _called(self, function: Any, given: Any) -> Made:
        if not isinstance(function, Made) or function.kind != "global":
            self.found.refused.setdefault("the result of a call", "calls")
            return Made("object")
        arguments = given.items if isinstance(given, Made) and given.kind == "tuple" else None
        made = None if arguments is None else self.call(function, arguments, self.found)
        if made is None:
            self.found.refused[function.name] = "calls"
            return Made("object", function.name, [given])
        return made

    def refer(self, _: Any) -> None:
        key = self.stack.pop()
        items = key.items if isinstance(key, Made) and key.kind == "tuple" else [key]
        made = self.persistent(Made("global", "persistent"), items, self.found)
        if made is None:
            raise Odd("it refers to something beside it that is no storage of a tensor")
        self.push(made)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


_Work = Callable[[_Machine, Any], None]
_VALUES = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
_WORK: dict[str, _Work] = {
    "PROTO": _Machine.proto,
    "GLOBAL": _Machine.global_,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
    "MARK": _Machine.mark,
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.to_mark()),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "TUPLE": lambda m, _: m.tuple_of(None),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "EMPTY_TUPLE": lambda m, _: m.push(Made("tuple")),
    "EMPTY_LIST": lambda m, _: m.push(Made("list")),
    "EMPTY_DICT": lambda m, _: m.push(Made("dict")),
    "EMPTY_SET": lambda m, _: m.push(Made("set")),
    "NONE": lambda m, _: m.push(None),
    "NEWFALSE": lambda m, _: m.push(False),
    "NEWTRUE": lambda m, _: m.push(True),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "STOP": lambda _m, _: None,
}
_WORK.update(dict.fromkeys(_VALUES, _Machine.push))

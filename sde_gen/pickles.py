"""Pickles as data: a machine that knows the opcodes and calls nothing. What would be called becomes a record."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

MOST_OPCODES = 1 << 20
"""A checkpoint of a thousand tensors has about 50,000."""
MOST_LEVELS = 64
"""Containers inside of one another."""
PLAIN = (str, int, float, bool, bytes, type(None))


class Readable(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


class PickleError(ValueError):
    """A pickle that is damaged or asks for more than checkpoints have."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import, such as torch._utils._rebuild_tensor_v2."""

    name: str


@dataclass
class Record:
    """What a call would have made: the name called, what with, and the state that was given to the result."""

    name: str
    arguments: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)


class _Mark:
    pass


MARK = _Mark()
Build = Callable[[str, Any], Any]
Persistent = Callable[[Any], Any]


def read_pickle(file: Readable, call: Build, persistent: Persistent | None = None, names: set[str] | None = None) -> Any:
    """The value of the one pickle that starts where `file` stands, which is left behind it.

    call: given a global's name and arguments, what stands for the result; it must execute nothing that the file chooses.
    persistent: what stands for a persistent id (PyTorch's storages); None: there may be none.
    names: gets the name of everything that the pickle would import.

    Raises PickleError, ValueError or EOFError for what is damaged, nested more than 64 levels deep, of more than a million opcodes, or
    uses what checkpoints do not: extension codes, out-of-band buffers, keys that are no plain values, protocol 0's instances.
    """
    return _Machine(call, persistent, set() if names is None else names).run(file)


class _Machine:
    """The stack machine of pickle, protocols 2 to 5, see the module `pickletools`."""

    def __init__(self, call: Build, persistent: Persistent | None, names: set[str]) -> None:
        self.call, self.persistent, self.names = call, persistent, names
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.levels: dict[int, int] = {}  # of the containers, by identity; `kept` holds them so that no identity is used twice
        self.kept: list[Any] = []

    def run(self, file: Readable) -> Any:
        for count, (opcode, argument) in enumerate(_opcodes(file)):
            if count >= MOST_OPCODES:
                raise PickleError(f"it has more than {MOST_OPCODES} opcodes")
            name = opcode.name
            if name == "STOP":
                return self._pop()
            handler = getattr(self, f"_{name.lower()}", None)
            if handler is not None:
                handler(argument)
            elif name in ("PROTO", "FRAME"):
                pass
            elif name in _VALUES:
                self.stack.append(_VALUES[name](argument))
            else:
                raise PickleError(f"its opcode {name} is none of a checkpoint's")
        raise PickleError("it ends before its STOP")

    # what the opcodes do; the names are those of `pickletools`

    def _pop(self, argument: object = None) -> Any:
        if not self.stack:
            raise PickleError("it takes more from its stack than it put there")
        return self.stack.pop()

    def _top(self, kind: type | tuple[type, ...]) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError("it fills what is no container")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        for k in range(len(self.stack) - 1, -1, -1):
            if self.stack[k] is MARK:
                values = self.stack[k + 1 :]
                del self.stack[k:]
                return values
        raise PickleError("it looks for a mark that it has not set")

    def _made(self, value: Any, *parts: Any) -> None:
        self._deepen(value, parts)
        self.stack.append(value)

    def _deepen(self, value: Any, parts: Any) -> None:
        """Note the level of a container that now holds `parts`."""
        if any(part is MARK for part in parts):
            raise PickleError("it holds a mark as a value")
        level = max([self.levels.get(id(value), 1), *(1 + self.levels.get(id(part), 0) for part in parts)])
        if level > MOST_LEVELS:
            raise PickleError(f"it is nested more than {MOST_LEVELS} levels deep")
        if id(value) not in self.levels:
            self.kept.append(value)
        self.levels[id(value)] = level

    def _mark(self, argument: object) -> None:
        self.stack.append(MARK)

    def _pop_mark(self, argument: object) -> None:
        self._since_mark()

    def _dup(self, argument: object) -> None:
        self.stack.append(self._top(object))

    def _tuple(self, argument: object) -> None:
        values = self._since_mark()
        self._made(tuple(values), *values)

    def _some(self, count: int) -> None:
        values = [self._pop() for _ in range(count)][::-1]
        self._made(tuple(values), *values)

    def _tuple1(self, argument: object) -> None:
        self._some(1)

    def _tuple2(self, argument: object) -> None:
        self._some(2)

    def _tuple3(self, argument: object) -> None:
        self._some(3)

    def _empty_list(self, argument: object) -> None:
        self._made([])

    def _empty_dict(self, argument: object) -> None:
        self._made({})

    def _empty_set(self, argument: object) -> None:
        self._made([])  # the members of a set may be anything here

    def _list(self, argument: object) -> None:
        values = self._since_mark()
        self._made(values, *values)

    def _frozenset(self, argument: object) -> None:
        self._list(None)

    def _dict(self, argument: object) -> None:
        values = self._since_mark()
        self._made({})
        self._fill(values)

    def _append(self, argument: object) -> None:
        self._extend([self._pop()])

    def _appends(self, argument: object) -> None:
        self._extend(self._since_mark())

    def _additems(self, argument: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top((list, Record))
        self._deepen(target, values)
        (target.entries if isinstance(target, Record) else target).extend(values)

    def _setitem(self, argument: object) -> None:
        value, key = self._pop(), self._pop()
        self._fill([key, value])

    def _setitems(self, argument: object) -> None:
        self._fill(self._since_mark())

    def _fill(self, values: list[Any]) -> None:
        target = self._top((dict, Record))
        if len(values) % 2:
            raise PickleError("it has a key without a value")
        self._deepen(target, values)
        into = target.items if isinstance(target, Record) else target
        for key, value in zip(values[::2], values[1::2], strict=True):
            # the hash of what is nested deeply would run out of the machine's stack
            if (isinstance(key, tuple) and all(type(part) in PLAIN for part in key)) or type(key) in PLAIN or isinstance(key, Global):
                into[key] = value
            elif isinstance(key, Record):
                into[key.name] = value
            else:
                raise PickleError(f"it has a key that is a {type(key).__name__}")

    def _put(self, argument: int) -> None:
        self.memo[argument] = self._top(object)

    _binput = _long_binput = _put

    def _memoize(self, argument: object) -> None:
        self._put(len(self.memo))

    def _get(self, argument: int) -> None:
        if argument not in self.memo:
            raise PickleError("it asks for a value that it has not kept")
        self.stack.append(self.memo[argument])

    _binget = _long_binget = _get

    def _global(self, argument: str) -> None:
        self._import(argument.replace(" ", ".", 1))

    def _import(self, name: str) -> None:
        self.names.add(name)
        self.stack.append(Global(name))

    def _stack_global(self, argument: object) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise PickleError("it imports what has no name")
        self._import(f"{module}.{name}")

    def _reduce(self, argument: object) -> None:
        arguments, function = self._pop(), self._pop()
        name = function.name if isinstance(function, Global | Record) else None
        if name is None or not isinstance(arguments, tuple):
            raise PickleError("it calls what is no function")
        self._made(self.call(name, arguments), arguments)

    _newobj = _reduce

    def _newobj_ex(self, argument: object) -> None:
        keywords, arguments, kind = self._pop(), self._pop(), self._pop()
        if not isinstance(kind, Global):
            raise PickleError("it calls what is no function")
        self._made(Record(kind.name, (arguments, keywords)), arguments, keywords)

    def _build(self, argument: object) -> None:
        state = self._pop()
        target = self._top(object)
        if isinstance(target, Record):
            self._deepen(target, [state])
            target.state = state
        # of an OrderedDict (its _metadata) or a tensor it says nothing that is needed

    def _binpersid(self, argument: object) -> None:
        if self.persistent is None:
            raise PickleError("it refers to what is not in the file")
        self.stack.append(self.persistent(self._pop()))


def _same(argument: Any) -> Any:
    return argument


_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys((*_NUMBERS, *_BYTES, *_TEXTS), _same),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
}


def _opcodes(file: Readable) -> Iterator[tuple[Any, Any]]:
    for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        yield opcode, argument

"""The pickles of a checkpoint, in a zip file, in torch.save's old format or for themselves, as tensors, plain values and records."""

from __future__ import annotations

import io
import math
import reprlib
import struct
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from .pickles import PickleError, Record, read_pickle

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


@dataclass
class Storage:
    """Numbers of one type, of which tensors are views; their bytes are there once they have been read."""

    dtype: torch.dtype
    count: int
    content: Tensor | None = None

    def fill(self, content: bytes) -> None:
        wanted = self.count * self.dtype.itemsize
        if len(content) != wanted:
            raise PickleError(f"a storage has {len(content)} bytes where its tensors say {wanted}")
        self.content = torch.frombuffer(bytearray(content), dtype=self.dtype) if wanted else torch.empty(0, dtype=self.dtype)


MAGIC = 0x1950A86A20F9469CFC6C
"""What torch.save's old format starts with."""


class _Bounded:
    """A file of so many bytes, of which no more are asked for: the memory for them is taken before they are read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self.size:
            raise PickleError(f"it claims a value of {count} bytes in a file of {self.size}")
        return self.file.read(count)


@dataclass(frozen=True)
class _View:
    """A tensor whose numbers come later in the file."""

    storage: Storage
    offset: Any
    size: Any
    stride: Any

    def tensor(self) -> Tensor:
        if self.storage.content is None:
            raise PickleError("it has a tensor whose numbers are missing")
        return torch.as_strided(self.storage.content, self.size, self.stride, self.offset)


class Inert:
    """What the pickles of a checkpoint of so many bytes stand for; `names` are those that they would import, `storages` those of PyTorch
    that they refer to, None where there may be none."""

    def __init__(self, size: int, outer: bool = True) -> None:
        self.size, self.outer, self.left = size, outer, size
        self.names: set[str] = set()
        self.storages: dict[str, Storage] | None = None

    def read(self, file: IO[bytes]) -> Any:
        return read_pickle(_Bounded(file, self.size), self.call, self.persistent, self.names)

    def persistent(self, given: Any) -> Any:
        if self.storages is not None and isinstance(given, tuple) and given[:1] == ("module",) and len(given) > 1:
            return given[1]  # the old format keeps the source code of a class beside its name
        if self.storages is None or not (isinstance(given, tuple) and len(given) >= 5 and given[0] == "storage"):
            raise PickleError("it refers to what is not in the file")
        kind, key, _, count = given[1:5]
        if len(given) > 5 and given[5] is not None:
            raise PickleError("it has views of storages, as PyTorch has not written them since 2017")
        if not isinstance(key, str) or type(count) is not int:
            raise PickleError("it has a storage without a name or size")
        dtype = self.dtype(getattr(kind, "name", ""))
        if not 0 <= count * dtype.itemsize <= self.size:
            raise PickleError(f"a storage of {count} numbers is more than the {self.size} bytes of the file")
        self.storages.setdefault(key, Storage(dtype, count))
        if self.storages[key].dtype != dtype or self.storages[key].count != count:
            raise PickleError(f"its storage {key[:40]!r} has two sizes")
        return self.storages[key]

    def dtype(self, name: str) -> torch.dtype:
        room, _, kind = name.rpartition(".")
        if room not in ("torch", "torch.storage") or kind not in DTYPES:
            raise PickleError(f"it has a storage of unknown kind {name[:60]!r}")
        return DTYPES[kind]

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "collections.OrderedDict" and arguments in ((), ([],)):
            return {}
        if name == "torch.Size" and len(arguments) == 1:
            return arguments[0]
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self.view(*arguments[:4])
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return arguments[0]
        if name == "torch.storage._load_from_bytes" and len(arguments) == 1:
            if not self.outer:
                raise PickleError("it has a storage inside of a storage")
            return self.inside(arguments[0])
        return Record(name, arguments)

    def inside(self, content: Any) -> Storage:
        """A storage that was saved for itself, as those of tensors that were pickled with Python's own pickle."""
        if not isinstance(content, bytes):
            raise PickleError("it has a storage that is no bytes")
        self.left -= len(content)
        if self.left < 0:
            raise PickleError(f"its storages hold more than the {self.size} bytes of the file")
        found = read_stream(io.BytesIO(content), len(content), False)
        if not isinstance(found, Storage) or found.content is None:
            raise PickleError("it has a storage that holds something else")
        return found

    def view(self, storage: Any, offset: Any, size: Any, stride: Any) -> Any:
        """The tensor of a storage, within its bounds and without an element twice."""
        if not isinstance(storage, Storage):
            raise PickleError("it has a tensor without a storage")
        for name, values in (("size", size), ("stride", stride), ("offset", (offset,))):
            if not isinstance(values, tuple) or not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
                said = reprlib.repr(values)[:60]  # whole it may be beyond memory, as parts of parts are shared
                raise PickleError(f"it has a tensor whose {name} is {said}")
        if len(size) != len(stride) or len(size) > 16:
            raise PickleError(f"it has a tensor of {len(size)} dimensions with {len(stride)} strides")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset - 1
        if last >= storage.count or count > storage.count:
            raise PickleError(
                f"it has a tensor of size {str(size)[:60]}, stride {str(stride)[:60]} and offset {offset} in a storage of {storage.count}"
            )
        return _View(storage, offset, size, stride)


def resolved(value: Any, done: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """`value` with the tensors in the place of the views. `done` has by identity what was seen, which it keeps, and what stands for it."""
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, _View):
        done[id(value)] = (value, value.tensor())
    elif isinstance(value, tuple):
        done[id(value)] = (value, tuple(resolved(part, done) for part in value))
    elif isinstance(value, dict | list | Record):
        done[id(value)] = (value, value)
        if isinstance(value, Record):
            value.arguments, value.state = resolved(value.arguments, done), resolved(value.state, done)
            value.items, value.entries = resolved(value.items, done), resolved(value.entries, done)
        elif isinstance(value, dict):
            for key in value:
                value[key] = resolved(value[key], done)
        else:
            value[:] = [resolved(part, done) for part in value]
    else:
        return value
    return done[id(value)][1]


def read_stream(file: IO[bytes], size: int, outer: bool) -> Any:
    """A pickle, or what torch.save wrote before it made zip files: a magic number, a version, the machine's types, the value, the keys
    of the storages and their numbers."""
    inert = Inert(size, outer)
    first = inert.read(file)
    if first != MAGIC:
        return resolved(first)
    inert.storages = {}
    if inert.read(file) != 1001:
        raise PickleError("it is of an unknown version of torch.save's old format")
    if not isinstance(machine := inert.read(file), dict) or machine.get("little_endian") is not True:
        raise PickleError("it was written by a big-endian machine")
    value, keys = inert.read(file), inert.read(file)
    if not isinstance(keys, list):
        raise PickleError("it does not list its storages")
    for key in keys:
        storage = inert.storages.get(key)
        if storage is None or struct.unpack("<q", file.read(8))[0] != storage.count:
            raise PickleError(f"its storage {str(key)[:40]!r} is not what its tensors say")
        storage.fill(file.read(storage.count * storage.dtype.itemsize))
    return resolved(value)

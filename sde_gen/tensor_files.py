"""Files of other libraries as tensors and plain values: safetensors, torch.save, and pickles of whole objects, none of it executed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import CheckpointError
from .inert import DTYPES, Inert, read_stream, resolved
from .pickles import PickleError, Record

SAFE_TORCH = (2, 10)
"""torch.load(weights_only=True) of older ones can be made to execute code (CVE-2025-32434) or to write where it should not
(CVE-2026-24747)."""
MOST_SHARED = 4
"""Elements of all tensors over what the file can hold: weights are shared by a few, not by thousands."""
MOST_JSON = 1 << 24
"""Bytes of the header of a safetensors file beyond which it is not read."""
MOST_MEMBERS = 1 << 16
"""Members of a zip file."""
MOST_PICKLE = 1 << 26
"""Bytes of the pickle in a file of torch.save, which holds no numbers of tensors."""
MOST_MODULES = 1 << 16
"""Modules of a network that was pickled whole, each counted as often as it is part of another."""
PLAIN_GLOBALS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    *(f"torch.{name}" for name in DTYPES),
}
"""What state dicts consist of: of these alone torch.load makes what is in the file and nothing else."""


@dataclass(frozen=True)
class Content:
    """What a file holds: `tree`, made of dicts, lists, tuples, tensors, plain values and `Record`s; how it was read; its SHA-256."""

    tree: Any
    kind: str
    sha256: str


def read(path: str | os.PathLike[str]) -> Content:
    """The content of a checkpoint file, on the CPU.

    safetensors as it is; a file of torch.save that holds tensors and plain values by torch.load(weights_only=True), from PyTorch 2.10 on;
    any other pickle (a whole network, EDM's, Lightning's) by a reader that turns each name that it would import into a `Record`. No
    file is ever unpickled with its code, and no tensor is larger than what the file holds of it.

    Raises CheckpointError, one line, for a file that is not there, damaged, of another kind, made to do harm, or not to be read with
    this PyTorch.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch.load thinks of the file's age
            tree, kind = _read(path)
        _check_shared(tree, path.stat().st_size)
        with path.open("rb") as file:
            return Content(tree, kind, hashlib.file_digest(file, "sha256").hexdigest())
    except CheckpointError:
        raise
    except (SafetensorError, zipfile.BadZipFile, *_FAULTS) as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is no checkpoint that can be read: {said or type(error).__name__}") from error


_FAULTS = (
    OSError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.PickleError,
    MemoryError,
    RecursionError,
)


def _read(path: Path) -> tuple[Any, str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(0)
        if head[:4] == b"PK\x03\x04":
            return _read_zip(path)
        if len(head) == 9 and head[8:9] == b"{":
            length = struct.unpack("<Q", head[:8])[0]
            if length > min(size - 8, MOST_JSON):
                raise PickleError(f"its header claims {length} bytes of a file of {size}")
            return _read_safetensors(path), "safetensors"
        if head[:1] != b"\x80":
            raise PickleError("it is neither safetensors nor a file of torch.save nor a pickle")
        return read_stream(file, size, True), "inert"


def _read_safetensors(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if sum(ends) and max(ends) > path.stat().st_size:
        raise PickleError("its header names numbers beyond its end")
    return dict(load_file(path))


def _read_zip(path: Path) -> tuple[Any, str]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise PickleError(f"it has {len(members)} members; torch.save makes at most {MOST_MEMBERS}")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise PickleError(f"its member {member.filename[:60]!r} is compressed, which torch.save's are not")
        if sum(member.file_size for member in members) > size:
            raise PickleError(f"its members claim more bytes than the {size} of the file")
        names = [member.filename for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
        if len(names) != 1:
            raise PickleError("it is a zip file, but not one of torch.save")
        root = names[0].removesuffix("data.pkl")
        if archive.getinfo(names[0]).file_size > MOST_PICKLE:
            raise PickleError(f"its pickle has more than {MOST_PICKLE} bytes")
        listed = {member.filename for member in members}
        if f"{root}byteorder" in listed and archive.read(f"{root}byteorder").strip() == b"big":
            raise PickleError("it was written by a big-endian machine")
        inert = Inert(size)
        inert.storages = {}
        tree = inert.read(io.BytesIO(archive.read(names[0])))
        for key, storage in inert.storages.items():
            if archive.getinfo(f"{root}data/{key}").file_size != storage.count * storage.dtype.itemsize:
                raise PickleError(f"its storage {key[:40]!r} is not what its tensors say")
        if not inert.names <= PLAIN_GLOBALS:
            for key, storage in inert.storages.items():
                storage.fill(archive.read(f"{root}data/{key}"))
            return resolved(tree), "inert"
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise PickleError(
            f"torch.load(weights_only=True) of PyTorch {torch.__version__} can be made to execute a file's code (CVE-2025-32434) or to "
            f"write beyond its memory (CVE-2026-24747): install {'.'.join(map(str, SAFE_TORCH))} or newer, or give the file as safetensors"
        )
    return torch.load(path, map_location="cpu", weights_only=True), "weights_only"


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in a tree, each object once."""
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, Record):
            waiting += [value.arguments, value.state, value.items, value.entries]


def _check_shared(tree: Any, size: int) -> None:
    """PickleError where the tensors have more elements than the file could hold, each of them or all together."""
    total = 0
    for tensor in tensors_in(tree):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise PickleError(f"it has a tensor of layout {tensor.layout} on {tensor.device}")
        bytes_ = tensor.numel() * tensor.element_size()
        total += bytes_
        if bytes_ > tensor.untyped_storage().nbytes() or total > MOST_SHARED * size:
            raise PickleError(f"its tensors have more elements than the {size} bytes of the file could hold")


def state_of(record: Any) -> dict[str, Tensor]:
    """The parameters and buffers of a network that was pickled whole, under the names of its state_dict; PickleError where it is none."""
    found: dict[str, Tensor] = {}
    visits = 0

    def walk(module: Any, prefix: str) -> None:
        nonlocal visits
        visits += 1
        if visits > MOST_MODULES:  # modules that share modules: a few of them may be beyond any count
            raise PickleError(f"it holds a network of more than {MOST_MODULES} modules")
        state = module.state if isinstance(module, Record) and module.state is not None else module
        if isinstance(module, Record) and state is module:
            state = next(
                (part["state"] for part in module.arguments if isinstance(part, dict) and isinstance(part.get("state"), dict)), None
            )
        if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict):
            raise PickleError(f"it holds an object {getattr(module, 'name', type(module).__name__)!r} that is no network")
        for part in ("_parameters", "_buffers"):
            values = state.get(part)
            found.update({f"{prefix}{key}": value for key, value in (values or {}).items() if isinstance(value, Tensor)})
        for key, child in state["_modules"].items():
            if child is not None:
                walk(child, f"{prefix}{key}.")

    walk(record, "")
    return found

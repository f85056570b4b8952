"""Tensors in .pt, .pth and .safetensors files, read with nothing in them executed (`sde_gen.tensor_files`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sde_gen.data.formats.base import Asked, Contents, Format, FormatError, Items, guarded, needs_file
from sde_gen.data.formats.variables import Group, Variable, as_laid_out, contents
from sde_gen.errors import CheckpointError
from sde_gen.tensor_files import read as read_tensors

WHAT = "file of tensors"
ITEMS = "x"
"""What a tensor without a name is called."""


def read(path: Path, asked: Asked) -> Contents:
    """The tensor of a file, or the one of several by name that is the data (as in HDF5)."""
    needs_file(path, f"a {WHAT}")
    try:
        tree = read_tensors(path).tree
    except CheckpointError as error:
        said = str(error).removeprefix(str(path)).partition(" can be read: ")
        raise FormatError(f"{path.name}: cannot be read ({(said[2] or said[0]).strip(': ')}); a complete {WHAT} is needed") from error
    with guarded(path, WHAT):
        found = (
            {str(key): value for key, value in tree.items() if isinstance(value, Tensor)} if isinstance(tree, Mapping) else {ITEMS: tree}
        )
        if not found or not all(isinstance(value, Tensor) for value in found.values()):
            raise FormatError(f"{path.name}: holds {type(tree).__name__}; a tensor, or a dict of tensors by name, is needed")
        if asked.if_there and len(found) == 1:  # the only one there is, whatever it is called
            asked = replace(asked, variables=())
        read = contents(path.name, Group({key: _variable(key, value) for key, value in found.items()}), asked)
        name = read.header["variables"][0]["name"]
        header = {"dtype": str(found[name].dtype).removeprefix("torch."), "name": name if isinstance(tree, Mapping) else None}
        return Contents(read.arrays, read.cond, read.axes, {"tensor": header, "letters": read.header["letters"]}, read.notes)


def _variable(name: str, tensor: Tensor) -> Variable:
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return Variable(name, None, array.shape, array.dtype, {}, lambda index: array[index])


def write(path: Path, items: Items) -> None:
    """Samples as a file of torch.save: a tensor, or, where the data were that or more is known of samples, a dict by name. All are in
    memory at once. Labels and conditions that are words are left out."""
    torch.save(_tree(items), path)


def write_safetensors(path: Path, items: Items) -> None:
    """The same as safetensors, always by name."""
    tree = _tree(items)
    save_file(tree if isinstance(tree, dict) else {ITEMS: tree}, path)


def _tree(items: Items) -> Tensor | dict[str, Tensor]:
    told: Mapping[str, Any] = items.header.get("tensor", {})
    whole, labels = np.empty((items.count, *items.shape), items.dtype), []
    for first, values, of_part in items.numbered():
        whole[first : first + len(values)] = values
        labels += [] if of_part is None else [of_part]
    x = torch.from_numpy(np.ascontiguousarray(as_laid_out(whole, items.header["letters"]) if told else whole))
    found = {told.get("name") or ITEMS: x.to(getattr(torch, told["dtype"])) if told else x}
    known = {name: column(0, items.count) for name, column in items.beside.items()} | ({"label": np.concatenate(labels)} if labels else {})
    found |= {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in known.items() if value.dtype.kind in "buif"}
    return found if len(found) > 1 or told.get("name") else next(iter(found.values()))


TENSORS = Format("PyTorch", (".pt", ".pth"), (), read, write)
SAFETENSORS = Format("safetensors", (".safetensors",), (), read, write_safetensors)

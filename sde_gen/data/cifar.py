"""CIFAR-10 from its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sde_gen.data.archives import members
from sde_gen.data.dataset import Dataset
from sde_gen.data.errors import one_line

ARCHIVE = "cifar-10-binary.tar.gz"
_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = ("test_batch.bin",)
_RECORD = 1 + 3 * 32 * 32
_MOST_RECORDS = 10_000
_PICKLED = ("data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz")


def cifar10(root: Path | None = None, seed: int = 0) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): (3, 32, 32), values 0..255, from its binary version in the directory `root`: the files
    data_batch_1.bin to data_batch_5.bin and test_batch.bin, there or in cifar-10-batches-bin/, or cifar-10-binary.tar.gz as it is.

    A record is one byte of label and 3,072 of red, green and blue, row by row. The Python version is pickled and never read.

    Raises:
        ValueError: no directory, a missing file, or one that is not whole records with labels 0..9.
    """
    expected = f"expected {ARCHIVE}, or {_TRAIN[0]} .. {_TRAIN[-1]} and {_TEST[0]}; --download fetches them"
    if root is None:
        raise ValueError(f"data 'cifar10' needs root (--data-root), the directory of its files; {expected}")
    if not root.is_dir():
        raise ValueError(f"data 'cifar10': {root} is not a directory; {expected}")
    contents = _contents(root)
    missing = [name for name in (*_TRAIN, *_TEST) if name not in contents]
    if missing:
        pickled = next((name for name in _PICKLED if (root / name).exists()), None)
        if pickled is not None:
            raise ValueError(f"data 'cifar10': {root} has the Python version ({pickled}), which is never unpickled; {expected}")
        raise ValueError(f"data 'cifar10': {root} lacks {', '.join(missing)}; {expected}")
    (train, train_labels), (test, test_labels) = (_records(root, {name: contents[name] for name in names}) for names in (_TRAIN, _TEST))
    return Dataset("cifar10", train, test, train_labels, test_labels, classes=10, levels=256, value_range=(0.0, 255.0))


def _contents(root: Path) -> dict[str, bytes]:
    names = (*_TRAIN, *_TEST)
    for folder in (root, root / _FOLDER):
        paths = {name: folder / name for name in names if (folder / name).is_file()}
        if paths:
            return {name: _content(path) for name, path in paths.items()}
    if (root / ARCHIVE).is_file():
        found = members(root / ARCHIVE, lambda name: name.rsplit("/", 1)[-1] in names)
        return {name.rsplit("/", 1)[-1]: content for name, content in found if content is not None}
    return {}


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_RECORD * _MOST_RECORDS + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); a complete file is needed") from error


def _records(root: Path, contents: dict[str, bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    for name, content in contents.items():
        if not content or len(content) % _RECORD or len(content) > _RECORD * _MOST_RECORDS:
            size = f"{len(content)}" if len(content) <= _RECORD * _MOST_RECORDS else f"more than {_RECORD * _MOST_RECORDS}"
            raise ValueError(f"data 'cifar10': {root / name}: {size} bytes; up to {_MOST_RECORDS} whole records of {_RECORD} are needed")
        labels = np.frombuffer(content, np.uint8)[::_RECORD]
        if labels.max() > 9:
            raise ValueError(f"data 'cifar10': {root / name}: label {labels.max()}; 0..9 is allowed")
    records = np.frombuffer(b"".join(contents.values()), np.uint8).reshape(-1, _RECORD)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32))
    return images, torch.from_numpy(records[:, 0].astype(np.int64))

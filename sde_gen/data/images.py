"""Image data: the embedded digits, and MNIST and Fashion-MNIST from their four files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sde_gen.data.dataset import Dataset
from sde_gen.data.idx import read_idx

_DIGITS_TRAIN = 1500
_MNIST_FILES = {
    "train": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def digits(root: Path | None = None, seed: int = 0) -> Dataset:
    """scikit-learn's handwritten digits: (1, 8, 8), values 0..16, 1,500 for training and 297 held out.

    The split is one fixed permutation, whatever the seed, so that numbers of different runs compare. `root` is not read.
    """
    from sklearn.datasets import load_digits  # imported late: it costs a second

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    images = torch.from_numpy(bunch.images[order]).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target[order]).long()
    n = _DIGITS_TRAIN
    return Dataset("digits", images[:n], images[n:], labels[:n], labels[n:], classes=10, levels=17, value_range=(0.0, 16.0))


def mnist(root: Path | None = None, seed: int = 0) -> Dataset:
    """MNIST (LeCun et al. 1998): (1, 28, 28), values 0..255, from its four IDX files, plain or .gz, in the directory `root`.

    Raises:
        ValueError: no directory, a missing or unreadable file, or one whose header or length is wrong.
    """
    return _idx_images("mnist", root)


def fashion_mnist(root: Path | None = None, seed: int = 0) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): shape, values, files and errors as `mnist`, in a directory of its own."""
    return _idx_images("fashion_mnist", root)


def _idx_images(name: str, root: Path | None) -> Dataset:
    expected = f"expected {', '.join(_MNIST_FILES.values())}, each plain or with .gz; --download fetches them"
    if root is None:
        raise ValueError(f"data {name!r} needs root (--data-root), the directory of its files; {expected}")
    if not root.is_dir():
        raise ValueError(f"data {name!r}: {root} is not a directory; {expected}")
    paths = {key: _find(root, file) for key, file in _MNIST_FILES.items()}
    missing = [_MNIST_FILES[key] for key, path in paths.items() if path is None]
    if missing:
        raise ValueError(f"data {name!r}: {root} lacks {', '.join(missing)}; {expected}")
    arrays = {key: read_idx(path, () if key.endswith("labels") else (28, 28)) for key, path in paths.items() if path is not None}
    for part in ("train", "test"):
        images, labels = len(arrays[part]), len(arrays[f"{part}_labels"])
        if images != labels:
            raise ValueError(f"data {name!r}: {images} images in {paths[part]} but {labels} labels; one label an image is needed")
    return Dataset(
        name,
        torch.from_numpy(arrays["train"]).float().unsqueeze(1),
        torch.from_numpy(arrays["test"]).float().unsqueeze(1),
        torch.from_numpy(arrays["train_labels"]).long(),
        torch.from_numpy(arrays["test_labels"]).long(),
        classes=10,
        levels=256,
        value_range=(0.0, 255.0),
    )


def _find(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / f"{name}.gz") if path.exists()), None)

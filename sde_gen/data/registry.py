"""The data sets by name. A new one is a function (root, seed) -> Dataset and a line here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from sde_gen.data.dataset import Dataset, validate
from sde_gen.data.images import digits, mnist
from sde_gen.data.toys import checkerboard, gaussians8, moons

DATASETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "gaussians8": gaussians8,
    "moons": moons,
    "checkerboard": checkerboard,
}


def load_dataset(name: str, root: str | os.PathLike[str] | None = None, seed: int = 0, limit: int | None = None) -> Dataset:
    """Load and check a data set of the registry.

    Args:
        name: a key of `DATASETS`.
        root: the directory of the files; only sets that come from files read it.
        seed: of the toys' points, >= 0; real data and its split do not depend on it.
        limit: keep the first `limit` training items (all, if there are fewer); the held-out part stays whole.

    Raises:
        ValueError: unknown name, a bad seed or limit, files missing or broken, or data that cannot be trained on (see `validate`).
    """
    if name not in DATASETS:
        raise ValueError(f"data {name!r} is unknown; allowed: {', '.join(sorted(DATASETS))}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed {seed!r}; an integer >= 0 is needed")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit {limit!r}; None or a positive integer is needed")
    dataset = DATASETS[name](None if root is None else Path(root), seed)
    if limit is not None:
        labels = None if dataset.train_labels is None else dataset.train_labels[:limit]
        dataset = dataclasses.replace(dataset, train=dataset.train[:limit], train_labels=labels)
    return validate(dataset)

"""A table with a column of every kind."""

from __future__ import annotations

import numpy as np

from sde_gen.data.columns import Column

COUNT = 2000


def column(name: str, values: np.ndarray, missing: np.ndarray | None = None, gap: str = "") -> Column:
    gone = np.zeros(len(values), bool) if missing is None else missing
    if values.dtype.kind == "U":
        return Column(name, np.where(gone, "", values), gone, gap=gap)
    return Column(name, np.where(gone, np.nan, values.astype(float)), gone, gap=gap)


def table(seed: int = 0) -> list[Column]:
    """A column of every kind and every way of being inferred, in units from 1e-8 to 1e6, some with gaps."""
    rng = np.random.default_rng(seed)
    gaps = rng.random(COUNT) < 0.1
    words = rng.choice(["oak", "ash, common", 'a "fir"', "elm"], COUNT, p=[0.5, 0.3, 0.15, 0.05])
    return [
        column("rain", np.where(rng.random(COUNT) < 0.59, 0, rng.gamma(0.7, 8e-8, COUNT))),
        column("wind_direction", rng.integers(0, 360, COUNT)),
        column("phase", 2 * np.pi * rng.random(COUNT)),
        column("income", np.exp(rng.normal(13, 1, COUNT)), gaps, "NA"),
        column("calls", rng.poisson(4, COUNT)),
        column("tree", words, rng.random(COUNT) < 0.2, "?"),
        column("flag", rng.integers(0, 2, COUNT), gaps),
        column("share", rng.beta(2, 3, COUNT)),
        column("humidity", np.where(rng.random(COUNT) < 0.1, 1.0, np.round(rng.uniform(0.1, 0.9, COUNT), 3))),
        column("temperature", np.round(rng.normal(size=COUNT), 5), gaps),
        column("price", np.round(rng.gamma(2, 3, COUNT) + 0.1, 1)),
        column("large", np.round(1e6 * rng.normal(size=COUNT))),
        column("gain", np.where(rng.random(COUNT) < 0.8, 0, np.ceil(np.exp(rng.normal(7, 1, COUNT)))), rng.random(COUNT) < 0.05),
    ]

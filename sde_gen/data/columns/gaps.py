"""Missing values as values that can be sampled, around a column of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sde_gen.data.columns.kinds import KINDS, LOG_2PI, Kind
from sde_gen.data.transforms import Chain


@dataclass(frozen=True)
class Gaps(Kind):
    """A column of another kind, `inner`, of which some values are missing: a feature of its own in [0, 1) where the value is there and in
    [1, 2) where it is not, before those of the value. Where it is missing, these are drawn from a normal law of their logarithm, logit or
    themselves, so that they say nothing.

    mean, std: of that law, for each of the inner features.
    """

    name = "missing"
    inner: Kind
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def around(cls, inner: Kind, features: np.ndarray) -> Gaps:
        """The kind with the law of the known values' features (n, width)."""
        y = _to_line(inner.domain, features)
        std = y.std(0)
        return cls(inner, tuple(y.mean(0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))

    @property
    def width(self) -> int:
        return 1 + self.inner.width

    @property
    def chains(self) -> list[Chain]:
        return [("quantile",), *self.inner.chains]

    @property
    def breaks(self) -> list[list[float]]:
        return [[0.0, 1.0, 2.0], *self.inner.breaks]

    def labels(self, name: str) -> list[str]:
        return [f"{name} (missing)", *self.inner.labels(name)]

    def encode_gaps(self, values: np.ndarray, missing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Features of values (n,), known where `missing` (n,) is False."""
        found = np.empty((len(values), self.width))
        found[:, 0] = missing + rng.uniform(size=len(values))
        found[~missing, 1:] = self.inner.encode(values[~missing], rng)
        count = int(missing.sum())
        drawn = np.array(self.mean) + np.array(self.std) * rng.standard_normal((count, self.inner.width))
        found[missing, 1:] = _from_line(self.inner.domain, drawn)
        return found

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.encode_gaps(values, np.zeros(len(values), bool), rng)

    def missing(self, features: np.ndarray) -> np.ndarray:
        """Which values are missing, Boolean (n,)."""
        return features[:, 0] >= 1

    def decode(self, features: np.ndarray) -> np.ndarray:
        return self.inner.decode(features[:, 1:])

    def log_q(self, features: np.ndarray) -> np.ndarray:
        y = _to_line(self.inner.domain, features[:, 1:])
        score = (y - np.array(self.mean)) / np.array(self.std)
        drawn = (-0.5 * score**2 - 0.5 * LOG_2PI - np.log(np.array(self.std)) + _log_slope(self.inner.domain, features[:, 1:])).sum(1)
        return np.where(self.missing(features), drawn, self.inner.log_q(features[:, 1:]))

    def strange(self, values: np.ndarray) -> np.ndarray:
        return self.inner.strange(values)

    def settings(self) -> dict[str, Any]:
        return {"kind": self.name, "inner": self.inner.settings(), "mean": list(self.mean), "std": list(self.std)}


def kind_from(settings: Any) -> Kind:
    """The kind of `Kind.settings`. ValueError for anything else."""
    try:
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        name: Any = given.pop("kind")
        if name == Gaps.name:
            return Gaps(kind_from(given.pop("inner")), **given)
        return KINDS[name](**given)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(settings)[:80]!r} is no kind of a column: {' '.join(str(error).split())}") from error


def _to_line(domain: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x) if domain == "positive" else np.log(x) - np.log1p(-x) if domain == "unit" else x


def _from_line(domain: str, y: np.ndarray) -> np.ndarray:
    return np.exp(y) if domain == "positive" else 1 / (1 + np.exp(-y)) if domain == "unit" else y


def _log_slope(domain: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log(x) if domain == "positive" else -np.log(x) - np.log1p(-x) if domain == "unit" else np.zeros_like(x)

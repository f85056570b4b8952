"""Columns of which some values stand apart, missing ones and exact zeros: a feature says which, beside those of another kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sde_gen.data.columns.kinds import FILL, KINDS, LOG_2PI, Kind, in_cell
from sde_gen.data.transforms import Chain

GAPS = ("sample", "condition")
"""What the gaps of a column can be: values that are sampled like others, or a condition, which says where there are some."""


@dataclass(frozen=True)
class Apart(Kind):
    """A column of another kind, `inner`, of which some values stand apart: a feature of its own in [0, 1) where the value is of the inner
    kind and in [1, 2) where it stands apart, before those of the value. Where it stands apart, these are drawn from a normal law of their
    logarithm, logit or themselves, so that they say nothing.

    mean, std: of that law, for each of the inner features. fill: as of a `Category`, of the first feature.
    """

    inner: Kind
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    fill: float = 1.0

    @classmethod
    def around(cls, inner: Kind, features: np.ndarray) -> Self:
        """The kind with the law of the features (n, width) of values of the inner kind."""
        y = _to_line(cls(inner).drawn, features)
        std = y.std(0)
        return cls(inner, tuple(y.mean(0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist()), FILL)

    @property
    def width(self) -> int:
        return 1 + self.inner.width

    @property
    def drawn(self) -> list[str]:
        """In the domain of each inner feature that law is one of the whole line."""
        return self.inner.domains

    @property
    def lead(self) -> int:
        return 1 + self.inner.lead

    @property
    def domains(self) -> list[str]:
        return ["line", *self.inner.domains]

    @property
    def chains(self) -> list[Chain]:
        return [() if self.fill < 1 else ("quantile",), *self.inner.chains]

    @property
    def breaks(self) -> list[list[float]]:
        return [[0.0, 1.0, 2.0], *self.inner.breaks]

    def apart(self, features: np.ndarray) -> np.ndarray:
        """Which values stand apart, Boolean (n,)."""
        return features[:, 0] >= 1

    def encode_apart(self, values: np.ndarray, apart: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Features of values (n,), of the inner kind where `apart` (n,) is False."""
        found = np.empty((len(values), self.width))
        found[:, 0] = apart + in_cell(self.fill, rng.uniform(size=len(values)))
        found[~apart, 1:] = self.inner.encode(values[~apart], rng)
        drawn = np.array(self.mean) + np.array(self.std) * rng.standard_normal((int(apart.sum()), self.inner.width))
        found[apart, 1:] = from_line(self.drawn, drawn)
        return found

    def log_q(self, features: np.ndarray) -> np.ndarray:
        y = _to_line(self.drawn, features[:, 1:])
        score = (y - np.array(self.mean)) / np.array(self.std)
        slopes = _log_slope(self.drawn, features[:, 1:])
        drawn = (-0.5 * score**2 - 0.5 * LOG_2PI - np.log(np.array(self.std)) + slopes).sum(1)
        return np.where(self.apart(features), drawn, self.inner.log_q(features[:, 1:])) - math.log(self.fill)

    def settings(self) -> dict[str, Any]:
        law = {"mean": list(self.mean), "std": list(self.std), "fill": self.fill}
        return {"kind": self.name, "inner": self.inner.settings(), **law}


@dataclass(frozen=True)
class Gaps(Apart):
    """Missing values, which can be sampled, among others."""

    name = "missing"

    def labels(self, name: str) -> list[str]:
        return [f"{name} (missing)", *self.inner.labels(name)]

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.encode_apart(values, np.zeros(len(values), bool), rng)

    def decode(self, features: np.ndarray) -> np.ndarray:
        return self.inner.decode(features[:, 1:])

    def strange(self, values: np.ndarray) -> np.ndarray:
        return self.inner.strange(values)


@dataclass(frozen=True)
class Gate(Apart):
    """Exact zeros among positive numbers, real or whole: the first feature is the gate."""

    name = "zero_inflated"

    @property
    def drawn(self) -> list[str]:
        return ["positive"]  # whole numbers too, so that what is drawn is like them and leaves them the most of their quantiles

    def labels(self, name: str) -> list[str]:
        return [f"{name} (zero)", *self.inner.labels(name)]

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.encode_apart(values, values == 0, rng)

    def decode(self, features: np.ndarray) -> np.ndarray:
        values = self.inner.decode(features[:, 1:])
        return np.where(self.apart(features), values.dtype.type(0), values)

    def strange(self, values: np.ndarray) -> np.ndarray:
        return (values != 0) & self.inner.strange(values)


def gaps_asked(missing: float | str | None) -> tuple[str | None, float | str | None]:
    """What `missing` of a table asks its gaps to be, "sample" or "condition" or None, and what marks them beside the usual words.

    "condition" and "condition=VALUE" ask for the one and "sample", "sample=VALUE" for the other; what else there is, is the mark.

    Raises ValueError for "condition=" alone.
    """
    what, equals, mark = missing.partition("=") if isinstance(missing, str) else ("", "", "")
    if what not in GAPS:
        return None, missing
    if equals and not mark:
        raise ValueError(f"missing {missing!r}; '{what}', for NaN and empty cells, or '{what}=VALUE' is needed")
    return what, mark or None


def kind_from(settings: Any) -> Kind:
    """The kind of `Kind.settings`. ValueError for anything else."""
    try:
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        name: Any = given.pop("kind")
        if "inner" in given:
            around: type[Apart] = {one.name: one for one in (Gaps, Gate)}[name]
            return around(inner=kind_from(given.pop("inner")), **given)
        return KINDS[name](**given)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(settings)[:80]!r} is no kind of a column: {' '.join(str(error).split())}") from error


def _to_line(domains: Sequence[str], x: np.ndarray) -> np.ndarray:
    found = x.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, domain in enumerate(domains):
            if domain != "line":
                found[:, k] = np.log(x[:, k]) - (np.log1p(-x[:, k]) if domain == "unit" else 0.0)
    return found


def from_line(domains: Sequence[str], y: np.ndarray) -> np.ndarray:
    """Numbers y (n, width) of the whole line in the domains of features."""
    found = y.copy()
    for k, domain in enumerate(domains):
        if domain != "line":
            found[:, k] = np.exp(y[:, k]) if domain == "positive" else 1 / (1 + np.exp(-y[:, k]))
    return found


def _log_slope(domains: Sequence[str], x: np.ndarray) -> np.ndarray:
    found = np.zeros_like(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, domain in enumerate(domains):
            if domain != "line":
                found[:, k] = -np.log(x[:, k]) - (np.log1p(-x[:, k]) if domain == "unit" else 0.0)
    return found

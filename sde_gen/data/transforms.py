"""Monotone maps of single entries, each with its inverse and its slope: what makes skewed, bounded and uneven values nearly normal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

Chain = tuple[str, ...]
"""Names in `TRANSFORMS`, one applied after another; () leaves the values as they are."""
POINTS, LEAST_POINTS = 100, 10
"""Training values between two knots of a quantile transform in the middle, and in the tails."""
MOST_KNOTS = 256
MOST_LAMBDA, LOG_BELOW = 2.0, 0.02
"""Box-Cox's exponent is within 0 .. this; below the second it is 0, the logarithm."""


class Transform(nn.Module):
    """A monotone map y(x) of k channels of its own each; x and y are float64 (k, M).

    A subclass gives `names`, the buffers of its numbers, (k, *) float64 each, `fit`, `forward`, `inverse` and `log_slope`.
    """

    names: ClassVar[tuple[str, ...]]
    affine: ClassVar[bool] = False

    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        for name, value in zip(self.names, values, strict=True):
            self.register_buffer(name, value.to(torch.float64))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: getattr(self, name) for name in self.names}
        super()._apply(fn, recurse)
        for name, value in before.items():  # a cast of the module around it: only the device is followed
            now = getattr(self, name)
            setattr(self, name, now if now.dtype == torch.float64 else value.to(now.device))
        return self

    @classmethod
    def fit(cls, values: Tensor, breaks: Sequence[Sequence[float]]) -> Transform:
        """The map learned from training values (k, M). breaks: of each channel, where its density may jump."""
        raise NotImplementedError

    def allowed(self, x: Tensor) -> Tensor:
        """Which values the map takes, Boolean (k, M)."""
        return torch.isfinite(x)

    def column(self, name: str) -> Tensor:
        """Numbers (k, 1) to go with values (k, M)."""
        return getattr(self, name)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def log_slope(self, x: Tensor) -> Tensor:
        """log dy/dx, (k, M)."""
        raise NotImplementedError


class Log1p(Transform):
    """y = sign(x) log(1 + |x|/unit), of the whole line; unit: the median of the values that are not 0, in size."""

    names = ("unit",)

    @classmethod
    def fit(cls, values: Tensor, breaks: Sequence[Sequence[float]]) -> Log1p:
        sizes = [row[row != 0].abs() for row in values]
        return cls(torch.stack([size.median() if len(size) else torch.ones((), dtype=torch.float64) for size in sizes]))

    def forward(self, x: Tensor) -> Tensor:
        return x.sign() * torch.log1p(x.abs() / self.column("unit"))

    def inverse(self, y: Tensor) -> Tensor:
        return y.sign() * torch.expm1(y.abs()) * self.column("unit")

    def log_slope(self, x: Tensor) -> Tensor:
        return -torch.log(self.column("unit") + x.abs())


class BoxCox(Transform):
    """y = (x^lambda - 1)/lambda, or log x where lambda is 0, of positive x; lambda: the most likely one for a normal y, within 0 .. 2.

    What lies below the map's range, -1/lambda, comes back as 0. Box and Cox 1964, J. R. Stat. Soc. B 26, 211.
    """

    names = ("lambda_",)

    @classmethod
    def fit(cls, values: Tensor, breaks: Sequence[Sequence[float]]) -> BoxCox:
        from scipy import stats  # here, as it takes as long to import as the rest of the package

        found = []
        for row in values:
            x = row[(row > 0) & torch.isfinite(row)].numpy()
            x = x if len(x) <= 10_000 else np.random.default_rng(0).choice(x, 10_000, replace=False)
            best = float(stats.boxcox_normmax(x, brack=(0.0, 1.0), method="mle")) if len(np.unique(x)) > 2 else 1.0
            best = min(max(best, 0.0), MOST_LAMBDA)
            found.append(0.0 if best < LOG_BELOW else best)
        return cls(torch.tensor(found, dtype=torch.float64))

    def allowed(self, x: Tensor) -> Tensor:
        return (x > 0) & torch.isfinite(x)

    def forward(self, x: Tensor) -> Tensor:
        power, log = self.column("lambda_"), torch.log(x)
        return torch.where(power == 0, log, torch.expm1(power * log) / torch.where(power == 0, 1, power))

    def inverse(self, y: Tensor) -> Tensor:
        power = self.column("lambda_")
        some = torch.where(power == 0, 1, power)
        # log1p rather than a power: exact also for a small lambda.
        return torch.where(power == 0, y, torch.log1p((some * y).clamp_min(-1)) / some).exp()

    def log_slope(self, x: Tensor) -> Tensor:
        return (self.column("lambda_") - 1) * torch.log(x)


class Log(BoxCox):
    """y = log x of positive x."""

    @classmethod
    def fit(cls, values: Tensor, breaks: Sequence[Sequence[float]]) -> Log:
        return cls(torch.zeros(len(values), dtype=torch.float64))


class Logit(Transform):
    """y = log((x - low)/(high - x)) of x between low and high: 0 and 1 where all values lie there, else a little beyond the values."""

    names = ("low", "high")

    @classmethod
    def fit(cls, values: Tensor, breaks: Sequence[Sequence[float]]) -> Logit:
        low, high = values.amin(1), values.amax(1)
        margin = (high - low) / values.shape[1]  # what the largest of so many even values leaves open
        within = (low > 0) & (high < 1)
        return cls(torch.where(within, 0.0, low - margin), torch.where(within, 1.0, high + margin))

    def allowed(self, x: Tensor) -> Tensor:
        return (x > self.column("low")) & (x < self.column("high"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x - self.column("low")) - torch.log(self.column("high") - x)

    def inverse(self, y: Tensor) -> Tensor:
        low, high = self.column("low"), self.column("high")
        small = (high - low) * torch.sigmoid(-y.abs())  # from the nearer bound, so that nothing cancels there
        return torch.where(y > 0, high - small, low + small)

    def log_slope(self, x: Tensor) -> Tensor:
        low, high = self.column("low"), self.column("high")
        return torch.log(high - low) - torch.log(x - low) - torch.log(high - x)


class Quantile(Transform):
    """y = Phi^-1(F(x)) with a piecewise linear F through quantiles of the training values: they become standard normal.

    Beyond the outermost knots y is linear in x, so that it takes the whole line. Knots lie at each break, where the density may
    jump, and between them so that the bins hold `POINTS` values, in the tails down to `LEAST_POINTS`.

    knots: (k, K) in the units of x, ascending, filled up with infinity. below, above: F and 1 - F there, each exact where it is small.
    slopes: (k, 2) dy/dx in the two tails.
    """

    names = ("knots", "below", "above", "slopes")
    knots: Tensor
    below: Tensor
    above: Tensor
    slopes: Tensor

    @classmethod
    def fit(cls, values: Tensor, breaks: Sequence[Sequence[float]]) -> Quantile:
        columns = [_knots(row.numpy(), np.asarray(where, dtype=np.float64)) for row, where in zip(values, breaks, strict=True)]
        most = max(len(x) for x, _, _, _ in columns)

        def padded(rows: list[np.ndarray], value: float) -> Tensor:
            return torch.from_numpy(np.stack([np.pad(row, (0, most - len(row)), constant_values=value) for row in rows]))

        parts = [list(part) for part in zip(*columns, strict=True)]
        return cls(padded(parts[0], math.inf), padded(parts[1], 1.0), padded(parts[2], 0.0), torch.from_numpy(np.stack(parts[3])))

    @property
    def _last(self) -> Tensor:
        return torch.isfinite(self.knots).sum(1, keepdim=True) - 1

    def _bins(self, places: Tensor, x: Tensor) -> Tensor:
        """(k, M), the number of the knot at the left of each value's bin."""
        found = torch.searchsorted(places.contiguous(), x.detach().contiguous(), right=True) - 1
        return torch.minimum(found.clamp_min(0), self._last - 1)

    def _scores(self) -> Tensor:
        return _normal_score(self.below, self.above)

    def _ends(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the first and the last knot its place and its normal score, (k, 1) each."""
        scores = self._scores()
        return self.knots[:, :1], scores[:, :1], self.knots.gather(1, self._last), scores.gather(1, self._last)

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F and 1 - F, and log dF/dx, as if x lay between the outermost knots."""
        left = self._bins(self.knots, x)
        x_0, x_1 = self.knots.gather(1, left), self.knots.gather(1, left + 1)
        share = ((x - x_0) / (x_1 - x_0)).clamp(0, 1)
        below, above = (torch.lerp(part.gather(1, left), part.gather(1, left + 1), share) for part in (self.below, self.above))
        # The mass of a bin from the side where it is small: 1 - F loses no digits there.
        of_below = self.below.gather(1, left + 1) - self.below.gather(1, left)
        of_above = self.above.gather(1, left) - self.above.gather(1, left + 1)
        mass = torch.where(below < 0.5, of_below, of_above)
        return below, above, torch.log(mass) - torch.log(x_1 - x_0)

    def forward(self, x: Tensor) -> Tensor:
        first, of_first, last, of_last = self._ends()
        below, above, _ = self._inside(x.clamp(first, last))
        y = _normal_score(below, above)
        y = torch.where(x < first, of_first + self.slopes[:, :1] * (x - first), y)
        return torch.where(x > last, of_last + self.slopes[:, 1:] * (x - last), y)

    def inverse(self, y: Tensor) -> Tensor:
        first, of_first, last, of_last = self._ends()
        inner = y.clamp(of_first, of_last)
        scores = torch.where(torch.isfinite(self.knots), self._scores(), math.inf)
        left = self._bins(scores, inner)
        x_0, x_1 = self.knots.gather(1, left), self.knots.gather(1, left + 1)
        below, above = torch.special.ndtr(inner), torch.special.ndtr(-inner)
        b_0, b_1, a_0, a_1 = (part.gather(1, left + k) for part in (self.below, self.above) for k in (0, 1))
        share = torch.where(inner < 0, (below - b_0) / (b_1 - b_0), (a_0 - above) / (a_0 - a_1))
        x = torch.lerp(x_0, x_1, share.clamp(0, 1))
        x = torch.where(y < of_first, first + (y - of_first) / self.slopes[:, :1], x)
        return torch.where(y > of_last, last + (y - of_last) / self.slopes[:, 1:], x)

    def log_slope(self, x: Tensor) -> Tensor:
        first, _, last, _ = self._ends()
        below, above, of_f = self._inside(x.clamp(first, last))
        y = _normal_score(below, above)
        slope = of_f + 0.5 * y.square() + 0.5 * math.log(2 * math.pi)
        slope = torch.where(x < first, self.slopes[:, :1].log(), slope)
        return torch.where(x > last, self.slopes[:, 1:].log(), slope)


TRANSFORMS: dict[str, type[Transform]] = {"log1p": Log1p, "box_cox": BoxCox, "log": Log, "logit": Logit, "quantile": Quantile}


class Transforms(nn.Module):
    """A chain of transforms for each channel of (C, *spatial) or (D,) data, as one map of their entries.

    chains: of each channel the names of its transforms in order. stages: the transforms, those of one name at one place of the chains
    together.

    Raises ValueError for an unknown name.
    """

    def __init__(self, chains: Sequence[Chain]) -> None:
        super().__init__()
        self.chains = tuple(tuple(chain) for chain in chains)
        for name in {name for chain in self.chains for name in chain}:
            if name not in TRANSFORMS:
                raise ValueError(f"transform {name!r} is unknown; allowed: {', '.join(TRANSFORMS)}")
        self.stages = nn.ModuleDict()
        self.members: dict[str, list[int]] = {}
        for place in range(max(map(len, self.chains), default=0)):
            for name in TRANSFORMS:
                members = [c for c, chain in enumerate(self.chains) if chain[place : place + 1] == (name,)]
                if members:
                    self.members[f"{place}-{name}"] = members

    @classmethod
    def fit(cls, values: Tensor, chains: Sequence[Chain], breaks: Sequence[Sequence[float]] | None = None) -> Transforms:
        """The transforms of training values (C, M), float64; breaks: of each channel, in its own units, where its density may jump."""
        found = cls(chains)
        y, jumps = values, [torch.tensor(list(where), dtype=torch.float64) for where in breaks or [()] * len(values)]
        for key, members in found.members.items():
            name = key.split("-")[1]
            stage = TRANSFORMS[name].fit(y[members], [jumps[c].tolist() for c in members])
            found.stages[key] = stage
            _check_allowed(stage, name, y[members], members)
            y = y.index_copy(0, torch.tensor(members), stage(y[members]))
            for row, c in enumerate(members):
                if len(jumps[c]):  # they move with the values; those outside of the domain are no longer of use
                    at = jumps[c].expand(len(members), -1)
                    moved = stage(torch.where(stage.allowed(at), at, math.nan))[row]
                    jumps[c] = moved[torch.isfinite(moved)]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(C, M) float64 to the same; ValueError for values that a transform of theirs does not take."""
        return self._run(x)[0]

    def log_slope(self, x: Tensor) -> Tensor:
        """The logarithm of the slope of each entry, (C, M)."""
        return self._run(x, True)[1]

    def _run(self, x: Tensor, sloped: bool = False) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(x)
        for key, stage, index in self._stages(x):
            part = x.index_select(0, index)
            _check_allowed(stage, key.split("-")[1], part, self.members[key])
            if sloped:
                total = total.index_add(0, index, stage.log_slope(part))
            x = x.index_copy(0, index, stage(part))
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        """(C, M) float64 to the same."""
        for _, stage, index in reversed(self._stages(y)):
            y = y.index_copy(0, index, stage.inverse(y.index_select(0, index)))
        return y

    def _stages(self, like: Tensor) -> list[tuple[str, Transform, Tensor]]:
        return [(key, stage, torch.tensor(self.members[key], device=like.device)) for key, stage in self.stages.items()]  # type: ignore[misc]

    def to_config(self) -> dict[str, Any]:
        """What `from_config` needs, ready for JSON: the chains, and how many knots each stage has."""
        knots = {key: int(stage.knots.shape[1]) for key, stage in self.stages.items() if isinstance(stage, Quantile)}
        return {"chains": [list(chain) for chain in self.chains], "knots": knots}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transforms:
        """Transforms of the chains of `to_config`, whose numbers come with the state dict. ValueError for impossible entries."""
        try:
            found = cls([tuple(map(str, chain)) for chain in config["chains"]])
            for key, members in found.members.items():
                kind, k = TRANSFORMS[key.split("-")[1]], len(members)
                if kind is Quantile:
                    most = config["knots"][key]
                    if type(most) is not int or not 2 <= most <= 1 << 20:
                        raise ValueError(f"{most!r} knots; a whole number >= 2 is needed")
                    found.stages[key] = Quantile(*(torch.zeros(k, n) for n in (most, most, most, 2)))
                else:
                    found.stages[key] = kind(*(torch.zeros(k) for _ in kind.names))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"transforms {str(config)[:80]!r}; what Transforms.to_config gives is needed") from error
        return found


def _check_allowed(stage: Transform, name: str, x: Tensor, members: Sequence[int]) -> None:
    bad = ~stage.allowed(x.detach())
    if bool(bad.any()):
        row = int(bad.any(1).int().argmax())
        value = float(x[row][bad[row]][0])
        what = "between its bounds" if name == "logit" else "positive" if name in ("log", "box_cox") else "finite"
        raise ValueError(f"channel or column {members[row]} holds {value:g}, which the transform {name!r} does not take: {what} is needed")


def _normal_score(below: Tensor, above: Tensor) -> Tensor:
    """Phi^-1 of F = below = 1 - above, from the smaller of the two, which has all digits."""
    lower = below < above
    score = torch.special.ndtri(torch.where(lower, below, above))
    return torch.where(lower, score, -score)


def _knots(values: np.ndarray, breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Knots, F and 1 - F at them, and the two slopes beyond them."""
    x = np.sort(values)
    total = len(x)
    middle = np.linspace(0, 1, 2 + int(np.clip(total / POINTS, 4, MOST_KNOTS)))[1:-1]
    tail = middle[0] * 0.5 ** np.arange(1, 40)
    tail = tail[tail * total >= LEAST_POINTS]
    levels = np.concatenate((tail[::-1], middle, 1 - tail))
    # F at the midpoint between two values that are next to each other; at a break, the share below it.
    index = np.clip(np.round(levels * total).astype(int), 1, total - 1)
    places = np.concatenate((0.5 * (x[index - 1] + x[index]), breaks))
    below = np.searchsorted(x, places, side="left")
    inside = (below > 0) & (below < total)
    places, below = places[inside], below[inside]
    places, first = np.unique(places, return_index=True)
    below = below[first]
    keep = np.concatenate(([True], np.diff(below) > 0))
    places, below = places[keep], below[keep]
    if len(places) < 2:  # few values, or few different ones
        span = max(x[-1] - x[0], abs(x[0]) * 1e-6, 1e-12)
        places, below = np.array([x[0] - 0.5 * span, x[-1] + 0.5 * span]), np.array([0.25 * total, 0.75 * total])
    score = _normal_score(torch.from_numpy(below / total), torch.from_numpy((total - below) / total)).numpy()
    far = max(1, min(len(places) - 1, len(places) // 10))
    slopes = np.array(
        [(score[far] - score[0]) / (places[far] - places[0]), (score[-1] - score[-1 - far]) / (places[-1] - places[-1 - far])]
    )
    return places, below / total, (total - below) / total, slopes

"""What every condition has: a name, a port, a check of its values and a null of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RESERVED = frozenset(
    ("self", "x", "c", "t", "x_0", "draw", "model", "weighting", "times", "seed", "generator", "noise")
    + ("chain", "objective", "indices", "levels", "variance", "kind", "cond")
)
"""Names that are arguments of a model's or a loss's own, so that no condition can have them."""


class Condition(nn.Module):
    """One thing that a network is told beside the state: it checks the values and turns them into what the network's port takes.

    name: how it is given, `sample(..., cond={name: values})`.
    port: "vector" (B, width) goes into the modulation of every block; "tokens" (B, L, width) are attended to, and may bring a vector
        along; "map" (B, C, *spatial) are input channels.
    options: JSON-able; `make_condition(name, {"kind": ..., **options}, ...)` rebuilds it.

    A value that is not given is the null, which is no value of data: the number of classes for labels, no words for
    texts, NaN for everything else.
    """

    port: str
    kind: str
    fade: float | None = None
    """The half log-SNR at which the network stops being told it, by sigmoid(2 (fade - lambda)); None: it always is."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        if not isinstance(name, str) or not name or name in RESERVED:
            raise ValueError(f"a condition cannot be called {name!r}; names other than {', '.join(sorted(RESERVED))} are allowed")
        self.name, self.options = name, options

    @abstractmethod
    def fit(self, value: Tensor) -> Tensor:
        """`value` (B, *) with the shape and in the dtype in which the network works with it; nothing is read of what it holds.

        Raises ValueError for another shape and TypeError for another kind of dtype, in one line that names the condition.
        """

    def check(self, value: Tensor) -> Tensor:
        """`fit(value)`, after a look at what it holds, which waits for a device: it is called once before a loop. Raises ValueError for
        values that are not allowed."""
        value = self.fit(value)
        if value.is_floating_point() and bool(torch.isinf(value).any()):
            raise ValueError(f"condition {self.name!r} holds infinite values; finite numbers are needed, NaN where one is not known")
        return value

    @abstractmethod
    def missing(self, count: int, device: torch.device) -> Tensor:
        """So many rows that are not given."""

    def null(self, value: Tensor) -> Tensor:
        """Rows of the shape of `value` that are not given."""
        return torch.full_like(value, torch.nan)

    @property
    def spec(self) -> dict[str, Any]:
        """{"kind": ..., **options}."""
        return {"kind": self.kind, **self.options}

    def _numbers(self, value: Tensor, shape: Sequence[int | None], what: str) -> Tensor:
        """A tensor (B, *shape) in a floating dtype; None in `shape` stands for any length."""
        fits = value.ndim == 1 + len(shape) and all(n in (None, m) for n, m in zip(shape, value.shape[1:], strict=True))
        if not fits:
            wanted = ", ".join("*" if n is None else str(n) for n in shape)
            raise ValueError(f"condition {self.name!r} must be {what} of shape (B, {wanted}), got {tuple(value.shape)}")
        if value.is_complex():
            raise TypeError(f"condition {self.name!r} must hold real numbers, got {value.dtype}")
        return value if value.is_floating_point() else value.double()


def standardised(values: Tensor, channels: int = 1) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each entry of dimension `channels` of (N, *), over all that is known in float64; 1 for one that
    does not vary."""
    rows = values.double().movedim(channels, 0).flatten(1)
    mean = rows.nanmean(1).nan_to_num()
    std = (rows - mean[:, None]).square().nanmean(1).sqrt()
    return mean.tolist(), torch.where(std > 1e-12 * mean.abs().clamp_min(1e-300), std, torch.ones_like(std)).nan_to_num(1.0).tolist()


class Scaled(Condition):
    """A condition of numbers, which are standardised: z = (value - mean)/std, in float64 so that a year 2026 or a field about 1e5 keeps
    its digits.

    size: of mean and std, which None leaves at 0 and 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, options: dict[str, Any], size: int, mean: Sequence[float] | None, std: Sequence[float] | None, axes: int = 0
    ) -> None:
        means, stds = [0.0] * size if mean is None else list(mean), [1.0] * size if std is None else list(std)
        if len(means) != size or len(stds) != size or not all(value > 0 for value in stds):
            raise ValueError(f"condition {name!r} needs {size} mean(s) and {size} positive std(s), got {means} and {stds}")
        super().__init__(name, options | {"mean": means, "std": stds})
        for part, values in (("mean", means), ("std", stds)):
            self.register_buffer(part, torch.tensor(values, dtype=torch.float64).reshape(-1, *[1] * axes), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scaled:
        # Mean and std keep their digits, whatever dtype the weights become.
        kept = {"mean": self.mean, "std": self.std}
        super()._apply(fn, recurse)
        for part, value in kept.items():
            setattr(self, part, value.to(getattr(self, part).device))
        return self

    def standard(self, value: Tensor) -> Tensor:
        """z, float64."""
        return (value.double() - self.mean) / self.std

"""The contract of every model: E[x_0 | x_t] along an SDE, and what wraps it."""

from __future__ import annotations

import inspect
from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..conditions import Condition
from ..data.captions import is_texts, text_tensor
from ..sdes import SDE
from ..sdes.base import as_time, check_positive
from ..shapes import expand_as
from .moments import Moments
from .prior import MatchedPrior, Prior, SDEPrior


class UnitMap(Protocol):
    """The map between the data's own units and normalised ones, as `sde_gen.data.Normalizer` is: monotone, entry by entry.

    log_det: log |det d encode(x)/dx| in nats, (B,), of data x (B, *) in their own units.
    affine: an attribute that may be left out: False where `decode` is not shift + scale z.
    """

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...

    def log_det(self, x: Tensor, valid: Tensor | None = None) -> Tensor: ...


def is_affine(units: UnitMap | None) -> bool:
    """Whether data are shift + scale z of normalised values z, as they are where there is no map."""
    return units is None or bool(getattr(units, "affine", True))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a Denoiser predicts at a state.

    denoised: E[x_0 | x_t], of the state's shape and dtype, in normalised units.
    variance_fraction: where the model predicts the reverse step's variance, the share v in [0, 1] of the way from the log of the
        smallest one to the log of the largest, of the state's shape; else None.
    """

    denoised: Tensor
    variance_fraction: Tensor | None = None


def check_prediction(found: Any, x: Tensor, model: nn.Module) -> Prediction:
    """`found` where it is what `predict` must return for the state x; else TypeError or ValueError, naming the model's class."""
    name = type(model).__name__
    if not isinstance(found, Prediction):
        raise TypeError(f"{name}.predict must return a Prediction(denoised, ...), got {type(found).__name__}")
    if not isinstance(found.denoised, Tensor) or found.denoised.shape != x.shape or found.denoised.dtype != x.dtype:
        kind = (
            f"{tuple(found.denoised.shape)} {found.denoised.dtype}" if isinstance(found.denoised, Tensor) else type(found.denoised).__name__
        )
        raise ValueError(f"{name}.predict gave {kind} as denoised where the state is {tuple(x.shape)} {x.dtype}")
    return found


class PlannedTime(float):
    """A time, with what each model has worked out for it before a solver's loop.

    It is a float to everybody else, and belongs to one run: two threads may sample one model.
    """

    plans: dict[Denoiser, Any]

    def __new__(cls, t: float) -> PlannedTime:
        planned = super().__new__(cls, t)
        planned.plans = {}
        return planned


class _Complete(ABCMeta):
    """Tells the author of a subclass that its constructor left out the base class's."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, which `__call__` below would hide."""
        of_init = inspect.signature(cls.__init__)  # type: ignore[misc]
        return of_init.replace(parameters=list(of_init.parameters.values())[1:], return_annotation=cls)

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        hint = f"{cls.__name__}.__init__ must call super().__init__(...) before it sets anything"
        try:
            made = super().__call__(*args, **settings)
        except AttributeError as error:
            if "before Module.__init__() call" in str(error):
                raise TypeError(hint) from error
            raise
        if not hasattr(made, "fitted"):
            raise TypeError(hint)
        return made


class Denoiser(nn.Module, metaclass=_Complete):
    """Anything that predicts E[x_0 | x_t] along an SDE; the other views follow from it.

    A subclass gives `predict`, and calls `super().__init__(sde, normalizer, ...)`. One that is made of another Denoiser (guidance,
    inverse problems) is a `Wrapper`. States x are (B, *) in normalised units, at least float32 and on the model's device; t is a
    number, a scalar tensor or one for each sample (B,); conditions are keyword tensors whose first dimension is the batch.

    sde: the process along which the states lie.
    normalizer: the map between the data's units and normalised ones, or None where they are the same.
    moments: mean and covariance of the data in normalised units, or None where they are not known.
    data_std: the data's standard deviation in normalised units, or None; the field's sigma_data.
    prior: "sde", the SDE's own Gaussian, or "matched", the Gaussian with the data's moments at t_max (from mean 0 and data_std where
        there are no moments).

    Raises TypeError for an sde that is none; ValueError for another prior, or "matched" with neither moments nor data_std.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        views = [name for name in ("denoise", "score", "noise", "velocity") if name in vars(cls)]
        if views:
            raise TypeError(
                f"{cls.__name__} overrides {', '.join(views)}, which solvers do not ask: override predict, from which they follow"
            )

    sde: SDE
    normalizer: UnitMap | None
    moments: Moments | None
    variance: str | None = None
    """"learned_range" where `predict` gives a `variance_fraction`."""
    cost: int = 1
    """Network evaluations of one `predict`, which solvers count."""
    depends_on_state: bool = True
    """False declares that E[x_0 | x_t] is the same for every x_t, so that its divergence is 0 and not a fault."""
    differentiates: bool = False
    """Whether `predict` itself takes gradients, which no CUDA graph captures."""

    def __init__(
        self,
        sde: SDE,
        normalizer: UnitMap | None,
        moments: Moments | None = None,
        data_std: float | None = None,
        prior: str = "sde",
    ) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise TypeError(f"sde must be an SDE (see make_sde), got {sde!r}")
        if prior not in ("sde", "matched"):
            raise ValueError(f"unknown prior {prior!r}; choose from sde, matched")
        if prior == "matched" and moments is None and data_std is None:
            raise ValueError("prior 'matched' needs moments or data_std")
        self.sde = sde
        self.normalizer = normalizer
        self.moments = moments
        self.data_std = None if data_std is None else check_positive("data_std", data_std)
        self.prior_name = prior
        self.measured: dict[tuple[int, ...], tuple[Any, Moments | None]] = {}  # by a sample's shape, see `moments_of`
        self.fitted: dict[tuple[str, int, tuple[str, ...], str], Any] = {}  # time grids, see `fit_grid`

    @property
    def prior(self) -> Prior:
        """The distribution that stands for p(x) at t_max, in normalised units."""
        if self.prior_name == "sde":
            return SDEPrior(self.sde)
        alpha, sigma = (float(value) for value in self.sde.marginal(as_time(self.sde.t_max)))
        moments = self.moments
        if moments is None:
            assert self.data_std is not None
            moments = Moments(torch.zeros(()), variance=torch.tensor(self.data_std**2))
        return MatchedPrior(moments, alpha, sigma)

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        """E[x_0 | x_t = x] and what else the model knows at that state."""

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        """Works out what depends on time alone, before a solver's loop, and leaves it in `plans[self]` of each time."""

    def planned(self, times: Iterable[float]) -> dict[float, PlannedTime]:
        """The times of a run, ready for `predict`: one vectorised float64 evaluation in the place of one for each step."""
        table = {t: PlannedTime(t) for t in times}
        self.prepare(list(table.values()))
        return table

    def cost_at(self, t: float) -> int:
        """Network evaluations of one `predict` at the time t, for all samples; `cost` is the most that it takes."""
        return self.cost

    @property
    def encoders(self) -> dict[str, Condition]:
        """The conditions that the model takes, by name; of a network of the user's own nothing is known, and it is empty."""
        return {}

    def null(self, name: str, value: Tensor) -> Tensor | None:
        """Rows of the shape of `value` that stand for the condition `name` not being given, so that one call can hold samples with and
        without it; None where the model has none, and is then called without the name."""
        encoder = self.encoders.get(name)
        return None if encoder is None else encoder.null(value)

    def valid(self, cond: Mapping[str, Tensor]) -> Tensor | None:
        """Which entries of a state are data, given its conditions: Boolean, (*shape) or (B, *shape) or broadcast to these; None for all.

        Of the others the model says 0 and is not told what lies there, so that they run along the path of a point mass at 0, which no
        solver mixes with the rest. Whoever averages over entries or sums them up leaves them out."""
        return None

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> dict[str, Tensor]:
        """`cond`, tensors, arrays or lists of texts by name with `count` rows each, as tensors on `device`; TypeError or ValueError for
        anything else."""
        if cond is not None and not isinstance(cond, Mapping):
            raise TypeError(f"cond must be a dict of tensors by name, got {type(cond).__name__}")
        found = {}
        for name, value in (cond or {}).items():
            if is_texts(value):
                value = text_tensor(value)
            if not isinstance(value, Tensor | np.ndarray):
                each = f" (a text for each sample is a list of {count} strings)" if isinstance(value, str) else ""
                raise TypeError(f"condition {name!r} must be a tensor, got {type(value).__name__}{each}")
            if tuple(value.shape[:1]) != (count,):
                raise ValueError(f"condition {name!r} must have first dimension {count}, got shape {tuple(value.shape)}")
            found[name] = torch.as_tensor(value).to(device)
        return found

    def denoise(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Tensor:
        """E[x_0 | x_t = x]; shape of `x`."""
        return self.predict(x, t, **cond).denoised

    def score(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Tensor:
        """grad_x log p_t(x) = (alpha E[x_0 | x] - x)/sigma^2 (Tweedie's formula); shape of `x`."""
        alpha, sigma = self._marginal(x, t)
        return (alpha * self.denoise(x, t, **cond) - x) / sigma**2

    def noise(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Tensor:
        """E[eps | x_t = x] = (x - alpha E[x_0 | x])/sigma; shape of `x`."""
        alpha, sigma = self._marginal(x, t)
        return (x - alpha * self.denoise(x, t, **cond)) / sigma

    def velocity(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Tensor:
        """The probability flow's dx/dt = f x - g^2/2 score = f x + lambda' (alpha E[x_0 | x] - x); shape of `x`."""
        alpha, _ = self._marginal(x, t)
        f, slope = (like(value, x) for value in self.sde.slopes(as_time(t)))
        return f * x + slope * (alpha * self.denoise(x, t, **cond) - x)

    def _marginal(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.sde.marginal(as_time(t))
        return like(alpha, x), like(sigma, x)


class Wrapper(Denoiser):
    """A Denoiser made of another, `model`; a subclass overrides `predict` and says what it changes.

    same_law: a subclass that overrides `predict` must set it.
        True: it predicts E[x_0 | x_t] of the same data (it counts, caches, casts or logs), so that moments, prior and fitted grids are the
        model's own.
        False: it stands for another law (a condition, a measurement, guidance), of which nothing is claimed that was known of the
        model's data. Its moments are those given here, or None; its prior is the Gaussian with these moments where the model's is
        "matched", else the SDE's own; grids are fitted to it anew.

    sde, normalizer, data_std and the prediction of a variance are the model's. So is `cost`: a subclass that asks the model twice sets
    `self.cost = 2 * model.cost`. As it stands, this class changes nothing.

    Raises TypeError for a model that is no Denoiser, and at the definition of a subclass that leaves `same_law` open; ValueError for
    moments of a wrapper that has the law of its model.
    """

    same_law: bool = True

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        said = any("same_law" in vars(base) for base in cls.__mro__[: cls.__mro__.index(Wrapper)])
        if "predict" in vars(cls) and not said:
            raise TypeError(f"{cls.__name__} overrides predict: it must say `same_law = True` (same data) or `same_law = False`")

    def __init__(self, model: Denoiser, moments: Moments | None = None) -> None:
        if not isinstance(model, Denoiser):
            raise TypeError(f"a Wrapper wraps a Denoiser such as ScoreModel, got {type(model).__name__}")
        if self.same_law and moments is not None:
            raise ValueError(f"{type(self).__name__} has the law of its model: moments of its own would contradict it")
        prior = "matched" if model.prior_name == "matched" and moments is not None else "sde"
        super().__init__(model.sde, model.normalizer, model.moments if self.same_law else moments, model.data_std, prior)
        self.model = model
        self.variance, self.cost, self.depends_on_state = model.variance, model.cost, model.depends_on_state
        self.differentiates = model.differentiates
        self.fitted = model.fitted  # each tells what it was fitted to, and one checkpoint keeps them all
        if self.same_law:
            self.prior_name, self.measured = model.prior_name, model.measured

    @property
    def prior(self) -> Prior:
        return self.model.prior if self.same_law else super().prior

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        return self.model.predict(x, t, **cond)

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        self.model.prepare(times)

    def cost_at(self, t: float) -> int:
        return self.model.cost_at(t) if self.cost == self.model.cost else self.cost

    @property
    def encoders(self) -> dict[str, Condition]:
        return self.model.encoders

    def null(self, name: str, value: Tensor) -> Tensor | None:
        return self.model.null(name, value)

    def valid(self, cond: Mapping[str, Tensor]) -> Tensor | None:
        return self.model.valid(cond)

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> dict[str, Tensor]:
        return self.model.conditions(cond, count, device)


def encoded(model: Denoiser, x: Tensor) -> Tensor:
    """Data x (N, *) in their own units as normalised ones on the model's device (its first parameter's; x's own where it has none), in
    float64 where they are and else in float32; 0 where no item has data."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    x = x if parameter is None else x.to(parameter.device)
    z = x if model.normalizer is None else model.normalizer.encode(x)
    return only_valid(z if z.dtype == torch.float64 else z.float(), model.valid({}))


def only_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    """x with 0 where entries are not `valid`, whatever lies there, NaN too; x itself where all are."""
    return x if valid is None else torch.where(valid, x, torch.zeros((), dtype=x.dtype, device=x.device))


def mean_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over each sample's valid entries of values (B, *), which are 0 at the others: (B,)."""
    if valid is None:
        return values.flatten(1).mean(1)
    return values.flatten(1).sum(1) / counted(valid, values.shape).to(values)


def counted(valid: Tensor, shape: Sequence[int]) -> Tensor:
    """The number of valid entries of each sample of states of `shape` (B, *), (B,)."""
    return valid.expand(tuple(shape)).flatten(1).sum(1)


def like(value: Tensor, x: Tensor) -> Tensor:
    """`value`, (), or (B,), of x's dtype and device, ready to multiply x (B, *)."""
    # Cast only after the float64 arithmetic on times is done.
    return expand_as(value.to(dtype=x.dtype, device=x.device), x)

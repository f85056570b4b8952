"""A score model: a network and an SDE, seen as score, noise, denoised data or velocity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..registry import lookup
from ..sdes import SDE
from ..sdes.base import as_time, check_positive
from ..shapes import expand_as
from .prior import MatchedPrior, Moments, Prior, SDEPrior

CLOCKS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "time": lambda sde, t: t,
    "half_log_snr": lambda sde, t: sde.half_log_snr(t),
    "edm": lambda sde, t: -0.25 * sde.half_log_snr(t),  # c_noise = log(sigma/alpha)/4, Karras et al. 2022
}
"""What a network may be told about the noise level, each a function of the SDE and t. Register others here."""


class Scales(NamedTuple):
    """How a network's output F becomes the denoised data: denoised = skip x + out F(c_in x, clock)."""

    c_in: Any
    skip: Any
    out: Any
    clock: Any


def _noise(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = sde.marginal(t)
    return 1 / alpha, -sigma / alpha


def _data(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), torch.ones_like(t)


def _v(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = sde.marginal(t)
    total = alpha**2 + sigma**2
    return alpha / total, -sigma / total


def _flow(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    # velocity = (f - lambda') x + alpha lambda' x_0, solved for x_0.
    alpha, _ = sde.marginal(t)
    f, lambda_slope = sde.slopes(t)
    return (lambda_slope - f) / (alpha * lambda_slope), 1 / (alpha * lambda_slope)


def _score(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = sde.marginal(t)
    return 1 / alpha, sigma**2 / alpha


def _edm(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = sde.marginal(t)
    total = alpha**2 * std**2 + sigma**2
    return alpha * std**2 / total, sigma * std / torch.sqrt(total)


PREDICTIONS: dict[str, Callable[[SDE, Tensor, float], tuple[Tensor, Tensor]]] = {
    "noise": _noise,
    "data": _data,
    "v": _v,
    "flow": _flow,
    "score": _score,
    "edm": _edm,
}
"""What a network's output stands for: each gives (skip, out) at t for data of standard deviation `std`."""


class UnitMap(Protocol):
    """The map between the data's own units and normalised ones, as `sde_gen.data.Normalizer` is."""

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...

    def log_det(self, shape: Sequence[int]) -> float: ...


class Denoiser(nn.Module, ABC):
    """Anything that predicts E[x_0 | x_t] along an SDE; the other views follow from it.

    A subclass has `sde`, `prior` and `predict`. Guidance, inverse problems and other libraries' networks are subclasses
    that wrap another Denoiser. States x are (B, *) in normalised units; t is a number, a scalar tensor or one for each
    sample (B,); conditions are keyword tensors whose first dimension is the batch.
    """

    sde: SDE
    normalizer: UnitMap | None
    moments: Moments | None

    def __init__(self) -> None:
        super().__init__()
        self.normalizer = None
        self.moments = None
        self.measured: dict[tuple[int, ...], Moments | None] = {}  # by a sample's shape, see `moments_of`
        self.fitted: dict[tuple[str, int], Any] = {}  # time grids by solver and steps, see `fit_grid`

    @property
    @abstractmethod
    def prior(self) -> Prior:
        """The distribution that stands for p(x) at t_max."""

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """E[x_0 | x_t = x], shape of `x`, and the learned variance's fraction in [0, 1] or None."""

    def prepare(self, times: Iterable[float]) -> None:
        """Told the times at which `predict` will be called with Python numbers, before a solver's loop."""

    def denoise(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Tensor:
        """E[x_0 | x_t = x]; shape of `x`."""
        return self.predict(x, t, **cond)[0]

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
        f, slope = (_like(value, x) for value in self.sde.slopes(as_time(t)))
        return f * x + slope * (alpha * self.denoise(x, t, **cond) - x)

    def _marginal(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.sde.marginal(as_time(t))
        return _like(alpha, x), _like(sigma, x)


class ScoreModel(Denoiser):
    """A network, an SDE, and what the network's output means.

    network: any callable `network(x, c, **cond)`, x of shape (B, *), c of shape (B,) as `clock` says; its output has the
        shape of x, or twice its channels (dimension 1) with `variance="learned_range"`.
    prediction: what the output stands for: "noise" (eps), "data" (x_0), "v" (alpha eps - sigma x_0; Salimans and Ho 2022,
        arXiv:2202.00512), "flow" (dx/dt), "score", or "edm" (Karras et al. 2022, arXiv:2206.00364, for any alpha, sigma:
        denoised = alpha s^2/(alpha^2 s^2 + sigma^2) x + sigma s/sqrt(alpha^2 s^2 + sigma^2) F(c_in x), s = data_std).
    clock: what the network is told: "time", "half_log_snr", "edm" (c_noise), or a name registered in CLOCKS.
    data_std: the data's standard deviation in normalised units; needed by "edm".
    scale_input: multiply the network's input by c_in = 1/sqrt(alpha^2 s^2 + sigma^2); on for "edm", else off unless asked.
    normalizer: the map between the data's units and normalised ones (`encode`, `decode`, `log_det`), or None.
    variance: None, or "learned_range" (Nichol and Dhariwal 2021, arXiv:2102.09672).
    prior: "sde", or "matched": the Gaussian with the data's moments at t_max, from `moments` (see `Moments`), or from mean
        0 and data_std where there are none.

    Raises ValueError for a name that is not registered or settings that lack one another; TypeError for a network that
    cannot be called or an output that is not of floating dtype.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        sde: SDE,
        prediction: str = "noise",
        clock: str = "time",
        data_std: float | None = None,
        normalizer: UnitMap | None = None,
        variance: str | None = None,
        prior: str = "sde",
        moments: Moments | None = None,
        scale_input: bool | None = None,
    ) -> None:
        super().__init__()
        if not callable(network):
            raise TypeError(f"network must be callable, got {type(network).__name__}")
        if not isinstance(sde, SDE):
            raise TypeError(f"sde must be an SDE (see make_sde), got {sde!r}")
        lookup(PREDICTIONS, "prediction", prediction)
        lookup(CLOCKS, "clock", clock)
        if variance not in (None, "learned_range"):
            raise ValueError(f"unknown variance {variance!r}; choose from None, learned_range")
        if prior not in ("sde", "matched"):
            raise ValueError(f"unknown prior {prior!r}; choose from sde, matched")
        scale_input = prediction == "edm" if scale_input is None else scale_input
        if data_std is None and (prediction == "edm" or scale_input):
            raise ValueError("prediction 'edm' and scale_input need data_std, the data's standard deviation in normalised units")
        if prior == "matched" and moments is None and data_std is None:
            raise ValueError("prior 'matched' needs moments or data_std")
        self.network = network
        self.sde = sde
        self.prediction, self.clock, self.variance, self.prior_name = prediction, clock, variance, prior
        self.data_std = None if data_std is None else check_positive("data_std", data_std)
        self.scale_input = scale_input
        if normalizer is not None:
            del self.normalizer  # a module would be registered beside the None and never be found
            self.normalizer = normalizer
        if moments is not None:
            del self.moments  # as above
            self.moments = moments
        self._scales: dict[float, Scales] = {}

    def with_network(self, network: Callable[..., Tensor]) -> ScoreModel:
        """The same model around another network: averaged weights, say."""
        return ScoreModel(network, self.sde, **self.settings(), normalizer=self.normalizer, moments=self.moments)

    def settings(self) -> dict[str, Any]:
        """The settings that are plain values, as the constructor takes them."""
        return {
            "prediction": self.prediction,
            "clock": self.clock,
            "data_std": self.data_std,
            "variance": self.variance,
            "prior": self.prior_name,
            "scale_input": self.scale_input,
        }

    @property
    def prior(self) -> Prior:
        if self.prior_name == "sde":
            return SDEPrior(self.sde)
        alpha, sigma = (float(value) for value in self.sde.marginal(as_time(self.sde.t_max)))
        moments = self.moments
        if moments is None:
            assert self.data_std is not None
            moments = Moments(torch.zeros(()), variance=torch.tensor(self.data_std**2))
        return MatchedPrior(moments, alpha, sigma)

    def scales(self, t: Tensor) -> Scales:
        """c_in, skip, out and the network's clock at times `t`, each of the shape and dtype of `t`."""
        std = 1.0 if self.data_std is None else self.data_std
        skip, out = PREDICTIONS[self.prediction](self.sde, t, std)
        c_in = torch.ones_like(t)
        if self.scale_input:
            alpha, sigma = self.sde.marginal(t)
            c_in = 1 / torch.sqrt(alpha**2 * std**2 + sigma**2)
        return Scales(c_in, skip, out, CLOCKS[self.clock](self.sde, t))

    def prepare(self, times: Iterable[float]) -> None:
        # One vectorised float64 evaluation for the whole grid; the loop then looks plain numbers up.
        grid = list(times)
        columns = (column.tolist() for column in self.scales(torch.tensor(grid, dtype=torch.float64)))
        self._scales = {t: Scales(*row) for t, row in zip(grid, zip(*columns, strict=True), strict=True)}

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(t, Tensor):
            at_t = self.scales(as_time(t))
            scales = Scales(*(_like(value, x) for value in at_t))
            clock = at_t.clock.to(x).expand(x.shape[0])
        else:
            if t not in self._scales:
                self.prepare([t])
            scales = self._scales[t]
            clock = x.new_full((x.shape[0],), scales.clock)
        output = self.network(x * scales.c_in if self.scale_input else x, clock, **cond)
        if not isinstance(output, Tensor):
            raise TypeError(f"the network must return a tensor, got {type(output).__name__}")
        fraction = None
        if self.variance is not None:
            if output.shape != (doubled := (x.shape[0], 2 * x.shape[1], *x.shape[2:])):
                raise ValueError(f"the network's output has shape {tuple(output.shape)} where {doubled} was expected")
            output, raw = output.chunk(2, dim=1)
            fraction = 0.5 * (raw.to(x.dtype) + 1.0)
        if output.shape != x.shape:
            raise ValueError(f"the network's output has shape {tuple(output.shape)} where {tuple(x.shape)} was expected")
        if output.dtype != x.dtype:
            if not output.is_floating_point():
                raise TypeError(f"the network's output has dtype {output.dtype} where a floating dtype was expected")
            output = output.to(x.dtype)
        if self.prediction == "data":
            return output, fraction
        if isinstance(t, Tensor):
            return torch.addcmul(x * scales.skip, output, scales.out), fraction
        return (x * scales.skip).add_(output, alpha=scales.out), fraction

    forward = predict


def _like(value: Tensor, x: Tensor) -> Tensor:
    # Cast only after the float64 arithmetic on times is done.
    return expand_as(value.to(dtype=x.dtype, device=x.device), x)

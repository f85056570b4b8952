"""A score model: a network and an SDE, seen as score, noise, denoised data or velocity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..conditions import Condition, valid_entries
from ..networks import Network
from ..registry import Registry, canonical
from ..sdes import SDE
from ..sdes.base import as_time
from ..sdes.ddpm import points_of
from .denoiser import Denoiser, PlannedTime, Prediction, UnitMap, like, only_valid
from .moments import Moments

Clock = Callable[[SDE, Tensor], Tensor]
Meaning = Callable[[SDE, Tensor, float], tuple[Tensor, Tensor]]


def _c_noise(sde: SDE, t: Tensor) -> Tensor:
    return -0.25 * sde.half_log_snr(t)


def _index(sde: SDE, t: Tensor) -> Tensor:
    return points_of(sde, "clock 'index'").position(t)


CLOCKS: Registry[Clock] = Registry(
    {
        "time": lambda sde, t: t,
        "half_log_snr": lambda sde, t: sde.half_log_snr(t),
        "c_noise": _c_noise,
        "index": _index,
    },
    aliases={"edm": "c_noise"},
)
"""What a network may be told about the noise level, each a function of the SDE and t (any shape), of the shape of t:
time: t; half_log_snr: lambda; c_noise (also "edm"): log(sigma/alpha)/4 (Karras et al. 2022, arXiv:2206.00364);
index: the place among a chain's points, 0 .. N - 1, for SDEs that run through one (make_sde("ddpm"), chain.to_sde())."""


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


def _scaled_score(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = sde.marginal(t)
    return 1 / alpha, sigma / alpha


def _edm(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = sde.marginal(t)
    total = alpha**2 * std**2 + sigma**2
    return alpha * std**2 / total, sigma * std / torch.sqrt(total)


def _posterior_mean(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    # mean = of_data x_0 + of_state x_i, solved for x_0.
    of_data, of_state = points_of(sde, "prediction 'posterior_mean'").posterior_mean(t)
    return -of_state / of_data, 1 / of_data


PREDICTIONS: Registry[Meaning] = Registry(
    {
        "noise": _noise,
        "data": _data,
        "v": _v,
        "flow": _flow,
        "score": _score,
        "scaled_score": _scaled_score,
        "edm": _edm,
        "posterior_mean": _posterior_mean,
    },
    aliases={"epsilon": "noise", "x_0": "data", "sample": "data", "velocity": "flow"},
)
"""What a network's output F stands for: each gives (skip, out) at t (any shape) for data of standard deviation `std`, so that
E[x_0 | x_t] = skip x_t + out F."""


class ScoreModel(Denoiser):
    """A network, an SDE, and what the network's output means.

    network: any callable `network(x, c, **cond)`.
        x (B, *) is the state, in the dtype of the network's first floating parameter (the state's own where there is none).
        c (B,) is what `clock` says of the noise level, float32 or float64 whatever the network's dtype, since narrower ones round it.
        The conditions come under the names that the caller gives them, (B, *) tensors. A network may say which it takes by an attribute
        `encoders`, a dict of `conditions.Condition` by name.
        The output has the shape of x, or twice its channels (dimension 1) with `variance="learned_range"`, in any floating dtype.
    prediction: what the output F stands for, a name in PREDICTIONS or a function (sde, t, data_std) -> (skip, out), each of the shape
        of t, with E[x_0 | x_t] = skip x_t + out F.
        "noise": eps. "data": x_0. "flow": dx/dt. "score": grad log p_t. "scaled_score": sigma grad log p_t, which is -eps.
        "v": alpha eps - sigma x_0 (Salimans and Ho 2022, arXiv:2202.00512).
        "edm": denoised = alpha s^2/(alpha^2 s^2 + sigma^2) x + sigma s/sqrt(alpha^2 s^2 + sigma^2) F(c_in x), s = data_std (Karras
        et al. 2022, arXiv:2206.00364, for any alpha and sigma).
        "posterior_mean": E[x_{i-1} | x_i] of a chain, for SDEs that run through one.
    clock: what the network is told of the noise level, a name in CLOCKS or a function (sde, t) -> c of the shape of t: "time",
        "half_log_snr", "c_noise" (Karras et al. 2022; also "edm"), or "index" of a chain.
    data_std: the data's standard deviation in normalised units, the field's sigma_data; "edm" and scale_input need it.
    normalizer: the map between the data's units and normalised ones (`encode`, `decode`, `log_det`), or None.
    variance: None, or "learned_range" where half of the output's channels are the reverse step's variance (Nichol and Dhariwal 2021,
        arXiv:2102.09672).
    prior: "sde", or "matched": the Gaussian with the data's moments at t_max, from `moments` (see `Moments`), or from mean
        0 and data_std where there are none.
    moments: mean and covariance of the data in normalised units, or None.
    mask: of data of which some entries are never data (land in a field of the sea): Boolean, of one item's shape or broadcast to it, True
        where they are. None: all are. Entries that are no data of single items are told by a condition of kind "valid".
    scale_input: whether the network's input is multiplied by c_in = 1/sqrt(alpha^2 s^2 + sigma^2); None: for "edm" alone.

    Raises ValueError for a name that is not registered or settings that lack one another; TypeError for a network that
    cannot be called, an output that is not of floating dtype, or one without a gradient where a gradient with respect to x is asked for.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        sde: SDE,
        prediction: str | Meaning = "noise",
        clock: str | Clock = "time",
        data_std: float | None = None,
        normalizer: UnitMap | None = None,
        variance: str | None = None,
        prior: str = "sde",
        moments: Moments | None = None,
        scale_input: bool | None = None,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(sde, normalizer, moments, data_std, prior)
        if not callable(network):
            raise TypeError(f"network must be callable, got {type(network).__name__}")
        self.prediction, self._meaning = _named(PREDICTIONS, "prediction", prediction)
        self.clock, self._clock = _named(CLOCKS, "clock", clock)
        if variance not in (None, "learned_range"):
            raise ValueError(f"unknown variance {variance!r}; choose from None, learned_range")
        self.scale_input = self.prediction == "edm" if scale_input is None else scale_input
        if data_std is None and (self.prediction == "edm" or self.scale_input):
            raise ValueError("prediction 'edm' and scale_input need data_std, the data's standard deviation in normalised units")
        self.network, self.variance = network, variance
        if mask is not None and (mask.dtype != torch.bool or not bool(mask.any())):
            raise ValueError(f"mask must be Boolean with at least one True, got {mask.dtype} of shape {tuple(mask.shape)}")
        self.mask: Tensor | None
        self.register_buffer("mask", mask)

    def with_network(self, network: Callable[..., Tensor]) -> ScoreModel:
        """The same model around another network: averaged weights, say."""
        return ScoreModel(network, self.sde, **self.settings(), normalizer=self.normalizer, moments=self.moments, mask=self.mask)

    def settings(self) -> dict[str, Any]:
        """The settings that are plain values, and functions where prediction or clock is one, as the constructor takes them."""
        return {
            "prediction": self.prediction,
            "clock": self.clock,
            "data_std": self.data_std,
            "variance": self.variance,
            "prior": self.prior_name,
            "scale_input": self.scale_input,
        }

    @property
    def encoders(self) -> dict[str, Condition]:
        return getattr(self.network, "encoders", {})

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> dict[str, Tensor]:
        # Looked at here, once, and not in the loop, where a look at the values would wait for the device.
        found = super().conditions(cond, count, device)
        encoders, ours = self.encoders, isinstance(self.network, Network)
        strange = [name for name in found if name not in encoders] if ours else []
        if strange:
            known = f"conditions {', '.join(map(repr, encoders))}" if encoders else "no conditions"
            raise ValueError(f"the network takes {known}, got {', '.join(map(repr, strange))}")
        return {name: encoders[name].check(value) if name in encoders else value for name, value in found.items()}

    def null(self, name: str, value: Tensor) -> Tensor | None:
        of_network = getattr(self.network, "null", None)  # a network of the user's own may have one
        return of_network(name, value) if callable(of_network) else super().null(name, value)

    def valid(self, cond: Mapping[str, Tensor]) -> Tensor | None:
        of_items = valid_entries(self.encoders, cond)
        return of_items if self.mask is None else self.mask if of_items is None else self.mask & of_items

    def scales(self, t: Tensor) -> Scales:
        """c_in, skip, out and the network's clock at times `t`, each of the shape and dtype of `t`."""
        std = 1.0 if self.data_std is None else self.data_std
        skip, out = self._meaning(self.sde, t, std)
        c_in = torch.ones_like(t)
        if self.scale_input:
            alpha, sigma = self.sde.marginal(t)
            c_in = 1 / torch.sqrt(alpha**2 * std**2 + sigma**2)
        return Scales(c_in, skip, out, self._clock(self.sde, t))

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        columns = (column.tolist() for column in self.scales(torch.tensor(list(times), dtype=torch.float64)))
        dtype = self.network_dtype()
        for t, row in zip(times, zip(*columns, strict=True), strict=True):
            t.plans[self] = (Scales(*row), dtype)

    def network_dtype(self) -> torch.dtype | None:
        """The dtype of the network's first floating parameter, in which it is asked; None where it has none."""
        parameters = self.network.parameters() if isinstance(self.network, nn.Module) else ()
        return next((p.dtype for p in parameters if p.is_floating_point()), None)

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        valid = self.valid(cond)
        found = self._predict(only_valid(x, valid), t, **cond)
        return found if valid is None else Prediction(only_valid(found.denoised, valid), found.variance_fraction)

    def _predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        if isinstance(t, Tensor):
            at_t = self.scales(as_time(t))
            scales, dtype = Scales(*(like(value, x) for value in at_t)), self.network_dtype()
            clock = at_t.clock.to(device=x.device, dtype=clock_dtype(x.dtype)).expand(x.shape[0])
        else:
            if not isinstance(t, PlannedTime) or self not in t.plans:
                t = self.planned((float(t),))[float(t)]
            scales, dtype = t.plans[self]
            clock = x.new_full((x.shape[0],), scales.clock, dtype=clock_dtype(x.dtype))
        asked = x * scales.c_in if self.scale_input else x
        if dtype is not None and dtype != x.dtype:
            asked, clock = asked.to(dtype), clock.to(clock_dtype(dtype))
        output = self.network(asked, clock, **cond)
        if not isinstance(output, Tensor):
            raise TypeError(f"the network must return a tensor, got {type(output).__name__}")
        if x.requires_grad and not output.requires_grad and self.depends_on_state and torch.is_grad_enabled():
            raise TypeError(
                "the network's output has no gradient with respect to its input (detached, or computed under no_grad?); "
                "where it is meant to be the same for every state, say model.depends_on_state = False"
            )
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
            return Prediction(output, fraction)
        if isinstance(t, Tensor):
            return Prediction(torch.addcmul(x * scales.skip, output, scales.out), fraction)
        return Prediction((x * scales.skip).add_(output, alpha=scales.out), fraction)

    forward = predict


def clock_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: indices and log-SNRs are not what they say in a narrower dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


T = TypeVar("T", bound=Callable[..., Any])


def _named(registry: Mapping[str, T], what: str, given: str | T) -> tuple[Any, T]:
    """A name and its entry; for a function its name where it is registered under one, else itself."""
    if callable(given):
        return next((name for name, entry in registry.items() if entry is given), given), given
    name = canonical(registry, what, given)
    return name, registry[name]

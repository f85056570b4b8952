"""Our models in other libraries' samplers: k-diffusion's, azula's and deepinv's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.denoiser import Denoiser, like
from ..sdes.base import as_time

SLACK = 1e-3
"""Of a level beyond the model's ends that is taken for the end: other libraries work theirs out in float32."""


class SigmaDenoiser(nn.Module):
    """E[x_0 | x_0 + sigma eps = x] of a Denoiser, called as denoiser(x, sigma, **cond): k-diffusion's form, in normalised units.

    sigma_min, sigma_max: the levels between which the model is defined.
    """

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = _checked(model)
        ends = model.sde.half_log_snr(torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64))
        self.sigma_min, self.sigma_max = torch.exp(-ends).tolist()

    def forward(self, x: Tensor, sigma: Tensor | float, **cond: Tensor) -> Tensor:
        """x (B, *); sigma a number, () or (B,): the standard deviation of the noise in units of the normalised data.

        Raises ValueError for a level beyond the model's ends.
        """
        level = as_time(sigma).to(dtype=torch.float64, device=x.device)
        low, high = float(level.min()), float(level.max())
        if not (low >= self.sigma_min * (1 - SLACK) and high <= self.sigma_max * (1 + SLACK)):
            raise ValueError(f"sigma must be in {self.sigma_min:.4g} .. {self.sigma_max:.4g}, got {low:.4g} .. {high:.4g}")
        sde = self.model.sde
        t = sde.time_of(-torch.log(level)).clamp(sde.t_min, sde.t_max)
        return self.model.denoise(x * like(sde.marginal(t)[0], x), t, **cond)


def as_kdiffusion(model: Denoiser) -> SigmaDenoiser:
    """`model` for k-diffusion's samplers: sample_heun(as_kdiffusion(model), x, sigmas, extra_args=cond).

    x and the result are in normalised units (`model.normalizer.decode` makes pictures of them) and start at sigma_max times standard
    normal noise; sigmas between the result's `sigma_min` and `sigma_max`, 0 at the end. Conditions are tensors by name in `extra_args`.
    Raises TypeError for what is no Denoiser, ValueError when called beyond those ends.
    """
    return SigmaDenoiser(model)


def as_azula(model: Denoiser) -> Any:
    """`model` as an azula.denoise.Denoiser, for azula's samplers and guidance: DDIMSampler(as_azula(model), steps=64).

    Its schedule is the model's process, azula's time 0 .. 1 being t_min .. t_max. States are in normalised units; conditions are
    keyword tensors of the call.
    Raises TypeError for what is no Denoiser, ImportError, one line, where azula is not installed.
    """
    _checked(model)
    try:
        from azula.denoise import Denoiser as AzulaDenoiser
        from azula.denoise import DiracPosterior
        from azula.noise import Schedule
    except ImportError as error:
        raise ImportError("as_azula needs the package azula: pip install azula") from error
    first, span = model.sde.t_min, model.sde.t_max - model.sde.t_min

    class Path(Schedule):  # type: ignore[misc,unused-ignore]
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = model.sde.marginal(first + span * t.double())
            return alpha.to(t.dtype), sigma.to(t.dtype)

    class Adapter(AzulaDenoiser):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.schedule = model, Path()

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Any:
            return DiracPosterior(mean=model.denoise(x_t, first + span * t.double(), **cond))

    return Adapter()


def as_deepinv(model: Denoiser, value_range: Sequence[float] = (0.0, 255.0)) -> Any:
    """`model` as a deepinv.models.Denoiser, called as denoiser(x, sigma) with pictures of 0 .. 1 and sigma in their units.

    value_range: the values that are 0 and 1 there, in the data's own units.
    Raises TypeError for what is no Denoiser, ValueError for a model whose channels are scaled differently (its noise is not the same in
    all of them), ImportError, one line, where deepinv is not installed.
    """
    inner = SigmaDenoiser(model)
    low, high = (float(value) for value in value_range)
    normalizer = model.normalizer
    scale = torch.ones(1) if normalizer is None else getattr(normalizer, "scale", None)
    if not isinstance(scale, Tensor) or not torch.allclose(scale, scale.flatten()[0].expand_as(scale)):
        raise ValueError("as_deepinv needs one scale for all channels: the noise that deepinv adds is the same in all of them")
    unit = (high - low) / float(scale.flatten()[0])
    try:
        from deepinv.models import Denoiser as DeepinvDenoiser
    except ImportError as error:
        raise ImportError("as_deepinv needs the package deepinv: pip install deepinv") from error

    class Adapter(DeepinvDenoiser):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, sigma: Any, **cond: Tensor) -> Tensor:
            level = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
            level = level.flatten() if level.numel() == len(x) and level.ndim else level.reshape(())
            values = low + (high - low) * x
            z = values if normalizer is None else normalizer.encode(values)
            denoised = inner(z.to(x.dtype), unit * level, **cond)
            values = denoised if normalizer is None else normalizer.decode(denoised)
            return ((values - low) / (high - low)).to(x.dtype)

    return Adapter()


def _checked(model: Denoiser) -> Denoiser:
    if not isinstance(model, Denoiser):
        raise TypeError(f"a Denoiser such as ScoreModel is needed, got {type(model).__name__}")
    return model

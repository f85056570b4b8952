"""A chain as the process of a model: its betas by name, its index as a clock, and its posterior mean as a prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.score import CLOCKS, PREDICTIONS
from ..sdes import SDE, SDES
from ..sdes.base import check_positive
from .chain import ChainSDE, DiscreteChain, make_chain


class DDPMSDE(ChainSDE):
    """The SDE through the chain of `steps` steps with the betas registered as `betas`: DDPM's own schedules (see `BETAS`).

    beta_start, beta_end, beta, s, beta_max, span: settings of those betas that have them; None: their defaults.
    """

    def __init__(
        self,
        betas: str = "linear",
        steps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta: float | None = None,
        s: float | None = None,
        beta_max: float | None = None,
        span: float | None = None,
    ) -> None:
        given = {"beta_start": beta_start, "beta_end": beta_end, "beta": beta, "s": s, "beta_max": beta_max, "span": span}
        given = {name: check_positive(name, value) for name, value in given.items() if value is not None}
        self.settings = {"betas": betas, "steps": steps, **given}
        super().__init__(make_chain(betas, steps, **given))

    def __repr__(self) -> str:
        return SDE.__repr__(self)


def chain_of(sde: SDE, steps: int | None = None) -> DiscreteChain:
    """The chain of an SDE for training and sampling: its own where it is one, else `steps` (None: 1000) of its times, even in t, from
    t_min itself on, so that the denoising at t_min that ends `sample` is the chain's step at index 0.

    ValueError where the SDE's own chain has another number of steps.
    """
    own: DiscreteChain | None = getattr(sde, "chain", None)
    if own is None:
        count = 1000 if steps is None else steps
        return DiscreteChain.from_sde(sde, count, torch.linspace(sde.t_min, sde.t_max, count, dtype=torch.float64))
    if steps is not None and steps != len(own):
        raise ValueError(f"this SDE is a chain of {len(own)} steps, got {steps}: choose sde.settings.steps instead")
    return own


def _own_chain(sde: SDE, what: str) -> DiscreteChain:
    own: DiscreteChain | None = getattr(sde, "chain", None)
    if own is None:
        raise ValueError(f"{what} needs an SDE that is a chain, as make_sde('ddpm') or chain.to_sde(), got {sde!r}")
    return own


def _index(sde: SDE, t: Tensor) -> Tensor:
    return _own_chain(sde, "clock 'index'").position(t)


def _posterior_mean(sde: SDE, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    # mean = of_data x_0 + of_state x_i, solved for x_0; between the chain's times the coefficients run linearly in the index.
    chain = _own_chain(sde, "prediction 'posterior_mean'")
    of_data, of_state, _ = chain.posterior_coefficients(torch.arange(len(chain)))
    place = chain.position(t.double())
    left = place.floor().long().clamp(max=max(0, len(chain) - 2))
    right, u = (left + 1).clamp(max=len(chain) - 1), place - left

    def at(column: Tensor) -> Tensor:
        column = column.to(t.device)
        return (1 - u) * column[left] + u * column[right]

    return (-at(of_state) / at(of_data)).to(t.dtype), (1 / at(of_data)).to(t.dtype)


SDES["ddpm"] = DDPMSDE
CLOCKS["index"] = _index
PREDICTIONS["posterior_mean"] = _posterior_mean

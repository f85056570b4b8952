"""The guided flow as a proposal whose density the likelihood knows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..likelihood.flow import log_likelihood
from ..models.denoiser import Denoiser
from ..randomness import NoiseStream
from ..sampling.sample import sample
from .measurement import MEASURED, Measurement
from .mmps import MMPS
from .request import Posterior, Request, repeated

ACCEPT = ("weights", "metropolis")
_METROPOLIS = 0x3E7A0B


class ExactFlow(MMPS):
    """Importance or Metropolis sampling with the probability flow of MMPS, whose density q is known as exactly as the model's own p is.

        x ~ q,   w = p(x) p(y | x)/q(x),   p(y) = E_q[w]

    Both densities are those of data blurred by the noise of t_min (see `log_likelihood`). The mean weight is the evidence, and its standard
    error is that of a mean of independent weights. With accept="weights" the samples are weighted. With "metropolis" they are a chain of
    equal weights, the independence sampler of Metropolis and Hastings (Tierney 1994; Liu 1996):

        x' ~ q is taken with probability min(1, w(x')/w(x)), and x comes again otherwise

    The chain starts at one of the proposals, drawn by their weights, and goes through them in order. A state of large weight comes several
    times. `acceptance` is the share of proposals that were taken; `ess` is of the proposals' weights in either case.

    Exact as `count` grows, where q reaches all that the posterior holds. The flow, its density and p's are integrated adaptively: hundreds
    of calls a sample, each of q's with as many derivatives as data have dimensions. Linear operators, noise of positive std.

    rtol: of the integrators. accept: "weights" or "metropolis". directions: see `MMPS`. `solver` and `steps` are not looked at.
    """

    linear = True
    noisy = True

    def __init__(self, model: Denoiser, measurement: Measurement, directions: int = 8, rtol: float = 1e-4, accept: str = "weights") -> None:
        super().__init__(model, measurement, directions)
        if accept not in ACCEPT:
            raise ValueError(f"accept must be one of {', '.join(ACCEPT)}, got {accept!r}")
        self.rtol, self.accept = rtol, accept

    def draw(self, request: Request) -> Posterior:
        batch, count = len(request.y), request.count
        cond = repeated(request, count)
        common: dict[str, Any] = {"rtol": self.rtol, "atol": self.rtol}
        first = request.index_offset * count
        settings = {name: value for name, value in request.settings.items() if name != "grid"}
        out = sample(self, (batch * count, *request.shape), "ode", cond=cond, index_offset=first, final="raw", **common, **settings)
        shared: dict[str, Any] = {**common, "seed": settings["seed"], "index_offset": first, "batch_size": settings["batch_size"]}
        own = {name: value for name, value in cond.items() if name in request.cond}
        of_model = log_likelihood(self.model, out.x, cond=own or None, **shared)
        of_flow = log_likelihood(self, out.x, cond=cond, **shared)
        likelihood = self.measurement.log_prob(cond[MEASURED], out.x)
        log_weights = (of_model.log_prob.double() + likelihood.double() - of_flow.log_prob.double()).reshape(batch, count)
        log_weights = torch.where(torch.isnan(log_weights), -torch.inf, log_weights)
        shares = log_weights.softmax(1)
        spread = torch.sqrt((count * shares.square().sum(1) - 1).clamp_min(0) / max(1, count - 1))
        x, acceptance = out.x.reshape(batch, count, *request.shape), None
        if self.accept == "metropolis":
            stream = NoiseStream(settings["seed"] ^ _METROPOLIS, request.index_offset, batch, (count + 1,), torch.float64, x.device)
            chosen, acceptance = chain(log_weights, torch.special.ndtr(stream.draw()))
            x = x[torch.arange(batch, device=x.device)[:, None], chosen]
        return Posterior(
            x=x,
            log_weights=log_weights if acceptance is None else None,
            ess=1 / shares.square().sum(1),
            log_evidence=torch.logsumexp(log_weights, 1) - math.log(count),
            log_evidence_error=spread,
            nfe=(out.nfe + of_model.nfe + of_flow.nfe).reshape(batch, count).sum(1),
            acceptance=acceptance,
        )


def chain(log_weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Which proposal each state of an independence sampler is, (B, count), and the share of proposals that were taken, (B,).

    log_weights: (B, count) float64, log p/q of the proposals. uniform: (B, count + 1), the last of which draws the start.
    """
    count = log_weights.shape[1]
    now = torch.searchsorted(log_weights.softmax(1).cumsum(1), uniform[:, -1:].contiguous()).clamp_max(count - 1)
    log_uniform, states, taken = uniform.log(), [], torch.zeros_like(uniform[:, 0])
    for k in range(count):
        better = log_uniform[:, k : k + 1] < log_weights[:, k : k + 1] - log_weights.gather(1, now)
        now = torch.where(better, k, now)
        states.append(now)
        taken = taken + better[:, 0]
    return torch.cat(states, 1), taken / count

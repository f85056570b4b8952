"""The guided flow as a proposal whose density the likelihood knows."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..likelihood.flow import log_likelihood
from ..models.denoiser import Denoiser
from ..sampling.sample import sample
from .measurement import MEASURED, Measurement
from .mmps import MMPS
from .request import Posterior, Request, repeated


class ExactFlow(MMPS):
    """Importance sampling with the probability flow of MMPS, whose density q is known as exactly as the model's own p is.

        x ~ q,   w = p(x) p(y | x)/q(x),   p(y) = E_q[w]

    Both densities are those of data blurred by the noise of t_min (see `log_likelihood`). The samples are weighted, the mean weight is the
    evidence, and its standard error is that of a mean of independent weights.

    Exact as `count` grows, where q reaches all that the posterior holds. The flow, its density and p's are integrated adaptively: hundreds
    of calls a sample, each of q's with as many derivatives as data have dimensions. Linear operators, noise of positive std.

    rtol: of the integrators. directions: see `MMPS`. `solver` and `steps` are not looked at.
    """

    linear = True
    noisy = True

    def __init__(self, model: Denoiser, measurement: Measurement, directions: int = 8, rtol: float = 1e-4) -> None:
        super().__init__(model, measurement, directions)
        self.rtol = rtol

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
        return Posterior(
            x=out.x.reshape(batch, count, *request.shape),
            log_weights=log_weights,
            ess=1 / shares.square().sum(1),
            log_evidence=torch.logsumexp(log_weights, 1) - math.log(count),
            log_evidence_error=spread,
            nfe=(out.nfe + of_model.nfe + of_flow.nfe).reshape(batch, count).sum(1),
        )

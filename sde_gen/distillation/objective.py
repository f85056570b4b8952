"""What a flow map is trained to: the flow's own states further on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import mean_valid
from ..models.flow_map import FlowMap
from ..models.score import ScoreModel
from ..sampling.plan import choose
from ..training.objective import Draw, Objective
from ..training.settings import TrainSettings
from ..training.validation import Validation

METHODS = ("regression", "progressive")
ANY = 0.25
"""The share of jumps between any two of the times; the others are those of 1, 2, 4, ... even steps, of each number as many."""
DECAY = 0.99
"""Of the average of the weights whose jumps teach the longer ones: the last hundred steps or so. The weights themselves run away."""
KNEE = 0.03
"""In units of the data's standard deviation: errors well above it count by their size, well below it by their square."""


class JumpObjective(Objective):
    """The error of the mean prediction G of jumps between two times of a trajectory of the flow.

        loss = sqrt(mean_d (G(x_t, t, s) - G*)^2 + c^2) - c,   G* = (x_s - w_x x_t)/w_g,   d over valid entries

    Its items are trajectories (B, K + 1, *) at the flow map's times, x_t and x_s two states of one.

    method: "regression": x_s is the trajectory's own. "progressive": it is, where t and s are neighbours among the times; else it is
        state after two jumps of the flow map's own, by an average of its weights, with a time half-way between them.

    The loss is pseudo-Huber's (Song and Dhariwal 2023, arXiv:2310.14189): G* is a function of x_t, so that its minimiser is the one of
    the square, and few trajectories that are hard to follow do not drown the others. Luhman and Luhman 2021, arXiv:2101.02388
    (regression); Salimans and Ho 2022, arXiv:2202.00512; Frans et al. 2024, arXiv:2410.12557 (progressive).
    Raises ValueError for an unknown method.
    """

    def __init__(self, settings: TrainSettings, flow: FlowMap, method: str = "regression") -> None:
        super().__init__(settings, flow)
        choose("method", method, METHODS)
        self.method, self.last = method, len(flow.times) - 1
        self.times: Tensor
        self.register_buffer("times", torch.tensor(flow.times, dtype=torch.float64), persistent=False)
        self.live: list[Any] = []  # the network that is trained, as it was asked last
        self.own: FlowMap | None = None
        if method == "progressive":
            if settings.shard is not None:
                raise ValueError(f"method 'progressive' averages whole weights: leave shard {settings.shard!r} out")
            self.own = flow.with_network(copy.deepcopy(flow.network)).eval().requires_grad_(False)

    def encode(self, model: ScoreModel, x: Tensor) -> Tensor:
        return x.float()

    def validation(self, model: ScoreModel, held: Tensor, cond: dict[str, Tensor]) -> Validation:
        assert isinstance(model, FlowMap)
        return JumpValidation.of(model, held, cond)

    def draw(self, model: ScoreModel, shape: Sequence[int], generator: torch.Generator, drop: Mapping[str, float] | None = None) -> Draw:
        """Where the jumps of a batch of `shape` (B, K + 1, *) begin and end: `level` is (B, 2), numbers of the times."""
        count, device = shape[0], generator.device
        u = torch.rand(count, 3, generator=generator, device=device)
        first = (u[:, 0] * self.last).long()
        free = torch.stack((first, first + 1 + (u[:, 1] * (self.last - first)).long()), 1)
        levels = int(math.log2(self.last)) + 1
        steps = 2 ** (u[:, 0] * levels).long()
        begin = (u[:, 1] * steps).long()
        even = torch.stack([(k * self.last / steps).round().long() for k in (begin, begin + 1)], 1)
        level = torch.where((u[:, 2] < ANY)[:, None], free, even)
        return Draw(level, torch.ones(count, dtype=torch.float64, device=device), torch.empty(count, 0, device=device))

    def forward(self, model: ScoreModel, x_0: Tensor, draw: Draw, **cond: Any) -> Tensor:
        """The losses (B,) of trajectories x_0 (B, K + 1, *)."""
        assert isinstance(model, FlowMap)
        rows, (i, j) = torch.arange(len(x_0), device=x_0.device), draw.level.to(x_0.device).unbind(1)
        times = self.times.to(x_0.device)
        x, end = x_0[rows, i], x_0[rows, j]
        if self.own is not None:
            self.live = [model.network]
            with torch.no_grad():
                between = times[(i + j) // 2]
                own = self.own.jump(self.own.jump(x, times[i], between, **cond), between, times[j], **cond)
            end = torch.where((j - i > 1).reshape(-1, *[1] * (x.ndim - 1)), own, end)
        of_x, of_g = model.weights(times[i], times[j], x)
        error = model.mean_prediction(x, times[i], times[j], **cond) - (end - of_x * x) / of_g
        valid = model.valid({name: value for name, value in cond.items() if name in model.encoders})
        if valid is not None:
            error = torch.where(valid, error, torch.zeros((), dtype=error.dtype, device=error.device))
        knee = KNEE * (model.data_std or 1.0)
        return (mean_valid(error.square(), valid) + knee**2).sqrt() - knee

    @property
    def learns(self) -> bool:
        return self.own is not None

    @torch.no_grad()
    def observe(self, draw: Draw, losses: Tensor) -> None:
        """Take the weights as they are before this step into the average."""
        for network in self.live:
            assert self.own is not None
            torch._foreach_lerp_(list(self.own.network.parameters()), list(network.parameters()), 1 - DECAY)


class JumpValidation(Validation):
    """Held-out trajectories: the squared error at the data of one jump from each time, over the mean square of the data.

    `linear` is the same for the straight line with which distillation begins, and levels are the half log-SNR at the times.
    """

    @classmethod
    def of(cls, flow: FlowMap, states: Tensor, cond: dict[str, Tensor]) -> JumpValidation:
        lambdas = flow.sde.half_log_snr(torch.tensor(flow.times[:-1], dtype=torch.float64)).tolist()
        made = cls(states, list(flow.times), lambdas, [], [], cond)
        was = flow.training
        linear = made.measure(flow.eval())
        flow.train(was)
        return cls(states, list(flow.times), lambdas, [], linear, cond)

    @torch.no_grad()
    def measure(self, model: ScoreModel, items: int | None = None) -> list[float]:
        assert isinstance(model, FlowMap)
        rows = torch.arange(len(self.x_0))[:items]  # the trajectories are draws
        cond = {name: value[rows.to(value.device)] for name, value in self.cond.items()}
        x = self.x_0[rows.to(self.x_0.device)]
        data, end = x[:, -1], self.times[-1]
        errors = [(model.jump(x[:, k], t, end, **cond) - data).square().mean() for k, t in enumerate(self.times[:-1])]
        return [float(error / data.square().mean()) for error in errors]

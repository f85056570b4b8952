"""From a score model to a flow map."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..data import rows_drawn
from ..devices import find_device
from ..guidance import Guided
from ..guidance.combine import same_path
from ..models.denoiser import Denoiser
from ..models.flow_map import FlowMap, flow_map_of
from ..models.score import ScoreModel
from ..networks.base import check_count
from ..sampling.plan import choose
from ..solvers import make_grid
from ..training import TrainResult, TrainSettings, fit
from .objective import METHODS, JumpObjective
from .trajectories import Trajectories, draw_trajectories

NODES = 16
DRAWN, MOST_NUMBERS = 8192, 1 << 28
"""Trajectories where nothing is asked for, and the numbers that they hold at most."""
HELD_OUT = 128
SHARE = 0.25
"""Of `max_seconds` for the trajectories at most."""
DEFAULTS: dict[str, Any] = {"steps": 3000, "batch": 64, "lr": 2e-3, "warmup": 50, "ema_width": 0.05}
"""Settings of the training where nothing else is asked for."""
OF_NOISE = ("objective", "chain_steps", "indices", "weighting", "times", "drop", "loss", "reference")
"""Settings of a training on noised data, which jumps have no use for."""


def distill(
    model: ScoreModel,
    method: str = "regression",
    cond: Mapping[str, Any] | None = None,
    strengths: Sequence[float] | None = None,
    drop: float = 0.1,
    teacher: Denoiser | None = None,
    nodes: int = NODES,
    trajectories: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> FlowMap:
    """A flow map with the weights of `model`, trained to jump along its flow: samples in one, two or four network calls.

    The flow's trajectories are computed once, by a solver of `nodes` calls, and jumps between any two of their states are learned; see
    `JumpObjective`. No derivatives of the network with respect to its input are taken. What comes back is sampled by
    `sample(flow, shape, steps=4)`, kept by `save`, and is no Denoiser: likelihoods, guidance, solvers and posteriors refuse it.

    method: "regression": a jump ends where the trajectory does. "progressive": a long jump ends where two of the flow map's own of half
        its length do, so that the trajectories teach the shortest alone; on a mixture it was the less exact of the two.
    cond: conditions (M, *) by name, of which the trajectories are given rows, each left out with the probability `drop`; None: none.
    strengths: (low, high): trajectories are guided (rule "cfg") with strengths between these; "strength" is then a condition.
    teacher: whose flow is followed, along the same SDE: a guided model, or a closed form; None: the model itself.
    nodes: times between which it can jump, as many as steps that `sample` can take.
    trajectories: how many are computed, each for `nodes` network calls; None: 8192, fewer where they would hold too many numbers.
    device: None takes CUDA where present, else the CPU.
    settings: those of `TrainSettings`, by default 3000 steps of 64 jumps; with max_seconds a quarter of it may go into the trajectories.

    Raises TypeError or ValueError, one line, for a model or settings that do not fit; SolverError where the flow is not finite.
    """
    chosen = settings_of(settings)
    flow = prepare_flow_map(model, method, strengths, nodes, teacher, chosen.seed).to(where := find_device(device))
    taught_by = (model if teacher is None else teacher).to(where)
    count = count_of(flow, trajectories)
    seconds = None if chosen.max_seconds is None else SHARE * chosen.max_seconds
    began = time.monotonic()
    drawn = draw_trajectories(taught_by, flow, count, check_conditions(taught_by, cond, where), drop, chosen.seed, seconds, progress)
    if chosen.max_seconds is not None:
        left = max(chosen.max_seconds - (time.monotonic() - began), 1e-3)
        chosen = settings_of(settings | {"max_seconds": left})
    found = train_flow_map(flow, drawn, chosen, method, device=where, progress=progress).model
    assert isinstance(found, FlowMap)
    return found


def settings_of(given: Mapping[str, Any]) -> TrainSettings:
    """`given` over `DEFAULTS`; TypeError for one that a distillation does not have."""
    known = [one.name for one in fields(TrainSettings) if one.name not in OF_NOISE]
    strange = sorted(set(given) - set(known))
    if strange:
        raise TypeError(f"distill has no setting {', '.join(strange)}; it takes {', '.join(known)}")
    return TrainSettings(**DEFAULTS | dict(given), drop=0.0)


def prepare_flow_map(
    model: ScoreModel, method: str, strengths: Sequence[float] | None, nodes: int, teacher: Denoiser | None = None, seed: int = 0
) -> FlowMap:
    """The flow map that a distillation begins with; TypeError or ValueError where there can be none."""
    if not isinstance(model, ScoreModel) or isinstance(model, FlowMap):
        raise TypeError(f"distill takes the ScoreModel whose network a flow map is made of, got {type(model).__name__} (see teacher)")
    choose("method", method, METHODS)
    check_count("nodes", nodes, 1)
    if teacher is not None and not isinstance(teacher, Denoiser):
        raise TypeError(f"teacher must be a Denoiser, got {type(teacher).__name__}")
    if teacher is not None and not same_path(teacher.sde, model.sde):
        raise ValueError("the teacher and the model must lie along one SDE")
    if strengths is not None and isinstance(teacher, Guided):
        raise ValueError(f"the teacher is guided already, with strength {teacher.strength:g}: leave strengths out, or the teacher")
    if strengths is not None and not model.encoders:
        raise ValueError("strengths are of guidance towards conditions, and this network takes none")
    spread = (model.data_std or 1.0,) * 2 if model.moments is None else model.moments.spread()
    times = make_grid(model.sde, "angle", model.sde.t_max, model.sde.t_min, nodes, spread)
    return flow_map_of(model, times.tolist(), strengths, seed)


def count_of(flow: FlowMap, asked: int | None) -> int:
    """How many trajectories: as many as asked for, else `DRAWN` or as many as `MOST_NUMBERS` hold."""
    if asked is not None:
        return check_count("trajectories", asked, 2)
    return max(64, min(DRAWN, MOST_NUMBERS // (len(flow.times) * math.prod(flow.network.shape))))


def check_conditions(model: Denoiser, cond: Mapping[str, Any] | None, device: torch.device) -> dict[str, Tensor]:
    """The conditions of which trajectories are given rows; ValueError or TypeError where they do not fit the model."""
    if not cond:
        return {}
    first = next(iter(cond.values()))
    return model.conditions(cond, len(first), device)


def train_flow_map(flow: FlowMap, drawn: Trajectories, settings: TrainSettings, method: str, **how: Any) -> TrainResult:
    """Train `flow` on trajectories, at most `HELD_OUT` of which tell how far it has come; how: other arguments of `fit`."""
    flow.network.requires_grad_(True)
    held = rows_drawn(len(drawn), min(HELD_OUT, len(drawn) // 8 + 1), settings.seed)
    kept = torch.ones(len(drawn), dtype=torch.bool)
    kept[held] = False
    cond = {name: value[kept.to(value.device)] for name, value in drawn.cond.items()}
    of_held = {name: value[held.to(value.device)] for name, value in drawn.cond.items()}
    objective = JumpObjective(settings, flow, method)
    return fit(flow, drawn.states[kept], settings, cond, drawn.states[held], held_out_cond=of_held, objective=objective, **how)

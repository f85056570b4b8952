"""Edits inside a mask, the rest left to the bit as it is: blended diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import as_floats
from ..models.denoiser import Denoiser
from ..randomness import NoiseStream
from ..sampling.sample import sample
from ..solvers import Solver
from .ddnm import DDNM
from .measurement import MEASURED, Measurement
from .noise import Gaussian
from .operators import Mask


def edit(
    model: Denoiser,
    x: Tensor | np.ndarray,
    mask: Tensor | np.ndarray,
    cond: Mapping[str, Any] | None = None,
    t: float | None = None,
    solver: str | Solver = "ancestral",
    steps: int | None = 50,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Data x (N, *) drawn anew where `mask` is True, given the rest and the conditions; what is not masked comes back to the bit.

    At every step the denoised data are x outside of the mask, so that the state there runs along x's own path, which is to paste x with
    the state's noise (Avrahami et al. 2022, arXiv:2111.14818, algorithm 2). What is inside learns of the rest through the network alone:
    it fits in, and is no posterior sample (`posterior` draws those).

    model: any Denoiser; one that is guided (`guide`, `guidance.Classifier` with CLIP) for edits by a text.
    mask: Boolean, of one item's shape or broadcast to it, or one for each, (N, *): True where x is drawn anew.
    cond: conditions of the model by name, N rows each.
    t: the depth of the edit: the state begins at x with the noise of time t, so that a small t keeps what is masked like x. None: t_max,
        where nothing is left of it.
    solver, steps, seed, options: of `sample`.

    Raises ValueError or TypeError for a mask that does not fit, is True nowhere or everywhere, or a t out of its range.
    """
    x = as_floats(x, "x")
    place = torch.as_tensor(mask)
    if place.dtype != torch.bool:
        raise TypeError(f"mask must be Boolean, True where x is drawn anew, got {place.dtype}")
    try:
        place = place.broadcast_to(x.shape)
    except RuntimeError:
        raise ValueError(f"mask of shape {tuple(place.shape)} does not fit data of shape {tuple(x.shape)}") from None
    if not bool(place.flatten(1).any(1).all()) or bool(place.all()):
        raise ValueError("mask must be True somewhere in each item, where x is drawn anew, and not everywhere")
    sde = model.sde
    if t is not None and not sde.t_min < t <= sde.t_max:
        raise ValueError(f"t must be in ({sde.t_min:.6g}, {sde.t_max:.6g}], got {t!r}")
    device = next((p.device for p in model.parameters()), x.device)
    x, place = x.to(device), place.to(device)
    blended = DDNM(model, Measurement(Mask(), Gaussian(0.0)))
    given = {**(cond or {}), MEASURED: torch.where(place, torch.nan, x)}
    start: dict[str, Any] = {}
    if t is not None:
        alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        z = x if model.normalizer is None else model.normalizer.encode(x)
        noise = NoiseStream(
            seed, options.get("index_offset", 0), len(z), z.shape[1:], z.dtype, device
        ).draw()  # what `sample` draws first, and does not use
        start = {"x_init": alpha * z + sigma * noise, "t_start": t}
    out = sample(blended, x.shape, solver, steps, seed=seed, cond=given, **start, **options)
    return torch.where(place, out.x.to(x), x)

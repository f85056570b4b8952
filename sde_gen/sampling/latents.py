"""Latents of the probability flow: encode data, interpolate between samples, mix them at a chosen depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import as_floats
from ..data.captions import is_texts, text_tensor
from ..models.denoiser import Denoiser
from .sample import sample


def encode(model: Denoiser, x: Tensor | np.ndarray, solver: str = "ode", **options: Any) -> Tensor:
    """The latents of data x (N, *), a tensor or an array in the data's own units: the probability flow followed from t_min to t_max.

    `solver` is a deterministic one and `options` are `sample`'s; the result is the state at t_max in normalised units, which
    `sample(model, z.shape, solver, x_init=z, final="raw")` carries back to x. With solver="ddim" this is DDIM inversion; along a
    chain: grid=chain.times. Song et al. 2021, arXiv:2011.13456, section 4.3; Song et al. 2020, arXiv:2010.02502, section 4.3.
    """
    x = as_floats(x, "x")
    ends: dict[str, Any] = {} if isinstance(options.get("grid"), Tensor) else {"t_start": model.sde.t_min, "t_end": model.sde.t_max}
    return sample(model, x.shape, solver, x_init=x, x_init_units="data", final="state", **ends, **options).x


def interpolate(model: Denoiser, a: Tensor | np.ndarray, b: Tensor | np.ndarray, n: int, solver: str = "ode", **options: Any) -> Tensor:
    """`n` steps from each of a to each of b (N, *), in the data's own units, on the sphere between their latents: (n, N, *).

    The latents z_a and z_b are joined by sin((1 - w) angle) z_a + sin(w angle) z_b over sin(angle), w = 0, ..., 1, which keeps
    their norm. Ends are a and b to the solver's accuracy. Song et al. 2020, arXiv:2010.02502, section 5.3.
    """
    a, b = _pair(a, b, n)
    cond = options.pop("cond", None)
    z_a, z_b = (encode(model, x, solver, cond=cond, **options) for x in (a, b))
    flat_a, flat_b = z_a.flatten(1), z_b.flatten(1)
    cosine = (flat_a * flat_b).sum(1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1))
    angle = torch.arccos(cosine.clamp(-1 + 1e-6, 1 - 1e-6)).reshape(-1, *(1,) * (a.ndim - 1))
    shares = torch.linspace(0, 1, n, dtype=z_a.dtype, device=z_a.device).tolist()
    path = torch.stack([(torch.sin((1 - w) * angle) * z_a + torch.sin(w * angle) * z_b) / torch.sin(angle) for w in shares])
    # Step k of pair i lies at k N + i: each pair keeps its conditions all the way.
    given = {name: text_tensor(value) if is_texts(value) else torch.as_tensor(value) for name, value in (cond or {}).items()}
    repeated = None if cond is None else {name: torch.cat([value] * n) for name, value in given.items()}
    out = sample(model, path.flatten(0, 1).shape, solver, x_init=path.flatten(0, 1), final="raw", cond=repeated, **options)
    return out.x.reshape(path.shape)


def mix(
    model: Denoiser,
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    n: int,
    t: float,
    solver: str = "ancestral",
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """`n` mixtures of each of a with each of b (N, *), in the data's own units, made at diffusion time t: (n, N, *).

    Both are noised to time t with the same noise, mixed (1 - w) x_a + w x_b for w = 0, ..., 1, and brought back by `solver`, a
    stochastic one by default with the same noise for every w. Small t mixes pixels, large t what the images show.
    Ho et al. 2020, arXiv:2006.11239, section 4.4 and figure 9.
    """
    a, b = _pair(a, b, n)
    sde = model.sde
    if not sde.t_min < t <= sde.t_max:
        raise ValueError(f"t must be in ({sde.t_min:.6g}, {sde.t_max:.6g}], got {t!r}")
    device = next((p.device for p in model.parameters()), a.device)
    clean_a, clean_b = (x.to(device) if model.normalizer is None else model.normalizer.encode(x.to(device)) for x in (a, b))
    alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed), dtype=a.dtype).to(device)
    results = []
    for w in torch.linspace(0, 1, n, dtype=torch.float64).tolist():
        state = alpha * ((1 - w) * clean_a + w * clean_b) + sigma * noise
        results.append(sample(model, a.shape, solver, seed=seed, x_init=state, t_start=t, **options).x)
    return torch.stack(results)


def _pair(a: Tensor | np.ndarray, b: Tensor | np.ndarray, n: int) -> tuple[Tensor, Tensor]:
    a, b = as_floats(a, "a"), as_floats(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be a whole number of at least 2, got {n!r}")
    return a, b

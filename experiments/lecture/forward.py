"""Data drowns in noise: the same photograph along five schedules, and how fast each loses it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from sklearn.datasets import load_sample_image

from sde_gen import SDE, make_chain, make_sde
from sde_gen.report import figures as fig
from sde_gen.report.images import tiles

from .lesson import Lesson, Numbers, Studio

SIDE, SHOWN = 240, 60
"""Pixels of the photograph's side, and of its side on the page: each shown is the mean of a square of the photograph's."""
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SEEN = 2.0
"""Of |half log-SNR|: below it an image is neither nearly clean nor nearly lost."""
BAND = "#F0C419"
PATHS, STEPS = 50_000, 500
"""Of the simulation that checks f and g."""


def resized(x: torch.Tensor, side: int) -> torch.Tensor:
    """Images (B, C, H, W) as (B, C, side, side), each pixel the mean of what it covers."""
    return torch.nn.functional.interpolate(x, (side, side), mode="area")


def photograph() -> torch.Tensor:
    """A square of a photograph that scikit-learn ships, (1, 3, SIDE, SIDE) in [-1, 1]."""
    x = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None].double()
    return resized(x[..., 10:394, 130:514], SIDE) / 127.5 - 1


def schedules() -> dict[str, SDE]:
    return {
        "VP, linear β": make_sde("vp"),
        "VP, quadratic β": make_chain("quadratic", 1000).to_sde(),
        "VP, cosine": make_sde("cosine"),
        "sub-VP": make_sde("subvp"),
        "VE": make_sde("ve"),
    }


def shown(x: torch.Tensor, alpha: float, sigma: float, noise: torch.Tensor) -> torch.Tensor:
    """A state as the page has room for it, at the photograph's own mean and variance: of VE's noise a picture shows nothing else."""
    small, state = resized(x, SHOWN), resized(alpha * x + sigma * noise, SHOWN)
    return (state - state.mean()) * (small.std() / state.std()) + small.mean()


def simulated(sde: SDE, t: float, paths: int, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of x_t by `steps` small steps dx = f x dt + g dw from x_0 = 1: what alpha and sigma should be."""
    times = torch.linspace(sde.t_min, t, steps + 1, dtype=torch.float64)
    alpha, sigma = sde.marginal(times[0])
    generator = torch.Generator().manual_seed(1)
    x = alpha + sigma * torch.randn(paths, 1, generator=generator, dtype=torch.float64)
    for before, after in pairwise(times):
        middle, dt = (before + after) / 2, after - before
        x = x + sde.drift(x, middle) * dt + sde.diffusion(middle) * dt.sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return float(x.mean()), float(x.std())


def draw(studio: Studio) -> Numbers:
    x = photograph()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    rows = schedules()
    figure = fig.new_figure(11, 9.4)
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.0, 1))
    grid = top.subplots(len(rows), len(TIMES))
    middle = {}
    fine = torch.linspace(0, 1, 2001, dtype=torch.float64)
    curves = bottom.subplots(1, 2)
    for axes, (low, high) in zip(curves, ((-SEEN, SEEN), torch.sigmoid(torch.tensor([-2 * SEEN, 2 * SEEN])).tolist()), strict=True):
        axes.axhspan(low, high, color=BAND, alpha=0.35, linewidth=0, label="|λ| < 2")
    for (name, sde), line, colour in zip(rows.items(), grid, (fig.BLUE, fig.GREEN, fig.ORANGE, fig.PURPLE, fig.GREY), strict=True):
        for share, axes in zip(TIMES, line, strict=True):
            t = max(sde.t_min, share * sde.t_max)
            alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
            level = math.log(alpha / sigma)
            axes.imshow(tiles(shown(x, alpha, sigma, noise), (-1, 1))[0], interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(f"{level:+.1f}".replace("-", "\N{MINUS SIGN}"), fontsize=fig.TEXT - 1.5, labelpad=2)
            if abs(level) < SEEN:
                axes.spines[:].set(color=BAND, linewidth=3.5)
            if sde is rows["VP, linear β"]:
                axes.set_title(f"t = {share:.1f}", fontsize=fig.TEXT)
        line[0].set_ylabel(name.replace(", ", ",\n"), fontsize=fig.TEXT)
        t = (fine * sde.t_max).clamp(min=sde.t_min)
        level = sde.half_log_snr(t)
        middle[name] = float((level.abs() < SEEN).double().mean())
        for axes, values in zip(curves, (level, torch.sigmoid(2 * level)), strict=True):
            axes.plot(fine.numpy(), values.numpy(), color=colour, label=name, linewidth=1.9)
    top.suptitle("λ under each state; in a frame of gold: neither nearly clean nor nearly lost, |λ| < 2", fontsize=fig.TEXT + 1)
    fig.style(curves[0], "λ = log(α/σ), half the log signal-to-noise ratio", "t", "λ")
    fig.style(curves[1], "Share of the signal in the variance  α²/(α² + σ²)", "t", "")
    fig.legend(curves[1])
    studio.save(figure, "forward")
    last = {key: float(rows[name].half_log_snr(rows[name].t_max)) for key, name in (("linear_end", "VP, linear β"), ("ve_end", "VE"))}
    short = dict(zip(("linear", "quadratic", "cosine", "subvp", "ve"), middle.values(), strict=True))
    count, steps, half = studio.count(PATHS, 2000), studio.count(STEPS, 100), 0.5
    checked = {}
    for name, key in (("VP, linear β", "linear"), ("VE", "ve")):
        alpha, sigma = (float(value) for value in rows[name].marginal(torch.tensor(half, dtype=torch.float64)))
        mean, std = simulated(rows[name], half, count, steps)
        checked |= {f"{key}_alpha": alpha, f"{key}_sigma": sigma, f"{key}_mean": mean, f"{key}_std": std}
        checked[f"{key}_error"] = sigma / math.sqrt(count)
    return short | checked | {key: math.exp(value) for key, value in last.items()} | {"paths": count, "steps": steps}


LESSON = Lesson(
    "Data drowns in noise",
    r"""
A diffusion process mixes data with more and more noise until nothing of the data is left: $\alpha$ says how much of the data stands,
$\sigma$ how much noise is in. The same mixture comes of many small steps, each of which shrinks x a little and adds a little fresh noise,
the stochastic differential equation $\mathrm{d}x = f x\, \mathrm{d}t + g\, \mathrm{d}w$. Its f and g follow from $\alpha$ and $\sigma$.
The mean of x shrinks by f alone, $\alpha' = f \alpha$; the variance of the noise shrinks by 2f and grows by what comes in,
$(\sigma^2)' = 2 f \sigma^2 + g^2$. So

$$f = \frac{\alpha'}{\alpha}, \qquad g^2 = (\sigma^2)' - 2 f \sigma^2 .$$

What matters of it all is one curve, the signal-to-noise ratio $\alpha^2/\sigma^2$, or half its logarithm

$$\lambda(t) = \log \frac{\alpha(t)}{\sigma(t)} .$$

The variance-preserving kinds (VP) shrink the data as the noise grows; the variance-exploding one (VE) has $\alpha = 1$ and drowns it. A
schedule says how long to stay at each ratio. Of the time from t = 0 to t = 1 the cosine schedule spends <<cosine:.0%>> where an image is
neither nearly clean nor nearly lost, $|\lambda| < 2$ (a signal-to-noise ratio between 1/55 and 55; the golden band and frames), linear
betas spend <<linear:.0%>>: their last third is nothing but noise. All rows have the same noise. The photograph has 240x240 pixels, of
which the page shows the means of 4x4, and each state is shown at the photograph's own mean and variance.
""",
    (
        "share of the time from 0 to 1 with |lambda| < 2: linear <<linear:.1%>>, quadratic <<quadratic:.1%>>, cosine <<cosine:.1%>>,"
        " sub-VP <<subvp:.1%>>, VE <<ve:.1%>>",
        "alpha / sigma at the end: VP <<linear_end:.4f>>, VE <<ve_end:.4f>>",
        "<<steps:,>> steps of dx = f x dt + g dw to t = 0.5, <<paths:,>> paths from x_0 = 1, mean and standard deviation:",
        "  VP, linear: <<linear_mean:.4f>> and <<linear_std:.4f>>; alpha <<linear_alpha:.4f>>, sigma <<linear_sigma:.4f>>"
        " (standard error of the mean <<linear_error:.4f>>)",
        "  VE:         <<ve_mean:.4f>> and <<ve_std:.4f>>; alpha <<ve_alpha:.4f>>, sigma <<ve_sigma:.4f>> (<<ve_error:.4f>>)",
    ),
    "A photograph of a flower drowning in noise along five schedules, framed where neither clean nor lost, and their curves over time",
    draw,
)

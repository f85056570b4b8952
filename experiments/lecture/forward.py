"""Data drowns in noise: the same photograph along five schedules, and how fast each loses it."""

from __future__ import annotations

import math

import torch
from sklearn.datasets import load_sample_image

from sde_gen import SDE, make_chain, make_sde
from sde_gen.report import figures as fig
from sde_gen.report.images import tiles

from .lesson import Lesson, Numbers, Studio

SIDE = 64
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SEEN = 2.0
"""Of |half log-SNR|: below it an image is neither nearly clean nor nearly lost."""


def photograph() -> torch.Tensor:
    """A square of a photograph that scikit-learn ships, (1, 3, SIDE, SIDE) in [-1, 1]."""
    x = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None].double()
    x = x[..., 10:394, 130:514]
    return torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="area") / 127.5 - 1


def schedules() -> dict[str, SDE]:
    return {
        "VP, linear β": make_sde("vp"),
        "VP, quadratic β": make_chain("quadratic", 1000).to_sde(),
        "VP, cosine": make_sde("cosine"),
        "sub-VP": make_sde("subvp"),
        "VE": make_sde("ve"),
    }


def shown(x: torch.Tensor, alpha: float, sigma: float, noise: torch.Tensor) -> torch.Tensor:
    """A state at the photograph's own variance: of VE's noise a picture shows nothing else."""
    std = float(x.std())
    return (alpha * x + sigma * noise) * std / math.sqrt(alpha**2 * std**2 + sigma**2)


def draw(studio: Studio) -> Numbers:
    x = photograph()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    rows = schedules()
    figure = fig.new_figure(11, 8.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.75, 1))
    grid = top.subplots(len(rows), len(TIMES))
    middle = {}
    fine = torch.linspace(0, 1, 2001, dtype=torch.float64)
    curves = bottom.subplots(1, 2)
    for (name, sde), line, colour in zip(rows.items(), grid, (fig.BLUE, fig.GREEN, fig.ORANGE, fig.PURPLE, fig.GREY), strict=True):
        for share, axes in zip(TIMES, line, strict=True):
            t = max(sde.t_min, share * sde.t_max)
            alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
            axes.imshow(tiles(shown(x, alpha, sigma, noise), (-1, 1))[0], interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if sde is rows["VP, linear β"]:
                axes.set_title(f"t = {share:.1f}", fontsize=fig.TEXT)
        line[0].set_ylabel(name.replace(", ", ",\n"), fontsize=fig.TEXT)
        t = (fine * sde.t_max).clamp(min=sde.t_min)
        level = sde.half_log_snr(t)
        middle[name] = float((level.abs() < SEEN).double().mean())
        for axes, values in zip(curves, (2 * level / math.log(10), torch.sigmoid(2 * level)), strict=True):
            axes.plot(fine.numpy(), values.numpy(), color=colour, label=name, linewidth=1.9)
    fig.style(curves[0], "Signal-to-noise ratio  α²/σ²", "t", "log₁₀(α²/σ²)")
    fig.style(curves[1], "Share of the signal in the variance  α²/(α² + σ²)", "t", "")
    fig.legend(curves[1])
    studio.save(figure, "forward")
    last = {key: float(rows[name].half_log_snr(rows[name].t_max)) for key, name in (("linear_end", "VP, linear β"), ("ve_end", "VE"))}
    short = dict(zip(("linear", "quadratic", "cosine", "subvp", "ve"), middle.values(), strict=True))
    return short | {key: math.exp(value) for key, value in last.items()}


LESSON = Lesson(
    "Data drowns in noise",
    r"""
A diffusion process mixes data with more and more noise until nothing of the data is left. What matters of it is one curve, the
signal-to-noise ratio, or its half logarithm

$$\lambda(t) = \log \frac{\alpha(t)}{\sigma(t)} ;$$

the variance-preserving kinds (VP) shrink the data as the noise grows, the variance-exploding one (VE) lets it stand and drowns
it. A schedule says how long to stay at each ratio: the cosine schedule spends <<cosine:.0%>> of its time where an image is
neither nearly clean nor nearly lost (the signal-to-noise ratio between 1/55 and 55), linear betas spend <<linear:.0%>>. Every
state is shown at the photograph's own variance, with the same noise.
""",
    (
        "share of the time with |lambda| < 2: linear <<linear:.1%>>, quadratic <<quadratic:.1%>>, cosine <<cosine:.1%>>,"
        " sub-VP <<subvp:.1%>>, VE <<ve:.1%>>",
        "alpha / sigma at the end: VP <<linear_end:.4f>>, VE <<ve_end:.4f>>",
    ),
    "A photograph of a flower drowning in noise along five schedules, and their signal-to-noise ratios over time",
    draw,
)

"""A one-dimensional mixture: its density over time, and the two ways back from noise, by the reverse SDE and by the probability flow."""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

import sde_gen
from sde_gen import SDE, make_sde
from sde_gen.exact.mixtures import MixtureData
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio

WEIGHTS, MEANS, STD = (0.2, 0.5, 0.3), (-1.5, 0.0, 1.2), 0.15
COLOURS = (fig.BLUE, fig.ORANGE, fig.GREEN)
WAYS = {
    "sde": ("em", 500, "Reverse SDE: new noise at every step, paths cross"),
    "flow": ("heun", 80, "Probability flow: no noise, lines never cross"),
}
LINES, SHOWN = 96, 12
"""Paths that are followed, from evenly spaced quantiles of the noise, and how many of them share one that is drawn."""
SAMPLES = 10_000
GRID = "half_log_snr"
HIGH = 2.6
"""Of the picture: x runs from -HIGH to HIGH."""
LAST = 3.6
"""Of the picture: half log-SNR at its right edge, where nothing moves any more."""
MARKS = (-4.0, -2.0, 0.0, 2.0)
"""Half log-SNRs with a tick."""


def cdf(data: MixtureData, x: Tensor, sde: SDE, t: float) -> Tensor:
    """The distribution function of x_t for such one-dimensional data, exact: (B, 1) gives (B,)."""
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    std = torch.sqrt(alpha**2 * data.eigenvalues[:, 0] + sigma**2)
    return torch.special.ndtr((x.double() - alpha * data.means[:, 0]) / std) @ data.log_weights.exp()


def mode(x: Tensor) -> Tensor:
    """The mode that each of x (B, 1) belongs to, that with the nearest mean: (B,)."""
    return (x - torch.tensor(MEANS)).abs().argmin(1)


def crossed(paths: Tensor) -> int:
    """How many pairs of paths (steps, N, 1) change their order on the way."""
    above = paths > paths[:, :, 0][:, None, :]
    return int((above != above[0]).any(0).triu(1).sum())


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of the ranks of a and b (N, 1)."""
    return float(torch.corrcoef(torch.cat((a, b), 1).argsort(0).argsort(0).double().T)[0, 1])


def draw(studio: Studio) -> Numbers:
    sde = make_sde("cosine")
    weights, means = torch.tensor(WEIGHTS), torch.tensor(MEANS)[:, None]
    data = MixtureData(weights, means, torch.full((3, 1, 1), STD**2))
    model = data.model(sde)
    count = studio.count(SAMPLES, 500)
    prior = model.prior.from_noise(torch.randn(count, 1, generator=torch.Generator().manual_seed(0)))
    starts = model.prior.from_noise(torch.special.ndtri((torch.arange(LINES) + 0.5) / LINES)[:, None])

    figure = fig.new_figure(10, 8.4)
    grid = figure.subplots(2, 3, sharey=True, width_ratios=(1, 6.5, 2.2))
    numbers: dict[str, float] = {
        "pairs": LINES * (LINES - 1) // 2,
        "count": count,
        "error": math.sqrt(0.25 / count),
        "rank_error": 1 / math.sqrt(count - 1),
    }
    for (way, (solver, steps, title)), (noise, middle, end) in zip(WAYS.items(), grid, strict=True):
        steps = studio.count(steps, 40)
        out = sde_gen.sample(model, starts.shape, solver, steps, grid=GRID, seed=1, x_init=starts, final="state", trajectory="states")
        assert out.trajectory is not None and out.times is not None
        paths = torch.cat((starts[None], out.trajectory))
        numbers[f"crossed_{way}"] = crossed(paths)
        heat(middle, data, sde)
        levels = sde.half_log_snr(torch.tensor([sde.t_max, *out.times.tolist()], dtype=torch.float64)).tolist()
        for k in range(SHOWN // 2, LINES, SHOWN):
            colour = COLOURS[int(mode(out.x[k : k + 1]))]
            middle.plot(levels, paths[:, k, 0].tolist(), color=colour, linewidth=0.8 if way == "sde" else 1.6)
            middle.plot(levels[:1], paths[0, k].tolist(), "o", color="black", markersize=3.5, clip_on=False, zorder=4)
        fig.style(middle, title, "λ = log(α/σ) and its time t: noise on the left, data on the right", "")
        middle.grid(False)
        middle.set_xlim(levels[0], LAST)
        middle.set_xticks(MARKS, [f"{level:.0f}\nt = {float(sde.time_of(level)):.2f}".replace("-", "\N{MINUS SIGN}") for level in MARKS])

        x = sde_gen.sample(model, prior.shape, solver, steps, grid=GRID, seed=1, x_init=prior, final="state").x
        density(noise, data, sde, sde.t_max, "noise")
        noise.set_ylabel("x", fontsize=fig.TEXT)
        noise.invert_xaxis()
        density(end, data, sde, sde.t_min, f"{count:,} samples")
        found = mode(x)
        for k, colour in enumerate(COLOURS):
            share = float((found == k).double().mean())
            numbers[f"{way}_{k}"] = share
            values = x[found == k, 0].tolist()
            area = [104 / (2 * HIGH * count)] * len(values)
            end.hist(values, 104, range=(-HIGH, HIGH), weights=area, orientation="horizontal", color=colour, alpha=0.75)
            text = f"{share:.1%}\n(data {WEIGHTS[k]:.0%})"
            end.text(0.97, MEANS[k] + 0.42, text, transform=end.get_yaxis_transform(), ha="right", va="bottom", fontsize=fig.TEXT)
        numbers[f"rank_{way}"] = rank_correlation(prior, x)
        if way == "flow":
            numbers["quantile"] = float((cdf(data, x, sde, sde.t_min) - cdf(data, prior, sde, sde.t_max)).abs().max())
        for axes in (noise, middle, end):
            axes.set_ylim(-HIGH, HIGH)
    handles = [Line2D([], [], color=colour, linewidth=2) for colour in COLOURS]
    handles += [Line2D([], [], color="black", marker="o", markersize=4, linestyle=""), Patch(color="0.6"), Line2D([], [], color="black")]
    labels = [f"ends in the {name} mode" for name in ("lower", "middle", "upper")]
    labels += ["start, the same in both rows", "density at each time, by its highest", "exact density of noise and data"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=fig.TEXT, frameon=False)
    studio.save(figure, "density")
    return numbers | {f"weight_{k}": weight for k, weight in enumerate(WEIGHTS)}


def heat(axes: Axes, data: MixtureData, sde: SDE) -> None:
    """p_t(x) over the half log-SNR in greys, each time's by its own highest value."""
    x = torch.linspace(-HIGH, HIGH, 261, dtype=torch.float64)[:, None]
    first = float(sde.half_log_snr(sde.t_max))
    times = sde.time_of(torch.linspace(first, LAST, 301, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)
    image = torch.stack([data.log_prob(x, sde, float(t)).exp() for t in times], dim=1)
    # a lighter end than black, so that lines stand out
    axes.imshow(
        (image / image.amax(0)).numpy(),
        extent=(first, LAST, -HIGH, HIGH),
        origin="lower",
        aspect="auto",
        cmap="Greys",
        vmin=0,
        vmax=1.8,
        interpolation="bilinear",
    )


def density(axes: Axes, data: MixtureData, sde: SDE, t: float, title: str) -> None:
    """The exact p_t, on its side."""
    x = torch.linspace(-HIGH, HIGH, 801, dtype=torch.float64)[:, None]
    axes.plot(data.log_prob(x, sde, t).exp().numpy(), x[:, 0].numpy(), color="black", linewidth=1.5, zorder=3)
    fig.style(axes, title, "density", "")
    axes.set_xlim(left=0)


LESSON = Lesson(
    "Two ways back from noise",
    r"""
Run backwards in time, the noising process is again a stochastic differential equation (Anderson 1982), and all that it asks for is
the score of the lesson before, the gradient of the log-density at each time. Half of the score and no noise at all gives a differential
equation with the same density at every time, the probability flow (Song et al. 2021, arXiv:2011.13456):

$$\mathrm{d}x = \left[ f\,x - g^2\, \nabla_x \log p_t(x) \right] \mathrm{d}t + g\, \mathrm{d}\bar w , \qquad
\mathrm{d}x = \left[ f\,x - \tfrac12 g^2\, \nabla_x \log p_t(x) \right] \mathrm{d}t .$$

The data is the mixture of three Gaussians again, and the score is the exact one. The picture runs in $\lambda$, in which the noise comes
in evenly; the grey is $p_t(x)$, each time's by its own highest value. Both ways arrive at the mixture: the middle mode has
<<weight_1:.0%>> of the data, and <<sde_1:.1%>> and <<flow_1:.1%>> of the samples (standard error <<error:.1%>> of the samples), by very
different roads. The flow is a map: its lines never cross (<<crossed_flow>> of <<pairs:,>> pairs), so each keeps its quantile. Of the paths
of the SDE <<crossed_sde:,>> pairs cross, and where one ends says next to nothing of where it began: rank correlation <<rank_sde:.3f>> +-
<<rank_error:.3f>>, against <<rank_flow:.3f>> along the flow.
""",
    (
        "shares of the modes: data <<weight_0:.3f>>, <<weight_1:.3f>>, <<weight_2:.3f>>;"
        " reverse SDE <<sde_0:.3f>>, <<sde_1:.3f>>, <<sde_2:.3f>>; flow <<flow_0:.3f>>, <<flow_1:.3f>>, <<flow_2:.3f>>"
        " (<<count:,>> samples each, +- <<error:.3f>> at most)",
        "pairs of paths that cross, of <<pairs:,>>: reverse SDE <<crossed_sde:,>>, flow <<crossed_flow>>",
        "rank correlation of start and end: reverse SDE <<rank_sde:.3f>> +- <<rank_error:.3f>>, flow <<rank_flow:.6f>>",
        "largest change of a quantile along the flow: <<quantile:.1e>>",
    ),
    "Density of a one-dimensional mixture by noise level; above it paths of the reverse SDE, which cross, and flow lines, which do not",
    draw,
)

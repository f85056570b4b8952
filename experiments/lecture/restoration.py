"""Inverse problems: what a measurement leaves open, of images, signals and tables, and how often the truth lies where its samples say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from torch import Tensor

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.diagnostics.calibration import judge, randomised_ranks
from sde_gen.exact.mixtures import MixtureData
from sde_gen.inverse import Blur, Downsample, Function, Gaussian, Grey, Mask, Measurement, Quantised
from sde_gen.models.moments import Moments
from sde_gen.report import figures as fig
from sde_gen.report.images import tiles
from sde_gen.report.restorations import GAP

from .lesson import Lesson, Numbers, Studio

PROBLEMS, GROUP, STEPS, SHOWN = 40, 16, 30, 4
EDGE, TEXTURE, LENGTH, GAP_OF_SERIES = 8, 6, 48, (16, 34)
COLUMNS = ("height", "weight", "pulse", "age")


@dataclass(frozen=True)
class Problem:
    """A law of data in normalised units with the map to their own, and a measurement of them. between: (low, high) of pictures."""

    title: str
    law: MixtureData
    units: Normalizer
    measurement: Measurement
    between: tuple[float, float] = (0.0, 16.0)

    def model(self) -> sde_gen.ScoreModel:
        """The exact score model."""
        sde = sde_gen.make_sde("vp")
        mean, covariance = self.law.moments()
        moments = Moments(mean.reshape(self.law.shape), covariance=covariance)
        return sde_gen.ScoreModel(self.law.score(sde), sde, "score", normalizer=self.units, prior="matched", moments=moments)


def digits(studio: Studio) -> tuple[MixtureData, Normalizer]:
    """Ten Gaussians, with the mean and the covariance of each digit's images, and noise of 0.3 grey levels."""
    x, labels = studio.digits.train.double().flatten(1) / 6 - 1, studio.digits.train_labels
    assert labels is not None
    parts = [x[labels == k] for k in range(10)]
    covariances = torch.stack([torch.cov(part.T) + (0.3 / 6) ** 2 * torch.eye(64, dtype=torch.float64) for part in parts])
    means = torch.stack([part.mean(0) for part in parts]).reshape(10, 1, EDGE, EDGE)
    return MixtureData(torch.tensor([len(part) for part in parts]), means, covariances), Normalizer(*(torch.full((1, 1, 1), 6.0),) * 2)


def smooth(places: Tensor, length: float) -> Tensor:
    """The covariance (N, N) of a smooth random function at places (N, d): Matern, order 3/2."""
    r = math.sqrt(3) * torch.cdist(places, places) / length
    return (1 + r) * torch.exp(-r)


def colours() -> tuple[MixtureData, Normalizer]:
    """Smooth textures (3, 6, 6) in one of three palettes, which have the same greys."""
    axis = torch.arange(TEXTURE, dtype=torch.float64)
    places = torch.cartesian_prod(axis, axis)
    light, tint = smooth(places, 2.0), smooth(places, 6.0)
    covariances, means = [], []
    for palette in ((-0.9, 0.0, 0.9), (-0.4, 0.8, -0.4), (0.9, 0.1, -1.0)):
        shade = torch.tensor(palette, dtype=torch.float64)
        towards = 1 + 0.3 * shade
        covariance = torch.kron(torch.outer(towards, towards), 0.6 * light) + torch.kron(torch.outer(shade, shade), 0.03 * tint)
        covariances.append(covariance + 1e-3 * torch.eye(3 * TEXTURE**2, dtype=torch.float64))
        means.append(shade[:, None, None].expand(3, TEXTURE, TEXTURE))
    return MixtureData(torch.ones(3), torch.stack(means), torch.stack(covariances)), Normalizer(
        torch.full((3, 1, 1), 120.0), torch.full((3, 1, 1), 45.0)
    )


def series() -> tuple[MixtureData, Normalizer]:
    """Signals (1, 48) that either wander or swing."""
    time = torch.arange(LENGTH, dtype=torch.float64)[:, None]
    swing = torch.cos(2 * math.pi * (time - time.T) / 9) * torch.exp(-(((time - time.T) / 30) ** 2))
    covariances = torch.stack([smooth(time, 8.0), swing]) + 1e-3 * torch.eye(LENGTH, dtype=torch.float64)
    return MixtureData(torch.ones(2), torch.zeros(2, 1, LENGTH), covariances), Normalizer(torch.tensor([[20.0]]), torch.tensor([[3.0]]))


def table() -> tuple[MixtureData, Normalizer]:
    """Height, weight, pulse and age of two groups, in which they go together in ways of their own."""
    means = torch.tensor([[0.6, 0.4, -0.5, -0.9], [-0.6, -0.4, 0.5, 0.9]], dtype=torch.float64)
    spreads = torch.tensor([[0.8, 0.9, 0.9, 0.4], [0.7, 0.8, 0.8, 0.5]], dtype=torch.float64)
    signs = torch.tensor([[1.0, 0.8, -0.4, 0.3], [1.0, 0.5, 0.2, -0.6]], dtype=torch.float64)
    correlations = signs[:, :, None] * signs[:, None] + torch.diag_embed(1 - signs**2)
    covariances = spreads[:, :, None] * (correlations + 0.01 * torch.eye(4, dtype=torch.float64)) * spreads[:, None]
    return MixtureData(torch.ones(2), means, covariances), Normalizer(
        torch.tensor([172.0, 71.0, 68.0, 44.0]), torch.tensor([9.0, 12.0, 9.0, 15.0])
    )


def inner_blur(x: Tensor) -> Tensor:
    """The blurred image without its border."""
    return Blur(1.2)(x)[..., 1:-1, 1:-1]


def problems(studio: Studio) -> dict[str, Problem]:
    grey = digits(studio)
    shape = (1, EDGE, EDGE)
    known = torch.ones(1, LENGTH, dtype=torch.bool)
    known[:, slice(*GAP_OF_SERIES)] = False
    return {
        "inpainting": Problem("70 % of pixels hidden", *grey, Measurement(Mask.random(shape, 0.7, 1), Gaussian(1.0))),
        "resolution": Problem("blocks of 2 x 2", *grey, Measurement(Downsample(2), Gaussian(0.5))),
        "blur": Problem("blurred, cut", *grey, Measurement(Function(inner_blur, linear=True), Gaussian(0.8))),
        "bit": Problem("one bit of 70 %", *grey, Measurement(Mask.random(shape, 0.3, 2), Quantised(16.0, 3.0, 0.0, 16.0))),
        "colour": Problem("no colour", *colours(), Measurement(Grey(), Gaussian(4.0)), (0.0, 255.0)),
        "series": Problem("a gap in a series", *series(), Measurement(Mask(known), Gaussian(0.3))),
        "table": Problem("cells of a table missing", *table(), Measurement(Mask(), Gaussian(0.0))),
    }


def measured(problem: Problem, truths: Tensor) -> Tensor:
    """A measurement of each truth; cells of a table, one or two of each row, are gaps."""
    y = problem.measurement.simulate(truths, 5)
    if problem.law.shape == (4,):
        order = torch.rand(y.shape, generator=torch.Generator().manual_seed(6)).argsort(1)
        y = torch.where(order < (1 + torch.arange(len(y)) % 2)[:, None], torch.nan, y)
    return y


@dataclass(frozen=True)
class Solved:
    problem: Problem
    truths: Tensor
    y: Tensor
    posterior: sde_gen.Posterior


def solve(problem: Problem, count: int, group: int, steps: int) -> tuple[Solved, dict[str, float]]:
    """The problem solved for `count` truths of its own law, and how often they lie where their samples say, of what is not known."""
    truths = problem.units.decode(problem.law.sample(count, 3).float())
    y = measured(problem, truths)
    model = problem.model()
    found = sde_gen.posterior(model, problem.measurement, y, group, steps=steps, seed=2, shape=problem.law.shape, progress=False)
    open_to = torch.isnan(y).flatten(1) if problem.measurement.noise.absent else torch.ones_like(truths, dtype=torch.bool).flatten(1)
    x, samples = problem.units.encode(truths), problem.units.encode(found.x.flatten(0, 1)).reshape(found.x.shape)
    ranks = randomised_ranks(x, samples, found.log_weights)
    inside = (((2 * ranks - 1).abs() <= 0.9) & open_to).sum(1) / open_to.sum(1)
    found_out = judge(x, samples, found.log_weights)
    low, high = found_out.entries.band[found_out.entries.levels.index(0.9)].tolist()
    share = {"share": float(inside.mean()), "low": low, "high": high, "p": found_out.sbc.p_value, "ess": float(found.ess.mean())}
    return Solved(problem, truths, y, found), share


def draw_images(part: SubFigure, solved: dict[str, Solved], shares: dict[str, dict[str, float]]) -> None:
    """A row for each problem: truth, measurement, four samples, mean and spread."""
    titles = ["truth", "measured", *(f"sample {k + 1}" for k in range(SHOWN)), "mean", "spread"]
    grid = part.subplots(len(solved), len(titles), squeeze=False)
    for row, (line, (name, one)) in enumerate(zip(grid, solved.items(), strict=True)):
        between = one.problem.between
        item = int((one.posterior.ess >= one.posterior.ess.median()).double().argmax())
        y = one.y[item : item + 1]
        seen = tiles(torch.nan_to_num(y, 0.0), between)
        seen[torch.isnan(y).all(1).numpy()] = GAP
        equal = one.posterior.resampled(SHOWN, 1).x[item]
        spread = one.posterior.std()[item].mean(0)
        pictures: list[Any] = [tiles(one.truths[item : item + 1], between)[0], seen[0], *tiles(equal, between)]
        pictures += [tiles(one.posterior.mean()[item : item + 1], between)[0], spread.numpy()]
        for axes, picture, title in zip(line, pictures, titles, strict=True):
            axes.imshow(picture, interpolation="nearest", cmap="viridis", vmin=0, vmax=0.35 * between[1])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(title, fontsize=fig.TEXT)
        line[0].set_ylabel(
            f"{one.problem.title}\n90 % hold {shares[name]['share']:.0%}", fontsize=fig.TEXT, rotation=0, ha="right", va="center"
        )


def draw_series(axes: Axes, one: Solved, share: dict[str, float]) -> None:
    item = int((one.posterior.ess >= one.posterior.ess.median()).double().argmax())
    time = np.arange(LENGTH)
    x, weights = one.posterior.x[item, :, 0], one.posterior.weights[item]
    low, high = weighted_quantiles(x, weights, (0.05, 0.95))
    axes.fill_between(time, low.numpy(), high.numpy(), color=fig.BLUE, alpha=0.2, linewidth=0, label="90 %")
    for sample in one.posterior.resampled(SHOWN, 1).x[item, :, 0]:
        axes.plot(time, sample.numpy(), color=fig.BLUE, linewidth=0.9)
    axes.plot(time, one.truths[item, 0].numpy(), color="black", linewidth=1.2, label="truth")
    axes.plot(time, one.y[item, 0].numpy(), linestyle="", marker=".", color=fig.ORANGE, label="measured")
    fig.style(axes, f"{one.problem.title}: 90 % hold {share['share']:.0%}", "time")
    fig.legend(axes)


def draw_table(axes: Axes, one: Solved, share: dict[str, float]) -> None:
    """Five rows with two gaps each, in units of the columns' spreads."""
    scale, shift = one.problem.units.scale, one.problem.units.shift
    chosen = torch.isnan(one.y).sum(1).argsort(descending=True, stable=True)[:5].sort().values
    for place, item in enumerate(chosen.tolist()):
        for column in range(4):
            at = 6 * place + column
            value = float((one.truths[item, column] - shift[column]) / scale[column])
            if not bool(torch.isnan(one.y[item, column])):
                axes.plot(at, value, marker="o", color=fig.ORANGE, markersize=5)
                continue
            x = (one.posterior.x[item, :, column] - shift[column]) / scale[column]
            low, high = weighted_quantiles(x[:, None], one.posterior.weights[item], (0.05, 0.95))
            axes.plot([at, at], [float(low), float(high)], color=fig.BLUE, linewidth=5, alpha=0.25, solid_capstyle="butt")
            equal = (one.posterior.resampled(12, 1).x[item, :, column] - shift[column]) / scale[column]
            axes.plot([at] * len(equal), equal.numpy(), linestyle="", marker="_", color=fig.BLUE)
            axes.plot(at, value, marker="x", color="black", markersize=6)
    axes.set_xticks([6 * place + column for place in range(len(chosen)) for column in range(4)], COLUMNS * len(chosen), rotation=90)
    fig.style(axes, f"{one.problem.title}: 90 % hold {share['share']:.0%}", "", "standard deviations")


def weighted_quantiles(x: Tensor, weights: Tensor, levels: tuple[float, ...]) -> list[Tensor]:
    """Quantiles of weighted numbers x (K, D) with weights (K,), each (D,)."""
    ordered, order = x.double().sort(0)
    below = weights.double()[order].cumsum(0)
    return [ordered.gather(0, (below < level).sum(0, keepdim=True).clamp(max=len(x) - 1))[0] for level in levels]


def draw(studio: Studio) -> Numbers:
    count, group, steps = studio.count(PROBLEMS, 4), studio.count(GROUP, 4), studio.count(STEPS, 4)
    solved, shares = {}, {}
    for name, problem in problems(studio).items():
        solved[name], shares[name] = solve(problem, count, group, steps)
    figure = fig.new_figure(10.5, 9.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.1, 1))
    images = {name: one for name, one in solved.items() if len(one.problem.law.shape) == 3}
    draw_images(upper, images, shares)
    left, right = lower.subplots(1, 2)
    draw_series(left, solved["series"], shares["series"])
    draw_table(right, solved["table"], shares["table"])
    studio.save(figure, "restoration")
    numbers: dict[str, Any] = {
        "count": count,
        "group": group,
        "steps": steps,
        "low": shares["table"]["low"],
        "high": shares["table"]["high"],
    }
    for name, share in shares.items():
        numbers |= {f"{name}_{key}": share[key] for key in ("share", "p", "ess")}
    return numbers


LESSON = Lesson(
    "What a measurement leaves open",
    r"""
Often something is known of one datum: some of its pixels, a blurred picture of it, a table's row with gaps, $y = A(x) + \text{noise}$. What
the data can then be is the posterior

$$p(x | y) \propto p(x)\, p(y | x) , \qquad
\nabla \log p_t(x_t | y) = \nabla \log p_t(x_t) + \nabla \log p_t(y | x_t) .$$

The first term is the network that there is, trained once and for no measurement in particular. The second asks how probable y is given a
noisy state, an average over everything that state could have come from. No network knows it; taking that for a Gaussian with the mean and
covariance that the network's derivative holds (Rozet et al. 2024, arXiv:2405.13712) is near, and particles carry weights that make up for
the rest (Wu et al. 2023, arXiv:2306.17775). Seven such problems, by the same <<group>> particles and <<steps>> steps, on laws whose
scores are exact: ten Gaussians with the means and covariances of the digits, textures in three palettes that have the same greys, signals
that wander or swing, and a table.

One answer, however sharp, hides what the samples show: another digit fits the pixels that are left, a grey texture has any of three
palettes. So the samples are judged as forecasts are. Of <<count>> truths of each law, 90 % should lie in the central 90 % of their samples,
entry by entry: between <<low:.0%>> and <<high:.0%>> of so few. The p-value is that of the truth's ranks among its samples along 20
directions, for which any number of samples is enough ([docs/calibration.md](calibration.md)).
""",
    (
        "of <<count>> truths, share inside the central 90 % of <<group>> weighted samples (of right ones <<low:.3f>> .. <<high:.3f>>),",
        "p-value of ranks, effective samples:",
        "  70 % of pixels hidden  <<inpainting_share:.3f>>  <<inpainting_p:.2f>>  <<inpainting_ess:.1f>>",
        "  means of 2x2 blocks    <<resolution_share:.3f>>  <<resolution_p:.2f>>  <<resolution_ess:.1f>>",
        "  blurred, border cut    <<blur_share:.3f>>  <<blur_p:.2f>>  <<blur_ess:.1f>>",
        "  one bit of 70 %        <<bit_share:.3f>>  <<bit_p:.2f>>  <<bit_ess:.1f>>",
        "  no colour              <<colour_share:.3f>>  <<colour_p:.2f>>  <<colour_ess:.1f>>",
        "  a gap in a series      <<series_share:.3f>>  <<series_p:.2f>>  <<series_ess:.1f>>",
        "  cells of a table       <<table_share:.3f>>  <<table_p:.2f>>  <<table_ess:.1f>>",
    ),
    "Rows of truth, measurement, posterior samples, mean and spread of digits and textures; a series and table rows with gaps filled",
    draw,
)

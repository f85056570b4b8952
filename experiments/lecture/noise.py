"""Why noise is needed: a score learned without it knows nothing where there is no data, and Langevin dynamics cannot cross there."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from torch import Tensor, nn

import sde_gen
from sde_gen import SDE, ScoreModel, make_sde
from sde_gen.exact.mixtures import MixtureData
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio

WEIGHTS, MEANS = (0.8, 0.2), ((4.0, 4.0), (-4.0, -4.0))
HIGH = 8.0
"""Of the plane that is looked at: both coordinates run from -HIGH to HIGH."""
DATA = 10_000
TRAINING, BATCH, WIDTH = 800, 256, 64
LEVEL = 4.0
"""Standard deviation of the noise of the network that is trained with noise: enough to fill the plane between the modes."""
SAMPLES, STEP = 3000, 0.05
FIRST, LAST = 20.0, 0.05
"""Standard deviations of the noise between which Langevin dynamics is annealed."""
SNR = {"annealed": 0.3, "default": 0.16}
REGIONS = ("where 90 %\nof the data lies", "edge: the\nnext 9.9 %", "desert: the\nlast 0.1 %")


Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


def trained(loss: Loss, data: Tensor, steps: int) -> nn.Module:
    """A small network after `steps` of Adam on the mean of loss(network, batch, generator) over batches of the data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = [(2, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]
        net = nn.Sequential(*(layer for size in sizes for layer in (nn.Linear(*size), nn.SiLU())), nn.Linear(WIDTH, 2))
    generator = torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(net.parameters(), lr=2e-3, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        batch = data[torch.randint(len(data), (BATCH,), generator=generator)]
        adam.zero_grad()
        loss(net, batch, generator).mean().backward()
        adam.step()
        decay.step()
    return net.requires_grad_(False)


def implicit(net: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """|s(x)|^2/2 + div s(x): its mean over the data is the Fisher divergence over 2, but for a constant (Hyvärinen 2005). No noise."""
    x = x.requires_grad_()
    score = net(x)
    rows = [torch.autograd.grad(score[:, k].sum(), x, create_graph=True)[0][:, k] for k in range(2)]
    return 0.5 * score.square().sum(1) + rows[0] + rows[1]


def denoising(sde: SDE, t: float) -> Loss:
    """Denoising score matching at one noise level."""

    def loss(net: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        model = ScoreModel(lambda x, c: net(x), sde, prediction="score")
        return sde_gen.dsm_loss(model, x, "simple", torch.full((len(x),), t), generator=generator)

    return loss


def squared_error(net: nn.Module, data: MixtureData, sde: SDE, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """|s(x) - score|^2 and |score|^2 at each of x (B, 2)."""
    score = data.score_at(x, sde, t)
    return (net(x) - score).square().sum(1), score.square().sum(1)


def draw(studio: Studio) -> Numbers:
    data = MixtureData(torch.tensor(WEIGHTS), torch.tensor(MEANS), torch.eye(2).expand(2, 2, 2))
    sde = make_sde("ve", sigma_min=LAST, sigma_max=FIRST)
    known = data.sample(DATA, seed=0).float()
    figure = fig.new_figure(10, 9.4)
    (error_map, regions), below = figure.subplots(2, 2)

    steps, level = studio.count(TRAINING, 20), float(sde.time_of(-math.log(LEVEL)))
    nets = {"bare": (trained(implicit, known, steps), 0.0), "noised": (trained(denoising(sde, level), known, steps), level)}
    side = torch.linspace(-HIGH, HIGH, 161)
    plane = torch.cartesian_prod(side, side)
    place = torch.bucketize(-data.log_prob(plane), -data.log_prob(known).quantile(torch.tensor([0.1, 0.001])))
    numbers: dict[str, float] = {}
    for key, (net, t) in nets.items():
        error, size = squared_error(net, data, sde, plane, t)
        for k in range(3):
            numbers[f"{key}_{k}"] = float(error[place == k].mean())
            numbers[f"{key}_share_{k}"] = float(error[place == k].mean() / size[place == k].mean())
        if key == "bare":
            show_error(error_map, error.reshape(len(side), len(side)), known[:1500])
    fresh = squared_error(nets["bare"][0], data, sde, data.sample(DATA, seed=1).float(), 0.0)[0]
    numbers |= {"fisher": float(fresh.mean()), "fisher_error": float(fresh.std() / math.sqrt(len(fresh)))}
    show_regions(regions, numbers)

    levels, count = studio.count(250, 40), studio.count(SAMPLES, 200)
    exact = data.model(sde)
    generator = torch.Generator().manual_seed(0)
    start = exact.prior.from_noise(torch.randn(count, 2, generator=generator))
    plain = half = start
    for k in range(2 * levels):
        z = torch.randn(plain.shape, generator=generator)
        plain = plain + STEP * data.score_at(plain, sde, sde.t_min) + math.sqrt(2 * STEP) * z
        half = plain if k == levels else half
    found = {"plain": plain}
    for key, snr in SNR.items():
        out = sde_gen.sample(exact, start.shape, "langevin", levels, seed=1, x_init=start, final="state", snr=snr, corrections=2)
        found[key] = out.x
    found["em"] = sde_gen.sample(exact, start.shape, "em", 2 * levels, seed=1, x_init=start, final="state").x
    for key, x in found.items():
        near = (x @ torch.tensor(MEANS).T).argmax(1)
        share = float((near == 0).double().mean())
        numbers |= {f"{key}_share": share, f"{key}_error": math.sqrt(share * (1 - share) / count)}
        numbers[f"{key}_spread"] = float((x - torch.tensor(MEANS)[near]).square().mean().sqrt())
        if key == "plain":
            show_samples(below[0], x, near, "Langevin with the exact score of the data")
        elif key == "annealed":
            show_samples(below[1], x, near, f"Annealed: exact scores, noise from {FIRST:g} to {LAST:g}")
    larger = [(x @ torch.tensor(MEANS).T).argmax(1) for x in (half, plain)]
    numbers["crossed"] = int((larger[0] != larger[1]).sum())
    saddle = data.log_prob(torch.stack([torch.lerp(*torch.tensor(MEANS), w) for w in torch.linspace(0, 1, 501)])).min()
    numbers["desert"] = float((saddle - data.log_prob(torch.tensor(MEANS[:1]))[0]).exp())
    numbers |= {"calls": 2 * levels, "weight": WEIGHTS[0], "count": count, "level": LEVEL}
    numbers["spread_error"] = 1 / math.sqrt(4 * count)
    studio.save(figure, "noise")
    return numbers


def show_error(axes: Axes, error: Tensor, points: Tensor) -> None:
    square = (-HIGH, HIGH, -HIGH, HIGH)
    image = axes.imshow(error.T.numpy(), extent=square, origin="lower", cmap="cividis", norm=LogNorm(1e-2, 1e2))
    axes.plot(*points.T.numpy(), ".", color="white", markersize=1.5)
    fig.style(axes, "Error of a score learned without noise (white: data)", "x₁", "x₂")
    axes.grid(False)
    bar = axes.figure.colorbar(image, ax=axes, extend="both", shrink=0.85)
    bar.set_label("squared error of the score", fontsize=fig.TEXT)
    bar.ax.tick_params(labelsize=fig.TEXT)


def show_regions(axes: Axes, numbers: Numbers) -> None:
    nets = {"bare": (-0.2, fig.ORANGE, "learned without noise"), "noised": (0.2, fig.BLUE, f"learned with noise of {LEVEL:g} added")}
    for key, (offset, colour, label) in nets.items():
        values = [numbers[f"{key}_share_{k}"] for k in range(3)]
        bars = axes.bar([k + offset for k in range(3)], values, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.2%}" if value < 0.1 else f"{value:.0%}" for value in values], fontsize=fig.TEXT)
    axes.axhline(1, color=fig.GREY, linewidth=1.2, linestyle="--")
    axes.text(-0.45, 1.15, "as bad as answering 0", fontsize=fig.TEXT, color=fig.GREY)
    axes.set_yscale("log")
    axes.set_ylim(top=20)
    axes.set_yticks([1e-3, 1e-2, 0.1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    axes.set_xticks(range(3), REGIONS)
    fig.style(axes, "The error by region, and with noise in training", "", "mean square error, of the score's mean square")
    fig.legend(axes)


def show_samples(axes: Axes, x: Tensor, near: Tensor, title: str) -> None:
    for k, (colour, side) in enumerate(((fig.BLUE, "right"), (fig.ORANGE, "left"))):
        share = float((near == k).double().mean())
        axes.plot(*x[:2000][near[:2000] == k].T.numpy(), ".", color=colour, markersize=2)
        text = f"{share:.1%} of the samples\n({WEIGHTS[k]:.0%} of the data)"
        axes.text(0.6 - 1.2 * k, MEANS[k][1], text, ha=side, va="center", fontsize=fig.TEXT + 1)
    axes.set_xlim(-HIGH, HIGH)
    axes.set_ylim(-HIGH, HIGH)
    axes.set_aspect("equal")
    fig.style(axes, title, "x₁", "x₂")


LESSON = Lesson(
    "Why noise is needed",
    r"""
Could the score of the data themselves be learned, with no noise at all? There is a loss for it. It is the Fisher divergence, the mean
square error of the score over the data, in a form that does not need the score (implicit score matching, Hyvärinen 2005):

$$\tfrac12\, \mathbb{E}_{p}\, \| s(x) - \nabla_x \log p(x) \|^2
= \mathbb{E}_{p} \left[ \tfrac12 \| s(x) \|^2 + \mathrm{div}\, s(x) \right] + \text{const} .$$

So a network learns the score where there is data; where there is none, it guesses. The mixture here has <<weight:.0%>> of its mass in one
mode, and between the two the density falls to <<desert:.0e>> of the peak. A network that sees only the data has a mean square error of
<<fisher:.3f>> over new data, and of <<bare_2:.0f>> over the area where fewer than one item in a thousand lies, the desert:
<<bare_share_2:.0%>> of the mean square of the score itself there. With noise of standard deviation <<level:.0f>> added, the data fills the
plane, and the same network's error in the same area is <<noised_share_2:.2%>> of the mean square of the noised density's score (Song and
Ermon 2019, arXiv:1907.05600).

The desert hurts even where the score is exact. Langevin dynamics, $x \leftarrow x + e\, \nabla_x \log p(x) + \sqrt{2 e}\, z$, has the
right density in the end, but nobody can wait for it: in the second half of <<calls>> steps <<crossed>> of <<count:,>> samples changed
their mode, and <<plain_share:.1%>> of them are in the larger one, which has <<weight:.0%>> of the data. Annealed Langevin dynamics begins
with much noise, where the modes are one, and lowers it: <<annealed_share:.1%>> +- <<annealed_error:.1%>>. It is not exact, since it must
keep up with the falling noise: with the package's default steps (`snr=0.16` where the picture has 0.3) it lags, with <<default_share:.1%>>
and modes of spread <<default_spread:.2f>> instead of 1. The reverse SDE (`em`, as many calls, same starts) has <<em_share:.1%>> and
<<em_spread:.2f>>.
""",
    (
        "mean square error of the score without noise: <<fisher:.4f>> +- <<fisher_error:.4f>> over new data; <<bare_0:.4f>> over"
        " the area with 90 % of the data, <<bare_1:.3f>> with the next 9.9 %, <<bare_2:.2f>> in the desert",
        "as a share of the mean square of the score: without noise <<bare_share_0:.2%>>, <<bare_share_1:.2%>>, <<bare_share_2:.1%>>;"
        " with noise of <<level:.0f>> <<noised_share_0:.2%>>, <<noised_share_1:.2%>>, <<noised_share_2:.2%>> (one network each)",
        "<<calls>> calls, <<count:,>> samples each: share of the larger mode (data: <<weight:.1%>>), spread of a mode"
        " (data: 1; +- <<spread_error:.3f>>)",
        "  Langevin                     <<plain_share:.1%>> +- <<plain_error:.1%>>, <<plain_spread:.3f>>"
        " (<<crossed>> samples changed their mode in the second half)",
        "  annealed, snr 0.3            <<annealed_share:.1%>> +- <<annealed_error:.1%>>, <<annealed_spread:.3f>>",
        "  annealed, snr 0.16 (default) <<default_share:.1%>> +- <<default_error:.1%>>, <<default_spread:.3f>>",
        "  reverse SDE, em              <<em_share:.1%>> +- <<em_error:.1%>>, <<em_spread:.3f>>",
    ),
    "A learned score's error, small at the data and large between; the same by region; samples of Langevin dynamics, plain and annealed",
    draw,
)

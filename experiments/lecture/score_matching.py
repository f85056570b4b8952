"""The training loss: why a network that only guesses the noise learns the score, and why its loss does not fall to zero."""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from torch import Tensor

import sde_gen
from sde_gen import SDE, ScoreModel, make_sde
from sde_gen.exact.mixtures import MixtureData
from sde_gen.networks import make_network
from sde_gen.report import figures as fig

from .density import MEANS, STD, WEIGHTS
from .lesson import Lesson, Numbers, Studio

TIME = 0.3
"""At which pairs of a noisy state and its noise are shown."""
SHOWN = {0.6: fig.GREEN, TIME: fig.BLUE, 0.1: fig.ORANGE}
"""Times at which the learned score stands beside the exact one."""
STEPS, BATCH = 2000, 512
CHECKS = 16
"""How often the network is measured while it learns."""
PAIRS, HELD_OUT = 2500, 50_000
HIGH = 2.2
"""Of the picture: x runs from -HIGH to HIGH."""


def exact_noise(data: MixtureData, sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t = x] = -sigma(t) grad log p_t(x), shape of x (B, 1)."""
    return -sde.marginal(t)[1][:, None].to(x) * data.score_at(x, sde, t)


def noised(sde: SDE, x_0: Tensor, t: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """x_t and its eps, shapes of x_0 (B, 1)."""
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    alpha, sigma = (value[:, None].float() for value in sde.marginal(t))
    return alpha * x_0 + sigma * noise, noise


def trained(data: MixtureData, sde: SDE, steps: int, measure: list[int], held: tuple[Tensor, Tensor, Tensor]) -> tuple[ScoreModel, Tensor]:
    """The network after `steps` of Adam on the denoising loss, and its loss on held-out (x_t, eps, t) after `measure` steps each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make_network("mlp", (1,), width=64, depth=2)
    model = ScoreModel(net, sde, prediction="noise")
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    x_0 = data.sample(BATCH * steps, seed=1).float().reshape(steps, BATCH, 1)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for k in range(steps + 1):
        if k in measure:
            x, noise, t = held
            with torch.no_grad():
                losses.append((model.noise(x, t) - noise).square().mean())
        if k < steps:
            adam.zero_grad()
            sde_gen.dsm_loss(model, x_0[k], weighting="simple", times="stratified", generator=generator).mean().backward()
            adam.step()
            decay.step()
    return model, torch.stack(losses)


def draw(studio: Studio) -> Numbers:
    sde = make_sde("cosine")
    data = MixtureData(torch.tensor(WEIGHTS), torch.tensor(MEANS)[:, None], torch.full((3, 1, 1), STD**2))
    figure = fig.new_figure(12, 4.4)
    left, middle, right = figure.subplots(1, 3)

    count = studio.count(HELD_OUT, 2000)
    t = torch.linspace(sde.t_min, sde.t_max, count, dtype=torch.float64)
    x, noise = noised(sde, data.sample(count, seed=2).float(), t, seed=3)
    steps = studio.count(STEPS, 60)
    measure = sorted({0, *(round(steps ** (k / (CHECKS - 1))) for k in range(CHECKS))})
    model, losses = trained(data, sde, steps, measure, (x, noise, t))
    exact = exact_noise(data, sde, x, t)
    floor = (exact - noise).square().mean()
    with torch.no_grad():
        answer = model.noise(x, t)
    excess = (answer - noise).square() - (exact - noise).square()
    error = float((answer - exact).square().mean())

    at = torch.full((PAIRS,), TIME, dtype=torch.float64)
    x_t, eps = noised(sde, data.sample(PAIRS, seed=4).float(), at, seed=5)
    show_pairs(left, x_t, eps)
    side = torch.linspace(-HIGH, HIGH, 400)[:, None]
    at = torch.full((len(side),), TIME, dtype=torch.float64)
    left.plot(side[:, 0], exact_noise(data, sde, side, at)[:, 0], color="black", linewidth=2.2, label="exact: −σ ∇ log p(x_t) = E[ε | x_t]")
    fig.style(left, f"What the network is asked, t = {TIME:g}", "noisy state x_t", "noise ε in it")
    left.set(xlim=(-HIGH, HIGH), ylim=(-3.2, 5.2))
    fig.legend(left)

    for time, colour in SHOWN.items():
        at = torch.full((len(side),), time, dtype=torch.float64)
        with torch.no_grad():
            score = model.score(side, at)[:, 0]
        middle.plot(side[:, 0], score, color=colour, linewidth=4, alpha=0.55, label=f"learned, t = {time:g}")
        middle.plot(side[:, 0], data.score_at(side, sde, time)[:, 0], color="black", linewidth=1.1)
    middle.plot([], [], color="black", linewidth=1.1, label="exact, of the mixture")
    fig.style(middle, "The score that comes of it", "x", "score ∇ log p_t(x)")
    middle.set(xlim=(-HIGH, HIGH), ylim=(-16, 26))
    fig.legend(middle)

    show_losses(right, measure, losses, float(floor))
    studio.save(figure, "score_matching")
    return {
        "loss": float(losses[-1]),
        "first": float(losses[0]),
        "floor": float(floor),
        "excess": float(excess.mean()),
        "excess_error": float(excess.std()) / math.sqrt(count),
        "error": error,
        "share": error / float(exact.square().mean()),
        "steps": steps,
        "count": count,
    }


def show_pairs(axes: Axes, x: Tensor, noise: Tensor) -> None:
    """Pairs as dots, and the mean noise in each of a few slices of x with its standard error, where there are enough."""
    axes.plot(x[:, 0], noise[:, 0], ".", color=fig.GREY, markersize=2.2, alpha=0.45, label="pairs (x_t, ε), as training draws them")
    edges = torch.linspace(-HIGH, HIGH, 23)
    slices = torch.bucketize(x[:, 0], edges)
    places, means, errors = [], [], []
    for k in range(1, len(edges)):
        own = noise[slices == k]
        if len(own) >= 12:
            places.append(float(x[slices == k].mean()))
            means.append(float(own.mean()))
            errors.append(float(own.std()) / math.sqrt(len(own)))
    look = {"fmt": "o", "color": fig.ORANGE, "markersize": 5, "capsize": 2, "zorder": 4}
    axes.errorbar(places, means, errors, label="their mean in a slice of x_t", **look)


def show_losses(axes: Axes, steps: list[int], losses: Tensor, floor: float) -> None:
    axes.loglog(steps[1:], losses[1:], color=fig.BLUE, marker="o", markersize=4, label="loss on new pairs")
    axes.axhline(floor, color="black", linestyle=":", linewidth=1.5, label=f"floor: loss of the exact score, {floor:.3f}")
    axes.loglog(steps[1:], losses[1:] - floor, color=fig.ORANGE, marker="s", markersize=4, label="loss − floor: the error of the score")
    fig.style(axes, "The loss stops, the error goes on falling", "training step", "mean square, in units of the noise")
    axes.set_ylim(top=30)
    fig.legend(axes)


LESSON = Lesson(
    "Guess the noise, learn the score",
    r"""
The way back from noise needs the score $\nabla_x \log p_t(x)$: the direction in which x becomes more probable. Nobody knows $p_t$, but
there are data, and noise can be drawn. So the network is given a noisy state and asked for the noise in it, denoising score matching
(Vincent 2011; Ho et al. 2020, arXiv:2006.11239):

$$\min_\theta\; \mathbb{E}_{t, x_0, \epsilon}\, \| \epsilon_\theta(x_t, t) - \epsilon \|^2 , \qquad x_t = \alpha x_0 + \sigma \epsilon .$$

It cannot answer right: many pairs of $x_0$ and $\epsilon$ lead to one $x_t$ (the cloud on the left). What makes the mean square smallest
is the mean of them all, $\mathrm{E}[\epsilon | x_t]$, each counted by how probable it is given $x_t$; and that mean is the score. For the
Gaussian around one datum, $\nabla \log p(x_t | x_0) = -(x_t - \alpha x_0)/\sigma^2 = -\epsilon/\sigma$; and the score of a mixture of such
Gaussians, which is what $p_t$ is, is their mean by the same probabilities:

$$\nabla \log p_t(x_t) = \mathrm{E}\big[ \nabla \log p(x_t | x_0) \,\big|\, x_t \big] = - \frac{\mathrm{E}[\epsilon | x_t]}{\sigma} .$$

The same network tells the data that is expected, $\mathrm{E}[x_0 | x_t]$: the mean of all data that could have become $x_t$. From
$x_t = \alpha x_0 + \sigma \epsilon$ follows $\mathrm{E}[x_0 | x_t] = (x_t - \sigma\, \mathrm{E}[\epsilon | x_t])/\alpha$, Tweedie's
formula. Noise, score and expected data are three names for one answer.

The data here is a mixture of three Gaussians, whose score is known. After <<steps:,>> steps the network's mean square error against the
exact $\mathrm{E}[\epsilon | x_t]$ is <<error:.4f>>, <<share:.1%>> of that function's own mean square. Its loss is <<loss:.3f>> and will
never be 0: the exact score itself has <<floor:.3f>>, since the noise in one state is not one number. Loss and error differ by this floor,
which no network changes (<<loss:.4f>> - <<floor:.4f>> = <<excess:.4f>>). A loss that no longer falls is not a score that no longer
improves.
""",
    (
        "after <<steps:,>> steps, on <<count:,>> new pairs: loss <<loss:.4f>> (at the start <<first:.2f>>), exact score's <<floor:.4f>>",
        "loss - floor <<excess:.4f>> +- <<excess_error:.4f>>; mean square error against the exact score, times sigma^2, <<error:.4f>>,"
        " <<share:.2%>> of the exact one's mean square",
    ),
    "Pairs of noisy states and their noise with the mean through them, the learned score on the exact one, and losses that stop at a floor",
    draw,
)

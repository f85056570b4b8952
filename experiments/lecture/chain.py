"""DDPM becomes the SDE: a chain of N noising steps, its limit, and the two ways back."""

from __future__ import annotations

import math

import torch

import sde_gen
from sde_gen import VPSDE, DiscreteChain
from sde_gen.exact.mixtures import GaussianData, MixtureData, slope
from sde_gen.report import figures as fig
from sde_gen.solvers import make_grid

from .lesson import Lesson, Numbers, Studio

STEPS = (25, 50, 100, 200, 400, 800, 1600)
FEW = 25
SAMPLES = 20_000
LOW, HIGH = -1.8, -0.2
"""Of the histogram: about the left mode of the two."""


def ddpm(sde: VPSDE, steps: int) -> DiscreteChain:
    """DDPM's chain with beta_i = beta(t_i)/N, t_i = (i + 1)/N."""
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return DiscreteChain.from_betas(sde.beta(times) / steps)


def draw(studio: Studio) -> Numbers:
    sde = VPSDE()
    gaussian = GaussianData(torch.zeros(1), torch.tensor([[0.25]]))
    mixture = MixtureData(torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([[[0.04]], [[0.04]]]))
    figure = fig.new_figure(12, 4.1)
    left, middle, right = figure.subplots(1, 3)

    t = torch.linspace(0, 1, 500, dtype=torch.float64)
    left.plot(t.numpy(), (sde.marginal(t)[0] ** 2).numpy(), color="black", linewidth=2, label="SDE: α²(t)")
    for steps, colour in ((FEW, fig.ORANGE), (100, fig.BLUE)):
        chain = ddpm(sde, steps)
        edges = torch.arange(steps + 1, dtype=torch.float64) / steps
        left.stairs(
            (chain.alpha**2).numpy(), edges.numpy(), baseline=None, color=colour, linewidth=1.4, label=f"chain of {steps}: Π(1 − β)"
        )
    fig.style(left, "Forward: the chain is a staircase", "t", "share of the data's variance that is left")
    fig.legend(left)

    backwards = {
        "ancestral, smaller variance": sde_gen.make_solver("ancestral"),
        "ancestral, larger variance": sde_gen.make_solver("ancestral", variance="fixed_large"),
        "Euler–Maruyama": sde_gen.make_solver("em"),
    }
    errors: dict[str, list[float]] = {"forward: the chain's α²": []} | {name: [] for name in backwards}
    target = float(gaussian.moments(sde, sde.t_min)[1])
    for steps in STEPS:
        chain = ddpm(sde, steps)
        errors["forward: the chain's α²"].append(float((chain.alpha**2 - sde.marginal(chain.times)[0] ** 2).abs().max()))
        times = make_grid(sde, "time", sde.t_max, sde.t_min, steps)
        for name, solver in backwards.items():
            variance = float(gaussian.run_moments(solver.plan(sde, times), sde, *gaussian.moments(sde, sde.t_max))[1])
            errors[name].append(abs(variance / target - 1))
    for (label, values), colour, mark in zip(errors.items(), (fig.GREY, fig.BLUE, fig.GREEN, fig.ORANGE), "soD^", strict=True):
        middle.loglog(STEPS, values, color=colour, marker=mark, markersize=5, label=label)
    fig.style(middle, "Every error halves when N doubles", "steps N", "error of α², or of the variance reached")
    middle.set_ylim(top=60 * max(values[0] for values in errors.values()))
    fig.legend(middle)

    x = torch.linspace(LOW, HIGH, 400, dtype=torch.float64)[:, None]
    right.plot(x[:, 0].numpy(), mixture.log_prob(x).exp().numpy(), color="black", linewidth=2, label="data (exact)")
    model = mixture.model(sde)
    widths = {}
    for (label, solver), colour in zip(backwards.items(), (fig.BLUE, fig.GREEN, fig.ORANGE), strict=True):
        drawn = sde_gen.sample(model, (studio.count(SAMPLES, 500), 1), solver, steps=FEW, seed=0).x.double()[:, 0]
        widths[label] = mode_std(drawn), mode_error(drawn)
        bins = torch.linspace(LOW, HIGH, 56, dtype=torch.float64)
        share = torch.histogram(drawn, bins).hist / (len(drawn) * float(bins[1] - bins[0]))
        right.stairs(share.numpy(), bins.numpy(), baseline=None, color=colour, linewidth=1.4, label=f"{label}: {widths[label][0]:.3f} wide")
    fig.style(right, f"Left mode, 0.2 wide, of N = {FEW} steps", "x", "density")
    right.set_xticks([-1.6, -1.2, -0.8, -0.4])
    right.set_ylim(0, 2.0 * float(mixture.log_prob(x).exp().max()))
    fig.legend(right)
    studio.save(figure, "chain")
    order = {name: slope(STEPS[2:], values[2:]) for name, values in errors.items()}
    last = {name: values[-1] for name, values in errors.items()}
    return {
        "forward": order["forward: the chain's α²"],
        "small": order["ancestral, smaller variance"],
        "large": order["ancestral, larger variance"],
        "em": order["Euler–Maruyama"],
        "small_last": last["ancestral, smaller variance"],
        "large_last": last["ancestral, larger variance"],
        "em_last": last["Euler–Maruyama"],
        "few": FEW,
        "std": 0.2,
        **{
            f"{part}_{key}": value
            for key, pair in zip(("small", "large", "em"), widths.values(), strict=True)
            for part, value in zip(("std", "error"), pair, strict=True)
        },
    }


def mode_std(x: torch.Tensor) -> float:
    """Spread of the samples about the left mode."""
    return float((x[x < 0] + 1).square().mean().sqrt())


def mode_error(x: torch.Tensor) -> float:
    """Standard error of `mode_std`, for a Gaussian mode."""
    return mode_std(x) / math.sqrt(2 * int((x < 0).sum()))


LESSON = Lesson(
    "DDPM becomes the SDE",
    r"""
DDPM (Ho et al. 2020, arXiv:2006.11239) noises in N steps; with $\beta_i = \beta(i/N)/N$ and ever more of them the chain becomes the
variance-preserving SDE (Song et al. 2021, arXiv:2011.13456):

$$x_i = \sqrt{1 - \beta_i}\, x_{i-1} + \sqrt{\beta_i}\, \epsilon \quad\longrightarrow\quad
\mathrm{d}x = -\tfrac12 \beta(t)\, x\, \mathrm{d}t + \sqrt{\beta(t)}\, \mathrm{d}w .$$

The way back has two readings as well: ancestral sampling takes the chain's own posterior, with the smaller of the two variances that Ho et
al. name or the larger, and Euler-Maruyama steps along the reverse SDE. With the exact score of Gaussian data all of them reach the data's
variance with an error that falls as 1/N; at 1,600 steps it is <<small_last:.2%>>, <<large_last:.2%>> and <<em_last:.2%>> of that variance.
The smaller variance is exact for data at a single point and too narrow for any other, the larger is exact for data that are noise already:
at <<few>> steps a mode of a mixture, <<std:.1f>> wide (one standard deviation), comes out <<std_small:.3f>> wide by the smaller one,
<<std_large:.3f>> by the larger and <<std_em:.3f>> by Euler-Maruyama.
""",
    (
        "order in 1/N: the chain's alpha^2 <<forward:.2f>>; variance reached by ancestral, smaller <<small:.2f>>, larger <<large:.2f>>,"
        " by Euler-Maruyama <<em:.2f>>",
        "its error at 1,600 steps, of the data's variance: <<small_last:.3%>>, <<large_last:.3%>>, <<em_last:.3%>>",
        "standard deviation of a mode (<<std:.1f>>) at <<few>> steps: ancestral, smaller <<std_small:.4f>> +- <<error_small:.4f>>, larger"
        " <<std_large:.4f>> +- <<error_large:.4f>>, Euler-Maruyama <<std_em:.4f>> +- <<error_em:.4f>>",
    ),
    "The chain's staircase beside the SDE's curve, errors that halve when the steps double, and histograms of one mode at 25 steps",
    draw,
)

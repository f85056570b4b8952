"""Why so many steps: the exact reverse kernel of a finite data set is a mixture, and a Gaussian only where the step is small."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sde_gen import Normalizer, ScoreModel, make_sde, make_solver
from sde_gen.exact.empirical import ReverseKernel, empirical_score, reverse_kernel
from sde_gen.exact.mixtures import slope
from sde_gen.report import figures as fig
from sde_gen.solvers import make_grid

from .lesson import Lesson, Numbers, Studio

POINTS = (-1.5, -0.6, 0.7, 1.4)
T, X_T = 0.4, 0.3
SHOWN = {
    "large": (0.35, "Large step: four peaks"),
    "middle": (0.2, "Middle step: ancestral too narrow"),
    "small": (0.01, "Small step: all the same"),
}
SIZES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.28, 0.35, 0.38)
CHAINS = (4, 8, 16, 32, 64, 128, 256)
LOOKS = {
    "ancestral": ("ancestral step", fig.BLUE, "-", "o"),
    "moments": ("Gaussian of the exact mean and variance", fig.ORANGE, "--", "s"),
}


def gaussians(model: ScoreModel, kernel: ReverseKernel, t: float, s: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance (B, 1) of the Gaussians in the kernel's place: the ancestral solver's own step, and the best there is."""
    (step,) = make_solver("ancestral").plan(model.sde, torch.tensor([t, s], dtype=torch.float64))
    mean = step.a * kernel.x_t + step.b[0] * model.denoise(kernel.x_t, t)
    exact, variance = kernel.moments()
    return {"ancestral": (mean, torch.full_like(mean, step.c**2)), "moments": (exact, variance[:, 0])}


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (x - mean) ** 2 / variance - 0.5 * torch.log(2 * math.pi * variance)


def total_variation(model: ScoreModel, t: float, s: float, x_t: float) -> dict[str, float]:
    """Half of the integral of |p - q|, by the trapezium rule on a fine grid."""
    kernel = reverse_kernel(model, torch.tensor([[x_t]], dtype=torch.float64), t, s)
    mean, variance = (float(value) for value in kernel.moments())
    x = mean + math.sqrt(variance) * torch.linspace(-12, 12, 8001, dtype=torch.float64)
    p = kernel.log_prob(x[None, :, None])[0].exp()
    return {
        name: float(torch.trapezoid((p - log_normal(x, *q).exp()[0]).abs(), x)) / 2 for name, q in gaussians(model, kernel, t, s).items()
    }


def step_divergence(model: ScoreModel, t: float, s: float) -> dict[str, float]:
    """KL(p(x_s|x_t) || q(x_s|x_t)) in nats, in the mean over x_t: the trapezium rule about each component of p(x_t), where the posterior
    may jump from point to point, and Gauss-Hermite's about each of the kernel (five digits)."""
    even = torch.linspace(-6.5, 6.5, 80, dtype=torch.float64)
    share = torch.softmax(-(even**2) / 2, 0).repeat(len(POINTS)) / len(POINTS)
    nodes, weights = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(24))
    points = torch.tensor(POINTS, dtype=torch.float64)
    alpha, sigma = (float(value) for value in model.sde.marginal(torch.tensor(t, dtype=torch.float64)))
    x_t = (alpha * points[:, None] + sigma * even).reshape(-1, 1)
    kernel = reverse_kernel(model, x_t, t, s)
    centres = kernel.pull * x_t + kernel.reach * points
    x_s = (centres[:, :, None] + math.sqrt(kernel.variance) * nodes).reshape(len(x_t), -1, 1)
    log_p = kernel.log_prob(x_s).reshape(len(x_t), len(points), -1)
    negative_entropy = torch.einsum("bj,bjk,k->b", kernel.weights, log_p, weights / weights.sum())
    mean, variance = kernel.moments()
    return {
        name: float(share @ (negative_entropy - log_normal(mean, m, v)[:, 0] + 0.5 * (variance[:, 0] / v)[:, 0]))
        for name, (m, v) in gaussians(model, kernel, t, s).items()
    }


def draw(studio: Studio) -> Numbers:
    sde = make_sde("vp")
    data = torch.tensor(POINTS, dtype=torch.float64)[:, None]
    model = empirical_score(data, sde, Normalizer.fit(data, "identity"))
    figure = fig.new_figure(11, 7.4)
    top, bottom = figure.subfigures(2, 1)
    numbers: dict[str, float] = {f"{key}_step": size for key, (size, _) in SHOWN.items()}

    x = torch.linspace(-2.6, 2.6, 1501, dtype=torch.float64)
    for (key, (size, title)), axes in zip(SHOWN.items(), top.subplots(1, 3), strict=True):
        s = T - size
        kernel = reverse_kernel(model, torch.tensor([[X_T]], dtype=torch.float64), T, s)
        p = kernel.log_prob(x[None, :, None])[0].exp()
        axes.fill_between(x.numpy(), p.numpy(), color="0.85")
        axes.plot(x.numpy(), p.numpy(), color="black", linewidth=1.6, label="exact p(x_s | x_t)")
        highest = float(p.max())
        for name, q in gaussians(model, kernel, T, s).items():
            label, colour, line, _ = LOOKS[name]
            density = log_normal(x, *q).exp()[0]
            highest = max(highest, float(density.max()))
            axes.plot(x.numpy(), density.numpy(), color=colour, linestyle=line, linewidth=1.8, label=label)
        alpha = float(sde.marginal(torch.tensor(s, dtype=torch.float64))[0])
        axes.plot(
            (alpha * data).numpy(), 0 * data.numpy(), "^", color="black", markersize=7, clip_on=False, label="data points, times α(s)"
        )
        axes.set_ylim(0, 1.08 * highest)
        distance = total_variation(model, T, s, X_T)
        numbers |= {f"{name}_{key}": value for name, value in distance.items()}
        fig.style(axes, f"{title}\nt = {T} → {s:.2f}, ancestral: distance {distance['ancestral']:.2g}", "x_s", "")
    top.axes[0].set_ylabel("density", fontsize=fig.TEXT)
    handles, labels = axes.get_legend_handles_labels()
    top.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=fig.TEXT, frameon=False)

    left, right = bottom.subplots(1, 2)
    distances = [total_variation(model, T, T - size, X_T) for size in SIZES]
    chains = CHAINS[: studio.count(len(CHAINS), 3)]
    totals = {steps: chain_divergence(model, steps) for steps in chains}
    for name, (label, colour, line, mark) in LOOKS.items():
        values = [each[name] for each in distances]
        numbers[f"{name}_order"] = -slope(SIZES[:4], values[:4])
        text = f"{label.removeprefix('Gaussian of the ')}: slope {numbers[f'{name}_order']:.2f}"
        left.loglog(SIZES, values, color=colour, linestyle=line, marker=mark, markersize=5, label=text)
        sums = [totals[steps][name] for steps in chains]
        numbers[f"{name}_chain_order"] = slope(chains[-3:], sums[-3:])
        numbers |= {f"{name}_first": sums[0], f"{name}_last": sums[-1]}
        text = f"{label.removeprefix('Gaussian of the ')}: slope {-numbers[f'{name}_chain_order']:.2f}"
        right.loglog(chains, sums, color=colour, linestyle=line, marker=mark, markersize=5, label=text)
    fig.style(left, "One step: the smaller, the nearer to the exact one", "step t − s", "distance (total variation)")
    fig.style(right, "From noise to data in N steps: all errors together", "steps N", "KL divergence from the exact chain, nats")
    fig.legend(left)
    fig.legend(right)
    studio.save(figure, "reverse_kernel")
    return numbers | {"shortest": chains[0], "longest": chains[-1]}


def chain_divergence(model: ScoreModel, steps: int) -> dict[str, float]:
    """KL of the exact chain from the chain of Gaussians, both started in p(t_max): the sum over the steps, and a bound on how far the
    sampled data are from the data."""
    times = make_grid(model.sde, "half_log_snr", model.sde.t_max, model.sde.t_min, steps).tolist()
    each = [step_divergence(model, t, s) for t, s in pairwise(times)]
    return {name: sum(one[name] for one in each) for name in LOOKS}


LESSON = Lesson(
    "Why so many small steps",
    r"""
Let the data be four points $z_1, \dots, z_4$ on a line. Then the exact way back from t to an earlier time s is known: it is a mixture, with
a component for each point, weighted by the point's posterior probability. DDPM's ancestral step
puts the points' mean under these probabilities, $\mathrm{E}[x_0 | x_t]$, in their place:

$$p(x_s \mid x_t) = \sum_j w_j(x_t)\, \mathcal{N}(x_s;\, a x_t + b z_j,\, c^2) \quad\approx\quad
\mathcal{N}\big(x_s;\, a x_t + b\, \mathrm{E}[x_0 \mid x_t],\, c^2\big) .$$

For a large step that is wrong: there are several peaks, and the Gaussian stands where no data are (total variation
<<ancestral_large:.2f>>). For a small step it is right (<<ancestral_small:.3f>>), with an error of order <<ancestral_order:.2f>> in the
step: this is why diffusion models take many (Sohl-Dickstein et al. 2015, arXiv:1503.03585; Ho et al. 2020, arXiv:2006.11239). No Gaussian
can have the peaks, but one of the exact mean and variance has the order <<moments_order:.2f>>, and over a whole chain the error
falls with N to the power -<<moments_chain_order:.1f>> instead of -<<ancestral_chain_order:.1f>>.
""",
    (
        "total variation at steps of <<large_step>>, <<middle_step>>, <<small_step>>:"
        " ancestral <<ancestral_large:.3f>>, <<ancestral_middle:.3f>>, <<ancestral_small:.4f>>;"
        " exact mean and variance <<moments_large:.3f>>, <<moments_middle:.3f>>, <<moments_small:.5f>>",
        "order in the step: ancestral <<ancestral_order:.2f>>, exact mean and variance <<moments_order:.2f>>",
        "KL of a chain of <<shortest>> steps: <<ancestral_first:.2f>> and <<moments_first:.2f>> nats;"
        " of <<longest>>: <<ancestral_last:.4f>> and <<moments_last:.6f>>",
        "order in 1/N of the chain's KL: ancestral <<ancestral_chain_order:.2f>>, exact mean and variance <<moments_chain_order:.2f>>",
    ),
    "The reverse kernel of four points beside two Gaussians at three step sizes, and the errors of a step and of a whole chain",
    draw,
)

"""Guidance: what its rules do to a mixture whose guided law is known, the particles that reach that law, and digits by strength."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.exact.mixtures import MixtureData
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio, show

STRENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)
SHOWN = (2.0, 4.0)
RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cfg": ({}, {"label": "classifier-free", "color": fig.BLUE, "marker": "o"}),
    "interval": ({"interval": (-1.0, 1.0)}, {"label": "the same for |λ| < 1", "color": fig.GREY, "marker": "^"}),
    "apg": ({"rule": "apg"}, {"label": "projected (APG)", "color": fig.PURPLE, "marker": "s"}),
    "cfg_zero": ({"rule": "cfg_zero"}, {"label": "CFG-Zero*", "color": fig.ORANGE, "marker": "v"}),
}
COUNT, GROUP, STEPS = 20_000, 50, 100
OF_DIGITS = (0.0, 1.0, 2.0, 4.0)
HIGH = 6.0


class TwoLaws(nn.Module):
    """E[x_0 | x_t] of the class told, and of all classes where none is."""

    def __init__(self, sde: sde_gen.SDE, own: MixtureData, whole: MixtureData) -> None:
        super().__init__()
        self.sde, self.own, self.whole = sde, own, whole

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return (self.whole if label is None else self.own).denoise_at(x, self.sde, t)


def laws() -> tuple[MixtureData, MixtureData]:
    """The class, N((1, 0), 0.6^2), and all data: half the class and half another that overlaps it."""
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)
    covariances = torch.stack([0.36 * torch.eye(2, dtype=torch.float64), 0.25 * torch.eye(2, dtype=torch.float64)])
    return MixtureData(torch.ones(1), means[:1], covariances[:1]), MixtureData(torch.ones(2) / 2, means, covariances)


def guided_law(own: MixtureData, whole: MixtureData, strength: float) -> tuple[Tensor, Tensor]:
    """The density of the first coordinate under p(x | c)^w p(x)^(1 - w), normalised, on a grid."""
    axis = torch.linspace(-4, HIGH, 501, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    log = strength * own.log_prob(points) + (1 - strength) * whole.log_prob(points)
    density = (log - log.max()).exp().reshape(len(axis), -1).sum(1)
    return axis, density / torch.trapezoid(density, axis)


def moments(x: Tensor, weights: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of weighted numbers."""
    weights = weights / weights.sum()
    mean = float((weights * x).sum())
    return mean, math.sqrt(float((weights * (x - mean) ** 2).sum()))


def draw(studio: Studio) -> Numbers:
    own, whole = laws()
    sde = sde_gen.make_sde("vp")
    model = sde_gen.ScoreModel(TwoLaws(sde, own, whole), sde, "data")
    count = studio.count(COUNT, 500) // GROUP * GROUP
    common: dict[str, Any] = {"progress": False, "dtype": torch.float64, "final": "raw"}

    def told(n: int) -> dict[str, Tensor]:
        return {"label": torch.zeros(n, dtype=torch.int64)}

    def plain(rule: str, strength: float, solver: str) -> Tensor:
        guided = sde_gen.guide(model, strength, **RULES[rule][0])
        return sde_gen.sample(guided, (count, 2), solver, STEPS, cond=told(count), **common).x[:, 0]

    def particles(strength: float) -> tuple[Tensor, Tensor]:
        """First coordinates and weights, (groups, GROUP): groups are pooled by their evidence."""
        groups = count // GROUP
        found = sde_gen.sample(sde_gen.guide(model, strength), (groups, 2), "em", STEPS, particles=GROUP, cond=told(groups), **common)
        assert found.log_weights is not None
        return found.x[..., 0], (found.log_weights - found.log_weights.max()).exp()

    figure = fig.new_figure(12, 8.6)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    *panels, curves = upper.subplots(1, 3)
    numbers: dict[str, float] = {}
    means: dict[str, list[float]] = {name: [] for name in ("law", "sde", "particles", *RULES)}
    for strength in STRENGTHS:
        grid, density = guided_law(own, whole, strength)
        by_rule = {rule: plain(rule, strength, "dpm") for rule in RULES}
        noisy, (x, weights) = plain("cfg", strength, "em"), particles(strength)
        even = torch.ones_like(noisy)
        found = {"law": moments(grid, density), "sde": moments(noisy, even), "particles": moments(x.flatten(), weights.flatten())}
        found |= {rule: moments(values, even) for rule, values in by_rule.items()}
        for name, (mean, _) in found.items():
            means[name].append(mean)
        if strength in SHOWN:
            axes = panels[SHOWN.index(strength)]
            axes.fill_between(grid, density, color="0.85", label="the law itself")
            axes.plot(grid, guided_law(own, whole, 1.0)[1], color="black", linewidth=1.2, linestyle=":", label="the class")
            bins: dict[str, Any] = {"bins": 70, "range": (-1.5, 4), "density": True, "histtype": "step", "linewidth": 1.6}
            axes.hist(by_rule["cfg"].numpy(), color=fig.BLUE, label="flow", **bins)
            axes.hist(noisy.numpy(), color=fig.ORANGE, label="SDE", **bins)
            axes.hist(x.flatten().numpy(), weights=weights.flatten().numpy(), color=fig.GREEN, label="SDE, particles", **bins)
            axes.set_xlim(-1.5, 4)
            fig.style(axes, f"strength {strength:g}", "first coordinate", "density")
            apart = (weights * (x - found["particles"][0])).sum(1) / weights.sum()
            numbers[f"particles_{strength:g}_error"] = float(apart.square().sum().sqrt())
            for name, (mean, std) in found.items():
                numbers |= {f"{name}_{strength:g}_mean": mean, f"{name}_{strength:g}_std": std}
    fig.legend(panels[0])
    curves.plot(STRENGTHS, means["law"], color="black", linewidth=2.4, label="the law itself")
    for rule, (_, look) in RULES.items():
        curves.plot(STRENGTHS, means[rule], linewidth=1.4, markersize=5, **look)
    curves.plot(STRENGTHS, means["particles"], color=fig.GREEN, linestyle="", marker="D", markersize=7, label="particles")
    fig.style(curves, "mean by strength", "strength", "mean of the samples")
    fig.legend(curves)

    network, data = studio.labelled_model, studio.digits
    label = torch.arange(10)
    rows = []
    for strength in OF_DIGITS:
        guided = sde_gen.guide(network, strength)
        rows.append(sde_gen.sample(guided, (10, *data.shape), "dpm", studio.count(20, 4), cond={"label": label}, seed=3, progress=False).x)
    axes = lower.subplots()
    show(axes, torch.stack(rows).cpu(), data.value_range or (0, 16), [f"strength {s:g}" for s in OF_DIGITS], [str(k) for k in range(10)])
    studio.save(figure, "guidance")
    error = numbers["law_4_std"] / math.sqrt(count)
    return numbers | {"error": error, "count": count, "group": GROUP, "steps": STEPS}


LESSON = Lesson(
    "Guidance: beyond the class, and what it is not",
    r"""
A network that was sometimes not told the class knows two scores, $\nabla \log p_t(x | c)$ and $\nabla \log p_t(x)$. Guidance goes
beyond the first, away from the second (Ho and Salimans 2022, arXiv:2207.12598):

$$s = \nabla \log p_t(x) + w\, \big( \nabla \log p_t(x | c) - \nabla \log p_t(x) \big) .$$

At strength w = 1 that is the class, at w = 0 everything. Above 1 it looks like the score of $p(x|c)^w p(x)^{1-w}$ (grey), which is the
class leaning away from what other classes share with it. It is not: the noised product is not the product of the noised, and so each
sampler draws a law of its own. On a class in the plane beside another that overlaps it, all known exactly, at w = 4 the law itself has
mean <<law_4_mean:.3f>> along the first axis and standard deviation <<law_4_std:.3f>>; the flow draws <<cfg_4_mean:.3f>> and
<<cfg_4_std:.3f>>, the SDE <<sde_4_mean:.3f>> and <<sde_4_std:.3f>>. What is missing can be counted while sampling: along the guided SDE
each state's weight grows by

$$\mathrm{d} \log w = \big( |\epsilon|^2 - \textstyle\sum_i a_i |\epsilon_i|^2 \big)\, \mathrm{d}\lambda ,$$

with no further network call (Skreta et al. 2025, arXiv:2503.02819). <<group>> weighted states a sample, resampled on their way, reach
<<particles_4_mean:.3f>> +- <<particles_4_error:.3f>> and <<particles_4_std:.3f>> (green).
Other rules change the push, not that fact (right). Below, digits from the same noise: without a label, with it, and beyond it.
""",
    (
        "mean and standard deviation, <<count:,>> samples, <<steps>> steps (standard error of the mean <<error:.3f>>):",
        "  strength 2: law <<law_2_mean:.3f>> <<law_2_std:.3f>>, flow <<cfg_2_mean:.3f>> <<cfg_2_std:.3f>>, "
        "SDE <<sde_2_mean:.3f>> <<sde_2_std:.3f>>, particles <<particles_2_mean:.3f>> <<particles_2_std:.3f>> "
        "(+- <<particles_2_error:.3f>>)",
        "  strength 4: law <<law_4_mean:.3f>> <<law_4_std:.3f>>, flow <<cfg_4_mean:.3f>> <<cfg_4_std:.3f>>, "
        "SDE <<sde_4_mean:.3f>> <<sde_4_std:.3f>>, particles <<particles_4_mean:.3f>> <<particles_4_std:.3f>> "
        "(+- <<particles_4_error:.3f>>)",
    ),
    "Guided samples of a class beside another at two strengths beside the exact law, means by strength and rule, digits by strength",
    draw,
)

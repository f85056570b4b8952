"""Between two digits: mixed as pixels, at different diffusion depths, and in the latent space of the probability flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import sde_gen
from sde_gen.metrics import nearest_distances, neighbour_ratio
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio, root_mean, show

DEPTHS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
LABELS = ("0", "1/8", "1/4", "3/8", "1/2", "5/8", "3/4", "7/8", "1")


def pairs(data: sde_gen.Dataset, count: int) -> tuple[Tensor, Tensor]:
    """`count` pairs of held-out digits of different classes, the first a 0 and a 7."""
    assert data.test is not None and data.test_labels is not None
    labels = data.test_labels
    first = [int(torch.nonzero(labels == digit)[0]) for digit in (0, 7)]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[(order != first[0]) & (order != first[1])]
    a, b = order[: len(order) // 2], order[len(order) // 2 :][: len(order) // 2]
    unlike = labels[a] != labels[b]
    a, b = (torch.cat((torch.tensor([one]), rest[unlike]))[:count] for one, rest in zip(first, (a, b), strict=True))
    return data.test[a], data.test[b]


def steps(studio: Studio, t: float) -> int:
    """Of the way back from t."""
    return studio.count(max(8, round(40 * t)), 3)


def draw(studio: Studio) -> Numbers:
    data, model = studio.digits, studio.model
    assert data.test is not None and data.value_range is not None
    variance = float((data.train - data.train.mean(0)).square().flatten(1).sum(1).mean())
    a, b = pairs(data, studio.count(28, 3))

    calls = studio.count(20, 5)
    weights = torch.linspace(0, 1, len(LABELS))
    pixels = torch.stack([(1 - w) * a[0] + w * b[0] for w in weights])
    rows = {"pixels": pixels}
    for t in DEPTHS:
        rows[f"t = {t:g}"] = sde_gen.mix(model, a[:1], b[:1], len(LABELS), t, "dpm_sde", seed=0, steps=steps(studio, t))[:, 0]
    rows["latents"] = sde_gen.interpolate(model, a[:1], b[:1], len(LABELS), "dpm", steps=calls)[:, 0]

    figure = fig.new_figure(11, 6.6)
    left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
    axes = left.subplots()
    show(axes, torch.stack(list(rows.values())), data.value_range, list(rows), LABELS)
    axes.set_title(
        "From a real 0 to a real 7, by the share of the 7 (columns)\nand by what is mixed: pixels, states at time t, latents (rows)",
        fontsize=fig.TEXT + 1,
        loc="left",
    )

    held_out = nearest_distances(data.test, data.train)
    mixed = {t: sde_gen.mix(model, a, b, 3, t, "dpm_sde", seed=1, steps=steps(studio, t)) for t in DEPTHS}
    path = sde_gen.interpolate(model, a, b, 3, "dpm", steps=calls)
    middles = {t: neighbour_ratio(nearest_distances(found[1], data.train), held_out) for t, found in mixed.items()}
    plain, latent = (neighbour_ratio(nearest_distances(x, data.train), held_out) for x in (0.5 * (a + b), path[1]))
    ends = {t: lost(found, a, b, variance) for t, found in mixed.items()}
    back = lost(path, a, b, variance)

    upper, lower = right.subplots(2, 1, sharex=True)
    means, bars = zip(*((v.value, 2 * v.std_error) for v in middles.values()), strict=True)
    upper.errorbar(DEPTHS, means, bars, fmt="o-", color=fig.BLUE, capsize=2, label="mixed at t ± 2 s.e.")
    for found, colour, look, label in ((plain, fig.GREY, "--", "pixels averaged"), (latent, fig.ORANGE, "-.", "latents of the flow")):
        upper.axhline(found.value, color=colour, linestyle=look, label=label)
        upper.axhspan(found.value - 2 * found.std_error, found.value + 2 * found.std_error, color=colour, alpha=0.15, linewidth=0)
    upper.axhline(1, color="black", linewidth=1, linestyle=":")
    upper.text(DEPTHS[-1], 1.01, "real held-out digits", ha="right", fontsize=fig.TEXT)
    upper.set_ylim(0.95, 1.75)
    fig.style(upper, "How near is the middle to real digits?", "", "distance to the nearest\ntraining digit / held-out digits'")
    fig.legend(upper)
    lower.errorbar(DEPTHS, [v for v, _ in ends.values()], [2 * e for _, e in ends.values()], fmt="o-", color=fig.BLUE, capsize=2)
    lower.axhline(back[0], color=fig.ORANGE, linestyle="-.")
    lower.text(DEPTHS[-1], back[0] + 0.04, "latents of the flow", ha="right", color=fig.ORANGE, fontsize=fig.TEXT)
    lower.axhline(math.sqrt(2), color="black", linewidth=1, linestyle=":")
    lower.text(DEPTHS[0], math.sqrt(2) - 0.1, "two unrelated digits", fontsize=fig.TEXT)
    fig.style(lower, "How far has an end moved?", "t", "distance / spread of the data")
    studio.save(figure, "interpolation")
    numbers = {"pairs": len(a), "pixels": plain.value, "pixels_error": plain.std_error}
    numbers |= {"latents": latent.value, "latents_error": latent.std_error, "back": back[0], "back_error": back[1]}
    for t in DEPTHS:
        name = f"{100 * t:02.0f}"
        numbers |= {f"mid{name}": middles[t].value, f"mid{name}_error": middles[t].std_error}
        numbers[f"end{name}"], numbers[f"end{name}_error"] = ends[t]
    return numbers


def lost(found: Tensor, a: Tensor, b: Tensor, variance: float) -> tuple[float, float]:
    """Root-mean-square distance of a path's ends to the digits it was asked to join, over the data's spread, and its standard error."""
    squares = [(end - x).square().flatten(1).sum(1) for end, x in ((found[0], a), (found[-1], b))]
    return root_mean(0.5 * (squares[0] + squares[1]) / variance)


LESSON = Lesson(
    "Between two digits",
    r"""
Averaging pixels lays one digit over the other. Ho et al. (2020, arXiv:2006.11239, section 4.4) noise both to time t with the same noise,
mix there and come back; the probability flow (Song et al. 2021, arXiv:2011.13456) carries both to latents instead, which are joined on the
sphere:

$$z_w = \frac{\sin((1 - w)\,\phi)\, z_a + \sin(w \phi)\, z_b}{\sin \phi}, \qquad \cos \phi = \frac{z_a^{\top} z_b}{|z_a|\,|z_b|} .$$

Depth is a bargain. From the middle of an average of pixels it is <<pixels:.2f>> times as far to the nearest training digit as from a
real held-out one, mixed at t = 0.6 <<mid60:.2f>>; but by then the ends have moved by <<end60:.2f>> of the data's spread (two unrelated
digits: 1.41): new samples, and below almost one whatever the weight. At t = 0.2 the ends move by <<end20:.2f>> and the middle is
at <<mid20:.2f>>. The latents give <<latents:.2f>> and keep the ends to <<back:.3f>>; what they pass on the way is a matter of the flow.
""",
    (
        "nearest training digit from the middle, over held-out digits': pixels <<pixels:.2f>> +- <<pixels_error:.2f>>, mixed at"
        " t = 0.1 <<mid10:.2f>> +- <<mid10_error:.2f>>, 0.2 <<mid20:.2f>> +- <<mid20_error:.2f>>, 0.4 <<mid40:.2f>> +- <<mid40_error:.2f>>,"
        " 0.6 <<mid60:.2f>> +- <<mid60_error:.2f>>, latents <<latents:.2f>> +- <<latents_error:.2f>>",
        "how far the ends have moved, over the data's spread: t = 0.1 <<end10:.3f>> +- <<end10_error:.3f>>, 0.2 <<end20:.3f>> +-"
        " <<end20_error:.3f>>, 0.4 <<end40:.3f>> +- <<end40_error:.3f>>, 0.6 <<end60:.3f>> +- <<end60_error:.3f>>, latents <<back:.4f>> +-"
        " <<back_error:.4f>> (<<pairs>> pairs)",
    ),
    "A grid of mixtures of a 0 and a 7 by weight and depth, and how near the middles are to real digits and the ends to where they began",
    draw,
)

"""Progressive generation: what is expected of the image on the way to it, and what a half-noised state has settled."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import sde_gen
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio, root_mean, show

STEPS = 100
WAY = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SHARED = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SHOWN = (0.8, 0.6, 0.4, 0.3, 0.2)
ROWS, COPIES = 4, 6


def average(values: Tensor) -> tuple[float, float]:
    """Mean of values (N,), and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def nearest_class(data: sde_gen.Dataset, x: Tensor) -> Tensor:
    """The label of the training image nearest to each of x (N, *)."""
    assert data.train_labels is not None
    return data.train_labels[torch.cdist(x.flatten(1), data.train.flatten(1)).argmin(1)]


def agreement(labels: Tensor) -> Tensor:
    """Labels (N, M): for each row the share of its pairs that agree."""
    same = (labels[:, :, None] == labels[:, None, :]).double().sum((1, 2)) - labels.shape[1]
    return same / (labels.shape[1] * (labels.shape[1] - 1))


def draw(studio: Studio) -> Numbers:
    data, model = studio.digits, studio.model
    assert data.test is not None and data.value_range is not None and model.normalizer is not None
    decode, span = model.normalizer.decode, data.value_range
    variance = float((data.train - data.train.mean(0)).square().flatten(1).sum(1).mean())
    count = studio.count(48, 4)

    start = model.prior.from_noise(torch.randn(count, *data.shape, generator=torch.Generator().manual_seed(0)))
    grid = torch.linspace(model.sde.t_max, model.sde.t_min, STEPS + 1, dtype=torch.float64)
    run = sde_gen.sample(model, start.shape, "ancestral", grid=grid, x_init=start, seed=0, trajectory="states")
    assert run.trajectory is not None
    states = dict(zip(grid.tolist(), (start, *run.trajectory), strict=True))
    at = {t: min(states, key=lambda time: abs(time - t)) for t in WAY}
    with torch.no_grad():
        expected = {t: decode(model.denoise(states[time], time)) for t, time in at.items()}

    figure = fig.new_figure(11, 9.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    left, right = bottom.subfigures(1, 2, width_ratios=(1.35, 1))
    axes = top.subplots()
    images = torch.stack([*(expected[t][:ROWS] for t in WAY), run.x[:ROWS]], 1)
    show(axes, images, span, [f"run {k + 1}" for k in range(ROWS)], [f"t = {t:g}" for t in WAY] + ["sample"])
    axes.set_title("Four runs from noise to data: what the network expects of the end, E[x₀ | x_t]", fontsize=fig.TEXT + 1, loc="left")

    few = min(count, studio.count(14, 3))
    guess, shared, real, same = {}, {}, {}, {}
    clean, pictures = model.normalizer.encode(data.test), []
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    for t in SHARED:
        x_t = states[at[t]][:few].repeat_interleave(COPIES, 0)
        steps = studio.count(max(4, round(25 * t)), 3)
        ends = sde_gen.sample(model, x_t.shape, "dpm_sde", steps=steps, x_init=x_t, t_start=at[t], seed=2).x
        ends = ends.unflatten(0, (few, COPIES))
        off = (ends - ends.mean(1, keepdim=True)).square().flatten(2).sum(2).sum(1) / (COPIES - 1)
        shared[t] = root_mean(off / variance)
        same[t] = average(agreement(nearest_class(data, ends.flatten(0, 1)).reshape(few, COPIES)))
        guess[t] = root_mean((run.x - expected[t]).square().flatten(1).sum(1) / variance)
        alpha, sigma = (float(value) for value in model.sde.marginal(torch.tensor(at[t], dtype=torch.float64)))
        with torch.no_grad():
            found = decode(model.denoise(alpha * clean + sigma * noise, at[t]))
        real[t] = root_mean((data.test - found).square().flatten(1).sum(1) / variance)
        if t in SHOWN:
            pictures.append(torch.cat((decode(states[at[t]][:1]), expected[t][:1], ends[0])))
    axes = left.subplots()
    show(axes, torch.stack(pictures), span, [f"t = {t:g}" for t in SHOWN], ["x_t", "E[x₀ | x_t]", *map(str, range(1, COPIES + 1))])
    axes.set_title(f"{COPIES} samples from one shared x_t of run 1", fontsize=fig.TEXT + 1, loc="left")

    upper, lower = right.subplots(2, 1, sharex=True)
    curves = {
        "from E[x₀ | x_t] to the run's end": (guess, fig.BLUE, "o-"),
        "standard deviation of samples sharing x_t": (shared, fig.ORANGE, "s-"),
        "from E[x₀ | x_t] to x₀, real held-out digits": (real, "black", ":"),
    }
    for label, (values, colour, look) in curves.items():
        bars = [2 * error for _, error in values.values()]
        upper.errorbar(list(values), [v for v, _ in values.values()], bars, fmt=look, color=colour, label=label, markersize=4.5, capsize=2)
    fig.style(upper, "What is still open (± 2 s.e.)", "", "distance / data's spread")
    upper.set_ylim(0, 1.6)
    fig.legend(upper)
    bars = [2 * error for _, error in same.values()]
    lower.errorbar(list(same), [v for v, _ in same.values()], bars, fmt="s-", color=fig.ORANGE, markersize=4.5, capsize=2)
    chance = float(agreement(nearest_class(data, run.x)[None])[0])
    lower.axhline(chance, color=fig.GREY, linestyle="--", linewidth=1.2)
    lower.text(0.1, chance + 0.03, "two unrelated samples", color=fig.GREY, fontsize=fig.TEXT)
    fig.style(lower, "Two samples of one x_t are the same digit (± 2 s.e.)", "t", "probability")
    lower.set_ylim(0, 1.05)
    studio.save(figure, "progressive")
    names = {8: 0.8, 6: 0.6, 4: 0.4, 2: 0.2}
    numbers = {"chance": chance, "count": count, "few": few, "copies": COPIES}
    for key, column in (("guess", guess), ("shared", shared), ("real", real), ("same", same)):
        for name, t in names.items():
            numbers[f"{key}{name}"], numbers[f"{key}{name}_error"] = column[t]
    return numbers


LESSON = Lesson(
    "Progressive generation",
    r"""
The expected image, the mean of all images that could have become $x_t$ each counted by its probability, comes from the score by Tweedie's
formula (lesson 2),

$$\mathrm{E}[x_0 \mid x_t] = \frac{x_t + \sigma^2(t)\, \nabla \log p_t(x_t)}{\alpha(t)} ,$$

and is blurred while much is open. Ho et al. (2020, arXiv:2006.11239, section 4.3) watch it sharpen, and draw several samples from one
shared $x_t$. For an exact score three things are one number: how far the expected image is from the end of the run, how far samples of one
$x_t$ spread about their mean, and how far the expected image of a noised real digit is from that digit. At t = 0.2 they are <<guess2:.2f>>,
<<shared2:.2f>> and <<real2:.2f>> of the data's spread: the network is surer of its own samples than it should be of real digits. On these
small images little is settled early: two samples that share $x_t$ are of one class (that of the nearest training image) with probability
<<same6:.2f>> at t = 0.6, hardly more than unrelated ones (<<chance:.2f>>), <<same4:.2f>> at 0.4 and <<same2:.2f>> at 0.2.
""",
    (
        "distance / spread at t = 0.6: expected image to end <<guess6:.3f>> +- <<guess6_error:.3f>>, samples of one x_t <<shared6:.3f>>"
        " +- <<shared6_error:.3f>>, real digits <<real6:.3f>> +- <<real6_error:.3f>>",
        "the same at t = 0.2: <<guess2:.3f>> +- <<guess2_error:.3f>>, <<shared2:.3f>> +- <<shared2_error:.3f>>,"
        " <<real2:.3f>> +- <<real2_error:.3f>>",
        "two samples of one x_t are the same digit: <<same8:.2f>> +- <<same8_error:.2f>> at t = 0.8, <<same6:.2f>> +- <<same6_error:.2f>>"
        " at 0.6, <<same4:.2f>> +- <<same4_error:.2f>> at 0.4, <<same2:.2f>> +- <<same2_error:.2f>> at 0.2; unrelated <<chance:.2f>>",
        "(<<count>> runs; <<copies>> samples from each of <<few>> states)",
    ),
    "Expected images sharpening along four runs, six samples from one shared state at four times, and how much is still open by time",
    draw,
)

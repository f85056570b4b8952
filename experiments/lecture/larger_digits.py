"""Larger digits: MNIST's 28x28 beside scikit-learn's 8x8, and why larger images need more noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import SubFigure
from torch import Tensor
from torch.nn.functional import avg_pool2d

import sde_gen
from sde_gen.report import figures as fig

from .lesson import Lesson, Numbers, Studio, show

LEVELS = (3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0)
"""Half log-SNRs at which a digit of each size is shown."""
FINE = torch.linspace(-4, 3, 29, dtype=torch.float64)
"""Half log-SNRs at which classes are read."""
KNOWN, ASKED = 4000, 400
"""Training images that the reader of classes knows, and held-out images that it is asked about."""
BLOCK = 4
"""Side of the squares of pixels whose means make 7x7 images of 28x28."""
SAMPLES, CALLS = 12, 30
CLASSES, DIGIT = 10, 2
COARSE = "the same averaged to 7x7"


def drawn(x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` items of x (N, *) with their labels, drawn without replacement (all, where there are fewer)."""
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]
    return x[chosen], labels[chosen]


def class_read(known: Tensor, labels: Tensor, asked: Tensor, level: float) -> Tensor:
    """The most probable class of each of `asked` (B, *) noised to half log-SNR `level`, were the images `known` (N, *) all data there is.

    The posterior is exact: datum z has the weight exp(-|x_0 + eps/e^lambda - z|^2 e^(2 lambda)/2), and a class the sum of its data's.
    """
    noise = torch.randn(asked.shape, generator=torch.Generator().manual_seed(1))
    x = (asked + noise * math.exp(-level)).flatten(1)
    weights = torch.softmax(-0.5 * math.exp(2 * level) * torch.cdist(x, known.flatten(1)).square(), 1)
    return (weights @ torch.nn.functional.one_hot(labels, CLASSES).to(weights)).argmax(1)


def half_way(shares: Sequence[float]) -> float:
    """The half log-SNR of `FINE` at which `shares` first comes half the way from chance to its last value, between two points of it."""
    target = (1 / CLASSES + shares[-1]) / 2
    after = next(k for k, share in enumerate(shares) if share >= target)
    before = max(after - 1, 0)
    part = (target - shares[before]) / max(shares[after] - shares[before], 1e-9)
    return float(FINE[before] + (FINE[after] - FINE[before]) * part)


def draw(studio: Studio) -> Numbers:
    large = studio.mnist  # before anything is trained: it may be missing
    models = {"8x8 (scikit-learn)": (studio.model, studio.digits), "28x28 (MNIST)": (studio.mnist_model, large)}
    figure = fig.new_figure(11, 11.4)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.75, 1))
    left, right = bottom.subfigures(1, 2, width_ratios=(1.2, 1))
    for (name, (model, data)), above, below in zip(models.items(), top.subfigures(2, 1), left.subfigures(2, 1), strict=True):
        show_levels(above, model, data, name)
        x = sde_gen.sample(model, (SAMPLES, *data.shape), "angle", studio.count(CALLS, 6), seed=3).x
        axes = below.subplots()
        show(axes, x.unflatten(0, (2, SAMPLES // 2)), data.value_range)
        axes.set_title(f"Samples, {name}", fontsize=fig.TEXT + 1, loc="left")

    known, asked = studio.count(KNOWN, 500), studio.count(ASKED, 100)
    whole = {name: parts(data, known, asked) for name, (_, data) in models.items()}
    coarse = [(avg_pool2d(x, BLOCK), labels) for x, labels in whole["28x28 (MNIST)"]]
    axes, half, spread = right.subplots(), {}, {}
    for (name, (train, test)), colour, mark in zip(
        (whole | {COARSE: coarse}).items(), (fig.ORANGE, fig.BLUE, fig.GREEN), "so^", strict=True
    ):
        mean, std = train[0].mean(), train[0].std()  # of the noise's own unit, as where a network is trained
        new = (test[0] - mean) / std
        shares = [float((class_read((train[0] - mean) / std, train[1], new, level) == test[1]).double().mean()) for level in FINE.tolist()]
        axes.plot(FINE, shares, color=colour, marker=mark, markersize=3.5, label=name)
        half[name], spread[name] = half_way(shares), float(std)
    axes.axhline(1 / CLASSES, color=fig.GREY, linestyle="--", linewidth=1.2)
    axes.text(2.9, 0.12, "chance", color=fig.GREY, fontsize=fig.TEXT)
    axes.invert_xaxis()
    fig.style(axes, "Noisy digits whose class can still be read", "λ: data left, noise right", "share of the held-out digits")
    axes.set_ylim(0, 1.35)
    fig.legend(axes)
    studio.save(figure, "larger_digits")
    eight, full, small = half.values()
    return {
        "eight": eight,
        "full": full,
        "small": small,
        "shift": small - full,
        "expected": math.log(BLOCK * spread[COARSE] / spread["28x28 (MNIST)"]),
        "steps": studio.steps,
        "known": known,
        "asked": asked,
        **{f"parameters_{data.shape[-1]}": sum(p.numel() for p in model.parameters()) for model, data in models.values()},
    }


def parts(data: sde_gen.Dataset, known: int, asked: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels of `known` training items and of `asked` held-out ones."""
    assert data.train_labels is not None and data.test is not None and data.test_labels is not None
    return [drawn(data.train, data.train_labels, known), drawn(data.test, data.test_labels, asked)]


def show_levels(panel: SubFigure, model: sde_gen.ScoreModel, data: sde_gen.Dataset, name: str) -> None:
    """A held-out 2 with noise of each level, and the image that the network expects of it."""
    assert data.test is not None and data.test_labels is not None and model.normalizer is not None and data.value_range is not None
    x = model.normalizer.encode(data.test[torch.nonzero(data.test_labels == DIGIT)[0]])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    times = model.sde.time_of(torch.tensor(LEVELS, dtype=torch.float64))
    states, expected = [], []
    for t, level in zip(times, LEVELS, strict=True):
        alpha, sigma = (float(value) for value in model.sde.marginal(t))
        x_t = alpha * x + sigma * noise
        with torch.no_grad():
            expected.append(model.normalizer.decode(model.denoise(x_t, t)))
        share = 1 / math.sqrt(1 + math.exp(-2 * level))  # of the data in the state, shown at the data's own variance
        states.append(model.normalizer.decode(share * (x + noise * math.exp(-level))))
    columns = [f"λ = {level:g}".replace("-", "\N{MINUS SIGN}") for level in LEVELS]
    axes = panel.subplots()
    show(axes, torch.stack((torch.cat(states), torch.cat(expected))), data.value_range, ["x_t", "E[x₀ | x_t]"], columns)
    axes.set_title(name, fontsize=fig.TEXT + 1, loc="left")


LESSON = Lesson(
    "Larger digits",
    r"""
All digits above have 8x8 pixels, and the network that made them <<steps>> training steps. MNIST's have 28x28. The same recipe works: a
U-Net of <<parameters_28:,>> parameters instead of <<parameters_8:,>>, as many steps (a first sketch; [docs/mnist.md](mnist.md) has the
trained one). What changes is what a noise level means. At the same $\lambda$ the larger digit is far easier to see: neighbouring pixels
say the same thing, and the noise in them does not. Averaging n pixels leaves such an image as it is and divides the noise by $\sqrt n$, so
that blocks of b x b pixels shift everything by

$$\lambda \;\to\; \lambda + \log b$$

(Hoogeboom et al. 2023, arXiv:2301.11093; Chen 2023, arXiv:2301.10972).

Which class a noisy digit has can be read exactly, were <<known:,>> training images all the data: by their posterior probabilities. Half
the way from guessing to the best that is read from clean digits is reached at $\lambda$ = <<eight:.2f>> with 8x8 pixels and at <<full:.2f>>
with 28x28. That is size and not the data set: MNIST's own digits, averaged in blocks of 4x4 to 7x7, need <<small:.2f>>. This shift is
<<shift:.2f>>. The rule, less the contrast that averaging takes from these images, makes <<expected:.2f>> of it (log 4 is 1.39); the rest is
what could be read in the details that are gone. A schedule made for small images ends too early for large ones, and spends too much of its
time where nothing is left to decide.
""",
    (
        "half log-SNR at which half of the class is read, of <<asked:,>> held-out digits: 8x8 <<eight:.2f>>, 28x28 <<full:.2f>>,"
        " 28x28 averaged to 7x7 <<small:.2f>>",
        "shift by averaging <<shift:.2f>>; log(4 x contrast left) = <<expected:.2f>>",
        "networks of <<steps>> steps each: <<parameters_8:,>> parameters for 8x8, <<parameters_28:,>> for 28x28",
    ),
    "Digits of 8x8 and 28x28 pixels at equal noise levels with the expected images, samples of both, and how long classes can be read",
    draw,
)

"""How well the score of `sde-gen score` tells items that are not the data's from held-out ones, on digits.

    python benchmarks/out_of_distribution.py --run runs/digits-vp --mnist DIR

Held-out digits, one half of which is the reference, against five sets that are shifted: the other half at 70 % of its contrast, with
noise of 1.5 levels, turned by a quarter, inverted, and MNIST's test digits averaged over 3 x 3 pixels to 8 x 8 and 17 levels (--mnist:
the folder of its files). AUC: the probability that a shifted item scores as less like the data than a held-out one, .5 where they cannot
be told apart, with its standard error (Hanley and McNeil 1982). By four scores, each larger for what is less like the data:

    bits         bits per dimension, the score of p_low
    two-sided    distance of the bits from the held-out median, in ranks: the score of p_two_sided
    latent       squared length of the state at t_max, of which no command makes use
    both         Mahalanobis distance of log-density and latent from the training data's (after Morningstar et al. 2021, arXiv:2006.09273)

And whether p-values hold: the share of the other half, unshifted, with p_low and p_two_sided of at most .05, with its binomial error.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sde_gen
from sde_gen.data import load_dataset, rows_drawn
from sde_gen.likelihood.bits_per_dim import CUT, matching_time
from sde_gen.likelihood.outliers import p_values
from sde_gen.metrics.estimate import share
from sde_gen.models.denoiser import Denoiser
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
SCORES = ("bits", "two-sided", "latent", "both")


def shifted(x: Tensor, levels: int, seed: int) -> dict[str, Tensor]:
    """The digits x (N, 1, 8, 8) of whole numbers 0 .. levels - 1, shifted in four ways."""
    generator = torch.Generator().manual_seed(seed)
    top = levels - 1
    noisy = x + 1.5 * torch.randn(x.shape, generator=generator)
    return {
        "scaled": (0.7 * x).round(),
        "noisy": noisy.round().clamp(0, top),
        "turned": x.rot90(1, (2, 3)),
        "inverted": top - x,
    }


def small_mnist(folder: Path, count: int, levels: int) -> Tensor:
    """Test digits of MNIST, their middle 24 x 24 pixels averaged over 3 x 3, in as many levels."""
    x = load_dataset("mnist", folder).test
    assert x is not None
    x = x[rows_drawn(len(x), count, 0)]
    return (F.avg_pool2d(x[:, :, 2:26, 2:26], 3) * ((levels - 1) / 255)).round()


def statistics(model: Denoiser, x: Tensor, seed: int, tolerance: float) -> Tensor:
    """Of each item the log-density in nats at the time whose noise fills a bin, and the squared length of its latent: (N, 2) float64."""
    t, width = matching_time(model, x.shape[1:], 1.0)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-CUT, CUT)
    found = sde_gen.log_likelihood(model, x.double() + 0.5 / width * z, t=t, rtol=tolerance, atol=tolerance, batch_size=64, seed=seed)
    return torch.stack((found.log_prob.double(), found.latent.double().flatten(1).square().sum(1)), 1)


def by_score(items: Tensor, held_out: Tensor, training: Tensor) -> dict[str, Tensor]:
    """The scores (N,) of items with these statistics (N, 2), larger for what is less like the data."""
    two_sided = p_values(items[:, 0], held_out[:, 0])[1]
    centred = items - training.mean(0)
    both = torch.einsum("ni,ij,nj->n", centred, torch.linalg.inv(training.T.cov()), centred)
    return {"bits": -items[:, 0], "two-sided": -two_sided, "latent": items[:, 1], "both": both}


def auc(shifted: Tensor, held_out: Tensor) -> tuple[float, float]:
    """The share of pairs in which the first is larger, ties halved, and its standard error."""
    pairs = (shifted[:, None] > held_out).double() + 0.5 * (shifted[:, None] == held_out).double()
    a, n, m = float(pairs.mean()), len(shifted), len(held_out)
    spread = a * (1 - a) + (n - 1) * (a / (2 - a) - a**2) + (m - 1) * (2 * a**2 / (1 + a) - a**2)
    return a, math.sqrt(max(spread, 0.0) / (n * m))


def measure(model: Denoiser, data: sde_gen.Dataset, mnist: Path | None, count: int, seed: int, tolerance: float) -> dict[str, Any]:
    """AUC of each score on each shifted set, and what p-values do on unshifted data."""
    assert data.test is not None and data.levels is not None
    held = data.test[torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))][: 2 * count]
    reference, others = held[: len(held) // 2], held[len(held) // 2 :]
    sets = shifted(others, data.levels, seed)
    sets |= {} if mnist is None else {"mnist": small_mnist(mnist, len(others), data.levels)}
    training = data.train[rows_drawn(len(data.train), len(reference), seed)]
    found = {
        name: statistics(model, x, seed, tolerance) for name, x in {"training": training, "held_out": reference, "same": others}.items()
    }
    plain = by_score(found["held_out"], found["held_out"], found["training"])
    rows: dict[str, Any] = {}
    for name, x in sets.items():
        scores = by_score(statistics(model, x, seed, tolerance), found["held_out"], found["training"])
        rows[name] = {score: auc(scores[score], plain[score]) for score in SCORES}
    low, two_sided = p_values(found["same"][:, 0], found["held_out"][:, 0])
    kept = {name: share(p <= 0.05) for name, p in (("p_low", low), ("p_two_sided", two_sided))}
    unshifted = {name: [value.value, value.std_error] for name, value in kept.items()}
    counts = {"held_out": len(reference), "shifted": len(others), "seed": seed, "tolerance": tolerance}
    return {"auc": rows, "unshifted_below_0.05": unshifted, "counts": counts}


def show(found: dict[str, Any]) -> None:
    print(f"| shift | {' | '.join(SCORES)} |\n|---|{'---|' * len(SCORES)}")
    for name, row in found["auc"].items():
        print(f"| {name} | " + " | ".join(f"{row[score][0]:.3f} +- {row[score][1]:.3f}" for score in SCORES) + " |")
    for name, (value, error) in found["unshifted_below_0.05"].items():
        print(f"unshifted items with {name} of at most .05: {value:.3f} +- {error:.3f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-vp"), help="a run on digits (default runs/digits-vp)")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's files; without it four sets are measured")
    parser.add_argument("--count", type=int, default=148, help="of each set (default 148, half of the held-out digits)")
    parser.add_argument("--tolerance", type=float, default=3e-4)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "out_of_distribution.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measure(sde_gen.load(args.run), load_dataset("digits"), args.mnist, args.count, 0, args.tolerance)
    show(found)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    short = json.loads(to_json(found), parse_float=lambda text: float(f"{float(text):.4g}"))
    args.json.write_text(to_json(short, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Samples told a condition, against the law that the condition leaves: a response told two numbers, a fine field told a coarse one.

    python benchmarks/conditional.py

Trains the networks of experiments/configs/regression.yaml and downscale.yaml in runs/, or uses those that are there, and draws samples as
these files say. All conditions are of held-out items.

table   1,000 conditions, 99 samples each. The error of the conditional mean in units of the conditional standard deviation, its root mean
        square; the standard deviation over the exact one; how often the held-out response lies between the 5th smallest and the 5th
        largest sample, which is 90 % for the exact law, beside the binomial band (95 %) of so many conditions, also by the size of the
        noise; and that share by the exact law in the place of the one response, which has no binomial noise. The divergence KL(exact |
        model) in nats is the mean difference of log-densities at the held-out responses.
field   1,000 conditions, 4 samples each. The error of the conditional mean, over the conditional standard deviation; the covariance under
        the condition, pooled over conditions: |found - exact|/|exact| in the Frobenius norm, its trace over the exact one, and the
        variance along the exact eigenvectors by groups of them; and how far block means of samples are from those they are told, over
        the fields' standard deviation.

A field's exact flow from the same noise is a control variate of its moments: what is measured is the difference of the two, and squares are
estimated without bias from independent blocks of conditions, whose jackknife is the error. For scale: the training fields' own covariance
about their exact means is printed too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

import sde_gen
from sde_gen.commands.config import read_config, resolve
from sde_gen.commands.runs import open_run
from sde_gen.data import Dataset
from sde_gen.data.dataset import rows_drawn
from sde_gen.data.toys import block_means, fine_law, response_law
from sde_gen.exact.mixtures import GaussianData, marginal
from sde_gen.models.denoiser import Denoiser
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "experiments" / "configs"
Options = dict[str, Any]
TAIL, BLOCKS = 5, 20
_LITTLE: Options = {"training": {"steps": 4, "batch": 8, "evaluations": 1}, "data": {"limit": 100}}
QUICK: dict[str, Options] = {
    "regression": {**_LITTLE, "model": {"options": {"width": 8, "depth": 1}}},
    "downscale": {**_LITTLE, "model": {"options": {"width": 8, "multipliers": [1]}}},
}


def with_error(each: Tensor) -> list[float]:
    """Mean and its standard error."""
    return [float(each.mean()), float(each.std() / len(each) ** 0.5)]


def root(square: list[float]) -> list[float]:
    """Of a mean square, estimated without bias and so possibly below 0, the root, and its error by the first order."""
    value = max(square[0], 0.0) ** 0.5
    return [value, square[1] / (2 * max(value, square[1] ** 0.5))]


def held_out(data: Dataset, count: int, draws: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """`count` held-out items, their conditions, and the same conditions `draws` times each."""
    assert data.test is not None
    rows = rows_drawn(len(data.test), count, 0)
    cond = {name: value[rows] for name, value in data.test_cond.items()}
    return data.test[rows], cond, {name: value.repeat_interleave(draws, 0) for name, value in cond.items()}


def table(model: Denoiser, data: Dataset, count: int, options: Options) -> dict[str, Any]:
    draws = 20 * TAIL - 1  # between the order statistics TAIL and draws + 1 - TAIL lie 90 % of the exact law
    y, cond, repeated = held_out(data, count, draws)
    count, y = len(y), y[:, 0].double()
    mean, std = response_law(cond["dose"], cond["age"])
    x = sde_gen.sample(model, (count * draws, 1), cond=repeated, progress=False, **options).x.double().reshape(count, draws)
    spread = x.std(1)
    low, high = (x.kthvalue(place, 1).values for place in (TAIL, draws + 1 - TAIL))
    inside = ((y >= low) & (y <= high)).double()
    normal = torch.distributions.Normal(mean, std)
    density = sde_gen.log_likelihood(model, y[:, None].to(data.train), cond=cond).log_prob
    order = std.argsort()
    quarters = [{"covered": float(inside[part].mean()), "band": band(len(part))} for part in order.chunk(4)]
    return {
        "conditions": count,
        "samples": draws,
        "mean error": root(with_error(((x.mean(1) - mean).square() - spread.square() / draws) / std.square())),
        "spread": with_error(spread / std),
        "covered": float(inside.mean()),
        "band": band(count),
        "covered by quarters of noise": quarters,
        "covered, exact law": with_error(normal.cdf(high) - normal.cdf(low)),
        "divergence": with_error(normal.log_prob(y) - density),
    }


def band(count: int) -> list[float]:
    """Where the share of `count` tries of probability 0.9 lies with probability 0.95."""
    return [float(binom.ppf(p, count, 0.9)) / count for p in (0.025, 0.975)]


def field(model: Denoiser, data: Dataset, count: int, draws: int, options: Options) -> dict[str, Any]:
    _, cond, repeated = held_out(data, count, draws)
    count = len(cond["coarse"]) // BLOCKS * BLOCKS
    cond, repeated = {"coarse": cond["coarse"][:count]}, {"coarse": repeated["coarse"][: count * draws]}
    mean, covariance = fine_law(cond["coarse"])
    noise = model.sde.prior_sample((count * draws, *data.shape), generator=torch.Generator().manual_seed(1))
    found = sde_gen.sample(model, tuple(noise.shape), cond=repeated, x_init=noise, progress=False, **options).x
    same_noise, of_exact = exact_samples(model, mean.repeat_interleave(draws, 0), covariance, noise)
    x, z = (value.double().reshape(count, draws, -1) for value in (found, same_noise))
    off = x - z
    bias = off.mean(1).square() - off.var(1) / draws
    # The covariance of each block of conditions: the samples' minus the exact samples', plus the exact one's own.
    each = torch.stack([within(a) - within(b) for a, b in zip(x.chunk(BLOCKS), z.chunk(BLOCKS), strict=True)]) + of_exact
    norm = covariance.square().sum()
    values, vectors = torch.linalg.eigh(covariance)
    along = torch.einsum("kij,in,jn->kn", each, vectors, vectors)
    groups = {"largest 24": slice(-24, None), "next 72": slice(-96, -24), "other 144": slice(16, -96)}
    train = (data.train.double() - fine_law(data.cond["coarse"])[0]).flatten(1)
    block_error = block_means(x.reshape(-1, *data.shape)) - repeated["coarse"]
    return {
        "conditions": count,
        "samples": draws,
        "mean error": root(with_error(bias.mean(1) / (covariance.trace() / len(covariance)))),
        "covariance error": root(jackknife(each - covariance, lambda parts: unbiased_square(parts) / norm)),
        "trace": with_error(each.diagonal(dim1=1, dim2=2).sum(1) / covariance.trace()),
        "variances": {name: with_error(along[:, part].sum(1) / values[part].sum()) for name, part in groups.items()},
        "block means": float(block_error.square().mean().sqrt() / data.train.double().std()),
        "training fields": float((train.T @ train / len(train) - covariance).norm() / norm.sqrt()),
    }


def exact_samples(model: Denoiser, mean: Tensor, covariance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Where the exact flow of N(mean, covariance) takes states at t_max, as E[x_0 | x] at t_min in the data's units, like samples; and the
    covariance of that, which the noise left at t_min makes a little smaller than `covariance`."""
    sde, normalizer = model.sde, model.normalizer
    assert normalizer is not None
    zero = torch.zeros(1, *noise.shape[1:], dtype=torch.float64)
    scale = (normalizer.decode(zero + 1) - normalizer.decode(zero)).flatten()[0]
    law = GaussianData(zero.flatten(), covariance / scale**2)
    centre = normalizer.encode(mean)
    (start, sigma), gain = marginal(sde, sde.t_max), law.affine(sde, torch.tensor(sde.t_min, dtype=torch.float64))[0]

    def end(state: Tensor) -> Tensor:
        return law.flow_map(state, sde, sde.t_max, sde.t_min).flatten(1) @ gain.T

    states = noise.double() - start * centre
    response = end(torch.eye(len(covariance), dtype=torch.float64))
    return (end(states).reshape(noise.shape) + centre) * scale + normalizer.decode(zero), sigma**2 * scale**2 * response.T @ response


def within(groups: Tensor) -> Tensor:
    """The covariance (D, D) of (G, n, D) about each group's mean."""
    off = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
    return off.T @ off / (groups.shape[0] * (groups.shape[1] - 1))


def unbiased_square(parts: Tensor) -> Tensor:
    """The square of the expectation of independent parts (K, *), summed over its entries."""
    return (parts.sum(0).square().sum() - parts.square().sum()) / (len(parts) * (len(parts) - 1))


def jackknife(parts: Tensor, function: Callable[[Tensor], Tensor]) -> list[float]:
    count = len(parts)
    left = torch.stack([function(parts[torch.arange(count) != k]) for k in range(count)])
    return [float(function(parts)), float(((count - 1) * left.var(unbiased=False)).sqrt())]


def show(results: dict[str, Any]) -> None:
    for name, one in results.items():
        print(f"\n{name}: {one['conditions']} conditions, {one['samples']} samples each; {one['training']}; {one['solver']}\n")
        print("| what | found |\n|---|---|")
        for key in [key for key in one if key not in ("conditions", "samples", "training", "solver", "band")]:
            cell = said([one]) if key == "covered" else said(one[key])
            print(f"| {key} | {cell} |")


def said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {said(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value[0], dict):
        return "; ".join(f"{one['covered']:.3f} (band {low_high(one['band'])})" for one in value)
    return f"{value[0]:.4f} +- {value[1]:.4f}"


def low_high(ends: list[float]) -> str:
    return f"{ends[0]:.3f} .. {ends[1]:.3f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are (default runs)")
    parser.add_argument("--only", choices=("regression", "downscale"), help="one of the two")
    parser.add_argument("--quick", action="store_true", help="little training, few samples")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "conditional.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = json.loads(args.json.read_text(encoding="utf-8")) if args.only and args.json.exists() else {}
    for name in (args.only,) if args.only else ("regression", "downscale"):
        config = resolve(read_config(CONFIGS / f"{name}.yaml"), QUICK[name] if args.quick else {})
        run = open_run(config, args.runs / f"{name}-{config.sde.name}", say=lambda _: None, progress=False)
        count, options = 40 if args.quick else 1000, {"solver": config.sampling.solver, "steps": config.sampling.steps}
        found = table(run.model, run.data, count, options) if name == "regression" else field(run.model, run.data, count, 4, options)
        training = run.config.training
        of_run = {"training": f"{training.steps} steps of {training.batch}", "solver": f"{options['solver']}, {options['steps']} steps"}
        results[name] = found | of_run
    show(results)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    short = json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.4g}"))
    args.json.write_text(to_json(short, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

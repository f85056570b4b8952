"""Gaps of a table filled: the posterior of a trained network against the exact conditional law.

    python benchmarks/restoration_table.py [--run runs/table-vp] [--rows 240] [--samples 64] [--methods twisted mmps]

The data set `table` has four correlated columns in units of their own, one log-normal and one of two modes, and known conditionals: height,
weight and the logarithm of income are jointly normal, and age is noise about 20 or 60 by the sign of a normal number, so that given any of
them all others follow in closed form. Held-out rows lose one, two or three cells each, drawn at random; nothing is said of the noise, as
cells that are given are exact.

error     the root mean square of the posterior's mean less the truth, over a column's gaps, in standard deviations of the column; beside
          the exact conditional mean's, and the ratio of the two with the error of its difference over rows.
coverage  the share of gaps inside the central 90 % of their samples, with the band that holds 95 % of as many right ones.
ranks     the p-value of uniform ranks of the truth among its samples, one gap of each row (exact).

The exact conditional's own samples stand beside as a control, with as many of them. Truths drawn from the network, with gaps of the same
kind, judge the method apart from how well the network is trained; those have no exact conditional.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen.commands.config import resolve
from sde_gen.commands.run_data import config_of_run
from sde_gen.commands.runs import open_run
from sde_gen.data import rows_drawn
from sde_gen.diagnostics.calibration import coverage, randomised_ranks, uniformity
from sde_gen.inverse import METHODS, Gaussian, Mask, Measurement
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
COLUMNS = ("height", "weight", "income", "age")
LEVEL = 0.9
MEASUREMENT = Measurement(Mask(), Gaussian(0.0))
"""Gaps, and cells that are exact."""
CORRELATIONS = torch.tensor(
    [[1.0, 0.8, math.sqrt(0.5)], [0.8, 1.0, 0.8 * math.sqrt(0.5)], [math.sqrt(0.5), 0.8 * math.sqrt(0.5), 1.0]], dtype=torch.float64
)
"""Of u, v and (u + w)/sqrt(2), the normal numbers that height, weight and the logarithm of income are made of."""
MODES, SPREAD = torch.tensor([20.0, 60.0], dtype=torch.float64), 4.0
"""Of age: where v is negative, where it is positive, and the noise about either."""


def latent(x: Tensor) -> Tensor:
    """The normal numbers (N, 3) behind rows (N, 4), NaN in gaps."""
    x = x.double()
    return torch.stack([(x[:, 0] - 170) / 10, (x[:, 1] - 70) / 12, torch.log(x[:, 2] / 3000) / 0.6], 1)


def conditional(y: Tensor, count: int, seed: int = 0) -> Tensor:
    """Exact draws (N, count, 4) of the rows y (N, 4) given what is not NaN in them."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(len(y), count, 4, dtype=torch.float64)
    for row, (given, z) in enumerate(zip(y.double(), latent(y), strict=True)):
        known = ~torch.isnan(z)
        mean, covariance = _normal(z, known)
        v = _of_v(given[3], mean[1], covariance[1, 1], count, generator)
        # The rest of what is not known is normal given v.
        gain = covariance[:, 1] / covariance[1, 1] if not known[1] else torch.zeros(3, dtype=torch.float64)
        left = covariance - torch.outer(gain, covariance[1])
        values, vectors = torch.linalg.eigh(left)
        noise = torch.randn(count, 3, generator=generator, dtype=torch.float64) @ (vectors * values.clamp_min(0).sqrt()).T
        full = mean + (v - mean[1])[:, None] * gain + noise
        full[:, 1] = v
        age = MODES[(v > 0).long()] + SPREAD * torch.randn(count, generator=generator, dtype=torch.float64)
        drawn = torch.stack([170 + 10 * full[:, 0], 70 + 12 * full[:, 1], 3000 * torch.exp(0.6 * full[:, 2]), age], 1)
        out[row] = torch.where(torch.isnan(given), drawn, given)
    return out


def _normal(z: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (3,) and covariance (3, 3) of the normal numbers given those that are known."""
    gain = CORRELATIONS[:, known] @ torch.linalg.inv(CORRELATIONS[known][:, known])
    mean = torch.where(known, z, gain @ z[known])
    covariance = CORRELATIONS - gain @ CORRELATIONS[known]
    return mean, covariance * ~known[:, None] * ~known


def _of_v(age: Tensor, mean: Tensor, variance: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws of v ~ N(mean, variance) given the age, which tells its sign (all alike where v is known)."""
    if variance == 0:
        return mean.expand(count)
    std = variance.sqrt()
    below = torch.special.ndtr(-mean / std)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    if torch.isnan(age):
        return mean + std * torch.special.ndtri(uniform)
    odds = torch.stack([below, 1 - below]).log() - 0.5 * ((age - MODES) / SPREAD) ** 2
    positive = torch.rand(count, generator=generator, dtype=torch.float64) < odds.softmax(0)[1]
    share = torch.where(positive, below + (1 - below) * uniform, below * uniform)
    return mean + std * torch.special.ndtri(share.clamp(1e-15, 1 - 1e-15))


def gaps(x: Tensor, seed: int) -> Tensor:
    """Rows (N, 4) that lack one, two or three of their cells, NaN, in turn."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(x.shape, generator=generator).argsort(1).argsort(1)
    return torch.where(order < (torch.arange(len(x)) % (x.shape[1] - 1) + 1)[:, None], torch.nan, x.double())


@dataclass(frozen=True)
class Filled:
    """Samples (N, L, 4) of each row, their logarithmic weights (N, L) or None, their means (N, 4), and the network calls of one sample."""

    samples: Tensor
    log_weights: Tensor | None
    means: Tensor
    calls: float = 0.0


def judged(truths: Tensor, y: Tensor, found: Filled, exact: Tensor | None, scale: Tensor, seed: int) -> dict[str, Any]:
    """The row of one method, by column and of all gaps together; `exact` are the conditional means, where they are known."""
    hidden = torch.isnan(y)
    ranks = randomised_ranks(truths, found.samples, found.log_weights, seed=seed)
    off = ((found.means - truths.double()) / scale).square()
    best = None if exact is None else ((exact - truths.double()) / scale).square()
    generator = torch.Generator().manual_seed(seed)
    one = torch.where(hidden, torch.rand(y.shape, generator=generator), -1.0).argmax(1)  # a gap of each row
    row: dict[str, Any] = {"ranks_p": uniformity(ranks[torch.arange(len(y)), one][:, None]).p_value}
    for name, place in [*((name, [k]) for k, name in enumerate(COLUMNS)), ("all", list(range(4)))]:
        rows = hidden[:, place].any(1)
        mask = hidden[rows][:, place].double()
        inside = ((2 * ranks[rows][:, place] - 1).abs() <= LEVEL).double()
        shares = (inside * mask).sum(1) / mask.sum(1)
        band = coverage(ranks[rows][:, :1], (LEVEL,)).band[0].tolist()
        part: dict[str, Any] = {"rows": int(rows.sum()), "coverage": float(shares.mean()), "band": band}
        each = (off[rows][:, place] * mask).sum(1)
        part["error"] = math.sqrt(float(each.sum() / mask.sum()))
        if best is not None:
            theirs = (best[rows][:, place] * mask).sum(1)
            part["exact_error"] = math.sqrt(float(theirs.sum() / mask.sum()))
            part["ratio"] = part["error"] / part["exact_error"]
            # Of the ratio of two sums of squares, by the difference of the rows.
            difference = each - part["ratio"] ** 2 * theirs
            part["ratio_error"] = float(difference.std() * math.sqrt(len(each)) / theirs.sum()) / (2 * part["ratio"])
        row[name] = part
    return row


def filled(model: sde_gen.Denoiser, y: Tensor, method: str, args: argparse.Namespace) -> Filled:
    """The posterior of rows whose cells are exact where they are given."""
    parts = []
    for first in range(0, len(y), args.batch):
        common: dict[str, Any] = {"steps": args.steps, "seed": args.seed, "index_offset": first, "progress": False}
        parts.append(sde_gen.posterior(model, MEASUREMENT, y[first : first + args.batch], args.samples, method, **common))
    weights = None if parts[0].log_weights is None else torch.cat([part.log_weights for part in parts if part.log_weights is not None])
    means, calls = (torch.cat([value(part) for part in parts]).double().cpu() for value in (lambda p: p.mean(), lambda p: p.nfe))
    return Filled(torch.cat([part.x for part in parts]).double().cpu(), weights, means, float(calls.mean()) / args.samples)


def show(found: dict[str, Any]) -> None:
    for kind, methods in found["truths"].items():
        print(f"\n{kind}: {found['rows']} rows, {found['samples']} samples each, {found['steps']} steps\n")
        print("| method | column | error | exact | ratio | 90 % coverage (band) | p of ranks |\n|---|---|---|---|---|---|---|")
        for method, row in methods.items():
            for name in (*COLUMNS, "all"):
                part = row[name]
                known = "- | -"
                if "ratio" in part:
                    known = f"{part['exact_error']:.3f} | {part['ratio']:.3f} +- {part['ratio_error']:.3f}"
                share = f"{part['coverage']:.1%} ({part['band'][0]:.1%} .. {part['band'][1]:.1%})"
                p = f"{row['ranks_p']:.2g}" if name == "all" else ""
                print(f"| {method} | {name} | {part['error']:.3f} | {known} | {share} | {p} |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/table-vp"), help="trained as experiments/configs/table.yaml where it is none"
    )
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=40, help="rows at a time, on which nothing depends")
    parser.add_argument("--methods", nargs="+", default=["twisted", "mmps"], choices=[name for name in METHODS if name != "oracle"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "restoration_table.json")
    args = parser.parse_args(arguments)
    asked = {"data": {"name": "table"}, "training": {"steps": 2000}, "sampling": {"solver": "heun", "steps": 18}}
    run = open_run(config_of_run(args.run) if args.run.is_dir() else resolve(asked), args.run)
    data, model = run.data, run.model
    assert data.test is not None
    scale = data.train.double().std(0)
    truths = data.test[rows_drawn(len(data.test), args.rows, args.seed)]
    drawn = sde_gen.sample(model, (args.rows, 4), "dpm_sde", args.steps, seed=args.seed + 1, progress=False).x.cpu()
    found: dict[str, Any] = {"rows": args.rows, "samples": args.samples, "steps": args.steps, "truths": {}}
    for kind, x in (("held-out rows", truths), ("truths from the network", drawn)):
        y = gaps(x, args.seed)
        exact = conditional(y, 4000, args.seed + 1).mean(1) if kind == "held-out rows" else None
        table = found["truths"].setdefault(kind, {})
        if exact is not None:
            control = conditional(y, args.samples, args.seed + 2)
            table["exact conditional"] = judged(x, y, Filled(control, None, control.mean(1)), exact, scale, args.seed)
        for method in args.methods:
            began = time.process_time()
            posteriors = filled(model, y, method, args)
            table[method] = judged(x, y, posteriors, exact, scale, args.seed)
            table[method] |= {"cpu_seconds": time.process_time() - began, "calls": posteriors.calls}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(to_json(found, 1) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()

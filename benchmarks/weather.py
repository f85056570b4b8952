"""Samples of a masked field beside its law: five variables of scales 1e5 to 1e-8 around the globe, land cut out.

    python benchmarks/weather.py

Trains the network of experiments/configs/weather.yaml in runs/, or uses the one that is there, and draws as many samples as that file says.
All is of valid points, in units of each variable's own standard deviation (`sde_gen.data.weather.weather_law`):

mean, std     of each variable over all valid points, less its true mean and over its true standard deviation, with standard errors over
              samples (each sample's own mean, and mean square about the true mean)
variables     correlations of the ten pairs of variables at one point, over all points
neighbours    correlations with the point 1, 2, 4 and 8 to the east, over all pairs, and over those across the ends of the grid alone;
              and 1, 2 and 4 to the north
covariance    |found - exact|/|exact|, Frobenius, of the whole covariance of valid entries, without the part that so few samples make

The same numbers of as many held-out fields stand beside them. And how far points of land are from the mark that they are written with.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen.commands.config import read_config, resolve
from sde_gen.commands.runs import open_run
from sde_gen.data.weather import VARIABLES, ocean, weather_law
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
CONFIG = HERE.parent / "experiments" / "configs" / "weather.yaml"
EAST, NORTH = (1, 2, 4, 8), (1, 2, 4)
QUICK: dict[str, Any] = {
    "training": {"steps": 4, "batch": 8, "evaluations": 1},
    "data": {"limit": 100},
    "model": {"options": {"width": 8, "multipliers": [1], "attention": [], "patch": 4}},
    "sampling": {"samples": 20, "steps": 4},
}


def with_error(each: Tensor) -> list[float]:
    """The mean over samples (N,) and its standard error."""
    return [float(each.mean()), float(each.std() / math.sqrt(len(each)))]


def moments(z: Tensor) -> dict[str, Any]:
    """Statistics of fields z (N, 5, 16, 32) in units of the law, 0 on land, each with its error over the fields."""
    sea = ocean()
    rows: dict[str, Any] = {"mean": {}, "std": {}, "variables": {}, "east": {}, "across the ends": {}, "north": {}}
    for k, name in enumerate(VARIABLES):
        rows["mean"][name] = with_error(z[:, k][:, sea].mean(1))
        value, error = with_error(z[:, k][:, sea].square().mean(1))
        rows["std"][name] = [math.sqrt(value), error / (2 * math.sqrt(value))]
    for k, one in enumerate(VARIABLES):
        for m, other in enumerate(VARIABLES):
            if k < m:
                rows["variables"][f"{one}, {other}"] = with_error((z[:, k] * z[:, m])[:, sea].mean(1))
    for lag in EAST:
        both = sea & sea.roll(-lag, 1)
        product = (z * z.roll(-lag, 3)).mean(1)
        rows["east"][lag] = with_error(product[:, both].mean(1))
        ends = both.clone()
        ends[:, :-lag] = False
        rows["across the ends"][lag] = with_error(product[:, ends].mean(1))
    for lag in NORTH:
        both = sea[lag:] & sea[:-lag]
        rows["north"][lag] = with_error((z[:, :, lag:] * z[:, :, :-lag]).mean(1)[:, both].mean(1))
    return rows


def exact() -> dict[str, Any]:
    """What `moments` gives of the law itself."""
    _, _, correlations = weather_law()
    c = correlations.reshape(5, 16, 32, 5, 16, 32)
    rows: dict[str, Any] = {"mean": dict.fromkeys(VARIABLES, 0.0), "std": dict.fromkeys(VARIABLES, 1.0)}
    names = list(VARIABLES)
    rows["variables"] = {f"{names[k]}, {names[m]}": float(c[k, 4, 9, m, 4, 9]) for k in range(5) for m in range(k + 1, 5)}
    rows["east"] = {lag: float(c[0, 4, 3, 0, 4, 3 + lag]) for lag in EAST}
    rows["across the ends"] = dict(rows["east"])
    rows["north"] = {lag: float(c[0, 4, 3, 0, 4 + lag, 3]) for lag in NORTH}
    return rows


def covariance_error(z: Tensor) -> list[float]:
    """|found - exact|/|exact| of the covariance of valid entries about the true mean, without what N Gaussian draws of the law add to its
    square, and its jackknife error over ten blocks."""
    valid = ocean().expand(5, -1, -1).flatten()
    right = weather_law()[2][valid][:, valid].float()
    flat = z.flatten(1)[:, valid].float()

    def error(rows: Tensor) -> float:
        found = rows.T @ rows / len(rows)
        noise = (right.square().sum() + right.trace().square()) / len(rows)
        square = (found - right).square().sum() - noise
        return float(square.clamp_min(0.0).sqrt() / right.norm())

    blocks = torch.arange(len(flat)) % 10
    left_out = torch.tensor([error(flat[blocks != k]) for k in range(10)])
    return [error(flat), float(left_out.std() * 9 / math.sqrt(10))]


def standard(x: Tensor) -> Tensor:
    """Fields in the units of the law, float64, 0 on land."""
    mean, stds, _ = weather_law()
    return torch.where(ocean(), (x.double() - mean) / stds[:, None, None], 0.0)


def measure(x: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Everything of samples x and of held-out fields, with the exact values and how many errors off the samples are."""
    found, beside, right = moments(standard(x)), moments(standard(held_out)), exact()
    rows = {
        kind: {
            str(name): {"exact": right[kind][name], "samples": value, "errors_off": (value[0] - right[kind][name]) / value[1]}
            | {"held_out": beside[kind][name]}
            for name, value in part.items()
        }
        for kind, part in found.items()
    }
    whole = {"samples": covariance_error(standard(x)), "held_out": covariance_error(standard(held_out))}
    return {"statistics": rows, "covariance": whole, "samples": len(x), "held_out": len(held_out)}


def show(found: dict[str, Any]) -> None:
    print("| | | exact | samples | held-out fields |\n|---|---|---|---|---|")
    for kind, part in found["statistics"].items():
        for name, row in part.items():
            values = [f"{row[key][0]:.4f} +- {row[key][1]:.4f}" for key in ("samples", "held_out")]
            print(f"| {kind} | {name} | {row['exact']:.4f} | {values[0]} | {values[1]} |")
    for key, (value, error) in found["covariance"].items():
        print(f"covariance of {key}: off by {value:.1%} +- {error:.1%} (Frobenius)")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/weather-vp"), help="run directory (default runs/weather-vp)")
    parser.add_argument("--quick", action="store_true", help="little training, few samples")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "weather.json")
    args = parser.parse_args(arguments)
    config = resolve(read_config(CONFIG), QUICK if args.quick else {})
    run = open_run(config, args.run, say=lambda _: None, progress=False)
    sampling = config.sampling
    shape = (sampling.samples, *run.data.shape)
    out = sde_gen.sample(
        run.model, shape, sampling.solver, steps=sampling.steps, seed=sampling.seed, batch_size=sampling.batch, progress=False
    )
    assert run.data.test is not None
    found = measure(out.x, run.data.test[: len(out.x)])  # drawn independently
    training = config.training
    found |= {"training": f"{training.steps} steps of {training.batch}", "solver": f"{sampling.solver}, {sampling.steps} steps"}
    show(found)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    short = json.loads(to_json(found), parse_float=lambda text: float(f"{float(text):.4g}"))
    args.json.write_text(to_json(short, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

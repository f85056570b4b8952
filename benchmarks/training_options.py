"""What the settings of a training do to the digits' default recipe at equal processor time, or for as many steps.

    python benchmarks/training_options.py                        # 100 processor seconds a training, three seeds
    python benchmarks/training_options.py --steps 200 --width 16 --set training.batch=32 --set training.warmup=20

Each of VARIANTS trains for each seed; a seed fixes weights, order and noise, so variants differ in their setting alone. Measured on the
averaged weights: the squared error over the zero network's by half log-SNR, on all held-out images and as many training ones; the
likelihood bound's integral up to half log-SNR 3.5, near which truncated-normal dequantisation of the digits begins, and up to 6,

    int E|eps_theta - eps|^2 dlambda / log 2   bits a dimension, up to a constant that is the same for all

the Frechet distance of --samples images to the training ones (features of a classifier of the digits), and the share memorised (0.05 by
chance). Processor seconds count training alone; on a busy machine they vary by a fifth, where --steps compares exactly.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen.commands import flags
from sde_gen.commands.config import resolve
from sde_gen.commands.run_data import check
from sde_gen.data import Dataset, load_dataset, rows_drawn
from sde_gen.metrics import FeatureNet, cached_features, frechet_distance, memorised_fraction
from sde_gen.models.denoiser import encoded
from sde_gen.training import fit
from sde_gen.training.trainer import Trainer
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).resolve().parent
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "lr 4e-3": ["training.lr=4e-3"],
    "lr 8e-3": ["training.lr=8e-3"],
    "muon, lr 4e-3": ["training.optimizer=muon", "training.lr=4e-3"],
    "muon, lr 8e-3": ["training.optimizer=muon", "training.lr=8e-3"],
    "muon, lr 16e-3": ["training.optimizer=muon", "training.lr=16e-3"],
    "reference of all": ["training.reference=1500"],
    "reference of all, lr 8e-3": ["training.reference=1500", "training.lr=8e-3"],
    "broad times": ["training.times=broad"],
    "ema 0.1": ["training.ema_width=0.1"],
}
LAMBDAS = torch.linspace(-5, 6, 23, dtype=torch.float64)


@torch.no_grad()
def errors_by_level(model: sde_gen.ScoreModel, items: Tensor, seed: int = 5) -> list[tuple[float, float, float]]:
    """At each of LAMBDAS: it, the squared error over the zero network's, and the squared error of the noise, a mean over entries."""
    z, generator = encoded(model, items), torch.Generator().manual_seed(seed)
    found = []
    for t in model.sde.time_of(LAMBDAS).clamp(model.sde.t_min, model.sde.t_max):
        alpha, sigma = (float(value) for value in model.sde.marginal(t))
        x = alpha * z + sigma * torch.randn(z.shape, generator=generator)
        error = float((model.denoise(x, float(t)) - z).double().square().mean())
        zero = float((float(model.scales(t).skip) * x - z).double().square().mean())
        found.append((float(model.sde.half_log_snr(t)), error / zero, error * (alpha / sigma) ** 2))
    return found


def bits(rows: list[tuple[float, float, float]], most: float) -> float:
    """The integral of the noise's squared error over the levels up to `most`, by the trapezium rule, in bits a dimension."""
    kept = [(level, value) for level, _, value in rows if level <= most + 1e-6]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(kept)) / math.log(2)


def train(
    layers: list[dict[str, Any]], seed: int, seconds: float, steps: int | None, data: Dataset
) -> tuple[sde_gen.ScoreModel, dict[str, Any]]:
    """A training for so many processor seconds, or steps; the model of averaged weights and what it took."""
    length = {"max_seconds": seconds, "steps": 1_000_000} if steps is None else {"steps": steps}
    config = resolve(*layers, {"training": {"seed": seed, "evaluations": 1, **length}})
    model = check(config, data)
    began = time.process_time()
    Trainer.seconds = property(lambda self: self.before + time.process_time() - began)  # type: ignore[assignment, method-assign]
    result = fit(model, data.train, config.training, {}, held_out=data.test, progress=False)
    return result.model, {"processor_seconds": time.process_time() - began, "steps": result.steps}


def measure(model: sde_gen.ScoreModel, data: Dataset, features: FeatureNet, samples: int, seed: int) -> dict[str, Any]:
    held = errors_by_level(model, data.test)
    seen = errors_by_level(model, data.train[rows_drawn(len(data.train), len(data.test), 1)])
    x = sde_gen.sample(model, (samples, *data.shape), solver="dpm", steps=16, seed=seed, progress=False).x
    distance = frechet_distance(features.features(x), features.features(data.train))
    return {
        "levels": [level for level, _, _ in held],
        "held_out": [ratio for _, ratio, _ in held],
        "training": [ratio for _, ratio, _ in seen],
        "bits_to_3.5": bits(held, 3.5),
        "bits_to_6": bits(held, 6.0),
        "bits_to_3.5_of_training": bits(seen, 3.5),
        "frechet": distance.value,
        "frechet_error": distance.std_error,
        "memorised": memorised_fraction(x, data.train, data.test, quantile=0.05).value,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--steps", type=int, help="as many steps for all in the place of --seconds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32, help="of the U-Net; the recipe's is 32")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of all, as of sde-gen run")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path("runs/training_options"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "training_options.json")
    args = parser.parse_args(arguments)
    data = load_dataset("digits")
    features = cached_features(data, args.work)
    common = [*args.set, f"model.options={{width: {args.width}, multipliers: [1, 2], attention: [1], dropout: 0.05}}"]
    run_flags = argparse.ArgumentParser()
    flags.add_run_flags(run_flags)
    results: dict[str, list[dict[str, Any]]] = {}
    print("| variant | processor s | steps | bits to 3.5 | of training images | bits to 6 | at 6 | Frechet | memorised |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.variants:
        layers = flags.layers(run_flags.parse_args([part for text in common + VARIANTS[name] for part in ("--set", text)]))
        for seed in range(args.seeds):
            model, took = train(layers, seed, args.seconds, args.steps, data)
            results.setdefault(name, []).append({"seed": seed, **took, **measure(model, data, features, args.samples, seed)})
        print(f"| {name} | {row_of(results[name])} |", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(to_json({"settings": vars(args) | {"work": "", "out": ""}, "variants": results}, 1) + "\n", encoding="utf-8")


def row_of(runs: list[dict[str, Any]]) -> str:
    """The means over the seeds, with the spread of one of them (its standard deviation) where there are several."""

    def cell(key: str, digits: int) -> str:
        values = [run[key] for run in runs]
        spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 and digits else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    last = statistics.mean(run["held_out"][-1] for run in runs)
    parts = [
        cell("processor_seconds", 0),
        cell("steps", 0),
        cell("bits_to_3.5", 3),
        cell("bits_to_3.5_of_training", 3),
        cell("bits_to_6", 3),
    ]
    return " | ".join([*parts, f"{last:.3f}", cell("frechet", 1), cell("memorised", 3)])


if __name__ == "__main__":
    main()

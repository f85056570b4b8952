"""What guidance samples, against closed forms, and what it costs.

    python benchmarks/guidance.py

law         p(x | c) = N(0, 1) and p(x) = N(0, 2) along VE. Strength g stands for the variance 2/(g + 1); the flow of the guided score ends
            at 2^(1 - g) and its SDE at (2 - 2^(2 - 2g))/(2g - 1). Printed: what the flow and each solver of the reverse SDE end at, and
            what particles do, whose weights are to turn it into the law's own.
classifier  a mixture of three modes and its exact noisy classifier, strength 1: the sliced Wasserstein distance of each solver's samples
            to the mode, beside that of the mode's own score with the same seeds.
cost        milliseconds of a guided step over those of one network call at twice the batch, and of a step with particles over one
            without, at one number of states, for the digits network.

Errors are of the mean over independent repeats, or of `sliced_wasserstein` itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.guidance import Classifier, guide
from sde_gen.metrics import sliced_wasserstein
from sde_gen.solvers import SOLVERS, make_solver

HERE = Path(__file__).parent
ONE = torch.ones(1, 1, dtype=torch.float64)


class Branches(nn.Module):
    """E[x_0 | x_t] of one law where `kind` is 1, of another where it is 0 or not given."""

    def __init__(self, sde: sde_gen.SDE, given: MixtureData, null: MixtureData) -> None:
        super().__init__()
        self.sde, self.given, self.unconditional = sde, given, null

    def null(self, name: str, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def forward(self, x: Tensor, c: Tensor, kind: Tensor | None = None) -> Tensor:
        null = self.unconditional.denoise_at(x, self.sde, c)
        return null if kind is None else torch.where(kind[:, None] == 1, self.given.denoise_at(x, self.sde, c), null)


def kind(count: int) -> dict[str, Tensor]:
    return {"kind": torch.ones(count, dtype=torch.int64)}


def mean_and_error(values: list[float]) -> list[float]:
    return [statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5]


def law(strength: float, size: int, groups: int, steps: int, repeats: int) -> dict[str, Any]:
    sde = sde_gen.make_sde("ve", sigma_min=0.01, sigma_max=80.0)
    model = sde_gen.ScoreModel(Branches(sde, GaussianData(torch.zeros(1), ONE), GaussianData(torch.zeros(1), 2 * ONE)), sde, "data")
    guided = guide(model, strength)
    common: dict[str, Any] = {"dtype": torch.float64, "progress": False}
    rows: dict[str, Any] = {}
    flow = sde_gen.sample(guided, (4096, 1), "ode", cond=kind(4096), **common).x
    rows["ode"] = {"alone": [float(flow.square().mean()), float(flow.square().std() / 4096**0.5)]}
    for name in SOLVERS:
        if not make_solver(name).reverse_sde:
            continue
        alone, weighted, ess = [], [], []
        for seed in range(repeats):
            out = sde_gen.sample(guided, (groups, 1), name, steps, seed=seed, particles=size, cond=kind(groups), **common)
            assert out.log_weights is not None and out.ess is not None
            plain = sde_gen.sample(guided, (groups * size // 4, 1), name, steps, seed=seed, cond=kind(groups * size // 4), **common)
            alone.append(float(plain.x.square().mean()))
            weighted.append(float((out.log_weights.flatten().softmax(0) * out.x.flatten().square()).sum()))
            ess.append(float(out.ess.mean()))
        rows[name] = {"alone": mean_and_error(alone), "particles": mean_and_error(weighted), "ess": statistics.mean(ess)}
    expected = {"law": 2 / (strength + 1), "flow": 2 ** (1 - strength), "sde": (2 - 2 ** (2 - 2 * strength)) / (2 * strength - 1)}
    return {"strength": strength, "expected": expected, "steps": steps, "particles": size, "solvers": rows}


def classifier(count: int, steps: int) -> dict[str, Any]:
    sde = sde_gen.make_sde("vp")
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.0]], dtype=torch.float64)
    covariances = torch.eye(2, dtype=torch.float64) * torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)[:, None, None]
    mixture = MixtureData(torch.tensor([0.5, 0.3, 0.2]), means, covariances)
    mode = MixtureData(torch.ones(1), means[:1], covariances[:1])

    def log_prob(x: Tensor, t: Tensor | float) -> Tensor:
        return mode.log_prob(x, sde, t) - mixture.log_prob(x, sde, t)

    guided, own = Classifier(mixture.model(sde, "sde"), log_prob), mode.model(sde, "sde")
    truth = mode.sample(count, seed=1)
    rows = {}
    for name in SOLVERS:
        method = make_solver(name)
        if method.needs_variance or name == "langevin":
            continue
        options: dict[str, Any] = {"progress": False, "dtype": torch.float64, "steps": None if method.adaptive else steps}
        found = [sliced_wasserstein(sde_gen.sample(model, (count, 2), name, **options).x, truth) for model in (guided, own)]
        rows[name] = [[estimate.value, estimate.std_error] for estimate in found]
    return {"samples": count, "solvers": rows}


def cost(batch: int, rounds: int) -> dict[str, Any]:
    options = {"width": 32, "multipliers": [1, 2], "attention": [1]}
    network = sde_gen.make_network("unet", (1, 8, 8), 10, **options).eval()
    model = sde_gen.ScoreModel(network, sde_gen.make_sde("vp"), "edm", clock="half_log_snr", data_std=1.0)
    x, c, label = torch.randn(2 * batch, 1, 8, 8), torch.zeros(2 * batch), torch.arange(2 * batch) % 10
    cond, guided = {"label": label[:batch]}, guide(model, 2.0)
    steps = 10
    common: dict[str, Any] = {"steps": steps, "progress": False, "final": "state", "on_failure": "mask"}
    eighth = {"label": label[: batch // 8]}
    jobs: dict[str, Callable[[], Any]] = {
        "network at 2B": lambda: [network(x, c, label) for _ in range(steps)],
        "guided": lambda: sde_gen.sample(guided, (batch, 1, 8, 8), "em", cond=cond, **common),
        "guided, 8 particles": lambda: sde_gen.sample(guided, (batch // 8, 1, 8, 8), "em", cond=eighth, particles=8, **common),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, job in jobs.items():
                began = time.perf_counter()
                job()
                if turn:  # the first prepares things
                    times[name].append(1e3 * (time.perf_counter() - began))
    per_call = {"network at 2B": steps, "guided": steps, "guided, 8 particles": steps + 1}
    found = {name: statistics.median(values) / per_call[name] for name, values in times.items()}
    ratios = {
        "guided": statistics.median([a / b for a, b in zip(times["guided"], times["network at 2B"], strict=True)]),
        "particles": found["guided, 8 particles"] / found["guided"],
    }
    return {"batch": batch, "milliseconds a call": found, "ratios": ratios, "targets": {"guided": 1.05, "particles": 1.05}}


def show(results: dict[str, Any]) -> None:
    for one in results["law"]:
        wanted = ", ".join(f"{name} {value:.4f}" for name, value in one["expected"].items())
        print(f"\nstrength {one['strength']:g}, {one['steps']} steps, {one['particles']} particles; variances by closed form: {wanted}\n")
        print("| solver | alone | particles | ess |\n|---|---|---|---|")
        for name, row in one["solvers"].items():
            cells = [f"{row[key][0]:.4f} +- {row[key][1]:.4f}" if key in row else "-" for key in ("alone", "particles")]
            print(f"| {name} | {cells[0]} | {cells[1]} | {row.get('ess', 0):.0f} |")
    print("\n| solver | guided by the exact classifier | the mode's own score |\n|---|---|---|")
    for name, (guided, own) in results["classifier"]["solvers"].items():
        print(f"| {name} | {guided[0]:.4f} +- {guided[1]:.4f} | {own[0]:.4f} +- {own[1]:.4f} |")
    print(f"\ncost: {results['cost']['milliseconds a call']}, ratios {results['cost']['ratios']}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything small")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "guidance.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    groups, repeats, count, batch, rounds, steps = (8, 2, 100, 8, 1, 20) if args.quick else (200, 8, 5000, 64, 9, 100)
    results = {
        "law": [law(strength, 64, groups, steps, repeats) for strength in ((3.0,) if args.quick else (1.5, 3.0, 5.0))],
        "classifier": classifier(count, steps // 2),
        "cost": cost(batch, rounds),
    }
    show(results)
    args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

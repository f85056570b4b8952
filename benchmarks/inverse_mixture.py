"""Posteriors of a mixture of Gaussians, by every method: how far its samples are from exact ones, and its scores from the exact score.

    python benchmarks/inverse_mixture.py [--cells 8/1 80/2] [--problems 20] [--methods twisted mmps] [--peer PYTHON]

The protocol of Cardoso et al. 2023 (arXiv:2308.07983) and Janati et al. 2024 (dcps): 25 unit Gaussians at (-8 i, -8 j) repeated along d
dimensions, i, j = -2 .. 2, with weights like squared normal numbers; y = A x + sigma_y eps of a prior draw, A with the singular vectors of
a random matrix and singular values from U(0, 1), sigma_y from U(0, 1) times the largest. d = 8, 80, 800; d_y = 1, 2, 4.

distance  the sliced Wasserstein-1 distance (100 directions) of weighted samples to as many exact ones, in the data's units, as a mean over
          problems; beside the floor, which is that of a second exact set, and draws of the prior. The error is of the mean of the
          differences from the floor, problem by problem.
evidence  root mean square error of log p(y) in nats, the mean of its stated error, and how many lie within twice that.
scores    E|guided - exact score|^2/E|exact score - the model's|^2 at noise levels sigma/alpha, over x_t of the posterior: no sampling.

The model sees the data in units of their standard deviation, as trained models do and as azula is given them: in their own units modes
have parted at t_max already, where d is large, and most steps lie where nothing happens. Noise levels are in these units.

--peer: a Python in which azula is installed; its samplers are given the same exact denoiser, problems and number of steps. Left out where
there is none. --deepinv: the same of deepinv, see inverse_peers_deepinv.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import MixtureData, column, marginal
from sde_gen.inverse import MEASURED, METHODS, Gaussian, Matrix
from sde_gen.models.moments import Moments
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
DIMENSIONS, MEASURED_DIMENSIONS = (8, 80, 800), (1, 2, 4)
LEVELS = (5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.03)
DIRECTIONS = 100
OPTIONS: dict[str, dict[str, Any]] = {"dps normed": {"normed": True}, "repaint": {"rounds": 5}, "gibbs": {"sweeps": 20, "inner": 8}}
LEFT_OUT = {"exact_flow": 8}
"""Methods that are run up to so many dimensions."""


class RoundModes(MixtureData):
    """A mixture of round Gaussians of one standard deviation, whose denoiser is two matrix products."""

    def __init__(self, weights: Tensor, means: Tensor, std: float = 1.0) -> None:
        self.shape = tuple(means.shape[1:])
        self.log_weights = torch.log(weights / weights.sum())
        self.means, self.std = means, std

    def denoise_at(self, x: Tensor, sde: sde_gen.SDE, t: Tensor | float) -> Tensor:
        alpha, sigma = (column(value, 1).to(x.dtype) for value in marginal(sde, t))
        variance, means = (alpha * self.std) ** 2 + sigma**2, self.means.to(x.dtype)
        logits = (alpha / variance * x) @ means.T - 0.5 * alpha**2 / variance * means.square().sum(1) + self.log_weights.to(x.dtype)
        mean = logits.softmax(1) @ means
        return mean + alpha * self.std**2 / variance * (x - alpha * mean)

    def denoise_given(self, x: Tensor, sde: sde_gen.SDE, t: Tensor | float, matrix: Tensor, y: Tensor, variance: Tensor) -> Tensor:
        alpha, sigma = (column(value, 1).double() for value in marginal(sde, t))
        total, z = (alpha * self.std) ** 2 + sigma**2, x.double()
        logits = (alpha / total * z) @ self.means.T - 0.5 * alpha**2 / total * self.means.square().sum(1) + self.log_weights
        spread = (sigma * self.std) ** 2 / total
        modes = self.means + alpha * self.std**2 / total * (z[:, None] - alpha * self.means)
        rest = y[:, None] - modes @ matrix.T
        system = spread * (matrix @ matrix.T) + torch.diag(variance)
        gain = torch.linalg.solve(system, rest.flatten(0, -2).T).T.reshape(rest.shape)
        weights = (logits - 0.5 * (gain * rest).sum(-1)).softmax(1)
        return torch.einsum("bk,bkd->bd", weights, modes + spread * (gain @ matrix)).to(x.dtype)

    def covariance(self) -> tuple[Tensor, Tensor]:
        """The mean (D,) and the covariance (D, D)."""
        weights = self.log_weights.exp()
        mean = weights @ self.means
        centred = self.means - mean
        return mean, self.std**2 * torch.eye(len(mean), dtype=torch.float64) + (centred.T * weights) @ centred

    def scale(self) -> float:
        """The root mean square of the entries' standard deviations."""
        return float(self.covariance()[1].diagonal().mean().sqrt())

    def normalised(self) -> RoundModes:
        """The same data in units of `scale`, as a trained model sees them."""
        return RoundModes(self.log_weights.exp(), self.means / self.scale(), self.std / self.scale())

    def model(self, sde: sde_gen.SDE, prior: str = "matched") -> sde_gen.ScoreModel:
        inner, scale = self.normalised(), torch.full((self.means.shape[1],), self.scale(), dtype=torch.float64)
        mean, covariance = inner.covariance()
        return sde_gen.ScoreModel(
            lambda x, c: inner.denoise_at(x, sde, c),
            sde,
            prediction="data",
            prior=prior,
            normalizer=Normalizer(torch.zeros_like(scale), scale),
            moments=Moments(mean, covariance=covariance),
            data_std=1.0,
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        return self.means[k] + self.std * torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Problem:
    """One posterior: the prior, the operator's matrix, the noise, and what was measured (1, d_y)."""

    data: RoundModes
    matrix: Tensor
    std: float
    y: Tensor

    def modes(self) -> tuple[Tensor, Tensor]:
        """log w_k p(y | k), (25,), and the covariance of y in each."""
        system = self.matrix @ self.matrix.T + self.std**2 * torch.eye(len(self.matrix), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(self.data.means @ self.matrix.T, system)
        return self.data.log_weights + normal.log_prob(self.y), system

    def exact(self, count: int, generator: torch.Generator) -> Tensor:
        joint, system = self.modes()
        k = torch.multinomial(joint.softmax(0), count, replacement=True, generator=generator)
        x = self.data.means[k] + torch.randn(count, self.data.means.shape[1], generator=generator, dtype=torch.float64)
        noise = self.std * torch.randn(count, len(self.matrix), generator=generator, dtype=torch.float64)
        return x + torch.linalg.solve(system, (self.y - x @ self.matrix.T - noise).T).T @ self.matrix


def problem(dim: int, measured: int, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(100_000 * dim + 1000 * measured + seed)
    places = torch.tensor([(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)], dtype=torch.float64)
    data = RoundModes(torch.randn(25, generator=generator, dtype=torch.float64) ** 2, places.repeat(1, dim // 2))
    u, _, vt = torch.linalg.svd(torch.randn(measured, dim, generator=generator, dtype=torch.float64), full_matrices=False)
    values = torch.rand(measured, generator=generator, dtype=torch.float64).sort(descending=True).values
    matrix = u @ torch.diag(values) @ vt
    std = float(torch.rand(1, generator=generator, dtype=torch.float64) * values.max())
    noise = std * torch.randn(1, measured, generator=generator, dtype=torch.float64)
    return Problem(data, matrix, std, data.draw(1, generator) @ matrix.T + noise)


def distance(x: Tensor, weights: Tensor, exact: Tensor) -> float:
    """The mean over directions of the integral of |F_x - F_exact|."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn(x.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    places, order = torch.cat((x.double() @ directions, exact @ directions)).T.sort(dim=1)
    masses = torch.cat((weights.double(), torch.full((len(exact),), -1 / len(exact), dtype=torch.float64)))
    return float((masses[order].cumsum(1)[:, :-1].abs() * places.diff(dim=1)).sum(1).mean())


def ours(one: Problem, method: str, sde: sde_gen.SDE, count: int, steps: int, seed: int) -> dict[str, Any]:
    measurement = sde_gen.Measurement(Matrix(one.matrix), Gaussian(one.std))
    name, options = method.split()[0], dict(OPTIONS.get(method, {}))
    if name == "oracle":
        options["data"] = one.data.normalised()
    began = time.perf_counter()
    out = sde_gen.posterior(
        one.data.model(sde), measurement, one.y, count, name, steps=steps, seed=seed, dtype=torch.float64, progress=False, **options
    )
    row: dict[str, Any] = {"x": out.x[0], "weights": out.weights[0], "seconds": time.perf_counter() - began, "nfe": int(out.nfe[0]) / count}
    if out.log_evidence is not None and out.log_evidence_error is not None:
        truth = float(torch.logsumexp(one.modes()[0], 0))
        row["evidence"] = [float(out.log_evidence[0]) - truth, float(out.log_evidence_error[0]), float(out.ess[0])]
    return row


PEER = r"""
import json, sys, torch
from safetensors.torch import load_file, save_file
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import VPSchedule
from azula.sample import DDPMSampler
import azula.guidance as guidance
from azula.linalg.covariance import IsotropicCovariance
folder = sys.argv[1]
with open(f"{folder}/task.json") as file:
    task = json.load(file) | load_file(f"{folder}/task.safetensors")
torch.set_num_threads(1)
torch.manual_seed(task["seed"])
means, log_weights, matrix, y, std = (task[k] for k in ("means", "log_weights", "matrix", "y", "std"))
scale = task["scale"]  # data in units of their standard deviation, as azula's schedules take them
class Exact(Denoiser):
    def __init__(self):
        super().__init__()
        self.schedule = VPSchedule()
    def forward(self, x, t, **kwargs):
        alpha, sigma = self.schedule(t)
        while alpha.ndim < x.ndim:
            alpha, sigma = alpha[..., None], sigma[..., None]
        a, s = alpha, sigma * scale
        z = x * scale
        v = a**2 + s**2
        logits = (a / v * z) @ means.T - 0.5 * a**2 / v * means.square().sum(1) + log_weights
        mean = logits.softmax(-1) @ means
        return DiracPosterior(mean=(mean + a / v * (z - a * mean)) / scale)
A = lambda x: scale * x @ matrix.T
found, faults = {}, {}
for name in task["methods"]:
    try:
        y_rows = y.expand(task["count"], -1)
        if name == "mmps":
            cov = IsotropicCovariance(torch.tensor(std**2, dtype=y.dtype))
            denoiser = guidance.MMPSDenoiser(Exact(), y_rows, A, cov, solver="cg", iterations=len(matrix))
        elif name == "tmpd":
            denoiser = guidance.TMPDenoiser(Exact(), y_rows, A, std**2)
        elif name == "diffpir":
            denoiser = guidance.DiffPIRDenoiser(Exact(), y_rows, A, std**2)
        if name == "tds":
            eye = torch.eye(len(matrix), dtype=y.dtype)
            def twist(x, level):
                spread = level**2 / (1 + level**2) * scale**2 * matrix @ matrix.T + std**2 * eye
                return torch.distributions.MultivariateNormal(x * scale @ matrix.T, spread).log_prob(y)
            sampler = guidance.TDSSampler(Exact(), twist, steps=task["steps"])
        else:
            sampler = DDPMSampler(denoiser, steps=task["steps"])
        x = sampler.init((task["count"], means.shape[1])).to(means)
        found[name] = (sampler(x).detach() * scale).contiguous()
    except Exception as error:
        faults[name] = f"{type(error).__name__}: {str(error)[:200]}"
save_file(found, f"{folder}/found.safetensors")
with open(f"{folder}/faults.json", "w") as file:
    json.dump(faults, file)
"""
PEER_METHODS = ("mmps", "tmpd", "diffpir", "tds")


def theirs(library: str, python: str, one: Problem, count: int, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    scale = one.data.scale()
    tensors = {"means": one.data.means, "log_weights": one.data.log_weights, "matrix": one.matrix, "y": one.y[0]}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "task.safetensors")
    task = {"std": one.std, "count": count, "steps": steps, "seed": seed, "methods": PEER_METHODS, "scale": scale}
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    script = HERE / "inverse_peers_deepinv.py"
    if library == "azula":
        script = folder / "peer.py"
        script.write_text(PEER, encoding="utf-8")
    done = subprocess.run([python, str(script), str(folder)], capture_output=True, text=True)
    if done.returncode:
        return {library: done.stderr.strip().splitlines()[-1][:200]}
    found: dict[str, Any] = json.loads((folder / "faults.json").read_text(encoding="utf-8"))
    found |= load_file(folder / "found.safetensors")
    return {f"{library} {name}": value for name, value in found.items()}


def cell(dim: int, measured: int, methods: list[str], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sde = sde_gen.make_sde("vp")
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.problems):
        one, generator = problem(dim, measured, seed), torch.Generator().manual_seed(seed)
        exact, second = one.exact(args.count, generator), one.exact(args.count, generator)
        even = torch.full((args.count,), 1 / args.count, dtype=torch.float64)
        rows.setdefault("floor", []).append({"distance": distance(second, even, exact)})
        rows.setdefault("prior", []).append({"distance": distance(one.data.draw(args.count, generator), even, exact)})
        for method in methods:
            if dim > LEFT_OUT.get(method, dim):
                continue
            try:
                found = ours(one, method, sde, args.count, args.steps, seed)
            except (ValueError, sde_gen.SolverError) as error:
                rows.setdefault(method, []).append({"failed": str(error)[:120]})
                continue
            found["distance"] = distance(found.pop("x"), found.pop("weights"), exact)
            rows.setdefault(method, []).append(found)
        for library, python in (("azula", args.peer), ("deepinv", args.deepinv)):
            if not python:
                continue
            for name, x in theirs(library, python, one, args.count, args.steps, seed, folder).items():
                good = isinstance(x, Tensor) and bool(torch.isfinite(x).all())
                rows.setdefault(name, []).append({"distance": distance(x, even, exact)} if good else {"failed": str(x)[:200]})
    return {"dim": dim, "measured": measured, "methods": {name: summary(found, rows["floor"]) for name, found in rows.items()}}


def summary(found: list[dict[str, Any]], floor: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [(row["distance"], base["distance"]) for row, base in zip(found, floor, strict=True) if "distance" in row]
    said: dict[str, Any] = {"failed": len(found) - len(pairs)}
    if said["failed"]:
        said["why"] = next(row["failed"] for row in found if "failed" in row)
    if not pairs:
        return said
    said["distance"] = statistics.mean(a for a, _ in pairs)
    said["floor"] = statistics.mean(b for _, b in pairs)
    off = [a - b for a, b in pairs]
    said["error"] = statistics.stdev(off) / math.sqrt(len(off)) if len(off) > 1 else math.nan
    for name in ("seconds", "nfe"):
        if name in found[0]:
            said[name] = statistics.mean(row[name] for row in found if name in row)
    evidence = [row["evidence"] for row in found if "evidence" in row]
    if evidence:
        said["evidence_rms"] = math.sqrt(statistics.mean(off**2 for off, _, _ in evidence))
        said["evidence_error"] = statistics.mean(error for _, error, _ in evidence)
        said["evidence_covered"] = statistics.mean(abs(off) < 2 * error for off, error, _ in evidence)
        said["ess"] = statistics.mean(ess for _, _, ess in evidence)
    return said


def scores(dim: int, measured: int, methods: list[str], problems: int, count: int) -> dict[str, Any]:
    """Each method's error by noise level, and its standard error over problems."""
    sde = sde_gen.make_sde("vp")
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in range(problems):
        one, generator = problem(dim, measured, seed), torch.Generator().manual_seed(seed)
        model, measurement = one.data.model(sde), sde_gen.Measurement(Matrix(one.matrix), Gaussian(one.std))
        inner, scale = one.data.normalised(), one.data.scale()
        z_0, y = one.exact(count, generator) / scale, one.y.expand(count, -1)
        for level in LEVELS:
            t = float(sde.time_of(-math.log(level)))
            alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
            x = alpha * z_0 + sigma * torch.randn(z_0.shape, generator=generator, dtype=torch.float64)
            noise = torch.full((measured,), one.std**2, dtype=torch.float64)
            exact = inner.denoise_given(x, sde, t, scale * one.matrix, one.y, noise)
            from_prior = (exact - model.denoise(x, t)).square().sum(1).mean()
            for method in methods:
                name = method.split()[0]
                if name in ("twisted", "exact_flow", "oracle", "gibbs", "projection", "repaint", "daps"):
                    continue  # not a score of its own
                wrapper = METHODS[name](model, measurement, **OPTIONS.get(method, {}))
                off = (wrapper.denoise(x, t, **{MEASURED: y}) - exact).square().sum(1).mean() / from_prior
                rows.setdefault(method, {}).setdefault(f"{level:g}", []).append(float(off))
    table = {method: {level: _median(values) for level, values in found.items()} for method, found in rows.items()}
    return {"dim": dim, "measured": measured, "problems": problems, "relative squared error, median and its error": table}


def _median(values: list[float]) -> list[float]:
    spread = 1.2533 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return [statistics.median(values), spread]


def show(results: dict[str, Any]) -> None:
    for one in results["cells"]:
        asked = f"{results['problems']} problems, {results['count']} samples, {results['steps']} steps"
        print(f"\nd = {one['dim']}, d_y = {one['measured']}: {asked}\n")
        print("| method | distance | of the floor | log evidence: rms error, stated | ESS | calls | s | failed |")
        print("|---|---|---|---|---|---|---|---|")
        for name, row in one["methods"].items():
            if "distance" not in row:
                print(f"| {name} | - | - | - | - | - | - | {row['failed']}: {row['why']} |")
                continue
            evidence = f"{row['evidence_rms']:.3f}, {row['evidence_error']:.3f}" if "evidence_rms" in row else "-"
            more = " | ".join(f"{row[key]:.3g}" if key in row else "-" for key in ("ess", "nfe", "seconds"))
            distance_to = f"{row['distance']:.3f} +- {row['error']:.3f} | {row['distance'] / row['floor']:.2f}"
            print(f"| {name} | {distance_to} | {evidence} | {more} | {row['failed']} |")
    for one in results["scores"]:
        table = one["relative squared error, median and its error"]
        print(
            f"\nd = {one['dim']}, d_y = {one['measured']}: E|guided - exact|^2/E|exact - model's|^2 by sigma/alpha (median of problems)\n"
        )
        print("| method | " + " | ".join(f"{level:g}" for level in LEVELS) + " |\n|---" * 1 + "|---" * len(LEVELS) + "|")
        for name, row in table.items():
            print(f"| {name} | " + " | ".join(f"{value[0]:.2g}" for value in row.values()) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [f"{dim}/{measured}" for dim in DIMENSIONS for measured in MEASURED_DIMENSIONS]
    every = [name for name in METHODS if name != "exact_flow"] + ["dps normed", "exact_flow"]
    parser.add_argument("--cells", nargs="+", default=everything, choices=everything, metavar="D/DY")
    parser.add_argument("--methods", nargs="*", default=every, choices=every, metavar="METHOD")
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--count", type=int, default=1000, help="samples, and particles")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--peer", default=None, help="a Python with azula")
    parser.add_argument("--deepinv", default=None, help="a Python with deepinv")
    parser.add_argument("--no-scores", action="store_true")
    parser.add_argument("--only-scores", action="store_true", help="draw nothing: the cells of the JSON stay as they are")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "inverse_mixture.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    import tempfile

    results: dict[str, Any] = {"problems": args.problems, "count": args.count, "steps": args.steps, "cells": [], "scores": []}
    if args.only_scores and args.json.exists():
        results = json.loads(args.json.read_text(encoding="utf-8")) | {"scores": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.cells:
            dim, measured = map(int, name.split("/"))
            if not args.only_scores:
                results["cells"].append(cell(dim, measured, args.methods, args, Path(folder)))
            if not args.no_scores:
                results["scores"].append(scores(dim, measured, args.methods, args.problems, min(200, args.count)))
            print(f"{name} done", file=sys.stderr, flush=True)
            args.json.write_text(to_json(results, 1) + "\n", encoding="utf-8")
    show(results)


if __name__ == "__main__":
    main()

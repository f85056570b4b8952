"""What a log-likelihood costs: `sde_gen.log_likelihood` beside the methods of score_sde_pytorch and k-diffusion, in one run.

    python benchmarks/likelihood_cost.py [--part mixture digits trace] [--run runs/digits-vp]

mixture: Gaussian mixtures in 16 dimensions (`flow_problems.mixture`), VP, float64, exact divergence. Everyone is judged by the closed
form of the density that it means to give: ours by the data's at t_min, of alpha x; the others, who score x as if it were a state, by
the state's density at their own first time, of x. Errors are in nats for each dimension.

digits: a trained digits network in float32, Hutchinson with one and the same random vector for each image, wall time and error
against the converged answer that each method has with these vectors (float64 network). The time ratio at equal error is what counts.

trace: the spread over random vectors of one image's log-likelihood, in nats, and what equal spread would cost plain Hutchinson in
vector-Jacobian products. Taking the Gaussian part out leaves the path as it is, so that the estimate without that control variate
is known from the same run: v' log(M_T M_0^-1) v/2 stands in place of its trace, M the Gaussian part's covariance at the ends.

score_sde_pytorch's method is written here from its equations (Song et al. 2021, arXiv:2011.13456, section 4.3 and D.2): scipy's RK45
for state and log-density of the whole batch in one vector, so that a batch has one step; the drift by one network call, its
divergence by another; from x at t = 1e-5 to the SDE's own prior at t = 1. k-diffusion's: torchdiffeq's dopri5 as that library imports
it, in sigma, from its sigma_min to N(0, sigma_max^2), for whoever has it installed. Both get the exact trace on the mixtures.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peer_samplers
import torch
from flow_problems import Levels, mixture
from likelihood_total import total_errors
from scipy.integrate import solve_ivp
from torch import Tensor

import sde_gen
from sde_gen import SDE, VPSDE, ScoreModel, log_likelihood
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.data import load_dataset
from sde_gen.likelihood.divergence import DIVERGENCES, PROBES, Hutchinson
from sde_gen.models.prior import MatchedPrior, Prior, SDEPrior
from sde_gen.randomness import NoiseStream
from sde_gen.sdes.base import as_time

PARTS = ("mixture", "digits", "trace")
DEFAULT = 5e-6
"""The tolerance of `log_likelihood` that the mixture's targets are about."""
TARGETS = {"mean": 3e-4, "median": 5e-5, "evaluations": 45, "aim": 30, "time ratio": 0.25, "products ratio": 0.5}
DIM, SEEDS, SAMPLES = 16, (0, 1, 2), 128
TOLERANCES, PEER_TOLERANCES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, DEFAULT, 2e-6), (1e-3, 1e-4, 1e-5)
EPS, SIGMA_MIN, SIGMA_MAX = 1e-5, 0.01, 80.0
"""Where score_sde_pytorch's integration begins, and the ends of k-diffusion's."""
DIGITS, REPEATS = 64, 3
DIGITS_TOLERANCES = (1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
SCORE_SDE = 1e-5
"""score_sde_pytorch's default tolerance: the error that it has with it is the one to equal."""
REFERENCE = 1e-7
TRACE_IMAGES, TRACE_SEEDS, TRACE_TOLERANCE, BOOTSTRAP = 32, 24, 1e-3, 2000
HERE = Path(__file__).resolve().parent


@dataclass
class Answer:
    """log_prob (B,) in nats; matched: the same with the prior of the data's moments; nfe: evaluations, the same for a batch."""

    log_prob: Tensor
    matched: Tensor
    nfe: int


def with_divergence(velocity: Callable[[Tensor], Tensor], x: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
    """velocity(x) and the exact trace of d velocity/dx (B,), or v' (d velocity/dx) v for vectors (B, *), by one forward pass."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = velocity(x)
        if vectors is not None:
            (product,) = torch.autograd.grad((out * vectors).sum(), x)
            return out.detach(), (product * vectors).flatten(1).sum(1)
        axes = torch.eye(x[0].numel(), dtype=x.dtype)
        rows = axes[:, None].expand(-1, len(x), -1).reshape(-1, *x.shape)
        (products,) = torch.autograd.grad(out, x, rows, is_grads_batched=True)
    return out.detach(), torch.einsum("kbd,kd->b", products.flatten(2), axes)


def score_sde(
    model: ScoreModel, x: Tensor, tolerance: float, vectors: Tensor | None = None, eps: float = EPS, method: str = "RK45"
) -> Answer:
    """score_sde_pytorch's method for x in the model's normalised units, taken as the state at `eps`; the network sees x's dtype.
    Another `method` of scipy's is for references, and saves the second forward pass."""
    batch, size, shape, dtype = len(x), x.numel(), x.shape, x.dtype

    @torch.no_grad()
    def slope(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y[:size]).to(dtype).reshape(shape)
        times = torch.full((batch,), t, dtype=torch.float64)
        velocity, divergence = with_divergence(lambda z: model.velocity(z, times), state, vectors)
        drift = model.velocity(state, times) if method == "RK45" else velocity
        return np.concatenate((drift.numpy().ravel(), divergence.numpy()))

    start = np.concatenate((x.double().numpy().ravel(), np.zeros(batch)))
    found = solve_ivp(slope, (eps, model.sde.t_max), start, method=method, rtol=tolerance, atol=tolerance)
    latent, change = torch.from_numpy(found.y[:size, -1]).reshape(shape), torch.from_numpy(found.y[size:, -1])
    return Answer(SDEPrior(model.sde).log_prob(latent) + change, matched_prior(model).log_prob(latent) + change, found.nfev)


def matched_prior(model: ScoreModel) -> Prior:
    alpha, sigma = (float(value) for value in model.sde.marginal(as_time(model.sde.t_max)))
    assert model.moments is not None
    return MatchedPrior(model.moments, alpha, sigma)


def k_diffusion(data: Any, x: Tensor, tolerance: float, sigma_min: float = SIGMA_MIN) -> Answer:
    """k-diffusion's method with the exact trace for `MixtureData`, x taken as the state x_0 + sigma_min z."""
    odeint, levels, calls = peer_samplers._k_diffusion().odeint, Levels(), 0

    def slope(sigma: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return with_divergence(lambda z: (z - data.denoise_at(z, levels, sigma)) / sigma, y[0], None)

    ends = x.new_tensor([sigma_min, SIGMA_MAX])
    path, change = odeint(slope, (x, x.new_zeros(len(x))), ends, atol=tolerance, rtol=tolerance, method="dopri5")
    normal = torch.distributions.Normal(0.0, SIGMA_MAX).log_prob(path[-1]).flatten(1).sum(1)
    matched = MatchedPrior(data.model(VPSDE()).moments, 1.0, SIGMA_MAX).log_prob(path[-1])
    return Answer(normal + change[-1], matched + change[-1], calls)


def header(*cells: str) -> None:
    print(f"\n| {' | '.join(cells)} |\n|{'---|' * len(cells)}")


def figures(errors: Tensor, nfe: Tensor) -> dict[str, float]:
    """Of signed errors for each dimension and evaluations, (N,) both."""
    size = errors.abs()
    of_errors = {"mean": size.mean(), "std_error": size.std() / math.sqrt(len(size)), "median": size.median(), "max": size.max()}
    values = of_errors | {"evaluations": nfe.double().mean(), "max evaluations": nfe.max()}
    return {name: float(value) for name, value in values.items()}


def mixture_part(quick: bool) -> dict[str, Any]:
    seeds, samples = (SEEDS[:1], 16) if quick else (SEEDS, SAMPLES)
    problems = [(data, data.sample(samples, 500 + seed)) for seed, data in ((seed, mixture(DIM, seed)) for seed in seeds)]
    sde, alpha = VPSDE(), float(VPSDE().marginal(as_time(VPSDE().t_min))[0])
    ours: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    for tolerance in (1e-3, DEFAULT) if quick else TOLERANCES:
        found = [log_likelihood(data.model(sde), x, "exact", rtol=tolerance, atol=tolerance) for data, x in problems]
        exact = [data.log_prob(alpha * x, sde, sde.t_min) + DIM * math.log(alpha) for data, x in problems]
        errors = [(answer.log_prob - truth) / DIM for answer, truth in zip(found, exact, strict=True)]
        ours[f"{tolerance:g}"] = figures(torch.cat(errors), torch.cat([answer.nfe for answer in found]))
        ours[f"{tolerance:g}"] |= {"mean of each": [float(e.abs().mean()) for e in errors]}
    methods: dict[str, tuple[Callable[[Any, Tensor, float], Answer], SDE | Levels, float]] = {
        "score_sde_pytorch": (lambda data, x, tolerance: score_sde(data.model(sde, "sde"), x, tolerance), sde, EPS),
    }
    if all(importlib.util.find_spec(name) is not None for name in ("k_diffusion", "torchdiffeq")):
        methods["k-diffusion"] = (k_diffusion, Levels(), SIGMA_MIN)
    else:
        print("measured without k-diffusion: benchmarks/peers.txt says how to install it")
    for name, (method, process, first) in methods.items():
        for tolerance in PEER_TOLERANCES[:1] if quick else PEER_TOLERANCES:
            answers = [method(data, x, tolerance) for data, x in problems]
            exact = [data.log_prob(x, process, first) for data, x in problems]
            nfe = torch.tensor([answer.nfe for answer in answers])
            both = {
                label: torch.cat([(getattr(answer, label) - truth) / DIM for answer, truth in zip(answers, exact, strict=True)])
                for label in ("log_prob", "matched")
            }
            matched = {key: value for key, value in figures(both["matched"], nfe).items() if "evaluations" not in key}
            others.setdefault(name, {})[f"{tolerance:g}"] = figures(both["log_prob"], nfe) | {"with a matched prior": matched}
    at_default = ours[f"{DEFAULT:g}"]
    met = {key: at_default[key] <= TARGETS[key] for key in ("mean", "median", "evaluations")}
    right = [t for t, row in ours.items() if row["mean"] <= TARGETS["mean"] and row["median"] <= TARGETS["median"]]
    header(f"{DIM}-D mixtures, exact trace", "tolerance", "mean error, nats/dim", "median", "max", "evaluations", "most")
    rows = [("sde_gen" + (", default" if float(t) == DEFAULT else ""), t, row) for t, row in ours.items()]
    for name, table in others.items():
        rows += [(name, t, row) for t, row in table.items()]
        rows += [(f"{name}, matched prior", t, row | row["with a matched prior"]) for t, row in table.items()]
    for name, t, row in rows:
        mean = f"{row['mean']:.2g} +- {row['std_error']:.1g}"
        print(
            f"| {name} | {t} | {mean} | {row['median']:.2g} | {row['max']:.2g} | {row['evaluations']:.1f} | {row['max evaluations']:.0f} |"
        )
    print("targets at the default: " + ", ".join(f"{key} {TARGETS[key]:g} {'met' if ok else 'missed'}" for key, ok in met.items()))
    if right:
        spent = ours[right[0]]["evaluations"]
        print(f"mean and median are met at tolerance {right[0]} first, with {spent:.1f} evaluations (the aim is {TARGETS['aim']})")
    return {"ours": ours, "peers": others, "met at the default": met, "met first at": right[:1]}


class Given(Hutchinson):
    """Hutchinson with the vectors (B, columns, D) in `given`, so that float64 can have those of float32."""

    given: Tensor

    def vectors(self, evaluation: int) -> Tensor:
        return self.given


def probes_of(count: int, dim: int, dtype: torch.dtype, kind: str = "rademacher") -> Tensor:
    """The vectors (B, D) that `log_likelihood` with seed 0 and one probe takes on the CPU for samples 0 .. B - 1."""
    z = NoiseStream(0, 0, count, (1, dim), dtype, torch.device("cpu")).draw()[:, 0]
    return torch.where(z < 0, -1.0, 1.0).to(z) if kind == "rademacher" else z


def converged_ours(model: ScoreModel, x: Tensor, vectors: Tensor) -> Tensor:
    """log_prob (B,) of the float64 model with Hutchinson's `vectors` (B, D)."""
    DIVERGENCES["given"] = type("GivenHere", (Given,), {"given": vectors[:, None].double()})
    try:
        return log_likelihood(model, x.double(), "given", probes=1, rtol=REFERENCE, atol=REFERENCE).log_prob
    finally:
        del DIVERGENCES["given"]


def time_at(error: float, errors: Sequence[float], times: Sequence[float]) -> float:
    """The time at which a method has this error and not more with more effort: between settings by powers, errors and times in
    the order of rising effort. NaN where it does not get there; the first time where its largest error is smaller."""
    above = [k for k, found in enumerate(errors) if found > error]
    if not above:
        return times[0]
    k = above[-1]
    if k + 1 == len(errors):
        return math.nan
    share = math.log(errors[k] / error) / math.log(errors[k] / errors[k + 1])
    return times[k] * (times[k + 1] / times[k]) ** share


def digits_part(model: ScoreModel, images: Tensor, quick: bool) -> dict[str, Any]:
    """`images` dequantised, (B, *) float32 in the data's units."""
    sde, dim = model.sde, images[0].numel()
    assert model.normalizer is not None
    x, offset = model.normalizer.encode(images), model.normalizer.log_det(images)
    flat = probes_of(len(x), dim, x.dtype)
    vectors, exact_model = flat.reshape(x.shape), copy.deepcopy(model).double()
    tolerances, repeats = ((1e-2, 1e-3, 1e-4), 1) if quick else (DIGITS_TOLERANCES, REPEATS)
    starts = {f"score_sde_pytorch, from {EPS:g}": EPS, f"score_sde_pytorch, from our t_min {sde.t_min:.2g}": sde.t_min}

    def run(name: str, tolerance: float) -> tuple[Tensor, float]:
        if name in starts:
            answer = score_sde(model, x, tolerance, vectors, starts[name])
            return answer.log_prob + offset, answer.nfe
        found = log_likelihood(model, images, "hutchinson", probes=1, rtol=tolerance, atol=tolerance)
        return found.log_prob.double(), float(found.nfe.double().mean())

    keys = [("sde_gen", tolerance) for tolerance in tolerances]
    for name, eps in starts.items():
        keys += [(name, tolerance) for tolerance in ((1e-2,) if quick else PEER_TOLERANCES if eps == EPS else (SCORE_SDE,))]
    references = {"sde_gen": converged_ours(exact_model, images, flat)}
    for name, eps in starts.items():
        answer = score_sde(exact_model, x.double(), 1e-5 if quick else REFERENCE, vectors.double(), eps, "DOP853")
        references[name] = answer.log_prob + offset
    seconds: dict[tuple[str, float], list[float]] = {key: [] for key in keys}
    rows: dict[str, dict[str, Any]] = {name: {} for name in references}
    for _ in range(repeats):
        for key in keys:
            began = time.perf_counter()
            log_prob, nfe = run(*key)
            seconds[key].append(time.perf_counter() - began)
            errors = (log_prob - references[key[0]]) / dim
            rows[key[0]][f"{key[1]:g}"] = {"error": float(errors.abs().mean()), "max": float(errors.abs().max()), "evaluations": nfe}
    for key, taken in seconds.items():
        rows[key[0]][f"{key[1]:g}"] |= {"seconds": statistics.median(taken), "each": taken}
    mine = list(rows["sde_gen"].values())
    equal = [row["error"] for row in mine]
    for name in starts:
        for row in rows[name].values():
            spent = [time_at(row["error"], equal, [mine_row["each"][k] for mine_row in mine]) for k in range(repeats)]
            each = [ours / theirs for ours, theirs in zip(spent, row["each"], strict=True)]
            row["ratio"] = time_at(row["error"], equal, [m["seconds"] for m in mine]) / row["seconds"]
            row["evaluations ratio"] = time_at(row["error"], equal, [m["evaluations"] for m in mine]) / row["evaluations"]
            row["ratios"] = each
    header(f"digits, Hutchinson, {len(x)} images", "tolerance", "mean error, nats/dim", "evaluations", "seconds", "ratio at equal error")
    for name, table in rows.items():
        for t, row in table.items():
            ratio = f"{row['ratio']:.3f} ({min(row['ratios']):.3f} .. {max(row['ratios']):.3f})" if "ratio" in row else ""
            print(f"| {name} | {t} | {row['error']:.2g} | {row['evaluations']:.1f} | {row['seconds']:.2f} | {ratio} |")
    if quick:
        return {"methods": rows, "repeats": repeats}
    ratio = rows[next(iter(starts))][f"{SCORE_SDE:g}"]["ratio"]
    print(f"time ratio at the error that theirs has by default ({SCORE_SDE:g}): {ratio:.3f}, target {TARGETS['time ratio']}")
    return {"methods": rows, "repeats": repeats, "time ratio": ratio, "met": bool(ratio <= TARGETS["time ratio"])}


def plain_hutchinson(model: ScoreModel, log_prob: Tensor, vectors: Tensor) -> Tensor:
    """log_prob (B,) of `log_likelihood` with one of `vectors` (B, *) for the path, made what it is without the control variate."""
    assert model.moments is not None
    _, variances, axes = model.moments.axes(vectors.shape[1:])
    alpha, sigma = model.sde.marginal(torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64))
    first, last = (torch.log(alpha[k] ** 2 * variances + sigma[k] ** 2) for k in (0, 1))
    along = vectors.double().flatten(1) @ (torch.eye(len(variances), dtype=torch.float64) if axes is None else axes)
    return log_prob + 0.5 * ((along**2 - 1) * (last - first)).sum(1)


def trace_part(model: ScoreModel, images: Tensor, quick: bool) -> dict[str, Any]:
    """`images` (B, *) float32 in the data's units."""
    seeds = 6 if quick else TRACE_SEEDS
    x = images.repeat(seeds, *[1] * (images.ndim - 1))  # each row is a sample of its own, with vectors of its own
    variances: dict[tuple[str, str], Tensor] = {}
    nfe: dict[tuple[str, str], float] = {}

    def enter(key: tuple[str, str], log_prob: Tensor, evaluations: float) -> None:
        variances[key] = log_prob.double().reshape(seeds, len(images)).var(0)
        nfe[key] = evaluations

    for divergence in ("hutchinson", "resampled"):
        for probe in PROBES:
            options = {"rtol": TRACE_TOLERANCE, "atol": TRACE_TOLERANCE, "probe": probe, "batch_size": 8 * len(images)}
            found = log_likelihood(model, x, divergence, probes=1, **options)
            enter((divergence, probe), found.log_prob, float(found.nfe.double().mean()))
            if divergence == "hutchinson":
                vectors = probes_of(len(x), x[0].numel(), x.dtype, probe).reshape(x.shape)
                enter(("hutchinson alone", probe), plain_hutchinson(model, found.log_prob, vectors), nfe[divergence, probe])
    generator = torch.Generator().manual_seed(0)
    again = torch.randint(len(images), (BOOTSTRAP, len(images)), generator=generator)
    best = variances["resampled", "rademacher"]
    rows: dict[str, Any] = {}
    for key, variance in variances.items():
        spread, of_spread = variance.mean().sqrt(), variance[again].mean(1).sqrt().std()
        cost = nfe[key] / nfe["resampled", "rademacher"]
        ratios = variance[again].mean(1) / best[again].mean(1) * cost
        rows[", ".join(key)] = {
            "spread": float(spread), "spread error": float(of_spread), "evaluations": nfe[key],
            "products": float(variance.mean() / best.mean()) * nfe[key], "ratio": float(variance.mean() / best.mean()) * cost,
            "interval": [float(ratios.quantile(q)) for q in (0.025, 0.975)],
        }  # fmt: skip
    columns = ("spread of log p, nats", "evaluations", "products for the last row's spread", "times the last row's (95 %)")
    header(f"digits, one probe, {len(images)} images x {seeds} seeds", *columns)
    for name, row in sorted(rows.items(), key=lambda item: item[0] == "resampled, rademacher"):
        low, high = row["interval"]
        print(f"| {name} | {row['spread']:.3f} +- {row['spread error']:.3f} | {row['evaluations']:.1f} | {row['products']:.0f} "
              f"| {row['ratio']:.2f} ({low:.2f} .. {high:.2f}) |")  # fmt: skip
    plain = {name: 1 / row["ratio"] for name, row in rows.items() if name.startswith("hutchinson")}
    print(f"share of plain Hutchinson's products, target {TARGETS['products ratio']}: "
          + "; ".join(f"{share:.3f} of {name}" for name, share in plain.items()))  # fmt: skip
    return {"estimators": rows, "shares": plain, "met": bool(max(plain.values()) <= TARGETS["products ratio"]), "seeds": seeds}


def digits(run: Path | None, count: int) -> tuple[ScoreModel, Tensor]:
    """The trained network and `count` held-out images, dequantised evenly, float32."""
    model = open_run(resolve({"data": {"name": "digits"}})).model if run is None else sde_gen.load(run / "checkpoint")
    test = load_dataset("digits").test
    assert test is not None
    unit = torch.rand(test[:count].shape, generator=torch.Generator().manual_seed(11))
    return model.eval(), (test[:count] + unit - 0.5).float()


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--run", type=Path, help="directory of a trained digits run (default: the usual one, trained if need be)")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "likelihood_cost.json")
    arguments = parser.parse_args(argv)
    result: dict[str, Any] = {
        "settings": {
            "targets": TARGETS, "mixture": {"dim": DIM, "seeds": SEEDS, "samples": SAMPLES, "eps": EPS, "sigma": [SIGMA_MIN, SIGMA_MAX]},
            "digits": {"images": DIGITS, "reference": REFERENCE},
            "trace": {"images": TRACE_IMAGES, "tolerance": TRACE_TOLERANCE}, "quick": arguments.quick,
        },
        "versions": {
            "sde_gen": sde_gen.__version__, "torch": torch.__version__, "scipy": version("scipy"), "python": platform.python_version(),
            "k-diffusion": peer_samplers.versions()["k-diffusion"],
        },
    }  # fmt: skip
    if arguments.json.exists():  # parts that are not asked for stay as they were, each with the conditions of its own run
        result |= {part: old for part, old in json.loads(arguments.json.read_text(encoding="utf-8")).items() if part in PARTS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the prior differs")
        for part in dict.fromkeys(arguments.part):
            began, load = time.monotonic(), os.getloadavg()[0]
            if part == "mixture":
                found = mixture_part(arguments.quick)
            else:
                model, images = digits(arguments.run, 4 if arguments.quick else DIGITS if part == "digits" else TRACE_IMAGES)
                found = (digits_part if part == "digits" else trace_part)(model, images, arguments.quick)
            conditions = {"threads": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"), "cores": os.cpu_count()}
            conditions |= {"load": [load, os.getloadavg()[0]], "seconds": time.monotonic() - began}
            print(f"{part}: {', '.join(f'{key} {value}' for key, value in conditions.items())}", flush=True)
            result[part] = found | {"conditions": conditions}
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            short = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"), parse_constant=lambda _: None)
            arguments.json.write_text(json.dumps(short, indent=1) + "\n", encoding="utf-8")
    total_errors(result)
    return result


if __name__ == "__main__":
    main()

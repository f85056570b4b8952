"""How far a solver's answer lies from the exact flow, for a number of network calls: ours beside k-diffusion, azula, diffusers.

    python -m venv peers-env && peers-env/bin/pip install -e . -r benchmarks/peers.txt
    peers-env/bin/pip install --no-deps k-diffusion==0.1.1.post1
    peers-env/bin/python benchmarks/solver_error.py

Problems: mixtures of 8 Gaussians in 2, 16 and 64 dimensions with their exact scores, three of each (see `mixture`), from sigma 80
to 0; and a trained digits network against its own converged flow. All of a problem's solvers start from the same states, in
float64, in one process. The error of a sample is the root mean square over its elements of its distance to the reference; a
solver's figure is the geometric mean over samples and problems of a family, with the arithmetic mean and the 95th percentile
beside it. Budgets count network calls, the last denoising one included.

Ours are two contestants named here before anything is measured: OUT_OF_THE_BOX, and FITTED, whose time grid is fitted to each
model on samples of its own. Peers get every method, both grids and both ends that `peer_samplers` has, and four smallest noise
levels; the best of all of them at each budget counts. To keep that affordable, all are first run on a few samples of a family's
first problem at one sigma_min (on the network: those within a factor of SENT of the best on some mixture); the SHORT_LIST best of
them that differ then run on everything, with every sigma_min.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_samplers
import torch
from torch import Tensor

import sde_gen
from sde_gen import VESDE, ScoreModel, make_solver, sample
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.data import load_dataset
from sde_gen.exact.mixtures import MixtureData
from sde_gen.solvers import SOLVERS

OUT_OF_THE_BOX: dict[str, Any] = {"solver": "angle"}
FITTED: dict[str, Any] = {"solver": "angle"}
TARGETS = {"out of the box": 0.7, "fitted": 0.2}

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
DIMENSIONS, SEEDS, SAMPLES = (2, 16, 64), (0, 1, 2), 256
COMPONENTS, COMPONENT_STDS = 8, (0.05, 0.35)
SIGMA_MIN, SIGMA_MAX, OUR_SIGMA_MIN = 0.002, 80.0, 0.0002
PEER_SIGMA_MINS = (0.002, 0.01, 0.02, 0.05)
SCREEN, SHORT_LIST, SCREEN_DIGITS, SHORT_LIST_DIGITS = 32, 16, 4, 6
SENT = 8.0
KEPT = 12  # peers in the file
DIGITS = 32
CONVERGED, CONVERGED_DIGITS = 1e-8, 1e-6
SAMPLE_OPTIONS = ("solver", "grid")
HEADER = "| {} calls | best peer | error | out of the box | ratio | fitted grid | ratio |\n|---|---|---|---|---|---|---|"
HERE = Path(__file__).resolve().parent

Stats = dict[str, float]


class Levels:
    """alpha = 1 and sigma as its own time: lets `MixtureData` be asked by noise level."""

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t


@dataclass
class Problem:
    """Starting states x at sigma_max (alpha = 1) with their exact answers; `denoiser(x, sigma)` as peers call it.

    model: a fresh model of ours at each call; start: x in the model's own scale at its t_max.
    """

    family: str
    name: str
    x: Tensor
    reference: Tensor
    denoiser: Callable[[Tensor, float], Tensor]
    model: Callable[[], ScoreModel]
    start: Tensor
    sigma_max: float
    sigma_mins: tuple[float, ...]
    final: str = "state"


def mixture(dim: int, seed: int) -> MixtureData:
    """A `MixtureData`: unequal weights, means of unit variance, each mode's own axes with log-uniform stds in COMPONENT_STDS."""
    options: dict[str, Any] = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(1000 * dim + seed)}
    weights = torch.softmax(0.5 * torch.randn(COMPONENTS, **options), dim=0)
    means = torch.randn(COMPONENTS, dim, **options)
    low, high = COMPONENT_STDS
    stds = low * (high / low) ** torch.rand(COMPONENTS, dim, **options)
    axes = torch.linalg.qr(torch.randn(COMPONENTS, dim, dim, **options))[0]
    return MixtureData(weights, means, torch.einsum("kij,kj,klj->kil", axes, stds**2, axes))


def flow(denoiser: Callable[[Tensor, float], Tensor], x: Tensor, first: float, last: float, steps: int) -> Tensor:
    """dx/dlog(sigma) = x - E[x_0 | x] by the classical Runge-Kutta method, from sigma = first to last."""

    def slope(place: float, y: Tensor) -> Tensor:
        return y - denoiser(y, math.exp(place))

    h = math.log(last / first) / steps
    for k in range(steps):
        place = math.log(first) + k * h
        a = slope(place, x)
        b = slope(place + h / 2, x + h / 2 * a)
        c = slope(place + h / 2, x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(place + h, x + h * c))
    return x


def converged(solve: Callable[[int], Tensor], steps: int, tolerance: float) -> Tensor:
    """A fourth-order answer, steps doubled and extrapolated until the last doubling moves no sample by more than `tolerance`."""
    coarse = solve(steps)
    for _ in range(6):
        steps *= 2
        fine = solve(steps)
        moved = (fine - coarse) / 15
        if float(errors(moved, torch.zeros_like(moved)).max()) < tolerance:
            return fine + moved
        coarse = fine
    raise RuntimeError(f"no reference within {tolerance:g} by {steps} steps")


def mixture_problem(dim: int, seed: int, samples: int = SAMPLES) -> Problem:
    data, levels = mixture(dim, seed), Levels()

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        return data.denoise_at(x, levels, sigma)

    generator = torch.Generator().manual_seed(90_000 + seed)
    x = SIGMA_MAX * torch.randn(samples, dim, dtype=torch.float64, generator=generator)
    last = 1e-4  # from here to 0, half way between state and denoised state is right to the fourth power of sigma/std

    def solve(steps: int) -> Tensor:
        end = flow(denoiser, x, SIGMA_MAX, last, steps)
        return (end + denoiser(end, last)) / 2

    return Problem(
        f"{dim}-D", f"{dim}-D, seed {seed}", x, converged(solve, 400, CONVERGED), denoiser,
        lambda: data.model(VESDE(sigma_min=OUR_SIGMA_MIN, sigma_max=SIGMA_MAX)), x, SIGMA_MAX, PEER_SIGMA_MINS,
    )  # fmt: skip


def errors(x: Tensor, reference: Tensor) -> Tensor:
    """The root mean square over each sample's elements, (N,)."""
    return (x - reference).flatten(1).square().mean(1).sqrt()


def statistics(x: Tensor, reference: Tensor) -> Stats:
    each = errors(x, reference)
    geometric = each.clamp_min(1e-300).log().mean().exp()
    return {"geometric": float(geometric), "arithmetic": float(each.mean()), "p95": float(each.quantile(0.95))}


def pooled(rows: list[Stats]) -> Stats:
    """The geometric mean of each figure over a family's problems."""
    return {key: math.exp(sum(math.log(row[key]) for row in rows) / len(rows)) for key in rows[0]}


def digits_problem(run: Path | None) -> Problem:
    """The trained digits network of the directory `run` (None: of a usual run, trained now or reused), cast to float64.

    Its flow is defined down to its own t_min; the answer is the denoised state there, for the reference and for everyone.
    """
    trained = open_run(resolve({"data": {"name": "digits"}})).model if run is None else sde_gen.load(run / "checkpoint")
    trained, sde = trained.double(), trained.sde

    def model() -> ScoreModel:  # in normalised units throughout
        return ScoreModel(trained.network, sde, **trained.settings(), moments=trained.moments)

    def alpha(t: float) -> float:
        return float(sde.marginal(torch.tensor(t, dtype=torch.float64))[0])

    asked = model()

    @torch.no_grad()
    def denoiser(x: Tensor, sigma: float) -> Tensor:
        t = min(max(float(sde.time_of(-math.log(sigma))), sde.t_min), sde.t_max)
        return asked.predict(x * alpha(t), t).denoised

    first, last = (math.exp(-float(sde.half_log_snr(t))) for t in (sde.t_max, sde.t_min))
    generator = torch.Generator().manual_seed(90_000)
    start = trained.prior.from_noise(torch.randn(DIGITS, *load_dataset("digits").shape, dtype=torch.float64, generator=generator))
    x = start / alpha(sde.t_max)

    def solve(steps: int) -> Tensor:
        return denoiser(flow(denoiser, x, first, last, steps), last)

    mins = tuple(sorted({max(level, last) for level in PEER_SIGMA_MINS}))
    return Problem("digits", "digits", x, converged(solve, 100, CONVERGED_DIGITS), denoiser, model, start, first, mins, "denoise")


def measure_peers(
    problems: list[Problem], budget: int, names: Iterable[str] | None, dropped: dict[str, str], to_zero: bool = False
) -> tuple[dict[str, float], dict[str, list[Stats]]]:
    """The geometric means of the peers `names` (None: all) on a few samples, and the figures of the best on each problem."""
    first = problems[0]
    every = {name: sampler for name, sampler in peer_samplers.samplers(first.sigma_max).items() if name not in dropped}
    every = {name: sampler for name, sampler in every.items() if not to_zero or name.endswith("zero")}
    screened: dict[str, float] = {}
    wanted = 0.05 if budget < 8 else 0.02 if budget < 13 else 0.01 if budget < 25 else 0.002  # few calls are better spent higher up
    levels = first.sigma_mins[:1] if to_zero else first.sigma_mins
    level = min(levels, key=lambda sigma: abs(math.log(sigma / wanted)))
    few, keep = (SCREEN_DIGITS, SHORT_LIST_DIGITS) if first.family == "digits" else (SCREEN, SHORT_LIST)
    for name in every if names is None else names:
        found = run_peer(every[name], first, budget, level, few)
        if found is not None:
            screened[name] = found["geometric"]
    measured: dict[str, list[Stats]] = {}
    for name in distinct(screened)[:keep]:
        for sigma_min in levels:
            rows = [run_peer(every[name], problem, budget, sigma_min) for problem in problems]
            known = [row for row in rows if row is not None]
            if len(known) == len(problems):
                measured[f"{name}, sigma_min {sigma_min:.3g}"] = known
    return screened, measured


def distinct(screened: dict[str, float]) -> list[str]:
    """The names by rising error, one of several methods that are the same."""
    return sorted({f"{error:.5g}": name for name, error in screened.items()}.values(), key=screened.__getitem__)


def run_peer(sampler: peer_samplers.Sampler, problem: Problem, budget: int, sigma_min: float, samples: int | None = None) -> Stats | None:
    """The figures of a peer, None where it cannot run with so few calls or gives no finite answer."""
    spent = 0

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal spent
        spent += 1
        return problem.denoiser(x, sigma)

    answer = sampler(counted, problem.x[:samples], budget, sigma_min)
    if answer is None or not bool(torch.isfinite(answer).all()):
        return None
    if spent > budget or answer.dtype != torch.float64:
        raise RuntimeError(f"a peer used {spent} calls of {budget} and answered in {answer.dtype}")
    return statistics(answer, problem.reference[:samples])


def not_converging(problem: Problem) -> dict[str, str]:
    """Peers whose errors do not fall with more calls, and those errors: they are not driven rightly, or cannot be."""
    dropped = {}
    for name, sampler in peer_samplers.samplers(problem.sigma_max).items():
        found = [run_peer(sampler, problem, calls, SIGMA_MIN, 16) for calls in (20, 80)]
        few, many = (math.inf if stats is None else stats["geometric"] for stats in found)
        if not (many < 0.5 * few and many < 0.1):
            dropped[name] = f"error {few:.2g} with 20 calls, {many:.2g} with 80"
            print(f"dropped: {name}: {dropped[name]}")
    return dropped


def run_ours(problem: Problem, model: ScoreModel, budget: int, options: dict[str, Any]) -> Stats | None:
    """The figures of a fixed-step solver of ours with the most steps that the budget allows, None where it allows none."""
    steps = steps_for(problem, budget, options)
    if steps < 1:
        return None
    shape = tuple(problem.start.shape)
    out = sample(model, shape, steps=steps, x_init=problem.start, final=problem.final, progress=False, **options)
    if int(out.nfe.max()) > budget:
        raise RuntimeError(f"{options} used {int(out.nfe.max())} calls of {budget}")
    return statistics(out.x, problem.reference)


def steps_for(problem: Problem, budget: int, options: dict[str, Any]) -> int:
    method = make_solver(options["solver"], **{key: value for key, value in options.items() if key not in SAMPLE_OPTIONS})
    assert method.calls is not None
    return (budget - (problem.final == "denoise")) // method.calls


def fitted(problem: Problem, budget: int) -> Stats | None:
    """FITTED on a fresh model, fitted by `sde_gen.fit_grid` with its own samples; None where this version cannot fit."""
    if not hasattr(sde_gen, "fit_grid"):
        return None
    model = problem.model()
    method = "best" if problem.start.ndim == 2 else "regression"  # a mixture's descent takes seconds, a network's minutes
    sde_gen.fit_grid(model, FITTED["solver"], shape=problem.start.shape[1:], steps=steps_for(problem, budget, FITTED), method=method)
    return run_ours(problem, model, budget, FITTED)


def adaptive(problem: Problem) -> dict[str, Any]:
    """`ode` at falling tolerances: mean network calls and error."""
    rows = {}
    for exponent in range(1, 6):
        tolerance = {"rtol": 10.0**-exponent, "atol": 10.0**-exponent}
        out = sample(problem.model(), tuple(problem.start.shape), "ode", x_init=problem.start, progress=False, **tolerance)
        rows[f"1e-{exponent}"] = {"calls": float(out.nfe.double().mean()), **statistics(out.x, problem.reference)}
    return rows


def measure(
    problems: list[Problem], budget: int, names: Iterable[str] | None, dropped: dict[str, str], to_zero: bool = False
) -> dict[str, Any]:
    """Everyone at one budget on a family's problems; `each`: the geometric mean of each problem."""
    screened, measured = measure_peers(problems, budget, names, dropped, to_zero)
    peers = {name: pooled(rows) for name, rows in measured.items()}
    row: dict[str, Any] = {"others": {}}

    def enter(place: dict[str, Any], label: str, rows: list[Stats | None]) -> None:
        known = [stats for stats in rows if stats is not None]
        if len(known) == len(problems):
            place[label] = pooled(known) | {"each": [stats["geometric"] for stats in known]}

    enter(row, "out of the box", [run_ours(problem, problem.model(), budget, OUT_OF_THE_BOX) for problem in problems])
    enter(row, "fitted", [fitted(problem, budget) for problem in problems])
    for name in SOLVERS:
        if not make_solver(name).stochastic and make_solver(name).calls is not None:
            enter(row["others"], name, [run_ours(problem, problem.model(), budget, {"solver": name}) for problem in problems])
    if peers:
        best = min(peers, key=lambda name: peers[name]["geometric"])
        each = [min(rows[k]["geometric"] for rows in measured.values()) for k in range(len(problems))]
        row["best peer"] = {"name": best, **peers[best], "each": each}
        for label in TARGETS.keys() & row.keys():
            row[label]["ratio"] = row[label]["geometric"] / peers[best]["geometric"]
            row[label]["worst ratio"] = max(a / b for a, b in zip(row[label]["each"], each, strict=True))
    return row | {"peers": dict(sorted(peers.items(), key=lambda item: item[1]["geometric"])[:KEPT]), "screened": screened}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=[f"{dim}-D" for dim in DIMENSIONS] + ["digits"])
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the mixtures")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each mixture")
    parser.add_argument("--run", type=Path, help="directory of a trained digits run (default: the usual one, trained if need be)")
    parser.add_argument("--quick", action="store_true", help="one 2-D mixture, 64 samples, 5 and 20 calls")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--to-zero", action="store_true", help="peers only from 80 to 0.002 and then to 0, as they are mostly run")
    parser.add_argument("--all", action="store_true", help="the adaptive solver too, at falling tolerances")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "solver_error.json")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.families, arguments.budgets, arguments.seeds, arguments.samples = ["2-D"], [5, 20], [0], 64
    versions = dict.fromkeys(peer_samplers.LIBRARIES) if arguments.no_peers else peer_samplers.versions()
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        print(f"measured without {', '.join(missing)}; benchmarks/peers.txt says how to install the peers")
    result: dict[str, Any] = {
        "settings": {
            "out of the box": OUT_OF_THE_BOX, "fitted": FITTED, "targets": TARGETS, "samples": arguments.samples, "digits samples": DIGITS,
            "seeds": arguments.seeds, "components": COMPONENTS, "component stds": COMPONENT_STDS, "sigma": [SIGMA_MIN, SIGMA_MAX],
            "peers' sigma_min": PEER_SIGMA_MINS, "screened": [SCREEN, SCREEN_DIGITS], "short list": [SHORT_LIST, SHORT_LIST_DIGITS],
        },
        "versions": {"sde_gen": sde_gen.__version__, "torch": torch.__version__, "python": platform.python_version(), **versions},
        "dropped": {}, "families": {},
    }  # fmt: skip
    began, no_peers = time.monotonic(), len(missing) == len(versions)
    sent: dict[int, list[str]] = {budget: [] for budget in arguments.budgets}
    for family in arguments.families:
        if family == "digits":
            problems = [digits_problem(arguments.run)]
        else:
            problems = [mixture_problem(int(family.removesuffix("-D")), seed, arguments.samples) for seed in arguments.seeds]
        if not no_peers and family != "digits" and not result["families"]:
            result["dropped"] = not_converging(problems[0])
        table: dict[str, Any] = {}
        print(f"\n{HEADER.format(family)}", flush=True)
        for budget in arguments.budgets:
            names = [] if no_peers else sent[budget] if family == "digits" and sent[budget] else None
            row = table[str(budget)] = measure(problems, budget, names, result["dropped"], arguments.to_zero)
            good = [name for name in distinct(row["screened"]) if row["screened"][name] <= SENT * min(row["screened"].values())]
            sent[budget] = list(dict.fromkeys((*sent[budget], *good)))
            row["screened"] = {name: row["screened"][name] for name in distinct(row["screened"])[:KEPT]}
            print(line(budget, row), flush=True)
        if arguments.all:
            table["ode"] = adaptive(problems[0])
        result["families"][family] = table
        result["seconds"] = time.monotonic() - began
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        short = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"), parse_constant=lambda _: None)
        arguments.json.write_text(json.dumps(short, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    print(f"\ngeometric means; + the target is met ({', '.join(f'{k} {v}' for k, v in TARGETS.items())}); {result['seconds']:.0f} s")
    return result


def line(budget: int, row: dict[str, Any]) -> str:
    """A row of the printed table."""
    best = row.get("best peer")
    cells = [str(budget), *(("", "") if best is None else (best["name"], f"{best['geometric']:.2g}"))]
    for label, target in TARGETS.items():
        figures = row.get(label)
        ratio = "" if figures is None or best is None else f"{figures['ratio']:.2f}{' +' if figures['ratio'] <= target else ''}"
        cells += ["" if figures is None else f"{figures['geometric']:.2g}", ratio]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

"""What a solver costs beside its network: milliseconds for each network call, with a network that returns its input.

    peers-env/bin/python benchmarks/solver_overhead.py            # the environment that benchmarks/peers.txt describes

One thread, float32, states of (1, 1, 8, 8) and (64, 3, 32, 32). Ours run through `sde_gen.sample` as a user calls it, with noise of
its own for every sample; the peers through their own loops with one seed for the batch, as in solver_error.py. Each is timed at two
numbers of calls, everyone in turn and over again, and the least time counts, since other work on the machine can only add to it:

    per call   the slope between the two, held against the targets; for stochastic solvers the target is on top of torch.randn
    fixed      what remains: arguments, seeds, the grid, the last network call
    all in     wall time over calls of the longer run
    plan       making that run's table in float64, not in the above: it is made once for a solver, its settings and its times

A tensor of 24 MiB is made and dropped first. The C library then keeps freed memory instead of handing it back to the system, as it
does once a network of any size has run; this helps everyone.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_samplers
import torch

import sde_gen
from sde_gen import ScoreModel, make_sde, make_solver, sample
from sde_gen.solvers import SOLVERS, FixedStepSolver, make_grid

HERE = Path(__file__).parent
CASES = {
    "small": {"shape": (1, 1, 8, 8), "calls": (50, 250), "deterministic": 0.02, "stochastic": 0.03},
    "large": {"shape": (64, 3, 32, 32), "calls": (10, 40), "deterministic": 0.12, "stochastic": 0.3},
}
PEERS = {
    "k-diffusion": ("Euler", "DPM++2M"),
    "azula": ("DDIM", "xEAB-3"),
    "diffusers": ("DDIM", "DPM++multistep-2 midpoint", "UniPC-2 bh2"),
}
Job = Callable[[], Any]


def identity(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x


def our_jobs(shape: tuple[int, ...], calls: int) -> dict[str, tuple[Job, int]]:
    """Every registered fixed-step solver with its defaults: a run of about so many network calls, and how many they are."""
    jobs: dict[str, tuple[Job, int]] = {}
    for name in SOLVERS:
        method = make_solver(name)
        if isinstance(method, FixedStepSolver):
            model = ScoreModel(identity, make_sde("vp"), prediction="data")
            steps = max(1, (calls - 1) // (method.calls or 2))

            def job(model: ScoreModel = model, name: str = name, steps: int = steps) -> sde_gen.Samples:
                return sample(model, shape, name, steps=steps, progress=False, on_failure="mask")

            jobs[name] = job, int(job().nfe[0])
    return jobs


def peer_jobs(shape: tuple[int, ...], calls: int) -> dict[str, tuple[Job, int]]:
    """The peers that are installed, in the same way."""
    makers = {
        "k-diffusion": peer_samplers.k_diffusion_methods,
        "azula": peer_samplers.azula_methods,
        "diffusers": peer_samplers.diffusers_methods,
    }
    jobs: dict[str, tuple[Job, int]] = {}
    x, levels = torch.randn(shape), peer_samplers.karras(80.0, 0.002, calls + 1).float()
    for library in (name for name, found in peer_samplers.versions().items() if found is not None):
        methods = makers[library]()
        if library == "diffusers":
            as_it_is_installed()
        for name in PEERS[library]:
            jobs[f"{library} {name}"] = (lambda run=methods[name].run: run(identity, x, levels)), calls
    return jobs


def as_it_is_installed() -> None:
    """diffusers with its float32 again, which peer_samplers widens for its errors."""
    from diffusers.schedulers import scheduling_dpmsolver_multistep, scheduling_euler_discrete

    for module in (scheduling_dpmsolver_multistep, scheduling_euler_discrete):
        module.torch = torch


def least_times(jobs: dict[Any, Job], repeats: int) -> dict[Any, float]:
    """The least wall time of each job in milliseconds, the jobs taken in turn."""
    found = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeats):
        for key, job in jobs.items():
            began = time.perf_counter()
            job()
            found[key] = min(found[key], 1e3 * (time.perf_counter() - began))
    return found


def plan_time(name: str, steps: int, repeats: int) -> float:
    sde, method = make_sde("vp"), make_solver(name)
    assert isinstance(method, FixedStepSolver)

    def job() -> None:
        method.plan(sde, make_grid(sde, method.default_grid, sde.t_max, sde.t_min, steps))

    return least_times({name: job}, repeats)[name]


def line_fit(short: float, long: float, calls: tuple[int, int]) -> dict[str, float]:
    """The straight line through the times of two numbers of calls."""
    slope = (long - short) / (calls[1] - calls[0])
    return {"per call": slope, "fixed": short - slope * calls[0], "all in": long / calls[1]}


@torch.no_grad()
def measure(case: dict[str, Any], repeats: int, peers: bool) -> dict[str, Any]:
    """One state's figures, in milliseconds."""
    shape = case["shape"]
    x, y, many = torch.randn(shape), torch.randn(shape), case["calls"][1]
    basics: dict[Any, Job] = {
        "axpy": lambda: [y.add_(x, alpha=1e-9) for _ in range(many)],
        "torch.randn": lambda: [torch.randn(shape) for _ in range(many)],
    }
    runs = [our_jobs(shape, calls) | (peer_jobs(shape, calls) if peers else {}) for calls in case["calls"]]
    timed = {(name, k): run[name][0] for k, run in enumerate(runs) for name in run}
    found = least_times(basics | timed, repeats)
    result: dict[str, Any] = {name: found[name] / many for name in basics} | {"ours": {}, "peers": {}}
    for name, (_, few) in runs[0].items():
        row: dict[str, Any] = line_fit(found[name, 0], found[name, 1], (few, runs[1][name][1]))
        if name in SOLVERS:
            stochastic = make_solver(name).stochastic
            row["plan"] = plan_time(name, case["calls"][1] // (make_solver(name).calls or 2), 3)
            row["target"] = case["stochastic"] + result["torch.randn"] if stochastic else case["deterministic"]
            row["kind"], row["met"] = "stochastic" if stochastic else "deterministic", row["per call"] <= row["target"]
        result["ours" if name in SOLVERS else "peers"][name] = row
    return result


def show(label: str, shape: tuple[int, ...], result: dict[str, Any]) -> None:
    print(f"\n{label}, {shape}: one axpy {result['axpy']:.4f} ms, torch.randn of the state {result['torch.randn']:.4f} ms")
    print("| solver | per call | target | | fixed | all in | plan |\n|---|---|---|---|---|---|---|")
    for name, row in sorted(result["ours"].items(), key=lambda item: (item[1]["kind"], item[1]["per call"])):
        verdict = "met" if row["met"] else "missed"
        cells = f"{row['per call']:.4f} | {row['target']:.4f} | {verdict} | {row['fixed']:.2f} | {row['all in']:.4f} | {row['plan']:.2f}"
        print(f"| {name} ({row['kind']}) | {cells} |")
    for name, row in result["peers"].items():
        print(f"| {name} | {row['per call']:.4f} | | | {row['fixed']:.2f} | {row['all in']:.4f} | |")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--calls", nargs=2, type=int, help="the two numbers of calls (default: 50 250, and 10 40 for the large state)")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "solver_overhead.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.empty(6 << 20).zero_()
    versions = dict.fromkeys(peer_samplers.LIBRARIES) if arguments.no_peers else peer_samplers.versions()
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        print(f"measured without {', '.join(missing)}; benchmarks/peers.txt says how to install the peers")
    result: dict[str, Any] = {
        "versions": {"sde_gen": sde_gen.__version__, "torch": torch.__version__, "python": platform.python_version(), **versions},
        "repeats": arguments.repeats,
    }
    for label in arguments.cases:
        case = CASES[label] | ({"calls": tuple(arguments.calls)} if arguments.calls else {})
        result[label] = case | measure(case, arguments.repeats, not arguments.no_peers)
        show(label, case["shape"], result[label])
    rows = [row for label in arguments.cases for row in result[label]["ours"].values()]
    print(f"\n{sum(row['met'] for row in rows)} of {len(rows)} targets met")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    short = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"))
    arguments.json.write_text(json.dumps(short, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()

"""How far a solver's answer lies from the exact flow, for a number of network calls: ours beside k-diffusion, azula, diffusers.

    python -m venv peers-env && peers-env/bin/pip install -e . -r benchmarks/peers.txt
    peers-env/bin/pip install --no-deps k-diffusion==0.1.1.post1
    peers-env/bin/python benchmarks/solver_error.py

Problems: mixtures of 8 Gaussians in 2, 16 and 64 dimensions with their exact scores, three of each (see `mixture`), from sigma 80
to 0; and trained networks (`--run`, each a family under its data's name) against their own converged flow. All of a problem's
solvers start from the same states, in float64, in one process. The error of a sample is the root mean square over its elements of
its distance to the reference; a solver's figure is the geometric mean over samples and problems of a family, with the arithmetic
mean and the 95th percentile beside it. Budgets count network calls, the last denoising one included.

Ours are two contestants named here before anything is measured: OUT_OF_THE_BOX, and FITTED, whose time grid is fitted to each
model on samples of its own (a network's in float32, and up to FIT_UP_TO calls where a sample has more than SMALL elements). Peers
get every method, both grids and both ends that `peer_samplers` has, and four smallest noise levels; the best of all of them at
each budget counts. To keep that affordable, all are first run on a few samples of a family's first problem at one sigma_min (on a
network: those within a factor of SENT of the best on some mixture); the SHORT_LIST best of them that differ then run on
everything, with every sigma_min. A file that is there keeps its other families: they can be measured one at a time.

--quickly FILE is for a machine with little time: of the peers only the LAST that were best at the same family and number of calls
in FILE (a network's of another: those of digits), with the noise levels that they had there; and references by `ode`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peer_samplers
import torch
from flow_problems import (
    COMPONENT_STDS,
    COMPONENTS,
    PEER_SIGMA_MINS,
    SAMPLES,
    SIGMA_MAX,
    SIGMA_MIN,
    SMALL,
    STATES,
    STATES_LARGE,
    Problem,
    errors,
    family_of,
    mixture_problem,
    network_problem,
)
from torch import Tensor

import sde_gen
from sde_gen import ScoreModel, make_solver, sample
from sde_gen.solvers import SOLVERS

OUT_OF_THE_BOX: dict[str, Any] = {"solver": "angle"}
FITTED: dict[str, Any] = {"solver": "angle"}
TARGETS = {"out of the box": 0.6, "fitted": 0.1}
"""Of mixtures; of networks see NETWORK_TARGETS."""
NETWORK_TARGETS = {"out of the box": 0.75, "fitted": 0.3}

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
DIMENSIONS, SEEDS = (2, 16, 64), (30, 31, 32)
SCREEN, SHORT_LIST, SCREEN_NETWORK, SHORT_LIST_NETWORK = 32, 16, 4, 6
SENT = 8.0
KEPT = 12  # peers in the file
LAST = 4
FIT_UP_TO = 20
SAMPLE_OPTIONS = ("solver", "grid")
HEADER = "| {} calls | best peer | error | out of the box | ratio | fitted grid | ratio |\n|---|---|---|---|---|---|---|"
HERE = Path(__file__).resolve().parent

Stats = dict[str, float]


def statistics(x: Tensor, reference: Tensor) -> Stats:
    each = errors(x, reference)
    geometric = each.clamp_min(1e-300).log().mean().exp()
    return {"geometric": float(geometric), "arithmetic": float(each.mean()), "p95": float(each.quantile(0.95))}


def pooled(rows: list[Stats]) -> Stats:
    """The geometric mean of each figure over a family's problems."""
    return {key: math.exp(sum(math.log(row[key]) for row in rows) / len(rows)) for key in rows[0]}


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
    few, keep = (SCREEN_NETWORK, SHORT_LIST_NETWORK) if first.final == "denoise" else (SCREEN, SHORT_LIST)
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


def known_peers(problems: list[Problem], budget: int, families: dict[str, Any]) -> dict[str, list[Stats]]:
    """The figures of the peers that were best in the tables `families`, on each problem."""
    first, every = problems[0], peer_samplers.samplers(problems[0].sigma_max)
    measured: dict[str, list[Stats]] = {}
    for label in list(families.get(first.family, families["digits"])[str(budget)]["peers"])[:LAST]:
        name, level = label.rsplit(", sigma_min ", 1)
        sigma_min = min(first.sigma_mins, key=lambda known: abs(math.log(known / float(level))))
        rows = [run_peer(every[name], problem, budget, sigma_min) for problem in problems]
        known = [row for row in rows if row is not None]
        if len(known) == len(problems):
            measured[label] = known
    return measured


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
    """FITTED on a fresh model, fitted by `sde_gen.fit_grid` with its own samples; None where that would cost too much."""
    model, shape, steps = problem.model(), problem.start.shape[1:], steps_for(problem, budget, FITTED)
    if problem.final == "state":
        sde_gen.fit_grid(model, FITTED["solver"], shape=shape, steps=steps)
        return run_ours(problem, model, budget, FITTED)
    if shape.numel() > SMALL and budget > FIT_UP_TO:
        return None
    network = model.network
    narrow = ScoreModel(copy.deepcopy(network).float(), model.sde, **model.settings(), moments=model.moments)
    found = sde_gen.fit_grid(narrow, FITTED["solver"], shape=shape, steps=steps)
    model.fitted[found.key] = found  # the law's digest is of float32 weights
    stats = run_ours(problem, model, budget, FITTED)
    return None if stats is None else stats | {"fit evaluations": found.nfe}


def adaptive(problem: Problem) -> dict[str, Any]:
    """`ode` at falling tolerances: mean network calls and error."""
    rows = {}
    for exponent in range(1, 6):
        tolerance = {"rtol": 10.0**-exponent, "atol": 10.0**-exponent}
        out = sample(problem.model(), tuple(problem.start.shape), "ode", x_init=problem.start, progress=False, **tolerance)
        rows[f"1e-{exponent}"] = {"calls": float(out.nfe.double().mean()), **statistics(out.x, problem.reference)}
    return rows


def measure(
    problems: list[Problem],
    budget: int,
    names: Iterable[str] | None,
    dropped: dict[str, str],
    to_zero: bool = False,
    families: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everyone at one budget on a family's problems; `each`: the geometric mean of each problem. families: see `known_peers`."""
    if families is None:
        screened, measured = measure_peers(problems, budget, names, dropped, to_zero)
    else:
        screened, measured = {}, known_peers(problems, budget, families)
    peers = {name: pooled(rows) for name, rows in measured.items()}
    row: dict[str, Any] = {"others": {}}

    def enter(place: dict[str, Any], label: str, rows: list[Stats | None]) -> None:
        known = [stats for stats in rows if stats is not None]
        if len(known) == len(problems):
            place[label] = pooled(known) | {"each": [stats["geometric"] for stats in known]}

    enter(row, "out of the box", [run_ours(problem, problem.model(), budget, OUT_OF_THE_BOX) for problem in problems])
    enter(row, "fitted", [fitted(problem, budget) for problem in problems])
    for name in SOLVERS if families is None else ("dpm", "unipc"):
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
    parser.add_argument("--families", nargs="*", default=[f"{dim}-D" for dim in DIMENSIONS], help="of mixtures, 2-D for example")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the mixtures")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each mixture")
    parser.add_argument(
        "--run", nargs="*", type=Path, help="directories of trained runs (default: the usual digits run, trained if need be)"
    )
    parser.add_argument("--quick", action="store_true", help="one 2-D mixture, 64 samples, 5 and 20 calls")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--to-zero", action="store_true", help="peers only from 80 to 0.002 and then to 0, as they are mostly run")
    parser.add_argument("--quickly", type=Path, metavar="FILE", help="only the peers that were best in FILE")
    parser.add_argument("--all", action="store_true", help="the adaptive solver too, at falling tolerances")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "solver_error.json")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.families, arguments.budgets, arguments.seeds, arguments.samples = ["2-D"], [5, 20], [0], 64
        arguments.run = arguments.run or []
    versions = dict.fromkeys(peer_samplers.LIBRARIES) if arguments.no_peers else peer_samplers.versions()
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        print(f"measured without {', '.join(missing)}; benchmarks/peers.txt says how to install the peers")
    result: dict[str, Any] = {
        "settings": {
            "out of the box": OUT_OF_THE_BOX, "fitted": FITTED, "targets": [TARGETS, NETWORK_TARGETS], "samples": arguments.samples,
            "network samples": [STATES, STATES_LARGE], "seeds": arguments.seeds, "components": COMPONENTS,
            "component stds": list(COMPONENT_STDS), "sigma": [SIGMA_MIN, SIGMA_MAX], "peers' sigma_min": list(PEER_SIGMA_MINS),
            "screened": [SCREEN, SCREEN_NETWORK], "short list": [SHORT_LIST, SHORT_LIST_NETWORK], "to zero": arguments.to_zero,
            "peers chosen before": arguments.quickly is not None,
        },
        "versions": {"sde_gen": sde_gen.__version__, "torch": torch.__version__, "python": platform.python_version(), **versions},
        "dropped": {}, "sent": {}, "families": {}, "seconds": {},
    }  # fmt: skip
    if arguments.json.exists():
        known = json.loads(arguments.json.read_text(encoding="utf-8"))
        if all(known.get(part) == result[part] for part in ("settings", "versions")):
            result |= known
    no_peers, quick = len(missing) == len(versions), arguments.quickly is not None
    families = json.loads(arguments.quickly.read_text(encoding="utf-8"))["families"] if quick else None
    runs: list[Path | None] = [None] if arguments.run is None else list(arguments.run)
    for family, run in [*((name, None) for name in arguments.families), *((family_of(run), run) for run in runs)]:
        network, began = family not in arguments.families, time.process_time()
        problems = (
            [network_problem(run, quick)]
            if network
            else [mixture_problem(int(family.removesuffix("-D")), n, arguments.samples, quick) for n in arguments.seeds]
        )
        if not no_peers and not quick and not network and not result["dropped"]:
            result["dropped"] = not_converging(problems[0])
        table: dict[str, Any] = {}
        print(f"\n{HEADER.format(family)}", flush=True)
        for budget in arguments.budgets:
            sent = result["sent"].setdefault(str(budget), [])
            names = [] if no_peers else sent if network and sent else None
            row = table[str(budget)] = measure(problems, budget, names, result["dropped"], arguments.to_zero, families)
            if not network and not quick:
                good = [name for name in distinct(row["screened"]) if row["screened"][name] <= SENT * min(row["screened"].values())]
                sent[:] = list(dict.fromkeys((*sent, *good)))
            row["screened"] = {name: row["screened"][name] for name in distinct(row["screened"])[:KEPT]}
            print(line(budget, row, NETWORK_TARGETS if network else TARGETS), flush=True)
        if arguments.all:
            table["ode"] = adaptive(problems[0])
        result["families"][family], result["seconds"][family] = table, time.process_time() - began
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        short = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"), parse_constant=lambda _: None)
        arguments.json.write_text(json.dumps(short, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    seconds = ", ".join(f"{family} {value:.0f}" for family, value in result["seconds"].items())
    aims = "; ".join(f"{label} {aim}, networks {NETWORK_TARGETS[label]}" for label, aim in TARGETS.items())
    print(f"\ngeometric means; + the target is met ({aims}); processor seconds: {seconds}")
    return result


def line(budget: int, row: dict[str, Any], targets: dict[str, float]) -> str:
    """A row of the printed table."""
    best = row.get("best peer")
    cells = [str(budget), *(("", "") if best is None else (best["name"], f"{best['geometric']:.2g}"))]
    for label, target in targets.items():
        figures = row.get(label)
        ratio = "" if figures is None or best is None else f"{figures['ratio']:.2f}{' +' if figures['ratio'] <= target else ''}"
        cells += ["" if figures is None else f"{figures['geometric']:.2g}", ratio]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

"""How good the samples of each solver are for a number of network calls, and whether 20 calls do what PC does with 1,000.

    python benchmarks/solver_quality.py [--part mixtures|digits] [--run DIR]

Mixtures: two Gaussian mixtures with exact scores (`flow_problems.mixture`, 2-D and 16-D) under the VP process. The sliced
Wasserstein distance of 4,000 samples to as many draws of the data, for every registered solver with its defaults; beside it the
floor, which is what other draws of the data score against the same ones (mean and standard deviation). Adaptive solvers run by
tolerance. Deterministic solvers, whose errors solver_error.py measures without sampling noise, stop at 200 calls.

Digits: the Frechet distance of each solver's samples to the training images, on the features that every run is measured with (see
sde_gen.metrics), for one trained network. Then the target: DEFAULT at 20 calls, out of the box and with a fitted grid, is within
10 % of PC at 1,000 calls. Calls include the last denoising one; a solver takes the most steps that they allow.

Most of the noise of a Frechet distance on 1,000 samples is in how many of each digit were drawn. Beside the plain distance stands
one at the training data's class fractions: each sample is weighted by the fraction of its class (as the feature network sees it)
among the training images over that among the samples. It says nothing about the fractions themselves, which are compared apart.
Ratios are taken at equal counts, over sets of 1,000 samples, and their error bars have the training images fixed. They are still
wide, and only samples narrow them: --yardstick 4000 costs four million network evaluations. --keep lets a run be continued.
Deterministic solvers share their starting noise, so that they compare with one another far more closely than their errors say.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flow_problems import mixture
from torch import Tensor

import sde_gen
from sde_gen import SDE, VPSDE, ScoreModel, make_solver, sample
from sde_gen.commands.config import resolve
from sde_gen.commands.run_data import choose_device
from sde_gen.commands.runs import open_run
from sde_gen.metrics import Estimate, FeatureNet, cached_features, frechet_distance, sliced_wasserstein
from sde_gen.metrics.estimate import half_sample_error, halves
from sde_gen.solvers import SOLVERS, FixedStepSolver, make_grid

DEFAULT, FITTED, CALLS = "angle", "angle", 20
YARDSTICK, YARDSTICK_CALLS, WITHIN = "pc", 1000, 1.1

MIXTURE_CALLS, DETERMINISTIC_CALLS = (5, 10, 20, 50, 100, 200, 1000), 200
DIGITS_CALLS = (5, 10, 20, 50, 100)
TOLERANCES = {"ode": ((0.1, 0.1), (0.01, 0.01), (0.001, 0.001)), "adaptive_sde": ((0.5, 0.2), (0.2, 0.08), (0.05, 0.02))}
SEED, REFERENCE_SEED, FLOOR_SETS = 7, 10_000, 8
SET, BATCH, SPLITS = 1000, 250, 50
HERE = Path(__file__).resolve().parent

Row = dict[str, Any]


def steps_for(name: str, sde: SDE, calls: int) -> int:
    """The most steps of a fixed-step solver that `calls` network calls allow, the last denoising one included; 0 for none."""
    method = make_solver(name)
    if method.calls is not None:
        return (calls - 1) // method.calls
    assert isinstance(method, FixedStepSolver)

    def planned(steps: int) -> int:
        times = make_grid(sde, method.default_grid, sde.t_max, sde.t_min, steps)
        return sum(update.t is not None for update in method.plan(sde, times))

    return bisect.bisect_right(range(1, calls), calls - 1, key=planned)


def measured(sde: SDE, budgets: Iterable[int], most: int, score: Callable[[str, dict[str, Any]], Row | None]) -> dict[str, list[Row]]:
    """For each registered solver a row for each budget (or tolerance, where it is adaptive): what `score` makes of its settings."""
    table: dict[str, list[Row]] = {}
    for name in SOLVERS:
        method = make_solver(name)
        rows = table[name] = []
        if method.adaptive or name in TOLERANCES:
            settings = [(None, {"rtol": rtol, "atol": atol}) for rtol, atol in TOLERANCES[name]]
        else:
            within = [budget for budget in budgets if method.stochastic or budget <= most]
            settings = [(budget, {"steps": steps_for(name, sde, budget)}) for budget in within]
        for budget, options in settings:
            if options.get("steps") != 0 and (found := score(name, options)) is not None:
                rows.append({"budget": budget, **options, **found})
        print(f"  {name:18s}", "  ".join(f"{row['calls']:.0f}: {row.pop('shown')}" for row in rows), flush=True)
    return table


def mixtures(dim: int, seed: int, samples: int, budgets: Iterable[int]) -> Row:
    """Sliced Wasserstein distances of every solver on one mixture."""
    data = mixture(dim, seed)
    model, real = data.model(VPSDE()), data.sample(samples, seed=REFERENCE_SEED)
    others = [data.sample(samples, seed=REFERENCE_SEED + 1 + k) for k in range(FLOOR_SETS)]
    floors = torch.tensor([sliced_wasserstein(other, real, bootstrap=2).value for other in others])
    floor, spread = float(floors.mean()), float(floors.std())
    print(f"\n{dim}-D, seed {seed}: calls: sliced Wasserstein; floor {floor:.4f}, sd {spread:.4f}; * within 2 sd of it")

    def score(name: str, options: dict[str, Any]) -> Row:
        out = sample(model, (samples, dim), name, seed=SEED, batch_size=1000, on_failure="mask", progress=False, **options)
        distance = sliced_wasserstein(out.x[~out.failed], real, bootstrap=10)
        return {
            "calls": float(out.nfe.double().mean()), "failed": int(out.failed.sum()), **numbers(distance),
            "shown": f"{distance.value:.3f}{'*' if distance.value < floor + 2 * spread else ''}",
        }  # fmt: skip

    table = measured(model.sde, budgets, DETERMINISTIC_CALLS, score)
    return {"floor": {"value": floor, "std": spread, "sets": floors.tolist()}, "solvers": table}


@dataclass
class Judge:
    """Frechet distances of samples to the training images, on `features`; `fractions` of each class among those, (K,)."""

    features: FeatureNet
    reference: Tensor
    fractions: Tensor

    @classmethod
    def of(cls, features: FeatureNet, train: Tensor) -> Judge:
        reference = features.features(train).double()
        made = cls(features, reference, torch.empty(0))
        made.fractions = made.counts(reference) / len(reference)
        return made

    def classes(self, x: Tensor) -> Tensor:
        return self.features.head(x.float()).argmax(1)  # type: ignore[no-any-return]

    def counts(self, x: Tensor) -> Tensor:
        return torch.bincount(self.classes(x), minlength=self.features.classes).double()

    def weights(self, x: Tensor) -> Tensor:
        """(N,) weights with which the features `x` have the training images' class fractions; a class with no sample stays so."""
        return (self.fractions / self.counts(x).clamp_min(1))[self.classes(x)]

    def distance(self, x: Tensor, balanced: bool) -> float:
        """To the training images, plain or at their class fractions."""
        if not balanced:
            return frechet_distance(x, self.reference, bootstrap=2).value
        return weighted_frechet(x, self.weights(x), self.reference)


def weighted_frechet(x: Tensor, weights: Tensor, reference: Tensor) -> float:
    """`frechet_distance` with weights on `x`, the covariance unbiased for them."""
    weights = weights / weights.sum()
    mean, other = weights @ x, reference.mean(0)
    centred = x - mean
    covariance = (centred * weights[:, None]).T @ centred / (1 - weights.square().sum())
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    target = torch.cov(reference.T)
    cross = torch.linalg.eigvalsh(root @ target @ root).clamp(min=0).sqrt().sum()
    return float(((mean - other).square().sum() + covariance.trace() + target.trace() - 2 * cross).clamp(min=0))


@dataclass
class Score:
    """The mean distance of sets of equal size. pairs: the same on both halves of random splits, (splits, 2)."""

    sets: list[float]
    pairs: Tensor

    @property
    def value(self) -> float:
        return sum(self.sets) / len(self.sets)

    @property
    def std_error(self) -> float:
        """Over fresh samples, with the training images fixed."""
        return half_sample_error(self.pairs)


def score_sets(judge: Judge, x: Tensor, size: int, balanced: bool, splits: int) -> Score:
    """The distances of the features `x`, in disjoint sets of `size`; what is left over is not used."""
    sets = [part for part in x.split(size) if len(part) == size]
    generator = torch.Generator().manual_seed(0)
    pairs = [
        [[judge.distance(part[half], balanced) for half in halves(size, generator)] for _ in range(splits)]
        for part in sets
    ]  # fmt: skip
    return Score([judge.distance(part, balanced) for part in sets], torch.tensor(pairs, dtype=torch.float64).mean(0))


def ratio(ours: Score, theirs: Score) -> Estimate:
    """ours / theirs; the error is that of ours - ratio theirs, over theirs (they share no samples)."""
    value = ours.value / theirs.value
    return Estimate(value, math.hypot(ours.std_error, value * theirs.std_error) / theirs.value)


def fractions_apart(a: Tensor, b: Tensor) -> dict[str, float]:
    """Class counts (K,) of two samples: chi-square of them having one distribution, and its degrees of freedom."""
    used = (a + b) > 0
    a, b = a[used], b[used]
    expected = (a + b) / (a.sum() + b.sum())
    terms = [(c - c.sum() * expected).square() / (c.sum() * expected) for c in (a, b)]
    return {"chi_square": float(torch.stack(terms).sum()), "freedom": len(a) - 1}


@dataclass
class Sampler:
    """Samples of a model by solver; kept in the folder `keep`, if there is one, and read from there: a run may be continued."""

    model: ScoreModel
    shape: tuple[int, ...]
    keep: Path | None = None
    reused: int = 0

    def __call__(self, count: int, name: str, options: dict[str, Any], fitted: bool = False) -> tuple[Tensor, float]:
        """Samples 0 .. count - 1 of SEED, those that failed left out, and their mean calls."""
        found, calls = [], 0.0
        for first in range(0, count, BATCH):
            number = min(BATCH, count - first)
            stem = f"{name}-{'-'.join(f'{key}={value}' for key, value in options.items())}-{SEED}-{first}-{number}"
            path = None if self.keep is None or fitted else self.keep / f"{stem}.npz"
            if path is not None and path.exists():
                with np.load(path, allow_pickle=False) as stored:
                    x, nfe = torch.from_numpy(stored["x"]), float(stored["calls"])
                self.reused += number
            else:
                common: dict[str, Any] = {"seed": SEED, "index_offset": first, "on_failure": "mask", "progress": False}
                out = sample(self.model, (number, *self.shape), name, **common, **options)
                x, nfe = out.x[~out.failed].cpu(), float(out.nfe.double().mean())
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(path, x=x.numpy(), calls=np.float64(nfe))
            found.append(x)
            calls += nfe * number / count
        return torch.cat(found), calls


def digits_table(draw: Sampler, judge: Judge, samples: int, budgets: Iterable[int]) -> dict[str, list[Row]]:
    """Frechet distances of every solver."""

    def score(name: str, options: dict[str, Any]) -> Row | None:
        x, calls = draw(samples, name, options)
        if len(x) < samples:
            return {"calls": calls, "failed": samples - len(x), "shown": "failed"}
        return {"calls": calls, "failed": 0, **distances(judge, judge.features.features(x).double())}

    return measured(draw.model.sde, budgets, max(budgets), score)


def distances(judge: Judge, x: Tensor) -> Row:
    """The plain distance with the error of both sets, and the balanced one with the training images fixed."""
    plain, balanced = frechet_distance(x, judge.reference, bootstrap=SPLITS), score_sets(judge, x, len(x), True, SPLITS)
    away = fractions_apart(judge.counts(x), judge.fractions * len(judge.reference))
    return {
        "frechet": numbers(plain), "balanced": numbers(balanced), "classes against training": away,
        "shown": f"{balanced.value:.2f}+-{balanced.std_error:.2f} ({plain.value:.2f})",
    }  # fmt: skip


def target(draw: Sampler, judge: Judge, ours: int, yardstick: int, iterations: int | None = None) -> Row:
    """The default solver at 20 calls, with and without a fitted grid, against PC at 1,000."""
    size = min(SET, yardstick)
    model, steps = draw.model, steps_for(YARDSTICK, draw.model.sde, YARDSTICK_CALLS)
    contestants: dict[str, tuple[int, str, int, bool]] = {
        f"{YARDSTICK} at {YARDSTICK_CALLS}": (yardstick, YARDSTICK, steps, False),
        f"{DEFAULT} at {CALLS}": (ours, DEFAULT, steps_for(DEFAULT, model.sde, CALLS), False),
        f"{FITTED} at {CALLS}, fitted": (ours, FITTED, steps_for(FITTED, model.sde, CALLS), True),
    }
    result: Row = {}
    theirs: dict[bool, Score] = {}
    their_counts = torch.empty(0)
    for label, (count, name, number, fitted) in contestants.items():
        began = time.monotonic()
        if fitted:
            model.fitted.clear()
            sde_gen.fit_grid(model, name, number, shape=draw.shape, iterations=iterations)
        fit_seconds = time.monotonic() - began
        x, calls = draw(count, name, {"steps": number}, fitted)
        features = judge.features.features(x).double()
        row: Row = {"samples": len(x), "calls": calls, "sets of": size, "fit seconds": fit_seconds}
        print(f"  {label:22s} {calls:.0f} calls, {len(x)} samples in sets of {size}", end="")
        for balanced, key in ((False, "frechet"), (True, "balanced")):
            score = score_sets(judge, features, size, balanced, SPLITS)
            row[key] = numbers(score) | {"sets": score.sets}
            print(f"; {key} {score.value:.2f} +- {score.std_error:.2f}", end="")
            if balanced in theirs:
                found = ratio(score, theirs[balanced])
                row[key]["ratio"] = numbers(found) | {"verdict": verdict(found)}
                print(f", ratio {found} ({verdict(found)})", end="")
            else:
                theirs[balanced] = score
        if len(their_counts):
            row["classes against the yardstick"] = fractions_apart(judge.counts(features), their_counts)
        else:
            their_counts = judge.counts(features)
        print(flush=True)
        result[label] = row
    model.fitted.clear()
    return result


def verdict(found: Estimate) -> str:
    """Against WITHIN, two standard errors to either side."""
    low, high = found.value - 2 * found.std_error, found.value + 2 * found.std_error
    word = "met" if found.value <= WITHIN else "missed"
    return word if high <= WITHIN or low > WITHIN else f"{word}, within the error"


def numbers(found: Any) -> dict[str, float]:
    return {"value": found.value, "std_error": found.std_error}


def main(argv: list[str] | None = None) -> Row:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("mixtures", "digits"), help="one part alone; the other's numbers in the JSON stay")
    parser.add_argument("--dimensions", nargs="+", type=int, default=[2, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the mixtures")
    parser.add_argument("--samples", type=int, default=4000, help="of each mixture")
    parser.add_argument("--run", type=Path, help="directory of a digits run, trained if need be (default: runs/digits-vp)")
    parser.add_argument("--table", type=int, default=400, help="samples for each entry of the digits table")
    parser.add_argument("--ours", type=int, default=6000, help="samples of the default solver for the target")
    parser.add_argument("--yardstick", type=int, default=1000, help=f"samples of {YARDSTICK} at {YARDSTICK_CALLS} calls")
    parser.add_argument("--keep", type=Path, help="folder for the digits samples; those found there are taken as they are")
    parser.add_argument("--quick", action="store_true", help="the 2-D mixture alone, 500 samples, 10 and 50 calls")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "solver_quality.json")
    arguments = parser.parse_args(argv)
    budgets = MIXTURE_CALLS
    if arguments.quick:
        arguments.part, arguments.dimensions, arguments.samples, budgets = "mixtures", [2], 500, (10, 50)
    result: Row = {}
    if arguments.part is not None and not arguments.quick and arguments.json.exists():
        result = json.loads(arguments.json.read_text(encoding="utf-8"))
    result["versions"] = {"sde_gen": sde_gen.__version__, "torch": torch.__version__, "python": platform.python_version()}

    def write(part: str, rows: Row, settings: Row, began: float) -> None:
        result[part] = {"settings": settings, "seconds": time.monotonic() - began, "threads": torch.get_num_threads(), **rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        short = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"), parse_constant=lambda _: None)
        arguments.json.write_text(json.dumps(short, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")

    if arguments.part != "digits":
        began, rows = time.monotonic(), {}
        settings: Row = {"samples": arguments.samples, "seeds": arguments.seeds, "calls": budgets, "sde": "vp", "tolerances": TOLERANCES}
        for dim in arguments.dimensions:
            for seed in arguments.seeds:
                rows[f"{dim}-D, seed {seed}"] = mixtures(dim, seed, arguments.samples, budgets)
                write("mixtures", rows, settings, began)
    if arguments.part != "mixtures":
        run = open_run(resolve({"data": {"name": "digits"}}), arguments.run, choose_device(None))
        judge = Judge.of(cached_features(run.data, run.directory / "features"), run.data.train)
        draw, began, rows = Sampler(run.model, run.data.shape, arguments.keep), time.monotonic(), {}
        settings = {
            "default": DEFAULT, "fitted": FITTED, "calls": [CALLS, YARDSTICK_CALLS], "yardstick": YARDSTICK, "within": WITHIN,
            "table calls": DIGITS_CALLS, "table samples": arguments.table, "tolerances": TOLERANCES, "seed": SEED,
        }  # fmt: skip
        print(f"\ndigits: the target, {CALLS} calls within {WITHIN - 1:.0%} of {YARDSTICK} at {YARDSTICK_CALLS}")
        rows["target"] = target(draw, judge, arguments.ours, arguments.yardstick)
        write("digits", rows | {"reused samples": draw.reused}, settings, began)
        print(f"\ndigits: calls: Frechet distance of {arguments.table} samples at the training data's class fractions (plain)")
        rows["solvers"] = digits_table(draw, judge, arguments.table, DIGITS_CALLS)
        write("digits", rows | {"reused samples": draw.reused}, settings, began)
    return result


if __name__ == "__main__":
    main()

"""Whether posteriors of half-seen digits are calibrated, by method: a trained network, half of the pixels, noise of a tenth of the range.

    python benchmarks/restoration_digits.py [--run runs/digits-vp] [--problems 200] [--methods twisted mmps dps pigdm] [--particles 256]

Truths drawn from the model, by the solver and steps of the posteriors, judge the method alone, however well the network is trained;
held-out digits judge method and network together. A table and JSON hold, for each: coverage of the central intervals of every pixel at 50,
80, 90 and 95 % beside the binomial band, the p-values of ranks on 20 projections (SBC), of regions of highest density and of TARP, the
energy score and CRPS in normalised units, effective samples, log evidence, network calls of a sample, and processor seconds.

--particles: of `twisted`, of which `--samples` are kept; the other methods draw `--samples`. Several numbers are several rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen.diagnostics.calibration import Calibration, judge
from sde_gen.inverse import METHODS, Gaussian, Mask, Measurement
from sde_gen.unknown_numbers import to_json

HIDDEN, NOISE, SEED = 0.5, 1.6, 1
TOGETHER = 4096
"""States that run at a time."""


def restored(model: sde_gen.Denoiser, measurement: Measurement, y: Tensor, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Samples (P, L, *), their log-weights or None, evidence, effective samples, calls of a sample and seconds."""
    name, _, size = method.partition(" ")
    options = {"particles": int(size)} if size else {}
    each = max(1, TOGETHER // max(args.samples, int(size or 0)))
    began, found = time.process_time(), []
    for first in range(0, len(y), each):
        common: dict[str, Any] = {"solver": args.solver, "steps": args.steps, "seed": args.seed, "index_offset": first, "progress": False}
        found.append(sde_gen.posterior(model, measurement, y[first : first + each], args.samples, name, **common, **options))
        print(f"{method}: {min(first + each, len(y))} of {len(y)}", flush=True)
    joined = {
        key: [getattr(one, key) for one in found]
        for key in ("x", "log_weights", "log_evidence", "log_evidence_error", "ess", "lineages", "nfe")
    }
    parts = {key: None if each[0] is None else torch.cat(each) for key, each in joined.items()}
    return parts | {"seconds": time.process_time() - began}


def row(model: sde_gen.Denoiser, truths: Tensor, y: Tensor, parts: dict[str, Any]) -> dict[str, Any]:
    encode = model.normalizer.encode if model.normalizer is not None else lambda x: x
    # A point for each measurement that depends on it alone.
    references = encode(torch.where(torch.isnan(y), truths.mean(), y))
    found: Calibration = judge(encode(truths), encode(parts["x"]), parts["log_weights"], references, seed=SEED)
    said = found.to_json() | {"calls": float(parts["nfe"].double().mean()) / parts["x"].shape[1], "seconds": parts["seconds"]}
    said["effective"] = float(parts["ess"].mean())
    if parts["lineages"] is not None:
        said["lineages"] = float(parts["lineages"].mean())
    if parts["log_evidence"] is not None:
        said["log_evidence"] = float(parts["log_evidence"].mean())
        said["log_evidence_error"] = float(parts["log_evidence_error"].mean())
    del said["sbc"]
    return said


def show(results: dict[str, Any]) -> None:
    for truths, rows in results["truths"].items():
        print(
            f"\n{truths}: {results['problems']} problems, {results['samples']} samples, {results['steps']} steps of {results['solver']}\n"
        )
        print("| method | 50 % | 80 % | 90 % | 95 % | ranks p | regions p | TARP p | energy score | log evidence | calls | s |")
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        for name, one in rows.items():
            shares = " | ".join(f"{100 * value:.1f}" for value in one["coverage"]["entries"]["value"])
            tests = " | ".join(f"{one[key]:.2g}" for key in ("sbc_p", "region_p", "tarp_p"))
            energy = f"{one['energy']['value']:.3f} +- {one['energy']['std_error']:.3f}"
            evidence = f"{one['log_evidence']:.2f} ({one['log_evidence_error']:.2f})" if "log_evidence" in one else "-"
            print(f"| {name} | {shares} | {tests} | {energy} | {evidence} | {one['calls']:.0f} | {one['seconds']:.0f} |")
        band = next(iter(rows.values()))["coverage"]["entries"]["band"]
        print("bands: " + ", ".join(f"{100 * low:.1f} .. {100 * high:.1f}" for low, high in band))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-vp"), help="a run directory, or a saved model")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=["twisted", "mmps", "dps", "pigdm"], choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--particles", type=int, nargs="+", default=[256])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--solver", default="dpm_sde")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-held-out", action="store_true")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "restoration_digits.json")
    args = parser.parse_args(arguments)
    model, data = sde_gen.load(args.run), sde_gen.load_dataset("digits")
    measurement = Measurement(Mask.random(data.shape, HIDDEN, SEED), Gaussian(NOISE))
    drawn = sde_gen.sample(
        model, (args.problems, *data.shape), args.solver, args.steps, seed=args.seed + 1_000_003, batch_size=TOGETHER, progress=False
    )
    truths = {"truths from the model": drawn.x}
    if not args.no_held_out:
        truths["held-out digits"] = data.draw(args.problems, args.seed, "test")[0].to(drawn.x)
    methods = [f"{name} {size}" for name in args.methods if name == "twisted" for size in args.particles]
    methods += [name for name in args.methods if name != "twisted"]
    kept = ("problems", "samples", "steps", "solver", "seed")
    results: dict[str, Any] = {name: getattr(args, name) for name in kept} | {"network": str(args.run.name), "truths": {}}
    for kind, x in truths.items():
        y = measurement.simulate(x, seed=args.seed)
        results["truths"][kind] = {}
        for method in methods:
            try:
                results["truths"][kind][method] = row(model, x, y, restored(model, measurement, y, method, args))
            except sde_gen.SolverError as error:
                print(f"{method}: {error}", flush=True)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(to_json(results, 1) + "\n", encoding="utf-8")
    show(results)


if __name__ == "__main__":
    main()

"""Samples of the digits after equal training time, ours beside the peers': the README's claim on sample quality.

The claim: with its default setting, at most 180 s of training on two cores, sde_gen's digits lie nearer to the real ones than
those of the best peer that trained as long, without copying training images. Everything is measured here with one and the same
classifier's features (see sde_gen.metrics; not Inception FID), on one machine, in one run:

    python -m venv peers-env && peers-env/bin/pip install -r benchmarks/peers.txt
    python benchmarks/quality.py --peer-python peers-env/bin/python

Each peer gets the whole budget once for each learning rate in --peer-lr, and its best counts. Trained networks and samples
are kept in --work, so that a run that was cut off goes on where it was and a complete one only measures again; remove that
directory to start afresh. Run it on an idle machine: the budget is wall time.

"Excess" is a Frechet distance minus that of real images to the same reference at the same sample count: held-out images where
the training images are the reference, training images where the held-out ones are. A ratio below 1 beats the best peer; it
comes with two error bars, see excess.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from excess import Score, equal_count_score, excess_ratio
from torch import Tensor

from sde_gen.commands.config import RunConfig, resolve
from sde_gen.commands.runs import open_run
from sde_gen.data import Dataset, load_dataset
from sde_gen.metrics import Estimate, FeatureNet, cached_features, frechet_distance, memorised_fraction, precision_recall
from sde_gen.sampling.sample import sample
from sde_gen.training import read_extra
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).resolve().parent
PEERS = ("diffusers", "denoising-diffusion-pytorch")
MEMORISED = 0.05  # the share of held-out images that count as near to a training image
HELD_OUT, TRAINING = "held-out real images", "training images"
FLOORS = {"training": HELD_OUT, "held_out": TRAINING}  # the real images to set beside samples, for each reference


@dataclass
class Entry:
    """A model: for each training run its samples (N, C, H, W) in the data's units and what is known of it."""

    name: str
    samples: list[Tensor] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    group: str = "peer"

    def add(self, run: tuple[Tensor, dict[str, Any]] | None) -> None:
        assert run is not None, "samples were written and cannot be read back"
        self.samples.append(run[0])
        self.records.append(run[1])


def kept(stem: Path, settings: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]] | None:
    """The samples and record at `stem` if they are complete and of these settings (None: any)."""
    try:
        record = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        if settings is not None and record.get("settings") != settings:
            return None
        return torch.from_numpy(np.load(f"{stem}.npy", allow_pickle=False)).float(), record
    except (OSError, ValueError):
        return None


def keep(stem: Path, record: dict[str, Any]) -> None:
    """Write the record of samples, last of all: it is what makes them complete."""
    Path(f"{stem}.json").write_text(to_json(record, 2), encoding="utf-8")


def ours(args: argparse.Namespace) -> list[Entry]:
    """Train with the default recipe, or reuse what was trained, and sample with its solver and with the probability flow."""
    entries: dict[str, Entry] = {}
    for seed in range(args.seeds):
        training = {"seed": seed} | ({} if args.train_steps is None else {"steps": args.train_steps})
        base = {"training": training, "sampling": {"samples": args.samples, "seed": seed}}
        default = resolve(base)
        for solver in dict.fromkeys([default.sampling.solver, "ode"]):
            config = resolve(base, {"sampling": {"solver": solver}})
            stem = args.work / f"ours-{solver}-seed{seed}"
            settings = config.model_dump(mode="json")
            found = kept(stem, settings)
            if found is None:
                keep(stem, draw_ours(config, args.work / f"ours-seed{seed}", stem) | {"settings": settings})
                found = kept(stem, settings)
            entries.setdefault(solver, Entry(f"sde_gen, {solver}", group="ours")).add(found)
    return list(entries.values())


def draw_ours(config: RunConfig, directory: Path, stem: Path) -> dict[str, Any]:
    run = open_run(config, directory)
    settings = config.sampling
    began = time.monotonic()
    how = {"steps": settings.steps, "grid": settings.grid, "seed": settings.seed, "batch_size": settings.batch, **settings.options}
    out = sample(run.model, (settings.samples, *run.data.shape), settings.solver, **how)
    seconds = time.monotonic() - began
    np.save(f"{stem}.npy", out.x.cpu().numpy())
    extra = read_extra(directory / "checkpoint")
    print(f"sde_gen, seed {config.training.seed}: {extra['seconds']:.0f} s of training, {seconds:.0f} s with {settings.solver}", flush=True)
    return {
        "training_seconds": extra["seconds"],
        "images": extra["steps"] * config.training.batch,
        "parameters": sum(p.numel() for p in run.model.network.parameters()),
        "sampling_seconds": seconds,
        "network_calls": float(out.nfe.double().mean()),
        "threads": torch.get_num_threads(),
    }


def peers(args: argparse.Namespace, data: Dataset, names: Sequence[str] = PEERS) -> list[Entry]:
    """Train and sample each peer of `names` in its own interpreter for each learning rate, or reuse its samples."""
    low, high = data.value_range
    train = args.work / "train.npy"
    np.save(train, ((data.train - low) * (2 / (high - low)) - 1).numpy())
    entries = []
    for peer in names:
        for lr in args.peer_lr:
            entry = Entry(f"{peer}, lr {lr:g}")
            for seed in range(args.seeds):
                place = args.work if args.peer_samples is None else args.peer_samples
                stem = place / f"{peer}-lr{lr:g}-seed{seed}"
                settings = {"seconds": args.seconds, "samples": args.samples, "lr": lr, "seed": seed}
                wanted = settings if args.peer_samples is None else None
                found = kept(stem, wanted)
                if found is None and args.peer_samples is not None:
                    raise SystemExit(f"quality.py: no samples {stem}.npy with their record {stem.name}.json beside them")
                if found is None:
                    print(f"{entry.name}, seed {seed}: training for {args.seconds:g} s", flush=True)
                    options = [f"--{key}={value}" for key, value in settings.items()]
                    command = [args.peer_python, HERE / "peers_digits.py", "--peer", peer, "--data", train, "--out", f"{stem}.npy"]
                    command += ["--range", low, high, *options]
                    subprocess.run([*map(str, command)], check=True, env={**os.environ, "TQDM_DISABLE": "1"})
                    keep(stem, json.loads(Path(f"{stem}.json").read_text(encoding="utf-8")) | {"settings": settings})
                    found = kept(stem, settings)
                entry.add(found)
            entries.append(entry)
    return entries


def measure_run(x: Tensor, features: FeatureNet, data: Dataset) -> dict[str, Estimate]:
    """What is measured on all samples of one run."""
    mine, train, held = features.features(x), features.features(data.train), features.features(data.test)
    precision, recall = precision_recall(mine, train)
    return {
        "frechet_to_training": frechet_distance(mine, train),
        "frechet_to_held_out": frechet_distance(mine, held),
        "precision": precision,
        "recall": recall,
        "memorised": memorised_fraction(x, data.train, data.test, quantile=MEMORISED),
    }


def numbers(value: Estimate | Score) -> dict[str, float]:
    return {"value": value.value, "std_error": value.std_error}


def main_table(entries: list[Entry], measured: list[list[dict[str, Estimate]]], samples: int) -> list[str]:
    """One line for each training run, on all its samples."""
    lines = [
        f"| {samples:,} samples | parameters | training s | images seen | sampling s | calls | Frechet to training | to held-out "
        "| precision | recall | memorised | above 0.05 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry, runs in zip(entries, measured, strict=True):
        for seed, (record, scores) in enumerate(zip(entry.records, runs, strict=True)):
            name = entry.name if len(runs) == 1 else f"{entry.name}, seed {seed}"
            copied = scores["memorised"]
            cells = [
                f"{record['parameters'] / 1e6:.2f} M",
                f"{record['training_seconds']:.0f}",
                f"{record['images']:,}",
                f"{record['sampling_seconds']:.1f}",
                f"{record['network_calls']:.0f}",
                *map(str, scores.values()),
                "yes" if copied.value - MEMORISED > copied.std_error else "no",
            ]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def equal_table(
    names: list[str], scores: dict[str, dict[str, Score]], coverage: dict[str, tuple[Estimate, Estimate]], size: int
) -> list[str]:
    """One line for each model and for real images, at the held-out set's sample count."""
    lines = [
        f"| {size} images, mean over subsets (their spread) +- standard error | Frechet to training | to held-out | precision | recall |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        cells = []
        for reference in FLOORS:
            score = scores[reference].get(name)
            spread = f" ({score.spread:.2f})" if score and score.spread else ""
            cells.append(f"{score.value:.2f}{spread} +- {score.std_error:.2f}" if score else "")
        cells += map(str, coverage.get(name, ("", "")))
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def ratios(entries: list[Entry], scores: dict[str, dict[str, Score]]) -> tuple[list[str], dict[str, Any]]:
    """The claim: for each solver of ours one line and its numbers, against the best peer."""
    rivals = [entry.name for entry in entries if entry.group == "peer"]
    lines, record = [], {}
    for entry in entries:
        if entry.group == "peer" or not rivals:
            continue
        parts, found = [], {}
        for reference, floor in FLOORS.items():
            known = scores[reference]
            best = min(rivals, key=lambda name, known=known: known[name].value)
            three = known[entry.name], known[best], known[floor]
            where = f"to the {reference.replace('_', '-')} images (best peer: {best})"
            try:
                whole, given = excess_ratio(*three), excess_ratio(*three, real_images_fixed=True)
            except ValueError as error:
                parts.append(f"none {where}, {error}")
                continue
            found[reference] = {**numbers(whole), "std_error_real_images_fixed": given.std_error, "best_peer": best}
            parts.append(f"{given} for these real images, +- {whole.std_error:.2g} with their own sampling, {where}")
        lines.append(f"{entry.name}: ratio of excess over real images, ours / best peer: {'; '.join(parts)}")
        record[entry.name] = found
    return lines, record


def report(entries: list[Entry], data: Dataset, args: argparse.Namespace) -> None:
    """Measure, print the tables and the ratios, and write the JSON."""
    features = cached_features(data, args.work / "features")
    size = len(data.test)
    measured = [[measure_run(x, features, data) for x in entry.samples] for entry in entries]
    train, held = features.features(data.train), features.features(data.test)
    points = {entry.name: [features.features(x) for x in entry.samples] for entry in entries}
    near_training, near_held_out = points | {HELD_OUT: [held]}, points | {TRAINING: [train]}
    scores = {
        "training": {name: equal_count_score(x, train, size) for name, x in near_training.items()},
        "held_out": {name: equal_count_score(x, held, size) for name, x in near_held_out.items()},
    }
    coverage = {name: precision_recall(x[0][:size], train) for name, x in near_training.items()}
    lines, claim = ratios(entries, scores)
    accuracy = f"features of a classifier of the digits with {features.accuracy:.1%} held-out accuracy"
    about = f"{accuracy}; {os.cpu_count()} cores, torch {torch.__version__}"
    budget = min((run["training_seconds"] for entry in entries if entry.group == "peer" for run in entry.records), default=args.seconds)
    late = max(run["training_seconds"] for entry in entries if entry.group == "ours" for run in entry.records)
    if late > budget:
        lines.append(f"ours took {late:.0f} s of training, more than the peers' {budget:.0f} s: times are not equal")
    tables = main_table(entries, measured, args.samples), equal_table([*points, HELD_OUT, TRAINING], scores, coverage, size)
    print("\n\n".join("\n".join(part) for part in ([about], *tables, lines)))
    result = {"budget_seconds": budget, "cores": os.cpu_count(), "torch": torch.__version__, "equal_count": size} | {
        "feature_accuracy": features.accuracy,
        "models": {
            entry.name: [record | {key: numbers(of) for key, of in run.items()} for record, run in zip(entry.records, runs, strict=True)]
            for entry, runs in zip(entries, measured, strict=True)
        },
        "equal_counts": {
            reference: {name: numbers(score) | {"spread": score.spread, "runs": score.runs} for name, score in known.items()}
            for reference, known in scores.items()
        },
        "excess_ratio": claim,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(to_json(result, 2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="the interpreter of the peers' environment")
    parser.add_argument("--skip-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--peer-samples", type=Path, metavar="DIR", help="take the peers' samples from an earlier --work as they are")
    parser.add_argument("--peer-lr", type=float, nargs="+", default=[1e-3, 2e-3], help="learning rates that each peer is trained with")
    parser.add_argument("--seconds", type=float, default=180.0, help="the peers' wall time of training")
    parser.add_argument("--seeds", type=int, default=1, help="training runs of each model")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where networks and samples are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quality.json")
    parser.add_argument("--train-steps", type=int, help=argparse.SUPPRESS)  # for trying this script out
    args = parser.parse_args()
    if not (args.skip_peers or args.peer_samples or args.peer_python):
        parser.error("one of --peer-python PYTHON, --peer-samples DIR and --skip-peers is needed")
    if args.peer_python and shutil.which(args.peer_python) is None:
        parser.error(f"--peer-python {args.peer_python}: no such program")
    data = load_dataset("digits")
    if args.samples < len(data.test):
        parser.error(f"--samples must be at least the {len(data.test)} of the held-out set, got {args.samples}")
    args.work.mkdir(parents=True, exist_ok=True)
    entries = ours(args) + ([] if args.skip_peers else peers(args, data))
    report(entries, data, args)


if __name__ == "__main__":
    main()

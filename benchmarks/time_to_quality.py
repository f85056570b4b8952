"""How long our network must train on the digits to draw them as well as a peer does after its whole budget.

    peers-env/bin/python benchmarks/time_to_quality.py           # the environment that benchmarks/peers.txt describes

Each peer, at its better learning rate of benchmarks/quality.py, trains for --peer-seconds and draws --samples images; ours trains once
for each of --budgets seconds, a whole training with its decay within that time, and draws as many with the probability flow. Both are
measured by the same classifier's features (see sde_gen.metrics; not Inception FID). Budgets are wall time: run it on an idle machine. The
answer, for each peer, is the smallest budget from which on every distance is at most the peer's, and the crossing of the log-linear line
between the budgets around it; error bars are those of the distances.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch
from quality import HERE, PEERS, draw_ours, keep, kept, numbers, peers

from sde_gen.commands.config import resolve
from sde_gen.data import load_dataset
from sde_gen.metrics import cached_features, frechet_distance
from sde_gen.unknown_numbers import to_json


def crossing(budgets: list[float], distances: list[float], target: float) -> tuple[float | None, float | None]:
    """The smallest budget from which on no distance is above `target`, and where the line through the logarithms crosses it."""
    first = next((i for i in range(len(budgets)) if all(value <= target for value in distances[i:])), None)
    if first is None:
        return None, None
    if first == 0:
        return budgets[0], budgets[0]
    (a, b), (x, y) = budgets[first - 1 : first + 1], [math.log(value) for value in distances[first - 1 : first + 1]]
    return budgets[first], a + (b - a) * (math.log(target) - x) / (y - x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[15.0, 30.0, 45.0, 60.0, 90.0, 120.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-lr", type=float, default=2e-3)
    parser.add_argument("--peer-seconds", type=float, default=180.0)
    parser.add_argument("--peer-python", default="python", help="the interpreter of the peers' environment")
    parser.add_argument("--work", type=Path, default=Path("runs/time_to_quality"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "time_to_quality.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = load_dataset("digits")
    features = cached_features(data, args.work / "features")
    train = features.features(data.train)

    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for budget in sorted(args.budgets):
            training = {"seed": seed, "max_seconds": budget, "steps": 100_000}
            config = resolve({"training": training, "sampling": {"samples": args.samples, "seed": seed, "solver": "ode"}})
            stem = args.work / f"ours-{budget:g}s-seed{seed}"
            settings = config.model_dump(mode="json")
            if kept(stem, settings) is None:
                keep(stem, draw_ours(config, args.work / f"run-{budget:g}s-seed{seed}", stem) | {"settings": settings})
            found = kept(stem, settings)
            assert found is not None
            distance = frechet_distance(features.features(found[0]), train)
            rows.append({"budget": budget, "seed": seed, **numbers(distance)} | {k: v for k, v in found[1].items() if k != "settings"})
            print(f"ours, {budget:g} s, seed {seed}: {distance} after {found[1]['images']:,} images", flush=True)
    rivals = []
    wanted = argparse.Namespace(**vars(args) | {"peer_lr": [args.peer_lr], "seconds": args.peer_seconds, "peer_samples": None})
    for entry in peers(wanted, data, args.peers):
        for seed, (x, record) in enumerate(zip(entry.samples, entry.records, strict=True)):
            distance = frechet_distance(features.features(x), train)
            rivals.append({"name": entry.name, "seed": seed, **numbers(distance)} | {k: v for k, v in record.items() if k != "settings"})
            print(f"{entry.name}, {args.peer_seconds:g} s, seed {seed}: {distance} after {record['images']:,} images", flush=True)
    real = frechet_distance(features.features(data.test), train)
    budgets = sorted(args.budgets)
    means = [sum(row["value"] for row in rows if row["budget"] == budget) / args.seeds for budget in budgets]
    answers = {}
    for name in dict.fromkeys(row["name"] for row in rivals):
        target = sum(row["value"] for row in rivals if row["name"] == name) / args.seeds
        first, line = crossing(budgets, means, target)
        answer = "none of the budgets" if first is None else f"{first:g} s (the line between budgets crosses at {line:.0f} s)"
        print(f"{name}: its {target:.2f} is reached after {answer}")
        answers[name] = {"target": target, "reached_after": first, "crossing": line}
    print(f"{len(data.test)} held-out real images: {real}")
    result = {"answers": answers, "real": numbers(real), "ours": rows, "peers": rivals}
    result |= {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(to_json(result, 2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

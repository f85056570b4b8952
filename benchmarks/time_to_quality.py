"""How long our network must train on the digits to draw them as well as a peer does after its whole budget.

    peers-env/bin/python benchmarks/time_to_quality.py           # the environment that benchmarks/peers.txt describes

Each peer, at its better learning rate of benchmarks/quality.py, trains for --peer-seconds and draws --samples images; ours trains once
for each of --budgets seconds, a whole training with its decay within that time, and draws as many with the probability flow; both for
each of --seeds seeds. They are measured by the same classifier's features (see sde_gen.metrics; not Inception FID). Budgets are wall time:
run it on an idle machine. The answer, for each peer, is the smallest budget from which on the mean distance over the seeds is at most the
peer's, and the crossing of the log-linear line between the budgets around it; beside it the crossings of each seed alone against the same
target, which say how sure it is. --set tries another setting of ours: --set training.optimizer=muon.

The claim: the best peer's distance is reached in at most TARGET seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from quality import HERE, PEERS, draw_ours, keep, kept, numbers, peers

from sde_gen.commands import flags
from sde_gen.commands.config import resolve
from sde_gen.data import load_dataset
from sde_gen.metrics import cached_features, frechet_distance
from sde_gen.unknown_numbers import to_json

TARGET = 40.0


def crossing(budgets: list[float], distances: list[float], target: float) -> tuple[float | None, float | None]:
    """The smallest budget from which on no distance is above `target`, and where the line through the logarithms crosses it."""
    first = next((i for i in range(len(budgets)) if all(value <= target for value in distances[i:])), None)
    if first is None:
        return None, None
    if first == 0:
        return budgets[0], budgets[0]
    (a, b), (x, y) = budgets[first - 1 : first + 1], [math.log(value) for value in distances[first - 1 : first + 1]]
    return budgets[first], a + (b - a) * (math.log(target) - x) / (y - x)


def answer(rows: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """After how many seconds ours is at `target`: by the mean of `rows` over their seeds, and by each seed alone, in the order of seeds."""
    budgets, seeds = (sorted({row[key] for row in rows}) for key in ("budget", "seed"))
    value = {(row["budget"], row["seed"]): row["value"] for row in rows}
    first, line = crossing(budgets, [sum(value[budget, seed] for seed in seeds) / len(seeds) for budget in budgets], target)
    each = [crossing(budgets, [value[budget, seed] for budget in budgets], target)[1] for seed in seeds]
    return {"target": target, "reached_after": first, "crossing": line, "crossing_of_each_seed": each}


def settings_of(texts: list[str]) -> list[dict[str, Any]]:
    """The layers of a configuration that `--set` asks for, as `sde-gen run` reads them."""
    parser = argparse.ArgumentParser()
    flags.add_run_flags(parser)
    return flags.layers(parser.parse_args([part for text in texts for part in ("--set", text)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[20.0, 30.0, 40.0, 50.0, 70.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-lr", type=float, default=2e-3)
    parser.add_argument("--peer-seconds", type=float, default=180.0)
    parser.add_argument("--peer-python", default="python", help="the interpreter of the peers' environment")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting of ours, as of sde-gen run")
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
            sampling = {"samples": args.samples, "seed": seed, "solver": "ode"}
            config = resolve(*settings_of(args.set), {"training": training, "sampling": sampling})
            name = "-".join([f"{budget:g}s-seed{seed}", *(re.sub(r"[^\w.]+", "_", text) for text in args.set)])
            stem = args.work / f"ours-{name}"
            settings = config.model_dump(mode="json")
            if kept(stem, settings) is None:
                keep(stem, draw_ours(config, args.work / f"run-{name}", stem) | {"settings": settings})
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
    answers = {}
    for name in dict.fromkeys(row["name"] for row in rivals):
        found = answers[name] = answer(rows, sum(row["value"] for row in rivals if row["name"] == name) / args.seeds)
        first, line = found["reached_after"], found["crossing"]
        said = "none of the budgets" if first is None else f"{first:g} s (the line between budgets crosses at {line:.0f} s)"
        each = ", ".join("none" if one is None else f"{one:.0f}" for one in found["crossing_of_each_seed"])
        print(f"{name}: its {found['target']:.2f} is reached after {said}; of each seed alone {each} s")
    best = min(answers.values(), key=lambda found: found["target"])
    met = best["crossing"] is not None and best["crossing"] <= TARGET
    print(f"the best peer's distance within {TARGET:g} s: {'yes' if met else 'no'}")
    print(f"{len(data.test)} held-out real images: {real}")
    result = {
        "answers": answers,
        "target_seconds": TARGET,
        "met": met,
        "settings": args.set,
        "real": numbers(real),
        "ours": rows,
        "peers": rivals,
    }
    result |= {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(to_json(result, 2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Whether bfloat16 costs quality: the loss of one network trained in float32 and under bfloat16 autocast.

    python benchmarks/bfloat16_loss.py

The default recipe for the digits, --steps long, once in each precision for each seed. A seed fixes the weights, the order of the data and
the noise, so the two runs differ in precision alone; two float32 runs of different seeds say how much training varies by itself. At each
evaluation the held-out loss with fixed noise, by noise level (its mean over the levels), in float32 for both: printed is the ratio
bfloat16 / float32 at equal seeds beside the ratio of different seeds in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sde_gen.commands.config import RunConfig, resolve
from sde_gen.commands.run_data import check
from sde_gen.data import Dataset, load_dataset
from sde_gen.training import TrainSettings, fit

HERE = Path(__file__).parent


def curve(config: RunConfig, data: Dataset, settings: TrainSettings) -> dict[str, Any]:
    """The held-out loss at each evaluation of one training."""
    config = config.model_copy(update={"training": settings})
    model = check(config, data)
    items, _ = data.training
    result = fit(model, items, settings, held_out=data.test, levels=data.levels)
    entries = [entry for entry in result.history if entry.get("level_loss") is not None]
    losses = [statistics.fmean(entry["level_loss"]) for entry in entries]
    return {"seed": settings.seed, "bfloat16": settings.bfloat16, "seconds": result.seconds, "skipped": result.skipped} | {
        "steps": [entry["step"] for entry in entries],
        "loss": losses,
        "levels": entries[-1]["level_loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bfloat16_loss.json")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: the difference between seeds is what the precisions' is held against")
    data = load_dataset("digits")
    config = resolve()
    runs = []
    for seed, half in itertools.product(range(args.seeds), (False, True)):
        settings = replace(config.training, steps=args.steps, seed=seed, bfloat16=half)
        runs.append(curve(config, data, settings))
        print(f"seed {seed}, {'bfloat16' if half else 'float32'}: {[round(loss, 4) for loss in runs[-1]['loss']]}", flush=True)
    exact, half = ([run for run in runs if run["bfloat16"] is kind] for kind in (False, True))
    rows = []
    for k, step in enumerate(exact[0]["steps"]):
        precision = [b["loss"][k] / a["loss"][k] for a, b in zip(exact, half, strict=True)]
        seeds = [max(a["loss"][k], b["loss"][k]) / min(a["loss"][k], b["loss"][k]) for a, b in itertools.combinations(exact, 2)]
        rows.append({"step": step, "bfloat16_over_float32": precision, "float32_between_seeds": seeds})
        shown = ", ".join(f"{ratio:.4f}" for ratio in precision)
        print(f"step {step:>6}: bfloat16 / float32 {shown}; seeds apart by {max(seeds):.4f}")
    last = [b / a for run_a, run_b in zip(exact, half, strict=True) for a, b in zip(run_a["levels"], run_b["levels"], strict=True)]
    print(f"by noise level at the end: between {min(last):.4f} and {max(last):.4f}")
    assert all(math.isfinite(ratio) for ratio in last)
    result = {"rows": rows, "levels_at_the_end": [min(last), max(last)], "runs": runs}
    result |= {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

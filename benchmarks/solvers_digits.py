"""The README's table of solvers: each with its defaults on one trained digits network.

`python benchmarks/solvers_digits.py` trains the default network, or reuses the one in runs/digits-vp, draws 1,000 samples
with every registered solver from the same seed, and prints calls, seconds and distances as a Markdown table; the numbers are
also written as JSON. Distances are on the features of a small classifier (see sde_gen.metrics), with standard errors.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sde_gen.commands.config import resolve
from sde_gen.commands.evaluation import sample_run
from sde_gen.commands.run_data import choose_device
from sde_gen.commands.runs import open_run
from sde_gen.solvers import SOLVERS
from sde_gen.unknown_numbers import to_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-vp"), help="run directory (default runs/digits-vp)")
    parser.add_argument("--solvers", default=",".join(SOLVERS), help="comma-separated names (default: all)")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/solvers_digits.json"))
    arguments = parser.parse_args()
    device = choose_device(None)
    run = open_run(resolve({"sampling": {"samples": arguments.samples}}), arguments.run, device)
    table = {}
    for name in arguments.solvers.split(","):
        config = run.config.model_copy(update={"sampling": run.config.sampling.model_copy(update={"solver": name, "options": {}})})
        table[name] = sample_run(dataclasses.replace(run, config=config), device)
    print("| solver | network calls | seconds | Frechet distance | precision | recall | memorised |")
    print("|---|---|---|---|---|---|---|")
    for name, scores in table.items():
        cells = [_cell(scores, key) for key in ("frechet_distance", "precision", "recall", "memorised_fraction")]
        print(f"| `{name}` | {scores['network_calls']:.0f} | {scores['seconds']:.1f} | {' | '.join(cells)} |")
    held = next(iter(table.values()))
    print(f"| held-out real images (297) | | | {_cell(held, 'held_out_frechet_distance')} | | | |")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(to_json(table, 1) + "\n", encoding="utf-8")


def _cell(scores: dict[str, dict[str, float]], key: str) -> str:
    return f"{scores[key]['value']:.2f} +- {scores[key]['std_error']:.2f}"


if __name__ == "__main__":
    main()

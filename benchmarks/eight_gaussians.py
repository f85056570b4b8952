"""Every SDE with every one of the first four solvers on eight Gaussians: does each mode get its share?

`python benchmarks/eight_gaussians.py` trains the default network for each SDE (or reuses runs/gaussians8-<sde>), draws 10,000
samples with em, pc, ode and ancestral, and prints the smallest and largest share of the eight equally likely modes, which
should be 12.5 %; the standard error of one share is 0.33 %. The data's own shares stand in the first row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sde_gen import metrics, sample
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.sdes import SDES
from sde_gen.unknown_numbers import to_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are (default runs)")
    parser.add_argument("--solvers", default="em,pc,ode,ancestral")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/eight_gaussians.json"))
    arguments = parser.parse_args()
    table: dict[str, dict[str, list[float]]] = {}
    print("| sde | solver | smallest mode | largest mode |\n|---|---|---|---|")
    for name in SDES:
        config = resolve({"data": {"name": "gaussians8"}, "sde": {"name": name}})
        run = open_run(config, arguments.runs / f"gaussians8-{name}", say=lambda _: None)
        assert run.data.modes is not None
        if not table:
            table["data"] = {"": [share.value for share in metrics.mode_fractions(run.data.train, run.data.modes)]}
            print(_row("data", "", table["data"][""]))
        table[name] = {}
        for solver in arguments.solvers.split(","):
            out = sample(run.model, (10_000, 2), solver, progress=False)
            table[name][solver] = [share.value for share in metrics.mode_fractions(out.x, run.data.modes)]
            print(_row(name, solver, table[name][solver]), flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(to_json(table, 1) + "\n", encoding="utf-8")


def _row(sde: str, solver: str, shares: list[float]) -> str:
    return f"| {sde} | {solver} | {100 * min(shares):.1f} % | {100 * max(shares):.1f} % |"


if __name__ == "__main__":
    main()

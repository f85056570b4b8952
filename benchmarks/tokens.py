"""Discrete diffusion: digits as 17 symbols beside the flow's bits/dim, and the characters of a text beside gzip and five-grams.

    python benchmarks/tokens.py [--text FILE.txt] [--train-steps 1500] [--json FILE]

Each part is what `sde-gen tokens` trains and measures at its defaults, in a directory that is used again. The bound is of held-out items,
with the error over items that holds the draws' own; the Frechet distance is that of samples by each sampler and number of network calls,
at as many items as are held out, in the features of a classifier of these digits (not Inception). gzip and the five-gram model, which
has seen the training text, read the same held-out text.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sde_gen.commands.cli import main as sde_gen
from sde_gen.unknown_numbers import to_json

SAMPLERS = (("ancestral", None), ("ancestral", 16), ("first_hitting", None), ("confidence", None), ("confidence", 16), ("tau_leaping", 64))


def digits(arguments: argparse.Namespace) -> dict[str, Any]:
    place = arguments.runs / "digits-tokens"
    found: dict[str, Any] = {}
    began = time.process_time()
    for sampler, steps in SAMPLERS:
        flags = ["tokens", "--out", str(place), "--train-steps", str(arguments.train_steps), "--sampler", sampler, "--no-progress"]
        flags += ["--device", "cpu"] + ([] if steps is None else ["--steps", str(steps)])
        if sde_gen(flags):
            raise SystemExit("sde-gen tokens failed")
        numbers = json.loads((place / "metrics.json").read_text())
        if not found:
            found = {"bound": numbers["bound"], "training": numbers["training"], "cpu_seconds": time.process_time() - began, "samples": {}}
        of_samples = numbers[f"samples, {sampler}"]
        kept = ("frechet_distance", "held_out_frechet_distance", "precision", "recall", "memorised_fraction")
        found["samples"][f"{sampler}, {steps or 64} calls"] = {name: of_samples[name] for name in kept if name in of_samples}
    return found


def text(arguments: argparse.Namespace) -> dict[str, Any]:
    place = arguments.runs / "text-tokens"
    flags = ["tokens", "--data", str(arguments.text), "--out", str(place), "--train-seconds", str(arguments.text_seconds), "--no-progress"]
    if sde_gen([*flags, "--train-steps", "100000", "--device", "cpu"]):
        raise SystemExit("sde-gen tokens failed")
    return {"file": arguments.text.name, **json.loads((place / "metrics.json").read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file; none: digits alone")
    parser.add_argument("--text-seconds", type=float, default=600.0)
    parser.add_argument("--train-steps", type=int, default=1500)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "tokens.json")
    arguments = parser.parse_args()
    known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    known["digits"] = digits(arguments)
    if arguments.text is not None:
        known["text"] = text(arguments)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(to_json(known, 1) + "\n")
    for name, one in known["digits"]["samples"].items():
        distance = one["frechet_distance"]
        print(f"{name:<26} Frechet {distance['value']:.3f} +- {distance['std_error']:.3f}")


if __name__ == "__main__":
    main()

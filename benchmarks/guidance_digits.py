"""Labels and guidance on a trained network: what the label tells, whether samples obey it, and what guidance costs.

`python benchmarks/guidance_digits.py` trains the default digits network with labels and without, or reuses the ones in
runs/digits-labels and runs/digits-vp, and prints

- the information of the label on held-out digits in nats, by both forms, beside ln 10 = 2.303, which it cannot exceed;
- for each strength of guidance the share of samples whose class the judge confirms, a classifier that was trained on the same labels
  and saw no sample, and the Frechet distance of each class's samples to that class's training digits;
- the classes of the held-out digits by the conditional likelihoods, from the bound and, of a few, from the flow;
- the samples of the conditional network without its label beside those of the unconditional one.

Every number has its standard error; shares have binomial ones.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen import metrics
from sde_gen.commands.config import resolve
from sde_gen.commands.run_data import choose_device, config_of_run
from sde_gen.commands.runs import open_run
from sde_gen.unknown_numbers import to_json

STRENGTHS = (1.0, 1.5, 2.0, 4.0)


def share(right: Tensor) -> list[float]:
    """A share of items and its binomial standard error, of (k + 1)/(n + 2) so that no error is 0."""
    n, k = len(right), int(right.sum())
    p = (k + 1) / (n + 2)
    return [k / n, math.sqrt(p * (1 - p) / n)]


def numbers(estimate: metrics.Estimate) -> list[float]:
    return [float(estimate.value), float(estimate.std_error)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-labels"), help="of the network with labels")
    parser.add_argument("--plain", type=Path, default=Path("runs/digits-vp"), help="of the network without")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--solver", default="angle")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draws", type=int, default=8, help="of noise in each interval of the noise level")
    parser.add_argument("--flow", type=int, default=40, help="so many held-out digits are classified by the flow too; 0: none")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/guidance_digits.json"))
    given = parser.parse_args(arguments)
    device = choose_device(None)
    asked = {given.run: {"data": {"labels": True}}, given.plain: {}}
    run, plain = (open_run(config_of_run(p) if p.is_dir() else resolve(layer), p, device) for p, layer in asked.items())
    data, model = run.data, run.model
    assert data.test is not None and data.test_labels is not None and data.train_labels is not None and data.classes is not None
    judge = metrics.cached_features(data, given.run / "features")
    known = judge.features(data.train)
    results: dict[str, Any] = {"samples": given.samples, "solver": given.solver, "steps": given.steps, "judge": judge.accuracy}

    found_information = sde_gen.information(model, data.test, "label", {"label": data.test_labels}, draws=given.draws)
    results["information"] = vars(found_information)
    most = math.log(data.classes)
    print(f"label on {len(data.test)} held-out digits (at most ln {data.classes} = {most:.3f}): {found_information}", flush=True)

    label = torch.arange(given.samples) % data.classes
    common: dict[str, Any] = {"solver": given.solver, "steps": given.steps, "batch_size": 250, "progress": False}
    results["strengths"] = {}
    print("| strength | class right | Frechet distance | of each class |\n|---|---|---|---|")
    for strength in STRENGTHS:
        guided = sde_gen.guide(model, strength)
        x = sde_gen.sample(guided, (given.samples, *data.shape), cond={"label": label}, **common).x.cpu()
        ours = judge.features(x)
        right = judge(x).argmax(1) == label
        each = [numbers(metrics.frechet_distance(ours[label == k], known[data.train_labels == k])) for k in range(data.classes)]
        row = {"right": share(right), "frechet": numbers(metrics.frechet_distance(ours, known)), "by_class": each}
        results["strengths"][strength] = row
        spread = ", ".join(f"{value:.1f} ± {error:.1f}" for value, error in each)
        (p, error), (f, of_f) = row["right"], row["frechet"]
        print(f"| {strength:g} | {100 * p:.1f} ± {100 * error:.1f} % | {f:.2f} ± {of_f:.2f} | {spread} |", flush=True)

    found = sde_gen.classify(model, data.test, data.classes, draws=given.draws)
    results["classify"] = {"bound": share(found.label.cpu() == data.test_labels)}
    print(f"held-out digits classified right by the bound: {100 * results['classify']['bound'][0]:.1f} % of {len(data.test)}", flush=True)
    if given.flow:
        some, theirs = data.draw(given.flow, 0, "test")
        assert theirs is not None
        by_flow = sde_gen.classify(model, some, data.classes, method="flow", rtol=1e-3, atol=1e-3).label.cpu()
        results["classify"]["flow"] = share(by_flow == theirs)
        print(f"by the flow: {100 * results['classify']['flow'][0]:.1f} % of {len(some)}", flush=True)

    results["unconditional"] = {}
    for name, one in (("with labels, none given", model), ("without labels", plain.model)):
        x = sde_gen.sample(one, (given.samples, *data.shape), **common).x.cpu()
        ours = judge.features(x)
        precision, recall = metrics.precision_recall(ours, known)
        scores = {"frechet": metrics.frechet_distance(ours, known), "precision": precision, "recall": recall}
        results["unconditional"][name] = {key: numbers(value) for key, value in scores.items()}
        print(f"network {name}: " + ", ".join(f"{key} {value}" for key, value in scores.items()), flush=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(to_json(results, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

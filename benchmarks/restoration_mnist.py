"""64 MNIST images restored: seconds, calls, error, coverage and whether the digit is the true one, by method.

    python benchmarks/restoration_mnist.py [--run runs/mnist-vp] [--data-root DIR] [--train-steps 900]

Held-out images lose a box of 12 x 12 pixels in the middle, or are seen as the means of blocks of 4 x 4, with noise of a tenth of the range.
Each has `--samples` posterior samples. Seconds are those of all of it, the network's training apart; CPU seconds are what a busy machine
leaves comparable: divided by the number of cores they are the least that a free one takes.

error     root mean square of the posterior's mean less the truth, in pixels of 0 .. 255, over what is hidden (all of a coarse image).
coverage  the share of hidden pixels inside the central 90 % of their samples, of those that vary in the training images. The truths are
          held-out data, so that it judges the network as well as the method: one of a few minutes is far from the law of the images.
digits    the share of samples of which a classifier says the true label; of the images themselves it says it of the share `true`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen import metrics
from sde_gen.commands.config import resolve
from sde_gen.commands.run_data import config_of_run
from sde_gen.commands.runs import open_run
from sde_gen.data import rows_drawn
from sde_gen.diagnostics.calibration import randomised_ranks
from sde_gen.inverse import Downsample, Gaussian, Mask, Measurement
from sde_gen.metrics.estimate import share
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
LEVEL = 0.9


@dataclass(frozen=True)
class Way:
    """A method with its steps and options."""

    method: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)


WAYS = {
    "diffpir": Way("diffpir", 25),
    "pigdm": Way("pigdm", 25),
    "mmps, 3 directions": Way("mmps", 25, {"directions": 3}),
    "twisted, 3 directions": Way("twisted", 25, {"directions": 3}),
}


def measurements(shape: tuple[int, ...], noise: float) -> dict[str, Measurement]:
    return {
        "box of 12 x 12 hidden": Measurement(Mask.box(shape, 12), Gaussian(255 * noise)),
        "blocks of 4 x 4": Measurement(Downsample(4), Gaussian(255 * noise)),
    }


def restored(
    model: sde_gen.Denoiser, measurement: Measurement, y: Tensor, way: Way, args: argparse.Namespace
) -> tuple[sde_gen.Posterior, dict[str, float]]:
    """Posteriors of all images, a batch at a time, and what they cost."""
    began, cpu = time.perf_counter(), time.process_time()
    parts = []
    for first in range(0, len(y), args.batch):
        rows = y[first : first + args.batch]
        common: dict[str, Any] = {"steps": way.steps, "seed": args.seed, "index_offset": first, "progress": False}
        parts.append(sde_gen.posterior(model, measurement, rows, args.samples, way.method, **common, **way.options))
    fields = {name: [getattr(part, name) for part in parts] for name in sde_gen.Posterior.__dataclass_fields__}
    whole = sde_gen.Posterior(**{name: None if each[0] is None else torch.cat(each).cpu() for name, each in fields.items()})  # type: ignore[arg-type]
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return whole, seconds | {"calls": float(whole.nfe.double().mean()), "ess": float(whole.ess.double().mean())}


def judged(found: sde_gen.Posterior, truths: Tensor, labels: Tensor, hidden: Tensor, classifier: Any) -> dict[str, Any]:
    """hidden (1, 28, 28): the pixels that are counted."""
    off = (found.mean() - truths).double().square()[:, hidden].mean(1).sqrt()
    ranks = randomised_ranks(truths[:, hidden], found.x[:, :, hidden], found.log_weights)
    inside = ((2 * ranks - 1).abs() <= LEVEL).double().mean(1)
    equal = found.resampled(seed=1).x
    said = classifier(equal.flatten(0, 1)).argmax(1).reshape(equal.shape[:2]) == labels[:, None]
    each = said.double().mean(1)
    rows = {"error": off, "coverage": inside, "digits": each}
    return {name: [float(value.mean()), float(value.std()) / len(value) ** 0.5] for name, value in rows.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/mnist-vp"), help="trained with --train-steps where it is none")
    parser.add_argument("--data-root", type=Path, default=HERE.parents[1] / "shared" / "data" / "mnist")
    parser.add_argument("--train-steps", type=int, default=900)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8, help="of each image, and particles of a group")
    parser.add_argument("--noise", type=float, default=0.1, help="a share of the range")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--batch", type=int, default=16, help="images at a time, on which nothing depends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "restoration_mnist.json")
    args = parser.parse_args(arguments)
    asked = {"data": {"name": "mnist", "root": str(args.data_root)}, "training": {"steps": args.train_steps}}
    run = open_run(config_of_run(args.run) if args.run.is_dir() else resolve(asked), args.run)
    data, model = run.data, run.model
    assert data.test is not None and data.test_labels is not None
    classifier = metrics.cached_features(data, args.run / "features")
    rows = rows_drawn(len(data.test), args.items, args.seed)
    truths, labels = data.test[rows], data.test_labels[rows]
    vary = data.train.float().std(0) > 1
    results: dict[str, Any] = {name: getattr(args, name) for name in ("items", "samples", "noise")} | {"threads": torch.get_num_threads()}
    results["true"] = float(share(classifier(truths).argmax(1) == labels).value)
    print(f"{args.items} images, {args.samples} samples each, noise {args.noise:g} of the range; true images: digits {results['true']:.1%}")
    print("| measured | method | calls an image | seconds (CPU) | error | 90 % coverage | digits | effective samples |")
    print("|---|---|---|---|---|---|---|---|")
    for name, measurement in measurements(data.shape, args.noise).items():
        y = measurement.simulate(truths, args.seed)
        kept = measurement.operator.kept(data.shape)
        hidden = vary if kept is None else vary & ~kept
        for label in args.ways:
            found, row = restored(model, measurement, y, WAYS[label], args)
            row |= judged(found, truths, labels, hidden, classifier)
            results.setdefault("measured", {}).setdefault(name, {})[label] = row
            spans = [
                f"{row[key][0]:.{digits}f} +- {row[key][1]:.{digits}f}" for key, digits in (("error", 1), ("coverage", 3), ("digits", 3))
            ]
            cost = f"{row['calls']:,.0f} | {row['seconds']:.0f} ({row['cpu_seconds']:.0f})"
            print(f"| {name} | {label} | {cost} | {' | '.join(spans)} | {row['ess']:.1f} |", flush=True)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(to_json(results, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

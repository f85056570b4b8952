"""The digits in one, two and four network calls: a flow map beside the network's calibrated solver and consistency distillation.

    python experiments/run.py                      # the default digits network, if runs/digits-vp is not there
    python benchmarks/few_steps.py

The flow map is `sde_gen.distill` of the run's network with --trajectories and --train-steps, at most five minutes on two cores. The
calibrated solver is `angle` with a grid of `fit_grid` (regression) for each number of calls. The peer is consistency distillation as in
Song et al. 2023 (arXiv:2303.01469) with the loss and the time steps of Song and Dhariwal 2023 (arXiv:2310.14189), written out below: it
starts from the same weights, gets as much processor time as trajectories and training of the flow map took together, once for each of
--peer-lr with and without the teacher ("distillation", "training"), and its best result at each number of calls counts. All draw
--samples images from the same noise. The Frechet distance to the training images is that of a classifier's features (sde_gen.metrics; not
Inception FID); the "excess" is what it is above that of as many training images, drawn: 297 held-out ones are further away than samples
of the network at this count. Targets: 4 calls within an error bar of the converged flow, 2 calls at most twice its excess.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen
from sde_gen.data import Dataset
from sde_gen.metrics import Estimate, cached_features, frechet_distance
from sde_gen.models.denoiser import encoded, like
from sde_gen.randomness import NoiseStream
from sde_gen.solvers import make_grid
from sde_gen.training import PowerAverage
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).resolve().parent
FEW = (1, 2, 4)
CONVERGED = 60
TEACHING_STEPS = 20
"""Intervals between which consistency is asked for; Song et al. take 18 of Heun's for CIFAR-10."""


class Consistency:
    """f(x, t), the flow's end from any state of it, with f(x, t_min) = x/alpha by its form; several steps add noise again."""

    def __init__(self, model: sde_gen.ScoreModel, network: torch.nn.Module) -> None:
        self.model, self.network, self.sde = model, network, model.sde
        alpha, sigma = self.sde.marginal(torch.tensor(self.sde.t_min, dtype=torch.float64))
        self.least = float(sigma / alpha)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """t: (B,), float64. The data, of the shape of x, in normalised units."""
        alpha, sigma = self.sde.marginal(t)
        std = self.model.data_std or 1.0
        beyond = sigma / alpha - self.least
        skip, out = std**2 / (beyond**2 + std**2) / alpha, std * beyond / torch.sqrt((sigma / alpha) ** 2 + std**2)
        scales = self.model.scales(t)
        return like(skip, x) * x + like(out, x) * self.network(like(scales.c_in, x) * x, scales.clock.to(x.dtype))

    def sample(self, count: int, shape: tuple[int, ...], times: list[float], seed: int) -> Tensor:
        noise = NoiseStream(seed, 0, count, shape, torch.float32, torch.device("cpu"))
        x = found = self.model.prior.from_noise(noise.draw())
        for t in times:
            if t != times[0]:
                alpha, sigma = self.sde.marginal(torch.full((count,), t, dtype=torch.float64))
                x = like(alpha, x) * found + like(sigma, x) * noise.draw()
            with torch.no_grad():
                found = self(x, torch.full((count,), t, dtype=torch.float64))
        return found if self.model.normalizer is None else self.model.normalizer.decode(found)


def consistency(model: sde_gen.ScoreModel, x: Tensor, lr: float, teacher: bool, seconds: float, seed: int = 0) -> Consistency:
    """Trained for so many processor seconds on data x (N, *) in their own units, from the model's weights.

    teacher: whether the state before is found by the model's flow (Heun), or by the same noise.
    """
    z, sde, generator = encoded(model, x), model.sde, torch.Generator().manual_seed(seed)
    network = copy.deepcopy(model.network).requires_grad_(True)
    average = PowerAverage(network, 0.05)
    student, target = Consistency(model, network), Consistency(model, copy.deepcopy(network))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    times = make_grid(sde, "karras", sde.t_max, sde.t_min, TEACHING_STEPS)
    knee = 0.00054 * math.sqrt(x[0].numel())
    began = time.process_time()
    done = 0.0
    while done < 1:
        rows = torch.randint(len(z), (64,), generator=generator)
        place = torch.randint(TEACHING_STEPS, (64,), generator=generator)
        t, s = times[place], times[place + 1]
        noise = torch.randn(64, *z.shape[1:], generator=generator)
        state = _noised(sde, z[rows], noise, t)
        with torch.no_grad():
            target.network.load_state_dict(network.state_dict())  # iCT: the target is the network itself
            earlier = heun(model, state, t, s) if teacher else _noised(sde, z[rows], noise, s)
            wanted = target(earlier, s)
        apart = (student(state, t) - wanted).square().flatten(1).sum(1)
        ratios = [sigma / alpha for alpha, sigma in (sde.marginal(t), sde.marginal(s))]
        weight = 1 / (ratios[0] - ratios[1]).float()
        loss = (weight * ((apart + knee**2).sqrt() - knee)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        done = (time.process_time() - began) / seconds
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        optimizer.step()
        average.update(network)
    return Consistency(model, average.module.eval())


def heun(model: sde_gen.ScoreModel, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The flow's state at s from that at t by Heun's rule in sigma/alpha, two calls."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = model.sde.marginal(t), model.sde.marginal(s)
    step = like(sigma_s / alpha_s - sigma_t / alpha_t, x)
    slope = model.noise(x, t)  # d(x/alpha)/d(sigma/alpha) is the noise
    first = like(alpha_s, x) * (x / like(alpha_t, x) + step * slope)
    return like(alpha_s, x) * (x / like(alpha_t, x) + step * 0.5 * (slope + model.noise(first, s)))


def _noised(sde: sde_gen.SDE, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = sde.marginal(t)
    return like(alpha, z) * z + like(sigma, z) * noise


def spent(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the processor seconds that it took."""
    began = time.process_time()
    return work(), time.process_time() - began


def measured(x: Tensor, features: Any, train: Tensor, converged: Tensor) -> dict[str, Any]:
    """The Frechet distance to the training images, and how far the samples are from the converged flow's of the same noise."""
    distance: Estimate = frechet_distance(features.features(x), train)
    apart = float(((x - converged).square().mean() / converged.var()).sqrt())
    return {"frechet": distance.value, "std_error": distance.std_error, "from_converged": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-vp"), help="an unconditional run of digits")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--trajectories", type=int, default=4096)
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--peer-lr", type=float, nargs="*", default=[5e-4, 2e-3], help="none: no peer")
    parser.add_argument("--solver-calls", type=int, nargs="+", default=[4, 5, 8, 10, 20])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "few_steps.json")
    args = parser.parse_args()
    data = sde_gen.load_dataset("digits")
    model = sde_gen.load(args.run)
    result = compare(model, data, args)
    for line in lines(result):
        print(line)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(to_json(result, 2) + "\n", encoding="utf-8")


def compare(model: sde_gen.ScoreModel, data: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """Rows of samplers, with the distances of the converged flow and of real images."""
    features = cached_features(data, args.run / "features")
    train = features.features(data.train)
    shape = (args.samples, *data.shape)
    how: dict[str, Any] = {"seed": args.seed, "progress": False, "final": "raw", "batch_size": 250}
    converged = sde_gen.sample(model, shape, "angle", steps=CONVERGED, **how).x
    drawn = data.draw(min(args.samples, len(data.train) * 2 // 3), args.seed)[0]
    real = frechet_distance(features.features(drawn), train)
    rows: list[dict[str, Any]] = []

    def note(sampler: str, calls: int, x: Tensor, **more: Any) -> None:
        rows.append({"sampler": sampler, "calls": calls} | measured(x, features, train, converged) | more)
        print(sampler, rows[-1], flush=True)

    note("converged flow", CONVERGED, converged)
    for calls in args.solver_calls:
        _, seconds = spent(lambda calls=calls: sde_gen.fit_grid(model, "angle", calls, shape=data.shape))  # type: ignore[misc]
        note("calibrated solver", calls, sde_gen.sample(model, shape, "angle", steps=calls, **how).x, seconds=seconds)
    learned = {"trajectories": args.trajectories, "steps": args.train_steps, "seed": args.seed, "device": "cpu", "progress": False}
    flow, budget = spent(lambda: sde_gen.distill(model, **learned))
    for calls in FEW:
        note("flow map", calls, sde_gen.sample(flow, shape, steps=calls, **how).x, seconds=budget)
    for lr in args.peer_lr:
        for teacher in (True, False):
            peer, seconds = spent(lambda lr=lr, teacher=teacher: consistency(model, data.train, lr, teacher, budget, args.seed))  # type: ignore[misc]
            name = "consistency distillation" if teacher else "consistency training"
            for calls in FEW:
                x = peer.sample(args.samples, data.shape, flow.grid(calls)[:-1].tolist(), args.seed)
                note(name, calls, x, lr=lr, seconds=seconds)
    about = {"samples": args.samples, "features_accuracy": features.accuracy, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    return about | {
        "torch": torch.__version__,
        "real": {"frechet": real.value, "std_error": real.std_error},
        "budget": budget,
        "rows": rows,
    }


def best(rows: list[dict[str, Any]], sampler: str, calls: int) -> dict[str, Any] | None:
    """The row of the least distance; of the peer the better of distillation and training."""
    found = [row for row in rows if row["sampler"].startswith(sampler) and row["calls"] == calls]
    return min(found, key=lambda row: row["frechet"]) if found else None


def lines(result: dict[str, Any]) -> list[str]:
    """The table and whether the targets are met."""
    rows, real = result["rows"], result["real"]["frechet"]
    teacher = best(rows, "converged", CONVERGED)
    assert teacher is not None
    about = f"{result['samples']:,} samples; flow map and each peer: {result['budget']:.0f} processor seconds"
    said = [
        f"{about}; training images, drawn: {real:.2f}",
        "| sampler | calls | Frechet distance | excess | from the converged flow |",
        "|---|---|---|---|---|",
    ]
    shown = [teacher]
    for sampler in ("calibrated", "flow map", "consistency"):
        counts = sorted({row["calls"] for row in rows if row["sampler"].startswith(sampler)})
        shown += [row for calls in counts if (row := best(rows, sampler, calls)) is not None]
    for row in shown:
        lr = f", lr {row['lr']:g}" if "lr" in row else ""
        distance = f"{row['frechet']:.2f} +- {row['std_error']:.2f}"
        said.append(f"| {row['sampler']}{lr} | {row['calls']} | {distance} | {row['frechet'] - real:.2f} | {row['from_converged']:.3f} |")
    ours = {calls: best(rows, "flow map", calls) for calls in FEW}
    four, two = ours[4], ours[2]
    assert four is not None and two is not None
    beyond = four["frechet"] - teacher["frechet"]
    error = math.hypot(four["std_error"], teacher["std_error"])
    said.append(f"4 calls: {beyond:+.2f} to the converged flow, its error {error:.2f}: {'met' if beyond <= error else 'missed'}")
    ratio = (two["frechet"] - real) / (teacher["frechet"] - real)
    said.append(f"2 calls: {ratio:.2f} times the converged flow's excess (2): {'met' if ratio <= 2 else 'missed'}")
    return said


if __name__ == "__main__":
    main()

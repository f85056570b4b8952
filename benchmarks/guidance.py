"""What guidance samples, against closed forms, and what it costs.

    peers-env/bin/python benchmarks/guidance.py            # the environment that benchmarks/peers.txt describes

law         p(x | c) = N(0, 1) and p(x) = N(0, 2) along VE. Strength g stands for the variance 2/(g + 1); the flow of the guided score ends
            at 2^(1 - g) and its SDE at (2 - 2^(2 - 2g))/(2g - 1). Printed: what the flow and each solver of the reverse SDE end at, and
            what particles do, whose weights are to turn it into the law's own.
classifier  a mixture of three modes and its exact noisy classifier, strength 1: the sliced Wasserstein distance of each solver's samples
            to the mode, beside that of the mode's own score with the same seeds.
cost        milliseconds of a guided step over those of one network call at twice the batch, and of a step with particles over one
            without, at one number of states, for the digits network.
peers       azula's and diffusers' classifier-free guidance under their own DDIM, with the same network, noise and times: the largest
            difference from ours over the largest value, and what a guided step of each costs over one network call at twice the batch.
            diffusers is measured by its guider, which calls the network for each branch, and by the one call of both branches that its
            pipelines write out. Left out, with a line, where they are not installed.

Errors are of the mean over independent repeats, or of `sliced_wasserstein` itself.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.guidance import Classifier, guide
from sde_gen.metrics import sliced_wasserstein
from sde_gen.networks import Network
from sde_gen.solvers import SOLVERS, make_grid, make_solver
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
STRENGTH = 2.0
"""Of what is timed."""
MISSING = [name for name in ("azula", "diffusers") if importlib.util.find_spec(name) is None]
ONE = torch.ones(1, 1, dtype=torch.float64)


class Branches(nn.Module):
    """E[x_0 | x_t] of one law where `kind` is 1, of another where it is 0 or not given."""

    def __init__(self, sde: sde_gen.SDE, given: MixtureData, null: MixtureData) -> None:
        super().__init__()
        self.sde, self.given, self.unconditional = sde, given, null

    def null(self, name: str, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def forward(self, x: Tensor, c: Tensor, kind: Tensor | None = None) -> Tensor:
        null = self.unconditional.denoise_at(x, self.sde, c)
        return null if kind is None else torch.where(kind[:, None] == 1, self.given.denoise_at(x, self.sde, c), null)


def kind(count: int) -> dict[str, Tensor]:
    return {"kind": torch.ones(count, dtype=torch.int64)}


def mean_and_error(values: list[float]) -> list[float]:
    return [statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5]


def law(strength: float, size: int, groups: int, steps: int, repeats: int) -> dict[str, Any]:
    sde = sde_gen.make_sde("ve", sigma_min=0.01, sigma_max=80.0)
    model = sde_gen.ScoreModel(Branches(sde, GaussianData(torch.zeros(1), ONE), GaussianData(torch.zeros(1), 2 * ONE)), sde, "data")
    guided = guide(model, strength)
    common: dict[str, Any] = {"dtype": torch.float64, "progress": False}
    rows: dict[str, Any] = {}
    flow = sde_gen.sample(guided, (4096, 1), "ode", cond=kind(4096), **common).x
    rows["ode"] = {"alone": [float(flow.square().mean()), float(flow.square().std() / 4096**0.5)]}
    for name in SOLVERS:
        if not make_solver(name).reverse_sde:
            continue
        alone, weighted, ess = [], [], []
        for seed in range(repeats):
            out = sde_gen.sample(guided, (groups, 1), name, steps, seed=seed, particles=size, cond=kind(groups), **common)
            assert out.log_weights is not None and out.ess is not None
            plain = sde_gen.sample(guided, (groups * size // 4, 1), name, steps, seed=seed, cond=kind(groups * size // 4), **common)
            alone.append(float(plain.x.square().mean()))
            weighted.append(float((out.log_weights.flatten().softmax(0) * out.x.flatten().square()).sum()))
            ess.append(float(out.ess.mean()))
        rows[name] = {"alone": mean_and_error(alone), "particles": mean_and_error(weighted), "ess": statistics.mean(ess)}
    expected = {"law": 2 / (strength + 1), "flow": 2 ** (1 - strength), "sde": (2 - 2 ** (2 - 2 * strength)) / (2 * strength - 1)}
    return {"strength": strength, "expected": expected, "steps": steps, "particles": size, "solvers": rows}


def classifier(count: int, steps: int) -> dict[str, Any]:
    sde = sde_gen.make_sde("vp")
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.0]], dtype=torch.float64)
    covariances = torch.eye(2, dtype=torch.float64) * torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)[:, None, None]
    mixture = MixtureData(torch.tensor([0.5, 0.3, 0.2]), means, covariances)
    mode = MixtureData(torch.ones(1), means[:1], covariances[:1])

    def log_prob(x: Tensor, t: Tensor | float) -> Tensor:
        return mode.log_prob(x, sde, t) - mixture.log_prob(x, sde, t)

    guided, own = Classifier(mixture.model(sde, "sde"), log_prob), mode.model(sde, "sde")
    truth = mode.sample(count, seed=1)
    rows = {}
    for name in SOLVERS:
        method = make_solver(name)
        if method.needs_variance or name == "langevin":
            continue
        options: dict[str, Any] = {"progress": False, "dtype": torch.float64, "steps": None if method.adaptive else steps}
        found = [sliced_wasserstein(sde_gen.sample(model, (count, 2), name, **options).x, truth) for model in (guided, own)]
        rows[name] = [[estimate.value, estimate.std_error] for estimate in found]
    return {"samples": count, "solvers": rows}


def cost(batch: int, rounds: int, steps: int) -> dict[str, Any]:
    options = {"width": 32, "multipliers": [1, 2], "attention": [1]}
    network = sde_gen.make_network("unet", (1, 8, 8), 10, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # as after some training: the label matters
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    sde = sde_gen.make_sde("vp")
    model = sde_gen.ScoreModel(network, sde, "data", clock="half_log_snr")
    x, c, label = torch.randn(2 * batch, 1, 8, 8, generator=generator), torch.zeros(2 * batch), torch.arange(2 * batch) % 10
    start, cond, guided = x[:batch], {"label": label[:batch]}, guide(model, STRENGTH)
    times = make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, steps)
    common: dict[str, Any] = {"progress": False, "final": "state", "on_failure": "mask"}
    few = {"label": label[: batch // 8]}
    jobs: dict[str, Callable[[], Any]] = {
        "network at 2B": lambda: [network(x, c, label=label) for _ in range(steps)],
        "guided": lambda: sde_gen.sample(guided, (batch, 1, 8, 8), "em", steps, cond=cond, **common),
        "guided, 8 particles": lambda: sde_gen.sample(guided, (batch // 8, 1, 8, 8), "em", steps, cond=few, particles=8, **common),
        "ddim": lambda: sde_gen.sample(guided, (batch, 1, 8, 8), "ddim", cond=cond, x_init=start, grid=times.tolist(), **common).x,
    }
    peers = peers_of_guidance(network, sde, times)
    jobs |= {name: (lambda run=run: run(start, cond["label"])) for name, run in peers.items()}
    times_of: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, job in jobs.items():
                began = time.perf_counter()
                job()
                if turn:  # the first prepares things
                    times_of[name].append(1e3 * (time.perf_counter() - began))
    calls = dict.fromkeys(jobs, steps) | {"guided, 8 particles": steps + 1}
    per_call = {name: statistics.median(values) / calls[name] for name, values in times_of.items()}
    over = {name: [a / b for a, b in zip(times_of[name], times_of["network at 2B"], strict=True)] for name in ("guided", "ddim", *peers)}
    ratios = {name: statistics.median(values) for name, values in over.items()}
    ratios["particles"] = per_call["guided, 8 particles"] / per_call["guided"]
    targets = {"guided": 1.05, "particles": 1.05, "ddim": min((ratios[name] for name in peers), default=None), "difference": 1e-5}
    difference = {str(dtype): differences(network, sde, times, start, cond["label"], dtype) for dtype in (torch.float64, torch.float32)}
    return {"batch": batch, "steps": steps, "milliseconds a call": per_call, "ratios": ratios, "difference": difference, "targets": targets}


@torch.no_grad()
def differences(network: Network, sde: sde_gen.SDE, times: Tensor, start: Tensor, label: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """Of each peer's samples from ours, over the largest of ours, all in `dtype`."""
    network, start = copy.deepcopy(network).to(dtype), start.to(dtype)
    guided = guide(sde_gen.ScoreModel(network, sde, "data", clock="half_log_snr"), STRENGTH)
    options: dict[str, Any] = {"x_init": start, "dtype": dtype, "grid": times.tolist(), "final": "state", "progress": False}
    ours = sde_gen.sample(guided, tuple(start.shape), "ddim", cond={"label": label}, **options).x
    peers = peers_of_guidance(network, sde, times)
    return {name: float((run(start, label) - ours).abs().max() / ours.abs().max()) for name, run in peers.items()}


def peers_of_guidance(network: Network, sde: sde_gen.SDE, times: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """By name, those that are installed: from states at the first of `times` and their labels to states at the last one, guided with
    `STRENGTH` by a network that says E[x_0 | x_t] and is told half the log-SNR. They work in the network's dtype."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    if "azula" not in MISSING:
        found |= {"azula": azula_guidance(network, sde, times)}
    if "diffusers" not in MISSING:
        found |= {f"diffusers, {way}": diffusers_guidance(network, sde, times, way == "one call") for way in ("guider", "one call")}
    return found


def azula_guidance(network: nn.Module, sde: sde_gen.SDE, times: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.cfg import CFGDenoiser
    from azula.sample import DDIMSampler

    alpha, sigma = (column.to(next(network.parameters())) for column in sde.marginal(times))
    steps = len(times) - 1

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:  # our times by its own even ones
        place = torch.round((1 - t) * steps).long()
        return alpha[place], sigma[place]

    class Told(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> DiracPosterior:
            alpha_t, sigma_t = schedule(t)
            return DiracPosterior(network(x_t, torch.log(alpha_t / sigma_t).expand(len(x_t)), **cond))

    sampler = DDIMSampler(CFGDenoiser(Told()), steps=steps, silent=True)
    return lambda x, label: sampler(x, positive={"label": label}, guidance=STRENGTH - 1)  # its 0 is the conditional model


def diffusers_guidance(network: Network, sde: sde_gen.SDE, times: Tensor, together: bool) -> Callable[[Tensor, Tensor], Tensor]:
    import logging

    import diffusers
    from diffusers.guiders import ClassifierFreeGuidance

    logging.getLogger("diffusers").setLevel(logging.ERROR)  # that guiders are experimental
    count = len(times) - 1
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=count, clip_sample=False, prediction_type="sample")
    squares = sde.marginal(times)[0] ** 2
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = squares[:-1].flip(0), squares[-1]
    lambdas = sde.half_log_snr(times)[:-1].to(next(network.parameters()))
    guider = ClassifierFreeGuidance(guidance_scale=STRENGTH)

    def denoised(x: Tensor, label: Tensor, null: Tensor, step: int) -> Tensor:
        if together:  # as its pipelines do
            found = network(torch.cat([x] * 2), lambdas[step].expand(2 * len(x)), label=torch.cat([null, label]))
            without, given = found.chunk(2)
            return without + STRENGTH * (given - without)
        guider.set_state(step, count, scheduler.timesteps[step])
        batches = guider.prepare_inputs({"label": (label, null)})
        for one in batches:
            one.noise_pred = network(x, lambdas[step].expand(len(x)), label=one.label)
        return guider(batches).pred

    def run(x: Tensor, label: Tensor) -> Tensor:
        scheduler.set_timesteps(count)
        null = network.encoders["label"].null(label)
        for step in range(count):
            x = scheduler.step(denoised(x, label, null, step), count - 1 - step, x, return_dict=False)[0]
        return x

    return run


def show(results: dict[str, Any]) -> None:
    for one in results["law"]:
        wanted = ", ".join(f"{name} {value:.4f}" for name, value in one["expected"].items())
        print(f"\nstrength {one['strength']:g}, {one['steps']} steps, {one['particles']} particles; variances by closed form: {wanted}\n")
        print("| solver | alone | particles | ess |\n|---|---|---|---|")
        for name, row in one["solvers"].items():
            cells = [f"{row[key][0]:.4f} +- {row[key][1]:.4f}" if key in row else "-" for key in ("alone", "particles")]
            print(f"| {name} | {cells[0]} | {cells[1]} | {row.get('ess', 0):.0f} |")
    print("\n| solver | guided by the exact classifier | the mode's own score |\n|---|---|---|")
    for name, (guided, own) in results["classifier"]["solvers"].items():
        print(f"| {name} | {guided[0]:.4f} +- {guided[1]:.4f} | {own[0]:.4f} +- {own[1]:.4f} |")
    one = results["cost"]
    print(f"\ncost of a guided step, batch {one['batch']}, {one['steps']} steps; particles over none {one['ratios']['particles']:.3f}\n")
    print(f"| | ms | over the network at 2B | {' | '.join(f'difference, {dtype}' for dtype in one['difference'])} |\n|---|---|---|---|---|")
    for name, value in one["milliseconds a call"].items():
        of_peer = [f"{found[name]:.1e}" if name in found else "" for found in one["difference"].values()]
        ratio = f"{one['ratios'][name]:.3f}" if name in one["ratios"] else ""
        print(f"| {name} | {value:.3f} | {ratio} | {' | '.join(of_peer)} |")
    if MISSING:
        print(f"measured without {', '.join(MISSING)}; benchmarks/peers.txt says how to install the peers")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything small")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "guidance.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    groups, repeats, count, batch, rounds, steps = (8, 2, 100, 8, 1, 20) if args.quick else (200, 8, 5000, 64, 9, 100)
    results = {
        "law": [law(strength, 64, groups, steps, repeats) for strength in ((3.0,) if args.quick else (1.5, 3.0, 5.0))],
        "classifier": classifier(count, steps // 2),
        "cost": cost(batch, rounds, 10),
    }
    show(results)
    args.json.write_text(to_json(results, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

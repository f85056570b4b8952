"""The phase `sampling` of gpu.py: calls inside the loops of solvers over those of the bare network, and likelihoods."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from gpu_phase import TARGETS, Bench, random_images, spread, waits
from torch import Tensor

import sde_gen
from sde_gen.devices import float32_products
from sde_gen.likelihood.bits_per_dim import bits_per_dim
from sde_gen.models.score import ScoreModel
from sde_gen.randomness import NoiseStream
from sde_gen.solvers import SOLVERS, FixedStepSolver, Graphed, Run, make_solver, run_updates
from sde_gen.training import TrainSettings, build_model, fit


def sampling(bench: Bench) -> None:
    digits = sde_gen.load_dataset("digits")
    made = build_model(digits.train, network="unet", network_options=bench.size.digits)
    settings = TrainSettings(steps=bench.size.steps, batch=64, lr=2e-3, ema_width=0.05, evaluations=1)
    trained = fit(made, digits.train, settings, device=bench.device, progress=False).model
    images = spread(build_model(random_images(64), network="unet", network_options=bench.size.images).to(bench.device))
    for label, model, shape in (("digits network", trained, (1, 8, 8)), ("images network", images, (3, 32, 32))):
        loops(bench, label, model, (bench.size.batch, *shape))
    for name in SOLVERS:
        if make_solver(name).adaptive:
            took: list[Tensor] = []

            def job(name: str = name, took: list[Tensor] = took) -> None:
                took.append(sde_gen.sample(trained, (64, 1, 8, 8), name, progress=False, on_failure="mask").nfe)

            bench.say(f"{name}, adaptive, digits network", milliseconds=bench.time(job), calls=float(took[-1].double().mean()))
    rows = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))[: bench.size.likelihoods]
    likelihoods(bench, trained, digits.train[rows].round().long().to(bench.device), digits.levels)


@torch.no_grad()
def loops(bench: Bench, label: str, model: ScoreModel, shape: tuple[int, ...]) -> None:
    """A call inside each fixed-step solver's loop over the bare network's."""
    network, c, calls = model.network, torch.zeros(shape[0], device=bench.device), bench.size.calls
    x = torch.randn(shape, device=bench.device)

    def bare(count: int) -> None:
        for _ in range(count):
            network(x, c)

    bare(3)
    graphs: list[Any] = []
    if bench.cuda:
        for count in calls:
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                bare(count)

    def alone(kind: str) -> float:
        """Milliseconds of a call of the bare network."""
        jobs = [graph.replay for graph in graphs] if kind == "graph" else [lambda: bare(calls[0]), lambda: bare(calls[1])]
        return (bench.time(jobs[1]) - bench.time(jobs[0])) / (calls[1] - calls[0])

    kinds = ("eager", "graph") if bench.cuda else ("eager",)
    of_network = {f"{kind}_milliseconds": alone(kind) for kind in kinds}
    bench.say(f"{label}, bare, {shape}", **of_network, noise_milliseconds=stream(bench, shape))
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    for name in SOLVERS:
        solver = make_solver(name)
        if not isinstance(solver, FixedStepSolver):
            continue
        figures: dict[str, float] = {}
        for kind in kinds:
            jobs, counts = [], []
            for many in calls:
                loop = solver if kind == "eager" else Graphed(solver)  # one keeps one loop for each size of batch
                steps = max(2, many // (solver.calls or 2))

                def job(loop: Any = loop, steps: int = steps, grid: str = solver.default_grid) -> Run:
                    run = new_run(model, shape, bench.device)
                    loop.solve(run, run.model.prior.from_noise(run.noise.draw()), 1.0, model.sde.t_min, steps, grid)
                    return run

                counts.append(int(job().nfe[0]))
                if kind == "graph":
                    job()  # it is captured at the second call
                jobs.append(job)
            before = alone(kind)  # a host may be slower in one minute than in the next
            found = (bench.time(jobs[1]) - bench.time(jobs[0])) / max(1, counts[1] - counts[0])
            network_alone = (before + alone(kind)) / 2
            figures |= {f"{kind}_milliseconds": found, f"{kind}_bare": network_alone, kind: found / network_alone}
            ratios[kind].append(found / network_alone)
        bench.say(f"{name}, {label}", **figures, waits=waits_in_loop(bench, model, solver, shape))
    for kind, values in ratios.items():
        bench.say(f"loop, {kind}, {label}", median=statistics.median(values), most=max(values), target=TARGETS[f"loop, {kind}"])


def new_run(model: ScoreModel, shape: tuple[int, ...], device: torch.device) -> Run:
    noise = NoiseStream(0, 0, shape[0], shape[1:], torch.float32, device)
    return Run(model, noise, torch.zeros(shape[0], dtype=torch.int64, device=device))


def stream(bench: Bench, shape: tuple[int, ...]) -> float:
    """Milliseconds of a draw of noise for every sample."""
    noise = NoiseStream(0, 0, shape[0], shape[1:], torch.float32, bench.device)
    return bench.time(lambda: [noise.draw() for _ in range(64)]) / 64


def waits_in_loop(bench: Bench, model: ScoreModel, solver: FixedStepSolver, shape: tuple[int, ...]) -> int:
    run = new_run(model, shape, bench.device)
    x = run.noise.draw()
    times = solver.times(run, x, 1.0, model.sde.t_min, 5, solver.default_grid)
    table = solver.table(run, x, 1.0, times)  # made before the loop
    return waits(lambda: run_updates(run, *table), bench.cuda)


def likelihoods(bench: Bench, model: ScoreModel, images: Tensor, levels: int | None) -> None:
    options: dict[str, Any] = {"levels": levels, "rtol": 1e-4, "atol": 1e-4}
    bits_per_dim(model, images[:2], **options)
    bench.wait()
    began, found = time.perf_counter(), []
    for tf32 in (True, False):
        with float32_products(tf32):
            found.append(bits_per_dim(model, images, **options))
        bench.wait()
        if tf32:
            seconds = time.perf_counter() - began
    apart = (found[0].each - found[1].each).double()
    bench.say(
        f"likelihood of {len(images)} digits",
        seconds=seconds,
        evaluations=found[0].nfe,
        bits_per_dim=found[0].value,
        std_error=found[0].std_error,
        tf32_mean_difference=float(apart.mean()),
        tf32_largest_difference=float(apart.abs().max()),
    )

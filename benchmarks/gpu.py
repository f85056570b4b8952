"""What sde_gen does on a GPU, in one command of at most twelve minutes and without a download.

    python benchmarks/gpu.py                                             # all phases that have what they need
    python benchmarks/gpu.py --cifar cifar                               # with CIFAR-10: a directory of its binary files, or an archive
    python benchmarks/gpu.py --phases sampling,training --seconds 300
    python benchmarks/gpu.py --dry-run cpu                               # what a CPU can run of it, at toy size

Phases, in order of worth; each is a process of its own with a limit of time, and writes a line of JSON as soon as it has measured
something, so that a cut-off or a crash loses only what was running:

    tests       tests/test_cuda.py and the tests that run on every device
    sampling    milliseconds of a network call inside every fixed-step solver over those of the bare network, in a plain loop and
                captured as a CUDA graph (over the bare network's graph), and how often the loop waits for the device; the adaptive
                solvers; likelihoods of 512 images, and what TF32 changes in them
    training    images a second of the CIFAR-size U-Net in each precision and layout, from the device and streamed, and of diffusers'
                UNet2DModel of equal parameters; the share of the card's measured peak; where the kernels' time goes
    cifar       a network trained for some minutes, its samples beside held-out images, bits per dimension, a picture
    processes   two processes and one: the same gradients and samples (gloo where they share a card, NCCL where each has its own)

The exit code is 1 where a phase failed, a test among them, or was cut off. A time is the median of several; per call, the slope between a
short and a long run, which leaves out what a run costs once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peers_digits import mend_torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sde_gen
from sde_gen import metrics, parallel
from sde_gen.commands.config import read_config, resolve
from sde_gen.data.source import array_source
from sde_gen.devices import float32_products
from sde_gen.likelihood.bits_per_dim import bits_per_dim
from sde_gen.metrics.features import FeatureNet
from sde_gen.models.score import ScoreModel
from sde_gen.networks import make_network
from sde_gen.randomness import NoiseStream
from sde_gen.report import picture_samples
from sde_gen.sampling.sample import sample_together
from sde_gen.solvers import SOLVERS, FixedStepSolver, Graphed, Run, make_solver, run_updates
from sde_gen.training import TrainSettings, build_model, fit
from sde_gen.training.trainer import Trainer

HERE = Path(__file__).parent
TARGETS = {"loop, eager": 1.05, "loop, graph": 1.01, "training over diffusers": 1.25, "share of the peak in products": 0.5}
LIMITS = {"tests": 110, "sampling": 110, "training": 170, "cifar": 270, "processes": 60}
"""Seconds of each phase; with --seconds they are longer or shorter in proportion."""
TOLERANCE = 1e-4
"""Two processes and one may differ by this much, in normalised units."""
PEAKS = {"H100": 989.5e12, "H200": 989.5e12, "A100": 312e12}
"""Operations a second of bfloat16 products by the vendor's data sheets, dense, by a part of the card's name."""
WAIT = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Size:
    """How large everything is: the real thing, or a toy of it."""

    digits: dict[str, Any]
    images: dict[str, Any]
    diffusers: dict[str, Any]
    batch: int
    train_batch: int
    calls: tuple[int, int]
    rounds: int
    steps: int
    likelihoods: int
    matrix: int
    cifar: dict[str, Any] | None
    cifar_batch: int | None
    samples: int
    test_images: int


FULL = Size(
    digits={"width": 32, "multipliers": [1, 2], "attention": [1]},
    images={"width": 128, "multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [1]},
    diffusers={"block_out_channels": (128, 256, 256, 256), "layers_per_block": 2},
    batch=64,
    train_batch=128,
    calls=(4, 14),
    rounds=3,
    steps=300,
    likelihoods=512,
    matrix=8192,
    cifar=None,
    cifar_batch=None,
    samples=5000,
    test_images=256,
)
TOY = Size(
    digits={"width": 8, "multipliers": [1], "attention": []},
    images={"patch": 4, "width": 8, "multipliers": [1, 1], "attention": [1]},
    diffusers={"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    batch=2,
    train_batch=4,
    calls=(2, 4),
    rounds=1,
    steps=5,
    likelihoods=2,
    matrix=64,
    cifar={"patch": 4, "width": 8, "multipliers": [1], "attention": []},
    cifar_batch=8,
    samples=40,
    test_images=4,
)


class Bench:
    """A phase under way: its device and size, and where its lines go."""

    def __init__(self, phase: str, device: torch.device, size: Size, until: float, out: Path, cifar: Path | None) -> None:
        self.phase, self.device, self.size, self.until, self.out, self.cifar = phase, device, size, until, out, cifar
        self.cuda = device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the phase's limit."""
        return self.until - time.time()

    def say(self, what: str, **figures: Any) -> None:
        """A line of JSON, written and shown at once."""
        card = torch.cuda.get_device_name(self.device) if self.cuda else "cpu"
        about = {"device": card, "torch": torch.__version__, "size": "toy" if self.size is TOY else "full"}
        line = {"phase": self.phase, "what": what, **rounded(figures), **about, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        with (self.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{self.phase:9} {what:44} " + ", ".join(f"{name} {value}" for name, value in rounded(figures).items()), flush=True)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def time(self, job: Callable[[], Any]) -> float:
        """Milliseconds until the device has done it, the median of some rounds."""
        times = []
        for _ in range(self.size.rounds):
            self.wait()
            began = time.perf_counter()
            job()
            self.wait()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def spread(model: ScoreModel) -> ScoreModel:
    """Layers that begin as zeros would make a forward pass whose result is no number worth having."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.copy_(0.02 * torch.randn(p.shape, generator=generator))
    return model


def random_images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()


def waits(job: Callable[[], Any], cuda: bool) -> int:
    """How often the host waited for the device."""
    if not cuda:
        job()
        return 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            job()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(WAIT in str(warning.message) for warning in seen)


def tests(bench: Bench) -> None:
    """The tests that a device can fail; on the CPU they are collected."""
    chosen = ["tests", "-k", "cuda", "-n", "12", "--continue-on-collection-errors", "--timeout", "60", "--durations", "10"]
    if not bench.cuda:
        chosen = ["tests/test_cuda.py", "--collect-only", "-n", "0"]
    log = bench.out / "tests.log"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    with log.open("w", encoding="utf-8") as file:
        code = run_until(command, bench.until - 8, cwd=HERE.parent, stdout=file, stderr=subprocess.STDOUT)
    text = log.read_text(encoding="utf-8", errors="replace")
    if not bench.cuda:
        assert code == 0, text
        bench.say("collected", code=code)
        return
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", text)}
    names = sorted(set(re.findall(r"(?:FAILED|ERROR) (tests/\S+)", text)))
    bench.say("tests", code=code, **counts, not_passed=names)
    if code != 0:
        raise RuntimeError(f"the tests {'were cut off' if code is None else f'ended with code {code}'}: see {log}")


def run_until(command: list[str], until: float, **options: Any) -> int | None:
    """The exit code of a command; None where it was not done at that time, and then it has ended its processes and itself."""
    process = subprocess.Popen(command, **options)
    try:
        return process.wait(timeout=max(1.0, until - time.time()))
    except subprocess.TimeoutExpired:
        process.terminate()  # pytest's and torchrun's processes end with them
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        return None
    finally:
        process.kill()
        process.wait()


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


def matrix_peak(bench: Bench) -> float:
    """Operations a second of a large bfloat16 product of random numbers."""
    n = bench.size.matrix
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * n**3 / (1e-3 * bench.time(lambda: [a @ b for _ in range(10)]) / 10)


@contextlib.contextmanager
def our_training(bench: Bench, settings: TrainSettings, streamed: bool) -> Iterator[Callable[[], Any]]:
    """A step of ours, with all that a training does."""
    data = random_images(max(2048, settings.batch))
    model = spread(build_model(data, network="unet", network_options=bench.size.images))
    source = array_source(data.byte().numpy(), "images") if streamed else data
    trainer = Trainer(model, source, settings, None, data[:64], 256, bench.device)
    with trainer.running():
        yield trainer.advance


@contextlib.contextmanager
def peer_training(bench: Bench, half: bool, layout: bool = False, compiled: bool = False) -> Iterator[Callable[[], Any]]:
    """A step of diffusers' U-Net as its training script does it: autocast, clipping, AdamW, the average of the weights."""
    mend_torchvision()
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")}
    blocks |= {"up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")}
    widths = bench.size.diffusers["block_out_channels"]
    heads = {"attention_head_dim": widths[1] // 4}  # four heads, as ours
    net: Any = UNet2DModel(sample_size=32, in_channels=3, out_channels=3, **blocks, **heads, **bench.size.diffusers).to(bench.device)
    if layout:
        net = net.to(memory_format=torch.channels_last)
    average = EMAModel(net.parameters(), decay=0.999, use_ema_warmup=True, foreach=True)
    average.to(bench.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)
    asked = torch.compile(net) if compiled else net
    batch = bench.size.train_batch
    data = torch.randn(2048, 3, 32, 32, device=bench.device)

    def step() -> None:
        x_0 = data[torch.randint(0, len(data), (batch,), device=bench.device)]
        noise, t = torch.randn_like(x_0), torch.randint(0, 1000, (batch,), device=bench.device)
        scale = (1 - (t + 1) / 1001).sqrt()[:, None, None, None]
        noised = scale * x_0 + (1 - scale**2).sqrt() * noise
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            out = asked(noised.contiguous(memory_format=torch.channels_last) if layout else noised, t, return_dict=False)[0]
        nn.functional.mse_loss(out.float(), noise).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(net.parameters())

    step.parameters = sum(p.numel() for p in net.parameters())  # type: ignore[attr-defined]
    with float32_products(True):
        yield step


def training(bench: Bench) -> None:
    peak = matrix_peak(bench)
    bench.say(f"product of {bench.size.matrix} x {bench.size.matrix}, bfloat16", tflops=peak / 1e12)
    net = make_network("unet", (3, 32, 32), **bench.size.images)
    flops, size = 3 * (net.flops() or 0), sum(p.numel() for p in net.parameters())
    base = TrainSettings(steps=100_000, batch=bench.size.train_batch, lr=1e-6, evaluations=1, tf32=False)
    half = replace(base, bfloat16=True, tf32=True)
    fast = replace(half, compile=True, channels_last=True)
    ours = {
        "bfloat16": (half, False),
        "bfloat16, channels last": (replace(half, channels_last=True), False),
        "bfloat16, streamed": (half, True),
        "bfloat16, streamed by 4 workers": (replace(half, workers=4), True),
        "float32 in TF32": (replace(base, tf32=True), False),
        "float32": (base, False),
        "bfloat16, channels last, compiled": (fast, False),
        "bfloat16, compiled": (replace(half, compile=True), False),
    }
    peers = {
        "bfloat16": (True,),
        "bfloat16, channels last": (True, True),
        "float32 in TF32": (False,),
        "bfloat16, compiled": (True, False, True),
        "bfloat16, channels last, compiled": (True, True, True),
    }
    jobs: list[tuple[str, str, Any]] = []
    for name, (settings, streamed) in ours.items():
        jobs.append(("sde_gen", name, lambda settings=settings, streamed=streamed: our_training(bench, settings, streamed)))
        if name in peers:
            jobs.append(("diffusers", name, lambda name=name: peer_training(bench, *peers[name])))
    rates: dict[tuple[str, str], float] = {}
    for compiled in (False, True):  # a compilation takes a minute: last
        for who, name, make in jobs:
            if ("compiled" in name) == compiled and (bench.cuda or not compiled):
                try:
                    rates[who, name] = throughput(bench, who, name, make, flops, size, peak)
                except ModuleNotFoundError:
                    bench.say(f"{who}, {name}", missing="diffusers is not installed")
                except RuntimeError as error:
                    bench.say(f"{who}, {name}", failed=str(error).splitlines()[0][:200])
                if bench.cuda:
                    torch.cuda.empty_cache()
        best_over_best(bench, rates, "all" if compiled else "not compiled")
        if not compiled:
            profile(bench, half, flops, peak)


def best_over_best(bench: Bench, rates: dict[tuple[str, str], float], label: str) -> None:
    """Our best rate in bfloat16 over theirs, of the settings that both were measured with, and each setting's own ratio."""
    both = [name for who, name in rates if who == "diffusers" and "bfloat16" in name and ("sde_gen", name) in rates]
    if not both:
        bench.say(f"best over best, {label}", missing="diffusers was not measured", target=TARGETS["training over diffusers"])
        return
    best, other = (max(both, key=lambda name, who=who: rates[who, name]) for who in ("sde_gen", "diffusers"))
    each = {name: rates["sde_gen", name] / rates["diffusers", name] for name in both}
    ratio = rates["sde_gen", best] / rates["diffusers", other]
    bench.say(f"best over best, {label}", ratio=ratio, ours=best, theirs=other, each=each, target=TARGETS["training over diffusers"])


def throughput(bench: Bench, who: str, name: str, make: Callable[[], Any], flops: int, size: int, peak: float) -> float:
    """Images a second, from three runs of about a third of a second each."""
    with make() as step:
        began = time.perf_counter()
        for _ in range(3):
            step()
        bench.wait()
        first = time.perf_counter() - began
        once = bench.time(step)
        many = 1 if bench.size is TOY else max(1, min(100, int(300 / once)))
        rate = bench.size.train_batch * many / (1e-3 * bench.time(lambda: [step() for _ in range(many)]))
        waited = waits(step, bench.cuda)
        size = getattr(step, "parameters", size)
    figures: dict[str, Any] = {"images_a_second": rate, "parameters": size, "first_steps_seconds": first, "waits_a_step": waited}
    if who == "sde_gen":
        figures |= {"tflops": rate * flops / 1e12, "share_of_measured_bfloat16_peak": rate * flops / peak}
    bench.say(f"{who}, {name}", **figures)
    return rate


KERNELS = {
    "attention": r"flash|fmha|attention|softmax|sdpa",
    "layout": r"nchwToNhwc|nhwcToNchw|transpose",
    "products": r"gemm|conv|cutlass|xmma|cudnn|implicit|wgrad|dgrad|nvjet|fprop",
    "normalisation": r"norm|RowwiseMoments|GammaBeta|ComputeInternalGradients|ComputeFused",
    "copies and casts": r"direct_copy|copy_kernel|CatArray",
    "optimiser": r"adam|lerp|multi_tensor|foreach",
}


def profile(bench: Bench, settings: TrainSettings, flops: int, peak: float) -> None:
    """Where the device's time of a step goes, and its rate inside products and convolutions alone."""
    for name, chosen in (("plain", settings), ("channels last", replace(settings, channels_last=True))):
        with our_training(bench, chosen, False) as step:
            for _ in range(3):
                step()
            bench.wait()
            if not bench.cuda:
                return
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                began = time.perf_counter()
                for _ in range(3):
                    step()
                bench.wait()
                wall = (time.perf_counter() - began) / 3
        spent = dict.fromkeys([*KERNELS, "other"], 0.0)
        kernels: dict[str, float] = {}
        for event in seen.key_averages():
            kind = next((kind for kind, pattern in KERNELS.items() if re.search(pattern, event.key, re.IGNORECASE)), "other")
            seconds = 1e-6 * event.self_device_time_total / 3
            spent[kind] += seconds
            name = re.sub(r"at::native::|\(anonymous namespace\)::", "", event.key)[:240]
            kernels[name] = kernels.get(name, 0.0) + 1e3 * seconds
        busy = sum(spent.values())
        most = dict(sorted(kernels.items(), key=lambda item: -item[1])[:12])
        rate = bench.size.train_batch * flops / max(spent["products"] + spent["attention"], 1e-9)
        with_layout = bench.size.train_batch * flops / max(spent["products"] + spent["attention"] + spent["layout"], 1e-9)
        sheet = next((value for name, value in PEAKS.items() if name in torch.cuda.get_device_name(bench.device)), None)
        bench.say(
            f"a step of bfloat16, {name}",
            milliseconds=1e3 * wall,
            kernels_milliseconds=1e3 * busy,
            share={kind: seconds / busy for kind, seconds in spent.items()},
            share_of_measured_peak_in_products=rate / peak,
            share_of_measured_peak_with_changes_of_layout=with_layout / peak,
            share_of_data_sheet_in_products=None if sheet is None else rate / sheet,
            target=TARGETS["share of the peak in products"],
            longest_milliseconds=most,
        )


def read_cifar(place: Path) -> Any:
    """CIFAR-10 with labels and test images, from its binary files or from images; ValueError, one line, for anything else."""
    if not place.exists():
        raise ValueError(f"--cifar {place}: it is not there")
    binary = (place.is_dir() and any(place.rglob("data_batch_1.bin"))) or place.name == "cifar-10-binary.tar.gz"
    root = place.parent if place.is_file() else place
    data = sde_gen.load_dataset("cifar10", root=str(root)) if binary else sde_gen.load_dataset(str(place))
    if data.shape != (3, 32, 32) or data.train_labels is None or data.test is None:
        raise ValueError(f"--cifar {place}: images of 3 x 32 x 32 with labels and a test part are needed, got {data.name}")
    return data


def cifar(bench: Bench) -> None:
    if bench.cifar is None and bench.size is not TOY:
        bench.say("left out", reason="give --cifar FILE")
        return
    began = time.monotonic()
    folder = bench.out / "features"
    fitting = None
    if bench.cifar is not None:  # the features are fitted on the CPU, beside the training
        fitting = subprocess.Popen([sys.executable, __file__, "--features", str(folder), "--cifar", str(bench.cifar)])
        data = read_cifar(bench.cifar)
        train, test, labels, test_labels = data.train, data.test, data.train_labels, data.test_labels
    else:
        train, test = random_images(64), random_images(256)[64:]
        labels, test_labels = torch.arange(64) % 10, torch.arange(192) % 10
    assert test is not None and labels is not None
    bench.say("data", read_seconds=time.monotonic() - began, items=len(train))
    config = resolve(read_config(HERE.parent / "experiments" / "configs" / "cifar10.yaml"))
    options, chosen = bench.size.cifar or config.model.options, config.model
    model = build_model(
        train, config.sde.name, chosen.network, chosen.prediction, normalizer=chosen.normalizer, network_options=options, conditions=10
    )
    limit = 2.0 if bench.size is TOY else max(10.0, bench.left - 70)  # what comes after the training takes the rest
    settings = replace(config.training, max_seconds=limit, batch=bench.size.cifar_batch or config.training.batch, evaluations=4)
    result = fit(model, train, settings, {"label": labels}, test, 256, bench.device, False, held_out_cond={"label": test_labels})
    entry = result.history[-1]
    bench.say(
        "training",
        seconds=result.seconds,
        steps=result.steps,
        images_a_second=result.steps * settings.batch / result.seconds,
        parameters=sum(p.numel() for p in model.parameters()),
        loss=entry["loss"],
        validation=entry.get("validation"),
    )
    drawn = torch.arange(bench.size.samples) % 10
    began = time.monotonic()
    out = sde_gen.sample(
        result.model, (len(drawn), 3, 32, 32), "dpm", steps=20, cond={"label": drawn}, batch_size=1000, progress=False, graph=bench.cuda
    )
    bench.wait()
    x = out.x.cpu()
    bench.say("samples", count=len(x), calls=int(out.nfe[0]), seconds=time.monotonic() - began)
    rows = torch.arange(min(100, len(x) // 10 * 10)).reshape(-1, 10).T.flatten()  # a row of the picture is a class
    picture_samples(x[rows], bench.out / "cifar10-gpu.png", value_range=(0.0, 255.0))
    began = time.monotonic()
    count = min(bench.size.test_images, len(test))
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    cond = None if test_labels is None else {"label": test_labels[rows].to(bench.device)}
    found = bits_per_dim(
        result.model, test[rows].long().to(bench.device), 256, "truncated_normal", cond=cond, rtol=1e-3, atol=1e-3, batch_size=128
    )
    bench.say(
        f"bits/dim of {count} test images",
        value=found.value,
        std_error=found.std_error,
        solver=found.solver,
        evaluations=found.nfe,
        seconds=time.monotonic() - began,
    )
    if fitting is not None:
        fitting.wait()
    if (folder / "features.safetensors").exists():
        net = FeatureNet.load(folder / "features.safetensors").to(bench.device)
        rows_of = {len(of): torch.randperm(len(of), generator=torch.Generator().manual_seed(0))[:10_000] for of in (test, train)}
        held_out, training_images = (net.features(of[rows_of[len(of)]]) for of in (test, train))  # archives lie sorted by class
        samples = net.features(x)
        both = min(len(samples), len(held_out))
        for label, features in (("samples", samples[:both]), ("held-out images", held_out[:both])):
            distance = metrics.frechet_distance(features, training_images, bootstrap=20)
            kernel = metrics.kernel_distance(features[:2000], training_images[:5000])
            precision, recall = metrics.precision_recall(features[:2000], training_images[:2000], bootstrap=5)
            bench.say(
                f"{both} {label} against {len(training_images)} training images",
                accuracy=net.accuracy,
                frechet=[distance.value, distance.std_error],
                kernel=[kernel.value, kernel.std_error],
                precision=[precision.value, precision.std_error],
                recall=[recall.value, recall.std_error],
            )


def processes(bench: Bench) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for count in (1, 2):
            file = Path(place) / f"{count}.safetensors"
            began = time.monotonic()
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", __file__]
            path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            log = bench.out / f"{count}-processes.log"
            with log.open("w", encoding="utf-8") as output:
                worker = [*command, "--worker", str(file), "--device", bench.device.type]
                code = run_until(worker, bench.until - 8, env=environment, stdout=output, stderr=subprocess.STDOUT)
            if code != 0:
                raise RuntimeError(f"{count} processes, {'cut off' if code is None else code}: {log.read_text()[-3000:]}")
            found[count] = load_file(file)
            with safe_open(file, "pt") as kept:
                backend = kept.metadata()["backend"]
            bench.say(f"{count} processes", seconds=time.monotonic() - began, backend=backend)
    apart = {name: float((found[2][name].double() - found[1][name].double()).abs().max()) for name in found[1]}
    bench.say("two processes and one, largest difference", **apart, tolerance=TOLERANCE)
    if max(apart.values()) > TOLERANCE:
        raise RuntimeError(f"two processes give something else than one: {apart}")


def worker(file: Path, device: torch.device) -> None:
    """What each process of the phase `processes` does."""
    x = sde_gen.load_dataset("digits").train
    with parallel.processes(device) as place:
        backend = "none" if parallel.world() == 1 else torch.distributed.get_backend_config()
        model = spread(build_model(x, network="unet", network_options=TOY.digits)).to(place)
        settings = TrainSettings(steps=10, batch=32, warmup=2, evaluations=1, tf32=False, clip=1e9)
        kept: list[Tensor] = []
        trainer = Trainer(model, x, settings, None, None, None, place)
        hook = trainer.optimizer.register_step_pre_hook(lambda *_: kept.extend(p.grad.clone() for p in trainer.parameters))
        with trainer.running():
            trainer.advance()
            hook.remove()
            while not trainer.done:
                trainer.advance()
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        with float32_products(False):
            out = sample_together(trainer.result.model, (16, 1, 8, 8), solver="em", steps=20, progress=False)
        if parallel.rank() == 0:
            gradients = torch.cat([gradient.flatten() for gradient in kept])
            kept_tensors = {"gradients": gradients, "weights": weights, "samples": out.x}
            save_file({name: value.cpu().contiguous() for name, value in kept_tensors.items()}, file, {"backend": str(backend)})


PHASES: dict[str, Callable[[Bench], None]] = {
    "tests": tests,
    "sampling": sampling,
    "training": training,
    "cifar": cifar,
    "processes": processes,
}


def start(name: str, arguments: argparse.Namespace, limit: float) -> bool:
    """A phase in a process of its own; whether it came to its end."""
    command = [sys.executable, __file__, "--only", name, "--until", f"{time.time() + limit:.1f}"]
    command += ["--device", arguments.device, "--out", str(arguments.out)]
    command += ["--cifar", str(arguments.cifar)] if arguments.cifar else []
    command += ["--toy"] if arguments.toy else []
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=limit)
        why = None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        why = f"cut off after {limit:.0f} s"
    finally:  # of what it has started nothing may disturb what comes after; torchrun's processes are torchrun's to end
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 0.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=patience)
    if why is not None:
        print(f"{name:9} {why}", flush=True)
        with (arguments.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": name, "what": "ended early", "reason": why}) + "\n")
    return why is None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(PHASES), help="names with commas between them")
    parser.add_argument("--seconds", type=float, help=f"for all phases together (default: theirs, {sum(LIMITS.values())} for all)")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--cifar", type=Path, help="CIFAR-10: an archive or a directory that sde_gen reads")
    parser.add_argument(
        "--out", type=Path, help="directory of gpu.jsonl, logs and picture (default results/gpu; of a toy, a temporary one)"
    )
    parser.add_argument("--dry-run", choices=["cpu"], help="everything at toy size")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--toy", action="store_true", help="everything at toy size, on a GPU")
    for hidden in ("--only", "--worker", "--features"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.device, arguments.toy = arguments.dry_run, True
    unknown = sorted(set(arguments.phases.split(",")) - set(PHASES))
    if unknown:
        parser.error(f"unknown phase {', '.join(unknown)}; choose from {', '.join(PHASES)}")
    if arguments.cifar is not None and not arguments.cifar.exists():
        parser.error(f"--cifar {arguments.cifar}: it is not there")
    if arguments.features:
        metrics.cached_features(read_cifar(arguments.cifar), arguments.features)
        return 0
    if not arguments.dry_run and arguments.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here; --dry-run cpu runs everything at toy size on the CPU", file=sys.stderr)
        return 2
    if arguments.worker:
        worker(Path(arguments.worker), torch.device(arguments.device))
        return 0
    if arguments.out is None:
        arguments.out = Path(tempfile.mkdtemp(prefix="gpu-toy-")) if arguments.toy else HERE / "results" / "gpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # of a toy, more would only wait for each other
    if arguments.only:
        size = TOY if arguments.toy else FULL
        bench = Bench(arguments.only, torch.device(arguments.device), size, arguments.until, arguments.out, arguments.cifar)
        PHASES[arguments.only](bench)
        return 0
    chosen = [name for name in PHASES if name in arguments.phases.split(",")]
    usual = sum(LIMITS[name] for name in chosen)
    factor = (arguments.seconds or usual) / usual
    ended = [start(name, arguments, LIMITS[name] * factor) for name in chosen]
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The phase `training` of gpu.py: images a second beside diffusers, and where the time of a step goes."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_phase import TARGETS, TOY, Bench, random_images, spread, waits
from peers_digits import mend_torchvision
from torch import nn

from sde_gen.data.source import array_source
from sde_gen.devices import float32_products
from sde_gen.networks import make_network
from sde_gen.training import TrainSettings, build_model
from sde_gen.training.trainer import Trainer

PEAKS = {"H100": 989.5e12, "H200": 989.5e12, "A100": 312e12}
"""Operations a second of bfloat16 products by the vendor's data sheets, dense, by a part of the card's name."""


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

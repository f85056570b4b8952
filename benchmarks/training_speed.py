"""How fast the U-Net trains and predicts, beside the U-Nets of two libraries at equal parameters and resolution.

    peers-env/bin/python benchmarks/training_speed.py            # the environment that benchmarks/peers.txt describes

Batches of 64 images of 1x32x32 and 3x32x32, networks of 1.5 to 1.7 M parameters with their own library's structure (three or four
levels, attention at the lower ones). A training step is forward, backward, clipping and AdamW on a squared error; a prediction is a
forward pass without gradients. Everyone takes a turn, over and over; the median of the turns counts, and ratios are medians of the
ratios within a round, with the quartiles. Ours runs three times: as it is ("float32"), under bfloat16 autocast as
training.bfloat16=true does ("bfloat16"), and with patch=2 besides, the setting of the MNIST configuration ("patch 2"), whose
convolutions run at half the resolution: another network of the same size, whose quality is shown elsewhere. The peers run in float32 and
under the same autocast. Two ratios: to the best peer in whichever of the two is faster for it, and like for like, to the best peer in the
same precision. GFLOP: matrix products, convolutions and attention of one image's forward
pass, counted; a training step counts three times that.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers_digits import mend_torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sde_gen.networks import make_network

HERE = Path(__file__).parent
SHAPES = {"1x32x32": (1, 32, 32), "3x32x32": (3, 32, 32)}
TARGET = 1.25
OURS = {"width": 32, "multipliers": [1, 2, 2, 2], "attention": [3]}
OURS_FOLDED = {"width": 32, "multipliers": [1, 2, 2, 2], "attention": [2, 3], "patch": 2}
Forward = Callable[[Tensor, Tensor], Tensor]


def ours(shape: tuple[int, ...], options: dict[str, Any]) -> tuple[nn.Module, Forward]:
    net = make_network("unet", shape, **options)
    return net, net


def diffusers(shape: tuple[int, ...]) -> tuple[nn.Module, Forward]:
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=shape[-1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=1,
        block_out_channels=(32, 64, 88),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    return net, lambda x, t: net(x, t).sample


def denoising_diffusion(shape: tuple[int, ...]) -> tuple[nn.Module, Forward]:
    from denoising_diffusion_pytorch import Unet

    net = Unet(dim=28, dim_mults=(1, 2, 3), channels=shape[0])
    return net, net


def spread(net: nn.Module) -> None:
    """Zero-initialised layers would make parts of the backward pass trivial."""
    with torch.no_grad():
        for p in net.parameters():
            if p.abs().max() == 0:
                p.normal_(0, 0.02)


def contenders(shape: tuple[int, ...]) -> dict[str, tuple[nn.Module, Forward, bool]]:
    """Name to (network, call, bfloat16)."""
    made: dict[str, tuple[nn.Module, Forward, bool]] = {}
    net, call = ours(shape, OURS)
    made["sde_gen, float32"], made["sde_gen, bfloat16"] = (net, call, False), (net, call, True)
    made["sde_gen, bfloat16, patch 2"] = (*ours(shape, OURS_FOLDED), True)
    for name, build in (("diffusers", diffusers), ("denoising-diffusion-pytorch", denoising_diffusion)):
        net, call = build(shape)
        made[f"{name}, float32"], made[f"{name}, bfloat16"] = (net, call, False), (net, call, True)
    for net, _, _ in made.values():
        spread(net)
    return made


def gflop(call: Forward, shape: tuple[int, ...]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(torch.randn(1, *shape), torch.ones(1))
    return float(counter.get_total_flops()) / 1e9


def turn(net: nn.Module, call: Forward, half: bool, shape: tuple[int, ...], batch: int, train: bool) -> float:
    """Seconds of one training step or one prediction of a batch, after one that does not count."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True) if train else None
    net.train(train)
    x, t, target = torch.randn(batch, *shape), torch.rand(batch), torch.randn(batch, *shape)
    for _ in range(2):
        began = time.perf_counter()
        with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = call(x, t)
        if optimizer is not None:
            nn.functional.mse_loss(out.float(), target).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
    return seconds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def ratio_to(peer: list[float], mine: list[float]) -> dict[str, Any]:
    """How many times as fast `mine` is as `peer`, by their seconds of each round: the median and the quartiles."""
    middle, low, high = quartiles([theirs / own for theirs, own in zip(peer, mine, strict=True)])
    return {"ratio": middle, "quartiles": [low, high]}


def rows_of(times: dict[str, list[float]]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The best peer by its median, and each network's ratio to it and, under "like for like", to the best peer of its precision."""
    median = {name: statistics.median(values) for name, values in times.items()}
    peers = [name for name in times if not name.startswith("sde_gen")]
    best = min(peers, key=median.__getitem__)
    alike = {half: min((name for name in peers if name.endswith(half)), key=median.__getitem__) for half in ("float32", "bfloat16")}
    rows = {}
    for name, mine in times.items():
        rival = alike["bfloat16" if "bfloat16" in name else "float32"]
        rows[name] = ratio_to(times[best], mine) | {"like for like": ratio_to(times[rival], mine) | {"peer": rival}}
    return best, rows


def measure(shape: tuple[int, ...], batch: int, rounds: int, train: bool) -> dict[str, Any]:
    made = contenders(shape)
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (net, call, half) in made.items():
            times[name].append(turn(net, call, half, shape, batch, train))
    best, rows = rows_of(times)
    for name, (net, call, _) in made.items():
        cost = gflop(call, shape) * (3 if train else 1)
        seconds = statistics.median(times[name])
        rows[name] |= {
            "parameters": sum(p.numel() for p in net.parameters()),
            "gflop_an_image": cost,
            "images_a_second": batch / seconds,
            "gflop_a_second": batch * cost / seconds,
        }
    return {"best peer": best, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "training_speed.json")
    args = parser.parse_args(arguments)
    mend_torchvision()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    for label, shape in SHAPES.items():
        for train in (True, False):
            what = "training" if train else "prediction"
            found = results[f"{what} {label}"] = measure(shape, args.batch, args.rounds, train)
            print(f"\n{what}, {label}, batches of {args.batch}, {args.threads} threads (best peer: {found['best peer']})\n")
            print("| network | parameters | GFLOP an image | images/s | GFLOP/s | over the best peer | like for like |")
            print("|---|---|---|---|---|---|---|")
            for name, row in found["rows"].items():
                (low, high), alike = row["quartiles"], row["like for like"]
                least, most = alike["quartiles"]
                print(
                    f"| {name} | {row['parameters'] / 1e6:.2f} M | {row['gflop_an_image']:.3f} | {row['images_a_second']:.1f} | "
                    f"{row['gflop_a_second']:.0f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
                    f"{alike['ratio']:.2f} ({least:.2f} to {most:.2f}) |",
                    flush=True,
                )
    versions = {name: version(name) for name in ("torch", "diffusers", "denoising-diffusion-pytorch")}
    machine = {"processor": platform.processor() or platform.machine(), "threads": args.threads}
    results["about"] = {"versions": versions, "machine": machine, "target": TARGET, "rounds": args.rounds, "batch": args.batch}
    args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

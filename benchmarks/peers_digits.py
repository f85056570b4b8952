"""Train one peer's network on images for a time budget and sample it: the peers' half of benchmarks/quality.py.

It runs in the peers' own environment, without sde_gen:

    python -m venv peers-env && peers-env/bin/pip install -r benchmarks/peers.txt
    peers-env/bin/python benchmarks/peers_digits.py --peer diffusers --data train.npy --out samples.npy

Both peers get what a careful user would give them: about a million parameters, AdamW with warm-up and a cosine decay over the
budget, an average of the weights, the noise schedule and prediction that their library favours for small images, and
100 DDIM steps that clip the denoised image to the data's range. The budget counts training steps only, not imports, building
or sampling. quality.py gives each peer the whole budget once for each of a few learning rates and counts the best.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]
Sampler = Callable[[int], Tensor]
STEPS = 1000  # of the discrete noise schedules


def mend_torchvision() -> None:
    """Both peers import torchvision and use none of its operators; its PyPI wheel does not load beside a CPU build of PyTorch.

    Declaring the two operators that its Python part registers against is enough for the import to pass.
    """
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        mend_torchvision.library = library  # type: ignore[attr-defined]  # the declarations live as long as the object


def diffusers_unet(shape: tuple[int, ...]) -> tuple[nn.Module, Loss, Sampler]:
    """diffusers' UNet2DModel, 1.0 M parameters, cosine schedule, predicting v (Salimans and Ho 2022, arXiv:2202.00512)."""
    from diffusers import DDIMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=shape[-1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=2,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    schedule = DDIMScheduler(STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing")

    def loss(x: Tensor) -> Tensor:
        noise, t = torch.randn_like(x), torch.randint(STEPS, (len(x),))
        out = net(schedule.add_noise(x, noise, t), t).sample
        return nn.functional.mse_loss(out, schedule.get_velocity(x, noise, t))

    def draw(count: int) -> Tensor:
        schedule.set_timesteps(100)
        x = torch.randn(count, *shape)
        for t in schedule.timesteps:
            x = schedule.step(net(x, t).sample, t, x).prev_sample
        return x

    return net, loss, draw


def ddpm_unet(shape: tuple[int, ...]) -> tuple[nn.Module, Loss, Sampler]:
    """denoising-diffusion-pytorch's Unet, 0.83 M parameters, with its own default process: sigmoid schedule, predicting v."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    net = Unet(dim=32, dim_mults=(1, 2), channels=shape[0])
    process = GaussianDiffusion(net, image_size=shape[-1], timesteps=STEPS, sampling_timesteps=100, auto_normalize=False)
    return net, process, lambda count: process.sample(batch_size=count)


PEERS: dict[str, Callable[[tuple[int, ...]], tuple[nn.Module, Loss, Sampler]]] = {
    "diffusers": diffusers_unet,
    "denoising-diffusion-pytorch": ddpm_unet,
}


def train(net: nn.Module, loss: Loss, data: Tensor, seconds: float, batch: int, lr: float) -> tuple[nn.Module, int, float]:
    """Train for `seconds` of wall time: the averaged network, the steps taken and the seconds spent."""
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    shadows, weights = list(average.parameters()), list(net.parameters())
    order = torch.empty(0, dtype=torch.int64)
    net.train()
    steps, began, spent = 0, time.monotonic(), 0.0
    while spent < seconds:
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(data))])
        index, order = order[:batch], order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (steps + 1) / 100) * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        loss(data[index]).backward()
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(shadows, weights, 1 - decay)
        steps += 1
        spent = time.monotonic() - began
    return average.eval(), steps, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=tuple(PEERS), required=True)
    parser.add_argument("--data", required=True, help=".npy of the training images (N, C, H, W), scaled to [-1, 1]")
    parser.add_argument("--out", required=True, help="where the samples (.npy) go; what is known of them goes beside it (.json)")
    parser.add_argument("--range", type=float, nargs=2, default=(-1.0, 1.0), help="what -1 and 1 are in the data's own units")
    parser.add_argument("--seconds", type=float, default=180.0, help="wall time of training")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128, help="of training")
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    mend_torchvision()
    torch.manual_seed(args.seed)
    data = torch.from_numpy(np.load(args.data, allow_pickle=False)).float()
    net, loss, draw = PEERS[args.peer](tuple(data.shape[1:]))
    averaged, steps, spent = train(net, loss, data, args.seconds, args.batch, args.lr)
    net.load_state_dict(averaged.state_dict())
    net.eval()
    began = time.monotonic()
    with torch.inference_mode():
        x = torch.cat([draw(min(500, args.samples - done)) for done in range(0, args.samples, 500)])
    sampling = time.monotonic() - began
    low, high = args.range
    np.save(args.out, (low + (x + 1) * (high - low) / 2).numpy())
    known = {
        "training_seconds": spent,
        "images": steps * args.batch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "sampling_seconds": sampling,
        "network_calls": 100,
        "learning_rate": args.lr,
        "threads": torch.get_num_threads(),
        "version": f"{args.peer} {version(args.peer)}, torch {torch.__version__}",
    }
    with open(args.out.removesuffix(".npy") + ".json", "w", encoding="utf-8") as file:
        json.dump(known, file, indent=2)


if __name__ == "__main__":
    main()

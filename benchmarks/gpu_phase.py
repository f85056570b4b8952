"""What the phases of gpu.py stand on: their sizes, their clock, their lines of JSON."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen.models.score import ScoreModel

HERE = Path(__file__).parent


TARGETS = {"loop, eager": 1.05, "loop, graph": 1.01, "training over diffusers": 1.25, "share of the peak in products": 0.5}


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

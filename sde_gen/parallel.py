"""Several processes under torchrun: who is who, and the few things that they tell each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Processes that work together; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if world() > 1 else 0


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """The process group that torchrun asks for (none without torchrun), gloo on the CPU and NCCL on CUDA; gives this process's device."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not dist.is_available():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def summed(value: Tensor) -> Tensor:
    """The sum over the processes."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def agreed(value: float, device: torch.device) -> float:
    """The first process's value, in all of them."""
    if world() == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(box, 0)
    return float(box)


def shares(count: int) -> list[slice]:
    """`count` rows in consecutive slices, one for each process."""
    size = world()
    return [slice(count * k // size, count * (k + 1) // size) for k in range(size)]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (b, *) of all processes, one after the other, in all of them; their numbers may differ."""
    if world() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = torch.cat((rows, rows.new_zeros(most - len(rows), *rows.shape[1:]))).contiguous()
    found = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(found, padded)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])

"""Several processes under torchrun: who is who, and the few things that they tell each other."""

from __future__ import annotations

import contextlib
import datetime
import gc
import hashlib
import itertools
import os
import socket
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = datetime.timedelta(hours=2)
"""How long processes wait for one that works alone; one that dies is noticed at once, by the others or by torchrun."""

_groups = itertools.count()


def world() -> int:
    """Processes that work together; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if world() > 1 else 0


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """The process group that torchrun asks for (none without torchrun), gloo on the CPU and NCCL on CUDA; gives this process's
    device. Where a host has fewer cards than processes they share them, and gloo, since NCCL needs a card for each. Warnings are left
    to the first process.

    No process leaves before all are done, and gloo's threads end with the group: one that lets go of its last tensor when the
    interpreter is ending already brings the process down (github.com/pytorch/pytorch/issues/190489). After `fully_shard` PyTorch
    itself keeps the group and its threads; then the wait for the others is all the time that they have.
    """
    if _asked() == 1 or not dist.is_available():
        yield device
        return
    # DistributedDataParallel imports this; with a group there already, its functions would keep that group, as a default, for ever.
    import torch.distributed.nn

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    store, own, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"sde_gen/{next(_groups)}", store)  # a second group must not meet at the addresses of the first
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:gloo" if _share_a_card(store, own, size, device) else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=PATIENCE)
    try:
        with warnings.catch_warnings():
            if rank() > 0:
                warnings.simplefilter("ignore")
            yield device
        dist.barrier()
    finally:
        dist.destroy_process_group()
        gc.collect()  # a training and its network refer to each other, and to the group


def _share_a_card(store: dist.Store, own: int, size: int, device: torch.device) -> bool:
    """Whether any two processes have one card, by the cards' own identifiers: a launcher may show each process a card of its own."""
    card = getattr(torch.cuda.get_device_properties(device), "uuid", device.index)
    store.set(f"card/{own}", f"{socket.gethostname()}/{card}")
    shared = len({store.get(f"card/{rank}") for rank in range(size)}) < size
    if shared and own == 0:
        warnings.warn("processes share a card: they talk by gloo, which is slower than NCCL", stacklevel=4)
    return shared


def _asked() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def once(message: str) -> bool:
    """Whether this process is the first of its torchrun to come with `message`: what befalls all of them is to be said once, and what
    befalls one of them by that one, before there is a process group and after it too."""
    if _asked() == 1 or not dist.is_available():
        return True
    key = f"said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{hashlib.sha256(message.encode()).hexdigest()}"
    try:  # the store that torchrun itself keeps
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=datetime.timedelta(seconds=5)
        )
        return int(store.add(key, 1)) == 1
    except (KeyError, ValueError, RuntimeError):
        return True  # rather twice than never


def lost(error: BaseException) -> bool:
    """Whether this error is that another process has gone away in the middle of what all do together."""
    words = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")
    return _asked() > 1 and isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or any(w in str(error) for w in words))


def _home() -> torch.device:
    """Where small things are told: the host, unless the group is one for GPUs alone."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def summed(value: Tensor) -> Tensor:
    """The sum over the processes."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def agreed(value: float) -> float:
    """The first process's value, in all of them."""
    if world() == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64, device=_home())
    dist.broadcast(box, 0)
    return float(box)


def broadcast_text(text: str) -> str:
    """The first process's text, in all of them."""
    if world() == 1:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_home())
    count = int(agreed(len(content)))
    content = content if rank() == 0 else content.new_empty(count)
    dist.broadcast(content, 0)
    return bytes(content.tolist()).decode()


def anywhere(*flags: bool) -> list[bool]:
    """For each flag whether it is set in any process."""
    if world() == 1:
        return list(flags)
    box = torch.tensor(flags, dtype=torch.int32, device=_home())
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return [bool(flag) for flag in box.tolist()]


def wait() -> None:
    """Until all processes are here."""
    anywhere(False)


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process does this while the others wait, and then they do it: what it leaves on the disk is there for them."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def shares(count: int) -> list[slice]:
    """`count` rows in consecutive slices, one for each process."""
    size = world()
    return [slice(count * k // size, count * (k + 1) // size) for k in range(size)]


def share(count: int) -> slice:
    """This process's slice of `count` rows."""
    return shares(count)[rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (b, *) of all processes, one after the other, in all of them; their numbers may differ."""
    if world() == 1:
        return rows
    if rows.dtype == torch.bool:
        return gather_rows(rows.to(torch.uint8)).bool()
    home = _home()
    counts = [torch.zeros(1, dtype=torch.int64, device=home) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=home))
    most = max(int(count) for count in counts)
    padded = torch.cat((rows, rows.new_zeros(most - len(rows), *rows.shape[1:]))).contiguous()
    found = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(found, padded)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])


def by_shares(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function(rows)` of (N, *), a tensor (N, *) each of whose rows depends on the same row alone, each process working out its share."""
    return function(rows) if len(rows) < world() else gather_rows(function(rows[share(len(rows))]))

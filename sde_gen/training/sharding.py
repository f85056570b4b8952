"""Where a network and its average lie while they are trained: whole in one process, a copy in each, or in shares.

What PyTorch has for shares is imported where it is used: it would add half again to the time in which torch itself is imported.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import parallel
from ..devices import float32_products
from ..models.score import ScoreModel
from .ema import PowerAverage

if TYPE_CHECKING:
    from .settings import TrainSettings


class Placement:
    """A model's network, placed for training alone, as one of several copies (DistributedDataParallel), or in shares (fully_shard).

    model: the model around the network that a loss is to be asked of; its backward pass averages the gradients over the processes.
    network: the network whose parameters are trained; the given model's own or, in shares, a copy of it.
    averages: the averages of its weights, of the settings' `ema_width` and each of their `ema_widths`; `update(network)` keeps each up
        to date.
    whole_averages: the whole networks of averaged weights; like the given model's own network they hold them, where they lie in shares,
        only inside `whole_networks`.
    """

    def __init__(self, model: ScoreModel, settings: TrainSettings, device: torch.device) -> None:
        network = model.network
        assert isinstance(network, nn.Module)
        self.sharded, self.device, self.tf32 = settings.shard is not None, device, settings.tf32
        if settings.channels_last:
            put_channels_last(network)
        self.averages = [PowerAverage(network, width) for width in (settings.ema_width, *settings.ema_widths)]
        self.network: nn.Module = network
        self.whole_averages = [average.module for average in self.averages]
        self.model = model
        self.waiting: tuple[tuple[nn.Module, nn.Module], ...] = ()  # whole networks, which wait on the host, with those in shares
        if self.sharded:
            self.network, self.whole_averages = copy.deepcopy(network), [copy.deepcopy(network).cpu() for _ in self.averages]
            in_pieces = [self.network, *(average.module for average in self.averages)]
            self.waiting = tuple(zip([network.cpu(), *self.whole_averages], in_pieces, strict=True))
            for one in in_pieces:
                shard(one, device)
        asked: Any = self.network
        if settings.compile:
            try:
                asked = torch.compile(asked)
            except RuntimeError as error:  # this Python or system is none of its
                raise ValueError(f"training.compile: {' '.join(str(error).split())[:200]}") from error
        if parallel.world() > 1 and not self.sharded:
            asked = DistributedDataParallel(asked, device_ids=[device] if device.type == "cuda" else None)
        if asked is not network:
            self.model = model.with_network(asked)

    @property
    def averaged(self) -> nn.Module:
        """The whole network of weights averaged over `ema_width`."""
        return self.whole_averages[0]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """In here float32 on a GPU has the precision that the settings ask for, and PyTorch does not warn of writing into what a network
        in shares returns, which nothing here does."""
        with float32_products(self.tf32), warnings.catch_warnings():
            if self.sharded:
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            yield

    @contextlib.contextmanager
    def gradients(self, last: bool) -> Iterator[None]:
        """Forward and backward pass of one part of a batch happen in here; after the last part the processes' gradients are averaged."""
        network: Any = self.model.network
        if self.sharded:
            self.network.set_requires_gradient_sync(last)  # type: ignore[operator]
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not last else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def whole_networks(self, last: bool = False) -> Iterator[None]:
        """In here the whole networks hold the present weights, which lie in shares otherwise; all processes come here together.

        last: they stay on the training's device afterwards.
        """
        for plain, in_pieces in self.waiting:
            put_together(plain, in_pieces)
        if self.sharded:
            self.averaged.to(self.device)
        yield
        for plain, _ in self.waiting:
            plain.to(self.device if last else "cpu")


def put_channels_last(network: nn.Module) -> None:
    """Lay the weights of the network's convolutions of images and volumes out with their channels last, the network's own tensors."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])


def shard(network: nn.Module, device: torch.device) -> None:
    """Spread `network` itself over the processes; its gradients are means over them, and lie in shares too.

    Each block (what the network's module lists hold) is put together for as long as it is used, everything else while the network is.
    Zhao et al. 2023, arXiv:2304.11277.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (parallel.world(),))
    for blocks in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks.children():
            if not isinstance(block, nn.ModuleList) and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    """The tensor put together from its shares, or itself where it lies in none; all processes call this together."""
    together: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return together


def in_shares(value: Tensor, like: Any) -> Tensor:
    """This process's share of the whole `value`, as `like` lies."""
    if not hasattr(like, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put_together(plain: nn.Module, sharded: nn.Module) -> None:
    """Copy the weights of `sharded` to `plain`, a tensor at a time; all processes call this together."""
    target = plain.state_dict()
    for name, value in sharded.state_dict().items():
        target[name].copy_(whole(value))


@torch.no_grad()
def load_whole(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, whether `network` lies in shares or not."""
    network.load_state_dict({name: in_shares(values[name], value) for name, value in network.state_dict().items() if name in values})

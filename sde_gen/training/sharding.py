"""A network that lies in shares on several processes, by PyTorch's fully_shard, and the whole of it where it is needed.

What PyTorch has for this is imported where it is used: it would add half again to the time in which torch itself is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import parallel


def shard(network: nn.Module, device: torch.device) -> None:
    """Spread `network` itself over the processes: each block (what its module lists hold) is put together for as long as it is used,
    everything else while the network is. Its gradients are means over the processes, left in shares too.

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


def collect_gradients(network: Any, now: bool) -> None:
    """Whether the next backward pass through a network in shares adds up the processes' gradients, or leaves that to a later one."""
    network.set_requires_gradient_sync(now)


def whole(value: Tensor) -> Tensor:
    """A tensor put together from its shares, as it is where it lies in none; all processes call this together."""
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

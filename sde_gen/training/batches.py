"""The order in which a training sees its data, and how the data are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .. import parallel
from ..data import Source
from .settings import TrainSettings


def read_batches(
    x: Tensor | Source, encode: Callable[[Tensor], Tensor], settings: TrainSettings, step: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's items of each batch from `step` on, in normalised units, after their numbers in the data.

    x: the data: a tensor in normalised units, or a source in the data's own, whose items `encode` brings into normalised ones.
    """
    rows = parallel.share(settings.batch)
    in_memory = isinstance(x, Tensor) and not settings.workers
    place = device if in_memory else torch.device("cpu")
    order = (index[rows] for index in batch_order(x.shape[0], settings.batch, settings.seed, step, place))
    if in_memory:
        for index in order:
            yield index, x[index]
        return
    loader = DataLoader(
        _Numbered(x if isinstance(x, Source) else x.cpu()),
        batch_size=None,
        sampler=order,
        num_workers=settings.workers,
        generator=torch.Generator(),  # else it takes a number from the global one, and dropout changes
        pin_memory=device.type == "cuda",
    )
    for index, items in loader:
        items = items.to(device, non_blocking=True)
        yield index.to(device, non_blocking=True), encode(items) if isinstance(x, Source) else items


class _Numbered(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Batches by the numbers of their items, which are given with them."""

    def __init__(self, source: Tensor | Source) -> None:
        self.source = source

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return index, self.source[index]


def batch_order(count: int, batch: int, seed: int, skip: int = 0, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """The indices of endless batches on `device`, without the first `skip` of them.

    Each pass over the data has its own random order, and batches run on across passes. A whole pass goes to the device at a time:
    with a transfer for each batch, the loop would wait for the device each time.
    """
    generator = torch.Generator().manual_seed(seed)
    passes, start = divmod(skip * batch, count)
    for _ in range(passes):
        torch.randperm(count, generator=generator)
    left = torch.randperm(count, generator=generator)[start:].to(device)
    while True:
        while len(left) < batch:
            left = torch.cat((left, torch.randperm(count, generator=generator).to(device)))
        yield left[:batch]
        left = left[batch:]

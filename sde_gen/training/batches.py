"""The items of a training and their conditions: what is allowed, the order in which they are seen, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .. import parallel
from ..data import Source
from ..models.score import ScoreModel
from .settings import TrainSettings

_REDRAWS = 2
"""The stream of the random numbers with which items are drawn anew, apart from that of their order."""


def check_conditions(
    model: ScoreModel, cond: Mapping[str, Tensor | Source], count: int, device: torch.device
) -> dict[str, Tensor | Source]:
    """The conditions of a training's items as the model takes them, on `device`; those on disk are looked at when they are read. Raises
    ValueError or TypeError for others."""
    sources = {name: value for name, value in cond.items() if isinstance(value, Source)}
    for name, value in sources.items():
        if len(value) != count:
            raise ValueError(f"condition {name!r} has {len(value)} entries for {count} items; one for each is needed")
        model.conditions({name: value[:1]}, 1, device)
    found = model.conditions({name: value for name, value in cond.items() if name not in sources}, count, device)
    return {name: sources[name] if name in sources else found[name] for name in cond}


def read_batches(
    x: Tensor | Source,
    cond: Mapping[str, Tensor | Source],
    encode: Callable[[Tensor], Tensor],
    settings: TrainSettings,
    step: int,
    device: torch.device,
    redraw: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """This process's items of each batch from `step` on, in normalised units, and their conditions.

    x: the data: a tensor in normalised units, or a source in the data's own, whose items `encode` brings into normalised ones.
    cond: the conditions of all items; tensors lie on `device`.
    redraw: draws what is random of items in the data's own units anew for each batch, from uniform numbers of the items' shape that are a
        function of the seed, the batch's number and an item's place in it; a tensor x is then in the data's own units too.
    """
    own_units = isinstance(x, Source) or redraw is not None

    def finished(items: Tensor, number: int) -> Tensor:
        if redraw is not None:
            drawn = np.random.default_rng([settings.seed, _REDRAWS, number]).random((settings.batch, *items.shape[1:]))[rows]
            items = redraw(items, torch.from_numpy(drawn).to(items))
        return encode(items) if own_units else items

    rows = parallel.share(settings.batch)
    on_disk = {"": x} if isinstance(x, Source) or settings.workers else {}
    on_disk |= {name: value for name, value in cond.items() if isinstance(value, Source)}
    place = torch.device("cpu") if on_disk else device
    order = (index[rows] for index in batch_order(x.shape[0], settings.batch, settings.seed, step, place))
    if not on_disk:
        for number, index in enumerate(order, step):
            yield finished(x[index], number), {name: value[index] for name, value in cond.items()}
        return
    loader = DataLoader(
        _Numbered({name: value if isinstance(value, Source) else value.cpu() for name, value in on_disk.items()}),
        batch_size=None,
        sampler=order,
        num_workers=settings.workers,
        generator=torch.Generator(),  # else it takes a number from the global one, and dropout changes
        pin_memory=device.type == "cuda",
    )
    for number, (index, read) in enumerate(loader, step):
        index = index.to(device, non_blocking=True)
        found = {name: value.to(device, non_blocking=True) for name, value in read.items()}
        items = found.get("", x[index] if isinstance(x, Tensor) else None)
        assert items is not None
        beside = {name: found[name] if name in found else value[index] for name, value in cond.items()}
        yield finished(items, number), beside


class _Numbered(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Batches by the numbers of their items, which are given with them."""

    def __init__(self, sources: Mapping[str, Tensor | Source]) -> None:
        self.sources = sources

    def __getitem__(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return index, {name: source[index] for name, source in self.sources.items()}


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

"""A classifier of noisy data, which is told how noisy they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import as_items, check_labels
from ..devices import find_device
from ..models.denoiser import Denoiser
from ..networks import make_network
from ..progress import bar as progress_bar
from ..sdes import SDE
from ..sdes.base import as_time
from .batches import batch_order
from .ema import PowerAverage


class NoisyClassifier(nn.Module):
    """log p_t(label | x) of states along an SDE, as `guidance.Classifier` takes it.

    network: F(x, c) with a channel for each class, x at about unit variance and c half the log-SNR; its result is averaged over positions.
    sde: the process that the states follow.
    data_std: the standard deviation of the data in normalised units.
    """

    def __init__(self, network: nn.Module, sde: SDE, data_std: float) -> None:
        super().__init__()
        self.network, self.sde, self.data_std = network, sde, data_std

    def logits(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Logits (B, classes) of states x (B, *) in normalised units at times t, a number or (B,)."""
        times = as_time(t).expand(len(x))
        alpha, sigma = self.sde.marginal(times)
        scale = 1 / torch.sqrt((alpha * self.data_std) ** 2 + sigma**2)
        dtype = next(p.dtype for p in self.network.parameters())
        scaled = (x * scale.to(x).reshape(-1, *[1] * (x.ndim - 1))).to(dtype)
        found: Tensor = self.network(scaled, self.sde.half_log_snr(times).to(x.device, torch.float32))
        return found if found.ndim == 2 else found.flatten(2).mean(2)

    def log_probs(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log p_t(class | x) for every class, (B, classes)."""
        return self.logits(x, t).float().log_softmax(1)

    def check(self, cond: Mapping[str, Tensor]) -> None:
        """ValueError unless `cond` holds a class of this classifier for each sample, by the name "label"."""
        if "label" not in cond:
            raise ValueError(f"the classifier is asked for condition 'label', and was given {', '.join(map(repr, cond)) or 'none'}")
        check_labels(cond["label"], len(cond["label"]), getattr(self.network, "out_channels", None), "condition 'label' of the classifier")

    def forward(self, x: Tensor, t: Tensor | float, label: Tensor, **others: Tensor) -> Tensor:
        """log p_t(label | x), (B,); other conditions are the model's, and say nothing here."""
        return self.log_probs(x, t).gather(1, label[:, None].to(x.device))[:, 0].to(x.dtype)


def train_classifier(
    model: Denoiser,
    data: Any,
    labels: Tensor,
    network: str = "unet",
    network_options: dict[str, Any] | None = None,
    steps: int = 1000,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> NoisyClassifier:
    """A classifier of the states of `model`'s SDE, for `guidance.Classifier(model, classifier)`.

    Its loss is the cross-entropy at noise levels that are spread evenly over the half log-SNR.

    data: (N, *) in the data's own units, which the model's normaliser encodes. labels: (N,), 0 .. classes - 1.
    network, network_options: a network by name, made with a channel for each class in the place of the data's.
    steps, batch, lr: AdamW's, with a linear decay to 0; the weights are averaged over the last tenth (`PowerAverage`).
    device: None is the model's, or CUDA where it has no parameters and there is one.

    Raises ValueError for labels that do not fit the data, or fewer than two classes. Dhariwal and Nichol 2021, arXiv:2105.05233.
    """
    x = as_items(data)
    label = check_labels(labels, len(x))
    if len(label) != len(x):
        raise ValueError(f"labels must have one entry for each of the {len(x)} items, got {len(label)}")
    classes = int(label.max()) + 1
    if classes < 2:
        raise ValueError("a classifier needs at least two classes, and all labels are 0")
    for what, value in (("steps", steps), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}")
    parameter = next(iter(model.parameters()), None)
    where = find_device(device) if device is not None or parameter is None else parameter.device
    z = (x if model.normalizer is None else model.normalizer.encode(x)).float().to(where)
    label, sde = label.to(where), model.sde
    with torch.random.fork_rng(devices=[] if where.type == "cpu" else [where]):
        torch.manual_seed(seed)
        made = NoisyClassifier(make_network(network, tuple(z.shape[1:]), None, classes, **(network_options or {})), sde, float(z.std()))
        made = made.to(where).train()
        average = PowerAverage(made.network, 0.1)
        optimizer = torch.optim.AdamW(made.network.parameters(), lr=lr, weight_decay=0.01, fused=True)
        generator = torch.Generator(where).manual_seed(seed)
        low, high = (float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min))
        order = batch_order(len(z), batch, seed, device=where)
        with progress_bar(steps, "training a classifier", "step", progress) as bar:
            for step in range(steps):
                rows = next(order)
                place = (torch.arange(batch, device=where) + torch.rand(batch, generator=generator, device=where)).double() / batch
                t = sde.time_of(low + (high - low) * place).clamp(sde.t_min, sde.t_max)
                alpha, sigma = (value.float().reshape(-1, *[1] * (z.ndim - 1)) for value in sde.marginal(t))
                noise = torch.randn(z[rows].shape, generator=generator, device=where)
                loss = F.cross_entropy(made.logits(alpha * z[rows] + sigma * noise, t).float(), label[rows])
                optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(made.network.parameters(), 1.0, foreach=True)
                optimizer.step()
                average.update(made.network)
                bar.update()
    made.network = average.module
    return made.eval().requires_grad_(False)

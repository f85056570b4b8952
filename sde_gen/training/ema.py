"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

MOST_WIDTH = 0.28
"""Just below the relative width of a plain mean over all of training, 1/sqrt(12)."""


def power_exponent(width: float) -> float:
    """The exponent gamma of a power-function average whose profile has the relative width `width`, sigma_rel.

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    Raises ValueError for a width that is not above 0 and below 0.28. Karras et al. 2024, arXiv:2312.02696, equation 123.
    """
    if not 0 < width < MOST_WIDTH:
        raise ValueError(f"the average's width must be above 0 and below {MOST_WIDTH}, got {width!r}")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerAverage:
    """An average of a network's weights over the last share of training, however long that has been.

        average <- average + (1 - beta_n) (weights - average),   beta_n = (1 - 1/n)^(gamma + 1)

    beta_1 = 0, so that the average is right from the first update on and needs no warm-up. At step n it spans about `width` n steps.
    Buffers are copied at each update. Call `update(network)` after each step: a few kernels for all weights, and no wait for the device.

    network: whose weights are averaged; it is copied.
    width: the relative width, above 0 and below 0.28; ValueError otherwise.
    module: the copy that holds the average.
    updates: the number of updates behind.

    Karras et al. 2024, arXiv:2312.02696, section 3.1.
    """

    def __init__(self, network: nn.Module, width: float = 0.1) -> None:
        self.exponent = power_exponent(width) + 1
        self.module = copy.deepcopy(network)
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the present weights of `network` into the average."""
        self.updates += 1
        beta = (1 - 1 / self.updates) ** self.exponent
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), 1 - beta)
        for mine, theirs in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)

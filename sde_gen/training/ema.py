"""The exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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


def power_average(network: nn.Module, width: float = 0.1) -> AveragedModel:
    """An average of `network`'s weights over the last share of training, however long that has been.

        average <- average + (1 - beta_n) (weights - average),   beta_n = (1 - 1/n)^(gamma + 1)

    beta_1 = 0, so that the average is right from the first update on and needs no warm-up. At step n it spans about `width` n steps.
    Buffers are copied at each update. Call `update_parameters(network)` after each step.

    width: the relative width, above 0 and below 0.28; ValueError otherwise.

    Karras et al. 2024, arXiv:2312.02696, section 3.1.
    """
    exponent = power_exponent(width) + 1

    @torch.no_grad()
    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], averaged: Tensor | int) -> None:
        # `averaged` updates came before this one, the first of which was a copy.
        beta = (1 - 1 / (int(averaged) + 1)) ** exponent
        torch._foreach_lerp_(list(averages), list(weights), 1 - beta)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=False)

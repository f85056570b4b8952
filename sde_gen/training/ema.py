"""The average of a network's weights, and one of another width made of several."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError

if TYPE_CHECKING:
    from .checkpoint import State

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


MOST_MISSED = 0.1


def combination(widths: Sequence[float], width: float) -> tuple[list[float], float]:
    """The coefficients with which averages of a training's weights, of relative widths `widths`, are summed so that the result is as near
    as can be to the average of relative width `width`; and how near that is.

    Of the share s of the training's steps, an average of exponent g takes the part F(s) = s^(g + 1) of its weight from the first s.
    Let weights wander as a Brownian motion W. Integrated by parts, an average is W(1) - int_0^1 F dW, so that two of them differ by a
    Gaussian of variance int (F - G)^2 ds. With e = g + 1 the coefficients c minimise

        int_0^1 (sum_j c_j s^e_j - s^e)^2 ds,   int s^a s^b ds = 1/(a + b + 1),   sum_j c_j = 1

    where the last equation leaves weights that never change as they are: with a multiplier m the solution is that of
    sum_j c_j/(e_i + e_j + 1) + m = 1/(e_i + e + 1) for each i. How near: the root of the minimum over that of the distance of the average
    from the last weights, int s^(2 e) ds. Widths that follow one another by factors of two reach any between them to 0.02.

    Raises ValueError for widths outside the range of `power_exponent`, and where more than a tenth would be missed.
    The idea is that of Karras et al. 2024, arXiv:2312.02696, section 3.2, who fit the profiles s^g themselves, along the training too.
    """
    wanted = power_exponent(width) + 1
    if width in widths:
        return [float(one == width) for one in widths], 0.0
    kept = np.array([power_exponent(one) + 1 for one in widths])
    products, with_wanted = 1 / (kept[:, None] + kept + 1), 1 / (kept + wanted + 1)
    system = np.block([[products, np.ones((len(kept), 1))], [np.ones((1, len(kept))), np.zeros((1, 1))]])
    found = np.linalg.solve(system, np.append(with_wanted, 1.0))[:-1]
    norm = 1 / (2 * wanted + 1)
    missed = float(np.sqrt(max(0.0, found @ products @ found - 2 * found @ with_wanted + norm) / norm))
    if missed > MOST_MISSED:
        shown = ", ".join(f"{one:g}" for one in sorted(widths))
        raise ValueError(f"the averages kept, of widths {shown}, miss one of width {width:g} by {missed:.0%}: choose one between them")
    return [float(value) for value in found], missed


def average_of_width(state: State | None, width: float) -> tuple[dict[str, Tensor], float]:
    """Weights averaged over the relative width `width`, by name, and how near they are (see `combination`), made of the averages that a
    training kept in its `state`: those of `ema_width` and of each of `ema_widths`.

    Raises ValueError for a width that they do not reach; CheckpointError for a state that holds none.
    """
    if state is None or "widths" not in state[1]:
        raise CheckpointError(f"the checkpoint keeps no averages of a training to make one of width {width!r} of")
    tensors, widths = state[0], state[1]["widths"]
    coefficients, missed = combination(widths, width)
    places = ["ema", *(f"averages.{number}" for number in range(len(widths) - 1))]
    found = {}
    try:
        for name in [key.removeprefix("ema.") for key in tensors if key.startswith("ema.")]:
            own = tensors[f"ema.{name}"]
            if own.is_floating_point():
                terms = [c * tensors[f"{place}.{name}"].double() for c, place in zip(coefficients, places, strict=True)]
                own = torch.stack(terms).sum(0).to(own.dtype)
            found[name] = own
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"cannot read the averages of a training: {type(error).__name__}: {error}") from error
    return found, missed


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

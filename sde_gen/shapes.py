"""The one place that lines times up with data of any rank."""

from __future__ import annotations

from torch import Tensor


def expand_as(t: Tensor, x: Tensor) -> Tensor:
    """View per-sample numbers `t`, a scalar () or one for each sample (B,), so that they broadcast over `x`, shape (B, *).

    Raises ValueError when `t` has another shape: a (B, 1) time would broadcast silently to the wrong place.
    """
    if t.ndim == 0:
        return t
    if t.ndim != 1 or t.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"expected a scalar or one number for each of the {x.shape[0]} samples, got shape {tuple(t.shape)}")
    return t.reshape(-1, *(1,) * (x.ndim - 1))
